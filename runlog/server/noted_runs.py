"""
Runs as Prefect's client tells them, made into the lines that runlog derives runs from.

runlog does not orchestrate: it takes note. A run that starts or ends becomes a
line with the same event as those of runlog's own programs (see `runlog.runs`),
and goes the one way in; so names, states and durations are derived, stored and
found like everything else. `runlog.server.routes.prefect_runs` hears of them.

What cannot be a line is what Prefect's client reads back of a run while it works
on it: the parameters, the state with its result's address, the retries that are
left. `NotedRuns` keeps it for the newest runs in memory, and it is gone when the
server ends; a program that is still running then goes on
with what its lines tell, see `NotedRun.of`.

Pure: no I/O. For the tasks of one event loop.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from runlog._run_names import readable_name
from runlog.records import LogEvent, format_timestamp
from runlog.server.answers import canonical_uuid
from runlog.server.run_summary import FINISHED, STARTED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from runlog.server.run_summary import Kind, RunSummary, State

StateType = Literal[
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING"
]
"""Prefect's kinds of states."""

ENDS: dict[str, State] = {
    "COMPLETED": "COMPLETED",
    "FAILED": "FAILED",
    "CRASHED": "FAILED",
    "CANCELLED": "CANCELLED",
}
"""What a final state of Prefect's is to runlog."""

LEVEL = 10
"""DEBUG: Prefect's client logs the same in its own words, and its errors must not count twice."""

MAX_RUNS = 10_000
"""Runs and flows that are kept in memory."""

MAX_KEPT_BYTES = 65_536
"""Of a run's parameters, or of its state; what is larger is not kept, and read back as empty."""

MAX_TOTAL_BYTES = 32 * 1024 * 1024
"""Of everything kept about all runs."""

MAX_NAME_LENGTH = 1000
"""Characters of a name or a tag."""

MAX_TAGS = 100

MAX_EVENT_IDS = 20_000
"""Events that are known to have come, for those that a client sends again after a lost connection."""

PATIENCE = 1.0
"""Seconds that lines wait to be stored for the names of their tasks."""

T = TypeVar("T")

_FLOW_IDS = uuid.UUID("5d1c2a44-3c6f-5b0e-9a51-0b8f0a1c7f10")
"""Namespace of the ids of flows (:rfc:`9562`, 5.5): the same name has the same id on each server."""


def flow_id_of(flow_name: str | None) -> str:
    """Return the id of the flow of this name; flows have no life of their own here."""
    return str(uuid.uuid5(_FLOW_IDS, flow_name or ""))


class RunState(msgspec.Struct, kw_only=True):
    """A state as Prefect's client sends it, and as it reads it back."""

    id: str | None = None
    type: StateType
    name: str | None = None
    timestamp: str | None = None
    message: str | None = None
    data: Any = None
    state_details: dict[str, Any] | None = None

    @property
    def shown_name(self) -> str:
        """The state's name; by default its type, as people write it."""
        return self.name or self.type.title()


class Policy(msgspec.Struct):
    """What Prefect's client wants of retries."""

    retries: int | None = None
    retry_delay: float | list[float] | None = None

    def delay(self, attempt: int) -> float:
        """Return the seconds before the attempt after this one, which is counted from 1."""
        delay = self.retry_delay
        if isinstance(delay, list):
            delay = delay[min(attempt, len(delay)) - 1] if delay else None
        return max(0.0, min(delay or 0.0, 1e9))


