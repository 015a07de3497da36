"""
Live lines: a shared tail of the newest ones, and followers that read along it.

`runlog.server.ingest` feeds the `Tail` after each commit. A `Follower` is a place
in the order of arrival and a condition. It takes its next lines from the tail
while its place lies in it, and from the storage otherwise: one that is slow costs
nobody anything, falls out of the tail, catches up from the storage and comes
back. It sees each line that passes exactly once, in the order of arrival; that
what it reads is dense does not depend on the tail, which may be incomplete, but
on the storage's promise that arrivals rise in the order of commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from runlog.exceptions import QueryTimeoutError
from runlog.server.run_summary import FINISHED
from runlog.server.run_tree import RunTree
from runlog.server.storage.base import StoredLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runlog.records import EventBatch, LogEvent
    from runlog.server.query import Condition
    from runlog.server.storage.base import Appended, LogStorage

MAX_TAIL_LINES = 20_000
"""Lines in the tail: two seconds at 10,000 lines a second."""

MAX_TAIL_BYTES = 16 * 1024 * 1024
"""Of messages, attributes and exceptions in the tail. Encoded forms take as much again, each."""

MAX_STEP_LINES = 250
MAX_STEP_BYTES = 128 * 1024
"""What a follower takes at a time: some milliseconds of work, and all that a stalled one holds."""

MAX_STEP_S = 0.01
"""A step ends behind the line at which its filter has taken this long: others wait meanwhile."""

SLOW_WINDOWS = (2000, 100, 5)
"""Arrivals that are looked at in the storage together, once a question took too long, and again."""

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


class Step(NamedTuple):
    """What a follower comes upon next."""

    lines: list[LiveLine]
    """Lines that pass, in the order of arrival; none if nothing came in time."""
    cursor: int
    """The arrival up to which everything was looked at."""
    fell_behind: bool = False
    """It was up to date and is not any more: what comes next is read from the storage."""
    timed_out: bool = False
    """There was nothing for as long as it should wait."""
    run_may_have_ended: bool = False
    """The run that is followed has ended among these lines, or may have in those that were passed over."""


class Follower:
    """
    Reads along the order of arrival. Made by `follow`, closed by whoever made it.

    For one task; `next` may be cancelled at any time and loses nothing.

    Args:
        tail: Which it has joined.
        storage: An open one.
        where: Only lines that pass.
        within: Only lines of the run with this id, and of all that is opened in it.
        after: The arrival after which it begins.
        head: The last arrival when it had joined.
    """

    def __init__(
        self,
        tail: Tail,
        storage: LogStorage,
        *,
        where: Condition | None,
        within: str | None,
        after: int,
        head: int,
    ) -> None:
        self._tail = tail
        self._storage = storage
        self._where = where
        self._within = within
        self._tree: RunTree | None = None
        self._windows = list(SLOW_WINDOWS)
        self._window: int | None = None
        self._head = head
        self._is_closed = False
        self.cursor = after
        """The arrival up to which everything was returned."""
        self._is_up_to_date = after >= head  # and later: it has been since it last fell behind
        self._run_may_have_ended = within is not None

    def __repr__(self) -> str:
        return f"<Follower at {self.cursor} of {self._tail!r}>"

    async def next(self, timeout_s: float | None) -> Step | None:
        """
        Return what comes next; `None` once the tail is closed.

        Args:
            timeout_s: How long to wait for lines; `None` for as long as it takes.

        Raises:
            StorageError: If the storage cannot be read.
            QueryTimeoutError: If the filter takes too long for a handful of lines.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while not self._tail.is_closed:
            if self.cursor >= max(self._head, self._tail.last):
                self._is_up_to_date = True
                if self._run_may_have_ended:
                    self._run_may_have_ended = False
                    return Step([], self.cursor, run_may_have_ended=True)
                left = None if deadline is None else deadline - loop.time()
                if left is not None and left <= 0:
                    return Step([], self.cursor, timed_out=True)
                await self._tail.wait(left)
                continue
            step = await self._read()
            if step.lines or step.fell_behind:
                return step
            if deadline is not None and loop.time() >= deadline:
                return step._replace(timed_out=True)
            await asyncio.sleep(0)  # a filter that lets nothing pass must not hold up the others
        return None

    async def _read(self) -> Step:
        lines = self._tail.after(self.cursor)
        if lines is not None:
            if self._within is not None and self._tree is None:
                self._tree = RunTree(self._within, await self._storage.read_tree(self._within))
            return self._filter(lines)
        self._tree = None  # the storage will know more runs than we do
        if self._is_up_to_date:
            self._is_up_to_date = False
            self._run_may_have_ended = self._within is not None
            return Step([], self.cursor, fell_behind=True)
        try:
            page = await self._storage.read_arrivals(
                self.cursor,
                where=self._where,
                within=self._within,
                upto=None if self._window is None else self.cursor + self._window,
                limit=MAX_STEP_LINES,
            )
        except QueryTimeoutError:
            if not self._windows:
                raise
            self._window = self._windows.pop(0)
            return Step([], self.cursor)
        # An end is never read twice, even if the storage's newest lines are gone.
        self.cursor = page.upto if page.upto > self.cursor else max(self._head, self._tail.last)
        return Step([LiveLine(arrival, line) for arrival, line in page.lines], self.cursor)

    def _filter(self, lines: list[LiveLine]) -> Step:
        if self._where is None and self._tree is None:
            self.cursor = lines[-1].arrival
            return Step(lines, self.cursor)
        found = []
        give_up_at = time.perf_counter() + MAX_STEP_S
        for line in lines:
            if self._passes(line.line.event):
                found.append(line)
            self.cursor = line.arrival
            if time.perf_counter() > give_up_at:
                break
        return Step(found, self.cursor)

    def _passes(self, event: LogEvent) -> bool:
        if self._tree is not None:
            if not self._tree.takes(event):
                return False
            if event.event_name == FINISHED and (event.task_run_id or event.flow_run_id) == self._within:
                self._run_may_have_ended = True
        return self._where is None or self._where.matches(event)

    def close(self) -> None:
        """Follow no longer. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._tail.leave()


async def follow(
    tail: Tail,
    storage: LogStorage,
    *,
    where: Condition | None = None,
    within: str | None = None,
    after: int | None = None,
) -> Follower:
    """
    Return a follower.

    Args:
        tail: Fed with what is appended to *storage*.
        storage: An open one.
        where: Only lines that pass.
        within: Only lines of the run with this id, and of all that is opened in it.
        after: The arrival after which it begins; `None` for what comes from now on.

    Raises:
        StorageError: If the storage cannot be read.
    """
    tail.join()  # first: what is committed from here on is fed, what was committed before is read
    try:
        head = await storage.last_arrival()
    except BaseException:
        tail.leave()
        raise
    return Follower(
        tail, storage, where=where, within=within, after=head if after is None else after, head=head
    )
