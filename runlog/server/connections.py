"""
Uvicorn's connections, made safe against clients that do not read.

A client that stops reading holds what was written to it, and would hold it for as
long as its machine answers. Here, a connection that takes nothing for
`STALL_TIMEOUT` is dropped, and a server that stops waits for none of them. Sockets
can also be given whole frames, see `runlog.server.frames`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from runlog.server.frames import FRAMES

STALL_TIMEOUT = 60.0
"""Seconds in which a client must take something of what waits for it."""

LAST_WORDS_TIMEOUT = 1.0
"""The same for what is left once a connection is to be closed."""

PING_INTERVAL = 20.0
PING_TIMEOUT = 40.0
"""Seconds after a ping without an answer, from a client that has read all, until its socket is closed."""

MAX_UNSENT_BYTES = 131_072
"""Of one socket, in the kernel, besides what is on its way: the rest waits in the tail, for all together."""

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Of a client's message, where the path has no lower limit. Prefect's events may have 1.5 MB."""

MAX_MESSAGE_BYTES_OF_PATH = {"/api/logs/out": 65_536}

if TYPE_CHECKING:
    import asyncio

    class _Connection(asyncio.Protocol):
        transport: asyncio.Transport
        loop: asyncio.AbstractEventLoop

        def shutdown(self) -> None: ...

else:
    _Connection = object


class _DropsStalled(_Connection):
    """Drops a connection whose client takes nothing."""

    _watching: asyncio.TimerHandle | None = None
    _unsent = 0

    def pause_writing(self) -> None:
        """More waits than should."""
        super().pause_writing()
        self._watch(STALL_TIMEOUT)

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_watching()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: a client that takes nothing now is not waited for."""
        super().shutdown()
        self._watch(LAST_WORDS_TIMEOUT)

    def _watch(self, patience_s: float) -> None:
        self._stop_watching()
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent:
            self._watching = self.loop.call_later(patience_s, self._look, patience_s)

    def _look(self, patience_s: float) -> None:
        self._watching = None
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._watch(patience_s)

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None


class HTTPConnection(_DropsStalled, AutoHTTPProtocol):  # type: ignore[misc, valid-type] # chosen when uvicorn is imported
    """One connection for requests."""


class SocketConnection(_DropsStalled, WebSocketsSansIOProtocol):
    """One WebSocket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the kernel from taking megabytes for a client that does not read."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if option is not None and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES)

    def handle_connect(self, event: Any) -> None:
        """Take a handshake."""
        limit = MAX_MESSAGE_BYTES_OF_PATH.get(event.path.partition("?")[0])
        if limit is not None:
            self.conn.max_message_size = limit
        super().handle_connect(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; one that is not UTF-8 ends the socket, and is no fault of ours."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(1007, "a text message must be UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        """End a socket whose client does not answer; behind unread lines, it cannot have seen the ping."""
        if self.writable.is_set():
            super().keepalive_timeout()
            self._watch(LAST_WORDS_TIMEOUT)
        else:
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()

    async def run_asgi(self) -> None:
        """Run the application."""
        self.scope["extensions"][FRAMES] = {}
        await super().run_asgi()
        self._watch(LAST_WORDS_TIMEOUT)

    async def send(self, message: Any) -> None:
        """
        Send one event of the application.

        Raises:
            OSError: If the client has left.
        """
        if message["type"] != FRAMES:
            await super().send(message)
            return
        await self.writable.wait()
        if self.close_sent or self.transport.is_closing():
            raise ClientDisconnected
        self.transport.write(message["data"])
