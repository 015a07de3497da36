"""Looking after the store: taking old lines away, and giving space back to the disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from starlette.routing import Route

from runlog.exceptions import QueryError
from runlog.server.body import json_response, read_body
from runlog.server.keeping import Keeping, Pruner
from runlog.server.query import Position
from runlog.server.run_summary import LEVELS
from runlog.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY_BYTES = 16_384

MAX_ANSWER_S = 1.0
"""Seconds of work in one answer; whoever wants more asks again."""


class PruneRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What is to go."""

    older_than_s: float | None = None
    levels: list[str] | None = None
    """Only lines of these levels; `None` for all."""
    max_bytes: int | None = None
    """Take the oldest lines away until no more space is taken."""
    cursor: str | None = None
    """Go on where the answer before has stopped."""


async def prune(request: Request) -> Response:
    """Take lines away for a second, and answer how many, and where to go on."""
    body = await read_body(request, MAX_BODY_BYTES)
    try:
        wanted = msgspec.json.decode(body, type=PruneRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise QueryError(f"not a request to take lines away: {error}") from error
    if wanted.older_than_s is not None and not 0 <= wanted.older_than_s < 1e10:
        raise QueryError("older_than_s must be at least 0 and less than 10000000000 seconds")
    if wanted.max_bytes is not None and wanted.max_bytes < 0:
        raise QueryError("max_bytes must be at least 0")
    levels = LEVELS if wanted.levels is None else wanted.levels
    if not set(levels) <= set(LEVELS):
        raise QueryError(f"levels must be some of {', '.join(LEVELS)}")
    ages = tuple(wanted.older_than_s if level in levels else None for level in LEVELS)
    after = Position.from_cursor(wanted.cursor) if wanted.cursor is not None else None
    pruner = Pruner(state_of(request).storage, Keeping(ages, wanted.max_bytes), time.time_ns(), after=after)
    deadline = time.monotonic() + MAX_ANSWER_S
    while not pruner.is_done and time.monotonic() < deadline:
        await pruner.step()
    return json_response(
        {
            "lines": pruner.lines,
            "runs": pruner.runs,
            "done": pruner.is_done,
            "cursor": pruner.after.cursor() if pruner.after is not None else None,
        }
    )


async def vacuum(request: Request) -> Response:
    """Give space that lines no longer take back to the disk. Batches wait meanwhile."""
    storage = state_of(request).storage
    before = await storage.read_size()
    await storage.vacuum()
    after = await storage.read_size()
    return json_response({"before_bytes": before.file_bytes, "after_bytes": after.file_bytes})


ROUTES = [
    Route("/runlog/v1/admin/prune", prune, methods=["POST"]),
    Route("/runlog/v1/admin/vacuum", vacuum, methods=["POST"]),
]
