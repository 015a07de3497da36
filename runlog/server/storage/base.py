"""
What a store of lines must do, whatever it is built on.

`runlog.server.ingest` appends batches, the routes read. Each implementation
passes ``tests/server/storage_contract.py``; its promises are:

- A batch is stored as a whole or not at all, and ``append`` returns after it is
  as durable as the store can make it.
- Each producer has a mark, the seq that it must send next, which moves in the
  same transaction as its lines: what lies below it was stored before and is
  not stored again.
- Whether a producer has said goodbye is as durable as its lines. A goodbye
  counts if it reaches the producer's mark; whatever moves the mark later takes
  it back.
- Runs are derived from the lines as they arrive. The order of arrival of
  different producers' batches makes no difference to them.
- Each line has an arrival, a number from 1 on that rises in the order of commits
  and is never given again: whoever has seen everything up to an arrival, and
  reads on from there, misses no line, however old its timestamp is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from runlog.exceptions import RunlogError
from runlog.records import DropMarker
from runlog.server.query import Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runlog.records import EventBatch, LogEvent
    from runlog.server.counting import GroupBy, Histogram, LineCount
    from runlog.server.keys import ApiKey
    from runlog.server.metrics import Durations
    from runlog.server.query import Condition, LogQuery
    from runlog.server.run_summary import Kind, RunSummary, State
    from runlog.server.storage.shares import ProducerShare

MAX_TREE_RUNS = 100_000
"""Most runs in one tree; a program that opens more in one flow run reads the rest by their own ids."""


class ProducerGapError(RunlogError):
    """
    A batch begins after the seq that its producer must send next.

    Args:
        producer: Who sent it.
        expected: The seq that must come next.
        got: The batch's first.
    """

    def __init__(self, producer: str, *, expected: int, got: int) -> None:
        self.producer = producer
        self.expected = expected
        self.got = got
        super().__init__(
            f"producer {producer} must go on with seq {expected}, got a batch that begins at {got}"
        )


class Appended(NamedTuple):
    """What became of a batch."""

    acked: int
    """Every seq of the producer up to this one is stored, now or before; -1 if none is."""
    new_from: int
    """The first seq of the batch that was stored by this call; ``acked + 1`` if none was."""
    first_arrival: int = 0
    """The arrival of the first line that was stored by this call, the others follow; 0 if none was."""
    producer_key: int = 0
    """See `Position.producer_key`; 0 if no line was stored by this call."""


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A line as it was stored."""

    producer: str
    producer_key: int
    """See `Position.producer_key`."""
    seq: int
    observed_ns: int
    """When the server took it, in nanoseconds since the epoch."""
    event: LogEvent

    @property
    def position(self) -> Position:
        """Its place in the order of all lines."""
        return Position(self.event.timestamp_ns, self.producer_key, self.seq)


class Arrivals(NamedTuple):
    """Some lines in the order in which they were committed."""

    lines: list[tuple[int, StoredLine]]
    """Each with its arrival, ascending."""
    upto: int
    """Whatever arrived up to here was looked at; also where no line was found."""


class RunPosition(NamedTuple):
    """A run's place in the order of all runs. Compares as the runs do."""

    started_ns: int
    id: str
    kind: str


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs, newest first. Every part that is given must hold."""

    kind: Kind | None = None
    states: tuple[State, ...] | None = None
    """One of these."""
    name_contains: str | None = None
    """Part of the run's name, without regard to case."""
    search: str | None = None
    """Part of a name of the run, its flow or its task, in any case; or the beginning of its id."""
    flow_name: str | None = None
    task_name: str | None = None
    since_ns: int | None = None
    """Runs that started then or later, in nanoseconds since the epoch."""
    until_ns: int | None = None
    """Runs that started then or earlier."""
    min_attempt: int | None = None
    """Runs of which there was at least this attempt: from 2 on, those that were tried again."""
    name: str | None = None
    """The run's name, exactly."""
    id: str | None = None
    id_prefix: str | None = None
    parent_id: str | None = None
    """The run in which they were opened."""
    top_level: bool = False
    """Only runs that were opened in no run that is known."""
    visible_flow_run: str | None = None
    """Only this flow run and its task runs. Set by `Principal.runs` alone, as is the next."""
    visible_flow: str | None = None
    """Only runs of the flow of this name."""
    after: RunPosition | None = None
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RunSet:
    """The runs of a tree, as few as their lines can be told by."""

    flow_run_ids: tuple[str, ...] = ()
    task_run_ids: tuple[str, ...] = ()
    """Task runs that are not already within one of the flow runs."""

    @classmethod
    def of(cls, runs: Iterable[tuple[str, str, str | None]]) -> RunSet:
        """
        Return the set for some runs.

        Args:
            runs: Each one's id, kind, and, of a task run, the id of its flow run.
        """
        known = list(runs)
        flows = {run_id for run_id, kind, _ in known if kind == "flow"}
        tasks = {run_id for run_id, kind, flow in known if kind == "task" and flow not in flows}
        return cls(tuple(sorted(flows)), tuple(sorted(tasks)))

    def matches(self, event: LogEvent) -> bool:
        """Return whether a line belongs to one of them."""
        return event.flow_run_id in self.flow_run_ids or event.task_run_id in self.task_run_ids


