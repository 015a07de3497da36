"""
What is known about a run, derived from the lines that name it.

`summarise` folds the lines of one batch into a `RunSummary` for each run they
belong to; a storage merges those into what it has. `merge` is commutative and
associative, so that batches of several producers, late batches and batches that
arrive after the run's end lead to the same result in every order.

A line counts for its flow run and for its task run. A flow run's counts
therefore include its tasks' lines, and not those of the flow runs opened in it,
which have counts of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runlog.records import LogEvent

Kind = Literal["flow", "task"]
State = Literal["RUNNING", "COMPLETED", "FAILED", "CANCELLED", "UNKNOWN"]

STARTED = "runlog.run.started"
"""The event's name on a line that opens a run."""
FINISHED = "runlog.run.finished"
"""The event's name on a line that ends a run."""
FINAL_STATES: tuple[State, ...] = ("COMPLETED", "FAILED", "CANCELLED")

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""What lines are counted by; a custom level counts as the one below it, one below DEBUG as DEBUG."""

UNKNOWN_NAME = "<unknown>"
"""What a program writes where it has no name for a run."""

_NOT_OF_RUN = ("runlog.", "code.", "thread.", "process.", "asyncio.")
"""Beginnings of attributes that belong to the line that opens a run, not to the run."""


class Scope(NamedTuple):
    """What a line says about the run it was logged in. Many lines have the same."""

    flow_run_id: str | None
    flow_run_name: str | None
    flow_name: str | None
    task_run_id: str | None
    task_run_name: str | None
    task_name: str | None
    parent_flow_run_id: str | None
    parent_task_run_id: str | None
    attempt: int | None


Fact: TypeAlias = tuple[bool, int, str]
"""A text about a run: whether it is a real one, the time of the last line that said it, and itself."""


class Verdict(NamedTuple):
    """An event that opened or ended a run. The greatest one decides the run's state."""

    timestamp_ns: int
    is_end: bool
    """A run that ends in the same microsecond as it began has ended."""
    state: State
    duration_s: float
    """-1 if the run's end did not say."""


