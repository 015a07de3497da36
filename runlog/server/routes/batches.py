"""Where runlog's own producers send their lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from runlog.exceptions import QueryError
from runlog.records import BatchAnswer, decode_batch
from runlog.server.body import json_response, read_body
from runlog.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def post_batch(request: Request) -> Response:
    """
    Store a batch and name the last seq that is stored.

    409 names the seq that the producer must go on with, 413 wants smaller
    batches, 422 says what is wrong with this one, 507 and 503 want it again
    later. Only 200 means that it is stored.
    """
    server = state_of(request)
    body = await read_body(request, server.limits.max_body_bytes)
    try:
        batch = decode_batch(body)
    except ValueError as error:
        raise QueryError(str(error)) from error
    if len(batch.events) + len(batch.dropped) > server.limits.max_batch_lines:
        most = server.limits.max_batch_lines
        return json_response({"detail": f"a batch must have at most {most} lines"}, 413)
    appended = await server.ingest.take_batch(batch)
    return json_response(BatchAnswer(appended.acked))


ROUTES = [Route("/runlog/v1/batches", post_batch, methods=["POST"])]
