"""
Followers: each a place in the order of arrival, and a condition.

A `Follower` takes its next lines from the tail while its place lies in it, and from
the storage otherwise: one that is slow costs nobody anything, falls out of the
tail, catches up from the storage and comes back. It sees each line that passes
exactly once, in the order of arrival; that what it reads is dense does not depend
on the tail, which may be incomplete, but on the storage's promise that arrivals
rise in the order of commits.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from runlog.exceptions import QueryTimeoutError
from runlog.server.live import MAX_STEP_LINES, LiveLine
from runlog.server.run_summary import FINISHED
from runlog.server.run_tree import RunTree

if TYPE_CHECKING:
    from runlog.records import LogEvent
    from runlog.server.live import Tail
    from runlog.server.query import Condition
    from runlog.server.storage.base import LogStorage

MAX_STEP_S = 0.01
"""A step ends behind the line at which its filter has taken this long: others wait meanwhile."""

SLOW_WINDOWS = (2000, 100, 5)
"""Arrivals that are looked at in the storage together, once a question took too long, and again."""


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
