"""
Follow lines in a ``for`` loop.

A thread with an event loop of its own runs a `LogsSubscriber` and hands over what
it is told; a bounded number of lines waits for the loop that iterates. So it makes
no difference whether the calling thread runs an event loop itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from runlog.client.lines import Gap, LogLine, News, RunReceipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from runlog.client.subscriber import LogsSubscriber

MAX_WAITING = 256
"""What is received ahead of whoever iterates; then the server is made to wait."""


class SyncLogsSubscriber:
    """
    Lines as they are logged. A context manager and iterator; made by `get_sync_logs_subscriber`.

    Behaves as `LogsSubscriber` does, and raises the same. Iterated by one thread
    at a time; any thread may call `close`, which ends the iteration.

    Args:
        subscriber: Not entered; used by this one alone.
    """

    def __init__(self, subscriber: LogsSubscriber) -> None:
        self._subscriber = subscriber
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        # All below is guarded by the condition.
        self._waiting: deque[News] = deque()
        self._is_connected = False
        self._is_over = False
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self.cursor: str | None = subscriber.cursor
        """The place behind the last line, for one that is to go on there; `None` while there is none."""
        self.receipt: dict[str, Any] | None = None
        """Of the run that is followed, once it has ended."""
        self.on_gap: Callable[[Gap], object] | None = None
        """Called for each gap, before the lines behind it, in the thread that iterates."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._subscriber!r}>"

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a subscriber is entered once; make another one")
        self._thread = threading.Thread(target=self._run, name="runlog-subscriber", daemon=True)
        self._thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._is_connected or self._is_over)
        except BaseException:  # Ctrl-C
            self.close()
            raise
        error = self._error
        if error is not None and not self._is_connected:  # what failed later comes after the lines before it
            self.close()
            raise error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration, and return once the connection is closed. A second call does nothing."""
        with self._changed:
            self._is_over = True
            self._waiting.clear()
            self._error = None
            self._changed.notify_all()
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LogLine:
        """Return the next line, however long it takes."""
        while True:
            news = self._next()
            if news is None:
                raise StopIteration
            if isinstance(news, LogLine):
                return news

    def news(self) -> Iterator[News]:
        """Yield all that the server tells: `LogLine`, `Gap`, `RunReceipt` and `Heartbeat`."""
        while (news := self._next()) is not None:
            yield news

    def _next(self) -> News | None:
        if self._thread is None:
            raise RuntimeError("a subscriber is iterated where it is entered: with subscriber: ...")
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over)
            if not self._waiting:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            news = self._waiting.popleft()
            if len(self._waiting) == MAX_WAITING // 2 and self._loop is not None and self._room is not None:
                self._loop.call_soon_threadsafe(self._room.set)
        if isinstance(news, RunReceipt):
            self.receipt = news.receipt
        else:
            self.cursor = news.cursor or self.cursor
            if isinstance(news, Gap) and self.on_gap is not None:
                self.on_gap(news)
        return news

    # --- in the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._pump())

    async def _pump(self) -> None:
        with self._changed:
            if self._is_over:
                return
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            room = self._room = asyncio.Event()
        try:
            async with self._subscriber as subscriber:
                self._tell(is_connected=True)
                async for news in subscriber.news():
                    room.clear()
                    if self._tell(news):
                        await room.wait()
        except Exception as error:  # raised in the thread that iterates
            self._tell(error=error)
        finally:
            with self._changed:
                self._loop = self._task = self._room = None
                self._is_over = True
                self._changed.notify_all()

    def _tell(
        self, news: News | None = None, *, is_connected: bool = False, error: Exception | None = None
    ) -> bool:
        """Hand something over; returns whether to wait for room before more is."""
        with self._changed:
            self._is_connected |= is_connected
            if not self._is_over:
                self._error = error
                if news is not None:
                    self._waiting.append(news)
            self._changed.notify_all()
            return len(self._waiting) >= MAX_WAITING