@dataclass(slots=True)
class RunSummary:
    """
    One run. Times are in nanoseconds since the epoch.

    ``facts`` has names and parents, by the names of `Scope`.
    """

    id: str
    kind: Kind
    lines: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * len(LEVELS))
    """Lines by level, in the order of `LEVELS`."""
    first_line_ns: int = 0
    last_line_ns: int = 0
    facts: dict[str, Fact] = field(default_factory=dict)
    attempt: int | None = None
    """The highest that was seen."""
    opened: tuple[int, str] | None = None
    """Time of the first event that opened it, and its attributes as JSON."""
    verdict: Verdict | None = None

    @property
    def started_ns(self) -> int:
        """When it began: its opening event, else its first line."""
        return self.opened[0] if self.opened is not None else self.first_line_ns

    @property
    def ended_ns(self) -> int | None:
        """When it ended, if it is known to have."""
        return self.verdict.timestamp_ns if self.verdict is not None and self.verdict.is_end else None

    @property
    def duration_s(self) -> float | None:
        """How long it took, by its own clock; `None` if it did not end or did not say."""
        verdict = self.verdict
        return (
            verdict.duration_s if verdict is not None and verdict.is_end and verdict.duration_s >= 0 else None
        )

    @property
    def state(self) -> State:
        """``UNKNOWN`` if lines came, but no event that opens or ends the run."""
        return self.verdict.state if self.verdict is not None else "UNKNOWN"

    @property
    def name(self) -> str | None:
        """The run's own name."""
        return self.text("flow_run_name" if self.kind == "flow" else "task_run_name")

    @property
    def parent_id(self) -> str | None:
        """The innermost run in which it was opened."""
        outer = "parent_flow_run_id" if self.kind == "flow" else "flow_run_id"
        parent = self.text("parent_task_run_id") or self.text(outer)
        return None if parent == self.id else parent

    def text(self, name: str) -> str | None:
        """Return a fact's text, `None` if there is none."""
        fact = self.facts.get(name)
        return fact[2] if fact is not None else None

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run was opened with."""
        return msgspec.json.decode(self.opened[1]) if self.opened is not None else {}


def level_index(level: int) -> int:
    """Return where in `LEVELS` a level counts."""
    return min(max(level // 10, 1), 5) - 1


@dataclass(slots=True)
class _Tally:
    """The lines of one batch in one scope."""

    levels: dict[int, int] = field(default_factory=dict)
    first_ns: int = 2**63
    last_ns: int = -(2**63)
    events: list[LogEvent] = field(default_factory=list)


def summarise(events: Iterable[LogEvent]) -> tuple[dict[tuple[Kind, str], RunSummary], list[Scope]]:
    """
    Fold lines into what they say about their runs.

    Args:
        events: Lines in any order.

    Returns:
        A summary for each run, by kind and id, and each line's scope in the
        order of *events*. Equal scopes are the same object.
    """
    tallies: dict[tuple[Any, ...], tuple[Scope, _Tally]] = {}
    scopes: list[Scope] = []
    for event in events:
        fields = (
            event.flow_run_id,
            event.flow_run_name,
            event.flow_name,
            event.task_run_id,
            event.task_run_name,
            event.task_name,
            event.parent_flow_run_id,
            event.parent_task_run_id,
            event.attempt,
        )
        found = tallies.get(fields)
        if found is None:
            found = tallies[fields] = Scope(*fields), _Tally()
        scope, tally = found
        scopes.append(scope)
        level = event.level
        tally.levels[level] = tally.levels.get(level, 0) + 1
        at = event.timestamp_ns
        tally.first_ns = min(tally.first_ns, at)
        tally.last_ns = max(tally.last_ns, at)
        if event.event_name is not None:
            tally.events.append(event)
    runs: dict[tuple[Kind, str], RunSummary] = {}
    for scope, tally in tallies.values():
        if scope.flow_run_id is not None:
            _add(runs, "flow", scope.flow_run_id, scope, tally)
        if scope.task_run_id is not None:
            _add(runs, "task", scope.task_run_id, scope, tally)
    return runs, scopes


_FACTS: dict[Kind, tuple[str, ...]] = {
    "flow": ("flow_run_name", "flow_name"),
    "task": ("flow_run_id", "flow_name", "task_run_name", "task_name"),
}
"""What every line says about its flow run and its task run."""


def _add(
    runs: dict[tuple[Kind, str], RunSummary], kind: Kind, run_id: str, scope: Scope, tally: _Tally
) -> None:
    """Merge what the lines of one scope say about one of its two runs into *runs*."""
    run = RunSummary(run_id, kind, first_line_ns=tally.first_ns, last_line_ns=tally.last_ns)
    for level, count in tally.levels.items():
        run.counts[level_index(level)] += count
        run.lines += count
    # The innermost run of a line is what its parent, attempt and events are about.
    innermost = kind == "task" or scope.task_run_id is None
    names = _FACTS[kind]
    if innermost:
        names += ("parent_flow_run_id", "parent_task_run_id")
        run.attempt = scope.attempt
    for name in names:
        value = getattr(scope, name)
        if value:
            run.facts[name] = (value != UNKNOWN_NAME, tally.last_ns, value)
    if innermost:
        for event in tally.events:
            _judge(run, event)
    known = runs.get((kind, run_id))
    runs[kind, run_id] = run if known is None else merge(known, run)


def _judge(run: RunSummary, event: LogEvent) -> None:
    """Take in an event that opens or ends the run; any other is a line like all."""
    attributes = event.attributes
    if event.event_name == STARTED:
        own = {key: value for key, value in attributes.items() if not key.startswith(_NOT_OF_RUN)}
        opened = (event.timestamp_ns, msgspec.json.encode(own, order="deterministic").decode())
        run.opened = _least(run.opened, opened)
        verdict = Verdict(event.timestamp_ns, is_end=False, state="RUNNING", duration_s=-1.0)
    elif event.event_name == FINISHED and attributes.get("runlog.run.state") in FINAL_STATES:
        duration = attributes.get("runlog.run.duration_s")
        verdict = Verdict(
            event.timestamp_ns,
            is_end=True,
            state=cast("State", attributes["runlog.run.state"]),
            duration_s=float(duration)
            if isinstance(duration, int | float) and duration is not True and 0 <= duration < 1e12
            else -1.0,
        )
    else:
        return
    run.verdict = _greatest(run.verdict, verdict)
    attempt = attributes.get("runlog.run.attempt")
    if type(attempt) is int and 0 < attempt < 2**31:
        run.attempt = _greatest(run.attempt, attempt)


def merge(one: RunSummary, other: RunSummary) -> RunSummary:
    """
    Return what two sets of lines, without a line in common, say together about one run.

    Args:
        one: Not changed.
        other: Of the same run; not changed.
    """
    facts = dict(one.facts)
    for name, fact in other.facts.items():
        known = facts.get(name)
        facts[name] = fact if known is None or fact > known else known
    return RunSummary(
        id=one.id,
        kind=one.kind,
        lines=one.lines + other.lines,
        counts=[a + b for a, b in zip(one.counts, other.counts, strict=True)],
        first_line_ns=min(one.first_line_ns, other.first_line_ns),
        last_line_ns=max(one.last_line_ns, other.last_line_ns),
        facts=facts,
        attempt=_greatest(one.attempt, other.attempt),
        opened=_least(one.opened, other.opened),
        verdict=_greatest(one.verdict, other.verdict),
    )


T = TypeVar("T", bound=Any)


def _greatest(one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _least(one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
