"""Questions about lines and runs, for the command line and for programs."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from starlette.exceptions import HTTPException
from starlette.routing import Route

from runlog.exceptions import QueryError
from runlog.records import format_timestamp, parse_event_id
from runlog.server.answers import RunAnswer, log_answer, run_answer
from runlog.server.body import json_response
from runlog.server.parameters import (
    CONDITION_PARAMETERS,
    choice_of,
    conditions,
    integer_of,
    parameters,
    time_of,
)
from runlog.server.query import (
    MAX_PAGE,
    AllOf,
    LogQuery,
    Position,
    decode_cursor,
    encode_cursor,
)
from runlog.server.receipt import receipt_of
from runlog.server.run_summary import FINAL_STATES
from runlog.server.state import state_of
from runlog.server.storage.base import RunPosition, RunQuery, run_position

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from runlog.server.query import Order
    from runlog.server.run_summary import RunSummary, State
    from runlog.server.storage.base import LogStorage, StoredLine

DEFAULT_LINES = 200
DEFAULT_AROUND = 20
MAX_AROUND = 1000
DEFAULT_RUNS = 50
MAX_RUNS = 1000

MAX_CANDIDATES = 20
"""Runs that are named where a reference may mean several."""

MAX_TREE_DEPTH = 100
"""Levels of a tree that are nested in an answer; what lies deeper hangs on the last of them."""

_LATEST = re.compile(r"latest(?:~(\d{1,9}))?")
_ID_PREFIX = re.compile(r"[0-9a-f-]{4,36}")

T = TypeVar("T", bound=str)


# --- lines --------------------------------------------------------------------------------------------

_LOG_PARAMETERS = CONDITION_PARAMETERS | {"run", "order", "limit", "cursor", "around", "before", "after"}


async def get_logs(request: Request) -> Response:
    """Answer a page of lines and the cursors of the pages beside it, or the lines around one."""
    ask = parameters(request, _LOG_PARAMETERS)
    order: Order = "desc" if choice_of(ask, "order", ("asc", "desc")) == "desc" else "asc"
    query = LogQuery(where=AllOf(tuple(conditions(ask))), within=ask.get("run"), order=order)
    if "around" in ask:
        return await _around(state_of(request).storage, query, ask)
    for name in ("before", "after"):
        if name in ask:
            raise QueryError(f"{name} goes with around, which is not given")
    limit = integer_of(ask, "limit", DEFAULT_LINES, 1, MAX_PAGE)
    start, backwards = _place(ask["cursor"]) if "cursor" in ask else (None, False)
    # The one more tells whether there is a page behind it.
    query = replace(query, order=_turned(order) if backwards else order, after=start, limit=limit + 1)
    lines = await state_of(request).storage.read_lines(query)
    more = len(lines) > limit
    page = lines[:limit][:: -1 if backwards else 1]
    return json_response(
        {
            "logs": [log_answer(line) for line in page],
            "next": page[-1].position.cursor() if page and (more or backwards) else None,
            "previous": _cursor_back(page[0])
            if page and (more if backwards else start is not None)
            else None,
        }
    )


async def _around(storage: LogStorage, query: LogQuery, ask: dict[str, str]) -> Response:
    """Answer a line with those before and behind it that meet the query, whether or not it does itself."""
    for name in ("order", "limit", "cursor"):
        if name in ask:
            raise QueryError(f"{name} does not go with around; before and after say how many lines")
    before = integer_of(ask, "before", DEFAULT_AROUND, 0, MAX_AROUND)
    after = integer_of(ask, "after", DEFAULT_AROUND, 0, MAX_AROUND)
    try:
        found = await storage.read_line(*parse_event_id(uuid.UUID(ask["around"])))
    except ValueError as error:
        raise QueryError(f"around must be the id of a line, got {ask['around'][:100]!r}") from error
    if found is None:
        raise HTTPException(404, f"no line {ask['around'][:100]!r}")
    query = replace(query, after=found.position)
    earlier = await storage.read_lines(replace(query, order="desc", limit=before + 1))
    later = await storage.read_lines(replace(query, order="asc", limit=after + 1))
    page = [*earlier[:before][::-1], found, *later[:after]]
    return json_response(
        {
            "logs": [log_answer(line) for line in page],
            "next": page[-1].position.cursor() if len(later) > after else None,
            "previous": _cursor_back(page[0]) if len(earlier) > before else None,
        }
    )


def _turned(order: Order) -> Order:
    return "asc" if order == "desc" else "desc"


def _cursor_back(line: StoredLine) -> str:
    """Return the cursor of the page before a line."""
    return encode_cursor((*line.position, "previous"))


def _place(cursor: str) -> tuple[Position, bool]:
    """
    Return where a page begins, and whether it lies before that and not behind it.

    Raises:
        QueryError: If it is none of our cursors.
    """
    try:
        *place, direction = decode_cursor(cursor, (int, int, int, str))
    except QueryError:
        return Position.from_cursor(cursor), False
    if direction != "previous":
        raise QueryError(f"cursor {cursor[:40]!r} is not one that this server gave out")
    return Position(*place), True


# --- runs ---------------------------------------------------------------------------------------------


_RUN_PARAMETERS = frozenset(
    {"kind", "state", "name", "search", "flow", "task", "since", "until", "attempt", "parent", "top_level"}
    | {"limit", "cursor"}
)


async def get_runs(request: Request) -> Response:
    """Answer a page of runs, newest first, and the cursor of the next one."""
    ask = parameters(request, _RUN_PARAMETERS)
    limit = integer_of(ask, "limit", DEFAULT_RUNS, 1, MAX_RUNS)
    cursor = ask.get("cursor")
    runs = await state_of(request).storage.read_runs(
        RunQuery(
            kind=choice_of(ask, "kind", ("flow", "task")),  # type: ignore[arg-type] # one of the two
            states=_states(ask),
            name_contains=ask.get("name"),
            search=ask.get("search"),
            flow_name=ask.get("flow"),
            task_name=ask.get("task"),
            since_ns=time_of(ask, "since"),
            until_ns=time_of(ask, "until"),
            min_attempt=integer_of(ask, "attempt", 1, 1, 10**9 - 1) if "attempt" in ask else None,
            parent_id=ask.get("parent"),
            top_level=choice_of(ask, "top_level", ("true", "false")) == "true",
            after=RunPosition(*decode_cursor(cursor, (int, str, str))) if cursor is not None else None,
            limit=limit + 1,
        )
    )
    page = runs[:limit]
    return json_response(
        {
            "runs": [run_answer(run) for run in page],
            "next": encode_cursor(run_position(page[-1])) if len(runs) > limit else None,
        }
    )


def _states(ask: dict[str, str]) -> tuple[State, ...] | None:
    if "state" not in ask:
        return None
    known: tuple[State, ...] = ("RUNNING", *FINAL_STATES, "UNKNOWN")
    names = ask["state"].split(",")
    for name in names:
        if name not in known:
            raise QueryError(f"state must be one of {', '.join(known)}, got {name[:100]!r}")
    return tuple(state for state in known if state in names)


async def get_run(request: Request) -> Response:
    """Answer one run, whatever it is called by, and the tree below it."""
    storage = state_of(request).storage
    found = await _find_runs(storage, request.path_params["ref"])
    if isinstance(found, list):
        return _ambiguous(request.path_params["ref"], found)
    return json_response(nest(found, await storage.read_tree(found.id)))


async def get_receipt(request: Request) -> Response:
    """Answer what is stored of a run and what is not, for each producer of its lines."""
    storage = state_of(request).storage
    run_id = request.path_params["ref"]
    found = await storage.read_runs(RunQuery(id=run_id, limit=1))
    if not found:
        raise _not_found(run_id)
    shares = await storage.read_shares(run_id)
    # Whoever counted the lines of the run has counted those of what it opened in it as well.
    uncounted = {share.producer for share in shares if share.expected is None}
    below = [
        (
            run,
            [share for share in await storage.read_shares(run.id) if share.producer in uncounted]
            if uncounted and run.kind == "flow"
            else [],
        )
        for run in await storage.read_tree(run_id)
        if run.id != run_id
    ]
    return json_response(receipt_of(found[0], shares, below))


async def _find_runs(storage: LogStorage, ref: str) -> RunSummary | list[RunSummary]:
    """
    Return the run that a reference means, or all that it may mean.

    Raises:
        HTTPException: 404 if it means none.
    """
    latest = _LATEST.fullmatch(ref)
    queries = [RunQuery(id=ref, limit=1)]
    if latest:
        queries.append(RunQuery(kind="flow", top_level=True, offset=int(latest[1] or 0), limit=1))
    queries.append(RunQuery(name=ref, limit=MAX_CANDIDATES))
    if _ID_PREFIX.fullmatch(ref.lower()):
        queries.append(RunQuery(id_prefix=ref.lower(), limit=MAX_CANDIDATES))
    for query in queries:
        found = await storage.read_runs(query)
        if found:
            return found[0] if len(found) == 1 else found
    raise _not_found(ref)


def nest(root: RunSummary, tree: list[RunSummary]) -> RunAnswer:
    """
    Return a run with its children in it, and theirs in them, oldest first.

    Args:
        root: The run.
        tree: It and all below it, oldest first; parents may form a ring.
    """
    children: dict[str | None, list[RunSummary]] = {}
    for run in tree:
        if run is not root and (run.id, run.kind) != (root.id, root.kind):
            children.setdefault(run.parent_id, []).append(run)
    answer = run_answer(root)
    answer.children = []
    level = [(answer, root.id)]
    depth = 0
    while level:
        depth += 1
        below: list[tuple[RunAnswer, str]] = []
        for parent, run_id in level:
            for run in children.pop(run_id, ()):
                child = run_answer(run)
                child.children = []
                assert isinstance(parent.children, list)
                parent.children.append(child)
                below.append((child if depth < MAX_TREE_DEPTH else parent, run.id))
        level = below
    return answer


def _not_found(ref: str) -> HTTPException:
    return HTTPException(404, f"no run {ref[:200]!r}")


def _ambiguous(ref: str, found: list[RunSummary]) -> Response:
    return json_response(
        {
            "detail": f"{ref[:200]!r} may mean any of several runs",
            "candidates": [
                {"id": run.id, "name": run.name, "started": format_timestamp(run.started_ns)} for run in found
            ],
        },
        409,
    )


ROUTES = [
    Route("/runlog/v1/logs", get_logs),
    Route("/runlog/v1/runs", get_runs),
    Route("/runlog/v1/runs/{ref}/receipt", get_receipt),
    Route("/runlog/v1/runs/{ref}", get_run),
]
