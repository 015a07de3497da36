"""
What waits in the spool, looked at and sent from outside of the process that logged it.

``runlog spool`` and the commands that read from this machine's store use it;
`runlog.delivery.worker` does the same for programs that log, in the background.

What a dead process left is adopted, sent, and deleted once it is acknowledged.
What a living one has written so far is read without its lock and sent, too, if
that is asked for, and stays: the server knows by their seqs that it has the
lines already when their owner sends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from runlog._locks import lock_file
from runlog.delivery.backlog import Backlog, adopt
from runlog.delivery.frames import EVENT, decode_header, read_frames
from runlog.delivery.lane import Lane
from runlog.delivery.retry import Backoff, Verdict
from runlog.delivery.segments import OPEN_FLAGS, SegmentName, open_private, read_at
from runlog.delivery.spool import DEAD_LETTERS, write_dead_letter
from runlog.delivery.transport import TOTAL_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runlog.delivery.batching import Batch
    from runlog.delivery.transport import Transport

ATTEMPTS = 5
"""How often in a row a batch is tried, within some 3 s, before the rest is left for later."""

MAX_PATIENCE = 10.0
"""Seconds beyond which a server that asks to be left alone is left alone for good."""

MAX_BATCH_BYTES = 4_000_000

UNFINISHED_SUFFIX = ".new"
"""Of a segment that is being made: a crash may leave it, and it holds no line yet."""

UNFINISHED_SECONDS = 60.0
"""Age at which such a file that nobody holds was left by a crash."""


class SegmentFile(NamedTuple):
    """A segment as others see it."""

    path: Path
    name: SegmentName
    size_bytes: int
    is_owned: bool
    """Whether a living process has it: the one that writes it, or one that sends it."""


@dataclass(slots=True)
class Sent:
    """What became of the lines that waited."""

    lines: int = 0
    """How many the server has acknowledged, those that it had already included."""
    refused: int = 0
    """How many it will not take; they are dead letters now."""
    is_done: bool = True
    """Whether nothing of what was looked at remains."""
    detail: str = ""
    """Why something remains."""


class _LiveCopy(Backlog):
    """
    What living processes have written so far, read and left as it is.

    A hole is where it ends: the owner may hold in memory what is missing.
    """

    def take(self) -> Batch | None:
        if self._segments and self._segments[0][1] > self._next_seq:
            return None
        batch = super().take()
        return (
            None if batch is None or any(drop.reason == "spool_damaged" for drop in batch.dropped) else batch
        )

    def acknowledged(self, seq: int) -> None:
        """Delete nothing."""


def segments(directory: Path) -> list[SegmentFile]:
    """Return the segments in a directory, by producer and seq; raises nothing."""
    found = []
    for path, name, descriptor in _opened(directory):
        with contextlib.closing(_Descriptor(descriptor)):
            found.append(
                SegmentFile(path, name, os.fstat(descriptor).st_size, is_owned=not lock_file(descriptor))
            )
    return found


def send_spool(
    directory: Path,
    transport: Transport,
    *,
    live: bool = False,
    progress: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Sent:
    """
    Send what dead processes left in a directory, and delete what is acknowledged.

    Blocks until all is sent or the server fails several times in a row. Any
    number of processes may do it at once.

    Args:
        directory: The spool of one target.
        transport: Where to send it.
        live: Whether to send as well, and leave, what living processes have written.
        progress: Is told how many more bytes of the segments are done with, batch by batch.
        stop: Ends it early once it is set.
    """
    sent = Sent()
    stop = stop or threading.Event()
    remove_unfinished(directory)
    backlogs = adopt(directory, MAX_BATCH_BYTES)
    try:
        if live:
            backlogs += _copies(directory, {backlog.producer.id for backlog in backlogs})
        for backlog in backlogs:
            if not _send(directory, backlog, transport, sent, progress=progress, stop=stop):
                sent.is_done = False
                break
    finally:
        for backlog in backlogs:
            backlog.close()
    return sent


def _send(
    directory: Path,
    backlog: Backlog,
    transport: Transport,
    sent: Sent,
    *,
    progress: Callable[[int], None] | None,
    stop: threading.Event,
) -> bool:
    total, event_bytes, told = backlog.size_bytes, 0, 0
    lane, backoff, failures = Lane(backlog.producer, backlog), Backoff(), 0
    while not stop.is_set():
        batch = lane.next_batch()
        if batch is None:
            return True
        answer = transport.send(lane.producer, batch, timeout=TOTAL_TIMEOUT)
        if isinstance(backlog, _LiveCopy) and answer.status == 409:
            return True  # the owner knows what became of the lines before, and sends these
        outcome = lane.answered(answer)
        if outcome.rejected is not None:
            sent.refused += 1
            with contextlib.suppress(OSError):
                write_dead_letter(directory, lane.producer.id, *outcome.rejected, answer.detail)
        if outcome.verdict is not Verdict.RETRY:
            failures = 0
            sent.lines += outcome.events
            if outcome.verdict is Verdict.ACKED:
                event_bytes += batch.event_bytes
            if progress is not None:
                # A segment is deleted as a whole: until then, the bytes of its events tell how far it is.
                done = max(told, total - backlog.size_bytes, min(total, event_bytes))
                progress(done - told)
                told = done
            continue
        failures += 1
        sent.detail = answer.detail
        if failures >= ATTEMPTS or transport.target is None or (answer.retry_after or 0) > MAX_PATIENCE:
            return False
        stop.wait(backoff.delay(failures, random=random.random(), retry_after=answer.retry_after))  # noqa: S311
    return False


def _copies(directory: Path, ours: set[str]) -> list[Backlog]:
    found: dict[str, list[tuple[Path, int, int]]] = {}
    for path, name, descriptor in _opened(directory):
        if name.producer in ours:
            os.close(descriptor)
        else:
            found.setdefault(name.producer, []).append((path, name.first_seq, descriptor))
    return [_LiveCopy(producer, files, MAX_BATCH_BYTES) for producer, files in found.items()]


def waiting(directory: Path) -> Iterator[tuple[SegmentName, int, bytes]]:
    """
    Yield the events in a directory's segments, with their seqs, as JSON; changes nothing.

    Those that a server has already are among them until their segment is deleted.
    """
    for _, name, descriptor in _opened(directory):
        with contextlib.closing(_Descriptor(descriptor)):
            _, offset = decode_header(read_at(descriptor, 0, 65_536))
            end = os.fstat(descriptor).st_size

            def read(start: int, length: int, descriptor: int = descriptor) -> bytes:
                return read_at(descriptor, start, length)

            for frame, _ in read_frames(read, offset, end):
                if frame.kind == EVENT:
                    yield name, frame.seq, frame.payload


def count_waiting(
    directory: Path, *, first_seqs: dict[str, int] | None = None, timeout: float
) -> tuple[int, int | None, bool]:
    """
    Count the events in a directory's segments; changes nothing.

    Args:
        directory: The spool of one target.
        first_seqs: From which seq on to count, for each producer whose events count; by default all do.
        timeout: Most seconds to spend on it.

    Returns:
        How many there are, the time of the first of the oldest segment in
        nanoseconds since the epoch, and whether the time was enough for all.
    """
    deadline = time.monotonic() + timeout
    count, oldest_ns, producer = 0, None, ""
    for name, seq, payload in waiting(directory):
        if first_seqs is not None and seq < first_seqs.get(name.producer, seq + 1):
            continue
        if name.producer != producer:  # a producer's first event is its oldest
            producer = name.producer
            found = _timestamp_ns(payload)
            if found is not None:
                oldest_ns = found if oldest_ns is None else min(oldest_ns, found)
        count += 1
        if count % 1000 == 0 and time.monotonic() > deadline:
            return count, oldest_ns, False
    return count, oldest_ns, True


def _timestamp_ns(payload: bytes) -> int | None:
    with contextlib.suppress(ValueError):
        event = json.loads(payload)
        found = event.get("timestamp_ns") if isinstance(event, dict) else None
        return found if isinstance(found, int) else None
    return None


def dead_letters(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield what the server of a directory refused: ``producer``, ``seq``, ``detail``, ``event``."""
    try:
        descriptor = os.open(directory / DEAD_LETTERS, os.O_RDONLY | OPEN_FLAGS)
    except OSError:
        return
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                letter = json.loads(line)
                if isinstance(letter, dict):
                    yield letter


