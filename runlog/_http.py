"""
The HTTP client that runlog uses, named in one place.

httpx has had no release since 2024; were its successor to take its place, this
is the only module to change. It is loaded by whoever sends or reads first:
httpx takes 100 ms to import, and a client with TLS another 20 ms to build.
"""

from __future__ import annotations

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
)

from runlog.credentials import auth_headers

__all__ = [
    "ASGITransport",
    "AsyncClient",
    "BaseTransport",
    "Client",
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
]
