"""Uvicorn, made to fit: it says when it is ready, and it returns when it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

import uvicorn

from runlog.server.addresses import url_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from starlette.types import ASGIApp

SHUTDOWN_TIMEOUT = 5
"""Seconds for requests that are being answered when the server is told to stop."""

KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open: longer than the pauses between a producer's batches."""


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
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
        self._listener = listener
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                ws="websockets-sansio",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
            )
        )

    async def serve_until_stopped(self) -> None:
        """Serve until a signal, or until ``should_exit`` is set."""
        await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._on_ready(url_of(self._listener))

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
