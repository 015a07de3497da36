"""
The queue of one process on disk: what `emit` took survives the process.

`SpoolQueue` has the methods of `runlog.delivery.batching.Batcher`, so that
`runlog.delivery.worker` drives either. An event goes to a segment file before
`add` returns, and batches are read back from there: memory holds no events. A
segment is deleted once the server has acknowledged all of it.

The process that writes a segment holds its lock. One that nobody holds was left
behind by a process that is gone: `adopt` takes it over, and `Backlog` gives out
its events under the identity that they had, so that the server drops what it
has already.

Where the disk takes nothing, events are held in memory as they are without a
spool, and are written as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import stat
from collections import deque
from typing import TYPE_CHECKING, Any

from runlog._locks import lock_file
from runlog.delivery.batching import MAX_BATCH_EVENTS, Batch, Batcher
from runlog.delivery.producer import Producer
from runlog.delivery.segments import (
    DROPPED,
    EVENT,
    OPEN_FLAGS,
    SegmentName,
    SegmentWriter,
    decode_header,
    open_private,
    read_at,
    read_frames,
)
from runlog.records import DropMarker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEGMENT_BYTES = 8 * 1024 * 1024
"""A segment that has grown past this is followed by another: space comes back in such steps."""

FRAME_OVERHEAD_BYTES = 32
"""What an event takes on disk beyond its text, rounded up."""

RETRY_DISK_SECONDS = 5.0
"""Seconds between two tries to write to a disk that took nothing."""

DAMAGED = "spool_damaged"
"""Reason of a marker where a segment could not be read."""


class _Reader:
    """Reads a segment from front to back, in batches."""

    def __init__(self, read: Callable[[int, int], bytes], offset: int) -> None:
        self._read = read
        self.offset = offset

    def collect(self, batch: _BatchBuilder, end: int) -> None:
        """Put frames into *batch* until it is full or *end* is reached."""
        for frame, behind in read_frames(self._read, self.offset, end):
            if frame.seq < batch.seq:  # given out before
                self.offset = behind
                continue
            if not batch.add(frame.seq, frame.kind, frame.payload):
                return
            self.offset = behind
        self.offset = end


class _BatchBuilder:
    """Frames on their way into a batch; a hole in their seqs becomes a marker."""

    def __init__(self, seq: int, max_bytes: int) -> None:
        self.first_seq = self.seq = seq
        self.events: list[bytes] = []
        self.dropped: list[DropMarker] = []
        self.size = 0
        self._max_bytes = max_bytes

    @property
    def is_empty(self) -> bool:
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
        self.dropped.append(DropMarker(self.seq, count, reason))
        self.seq += count

    def build(self) -> Batch | None:
        return None if self.is_empty else Batch(self.first_seq, tuple(self.events), tuple(self.dropped))


def _read_marker(payload: bytes) -> tuple[int, str]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(payload)
        return max(1, int(facts["count"])), str(facts["reason"])
    return 1, DAMAGED


class _Segment:
    """A segment of this process."""

    def __init__(self, writer: SegmentWriter, first_seq: int) -> None:
        self.writer = writer
        self.reader = _Reader(writer.read, writer.size)
        self.next_seq = first_seq
        self.is_usable = True
        self.is_synced = True

    @property
    def is_read(self) -> bool:
        return self.reader.offset >= self.writer.size


class SpoolQueue:
    """
    A queue of encoded events on disk, in memory where the disk takes nothing.

    Not thread-safe: the caller holds one lock around each call. The methods
    that `runlog.delivery.batching.Batcher` has do the same here.

    Args:
        directory: Where segments go; made with mode 0700 if it is missing.
        producer: Whose events they are.
        max_batch_bytes: Most encoded bytes in one batch.
        batch_interval: Longest time an event waits, in seconds.
        max_spool_bytes: Most bytes of segments, those of other processes included.
        max_queue_bytes: Most bytes held in memory while the disk takes nothing.
        report: Gets a kind and one line for people when the disk fails.
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
    ) -> None:
        self._directory = directory
        self._producer = producer
        self._header = {"pid": producer.pid, "resource": json.loads(producer.resource)}
        self._max_batch_bytes = max_batch_bytes
        self._batch_interval = batch_interval
        self._max_spool_bytes = max_spool_bytes
        self._max_queue_bytes = max_queue_bytes
        self._report = report
        self._segments: deque[_Segment] = deque()
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
            marker = json.dumps({"count": count, "reason": reason}).encode()
            self._write(self._next_seq - count, DROPPED, marker, count)
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
        writer = SegmentWriter(self._directory, SegmentName(self._producer.id, first_seq), self._header)
        self._own_bytes += writer.size
        self._others_bytes = max(0, directory_bytes(self._directory) - self._own_bytes)
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

    def _leave_memory(self, now: float) -> None:
        """Write what memory holds to disk, if the disk takes it; else keep what it did not take."""
        memory, self._memory = self._memory, None
        failed = False
        rest = self._new_memory(self._next_seq)
        while memory is not None and (batch := memory.take()) is not None:
            for seq, event, marker in batch.in_order():
                if not failed:
                    try:
                        if event is not None:
                            self._write(seq, EVENT, event)
                        elif marker is not None:
                            text = json.dumps({"count": marker.count, "reason": marker.reason}).encode()
                            self._write(seq, DROPPED, text, marker.count)
                        continue
                    except OSError:
                        failed = True
                        rest = self._new_memory(seq)
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
                    left = _BatchBuilder(self._first_seq, 2**62)
                    segment.reader.collect(left, segment.writer.size)
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

    def take(self) -> Batch | None:
        """Return, oldest first, what fits in one batch; `None` if nothing waits. It stays on disk."""
        builder = _BatchBuilder(self.first_seq, self._max_batch_bytes)
        while self._lost:
            marker = self._lost.popleft()
            builder.mark(marker.count, marker.reason)
        segment = next((segment for segment in self._segments if not segment.is_read), None)
        if segment is not None:
            segment.reader.collect(builder, segment.writer.size)
            if segment.is_read and builder.seq < segment.next_seq:
                builder.mark(segment.next_seq - builder.seq, DAMAGED)
        elif self._gap is not None and self._memory is None:
            reason, count = self._gap
            self._gap = None
            builder.mark(count, reason)
        batch = builder.build()
        if batch is None and self._memory is not None:
            batch = self._memory.take()
            if batch is not None:
                self._memory.settle(len(batch.events), batch.held_bytes)  # one batch is in flight at most
        if batch is not None:
            self._first_seq = batch.last_seq + 1
            self._waiting_bytes -= sum(map(len, batch.events))
        if self._first_seq == self._next_seq:
            self._oldest_at = None
        return batch

    def settle(self, events: int, held_bytes: int) -> None:  # noqa: ARG002 - bytes are those of segments
        """Let go of so many events that were taken; their bytes go with their segment."""
        self._held -= events

    def acknowledged(self, seq: int) -> None:
        """Delete the segments whose every event is acknowledged, but for the one that is written."""
        while len(self._segments) > 1 and self._segments[0].next_seq - 1 <= seq:
            self._remove(self._segments.popleft())

    def _remove(self, segment: _Segment) -> None:
        self._own_bytes -= segment.writer.size
        segment.writer.remove()

    @property
    def survives(self) -> bool:
        """Whether what is held outlives the process."""
        return self._memory is None

    def unsynced(self) -> list[int]:
        """Return descriptors, the caller's to sync and close, of what may not survive a power cut yet."""
        descriptors = []
        for segment in self._segments:
            if not segment.is_synced:
                descriptors.append(segment.writer.duplicate())
                segment.is_synced = True
        return descriptors

    def close(self, acked_seq: int) -> None:
        """Delete what is acknowledged and leave the rest to be adopted; a later event starts anew."""
        self.acknowledged(acked_seq)
        if self._segments and self._segments[0].next_seq - 1 <= acked_seq and not self._gap:
            self._remove(self._segments.popleft())
        for segment in self._segments:
            segment.writer.close()
        self._segments.clear()

    def abandon(self) -> None:
        """Close the descriptors that a fork inherited; the files are the parent's, and stay as they are."""
        for segment in self._segments:
            segment.writer.close()
        self._segments.clear()


