"""
Number events, hold them within bounds, and decide what is a batch and when. No I/O, no clock, no threads.

`runlog.delivery.worker` adds encoded events, takes batches and gives them to a
transport. Time comes in as an argument, so that every rule here can be tested
by calling methods in order.

Invariants: the queue is one contiguous range of seqs, from ``first_seq`` to
``next_seq - 1``; what was dropped keeps its seqs, as a marker in its place.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runlog.records import DropMarker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

MAX_BATCH_EVENTS = 10_000
"""Most events in one batch: the server commits a batch in one transaction, and others wait for it."""

EVENT_OVERHEAD_BYTES = 80
"""What a queued event costs beyond its text: the bytes object's header and its place in the queue."""


@dataclass(slots=True)
class _Gap:
    """Dropped events that stand next to each other for one reason."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """
    A contiguous range of encoded events, with a marker where some are missing.

    ``events`` fill, in order, the seqs from ``first_seq`` that no marker covers.
    """

    first_seq: int
    events: tuple[bytes, ...]
    dropped: tuple[DropMarker, ...] = ()
    closing: bool = False
    """Whether this is the goodbye of its producer."""

    @property
    def count(self) -> int:
        """How many seqs the range has, dropped ones included."""
        return len(self.events) + sum(marker.count for marker in self.dropped)

    @property
    def last_seq(self) -> int:
        """The last seq of the range."""
        return self.first_seq + self.count - 1

    @property
    def event_bytes(self) -> int:
        """Bytes of all events."""
        return sum(map(len, self.events))

    @property
    def held_bytes(self) -> int:
        """What the events count for against the bounds of the queue."""
        return self.event_bytes + EVENT_OVERHEAD_BYTES * len(self.events)

    def in_order(self) -> Iterator[tuple[int, bytes | None, DropMarker | None]]:
        """Yield ``(seq, event, None)`` or ``(seq, None, marker)`` for all that the batch has, in order."""
        events = iter(self.events)
        markers = {marker.seq: marker for marker in self.dropped}
        seq, behind = self.first_seq, self.last_seq + 1
        while seq < behind:
            marker = markers.get(seq)
            if marker is None:
                yield seq, next(events), None
                seq += 1
            else:
                yield seq, None, marker
                seq += marker.count

    def split(self) -> tuple[Batch, Batch]:
        """
        Return the two halves of a batch that has more than one event.

        Markers stay where they are in the sequence.
        """
        if len(self.events) < 2:
            raise ValueError(f"a batch of {len(self.events)} events cannot be split")
        middle = len(self.events) // 2
        # The seq of the first event of the second half.
        at = self.first_seq + middle
        for marker in self.dropped:
            if marker.seq <= at:
                at += marker.count
        head = Batch(self.first_seq, self.events[:middle], tuple(m for m in self.dropped if m.seq < at))
        tail = Batch(at, self.events[middle:], tuple(m for m in self.dropped if m.seq >= at))
        return head, tail

    def without_events(self, reason: str) -> Batch:
        """Return a batch of the same range in which every event is marked as dropped."""
        if not self.events:
            return self
        missing = (seq for seq, event, _ in self.in_order() if event is not None)
        markers = sorted([*self.dropped, *_markers(missing, reason)], key=lambda marker: marker.seq)
        return Batch(self.first_seq, (), tuple(markers))

    def from_seq(self, seq: int) -> Batch:
        """Return what the batch has from *seq* on, at which an event or a marker begins."""
        rest = [(event, marker) for at, event, marker in self.in_order() if at >= seq]
        events = tuple(event for event, _ in rest if event is not None)
        return Batch(seq, events, tuple(marker for _, marker in rest if marker is not None), self.closing)

    def starting_at(self, seq: int, reason: str) -> Batch:
        """Return the batch with a marker in front, from *seq* up to its first seq."""
        marker = DropMarker(seq, self.first_seq - seq, reason)
        return replace(self, first_seq=seq, dropped=(marker, *self.dropped))


def _markers(seqs: Iterable[int], reason: str) -> list[DropMarker]:
    """One marker for each run of consecutive seqs."""
    runs = itertools.groupby(enumerate(seqs), key=lambda pair: pair[1] - pair[0])
    markers = []
    for _, group in runs:
        numbers = [seq for _, seq in group]
        markers.append(DropMarker(numbers[0], len(numbers), reason))
    return markers


class Batcher:
    """
    A queue of encoded events that knows its seqs, its size and when its next batch is due.

    Its methods are called under *lock*, but for `take` and `clean`, which one
    thread at a time calls without.

    Args:
        max_batch_bytes: Most encoded bytes in one batch; at least 1. One event that is larger goes alone.
        batch_interval: Longest time an event waits, in seconds; 0 sends at once.
        max_queue_bytes: Most bytes held, those in flight included; at least 1.
        first_seq: Seq of the first event that will be added.
        lock: Guards the queue; re-entrant.

    Raises:
        ValueError: If a limit is out of range.
    """

    def __init__(
        self,
        *,
        max_batch_bytes: int,
        batch_interval: float,
        max_queue_bytes: int,
        first_seq: int = 0,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        for name, value in (("max_batch_bytes", max_batch_bytes), ("max_queue_bytes", max_queue_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1 byte, got {value}")
        if batch_interval < 0:
            raise ValueError(f"batch_interval must be >= 0 s, got {batch_interval}")
        self._lock = lock or contextlib.nullcontext()
        self._max_batch_bytes = max_batch_bytes
        self._batch_interval = batch_interval
        self._max_queue_bytes = max_queue_bytes
        self._items: deque[bytes | _Gap] = deque()
        self._first_seq = first_seq
        self._next_seq = first_seq
        self._waiting_bytes = 0
        self._in_flight_bytes = 0
        self._held = 0
        self._oldest_at: float | None = None

    def __repr__(self) -> str:
        return (
            f"<Batcher: next seq {self._next_seq}, {self._held} events and "
            f"{self.held_bytes} of {self._max_queue_bytes} bytes>"
        )

    @property
    def next_seq(self) -> int:
        """The seq that the next event will get."""
        return self._next_seq

    @property
    def first_seq(self) -> int:
        """The first seq that waits; ``next_seq`` if none does."""
        return self._first_seq

    @property
    def held(self) -> int:
        """How many events are held: waiting and in flight, without those that were dropped."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes held: waiting and in flight."""
        return self._waiting_bytes + self._in_flight_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether an event of this encoded size fits; an empty queue takes any."""
        held = self.held_bytes
        return held == 0 or held + size_bytes + EVENT_OVERHEAD_BYTES <= self._max_queue_bytes

    def add(self, event: bytes, *, now: float) -> bool:
        """
        Queue one encoded event under the next seq, whether or not there is room.

        Args:
            event: One JSON object as UTF-8.
            now: Monotonic time, in seconds.

        Returns:
            Whether the answer of `next_due` became earlier, so that a sleeping sender must be woken.
        """
        self._items.append(event)
        self._held += 1
        self._next_seq += 1
        before = self._waiting_bytes
        self._waiting_bytes = after = before + len(event) + EVENT_OVERHEAD_BYTES
        if self._oldest_at is None:
            self._oldest_at = now
            return True
        return before < self._max_batch_bytes <= after

    def add_dropped(self, reason: str, *, now: float) -> bool:
        """Give the next seq to an event that is not kept. Returns as `add` does."""
        last = self._items[-1] if self._items else None
        if isinstance(last, _Gap) and last.reason == reason:
            last.count += 1
        else:
            self._items.append(_Gap(1, reason))
        self._next_seq += 1
        if self._oldest_at is None:
            self._oldest_at = now
            return True
        return False

    def drop_oldest(self, size_bytes: int, reason: str) -> int:
        """
        Drop waiting events, oldest first, until one of *size_bytes* fits or none is left.

        Events in flight stay: the server may have them already.

        Returns:
            How many were dropped.
        """
        gaps: list[_Gap] = []
        dropped = 0
        while self._items and not self.has_room(size_bytes):
            item = self._items.popleft()
            if isinstance(item, _Gap):
                gap = item
            else:
                gap = _Gap(1, reason)
                dropped += 1
                self._held -= 1
                self._waiting_bytes -= len(item) + EVENT_OVERHEAD_BYTES
            if gaps and gaps[-1].reason == gap.reason:
                gaps[-1].count += gap.count
            else:
                gaps.append(gap)
        self._items.extendleft(reversed(gaps))
        return dropped

    def next_due(self) -> float | None:
        """
        Return when the next batch is due, in monotonic seconds.

        ``-inf`` if one is full already, `None` if nothing waits.
        """
        if self._oldest_at is None:
            return None
        if self._waiting_bytes >= self._max_batch_bytes:
            return float("-inf")
        return self._oldest_at + self._batch_interval

    def wait_for_more(self) -> None:
        """Let what waits be due only when something is added to it."""
        self._oldest_at = None

    def take(self) -> Batch | None:
        """
        Remove and return, oldest first, what fits in one batch; `None` if nothing waits.

        The batch counts as in flight until `settle` is called. What is left
        behind has waited as long, so it is due as soon.
        """
        with self._lock:
            batch = self._next_batch()
            if batch is not None:
                moved = batch.held_bytes
                self._first_seq = batch.last_seq + 1
                self._waiting_bytes -= moved
                self._in_flight_bytes += moved
                if not self._items:
                    self._oldest_at = None
            return batch

    def _next_batch(self) -> Batch | None:
        events: list[bytes] = []
        dropped: list[DropMarker] = []
        size = 0
        seq = self._first_seq
        while self._items and len(events) < MAX_BATCH_EVENTS:
            item = self._items[0]
            if isinstance(item, _Gap):
                dropped.append(DropMarker(seq, item.count, item.reason))
                seq += item.count
            else:
                if events and size + len(item) > self._max_batch_bytes:
                    break
                events.append(item)
                size += len(item)
                seq += 1
            self._items.popleft()
        return Batch(self._first_seq, tuple(events), tuple(dropped)) if seq > self._first_seq else None

    def settle(self, events: int, held_bytes: int) -> None:
        """Let go of so many events, of so many bytes, that were taken."""
        self._in_flight_bytes -= held_bytes
        self._held -= events

    # What a queue on disk has to do, and one in memory has not.

    @property
    def drop_reason(self) -> str:
        """Why an event for which there is no room is dropped."""
        return "queue_full"

    @property
    def survives(self) -> bool:
        """Whether what is held outlives the process."""
        return False

    def acknowledged(self, seq: int) -> None:
        """Do nothing: what was taken is not held any more."""

    def clean(self) -> None:
        """Do nothing."""

    def unsynced(self) -> list[int]:
        """Return no file descriptors."""
        return []

    def save(self, now: float) -> None:
        """Do nothing."""

    def close(self, acked_seq: int) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing: what a fork inherits of memory is its own."""
