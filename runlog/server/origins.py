"""
Keep other web sites out, which a browser would let in with its user's rights.

A page of another site may send requests that change something, and may open
sockets, which browsers allow to any page: its ``Origin`` gives it away. And a
site may give its own name the address of this machine (DNS rebinding), so that
the browser takes this server for that site: the ``Host`` header gives it away,
and counts where nothing else guards the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from runlog.server.addresses import is_loopback
from runlog.server.body import json_response

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from runlog.server.authentication import Authenticator

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and without CORS headers their answers are not shown to other sites."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


class SameOrigin:
    """
    Refuse what a page of another site sends: 403, for sockets before they are accepted.

    Programs send no ``Origin`` and are not concerned.

    Args:
        app: What is guarded.
        authenticator: Says whether credentials guard the server.
        allowed: Origins of pages that may use it from elsewhere, such as
            ``https://logs.example.org``; their hosts may be its name as well.
        on_loopback: Whether it listens where only this machine reaches it.
    """

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, allowed: Collection[str] = (), *, on_loopback: bool
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)
        self._hosts = frozenset(urlsplit(origin).hostname or "" for origin in self._allowed)
        self._on_loopback = on_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        problem = self._problem(scope) if scope["type"] in {"http", "websocket"} else None
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await json_response({"detail": problem}, 403)(scope, receive, send)
        else:
            await receive()  # the handshake, which a server may send its answer to only then
            await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        if (
            self._on_loopback
            and not self._authenticator.is_required
            and host is not None
            and not self._is_own_name(host)
        ):
            return (
                "this server asks for no credentials and so answers by the names of this machine alone; "
                "see RUNLOG_SERVER_ALLOWED_ORIGINS"
            )
        origin = headers.get("origin")
        if (
            origin is not None
            and (scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS)
            and not self._is_allowed(origin.lower(), host)
        ):
            return "requests from pages of other sites are refused; see RUNLOG_SERVER_ALLOWED_ORIGINS"
        return None

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name is not None and (is_loopback(name) or name in self._hosts)

    def _is_allowed(self, origin: str, host: str | None) -> bool:
        if origin in self._allowed:
            return True
        try:
            page, own = urlsplit(origin), urlsplit(f"//{host}")
            ports = page.port, own.port
        except ValueError:
            return False
        default = _DEFAULT_PORTS.get(page.scheme)
        # The scheme is the page's: a proxy that ends TLS hands on the name and not the scheme.
        return (
            default is not None
            and page.hostname is not None
            and page.hostname == own.hostname
            and (ports[0] or default) == (ports[1] or default)
        )
