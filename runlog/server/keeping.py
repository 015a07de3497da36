"""
Keep lines for as long as is asked, and no more of them than there is room for.

A task beside the requests: it takes old lines away in small steps, with pauses
between them in which batches are stored, so that whoever sends lines notices
nothing. It also stores when keys were last used. What goes wrong is told, and
tried again the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runlog.exceptions import RunlogError
from runlog.server.run_summary import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.server.authentication import Authenticator
    from runlog.server.query import Position
    from runlog.server.storage.base import LogStorage, Pruned

logger = logging.getLogger("runlog.server")

INTERVAL_S = 60.0
"""Between two looks for what is too old or too much."""

STEP_LINES = 1000
"""Lines that one step looks at: 10 to 30 ms of the writer's time."""

REST_FACTOR = 3.0
"""A step is followed by a pause as many times as long: three quarters of the time are the senders'."""

ROOM = 0.95
"""Part of the most space down to which lines are taken away, so that it is not needed all the time."""

PRODUCER_SILENCE_NS = 30 * 86_400 * 10**9
"""After its goodbye, and without lines, a producer is forgotten; it could repeat itself for as long."""

FOREVER_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long lines are kept. Picklable."""

    ages_s: tuple[float | None, ...] = (None,) * len(LEVELS)
    """For each of `LEVELS`, in seconds; `None`: for ever."""
    max_bytes: int | None = None
    """Most space that lines and what belongs to them take; `None` for no limit."""

    def keep_from_ns(self, now_ns: int) -> list[int | None]:
        """Return, for each level, the time before which lines are too old now."""
        return [None if age is None else now_ns - int(age * 1e9) for age in self.ages_s]


class Pruner:
    """
    Takes away what is too old, then what is too much, in steps.

    Args:
        storage: Open.
        keeping: What to keep.
        now_ns: The time, in nanoseconds since the epoch.
        after: Where another one has stopped.
    """

    def __init__(
        self, storage: LogStorage, keeping: Keeping, now_ns: int, *, after: Position | None = None
    ) -> None:
        self._storage = storage
        self._max_bytes = keeping.max_bytes
        self._keep_from_ns = keeping.keep_from_ns(now_ns)
        self.after = after
        """Where it goes on; `None`: at the beginning."""
        self._is_too_much = False
        self._ages_are_done = all(limit is None for limit in self._keep_from_ns)
        self.lines = 0
        """Taken away so far."""
        self.runs = 0
        self.is_done = False

    async def step(self) -> None:
        """
        Do some ten milliseconds of work.

        Raises:
            StorageError: If the store cannot be used.
        """
        if not self._ages_are_done:
            pruned = await self._prune(self._keep_from_ns)
            self._ages_are_done = pruned.after is None
            return
        used = (await self._storage.read_size()).used_bytes if self._max_bytes is not None else 0
        limit = self._max_bytes or 0
        if self._max_bytes is None or used <= (limit * ROOM if self._is_too_much else limit):
            self.is_done = True
            return
        self._is_too_much = True
        pruned = await self._prune([FOREVER_NS] * len(LEVELS))
        self.is_done = pruned.after is None and not pruned.lines

    async def _prune(self, keep_from_ns: list[int | None]) -> Pruned:
        pruned = await self._storage.prune(keep_from_ns, after=self.after, limit=STEP_LINES)
        self.after = pruned.after
        self.lines += pruned.lines
        self.runs += pruned.runs
        return pruned


class Keeper:
    """
    The task. For one event loop.

    Args:
        storage: Open.
        authenticator: Knows when keys were used.
        keeping: What to keep.
        interval_s: Seconds between two rounds.
        clock: The time in nanoseconds since the epoch.
    """

    def __init__(
        self,
        storage: LogStorage,
        authenticator: Authenticator,
        keeping: Keeping,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._storage = storage
        self._authenticator = authenticator
        self._keeping = keeping
        self._interval_s = interval_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.lines = 0
        """Taken away since the start."""
        self.rounds = 0
        """Rounds that ended."""

    def start(self) -> None:
        """Begin with a round at once."""
        self._task = asyncio.create_task(self._run(), name="runlog-keeper")

    async def close(self) -> None:
        """End the task after the step that it is at."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except RunlogError as error:
                # The text says all there is to say: a traceback each minute helps nobody.
                logger.error(  # noqa: TRY400
                    "old lines cannot be taken away at the moment: %s", error
                )
            self.rounds += 1
            await asyncio.sleep(self._interval_s)

    async def _round(self) -> None:
        await self._authenticator.store_uses()
        await self._storage.forget_producers(self._clock() - PRODUCER_SILENCE_NS)
        pruner = Pruner(self._storage, self._keeping, self._clock())
        while not pruner.is_done:
            before, started = pruner.lines, time.monotonic()
            await pruner.step()
            self.lines += pruner.lines - before
            await asyncio.sleep((time.monotonic() - started) * REST_FACTOR)
        if pruner.lines:
            logger.info("took %s old lines and %s runs away", pruner.lines, pruner.runs)