class Pruned(NamedTuple):
    """What a step of `LogStorage.prune` took away."""

    lines: int
    runs: int
    after: Position | None
    """Where to go on; `None` if there is nothing more to look at."""


class Writing(NamedTuple):
    """How writing goes."""

    waiting: int
    """Batches that wait."""
    commits: Durations
    """How long transactions took; raised by another thread."""


class Size(NamedTuple):
    """How much space a store takes."""

    used_bytes: int
    """For lines and what belongs to them."""
    file_bytes: int
    """On the disk, with what is free for lines to come."""


class Statistics(NamedTuple):
    """How much is stored."""

    runs: int
    lines: int


class LogStorage(ABC):
    """
    A store of lines and of the runs that they tell about.

    Methods may be called by many tasks of one event loop at the same time.
    `open` comes first and `close` last, each once.

    Raises:
        StorageError: From every method, if the store cannot be used.
        QueryTimeoutError: From those that read, after ``max_query_s``.
    """

    location: str
    """Where the lines are, for people; without a password."""
    schema_version: int
    max_query_s: float = 10.0
    """Seconds after which a question is given up, so that it does not keep others waiting."""

    def may_have_keys(self) -> bool:
        """Return whether there could be an API key in it, which is known for sure once it is open."""
        return True

    epoch: str
    """Known once it is open. Tells this store's arrivals from those of every other store."""

    @abstractmethod
    async def open(self) -> None:
        """
        Make ready, and bring an older store to the present schema.

        Raises:
            SchemaVersionError: If a newer runlog wrote it.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and release everything. A second call does nothing."""

    @abstractmethod
    async def append(self, batch: EventBatch, *, observed_ns: int) -> Appended:
        """
        Store the part of a batch that lies above its producer's mark.

        Args:
            batch: Valid, see `runlog.records.decode_batch`; not changed afterwards.
            observed_ns: The time now, in nanoseconds since the epoch.

        Raises:
            ProducerGapError: If it begins above the mark.
            StorageFullError: If there is no room.
        """

    @abstractmethod
    async def read_lines(self, query: LogQuery) -> list[StoredLine]:
        """Return the lines that a query asks for, in its order."""

    @abstractmethod
    async def read_line(self, producer: str, seq: int) -> StoredLine | None:
        """Return one line, `None` if it is not stored."""

    @abstractmethod
    async def count_lines(self, query: LogQuery, by: GroupBy | None = None) -> list[LineCount]:
        """
        Return how many lines of each level a query asks for, in no order.

        Args:
            query: Its order and its page are ignored.
            by: Count for each of these apart.
        """

    @abstractmethod
    async def read_histogram(
        self,
        query: LogQuery,
        *,
        earliest_ns: int | None = None,
        latest_ns: int | None = None,
        max_buckets: int,
    ) -> Histogram | None:
        """
        Return how many lines of each level there are in each step of time.

        Args:
            query: Its order and its page are ignored.
            earliest_ns: Where to begin; by default with the first line.
            latest_ns: Where to end; by default with the last line.
            max_buckets: Most steps, at least 7; see `runlog.server.counting.choose_width`.

        Returns:
            `None` if there is no line to begin or to end with.
        """

    @abstractmethod
    async def read_arrivals(
        self,
        after: int,
        *,
        where: Condition | None = None,
        within: str | None = None,
        upto: int | None = None,
        limit: int = 1000,
    ) -> Arrivals:
        """
        Return lines in the order of their arrival.

        A call looks at a bounded number of lines, so that it may return fewer than
        *limit*, or none, although there are more behind `Arrivals.upto`.

        Args:
            after: Only lines that arrived after this one; it need not be stored any more.
            where: Only lines that pass.
            within: Only lines of the run with this id, and of all runs that are
                known, at the time of the call, to have been opened in it.
            upto: Only lines that arrived up to here; `None` for the last one.
            limit: Most lines; at least 1.
        """

    @abstractmethod
    async def last_arrival(self) -> int:
        """Return the arrival of the newest line, 0 if there never was one."""

    @abstractmethod
    async def arrival_before(self, timestamp_ns: int) -> int:
        """
        Return an arrival after which every line is found that has this timestamp or a later one.

        The greatest such one; lines behind it may be older. The last one if there is no such line.
        """

    @abstractmethod
    async def read_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return the runs that a query asks for, newest first."""

    @abstractmethod
    async def read_tree(self, run_id: str) -> list[RunSummary]:
        """
        Return a run and all that were opened in it, at any depth, oldest first.

        Empty if the run is unknown. A store may stop at `MAX_TREE_RUNS`.
        """

    @abstractmethod
    async def read_shares(self, run_id: str) -> list[ProducerShare]:
        """Return what each producer sent of a run and of all that were opened in it, sorted by producer."""

    @abstractmethod
    async def read_statistics(self) -> Statistics:
        """Count."""

    def writing(self) -> Writing | None:
        """Return how writing goes; `None` if nothing waits for it."""
        return None

    @abstractmethod
    async def read_size(self) -> Size:
        """Measure."""

    @abstractmethod
    async def prune(
        self, keep_from_ns: Sequence[int | None], *, after: Position | None = None, limit: int = 1000
    ) -> Pruned:
        """
        Take some old lines away, and runs that have no lines left.

        Looks at a bounded number of lines, from the oldest on, so that a call takes
        some ten milliseconds. The newest line stays in any case. What is taken away
        is not missing in a receipt.

        Args:
            keep_from_ns: For each of `runlog.server.run_summary.LEVELS`, the time
                before which lines go, if timestamp and arrival are both before it; in
                nanoseconds since the epoch. `None`: all of them stay.
            after: Where the call before has stopped.
            limit: Most lines to look at.
        """

    @abstractmethod
    async def forget_producers(self, silent_since_ns: int, *, limit: int = 1000) -> int:
        """
        Forget producers that said goodbye, of which no line is stored any more; return how many.

        Args:
            silent_since_ns: Only those that sent nothing since; in nanoseconds since
                the epoch. What such a one sends again would be stored again.
            limit: Most producers.
        """

    @abstractmethod
    async def vacuum(self) -> None:
        """
        Give space that is free back to the disk. Batches wait meanwhile.

        Raises:
            StorageFullError: If the disk has not the room that this needs.
        """

    @abstractmethod
    async def read_keys(self) -> list[ApiKey]:
        """Return all API keys, in no order."""

    @abstractmethod
    async def add_key(self, key: ApiKey) -> None:
        """Keep an API key; one with the same id is replaced."""

    @abstractmethod
    async def remove_key(self, key_id: str) -> bool:
        """Forget an API key; `False` if there was none with this id."""

    @abstractmethod
    async def mark_keys_used(self, used_ns: Mapping[str, int]) -> None:
        """Note when keys, by their ids, were last used, in nanoseconds since the epoch."""


def clip_drops(batch: EventBatch, mark: int) -> list[DropMarker]:
    """Return a batch's drop markers without what lies below the mark, which was told before."""
    return [
        DropMarker(max(marker.seq, mark), marker.seq + marker.count - max(marker.seq, mark), marker.reason)
        for marker in batch.dropped
        if marker.seq + marker.count > mark
    ]


def says_goodbye(batch: EventBatch, mark: int) -> bool:
    """Return whether a batch is its producer's goodbye, and not one sent again that later lines took back."""
    return batch.closing and batch.last_seq + 1 >= mark


def run_position(run: RunSummary) -> RunPosition:
    """Return a run's place in the order of runs."""
    return RunPosition(run.started_ns, run.id, run.kind)
