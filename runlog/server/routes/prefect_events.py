"""
``WS /events/in``: where Prefect's client reports what becomes of its tasks.

Its task runs are made by the client and told in events alone. Those become lines,
see `runlog.server.noted_runs`; other events, such as heartbeats, are not kept. A
client that loses its connection sends again what it is not sure of, so an event is
known by its id.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from runlog.exceptions import RunlogError
from runlog.records import format_timestamp
from runlog.server.noted_runs import (
    MAX_NAME_LENGTH,
    NotedRun,
    Policy,
    RunState,
    parent_task_run_id,
    task_name_of,
)
from runlog.server.routes.prefect_reading import is_visible
from runlog.server.state import authorise, state_of
from runlog.server.storage.restricted import PermissionDeniedError
from runlog.server.times import parse_time

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from runlog.records import LogEvent
    from runlog.server.noted_runs import NotedRuns

logger = logging.getLogger("runlog.server")

GREETING_TIMEOUT = 10.0
"""Seconds in which a client must say who it is."""

MAX_WAITING = 1000
"""Lines of one socket that wait to be stored; then the client waits."""

MAX_EVENT_BYTES = 1024 * 1024
"""Of one event; Prefect's client cuts a state's message at 100,000 characters."""

INVALID, POLICY_VIOLATION, TOO_BIG, TRY_AGAIN = 1007, 1008, 1009, 1013

_TASK_RUN = "prefect.task-run."
_FLOW_RUN = "prefect.flow-run."


class Event(msgspec.Struct):
    """An event of Prefect's client."""

    event: str
    id: str
    occurred: str
    resource: dict[str, Any]
    related: list[dict[str, Any]] = []
    payload: dict[str, Any] = {}


class TaskRunFacts(msgspec.Struct):
    """What an event says of a task run besides its id and state."""

    name: str = ""
    task_key: str = ""
    dynamic_key: str = ""
    run_count: int = 0
    tags: list[str] = []
    empirical_policy: Policy | None = None
    task_inputs: dict[str, Any] = {}


async def events_in(socket: WebSocket) -> None:
    """Take events until the client leaves or the server stops."""
    if not await _admit(socket):
        return
    server = state_of(socket)
    lines: asyncio.Queue[LogEvent | None] = asyncio.Queue(MAX_WAITING)

    async def receive() -> None:
        try:
            while True:
                text = await socket.receive_text()
                if len(text) > MAX_EVENT_BYTES:
                    await socket.close(TOO_BIG, f"an event must have at most {MAX_EVENT_BYTES} bytes")
                    break
                line = _take_note(socket, server.noted, text)
                if line is not None:
                    await lines.put(line)
        except (WebSocketDisconnect, KeyError):  # KeyError: bytes, which no client of Prefect's sends
            pass
        await lines.put(None)

    async def store() -> None:
        is_open = True
        while is_open:
            some = [await lines.get()]
            while not lines.empty():
                some.append(lines.get_nowait())
            is_open = None not in some
            await server.ingest.take_events([line for line in some if line is not None])

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(receive())
            tasks.create_task(store())
    except* PermissionDeniedError as errors:
        await socket.close(POLICY_VIOLATION, str(errors.exceptions[0])[:120])
    except* RunlogError as errors:
        # The client keeps what was not confirmed and comes back.
        logger.error("%s", errors.exceptions[0])  # noqa: TRY400 - its trace says nothing about what is wrong with the store
        await socket.close(TRY_AGAIN, "the store of lines cannot be used at the moment")


async def _admit(socket: WebSocket) -> bool:
    """Accept a socket as Prefect's server does: with the subprotocol, its first message says who it is."""
    if "prefect" not in socket.scope.get("subprotocols", ()):
        if authorise(socket, None, "ingest") is None:
            await socket.close()  # before it is accepted: 403
            return False
        await socket.accept()
        return True
    await socket.accept("prefect")
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            message = msgspec.json.decode(await socket.receive_text())
    except WebSocketDisconnect:
        return False
    except (TimeoutError, KeyError, msgspec.MsgspecError, UnicodeError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("type") != "auth":
        await socket.close(POLICY_VIOLATION, "Expected 'auth' message")
        return False
    token = message.get("token")
    if authorise(socket, token if isinstance(token, str) else None, "ingest") is None:
        reason = "Invalid token" if token else "Auth required but no token provided"
        await socket.close(POLICY_VIOLATION, reason)
        return False
    await socket.send_text('{"type":"auth_success"}')
    return True


def _take_note(socket: WebSocket, noted: NotedRuns, text: str) -> LogEvent | None:
    """Keep what an event says of a task run, and return the line that it becomes; `None` for no line."""
    try:
        event = msgspec.json.decode(text, type=Event)
        if not event.event.startswith(_TASK_RUN) or "prefect.state-type" not in event.resource:
            return None
        facts = msgspec.convert(event.payload.get("task_run", {}), TaskRunFacts)
        state = msgspec.convert(event.payload.get("validated_state"), RunState)
        run_id = str(uuid.UUID(str(event.resource.get("prefect.resource.id", "")).removeprefix(_TASK_RUN)))
        event_id, at_ns = str(uuid.UUID(event.id)), parse_time(event.occurred)
    except (msgspec.MsgspecError, ValueError, UnicodeError, RecursionError) as error:
        # Closing the socket would make the client send it again and again, and nothing behind it.
        logger.warning("an event of a Prefect client is not understood and not kept: %s", error)
        return None
    if not noted.is_new(event_id):
        return None
    run = noted.get(run_id)
    if run is None or run.kind != "task":
        run = NotedRun(run_id, "task", created_ns=at_ns)
    elif not is_visible(socket, run):
        raise PermissionDeniedError("a task run belongs to something else")
    _learn(run, event, facts)
    state = msgspec.structs.replace(
        state, id=event_id, timestamp=format_timestamp(at_ns), name=state.shown_name
    )
    # The client counts attempts itself; a state is told once it has them.
    run.run_count = max(run.run_count, facts.run_count - (state.type == "RUNNING"))
    line = run.line(state, at_ns)
    run.keep(state, task_key=facts.task_key, dynamic_key=facts.dynamic_key)
    noted.put(run)
    return line


def _learn(run: NotedRun, event: Event, facts: TaskRunFacts) -> None:
    """Add what an event says of a task run's names and of the runs around it."""
    run.call(facts.name or str(event.resource.get("prefect.resource.name") or run.id), tags=facts.tags)
    run.task_name = task_name_of(run.name or "", facts.task_key, facts.dynamic_key)[:MAX_NAME_LENGTH]
    run.policy = facts.empirical_policy or run.policy
    for related in event.related:
        role, name = related.get("prefect.resource.role"), related.get("prefect.resource.name")
        resource = str(related.get("prefect.resource.id", ""))
        if role == "flow-run":
            run.flow_run_id = _id(resource, _FLOW_RUN) or run.flow_run_id
            run.flow_run_name = name[:MAX_NAME_LENGTH] if isinstance(name, str) else None
        elif role == "flow" and isinstance(name, str):
            run.flow_name = name[:MAX_NAME_LENGTH]
    parent = parent_task_run_id(facts.task_inputs)
    run.parent_task_run_id = parent if parent != run.id else None


def _id(resource: str, prefix: str) -> str | None:
    try:
        return str(uuid.UUID(resource.removeprefix(prefix)))
    except ValueError:
        return None


ROUTES = [WebSocketRoute("/events/in", events_in)]
