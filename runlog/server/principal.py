"""
Who asks, and what that lets them see and do.

`runlog.server.authentication` finds out who it is, `runlog.server.middleware`
puts the `Principal` into the scope of each request, and refuses what its scopes
do not cover. A key may be bound to one flow run, or to the runs of one flow: then
routes get the storage through `runlog.server.storage.restricted`, which leaves
out everything else, whatever is asked; sockets and streams, which get lines from
elsewhere, join `Principal.condition` with the reader's own filter.

A socket of Prefect's client tells its token in its first message. Whoever accepts
sockets calls `runlog.server.state.authorise` with it, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from runlog.server.query import AllOf, FlowIs, RunIn

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import HTTPConnection

    from runlog.server.query import Condition
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.base import RunQuery

Permission = Literal["ingest", "read", "admin"]

PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
"""``ingest`` sends lines, ``read`` reads them, ``admin`` does both, and all that is left."""

SCOPE_KEY = "runlog.principal"
"""Where the middleware puts the principal into an ASGI scope; `None` there: a socket that has yet to say."""


@dataclass(frozen=True, slots=True)
class Principal:
    """
    One who may do something.

    Args:
        name: For people and for the log; no secret.
        permissions: What it may do.
        flow_run_id: If given, it sees this flow run and its task runs alone. A flow
            run that was opened in it has an id of its own and is not seen.
        flow_name: If given, it sees runs of this flow alone.
    """

    name: str
    permissions: frozenset[Permission] = frozenset(PERMISSIONS)
    flow_run_id: str | None = None
    flow_name: str | None = None

    @property
    def is_bound(self) -> bool:
        """Whether it sees less than everything."""
        return self.flow_run_id is not None or self.flow_name is not None

    def may(self, *permissions: Permission) -> bool:
        """Return whether it has one of these permissions; ``admin`` is all of them."""
        return "admin" in self.permissions or any(one in self.permissions for one in permissions)

    def only(self, permissions: Collection[Permission]) -> Principal:
        """Return it with these of its permissions and no others."""
        return replace(self, permissions=frozenset(one for one in permissions if self.may(one)))

    def condition(self) -> Condition:
        """Return what every line that it may see meets; stateless, for queries and for streams."""
        parts: list[Condition] = []
        if self.flow_run_id is not None:
            parts.append(RunIn("flow", (self.flow_run_id,)))
        if self.flow_name is not None:
            parts.append(FlowIs(self.flow_name))
        return AllOf(tuple(parts))

    def sees_run(self, run: RunSummary) -> bool:
        """Return whether it may see a run."""
        own_id = run.id if run.kind == "flow" else run.text("flow_run_id")
        return (self.flow_run_id is None or own_id == self.flow_run_id) and (
            self.flow_name is None or run.text("flow_name") == self.flow_name
        )

    def runs(self, query: RunQuery) -> RunQuery:
        """Return a query for runs, cut down to those that it may see."""
        return replace(query, visible_flow_run=self.flow_run_id, visible_flow=self.flow_name)


ANYONE = Principal("anyone")
"""Everybody, on a server that asks for nothing."""


def principal_of(connection: HTTPConnection) -> Principal:
    """
    Return who sent a request.

    Not for sockets, which may have yet to say: `runlog.server.state.authorise`.
    """
    found = connection.scope.get(SCOPE_KEY)
    assert isinstance(found, Principal), "the middleware lets no request through without"
    return found
