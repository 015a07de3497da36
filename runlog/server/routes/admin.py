"""How the server is, and which one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.routing import Route

from runlog._version import __version__
from runlog.server.body import json_response
from runlog.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PREFECT_VERSION = "3.8.8"
"""The Prefect whose API this is."""

_PREFECT_CLIENT = re.compile(r"prefect/(\d+\.\d+\.\d+[0-9A-Za-z.+-]*)")


async def health(_request: Request) -> Response:
    """Answer: the process runs."""
    return json_response(True)


async def ready(request: Request) -> Response:
    """Answer once the store answers, and until the server is told to stop."""
    server = state_of(request)
    if server.stopping.is_set():
        return json_response({"message": "the server is stopping"}, 503)
    await server.storage.read_statistics()
    return json_response({"message": "OK"})


async def version(request: Request) -> Response:
    """
    Answer with the version of Prefect that its client wants to hear.

    A client refuses a server of another major version and warns of an older
    one, so it is told its own, which its ``User-Agent`` names.
    """
    client = _PREFECT_CLIENT.match(request.headers.get("user-agent", ""))
    return json_response(client[1] if client else PREFECT_VERSION)


async def status(request: Request) -> Response:
    """Answer who this is and how much it keeps."""
    storage = state_of(request).storage
    statistics = await storage.read_statistics()
    return json_response(
        {
            "version": __version__,
            "schema_version": storage.schema_version,
            "runs": statistics.runs,
            "lines": statistics.lines,
            "database": storage.location,
        }
    )


ROUTES = [
    Route("/health", health),
    Route("/ready", ready),
    Route("/admin/version", version),
    Route("/runlog/v1/status", status),
]
