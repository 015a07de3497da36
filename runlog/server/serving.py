"""Uvicorn, made to fit: it says when it is ready, and it returns when it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uvicorn

from runlog.exceptions import SettingsError
from runlog.server.addresses import url_of
from runlog.server.connections import (
    MAX_MESSAGE_BYTES,
    PING_INTERVAL,
    PING_TIMEOUT,
    HTTPConnection,
    SocketConnection,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from starlette.types import ASGIApp

SHUTDOWN_TIMEOUT = 5
"""Seconds for requests that are being answered when the server is told to stop."""

KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open: longer than the pauses between a producer's batches."""


@dataclass(frozen=True, slots=True)
class TLS:
    """What HTTPS needs: files in PEM form."""

    certfile: str
    """The server's certificate, and those between it and the authority's."""
    keyfile: str
    keyfile_password: str | None = field(default=None, repr=False)

    def check(self) -> None:
        """
        Look whether it can be used, so that a mistake is told before the address is taken.

        Raises:
            SettingsError: If not.
        """
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # A callable: without a password, OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.keyfile_password or "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SettingsError(
                f"certificate {self.certfile} and key {self.keyfile} cannot be used: "
                f"{getattr(error, 'strerror', None) or error}",
                key="--ssl-certfile",
                remedy="give a certificate, its key, and the key's password if it has one, in PEM form",
            ) from error


class Server(uvicorn.Server):
    """
    Serves an application on one socket.

    A signal ends it as setting ``should_exit`` does, and is not raised again, so
    that what comes after `run` is done and the exit code is 0. A second signal
    does not wait for requests. Nothing of logging is changed.

    Args:
        app: What answers; it has no lifespan.
        listener: Bound; closed at the end.
        on_ready: Is told the API address once requests are answered.
        tls: For HTTPS; `None` for HTTP.
        max_connections: Past this number, further requests are answered 503.
        on_stop: Called when it is to end, before anything is closed.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        on_ready: Callable[[str], None],
        *,
        tls: TLS | None = None,
        max_connections: int | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self._listener = listener
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._scheme = "https" if tls is not None else "http"
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                http=HTTPConnection,
                ws=SocketConnection,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=PING_INTERVAL,
                ws_ping_timeout=PING_TIMEOUT,
                # Frames are the same bytes for all; compressed, they would be made anew for each.
                ws_per_message_deflate=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
                limit_concurrency=max_connections,
                ssl_certfile=tls.certfile if tls is not None else None,
                ssl_keyfile=tls.keyfile if tls is not None else None,
                ssl_keyfile_password=tls.keyfile_password if tls is not None else None,
            )
        )

    async def serve_until_stopped(self) -> None:
        """Serve until a signal, or until ``should_exit`` is set."""
        await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._on_ready(url_of(self._listener, self._scheme))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that it ends, then finish what was begun."""
        if self._on_stop is not None:
            self._on_stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server while the block runs; uvicorn would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's business
            return
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
