"""What the routes of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from starlette.requests import Request

    from runlog.server.ingest import Ingest
    from runlog.server.storage.base import LogStorage


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost."""

    max_body_bytes: int = 32 * 1024 * 1024
    """As sent and, if compressed, inflated. Producers send 4 MB at most by default."""
    max_batch_lines: int = 50_000
    """Lines in one body: what takes a second to store."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts that a route may need."""

    storage: LogStorage
    ingest: Ingest
    limits: Limits


def state_of(request: Request) -> ServerState:
    """Return the parts of the application that got this request."""
    return cast("ServerState", request.app.state.server)
