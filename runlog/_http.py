"""
The HTTP client that runlog uses, named in one place.

httpx has had no release since 2024; were its successor to take its place, this
is the only module to change. It is loaded by whoever sends or reads first:
httpx takes 100 ms to import, and a client with TLS another 20 ms to build.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpcore
from httpx import (
    ASGITransport,
    AsyncClient,
    BaseTransport,
    Client,
    HTTPError,
    InvalidURL,
    Limits,
    MockTransport,
    Request,
    Response,
    Timeout,
    TimeoutException,
    TransportError,
    create_ssl_context,
)

from runlog.credentials import auth_headers

if TYPE_CHECKING:
    import ssl


class Deadline:
    """When an exchange must be over, for the one thread that uses a client."""

    at: float = float("inf")
    """Monotonic seconds."""

    def left(self, timeout: float | None) -> float:
        """
        Return the seconds that the next step may take.

        Raises:
            httpcore.ReadTimeout: If there are none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the answer did not come in time")
        return left if timeout is None else min(left, timeout)


def client_with_deadline() -> tuple[Client, Deadline]:
    """
    Return a client whose exchanges end at a deadline, whatever the server does, and that deadline.

    The time limits of httpx are for each read: a server that sends a byte now
    and then holds the caller for ever. So each read gets what is left.
    Redirects are not followed: a key must not go to a host that nobody
    configured.
    """
    client, deadline = Client(follow_redirects=False), Deadline()
    transports = [client._transport, *client._mounts.values()]  # noqa: SLF001 - httpx offers no way to name a backend
    for transport in transports:
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _DeadlineBackend(pool._network_backend, deadline)  # noqa: SLF001 - as above
    return client, deadline


class _DeadlineBackend(httpcore.NetworkBackend):
    """Connects as another backend does."""

    def __init__(self, inner: httpcore.NetworkBackend, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.connect_tcp(*args, **kwargs), self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    """Reads and writes as another stream does, up to the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        encrypted = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _DeadlineStream(encrypted, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


__all__ = [
    "ASGITransport",
    "AsyncClient",
    "BaseTransport",
    "Client",
    "Deadline",
    "HTTPError",
    "InvalidURL",
    "Limits",
    "MockTransport",
    "Request",
    "Response",
    "Timeout",
    "TimeoutException",
    "TransportError",
    "auth_headers",
    "client_with_deadline",
    "create_ssl_context",
]