# --- what others left behind ---------------------------------------------------------------------------


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
        self._readers: dict[int, _Reader] = {}
        self.header: dict[str, Any] = {}
        self._next_seq = min(first for _, first, _ in segments)
        self._ends: dict[int, int] = {}
        for _, _, descriptor in segments:
            facts, offset = decode_header(read_at(descriptor, 0, 65_536))
            self.header = self.header or facts
            self._readers[descriptor] = _Reader(functools.partial(read_at, descriptor), offset)
            self._ends[descriptor] = os.fstat(descriptor).st_size
        self.producer = Producer(
            producer, self.header.get("pid", 0), json.dumps(self.header.get("resource", {})).encode()
        )
        self._last_seqs: deque[tuple[Path, int, int]] = deque()

    @property
    def size_bytes(self) -> int:
        """Bytes of segments that are not deleted yet."""
        return sum(self._ends.values())

    def take(self) -> Batch | None:
        """Return, oldest first, what fits in one batch; `None` if all was given out."""
        while self._segments:
            path, first_seq, descriptor = self._segments[0]
            builder = _BatchBuilder(self._next_seq, self._max_batch_bytes)
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
        return None

    def settle(self, events: int, held_bytes: int) -> None:
        """Do nothing: what is held is what its files hold."""

    def acknowledged(self, seq: int) -> None:
        """Delete the segments whose every event is acknowledged."""
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


