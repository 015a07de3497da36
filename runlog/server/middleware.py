"""
What every request passes on its way in, and every answer on its way out.

Plain ASGI, because the classes that Starlette offers for it copy bodies.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException

from runlog.server.body import HOLD_KEY, json_response
from runlog.server.metrics import METHODS
from runlog.server.principal import ANYONE, SCOPE_KEY, Principal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runlog.server.authentication import Authenticator
    from runlog.server.metrics import RequestCounts
    from runlog.server.principal import Permission

OPEN_PATHS = frozenset({"/api/health", "/api/ready"})
"""What probes may ask for without credentials."""

PROBE = Principal("a probe", frozenset())
"""Who asks for `OPEN_PATHS`, whatever it may do elsewhere."""

ADMIN_PREFIX = "/api/runlog/v1/admin/"

COMMON_PATHS = frozenset({"/api/admin/version", "/api/csrf-token", "/api/flow_runs/filter"})
"""What Prefect's client asks for before it writes or reads; the last before it runs a flow inside another."""

READING_POSTS = frozenset({"/api/runlog/v1/tickets"})
"""Beside Prefect's filters; any other POST puts something in."""

TICKET_PATHS = frozenset({"/api/runlog/v1/logs/stream"})
"""Where a ticket counts, besides sockets."""

_OWN_RUN = re.compile(r"/api/(flows|flow_runs|task_runs)/[^/]+")
"""What Prefect's client reads back of a run that it writes."""

LOWEST_API_VERSION = (0, 8, 0)
"""Of Prefect's API, as in the header of its clients."""

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""For answers that are data: nothing in them is run or shown, whatever somebody logged."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For pages: only files of this server, no script or style within the page, no other host."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class SecurityHeaders:
    """Tell browsers to take answers as they are declared, and to frame, cache and run nothing of them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                is_page = headers.get("content-type", "").startswith("text/html")
                headers.setdefault("Content-Security-Policy", PAGE_POLICY if is_page else DATA_POLICY)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Meter:
    """
    Count requests, and refuse bodies for which there is no memory.

    Args:
        app: What is counted.
        counts: Raised here.
        max_held_bytes: Most bytes of bodies at a time; see `runlog.server.body.read_body`.
    """

    def __init__(self, app: ASGIApp, counts: RequestCounts, max_held_bytes: int) -> None:
        self._app = app
        self._counts = counts
        self._max_held_bytes = max_held_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        counts = self._counts
        if scope["type"] != "http":
            counts.sockets += scope["type"] == "websocket"
            await self._app(scope, receive, send)
            return
        held = 0

        async def receive_counted() -> Message:
            message = await receive()
            counts.received_bytes += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else "other"
                counts.by_status[method, message["status"]] += 1
            await send(message)

        def hold(size_bytes: int) -> None:
            nonlocal held
            if counts.held_bytes + size_bytes > self._max_held_bytes:
                raise HTTPException(
                    503, "the server has too much to do at the moment", headers={"Retry-After": "1"}
                )
            held += size_bytes
            counts.held_bytes += size_bytes

        scope[HOLD_KEY] = hold
        try:
            await self._app(scope, receive_counted, send_counted)
        finally:
            counts.held_bytes -= held


class Authentication:
    """
    Ask who it is and what it may do, before anything of a request's body is read.

    Answers and exceptions to the rule are Prefect's: 401 without a valid
    credential, and probes need none. A socket that brings none may still do so in
    its first message, see `runlog.server.state.authorise`.

    Args:
        app: What is guarded.
        authenticator: Knows the credentials.
        counts: Told who is refused.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, counts: RequestCounts) -> None:
        self._app = app
        self._authenticator = authenticator
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        if scope["type"] == "http" and scope["method"] in {"GET", "HEAD"} and path in OPEN_PATHS:
            scope[SCOPE_KEY] = PROBE
            await self._app(scope, receive, send)
            return
        await self._authenticator.load()
        principal = self._principal(scope, path)
        scope[SCOPE_KEY] = principal
        if scope["type"] == "http":
            if principal is None:
                self._counts.refused += 1
                await json_response({"exception_message": "Unauthorized"}, 401)(scope, receive, send)
                return
            needed = permissions_for(scope["method"], path)
            if not principal.may(*needed):
                self._counts.refused += 1
                detail = f"{principal.name} has not the scope {' or '.join(needed)}"
                await json_response({"detail": detail}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _principal(self, scope: Scope, path: str) -> Principal | None:
        if not self._authenticator.is_required:
            return ANYONE
        authorization = Headers(scope=scope).get("authorization")
        if authorization is not None:
            return self._authenticator.by_header(authorization)
        if scope["type"] == "websocket" or path in TICKET_PATHS:
            tickets = QueryParams(scope.get("query_string", b"")).getlist("ticket")
            return self._authenticator.tickets.take(tickets[0]) if len(tickets) == 1 else None
        return None


def route_path(scope: Scope) -> str:
    """Return the path by which the router decides; a URL put together from headers could be forged."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def permissions_for(method: str, path: str) -> tuple[Permission, ...]:
    """Return the permissions one of which a request needs."""
    if path.startswith(ADMIN_PREFIX):
        return ("admin",)
    if path in COMMON_PATHS or (method in {"GET", "HEAD"} and _OWN_RUN.fullmatch(path)):
        return ("ingest", "read")
    if method in {"GET", "HEAD", "OPTIONS"} or path in READING_POSTS or path.endswith("/filter"):
        return ("read",)
    return ("ingest",)


class PrefectVersion:
    """Refuse clients of Prefect that are too old, in the words of Prefect's server; no header is fine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            version = Headers(scope=scope).get("x-prefect-api-version")
            problem = _version_problem(version) if version else None
            if problem is not None:
                await json_response({"detail": problem}, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _version_problem(version: str) -> str | None:
    try:
        major, minor, patch = (int(part) for part in version.split("."))
    except ValueError:
        return (
            "Invalid X-PREFECT-API-VERSION header format."
            f"Expected header in format 'x.y.z' but received {version}"
        )
    if (major, minor, patch) < LOWEST_API_VERSION:
        lowest = ".".join(map(str, LOWEST_API_VERSION))
        return (
            f"The request specified API version {version} but this "
            f"server requires version {lowest} or higher."
        )
    return None
