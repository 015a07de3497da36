"""
What Prefect's client reads of runs: one, several by a filter, a flow's name, a run's lines as a file.

A run that a client is telling of is answered as it was told, any other as its lines
tell it, whoever sent them.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.routing import Route

from runlog.records import format_timestamp
from runlog.server.answers import canonical_uuid
from runlog.server.body import json_response, read_body
from runlog.server.errors import InvalidBodyError
from runlog.server.noted_runs import NotedRun, flow_id_of
from runlog.server.principal import principal_of
from runlog.server.query import LogQuery, RunIn
from runlog.server.routes.logs import decode_json
from runlog.server.routes.prefect_answers import flow_answer, flow_run_answer, task_run_answer
from runlog.server.routes.prefect_run_filter import asked_ids, flow_filter, run_filter
from runlog.server.state import state_of
from runlog.server.storage.base import RunQuery
from runlog.server.validation import Faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response

    from runlog.server.run_summary import Kind
    from runlog.server.storage.base import LogStorage

MAX_FILTERED_RUNS = 10_000
"""The newest runs, among which a filter that names none looks."""

LINES_A_PAGE = 1000
"""Of a download: read, written and forgotten together."""

MAX_BODY_BYTES = 1024 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def read_flow_run(request: Request) -> Response:
    """Answer a flow run, known by what a client told or by its lines."""
    return json_response(flow_run_answer(await _run(request, "flow", "Flow run not found")))


async def read_task_run(request: Request) -> Response:
    """Answer a task run."""
    return json_response(task_run_answer(await _run(request, "task", "Task not found")))


async def read_flow(request: Request) -> Response:
    """Answer the flow that an id stands for: one that a client told of, or one of those that ran last."""
    server = state_of(request)
    flow_id = str(request.path_params["id"])
    principal = principal_of(request)
    name = server.noted.flow_name(flow_id)
    if principal.is_bound and name != principal.flow_name:
        name = None  # ids are made from names: an answer would tell that there is such a flow
    name = name or (await _flow_names(server.storage)).get(flow_id)
    if name is None:
        raise HTTPException(404, "Flow not found")
    return json_response(flow_answer(name))


async def filter_flows(request: Request) -> Response:
    """Answer the flows of the runs that ran last, by id or name."""
    body = await read_body(request, MAX_BODY_BYTES)
    asked = decode_json(body) if body.strip() else {}
    faults = Faults()
    wanted = flow_filter(asked, faults)
    if faults.found:
        raise InvalidBodyError(faults.found, asked, len(body))
    names = await _flow_names(state_of(request).storage)
    return json_response(wanted([flow_answer(name) for name in sorted(names.values())]))


async def filter_flow_runs(request: Request) -> Response:
    """
    Answer the flow runs that pass Prefect's filter.

    Without ids or a parent in it, it looks at the `MAX_FILTERED_RUNS` newest. One who
    may not read must name one or the other, as a program does for its own runs.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    asked = decode_json(body) if body.strip() else {}
    faults = Faults()
    wanted = run_filter(asked, faults)
    if faults.found:
        raise InvalidBodyError(faults.found, asked, len(body))
    ids, parents = asked_ids(asked)
    if ids is None and parents is None and not principal_of(request).may("read"):
        raise HTTPException(
            403, "without the scope read, a filter must have flow run ids, or parent task run ids"
        )
    found: list[NotedRun]
    if ids is not None:
        found = [run for run_id in ids if (run := await find_run(request, run_id, "flow")) is not None]
    else:
        found = [run for run in state_of(request).noted.flow_runs() if is_visible(request, run)]
        if parents is None:
            told = {run.id for run in found}
            summaries = await state_of(request).storage.read_runs(
                RunQuery(kind="flow", limit=MAX_FILTERED_RUNS)
            )
            found += [
                NotedRun.of(one)
                for one in summaries
                if one.id not in told and canonical_uuid(one.id) == one.id
            ]
    return json_response(wanted(found))


async def _flow_names(storage: LogStorage) -> dict[str, str]:
    """Return the names of the flows that ran last, by their ids."""
    runs = await storage.read_runs(RunQuery(kind="flow", limit=MAX_FILTERED_RUNS))
    names = {name for run in runs if (name := run.text("flow_name"))}
    return {flow_id_of(name): name for name in names}


async def download_logs(request: Request) -> Response:
    """Answer all lines of a flow run as comma-separated values, as they are read."""
    run = await _run(request, "flow", "Flow run not found")
    name = quote(f"{run.name}-logs.csv", safe="")
    return StreamingResponse(
        _csv(state_of(request).storage, run.id),
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f"attachment; filename=\"flow-run-logs.csv\"; filename*=UTF-8''{name}"
        },
    )


async def _csv(storage: LogStorage, run_id: str) -> AsyncIterator[str]:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("timestamp", "level", "flow_run_id", "task_run_id", "message"))
    query = LogQuery(where=RunIn("flow", (run_id,)), limit=LINES_A_PAGE)
    while True:
        lines = await storage.read_lines(query)
        for line in lines:
            event = line.event
            table.writerow((_time(event.timestamp_ns), event.level, run_id, event.task_run_id, event.message))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        if len(lines) < LINES_A_PAGE:
            return
        query = LogQuery(where=query.where, limit=LINES_A_PAGE, after=lines[-1].position)


def _time(timestamp_ns: int) -> str:
    """Return a time as Prefect's server writes it here: a Python ``datetime`` as text."""
    try:
        return str(_EPOCH + timedelta(microseconds=timestamp_ns // 1000))
    except OverflowError:  # outside the years 1 to 9999
        return format_timestamp(timestamp_ns)


async def find_run(request: Request, run_id: str, kind: Kind) -> NotedRun | None:
    """Return a run as a client told it, or as its lines tell it; `None` if nobody did, or it is hidden."""
    server = state_of(request)
    run = server.noted.get(run_id)
    if run is None or run.kind != kind:
        found = await server.storage.read_runs(RunQuery(kind=kind, id=run_id, limit=1))
        return NotedRun.of(found[0]) if found else None
    return run if is_visible(request, run) else None


def is_visible(request: HTTPConnection, run: NotedRun) -> bool:
    """Return whether the principal may know of a run."""
    principal = principal_of(request)
    own_id = run.id if run.kind == "flow" else run.flow_run_id
    return principal.flow_run_id in (None, own_id) and principal.flow_name in (None, run.flow_name)


async def _run(request: Request, kind: Kind, missing: str) -> NotedRun:
    run = await find_run(request, str(request.path_params["id"]), kind)
    if run is None:
        raise HTTPException(404, missing)
    return run


ROUTES = [
    Route("/flows/{id:uuid}", read_flow),
    Route("/flows/filter", filter_flows, methods=["POST"]),
    Route("/flow_runs/{id:uuid}", read_flow_run),
    Route("/flow_runs/filter", filter_flow_runs, methods=["POST"]),
    Route("/flow_runs/{id:uuid}/logs/download", download_logs),
    Route("/task_runs/{id:uuid}", read_task_run),
]
