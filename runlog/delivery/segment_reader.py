"""
From the frames of a segment to batches.

`runlog.delivery.spool_queue` reads so what this process wrote, and
`runlog.delivery.backlog` what others left behind.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from runlog.delivery.batching import MAX_BATCH_EVENTS, Batch
from runlog.delivery.frames import EVENT, read_frames
from runlog.records import DropMarker

if TYPE_CHECKING:
    from collections.abc import Callable

DAMAGED = "spool_damaged"
"""Reason of a marker where a segment could not be read."""


class SegmentReader:
    """Reads a segment from front to back, in batches."""

    def __init__(self, read: Callable[[int, int], bytes], offset: int) -> None:
        self._read = read
        self.offset = offset

    def collect(self, batch: BatchBuilder, end: int) -> None:
        """Put frames into *batch* until it is full or *end* is reached."""
        for frame, behind in read_frames(self._read, self.offset, end):
            if frame.seq < batch.seq:  # given out before
                self.offset = behind
                continue
            if not batch.add(frame.seq, frame.kind, frame.payload):
                return
            self.offset = behind
        self.offset = end


class BatchBuilder:
    """Frames on their way into a batch; a hole in their seqs becomes a marker."""

    def __init__(self, seq: int, max_bytes: int) -> None:
        self.first_seq = self.seq = seq
        self.events: list[bytes] = []
        self.dropped: list[DropMarker] = []
        self.size = 0
        self._max_bytes = max_bytes

    @property
    def is_empty(self) -> bool:
        """Whether it covers no seq."""
        return self.seq == self.first_seq

    def add(self, seq: int, kind: int, payload: bytes) -> bool:
        """Take one frame; `False` if the batch is full without it."""
        if self.events and (
            self.size + len(payload) > self._max_bytes or len(self.events) >= MAX_BATCH_EVENTS
        ):
            return False
        if seq > self.seq:
            self.mark(seq - self.seq, DAMAGED)
        if kind == EVENT:
            self.events.append(payload)
            self.size += len(payload)
            self.seq += 1
        else:
            facts = _read_marker(payload)
            self.mark(facts[0], facts[1])
        return True

    def mark(self, count: int, reason: str) -> None:
        """Note that so many seqs from here on are missing."""
        self.dropped.append(DropMarker(self.seq, count, reason))
        self.seq += count

    def build(self) -> Batch | None:
        """Return the batch, `None` if it covers no seq."""
        return None if self.is_empty else Batch(self.first_seq, tuple(self.events), tuple(self.dropped))


def _read_marker(payload: bytes) -> tuple[int, str]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(payload)
        return max(1, int(facts["count"])), str(facts["reason"])
    return 1, DAMAGED
