"""
A storage as one sees it who may not see everything.

Routes get it in place of the real one for a key that is bound to a run or a flow,
so that no route can forget to ask. What it has no rule for it refuses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from runlog.exceptions import RunlogError
from runlog.server.query import AllOf
from runlog.server.storage.base import LogStorage, RunQuery, Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runlog.records import EventBatch
    from runlog.server.counting import GroupBy, Histogram, LineCount
    from runlog.server.keys import ApiKey
    from runlog.server.principal import Principal
    from runlog.server.query import Condition, LogQuery, Position
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.base import Appended, Arrivals, Pruned, Size, StoredLine
    from runlog.server.storage.shares import ProducerShare


class PermissionDeniedError(RunlogError):
    """One who may do something may not do this."""


class RestrictedStorage(LogStorage):
    """
    What a principal sees of a storage.

    Args:
        storage: Open; its owner closes it.
        principal: Bound to something.
    """

    def __init__(self, storage: LogStorage, principal: Principal) -> None:
        self._storage = storage
        self._principal = principal
        self.location = storage.location
        self.schema_version = storage.schema_version
        self.epoch = storage.epoch

    def __repr__(self) -> str:
        return f"<{self._storage!r} as {self._principal.name} sees it>"

    async def open(self) -> None:
        """Refuse."""
        self._refuse()

    async def close(self) -> None:
        """Refuse."""
        self._refuse()

    async def append(self, batch: EventBatch, *, observed_ns: int) -> Appended:
        """Store a batch if every line of it is one that the principal sees."""
        check_batch(self._principal, batch)
        return await self._storage.append(batch, observed_ns=observed_ns)

    async def read_lines(self, query: LogQuery) -> list[StoredLine]:
        """Return those lines that are seen."""
        return await self._storage.read_lines(self._seen(query))

    async def read_line(self, producer: str, seq: int) -> StoredLine | None:
        """Return a line if it is seen."""
        line = await self._storage.read_line(producer, seq)
        return line if line is not None and self._principal.condition().matches(line.event) else None

    async def count_lines(self, query: LogQuery, by: GroupBy | None = None) -> list[LineCount]:
        """Count those lines that are seen."""
        return await self._storage.count_lines(self._seen(query), by)

    async def read_histogram(
        self,
        query: LogQuery,
        *,
        earliest_ns: int | None = None,
        latest_ns: int | None = None,
        max_buckets: int,
    ) -> Histogram | None:
        """Count those lines that are seen."""
        return await self._storage.read_histogram(
            self._seen(query), earliest_ns=earliest_ns, latest_ns=latest_ns, max_buckets=max_buckets
        )

    def _seen(self, query: LogQuery) -> LogQuery:
        return replace(query, where=AllOf((query.where, self._principal.condition())))

    async def read_arrivals(
        self,
        after: int,
        *,
        where: Condition | None = None,
        within: str | None = None,
        upto: int | None = None,
        limit: int = 1000,
    ) -> Arrivals:
        """Return those lines that are seen; how many others arrived is no secret."""
        seen = self._principal.condition()
        return await self._storage.read_arrivals(
            after,
            where=seen if where is None else AllOf((where, seen)),
            within=within,
            upto=upto,
            limit=limit,
        )

    async def last_arrival(self) -> int:
        """Return the last arrival, of whatever line."""
        return await self._storage.last_arrival()

    async def arrival_before(self, timestamp_ns: int) -> int:
        """Return the arrival before all lines that new, whosever they are."""
        return await self._storage.arrival_before(timestamp_ns)

    async def read_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return those runs that are seen."""
        return await self._storage.read_runs(self._principal.runs(query))

    async def read_tree(self, run_id: str) -> list[RunSummary]:
        """Return those runs of a tree that are seen; none if its root is not."""
        tree = [run for run in await self._storage.read_tree(run_id) if self._principal.sees_run(run)]
        return tree if any(run.id == run_id for run in tree) else []

    async def read_shares(self, run_id: str) -> list[ProducerShare]:
        """Return what was sent of a run that is seen; the counts are of all that was opened in it."""
        if not await self.read_runs(RunQuery(id=run_id, limit=1)):
            return []
        return await self._storage.read_shares(run_id)

    async def read_statistics(self) -> Statistics:
        """Refuse: how much others log is their business."""
        self._refuse()

    def writing(self) -> NoReturn:
        """Refuse."""
        self._refuse()

    async def read_size(self) -> Size:
        """Refuse."""
        self._refuse()

    async def prune(
        self,
        keep_from_ns: Sequence[int | None],  # noqa: ARG002 - refused, whatever it is
        *,
        after: Position | None = None,  # noqa: ARG002 - the same
        limit: int = 1000,  # noqa: ARG002 - the same
    ) -> Pruned:
        """Refuse."""
        self._refuse()

    async def forget_producers(self, silent_since_ns: int, *, limit: int = 1000) -> int:  # noqa: ARG002 - refused
        """Refuse."""
        self._refuse()

    async def vacuum(self) -> None:
        """Refuse."""
        self._refuse()

    async def read_keys(self) -> list[ApiKey]:
        """Refuse."""
        self._refuse()

    async def add_key(self, key: ApiKey) -> None:  # noqa: ARG002 - refused, whatever it is
        """Refuse."""
        self._refuse()

    async def remove_key(self, key_id: str) -> bool:  # noqa: ARG002 - refused, whatever it is
        """Refuse."""
        self._refuse()

    async def mark_keys_used(self, used_ns: Mapping[str, int]) -> None:  # noqa: ARG002 - refused, whatever it is
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise PermissionDeniedError(f"key {self._principal.name} is bound to {bound_to(self._principal)}")


def bound_to(principal: Principal) -> str:
    """Return what a principal is bound to, in words."""
    parts = []
    if principal.flow_run_id is not None:
        parts.append(f"flow run {principal.flow_run_id}")
    if principal.flow_name is not None:
        parts.append(f"flow {principal.flow_name!r}")
    return " and ".join(parts) or "nothing"


def check_batch(principal: Principal, batch: EventBatch) -> None:
    """
    Refuse lines that their sender may not see: it could forge another run's log.

    Raises:
        PermissionDeniedError: If there is one.
    """
    condition = principal.condition()
    for seq, event in batch.numbered():
        if not condition.matches(event):
            raise PermissionDeniedError(
                f"key {principal.name} is bound to {bound_to(principal)}, "
                f"and the line of seq {seq} belongs to something else"
            )
