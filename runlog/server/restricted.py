"""
Take lines from one who may send some of them only.

The counterpart, for lines that go in, of `runlog.server.storage.restricted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from runlog.server.ingest import Ingest
from runlog.server.storage.restricted import PermissionDeniedError, bound_to, check_batch

if TYPE_CHECKING:
    from runlog.records import EventBatch, LogEvent
    from runlog.server.principal import Principal
    from runlog.server.storage.base import Appended


class RestrictedIngest(Ingest):
    """
    What a principal may put in.

    Args:
        ingest: Takes what passes.
        principal: Bound to something.
    """

    def __init__(self, ingest: Ingest, principal: Principal) -> None:
        self.counts = ingest.counts
        self._ingest = ingest
        self._principal = principal

    async def take_batch(self, batch: EventBatch) -> Appended:
        """Store a batch if all its lines are the principal's."""
        check_batch(self._principal, batch)
        return await self._ingest.take_batch(batch)

    async def take_events(self, events: list[LogEvent]) -> None:
        """Store lines if all are the principal's."""
        condition = self._principal.condition()
        if not all(condition.matches(event) for event in events):
            raise PermissionDeniedError(
                f"key {self._principal.name} is bound to {bound_to(self._principal)}, "
                "and a line belongs to something else"
            )
        await self._ingest.take_events(events)

    async def close(self) -> NoReturn:
        """Refuse: it is the server's."""
        raise PermissionDeniedError(f"key {self._principal.name} is bound to {bound_to(self._principal)}")
