"""
Live lines on a WebSocket, ``WS /logs/out``: Prefect's protocol, and our own.

The subprotocol decides. ``prefect`` is what an unmodified client of Prefect 3
speaks: it says who it is, then which lines it wants, then gets lines for ever.
``runlog`` begins the same way, and may resume at a cursor, follow a run, and is
told of gaps, receipts and idle times. A client that offers neither is an old one
of Prefect's: it says nothing about itself, and is heard where nobody has to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from runlog.exceptions import (
    MissingDependencyError,
    QueryError,
    QueryTimeoutError,
    RunlogError,
    StorageError,
)
from runlog.server.answers import log_answer, prefect_log
from runlog.server.expression import parse_expression
from runlog.server.frames import MessageWriter
from runlog.server.prefect_filter import parse_filter
from runlog.server.query import AllOf
from runlog.server.state import authorise, state_of
from runlog.server.subscription import (
    DEFAULT_HEARTBEAT,
    Gap,
    Heartbeat,
    Lines,
    RunReceipt,
    Subscription,
    Wish,
    check_heartbeat,
    first_of,
    place_of,
    until_revoked,
)
from runlog.server.times import parse_moment, parse_time
from runlog.server.validation import Faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from runlog.server.principal import Principal
    from runlog.server.query import Condition
    from runlog.server.state import ServerState
    from runlog.server.storage.base import StoredLine
    from runlog.server.subscription import News

logger = logging.getLogger("runlog.server")

Protocol = Literal["runlog", "prefect", "legacy"]

MAX_MESSAGE_BYTES = 65_536
"""Of a message of the client. A filter of 200 run ids has 8 kB."""

MAX_IDLE_MESSAGES = 1000
"""Messages of the client that are ignored once it follows; one that sends more has gone mad."""

GREETING_TIMEOUT = 10.0
"""Seconds in which a client must say who it is, and again what it wants."""

MAX_REASON_BYTES = 123
"""Of the reason of a closing, :rfc:`6455` section 5.5.1."""

NORMAL, PROTOCOL_ERROR, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, RESTART = (
    1000,
    1002,
    1008,
    1009,
    1011,
    1012,
)

_RUNLOG_KEYS = ("type", "filter", "query", "run", "cursor", "since", "heartbeat")

RETRY_AFTER = "5"


class ClosingError(RunlogError):
    """
    A socket is to be closed.

    Args:
        code: As in :rfc:`6455`.
        reason: For people; cut if it is too long.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        super().__init__(f"{code} {reason}")


class LogsOut:
    """Serve a socket. An ASGI application, because it writes many messages at once where the server can."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket from handshake to close."""
        websocket = WebSocket(scope, receive, send)
        try:
            await _serve(websocket, scope, send)
        except ClosingError as closing:
            with contextlib.suppress(OSError, RuntimeError, WebSocketDisconnect):
                await websocket.close(closing.code, closing.reason)
        except (OSError, WebSocketDisconnect):
            pass  # the client has left


async def _serve(websocket: WebSocket, scope: Scope, send: Send) -> None:
    await websocket.receive()  # the handshake
    protocol = _protocol(websocket)
    server: ServerState = websocket.app.state.server
    principal = authorise(websocket, None, "read") if protocol == "legacy" else None
    if protocol == "legacy" and principal is None:
        await websocket.close()  # before it is accepted: 403
        return
    if server.tail.is_closed or server.tail.streams >= server.limits.max_followers:
        full = Response("too many streams", 503, {"Retry-After": RETRY_AFTER}, "text/plain")
        await websocket.send_denial_response(full)
        return
    with server.tail.stream():
        await websocket.accept(None if protocol == "legacy" else protocol)
        token = None
        if principal is None:
            principal, token = await _authenticate(websocket)
        wish = await _wish(websocket, protocol)
        bounds = principal.condition()
        if bounds != AllOf():
            wish = replace(wish, where=AllOf((wish.where, bounds)))
        # From here on: what this principal may see.
        subscription = Subscription(server.tail, state_of(websocket).storage, wish)
        writing = _tell(subscription, MessageWriter(scope, send), protocol)
        await first_of(_ignore_messages(websocket), writing, _end_when_revoked(websocket, token))


def _protocol(websocket: WebSocket) -> Protocol:
    offered = websocket.scope.get("subprotocols", ())
    if "runlog" in offered:
        return "runlog"
    return "prefect" if "prefect" in offered else "legacy"


# --- what the client says -----------------------------------------------------------------------------


async def _message(websocket: WebSocket, kind: str, code: int) -> dict[str, Any]:
    """Return the client's next message, which must be of this kind."""
    expected = f"Expected '{kind}' message"
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            received = await websocket.receive()
    except TimeoutError:
        raise ClosingError(POLICY_VIOLATION, f"{expected} within {GREETING_TIMEOUT:g} seconds") from None
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received.get("code") or NORMAL)
    text = received.get("text")
    if text is None:
        raise ClosingError(code, expected)
    if len(text) > MAX_MESSAGE_BYTES or len(text.encode(errors="surrogatepass")) > MAX_MESSAGE_BYTES:
        raise ClosingError(TOO_BIG, f"a message must have at most {MAX_MESSAGE_BYTES} bytes")
    try:
        message = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("type") != kind:
        raise ClosingError(code, expected)
    return message


