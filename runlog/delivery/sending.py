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
        progress: Is told how many bytes were deleted, segment by segment.
        stop: Ends it early once it is set.
    """
    sent = Sent()
    stop = stop or threading.Event()
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
    before = backlog.size_bytes
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
            if progress is not None:
                progress(before - backlog.size_bytes)
                before = backlog.size_bytes
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


def purge(directory: Path, *, with_dead_letters: bool = False) -> int:
    """
    Delete the segments that no living process owns, and return how many they were.

    Args:
        directory: The spool of one target.
        with_dead_letters: Whether to delete what the server refused as well.
    """
    count = 0
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
        self._number = number

    def close(self) -> None:
        os.close(self._number)


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
