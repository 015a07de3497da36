"""
Live lines: a shared tail of the newest ones.

`runlog.server.ingest` feeds the `Tail` after each commit, and with that wakes those
who wait; `runlog.server.follower` reads along it. It is bounded, and may lack
lines: whoever wants one that is not in it reads it from the storage.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from runlog.server.storage.base import StoredLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runlog.records import EventBatch, LogEvent
    from runlog.server.storage.base import Appended

MAX_TAIL_LINES = 20_000
"""Lines in the tail: two seconds at 10,000 lines a second."""

MAX_TAIL_BYTES = 16 * 1024 * 1024
"""Of messages, attributes and exceptions in the tail. Encoded forms take as much again, each."""

MAX_STEP_LINES = 250
MAX_STEP_BYTES = 128 * 1024
"""What a follower takes at a time: some milliseconds of work, and all that a stalled one holds."""

_LINE_BYTES = 400
"""Of a line without its texts."""


class LiveLine:
    """
    A line on its way to followers, encoded once for all of them.

    Args:
        arrival: See `runlog.server.storage.base`.
        line: The line.
    """

    __slots__ = ("_forms", "arrival", "line", "size_bytes")

    def __init__(self, arrival: int, line: StoredLine) -> None:
        self.arrival = arrival
        self.line = line
        self.size_bytes = _size_bytes(line.event)
        """Roughly."""
        self._forms: dict[str, bytes] = {}

    def form(self, name: str, make: Callable[[int, StoredLine], bytes]) -> bytes:
        """Return the line in a form that *name* stands for, which *make* makes of arrival and line."""
        made = self._forms.get(name)
        if made is None:
            made = self._forms[name] = make(self.arrival, self.line)
        return made


def _size_bytes(event: LogEvent) -> int:
    size = _LINE_BYTES + len(event.message)
    if event.attributes:
        size += len(msgspec.json.encode(event.attributes))
    if event.exception is not None:
        size += len(event.exception.message) + len(event.exception.traceback)
    return size


class Tail:
    """
    The newest lines, in the order of arrival, as far as they are kept. For one event loop.

    Nothing is kept while nobody follows.

    Args:
        max_lines: Most lines.
        max_bytes: Most bytes of texts.
    """

    def __init__(self, *, max_lines: int = MAX_TAIL_LINES, max_bytes: int = MAX_TAIL_BYTES) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._lines: list[LiveLine] = []  # of consecutive arrivals, up to the last one
        self._bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self.last = 0
        """The last arrival that it was told of since somebody follows; 0 for none."""
        self.followers = 0
        """How many follow."""
        self.streams = 0
        """Connections that follow, or are about to say what they want to follow."""
        self.is_closed = False

    def __repr__(self) -> str:
        return f"<Tail of {len(self._lines)} lines up to {self.last}, {self.followers} followers>"

    def feed(self, batch: EventBatch, appended: Appended, observed_ns: int) -> None:
        """
        Take in what was just committed, and wake those who wait.

        Args:
            batch: As it was given to the storage.
            appended: What became of it.
            observed_ns: As given to the storage.
        """
        if not self.followers or not appended.first_arrival:
            return
        producer, key = batch.producer, appended.producer_key
        new = [
            LiveLine(arrival, StoredLine(producer, key, seq, observed_ns, event))
            for arrival, (seq, event) in enumerate(
                (one for one in batch.numbered() if one[0] >= appended.new_from), appended.first_arrival
            )
        ]
        if new[-1].arrival <= self.last:
            return  # told out of order: whoever has not seen it reads it from the storage
        if appended.first_arrival != self.last + 1:
            self._clear()  # what lies between is in the storage
        self._lines += new
        self._bytes += sum(line.size_bytes for line in new)
        self.last = new[-1].arrival
        if len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
            self._shrink()
        self._wake()

    def after(self, arrival: int) -> list[LiveLine] | None:
        """Return some lines that follow on an arrival, at least one; `None` if the next is not here."""
        lines = self._lines
        if not lines:
            return None
        start = arrival + 1 - lines[0].arrival
        if not 0 <= start < len(lines):
            return None
        end, size = start, 0
        while end < len(lines) and end - start < MAX_STEP_LINES and size < MAX_STEP_BYTES:
            size += lines[end].size_bytes
            end += 1
        return lines[start:end]

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until lines are fed, the tail is closed, or the time has passed."""
        if self.is_closed:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(future)

    def join(self) -> None:
        """Count one more follower; each is followed by `leave`."""
        self.followers += 1

    def leave(self) -> None:
        """Count one follower less."""
        self.followers -= 1
        if not self.followers:
            self._clear()
            self.last = 0

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Count a connection as long as the block runs."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def close(self) -> None:
        """Let every follower end. A second call does nothing."""
        self.is_closed = True
        self._wake()

    def _shrink(self) -> None:
        # To three quarters, so that the list is seldom moved.
        most_lines, most_bytes = self._max_lines * 3 // 4, self._max_bytes * 3 // 4
        count, lines = 0, self._lines
        while count < len(lines) and (len(lines) - count > most_lines or self._bytes > most_bytes):
            self._bytes -= lines[count].size_bytes
            count += 1
        del lines[:count]

    def _clear(self) -> None:
        self._lines = []
        self._bytes = 0

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)
