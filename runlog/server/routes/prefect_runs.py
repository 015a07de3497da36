"""
What Prefect's client tells about the runs of a program, so that it needs no other server.

An unmodified ``@flow`` creates its flow and its runs, asks for each state before it
takes it, and reports its tasks as events on a WebSocket. runlog lets every program
do as it proposes, and takes note, see `runlog.server.noted_runs`. The one thing
decided here is what Prefect's server decides as well and the client cannot: a
flow that failed and has retries left runs again.

A run that was told to a server before this one is found by its lines; one that
nobody has heard of is noted all the same: no program fails for want of its past.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from runlog._run_names import readable_name
from runlog.exceptions import StorageError, StorageFullError
from runlog.records import format_timestamp
from runlog.server.body import json_response, read_body
from runlog.server.errors import InvalidBodyError
from runlog.server.noted_runs import MAX_NAME_LENGTH, NotedRun, Policy, RunState, parent_task_run_id
from runlog.server.principal import principal_of
from runlog.server.routes.prefect_answers import flow_answer, flow_run_answer, task_run_answer
from runlog.server.routes.prefect_reading import find_run, is_visible
from runlog.server.state import state_of
from runlog.server.storage.restricted import PermissionDeniedError
from runlog.server.validation import Faults

if TYPE_CHECKING:
    from starlette.requests import Request

    from runlog.records import LogEvent
    from runlog.server.run_summary import Kind

T = TypeVar("T")


class FlowBody(msgspec.Struct):
    """``POST /flows/``; the rest is not of interest."""

    name: str


class FlowRunBody(msgspec.Struct):
    """``POST /flow_runs/``."""

    flow_id: uuid.UUID
    name: str | None = None
    parent_task_run_id: uuid.UUID | None = None
    tags: list[str] = []
    empirical_policy: Policy | None = None
    state: RunState | None = None
    parameters: dict[str, Any] = {}
    context: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    flow_version: str | None = None
    idempotency_key: str | None = None


class TaskRunBody(msgspec.Struct):
    """``POST /task_runs/``."""

    task_key: str
    dynamic_key: str
    flow_run_id: uuid.UUID | None = None
    id: uuid.UUID | None = None
    name: str | None = None
    tags: list[str] = []
    empirical_policy: Policy | None = None
    state: RunState | None = None
    labels: dict[str, Any] = {}
    task_inputs: dict[str, Any] = {}
    task_version: str | None = None


class ChangesBody(msgspec.Struct):
    """``PATCH /flow_runs/{id}``: what is there is changed."""

    name: str | None = None
    tags: list[str] | None = None
    empirical_policy: Policy | None = None
    flow_version: str | None = None
    parameters: dict[str, Any] | None = None
    infrastructure_pid: str | None = None


class StateBody(msgspec.Struct):
    """``POST /flow_runs/{id}/set_state``; ``force`` changes nothing where all is accepted."""

    state: RunState


# --- flows and runs -----------------------------------------------------------------------------------


async def create_flow(request: Request) -> Response:
    """Give the flow of a name an id, always the same."""
    name = (await _body(request, FlowBody)).name[:MAX_NAME_LENGTH]
    is_new = state_of(request).noted.add_flow(name)
    return json_response(flow_answer(name), 201 if is_new else 200)


async def create_flow_run(request: Request) -> Response:
    """Take note of a flow run that is about to start, and give it an id and, if it has none, a name."""
    noted = state_of(request).noted
    body = await _body(request, FlowRunBody)
    run_id = uuid.uuid4()
    # The task run that stands for this run in the flow run around it, and is no task's.
    tracking_id = str(body.parent_task_run_id) if body.parent_task_run_id is not None else None
    tracking = noted.get(tracking_id)
    run = NotedRun(
        str(run_id),
        "flow",
        flow_name=noted.flow_name(str(body.flow_id)),
        parent_flow_run_id=tracking.flow_run_id if tracking is not None else None,
        parent_task_run_id=tracking.parent_task_run_id if tracking is not None else None,
        tracking_task_run_id=tracking_id,
        created_ns=time.time_ns(),
        policy=body.empirical_policy or Policy(),
    )
    run.call(body.name or readable_name(run_id), tags=body.tags)
    run.keep(
        _accepted(body.state or RunState(type="PENDING"), run),
        parameters=body.parameters,
        context=body.context,
        labels=body.labels,
        flow_version=body.flow_version,
        idempotency_key=body.idempotency_key,
    )
    _check_visible(request, run)
    noted.put(run)
    return json_response(flow_run_answer(run), 201)


async def change_flow_run(request: Request) -> Response:
    """Take note of a new name and other changes."""
    changes = await _body(request, ChangesBody)
    run = await _known_run(request, "flow")
    run.call(changes.name, tags=changes.tags)
    if changes.empirical_policy is not None:
        run.policy = changes.empirical_policy
    for name in ("flow_version", "parameters", "infrastructure_pid"):
        value = getattr(changes, name)
        if value is not None:
            run.keep(**{name: value})
    state_of(request).noted.put(run)
    return Response(status_code=204)


async def change_labels(request: Request) -> Response:
    """Take note of labels."""
    labels = await _body(request, dict[str, Any])
    run = await _known_run(request, "flow")
    run.keep(labels={**run.details.get("labels", {}), **labels})
    state_of(request).noted.put(run)
    return Response(status_code=204)


async def create_task_run(request: Request) -> Response:
    """Take note of a task run: one that stands for a flow run inside another, or waits for a worker."""
    noted = state_of(request).noted
    body = await _body(request, TaskRunBody)
    flow_run_id = str(body.flow_run_id) if body.flow_run_id is not None else None
    flow_run = noted.get(flow_run_id)
    name = body.name or f"{body.task_key}-{body.dynamic_key}"
    run = NotedRun(
        str(body.id or uuid.uuid4()),
        "task",
        flow_name=flow_run.flow_name if flow_run is not None else None,
        task_name=name.removesuffix(f"-{body.dynamic_key}")[:MAX_NAME_LENGTH],
        flow_run_id=flow_run_id,
        parent_task_run_id=parent_task_run_id(body.task_inputs),
        created_ns=time.time_ns(),
        policy=body.empirical_policy or Policy(),
    )
    run.call(name, tags=body.tags)
    run.keep(
        _accepted(body.state or RunState(type="PENDING"), run),
        labels=body.labels,
        task_inputs=body.task_inputs,
        task_key=body.task_key,
        dynamic_key=body.dynamic_key,
        task_version=body.task_version,
    )
    _check_visible(request, run)
    noted.put(run)
    return json_response(task_run_answer(run), 201)


# --- states -------------------------------------------------------------------------------------------


async def set_flow_run_state(request: Request) -> Response:
    """Let a flow run have the state that it proposes, unless it failed and may try again."""
    return await _set_state(request, "flow")


async def set_task_run_state(request: Request) -> Response:
    """Let a task run have the state that it proposes."""
    return await _set_state(request, "task")


async def _set_state(request: Request, kind: Kind) -> Response:
    server = state_of(request)
    proposed = (await _body(request, StateBody)).state
    run = await _known_run(request, kind)
    now_ns = time.time_ns()
    if proposed.type == "RUNNING" and run.retry_at_ns > now_ns:
        delay_s = max(1, -(-(run.retry_at_ns - now_ns) // 10**9))
        details = {"type": "wait_details", "delay_seconds": delay_s, "reason": "the next attempt is not due"}
        return json_response({"state": None, "status": "WAIT", "details": details})
    status, details = "ACCEPT", {"type": "accept_details"}
    state = _accepted(proposed, run, now_ns)
    line: LogEvent | None
    if kind == "flow" and proposed.type == "FAILED" and 0 < run.run_count <= (run.policy.retries or 0):
        delay = run.policy.delay(run.run_count)
        run.retry_at_ns = now_ns + int(delay * 1e9)
        line = run.retry_line(proposed, now_ns, delay)
        retry_at = format_timestamp(run.retry_at_ns)
        state = msgspec.structs.replace(
            state,
            type="SCHEDULED",
            name="AwaitingRetry",
            state_details={**(state.state_details or {}), "scheduled_time": retry_at},
        )
        status, details = "REJECT", {"type": "reject_details", "reason": "Retrying"}
    else:
        line = run.line(proposed, now_ns)
    if line is not None:
        try:
            await server.ingest.take_events([line])
        except StorageFullError as error:
            # 507 would end the program at once; after 503 its client waits and asks again.
            raise StorageError(str(error)) from error
    run.keep(state)
    server.noted.put(run)
    return json_response({"state": state, "status": status, "details": details}, 201)


def _accepted(state: RunState, run: NotedRun, at_ns: int | None = None) -> RunState:
    """Return a state with what the server adds to it: an id, a time and whose it is."""
    details = dict(state.state_details or {})
    details["flow_run_id"] = run.id if run.kind == "flow" else run.flow_run_id
    details["task_run_id"] = run.tracking_task_run_id if run.kind == "flow" else run.id
    return msgspec.structs.replace(
        state,
        id=str(uuid.uuid4()),
        name=state.shown_name,
        timestamp=format_timestamp(at_ns or time.time_ns()),
        state_details=details,
    )


# --- limits of concurrency, of which there are none ---------------------------------------------------


async def acquire_with_lease(_request: Request) -> Response:
    """Answer as Prefect's server where no limit has these names: a task with tags asks before it runs."""
    return json_response({"lease_id": str(uuid.uuid4()), "limits": []})


