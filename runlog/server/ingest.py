"""
The one way in: every line that is stored passes here.

Batches of runlog's own producers arrive numbered. Lines from Prefect's clients
carry no number, so the server numbers them under a producer of its own, one for
each time it is started. `Ingest` returns once the lines are committed; whatever
else is to hear of new lines hears of them from here.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from runlog.exceptions import QueryError
from runlog.records import EventBatch, LogEvent, new_producer_id
from runlog.server.live import Tail
from runlog.server.metrics import IngestCounts
from runlog.server.storage.base import clip_drops

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.server.storage.base import Appended, LogStorage

MAX_OWN_BATCH = 10_000
"""Lines of Prefect's clients that are stored together, from as many requests as are waiting."""

INT32 = range(-(2**31), 2**31)
INT64 = range(-(2**63), 2**63)


class Ingest:
    """
    Puts lines into a storage.

    For the tasks of one event loop.

    Args:
        storage: An open one.
        tail: Is told of each line that was stored; by default a new one.
        clock: The time in nanoseconds since the epoch.
    """

    def __init__(
        self, storage: LogStorage, tail: Tail | None = None, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.tail = tail or Tail()
        """What followers read along."""
        self.counts = IngestCounts()
        """For `runlog.server.metrics`."""
        self._storage = storage
        self._clock = clock
        self._producer = new_producer_id()
        self._next_seq = 0
        self._waiting: list[tuple[list[LogEvent], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Task[Appended]] = set()

    async def take_batch(self, batch: EventBatch) -> Appended:
        """
        Store a producer's batch.

        Args:
            batch: As `runlog.records.decode_batch` returns it.

        Raises:
            QueryError: If a number in it is beyond what can be stored.
            ProducerGapError: If it does not go on where the producer stopped.
            StorageError: If it cannot be stored.
        """
        check_ranges(batch)
        # A batch whose sender has left is stored all the same, and the tail must hear of it.
        storing = asyncio.create_task(self._store(batch), name="runlog-ingest")
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        return await asyncio.shield(storing)

    async def _store(self, batch: EventBatch) -> Appended:
        observed_ns = self._clock()
        appended = await self._storage.append(batch, observed_ns=observed_ns)
        self.tail.feed(batch, appended, observed_ns)
        self._count(batch, appended)
        return appended

    def _count(self, batch: EventBatch, appended: Appended) -> None:
        counts = self.counts
        counts.batches += 1
        old = 0
        if appended.new_from > batch.first_seq:
            old = sum(seq < appended.new_from for seq, _ in batch.numbered())
        counts.lines += len(batch.events) - old
        counts.duplicates += old
        counts.dropped += sum(marker.count for marker in clip_drops(batch, appended.new_from))

    async def take_events(self, events: list[LogEvent]) -> None:
        """
        Store lines that have no producer.

        Requests that come while others are being stored are stored together.

        Raises:
            StorageError: If they cannot be stored; then none is.
        """
        if not events:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, done))
        if self._task is None:
            self._task = asyncio.create_task(self._store_waiting(), name="runlog-ingest")
        await done

    async def close(self) -> None:
        """Wait until what was taken is stored."""
        if self._task is not None:
            await self._task
        if self._storing:
            await asyncio.wait(self._storing)

    async def _store_waiting(self) -> None:
        try:
            while self._waiting:
                taken, events = self._next_events()
                batch = EventBatch(producer=self._producer, first_seq=self._next_seq, events=events)
                try:
                    appended = await self._store(batch)
                except Exception as error:
                    # Whether the lines are in cannot be known; a number is never given to two lines.
                    self._producer, self._next_seq = new_producer_id(), 0
                    _finish(taken, error)
                else:
                    self._next_seq = appended.acked + 1
                    _finish(taken, None)
        finally:
            self._task = None

    def _next_events(self) -> tuple[list[asyncio.Future[None]], list[LogEvent]]:
        taken: list[asyncio.Future[None]] = []
        events: list[LogEvent] = []
        while self._waiting and len(events) < MAX_OWN_BATCH:
            some, done = self._waiting.pop(0)
            taken.append(done)
            events += some
        return taken, events


def _finish(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():  # its request was cancelled
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def check_ranges(batch: EventBatch) -> None:
    """
    Refuse numbers that JSON can carry and a database cannot.

    Raises:
        QueryError: With one line that says where.
    """
    for seq, event in batch.numbered():
        if event.timestamp_ns not in INT64:
            raise _out_of_range(seq, "timestamp_ns", "64")
        if event.level not in INT32:
            raise _out_of_range(seq, "level", "32")
        if event.attempt is not None and event.attempt not in INT32:
            raise _out_of_range(seq, "attempt", "32")
        if event.truncated_bytes not in INT64:
            raise _out_of_range(seq, "truncated_bytes", "64")


def _out_of_range(seq: int, name: str, bits: str) -> QueryError:
    return QueryError(f"not a batch of events: {name} of seq {seq} needs more than {bits} bits")
