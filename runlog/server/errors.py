"""
What goes wrong, as HTTP answers. One place, so that all answers have one of two shapes.

``{"detail": "one line"}`` is the shape of an error, ours and most of Prefect's.
Prefect's second shape, for a body that is not what it should be, lists each
fault where it is: `InvalidBodyError`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from runlog.exceptions import (
    MissingDependencyError,
    QueryError,
    QueryTimeoutError,
    RunlogError,
    StorageError,
    StorageFullError,
)
from runlog.server.body import json_response
from runlog.server.storage.base import ProducerGapError
from runlog.server.storage.restricted import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

logger = logging.getLogger("runlog.server")

RETRY_WHEN_FULL_S = 30
"""``Retry-After`` on a full disk: somebody has to make room."""

RETRY_WHEN_BROKEN_S = 5
"""``Retry-After`` if the store cannot be used for another reason."""

MAX_FAULTS = 100
"""Faults told in one answer; a body of a hundred thousand wrong lines is as wrong as its first hundred."""

MAX_ECHO_BYTES = 262_144
"""A longer body is not sent back with its faults."""


class InvalidBodyError(RunlogError):
    """
    A body for one of Prefect's routes is not what it should be.

    Args:
        faults: What is wrong where, as pydantic words it: ``type``, ``loc``,
            ``msg``, ``input`` and sometimes ``ctx``.
        body: The body as it was decoded, or as text if it could not be.
        size_bytes: Its length.
    """

    def __init__(self, faults: list[dict[str, Any]], body: Any, size_bytes: int) -> None:
        self.faults = faults
        self.body = body
        self.size_bytes = size_bytes
        super().__init__("Invalid request received.")


def invalid_body(error: InvalidBodyError) -> Response:
    """Answer as Prefect's server does."""
    echo = error.size_bytes <= MAX_ECHO_BYTES
    faults = error.faults[:MAX_FAULTS]
    if not echo:
        faults = [{**fault, "input": None} for fault in faults]
    answer = {
        "exception_message": "Invalid request received.",
        "exception_detail": faults,
        "request_body": error.body if echo else None,
    }
    try:
        return json_response(answer, 422)
    except (
        RecursionError,
        ValueError,
        msgspec.MsgspecError,
    ):  # what could just be decoded is too deep to encode
        bare = [{**fault, "input": None} for fault in faults]
        return json_response({**answer, "exception_detail": bare, "request_body": None}, 422)


async def _http_exception(_request: Request, error: HTTPException) -> Response:
    return json_response({"detail": error.detail}, error.status_code, error.headers)


async def _invalid_body(_request: Request, error: InvalidBodyError) -> Response:
    return invalid_body(error)


async def _query_error(_request: Request, error: QueryError) -> Response:
    """Say what is wrong and, of an expression, where: an offset in characters, from 0."""
    place = {"position": error.position} if error.position is not None else {}
    return json_response({"detail": str(error), **place}, 422)


async def _query_timeout(_request: Request, error: QueryTimeoutError) -> Response:
    """No ``Retry-After``: the same question would take as long again."""
    return json_response({"detail": str(error)}, 503)


async def _missing_dependency(_request: Request, error: MissingDependencyError) -> Response:
    return json_response({"detail": str(error)}, 501)


async def _producer_gap(_request: Request, error: ProducerGapError) -> Response:
    return json_response({"detail": str(error), "expected": error.expected}, 409)


async def _permission_denied(_request: Request, error: PermissionDeniedError) -> Response:
    return json_response({"detail": str(error)}, 403)


async def _storage_error(_request: Request, error: StorageError) -> Response:
    """Answer so that a sender keeps its lines and comes back; the details are for the server's own log."""
    logger.error("%s", error)
    if isinstance(error, StorageFullError):
        detail, status, wait = "no room for more lines", 507, RETRY_WHEN_FULL_S
    else:
        detail, status, wait = "the store of lines cannot be used at the moment", 503, RETRY_WHEN_BROKEN_S
    return json_response({"detail": detail}, status, {"Retry-After": str(wait)})


async def _client_left(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _internal_error(_request: Request, _error: Exception) -> Response:
    """Say nothing about the inside; Starlette raises the error again, for the server's own log."""
    return json_response({"exception_message": "Internal Server Error"}, 500)


EXCEPTION_HANDLERS: dict[Any, Callable[..., Any]] = {
    HTTPException: _http_exception,
    InvalidBodyError: _invalid_body,
    QueryError: _query_error,
    QueryTimeoutError: _query_timeout,
    MissingDependencyError: _missing_dependency,
    ProducerGapError: _producer_gap,
    PermissionDeniedError: _permission_denied,
    StorageError: _storage_error,
    ClientDisconnect: _client_left,
    Exception: _internal_error,
}
"""For `starlette.applications.Starlette`."""
