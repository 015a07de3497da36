"""
The queue of one process on disk: what `emit` took survives the process.

`SpoolQueue` has the methods of `runlog.delivery.batching.Batcher`, so that
`runlog.delivery.worker` drives either. An event goes to a segment file before
`add` returns, and batches are read back from there: memory holds no events. A
segment is deleted once the server has acknowledged all of it. What is not, when
the process ends, is a `runlog.delivery.backlog.Backlog` for the next one.

Where the disk takes nothing, events are held in memory as they are without a
spool, and are written as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from runlog.delivery.batching import Batch, Batcher
from runlog.delivery.frames import DROPPED, EVENT
from runlog.delivery.segment_reader import DAMAGED, BatchBuilder, SegmentReader
from runlog.delivery.segments import FIRST_ROOM, OPEN_FLAGS, SegmentName, SegmentWriter
from runlog.delivery.spool import directory_bytes, make_private_directory
from runlog.records import DropMarker

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from runlog.delivery.producer import Producer

SEGMENT_BYTES = 8 * 1024 * 1024
"""A segment that has grown past this is followed by another: space comes back in such steps."""

MORE_ROOM = 1024 * 1024
"""Bytes that every segment of a process but its first sets aside at first."""

FRAME_OVERHEAD_BYTES = 32
"""What an event takes on disk beyond its text, rounded up."""

MADE_PARENTS = 3
"""How many directories above a spool may have been made with it: ``RUNLOG_HOME/spool``, and where that is."""

RETRY_DISK_SECONDS = 5.0
"""Seconds between two tries to write to a disk that took nothing."""


class _Segment:
    """A segment of this process."""

    def __init__(self, writer: SegmentWriter, first_seq: int) -> None:
        self.writer = writer
        self.start = writer.size
        """Where its frames begin."""
        self.reader = SegmentReader(writer.read, writer.size)
        self.next_seq = first_seq
        self.is_usable = True
        self.is_synced = True

    @property
    def is_read(self) -> bool:
        return self.reader.offset >= self.writer.size


def _marker_payload(marker: DropMarker) -> bytes:
    return json.dumps({"count": marker.count, "reason": marker.reason}).encode()


class SpoolQueue:
    """
    A queue of encoded events on disk, in memory where the disk takes nothing.

    The methods that `runlog.delivery.batching.Batcher` has do the same here,
    and are called in the same way: under *lock*, but for `take` and `clean`.

    Args:
        directory: Where segments go; made with mode 0700 if it is missing.
        producer: Whose events they are.
        max_batch_bytes: Most encoded bytes in one batch.
        batch_interval: Longest time an event waits, in seconds.
        max_spool_bytes: Most bytes of segments, those of other processes included.
        max_queue_bytes: Most bytes held in memory while the disk takes nothing.
        report: Gets a kind and one line for people when the disk fails.
        lock: Guards the queue; re-entrant.
    """

    def __init__(
        self,
        directory: Path,
        producer: Producer,
        *,
        max_batch_bytes: int,
        batch_interval: float,
        max_spool_bytes: int,
        max_queue_bytes: int,
        report: Callable[[str, str], None],
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._lock = lock or contextlib.nullcontext()
        self._directory = directory
        self._producer = producer
        self._header = {"pid": producer.pid, "resource": json.loads(producer.resource)}
        self._max_batch_bytes = max_batch_bytes
        self._batch_interval = batch_interval
        self._max_spool_bytes = max_spool_bytes
        self._max_queue_bytes = max_queue_bytes
        self._report = report
        self._segments: deque[_Segment] = deque()
        # Acknowledged as a whole, and to be deleted.
        self._done: deque[_Segment] = deque()
        self._is_entry_synced = True
        self._own_bytes = 0
        self._others_bytes = 0
        self._first_seq = 0
        self._next_seq = 0
        self._held = 0
        self._waiting_bytes = 0
        self._oldest_at: float | None = None
        # What was dropped for want of room since the last event, as (reason, count).
        self._gap: tuple[str, int] | None = None
        # What was dropped from the front, segment and all, and is not told yet.
        self._lost: deque[DropMarker] = deque()
        self._memory: Batcher | None = None
        # What was taken from memory, is not acknowledged, and is not on disk either.
        self._flying: Batch | None = None
        self._disk_due = 0.0

    def __repr__(self) -> str:
        where = "memory" if self._memory is not None else str(self._directory)
        return f"<SpoolQueue in {where}: next seq {self._next_seq}, {self._held} events>"

    # --- what it holds ---

    @property
    def next_seq(self) -> int:
        """The seq that the next event will get."""
        return self._next_seq

    @property
    def first_seq(self) -> int:
        """The first seq that waits; ``next_seq`` if none does."""
        return self._lost[0].seq if self._lost else self._first_seq

    @property
    def held(self) -> int:
        """How many events are held: waiting and in flight."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes on disk and in memory; a segment counts until it is deleted."""
        return self._own_bytes + (self._memory.held_bytes if self._memory is not None else 0)

    @property
    def is_in_memory(self) -> bool:
        """Whether the disk takes nothing at present."""
        return self._memory is not None

    @property
    def drop_reason(self) -> str:
        """Why an event for which there is no room is dropped."""
        return "spool_full" if self._memory is None else "queue_full"

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether an event of this encoded size fits; an empty queue takes any."""
        if self._memory is not None:
            return self._memory.has_room(size_bytes)
        used = self._own_bytes + self._others_bytes
        return self._held == 0 or used + size_bytes + FRAME_OVERHEAD_BYTES <= self._max_spool_bytes

    # --- taking in ---

    def add(self, event: bytes, *, now: float) -> bool:
        """Write one event under the next seq. Returns whether a sleeping sender must be woken."""
        if self._memory is not None and now >= self._disk_due:
            self._leave_memory(now)
        if self._memory is None:
            try:
                if self._gap is not None:
                    self._write_gap()
                self._write(self._next_seq, EVENT, event)
            except OSError as error:
                self._enter_memory(error, now)
        if self._memory is not None:
            self._memory.add(event, now=now)
        before = self._waiting_bytes
        self._waiting_bytes = after = before + len(event)
        self._held += 1
        self._next_seq += 1
        if self._oldest_at is None:
            self._oldest_at = now
            return True
        return before < self._max_batch_bytes <= after

    def add_dropped(self, reason: str, *, now: float) -> bool:
        """Give the next seq to an event that is not kept. Returns as `add` does."""
        if self._memory is None and self._gap is not None and self._gap[0] != reason:
            try:
                self._write_gap()
            except OSError as error:
                self._enter_memory(error, now)
        if self._memory is not None:
            self._memory.add_dropped(reason, now=now)
        else:
            self._gap = (reason, self._gap[1] + 1 if self._gap else 1)
        self._next_seq += 1
        return self._starts_waiting(now)

    def _starts_waiting(self, now: float) -> bool:
        if self._oldest_at is None:
            self._oldest_at = now
            return True
        return False

    def _write_gap(self) -> None:
        if self._gap is not None:
            reason, count = self._gap
            marker = DropMarker(self._next_seq - count, count, reason)
            self._write(marker.seq, DROPPED, _marker_payload(marker), count)
            self._gap = None

    def _write(self, seq: int, kind: int, payload: bytes, count: int = 1) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or not segment.is_usable or segment.writer.size >= SEGMENT_BYTES:
            segment = self._start_segment(seq)
        writer = segment.writer
        before = writer.size
        try:
            writer.append(seq, kind, payload)
        except OSError:
            segment.is_usable = False  # a file that failed once is not trusted with more
            raise
        self._own_bytes += writer.size - before
        segment.next_seq = seq + count
        segment.is_synced = False

    def _start_segment(self, first_seq: int) -> _Segment:
        make_private_directory(self._directory)
        if self._segments:
            self._segments[-1].writer.finish()
        writer = SegmentWriter(
            self._directory,
            SegmentName(self._producer.id, first_seq),
            self._header,
            room=MORE_ROOM if self._segments else FIRST_ROOM,
        )
        self._own_bytes += writer.size
        self._others_bytes = directory_bytes(self._directory, besides=self._producer.id)
        self._is_entry_synced = False
        segment = _Segment(writer, first_seq)
        self._segments.append(segment)
        return segment

    # --- a disk that takes nothing ---

    def _enter_memory(self, error: OSError, now: float) -> None:
        self._disk_due = now + RETRY_DISK_SECONDS
        reason, count = self._gap or ("", 0)
        self._gap = None
        self._memory = self._new_memory(self._next_seq - count)
        for _ in range(count):
            self._memory.add_dropped(reason, now=now)
        self._report(
            "disk",
            f"the spool {self._directory} cannot be written ({error.strerror or error}): lines are kept in "
            f"memory, up to {self._max_queue_bytes} bytes, and would be lost with the process",
        )

    def _new_memory(self, first_seq: int) -> Batcher:
        return Batcher(
            max_batch_bytes=self._max_batch_bytes,
            batch_interval=self._batch_interval,
            max_queue_bytes=self._max_queue_bytes,
            first_seq=first_seq,
        )

    def save(self, now: float) -> None:
        """Write what memory holds to disk, if the disk takes it."""
        if self._memory is not None:
            self._leave_memory(now)

    def _leave_memory(self, now: float) -> None:
        """Write what memory holds to disk, if the disk takes it; else keep what it did not take."""
        memory, self._memory = self._memory, None
        assert memory is not None, "called where it is"
        failed = False
        flying, self._flying = self._flying, None
        rest = self._new_memory(self._next_seq)
        for batch in filter(None, chain([flying], iter(memory.take, None))):
            for seq, event, marker in batch.in_order():
                if not failed:
                    try:
                        if event is not None:
                            self._write(seq, EVENT, event)
                        elif marker is not None:
                            self._write(seq, DROPPED, _marker_payload(marker), marker.count)
                        continue
                    except OSError:
                        failed = True
                        if batch is not flying:
                            rest = self._new_memory(seq)
                if batch is flying:
                    self._flying = batch.from_seq(seq)
                    rest = self._new_memory(batch.last_seq + 1)
                    break
                if event is not None:
                    rest.add(event, now=now)
                elif marker is not None:
                    for _ in range(marker.count):
                        rest.add_dropped(marker.reason, now=now)
        if failed:
            self._memory = rest
            self._disk_due = now + RETRY_DISK_SECONDS

    # --- giving out ---

    def drop_oldest(self, size_bytes: int, reason: str) -> int:
        """Drop waiting events, oldest first and a segment at a time, until one of *size_bytes* fits."""
        dropped = 0
        if self._memory is not None:
            dropped = self._memory.drop_oldest(size_bytes, reason)
        else:
            while len(self._segments) > 1 and not self.has_room(size_bytes):
                segment = self._segments.popleft()
                if segment.next_seq > self._first_seq:
                    left = BatchBuilder(self._first_seq, 2**62)
                    # Not with the segment's own reader: `take` may be in the middle of it.
                    SegmentReader(segment.writer.read, segment.start).collect(left, segment.writer.size)
                    dropped += len(left.events)
                    self._waiting_bytes -= left.size
                    self._lost.append(DropMarker(self._first_seq, segment.next_seq - self._first_seq, reason))
                    self._first_seq = segment.next_seq
                self._remove(segment)
        self._held -= dropped
        return dropped

    def next_due(self) -> float | None:
        """Return when the next batch is due, in monotonic seconds; see `Batcher.next_due`."""
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
        Return, oldest first, what fits in one batch; `None` if nothing waits. It stays on disk.

        Takes the lock for a moment at the start and at the end, and reads in
        between: one thread at a time calls it, and others go on adding.
        """
        with self._lock:
            builder = BatchBuilder(self.first_seq, self._max_batch_bytes)
            lost = tuple(self._lost)
            self._lost.clear()
            for marker in lost:
                builder.mark(marker.count, marker.reason)
            begun_at = self._first_seq
            segment = next((segment for segment in self._segments if not segment.is_read), None)
            end = segment.writer.size if segment is not None else 0
            if segment is None and self._gap is not None and self._memory is None:
                reason, count = self._gap
                self._gap = None
                builder.mark(count, reason)
        if segment is not None:
            segment.reader.collect(builder, end)
        with self._lock:
            if self._first_seq != begun_at:  # what was read has been dropped meanwhile
                self._lost.extendleft(reversed(lost))
                return self.take()
            if segment is not None and segment.is_read and builder.seq < segment.next_seq:
                builder.mark(segment.next_seq - builder.seq, DAMAGED)
            batch = builder.build()
            if batch is None and self._memory is not None:
                batch = self._memory.take()
                if batch is not None:  # one batch is in flight at most
                    self._memory.settle(len(batch.events), batch.held_bytes)
                    self._flying = batch
            if batch is not None:
                self._first_seq = batch.last_seq + 1
                self._waiting_bytes -= batch.event_bytes
            if self._first_seq == self._next_seq:
                self._oldest_at = None
            return batch

    def settle(self, events: int, held_bytes: int) -> None:  # noqa: ARG002 - bytes are those of segments
        """Let go of so many events that were taken; their bytes go with their segment."""
        self._held -= events

    def acknowledged(self, seq: int) -> None:
        """Let `clean` delete the segments of which all is acknowledged, but for the one that is written."""
        if self._flying is not None and self._flying.last_seq <= seq:
            self._flying = None
        while len(self._segments) > 1 and self._segments[0].next_seq - 1 <= seq:
            self._remove(self._segments.popleft())

    def _remove(self, segment: _Segment) -> None:
        self._own_bytes -= segment.writer.size
        self._done.append(segment)

    def clean(self) -> None:
        """Delete what is acknowledged. Needs no lock; one thread at a time calls it."""
        while self._done:
            self._done.popleft().writer.remove()

    @property
    def survives(self) -> bool:
        """Whether what is held outlives the process."""
        return self._memory is None

    def unsynced(self) -> list[int]:
        """Return descriptors, the caller's to sync and close, of what may not survive a power cut yet."""
        descriptors = []
        for segment in self._segments:
            if not segment.is_synced:
                with contextlib.suppress(OSError):  # too many open files: the next time, then
                    descriptors.append(segment.writer.duplicate())
                    segment.is_synced = True
        if not self._is_entry_synced and hasattr(os, "O_DIRECTORY"):
            # A file survives a power cut only if its name does, and those of the directories that were made.
            for directory in (self._directory, *self._directory.parents[:MADE_PARENTS]):
                with contextlib.suppress(OSError):
                    descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS))
                    self._is_entry_synced = True
        return descriptors

    def close(self, acked_seq: int) -> None:
        """Delete what is acknowledged and leave the rest to be adopted; a later event starts anew."""
        self.acknowledged(acked_seq)
        if self._segments and self._segments[0].next_seq - 1 <= acked_seq and not self._gap:
            self._remove(self._segments.popleft())
        self.clean()
        for segment in self._segments:
            segment.writer.close()
        self._segments.clear()

    def abandon(self) -> None:
        """Let go of the files that a fork inherited; they are the parent's, and stay as they are."""
        for segment in (*self._segments, *self._done):
            segment.writer.abandon()
        self._segments.clear()
        self._done.clear()