def spool_directory(home: Path, api_url: str | None) -> Path:
    """
    Return where events wait for a target.

    Args:
        home: ``RUNLOG_HOME``.
        api_url: API address; `None` for the server that runs on this machine.
    """
    if api_url is None:
        return home / "spool" / "local"
    name = re.sub(r"[^a-z0-9.]+", "-", api_url.lower().partition("://")[2].rpartition("@")[2]).strip("-.")
    # The digest tells apart what the readable part does not; passwords in an address are in neither.
    digest = hashlib.sha256(without_credentials(api_url).encode()).hexdigest()[:8]
    return home / "spool" / f"{name[:60]}-{digest}"


def without_credentials(url: str) -> str:
    """Return an address without the user and the password that it may hold."""
    scheme, separator, rest = url.rstrip("/").partition("://")
    return scheme + separator + rest.rpartition("@")[2]


TARGET_FILE = "target.json"
"""File beside the segments that keeps the address, which the directory's name does not give back."""


def remember_target(directory: Path, api_url: str | None) -> None:
    """
    Write down, for ``runlog spool send``, which address a spool is for; raises nothing.

    Args:
        directory: What `spool_directory` returned for *api_url*; made if it is missing.
        api_url: Written without user and password; `None` needs no file.
    """
    path = directory / TARGET_FILE
    if api_url is None or path.exists():
        return
    fresh = directory / f"{TARGET_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        make_private_directory(directory)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN_FLAGS, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"api_url": without_credentials(api_url)}, file)
        fresh.replace(path)


def remembered_target(directory: Path) -> str | None:
    """Return the address that a spool is for, `None` if it is not known, or not that directory's."""
    try:
        api_url = str(json.loads((directory / TARGET_FILE).read_bytes())["api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return api_url if spool_directory(directory.parent.parent, api_url).name == directory.name else None


DEAD_LETTERS = "dead-letters.jsonl"
"""File beside the segments that keeps what a server refused."""


def write_dead_letter(directory: Path, producer: str, seq: int, event: bytes, detail: str) -> Path:
    """
    Append a refused event, with its identity and the reason, as one line of JSON.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    make_private_directory(directory)
    path = directory / DEAD_LETTERS
    head = json.dumps({"producer": producer, "seq": seq, "detail": detail})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OPEN_FLAGS, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(head[:-1].encode() + b', "event": ' + event + b"}\n")
    return path


def make_private_directory(directory: Path) -> None:
    """
    Make sure that a directory exists, is ours, and is closed to others.

    Raises:
        OSError: If it is a link, no directory, or another user's.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or (hasattr(os, "getuid") and facts.st_uid != os.getuid()):
        raise PermissionError(errno.EPERM, "not a directory of this user", str(directory))
    if facts.st_mode & 0o077:
        directory.chmod(0o700)


def directory_bytes(directory: Path) -> int:
    """Return the bytes of all segments in a directory."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if SegmentName.parse(entry.name):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
