"""
What a process left behind in the spool, for another to send.

The process that writes a segment holds its lock. One that nobody holds was left
behind by a process that is gone: `adopt` takes it over, and `Backlog` gives out
its events under the identity that they had, so that the server drops what it
has already.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from runlog._locks import lock_file
from runlog.delivery.frames import decode_header
from runlog.delivery.producer import Producer
from runlog.delivery.segment_reader import DAMAGED, BatchBuilder, SegmentReader
from runlog.delivery.segments import SegmentName, open_private, read_at

if TYPE_CHECKING:
    from pathlib import Path

    from runlog.delivery.batching import Batch


class Backlog:
    """
    The segments that one dead process left, owned by this one until `close`.

    Not thread-safe.
    """

    def __init__(
        self, producer: str, segments: list[tuple[Path, int, int]], max_batch_bytes: int = 4_000_000
    ) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._segments = deque(segments)
        self._readers: dict[int, SegmentReader] = {}
        self.header: dict[str, Any] = {}
        self._next_seq = min(first for _, first, _ in segments)
        self._ends: dict[int, int] = {}
        for _, _, descriptor in segments:
            facts, offset = decode_header(read_at(descriptor, 0, 65_536))
            self.header = self.header or facts
            self._readers[descriptor] = SegmentReader(functools.partial(read_at, descriptor), offset)
            self._ends[descriptor] = os.fstat(descriptor).st_size
        self.producer = Producer(
            producer, self.header.get("pid", 0), json.dumps(self.header.get("resource", {})).encode()
        )
        self._last_seqs: deque[tuple[Path, int, int]] = deque()
        self._acked_seq = self._next_seq - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of segments that are not deleted yet."""
        return sum(self._ends.values())

    def take(self) -> Batch | None:
        """Return, oldest first, what fits in one batch; `None` if all was given out."""
        while self._segments:
            path, first_seq, descriptor = self._segments[0]
            builder = BatchBuilder(self._next_seq, self._max_batch_bytes)
            if first_seq > self._next_seq:
                builder.mark(first_seq - self._next_seq, DAMAGED)
            reader = self._readers[descriptor]
            reader.collect(builder, self._ends[descriptor])
            if reader.offset >= self._ends[descriptor]:
                self._segments.popleft()
                self._last_seqs.append((path, descriptor, builder.seq - 1))
            batch = builder.build()
            if batch is not None:
                self._next_seq = batch.last_seq + 1
                return batch
        # A process that was killed before its first frame was whole left nothing to acknowledge.
        self.acknowledged(self._acked_seq)
        return None

    def settle(self, events: int, held_bytes: int) -> None:
        """Do nothing: what is held is what its files hold."""

    def acknowledged(self, seq: int) -> None:
        """Delete the segments whose every event is acknowledged."""
        self._acked_seq = max(self._acked_seq, seq)
        while self._last_seqs and self._last_seqs[0][2] <= seq:
            path, descriptor, _ = self._last_seqs.popleft()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self._ends.pop(descriptor, None)
            os.close(descriptor)

    def close(self) -> None:
        """Give back what is left, for another process to adopt."""
        for _, _, descriptor in self._segments:
            os.close(descriptor)
        for _, descriptor, _ in self._last_seqs:
            os.close(descriptor)
        self._segments.clear()
        self._last_seqs.clear()
        self._ends.clear()


def adopt(directory: Path, max_batch_bytes: int = 4_000_000) -> list[Backlog]:
    """
    Take over the segments in *directory* that no living process owns.

    Each is adopted by one process, however many try. What cannot be opened is
    left alone: it is somebody else's, or gone. Raises nothing.
    """
    found: dict[str, list[tuple[Path, int, int]]] = {}
    shared = set()
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return []
    for path in paths:
        name = SegmentName.parse(path.name)
        if name is None:
            continue
        try:
            descriptor = open_private(path)
        except OSError:
            continue
        try:
            # Once locked, it must still be there: another adopter may have sent and deleted it meanwhile.
            is_free = lock_file(descriptor)
            ours = is_free and os.path.samestat(os.fstat(descriptor), path.stat())
        except OSError:
            ours = False
        else:
            if not is_free:
                shared.add(name.producer)
        if ours:
            found.setdefault(name.producer, []).append((path, name.first_seq, descriptor))
        else:
            os.close(descriptor)
    # Two adopters that began at once may each have a part. Whoever sent the later part first would have
    # to give the earlier one up for lost, so a producer's segments are taken as a whole or not at all.
    for producer in shared & found.keys():
        for _, _, descriptor in found.pop(producer):
            os.close(descriptor)
    return [Backlog(producer, segments, max_batch_bytes) for producer, segments in found.items()]