async def answer_no_limits(_request: Request) -> Response:
    """Answer that no limit was touched."""
    return json_response([])


async def release_lease(_request: Request) -> Response:
    """Accept: a lease on nothing needs no keeping."""
    return Response(status_code=204)


# --- helpers ------------------------------------------------------------------------------------------


async def _known_run(request: Request, kind: Kind) -> NotedRun:
    """Return the run that the path names: kept, or recalled from its lines, or new."""
    run_id = str(request.path_params["id"])
    run = await find_run(request, run_id, kind)
    if run is None:
        run = NotedRun(run_id, kind, name=readable_name(uuid.UUID(run_id)), created_ns=time.time_ns())
        _check_visible(request, run)
    return run


def _check_visible(request: Request, run: NotedRun) -> None:
    """Refuse what the principal may not tell of; what becomes a line is checked again as such."""
    if not is_visible(request, run):
        raise PermissionDeniedError(f"key {principal_of(request).name} may not tell of this run")


async def _body(request: Request, kind: type[T]) -> T:
    body = await read_body(request, state_of(request).limits.max_body_bytes)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        faults = Faults()
        faults.add("value_error", ("body",), f"Value error, {error}", None, error={})
        raise InvalidBodyError(faults.found, None, len(body)) from error


ROUTES = [
    Route("/flows/", create_flow, methods=["POST"]),
    Route("/flow_runs/", create_flow_run, methods=["POST"]),
    Route("/flow_runs/{id:uuid}", change_flow_run, methods=["PATCH"]),
    Route("/flow_runs/{id:uuid}/labels", change_labels, methods=["PATCH"]),
    Route("/flow_runs/{id:uuid}/set_state", set_flow_run_state, methods=["POST"]),
    Route("/task_runs/", create_task_run, methods=["POST"]),
    Route("/task_runs/{id:uuid}/set_state", set_task_run_state, methods=["POST"]),
    Route("/v2/concurrency_limits/increment", answer_no_limits, methods=["POST"]),
    Route("/v2/concurrency_limits/increment-with-lease", acquire_with_lease, methods=["POST"]),
    Route("/v2/concurrency_limits/decrement", answer_no_limits, methods=["POST"]),
    Route("/v2/concurrency_limits/decrement-with-lease", release_lease, methods=["POST"]),
]