def remove_unfinished(directory: Path) -> int:
    """Delete the files that a crash left while it made a segment; returns how many, and raises nothing."""
    count = 0
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob(f"*{UNFINISHED_SUFFIX}")):
            if SegmentName.parse(path.with_suffix(".seg").name) is None:
                continue
            with contextlib.suppress(OSError), contextlib.closing(_Descriptor(open_private(path))) as file:
                facts = os.fstat(file.number)
                is_old = time.time() - facts.st_mtime > UNFINISHED_SECONDS
                if is_old and lock_file(file.number) and os.path.samestat(facts, path.stat()):
                    path.unlink()
                    count += 1
    return count


def purge(directory: Path, *, with_dead_letters: bool = False) -> int:
    """
    Delete the segments that no living process owns, and return how many they were.

    Args:
        directory: The spool of one target.
        with_dead_letters: Whether to delete what the server refused as well.
    """
    count = 0
    remove_unfinished(directory)
    for path, _, descriptor in _opened(directory):
        with contextlib.closing(_Descriptor(descriptor)), contextlib.suppress(OSError):
            if lock_file(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
                count += 1
    if with_dead_letters:
        (directory / DEAD_LETTERS).unlink(missing_ok=True)
    return count


class _Descriptor:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


def _opened(directory: Path) -> Iterator[tuple[Path, SegmentName, int]]:
    """Yield each segment with a descriptor, which is the caller's to close."""
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return
    for path in paths:
        name = SegmentName.parse(path.name)
        if name is not None:
            with contextlib.suppress(OSError):
                yield path, name, open_private(path)