@dataclass(slots=True)
class NotedRun:
    """A run, as far as it was told. Ids are UUIDs in their usual form, times nanoseconds since the epoch."""

    id: str
    kind: Kind
    name: str | None = None
    flow_name: str | None = None
    task_name: str | None = None
    flow_run_id: str | None = None
    """Of a task run, as is the next."""
    flow_run_name: str | None = None
    parent_flow_run_id: str | None = None
    parent_task_run_id: str | None = None
    """The innermost task run around it."""
    tracking_task_run_id: str | None = None
    """Of a flow run in another: the task run that stands for it there, by which Prefect's client finds it."""
    created_ns: int = 0
    started_ns: int | None = None
    ended_ns: int | None = None
    run_count: int = 0
    retry_at_ns: int = 0
    """It may not run again before."""
    tags: list[str] = field(default_factory=list)
    policy: Policy = field(default_factory=Policy)
    state: RunState | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """More fields of Prefect's, as they were sent."""

    @classmethod
    def of(cls, summary: RunSummary) -> NotedRun:
        """Return a run as its lines tell it; its id is a UUID."""
        fact, ended_ns, tags = summary.text, summary.ended_ns, summary.attributes.get("prefect.tags")
        state = None
        if summary.state != "UNKNOWN":
            since_ns = ended_ns if ended_ns is not None else summary.started_ns
            state = RunState(
                id=str(uuid.uuid5(uuid.UUID(summary.id), summary.state)),
                type=summary.state,
                name=summary.state.title(),
                timestamp=format_timestamp(since_ns),
                state_details={},
            )
        return cls(
            summary.id,
            summary.kind,
            name=summary.name or readable_name(uuid.UUID(summary.id)),
            flow_name=fact("flow_name"),
            task_name=fact("task_name"),
            flow_run_id=canonical_uuid(fact("flow_run_id")),
            parent_flow_run_id=canonical_uuid(fact("parent_flow_run_id")),
            parent_task_run_id=canonical_uuid(fact("parent_task_run_id")),
            created_ns=summary.started_ns,
            started_ns=summary.started_ns,
            ended_ns=ended_ns,
            run_count=summary.attempt or 1,
            tags=[tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
            state=state,
        )

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 1024 + _size((self.name, self.tags, self.details, self.state))

    def keep(self, state: RunState | None = None, **details: Any) -> None:
        """Keep a state and fields of Prefect's, as far as they are small."""
        if state is not None:
            bare: dict[str, Any] = {"data": None, "message": None, "state_details": {}}
            self.state = state if _size(state) <= MAX_KEPT_BYTES else msgspec.structs.replace(state, **bare)
        for name, value in details.items():
            if _size(value) <= MAX_KEPT_BYTES:
                self.details[name] = value

    def call(self, name: str | None, *, tags: list[str] | None = None) -> None:
        """Give it a name, cut where it is too long, and tags, unless that is `None`."""
        if name:
            self.name = name[:MAX_NAME_LENGTH]
        if tags is not None:
            self.tags = [tag[:MAX_NAME_LENGTH] for tag in tags[:MAX_TAGS]]

    def line(self, state: RunState, at_ns: int, *, duration_s: float | None = None) -> LogEvent | None:
        """
        Return the line that says that it is in a state now; `None` if it neither starts nor ends by that.

        Args:
            state: The new one.
            at_ns: When it came to that.
            duration_s: How long it took, if it ends; by default by the times of its start and its end.
        """
        attributes: dict[str, Any] = {}
        if state.type == "RUNNING":
            self.run_count += 1
            self.started_ns = at_ns if self.started_ns is None else min(self.started_ns, at_ns)
            event_name, text = STARTED, "started"
            attributes["runlog.run.state"] = "RUNNING"
            if self.tags:
                attributes["prefect.tags"] = self.tags
        elif state.type in ENDS:
            self.ended_ns = at_ns
            event_name = FINISHED
            attributes["runlog.run.state"] = ENDS[state.type]
            if duration_s is None and self.started_ns is not None:
                duration_s = max(0.0, (at_ns - self.started_ns) / 1e9)
            text = state.type.lower()
            if duration_s is not None:
                attributes["runlog.run.duration_s"] = duration_s
                text += f" {'in' if state.type == 'COMPLETED' else 'after'} {_duration(duration_s)}"
            if state.type != "COMPLETED":
                text += _reason(state)
        else:
            return None
        if state.shown_name != state.type.title():
            attributes["prefect.state.name"] = state.shown_name
        attempt = self.run_count if self.run_count > 1 or self.policy.retries else None
        if attempt:
            attributes["runlog.run.attempt"] = attempt
            if event_name == STARTED:
                text += f", attempt {attempt}"
        return self._line(text, at_ns, attributes, event_name, attempt)

    def retry_line(self, state: RunState, at_ns: int, delay_s: float) -> LogEvent:
        """Return the line that says that an attempt failed and another follows."""
        text = f"failed, attempt {self.run_count}, retrying in {delay_s:g} s{_reason(state)}"
        return self._line(text, at_ns, {}, None, self.run_count)

    def _line(
        self, text: str, at_ns: int, attributes: dict[str, Any], event_name: str | None, attempt: int | None
    ) -> LogEvent:
        is_flow = self.kind == "flow"
        subject = f"Flow {self.flow_name!r}" if is_flow else f"Task {self.task_name!r}"
        return LogEvent(
            timestamp_ns=at_ns,
            level=LEVEL,
            name=f"prefect.{self.kind}_runs",
            message=f"{subject} {text}",
            flow_run_id=self.id if is_flow else self.flow_run_id,
            task_run_id=None if is_flow else self.id,
            parent_flow_run_id=self.parent_flow_run_id,
            parent_task_run_id=self.parent_task_run_id,
            flow_run_name=self.name if is_flow else self.flow_run_name,
            task_run_name=None if is_flow else self.name,
            flow_name=self.flow_name,
            task_name=None if is_flow else self.task_name,
            attempt=attempt,
            event_name=event_name,
            attributes=attributes,
        )


class NotedRuns:
    """The newest runs that were told, within `MAX_RUNS` and `MAX_TOTAL_BYTES`; the oldest make room."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, tuple[NotedRun, int]] = OrderedDict()
        self._bytes = 0
        self._flows: OrderedDict[str, str] = OrderedDict()
        self._events: OrderedDict[str, None] = OrderedDict()
        self._told = asyncio.Event()
        self._unheard: OrderedDict[str | None, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<NotedRuns: {len(self._runs)} runs of {len(self._flows)} flows, {self._bytes} bytes>"

    def get(self, run_id: str | None) -> NotedRun | None:
        """Return a run, `None` if it is not kept."""
        found = self._runs.get(run_id) if run_id is not None else None
        return found[0] if found is not None else None

    def put(self, run: NotedRun) -> NotedRun:
        """Keep a run, or what has changed of it."""
        known = self._runs.pop(run.id, None)
        size = run.size_bytes
        self._runs[run.id] = run, size
        self._bytes += size - (known[1] if known is not None else 0)
        self._told.set()
        while len(self._runs) > MAX_RUNS or (self._bytes > MAX_TOTAL_BYTES and len(self._runs) > 1):
            _, (_, freed) = self._runs.popitem(last=False)
            self._bytes -= freed
        return run

    def flow_runs(self) -> Iterable[NotedRun]:
        """Yield the flow runs, the one that was told of last first."""
        return (run for run, _ in reversed(self._runs.values()) if run.kind == "flow")

    def add_flow(self, name: str) -> bool:
        """Remember a flow's name for its id; `False` if it is known."""
        name = name[:MAX_NAME_LENGTH]
        known = self._flows.pop(flow_id_of(name), None)
        self._flows[flow_id_of(name)] = name
        if len(self._flows) > MAX_RUNS:
            self._flows.popitem(last=False)
        return known is None

    def flow_name(self, flow_id: str) -> str | None:
        """Return the name that an id of `flow_id_of` was made of, `None` if that is forgotten."""
        return self._flows.get(flow_id)

    def is_new(self, event_id: str) -> bool:
        """Return whether an event comes for the first time; it counts as known from now on."""
        if event_id in self._events:
            return False
        _remember(self._events, event_id, MAX_EVENT_IDS)
        return True

    async def name_lines(self, events: Collection[LogEvent], *, patience: float = PATIENCE) -> None:
        """
        Add the names of their runs to lines of Prefect's client, which sends ids alone.

        A task is told of on another connection than its lines, which may come first.

        Args:
            events: Changed in place.
            patience: Seconds to wait for what is told of the tasks of a flow run that
                was told of; what then is unknown is not waited for again.
        """
        await self._hear_of({event.task_run_id for event in events if self._is_awaited(event)}, patience)
        for event in events:
            flow_run = self.get(event.flow_run_id)
            if flow_run is not None:
                event.flow_run_name, event.flow_name = flow_run.name, flow_run.flow_name
            task_run = self.get(event.task_run_id)
            if task_run is not None:
                event.task_run_name, event.task_name = task_run.name, task_run.task_name

    def _is_awaited(self, event: LogEvent) -> bool:
        task = event.task_run_id
        return (
            task is not None
            and task not in self._runs
            and task not in self._unheard
            and event.flow_run_id in self._runs
        )

    async def _hear_of(self, awaited: set[str | None], patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                while awaited := awaited - self._runs.keys():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            for task in awaited:
                _remember(self._unheard, task, MAX_RUNS)


def _remember(known: OrderedDict[T, None], item: T, most: int) -> None:
    known[item] = None
    if len(known) > most:
        known.popitem(last=False)


def task_name_of(run_name: str, task_key: str, dynamic_key: str) -> str:
    """
    Return a task's name, which Prefect's client does not send by itself.

    Unless told otherwise it makes the run's name of the task's name and the first
    characters of the dynamic key, and the task's key of the function's name and a hash.
    """
    for length in (3, len(dynamic_key)):
        ending = f"-{dynamic_key[:length]}"
        if dynamic_key and run_name.endswith(ending) and run_name != ending:
            return run_name.removesuffix(ending)
    return task_key.rpartition("-")[0].rpartition(".")[2] or task_key or run_name


def parent_task_run_id(task_inputs: dict[str, Any]) -> str | None:
    """Return the task run in which a task run was started, which Prefect's client puts among its inputs."""
    parents = task_inputs.get("__parents__")
    for parent in parents if isinstance(parents, list) else ():
        if isinstance(parent, dict) and parent.get("input_type") == "task_run":
            return canonical_uuid(str(parent.get("id")))
    return None


def _size(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except (msgspec.MsgspecError, ValueError, RecursionError):  # decoded, but too deep to encode
        return MAX_KEPT_BYTES + 1


def _reason(state: RunState) -> str:
    first_line = (state.message or "").strip().partition("\n")[0][:200]
    return f": {first_line}" if first_line else ""


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
