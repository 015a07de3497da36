"""
Live lines as server-sent events, ``GET /runlog/v1/logs/stream``: for browsers, and for ``curl``.

Every line's event has a cursor as its id, so that a browser that was cut off
comes back with ``Last-Event-ID`` and misses nothing. While nothing passes, a
comment shows that the stream is alive, with the place that it has come to as the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from runlog.exceptions import QueryError, QueryTimeoutError, StorageError
from runlog.server.answers import log_answer
from runlog.server.frames import chunks
from runlog.server.parameters import CONDITION_PARAMETERS, conditions, parameters, time_of
from runlog.server.principal import principal_of
from runlog.server.query import AllOf
from runlog.server.state import state_of
from runlog.server.subscription import (
    DEFAULT_HEARTBEAT,
    Gap,
    Heartbeat,
    Lines,
    Subscription,
    Wish,
    check_heartbeat,
    first_of,
    place_of,
    until_revoked,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from runlog.server.live import Tail
    from runlog.server.storage.base import StoredLine
    from runlog.server.subscription import News

logger = logging.getLogger("runlog.server")

RETRY_AFTER = "5"

RECONNECT_MS = 1000
"""How long a browser waits before it comes back."""

_PARAMETERS = CONDITION_PARAMETERS | {"run", "cursor", "heartbeat", "ticket"}

_HEADERS = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # nginx would keep events back
}


async def get_stream(request: Request) -> Response:
    """Answer lines for as long as the client stays."""
    state = state_of(request)
    wish = _wish(request)
    bounds = principal_of(request).condition()
    if bounds != AllOf():
        wish = replace(wish, where=AllOf((wish.where, bounds)))
    if state.tail.is_closed or state.tail.streams >= state.limits.max_followers:
        raise HTTPException(503, "too many streams", {"Retry-After": RETRY_AFTER})
    if request.method == "HEAD":
        return Response(headers=_HEADERS)
    return EventStream(request, state.tail, Subscription(state.tail, state.storage, wish))


def _wish(request: Request) -> Wish:
    ask = parameters(request, _PARAMETERS)
    cursor = request.headers.get("last-event-id") or ask.get("cursor")
    heartbeat_s = DEFAULT_HEARTBEAT
    if "heartbeat" in ask:
        given = ask["heartbeat"][:40]
        try:
            heartbeat_s = float(given)
        except ValueError as error:
            raise QueryError(f"heartbeat must be a number of seconds, got {given!r}") from error
        check_heartbeat(heartbeat_s)
    return Wish(
        where=AllOf(tuple(conditions(ask))),
        run=ask.get("run"),
        after=place_of(cursor) if cursor is not None else None,
        since_ns=time_of(ask, "since"),
        heartbeat_s=heartbeat_s,
    )


class EventStream(Response):
    """
    An answer that goes on until the client leaves or the server stops.

    Args:
        request: What it answers.
        tail: Counts it.
        subscription: Not entered.
    """

    def __init__(self, request: Request, tail: Tail, subscription: Subscription) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._tail = tail
        self._subscription = subscription

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._tail.stream():
            async with self._subscription:
                await send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
                with contextlib.suppress(OSError):  # the client has left
                    await first_of(_until_gone(receive), self._tell(send), until_revoked(self._request))
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        await send(_part(b"retry: %d\n\n" % RECONNECT_MS))
        try:
            async with contextlib.aclosing(self._subscription.news()) as all_news:
                async for news in all_news:
                    for chunk in chunks(_events(news, self._subscription)):
                        await send(_part(chunk))
                    # Writing waits only for a slow client: others must get their turn as well.
                    await asyncio.sleep(0)
        except (StorageError, QueryTimeoutError) as error:
            logger.error("%s", error)  # noqa: TRY400 - its text says all; the client comes back by itself


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _events(news: News, subscription: Subscription) -> list[bytes]:
    if isinstance(news, Lines):

        def make(arrival: int, line: StoredLine) -> bytes:
            cursor = subscription.cursor(arrival).encode()
            return b"id: %b\nevent: log\ndata: %b\n\n" % (cursor, msgspec.json.encode(log_answer(line)))

        return [line.form("event", make) for line in news.lines]
    if isinstance(news, Heartbeat):
        # An id without data is no event: it only tells from where on to resume.
        return [b": heartbeat\nid: %b\n\n" % news.cursor.encode()]
    if isinstance(news, Gap):
        data = msgspec.json.encode({"detail": news.detail})
        return [b"id: %b\nevent: gap\ndata: %b\n\n" % (news.cursor.encode(), data)]
    return [b"event: receipt\ndata: %b\n\n" % msgspec.json.encode(news.receipt)]


ROUTES = [Route("/runlog/v1/logs/stream", get_stream)]
