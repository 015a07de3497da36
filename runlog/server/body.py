"""
Take a request's body in, without taking more than allowed, and answers out.

A body is refused as soon as it is known to be too long: by its declared length
before a byte of it is read, by counting otherwise, and for a compressed body by
counting what comes out of it, a piece at a time.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

BODY_TIMEOUT = 30.0
"""Seconds without a byte after which a body is given up: who is slow goes on, who is gone holds nothing."""

MAX_JOINED = 100
"""Gzip files in one body. Each takes as long to begin as thousands of bytes to inflate."""

HOLD_KEY = "runlog.hold"
"""Where the middleware puts, into a request's scope, what asks for memory before it is used."""

_GZIP = 16 + zlib.MAX_WBITS
"""Tells zlib to expect gzip's header."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """
    Return a request's body, inflated if it says ``Content-Encoding: gzip``.

    Args:
        request: Its body has not been read.
        max_bytes: Most bytes to accept, both as sent and inflated.

    Raises:
        HTTPException: 413 if it is longer, 415 for another encoding, 400 if it
            is not gzip although it says so, 408 if nothing comes for `BODY_TIMEOUT`,
            503 if others have taken all the memory that there is for bodies.
    """
    hold = request.scope.get(HOLD_KEY)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise HTTPException(415, f"Content-Encoding must be gzip or identity, got {encoding[:40]!r}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    inflate = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
    received = joined = 0
    body = bytearray()
    try:
        async for chunk in _in_time(request.stream()):
            received += len(chunk)
            if received > max_bytes:
                raise _too_large(max_bytes)
            before = len(body)
            if inflate is None:
                body += chunk
            else:
                body += inflate.decompress(chunk, max_bytes - len(body) + 1)
                # Gzip files may be joined. A limit of 0 would be none, so what is too long ends it here.
                while inflate.eof and inflate.unused_data and len(body) <= max_bytes:
                    joined += 1
                    if joined > MAX_JOINED:
                        raise HTTPException(400, f"the body is made of more than {MAX_JOINED} gzip files")
                    rest = inflate.unused_data
                    inflate = zlib.decompressobj(_GZIP)
                    body += inflate.decompress(rest, max_bytes - len(body) + 1)
            if hold is not None:
                hold(len(body) - before)
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not valid gzip: {error}") from error
    if inflate is not None and not inflate.eof:
        raise HTTPException(400, "the body is not valid gzip: it ends too early")
    return bytes(body)


async def _in_time(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise HTTPException(
                408, f"nothing more of the body came for {BODY_TIMEOUT:g} s", {"Connection": "close"}
            ) from error
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body must have at most {max_bytes} bytes")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return *value* as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
