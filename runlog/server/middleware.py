"""
What every request passes on its way in, and every answer on its way out.

Plain ASGI, because the classes that Starlette offers for it copy bodies.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from runlog.server.body import json_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/api/health", "/api/ready"})
"""What probes may ask for without credentials."""

LOWEST_API_VERSION = (0, 8, 0)
"""Of Prefect's API, as in the header of its clients."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
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
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BasicAuth:
    """
    Ask for the auth string, before anything of a request's body is read.

    Answers and exceptions to the rule are Prefect's: ``Basic`` alone will do,
    and probes need nothing.

    Args:
        app: What is guarded.
        auth_string: ``user:password``.
    """

    def __init__(self, app: ASGIApp, auth_string: str) -> None:
        self._app = app
        self._expected = auth_string.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not self._may_pass(scope):
            await json_response({"exception_message": "Unauthorized"}, 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        # The path of the scope, exactly: a URL put together from headers could be forged.
        if scope["method"] == "GET" and scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS:
            return True
        scheme, _, credentials = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme != "Basic":
            return False
        try:
            given = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._expected)


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