async def _authenticate(websocket: WebSocket) -> tuple[Principal, str | None]:
    message = await _message(websocket, "auth", POLICY_VIOLATION)
    said = message.get("token")
    token = said if isinstance(said, str) else None
    principal = authorise(websocket, token, "read")
    if principal is None:
        reason = "Invalid token" if said else "Auth required but no token provided"
        raise ClosingError(POLICY_VIOLATION, reason)
    await websocket.send_text('{"type":"auth_success"}')
    return principal, token


async def _end_when_revoked(websocket: WebSocket, token: str | None) -> None:
    await until_revoked(websocket, token)
    raise ClosingError(POLICY_VIOLATION, "the credentials are no longer valid")


async def _wish(websocket: WebSocket, protocol: Protocol) -> Wish:
    message = await _message(websocket, "filter", PROTOCOL_ERROR)
    try:
        if protocol == "runlog":
            return _runlog_wish(message)
        return _prefect_wish(message)
    except (ValueError, MissingDependencyError) as error:
        raise ClosingError(PROTOCOL_ERROR, f"Invalid filter: {error}") from error


def _prefect_wish(message: dict[str, Any]) -> Wish:
    if message.get("filter") is None:
        raise QueryError("Input should be a valid dictionary")
    return Wish(_condition(message["filter"]), heartbeat_s=None)


def _runlog_wish(message: dict[str, Any]) -> Wish:
    for name in message:
        if name not in _RUNLOG_KEYS:
            raise QueryError(f"unknown key {name[:40]!r}; expected one of {', '.join(_RUNLOG_KEYS[1:])}")
    heartbeat = message.get("heartbeat")
    if heartbeat is None:
        heartbeat = DEFAULT_HEARTBEAT
    if isinstance(heartbeat, bool) or not isinstance(heartbeat, int | float):
        raise QueryError("heartbeat must be a number of seconds")
    now_ns = time.time_ns()
    conditions = [_condition(message.get("filter"))]
    query, cursor, since = _text(message, "query"), _text(message, "cursor"), message.get("since")
    if query is not None:
        conditions.append(parse_expression(query, now_ns=now_ns))
    if since is not None:
        since = parse_moment(since, now_ns=now_ns) if isinstance(since, str) else parse_time(since)
    return Wish(
        where=AllOf(tuple(one for one in conditions if one != AllOf())),
        run=_text(message, "run"),
        after=place_of(cursor) if cursor is not None else None,
        since_ns=since,
        heartbeat_s=check_heartbeat(heartbeat),
    )


def _text(message: dict[str, Any], name: str) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise QueryError(f"{name} must be text")
    return value


def _condition(asked: Any) -> Condition:
    faults = Faults()
    condition = parse_filter(asked, faults, ("filter",))
    if faults.found:
        fault = faults.found[0]
        raise QueryError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
    return condition


async def _ignore_messages(websocket: WebSocket) -> None:
    """Return when the client leaves; it has nothing more to say."""
    for _ in range(MAX_IDLE_MESSAGES):
        if (await websocket.receive())["type"] == "websocket.disconnect":
            return
    raise ClosingError(POLICY_VIOLATION, "nothing is expected after the filter")


# --- what the client is told --------------------------------------------------------------------------


async def _tell(subscription: Subscription, writer: MessageWriter, protocol: Protocol) -> None:
    """Write what there is to tell, until the server stops."""
    messages = _runlog_messages if protocol == "runlog" else _prefect_messages
    try:
        async with subscription, contextlib.aclosing(subscription.news()) as all_news:
            async for news in all_news:
                await writer.write(messages(news, subscription, writer.envelope))
                # Writing waits only for a slow client: others must get their turn as well.
                await asyncio.sleep(0)
    except QueryTimeoutError as error:
        raise ClosingError(POLICY_VIOLATION, str(error)) from error
    except StorageError as error:
        logger.error("%s", error)  # noqa: TRY400 - its text says all
        raise ClosingError(INTERNAL_ERROR, "the store of lines cannot be used at the moment") from error
    raise ClosingError(RESTART, "the server stops")


def _prefect_messages(
    news: News, _subscription: Subscription, envelope: Callable[[bytes], bytes]
) -> list[bytes]:
    """Return lines, and nothing else: Prefect's client takes every message for one."""
    if not isinstance(news, Lines):
        return []

    def make(_arrival: int, line: StoredLine) -> bytes:
        return envelope(b'{"type":"log","log":' + msgspec.json.encode(prefect_log(line)) + b"}")

    name = f"prefect {envelope.__name__}"
    return [line.form(name, make) for line in news.lines]


def _runlog_messages(
    news: News, subscription: Subscription, envelope: Callable[[bytes], bytes]
) -> list[bytes]:
    if isinstance(news, Lines):

        def make(arrival: int, line: StoredLine) -> bytes:
            log = msgspec.json.encode(log_answer(line))
            cursor = subscription.cursor(arrival).encode()
            return envelope(b'{"type":"log","log":' + log + b',"cursor":"' + cursor + b'"}')

        name = f"runlog {envelope.__name__}"
        return [line.form(name, make) for line in news.lines]
    kind = {Gap: "gap", RunReceipt: "receipt", Heartbeat: "heartbeat"}[type(news)]
    return [envelope(msgspec.json.encode({"type": kind, **news._asdict()}))]


ROUTES = [WebSocketRoute("/logs/out", LogsOut())]
