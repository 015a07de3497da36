"""
A door before a server: it speaks TLS with a certificate that a test gives it, or misbehaves.

`Door` listens on one port for as long as it lives, so that what is wrong with it can be
mended while programs go on sending there. What comes through the encryption
goes to a real server as it is.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING, Literal, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

S = TypeVar("S", bound=socket.socket)

Manner = ssl.SSLContext | Literal["hang", "cut", "plain"]
"""
How the door answers a connection: by TLS, never, by a reset once the client has spoken, or by HTTP without TLS.
"""

_RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` of zero seconds: closing sends a reset instead of a farewell."""


def context_for(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return how a server shows a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


class Door:
    """
    A listener in threads of this process. A context manager; leaving it ends all connections.

    Args:
        port: Of the server behind it, on this machine.
        manner: How it answers; may be set anew at any time, for connections that come later.
    """

    def __init__(self, port: int, manner: Manner) -> None:
        self.manner = manner
        self.passed = 0
        """How many bytes went to the server."""
        self.heard = b""
        """What clients said to a door that speaks no TLS."""
        self._upstream = port
        self._connections = 0
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/api"

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for open_socket in list(self._sockets):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def wait_for_connections(self, number: int, timeout: float) -> bool:
        """Wait until so many connections have come; returns whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self._connections >= number, timeout)

    def _begin(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._answer, client)
            with self._changed:
                self._connections += 1
                self._changed.notify_all()

    def _answer(self, client: socket.socket) -> None:
        manner = self.manner
        with self._kept(client), contextlib.suppress(OSError):
            if manner == "hang":
                while client.recv(65536):
                    pass
            elif manner == "cut":
                client.recv(1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            elif manner == "plain":
                self.heard += client.recv(65536)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                assert isinstance(manner, ssl.SSLContext), manner
                client.settimeout(10)
                with self._kept(manner.wrap_socket(client, server_side=True)) as inside:
                    self._relay(inside)

    def _relay(self, inside: ssl.SSLSocket) -> None:
        with self._kept(socket.create_connection(("127.0.0.1", self._upstream), 10)) as server:
            while True:
                ready = [inside] if inside.pending() else select.select([inside, server], [], [])[0]
                for source, sink in ((inside, server), (server, inside)):
                    if source in ready:
                        data = source.recv(65536)
                        if not data:
                            return
                        if source is inside:
                            self.passed += len(data)
                        sink.sendall(data)

    @contextlib.contextmanager
    def _kept(self, kept: S) -> Iterator[S]:
        """Close a socket at the end of the block, and let `__exit__` end it before."""
        with kept:
            self._sockets.add(kept)
            try:
                yield kept
            finally:
                self._sockets.discard(kept)
