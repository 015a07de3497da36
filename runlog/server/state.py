"""What the routes of one application share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from runlog.server.metrics import RequestCounts
from runlog.server.noted_runs import NotedRuns
from runlog.server.principal import SCOPE_KEY, Principal
from runlog.server.restricted import RestrictedIngest
from runlog.server.storage.restricted import RestrictedStorage

if TYPE_CHECKING:
    import asyncio

    from starlette.requests import HTTPConnection

    from runlog.server.authentication import Authenticator
    from runlog.server.ingest import Ingest
    from runlog.server.live import Tail
    from runlog.server.principal import Permission
    from runlog.server.storage.base import LogStorage


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost."""

    max_body_bytes: int = 32 * 1024 * 1024
    """As sent and, if compressed, inflated. Producers send 4 MB at most by default."""
    max_batch_lines: int = 50_000
    """Lines in one body: what takes a second to store."""
    max_query_s: float = 10.0
    """Seconds after which a question is given up and answered 503."""
    max_connections: int = 4000
    """Connections at a time; further ones are answered 503. Many systems let a process open 4,096 files."""
    max_waiting_bytes: int = 256 * 1024 * 1024
    """Of all bodies that are being taken or stored; further ones are answered 503 with ``Retry-After``."""
    max_followers: int = 1000
    """Sockets and streams that follow lines at a time; further ones are answered 503 with ``Retry-After``."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts that a route may need."""

    storage: LogStorage
    ingest: Ingest
    limits: Limits
    authenticator: Authenticator
    stopping: asyncio.Event
    """Set when the server is told to stop, before it closes anything: streams end, ``/ready`` says no."""
    tail: Tail
    """Told of each line that is stored; streams read along it."""
    noted: NotedRuns = field(default_factory=NotedRuns)
    """What Prefect's clients tell of their runs."""
    requests: RequestCounts = field(default_factory=RequestCounts)
    """For `runlog.server.metrics`."""

    def stop(self) -> None:
        """Let streams end, and everybody know that the server does."""
        self.stopping.set()
        self.tail.close()

    def seen_by(self, principal: Principal) -> ServerState:
        """Return the parts as one may use them who may not see everything."""
        if not principal.is_bound:
            return self
        return replace(
            self,
            storage=RestrictedStorage(self.storage, principal),
            ingest=RestrictedIngest(self.ingest, principal),
        )


def state_of(request: HTTPConnection) -> ServerState:
    """
    Return the parts of the application that got this request.

    For a principal that is bound to a run or a flow, storage and ingest are those
    that know its bounds. What a route gets from elsewhere, such as live lines, it
    joins with `Principal.condition` itself.
    """
    server = cast("ServerState", request.app.state.server)
    principal = request.scope.get(SCOPE_KEY)
    return server.seen_by(principal) if isinstance(principal, Principal) else server


def authorise(socket: HTTPConnection, token: str | None, *permissions: Permission) -> Principal | None:
    """
    Return who has opened a socket; `None` if the credentials are wrong or allow too little.

    The one way in for sockets. A handshake's header or ticket counts before the
    token. Afterwards `state_of` returns what the principal may use.

    Args:
        socket: Its handshake.
        token: What its first message says; `None` if there was none.
        permissions: One of them is needed.
    """
    server = cast("ServerState", socket.app.state.server)
    found = socket.scope.get(SCOPE_KEY)
    principal = found if isinstance(found, Principal) else server.authenticator.by_token(token)
    if principal is None or not principal.may(*permissions):
        server.requests.refused += 1
        return None
    socket.scope[SCOPE_KEY] = principal
    return principal
