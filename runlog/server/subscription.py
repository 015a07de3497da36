"""
What somebody wants to follow, and what there is to tell, whatever the wire.

`runlog.server.routes.live_socket` and `runlog.server.routes.live_events` read a
`Wish` from a request and write the news of a `Subscription`, each in its own way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from runlog.exceptions import QueryError
from runlog.server.follower import follow
from runlog.server.query import AllOf, TimeBetween, decode_cursor, encode_cursor
from runlog.server.receipt import Receipt, receipt_of
from runlog.server.run_summary import FINAL_STATES
from runlog.server.storage.base import RunQuery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine
    from typing import Self

    from starlette.requests import HTTPConnection

    from runlog.server.follower import Follower
    from runlog.server.live import LiveLine, Tail
    from runlog.server.query import Condition
    from runlog.server.storage.base import LogStorage

DEFAULT_HEARTBEAT = 10.0
"""Seconds without a line after which a stream says that it is still there."""

HEARTBEATS = (0.1, 3600.0)
"""Shortest and longest pause between heartbeats, in seconds."""

CREDENTIALS_CHECK_S = 5.0
"""Seconds after which it is looked at whether the credentials of a stream are still good."""

FELL_BEHIND = (
    "the reader was slower than the lines came; what follows is read from the store, nothing is lost"
)
OTHER_STORE = "the cursor is not of this store as it is now; all that is stored follows, from the beginning"


@dataclass(frozen=True, slots=True)
class Wish:
    """Which lines, and from where on."""

    where: Condition = field(default_factory=AllOf)
    run: str | None = None
    """Only lines of the run with this id and of all that is opened in it; its receipt once it has ended."""
    after: tuple[str, int] | None = None
    """
    Begin behind this place, see `place_of`; counts before `since_ns`.

    Without either, only what comes from now on.
    """
    since_ns: int | None = None
    """Only lines with this timestamp or a later one, those that are stored already first."""
    heartbeat_s: float | None = DEFAULT_HEARTBEAT
    """`None` for no heartbeats."""


class Lines(NamedTuple):
    """Lines, in the order of arrival."""

    lines: list[LiveLine]


class Gap(NamedTuple):
    """The stream is not where its reader may think; nothing is lost."""

    cursor: str
    detail: str


class RunReceipt(NamedTuple):
    """The run that was asked for has ended."""

    run: str
    receipt: Receipt


class Heartbeat(NamedTuple):
    """The stream is alive; a reader that comes back may begin here."""

    cursor: str


News = Lines | Gap | RunReceipt | Heartbeat


class Subscription:
    """
    Follows, and tells the news. A context manager: leaving it follows no longer.

    Args:
        tail: Fed with what is stored.
        storage: As the reader sees it.
        wish: What it wants.

    Raises:
        StorageError: When it is entered, if the storage cannot be read.
    """

    def __init__(self, tail: Tail, storage: LogStorage, wish: Wish) -> None:
        self._tail = tail
        self._storage = storage
        self._wish = wish
        self._follower: Follower | None = None
        self._gap: str | None = None

    async def __aenter__(self) -> Self:
        wish = self._wish
        after = None
        where = wish.where
        if wish.after is not None:
            epoch, after = wish.after
            if epoch != self._storage.epoch or not 0 <= after <= await self._storage.last_arrival():
                after, self._gap = 0, OTHER_STORE
        elif wish.since_ns is not None:
            after = await self._storage.arrival_before(wish.since_ns)
        if wish.since_ns is not None:
            where = AllOf((where, TimeBetween(wish.since_ns)))
        self._follower = await follow(
            self._tail,
            self._storage,
            where=None if where == AllOf() else where,
            within=wish.run,
            after=after,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._follower is not None:
            self._follower.close()

    def cursor(self, arrival: int) -> str:
        """Return the place behind an arrival as opaque text."""
        return encode_cursor((self._storage.epoch, arrival))

    async def news(self) -> AsyncGenerator[News, None]:
        """
        Tell what comes, until the server stops.

        Close the iterator where it is left early, as with `contextlib.aclosing`.

        Raises:
            StorageError: If the storage cannot be read.
        """
        follower, heartbeat_s = self._follower, self._wish.heartbeat_s
        assert follower is not None, "entered before"
        if self._gap is not None:
            yield Gap(self.cursor(follower.cursor), self._gap)
        if heartbeat_s is not None:
            # So that the reader knows that it is heard, and a place to come back to before the first line.
            yield Heartbeat(self.cursor(follower.cursor))
        has_receipt = self._wish.run is None
        while (step := await follower.next(heartbeat_s)) is not None:
            if step.fell_behind:
                yield Gap(self.cursor(step.cursor), FELL_BEHIND)
                continue
            if step.lines:
                yield Lines(step.lines)
            if step.run_may_have_ended and not has_receipt:
                receipt = await self._receipt()
                if receipt is not None:
                    has_receipt = True
                    yield receipt
            if step.timed_out:
                yield Heartbeat(self.cursor(step.cursor))

    async def _receipt(self) -> RunReceipt | None:
        run_id = self._wish.run
        runs = await self._storage.read_runs(RunQuery(id=run_id, limit=1))
        if run_id is None or not runs or runs[0].state not in FINAL_STATES:
            return None
        return RunReceipt(run_id, receipt_of(runs[0], await self._storage.read_shares(run_id)))


def place_of(cursor: str) -> tuple[str, int]:
    """
    Return what a cursor says: the epoch of a store, and an arrival in it.

    Raises:
        QueryError: If it is no cursor of a stream.
    """
    epoch, arrival = decode_cursor(cursor, (str, int))
    return epoch, arrival


async def until_revoked(connection: HTTPConnection, token: str | None = None) -> None:
    """
    Return once the credentials by which a stream was opened are good no more; perhaps never.

    Args:
        connection: A request, or the handshake of a socket; its header counts.
        token: What the socket's first message said.
    """
    authenticator = connection.app.state.server.authenticator
    authorization = connection.headers.get("authorization")
    while True:
        await asyncio.sleep(CREDENTIALS_CHECK_S)
        if authorization is not None:
            found = authenticator.by_header(authorization)
        elif token:
            found = authenticator.by_token(token)
        else:  # nothing was asked for, or a ticket was given, which was good once
            continue
        if found is None:
            return


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side until the first one ends, and cancel the others; raise what it raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # With the errors of those that were cancelled: nobody else would ask for them.
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def check_heartbeat(seconds: float) -> float:
    """
    Return a pause between heartbeats.

    Raises:
        QueryError: If it is out of range.
    """
    low, high = HEARTBEATS
    if not low <= seconds <= high:
        raise QueryError(f"heartbeat must be from {low:g} to {high:g} seconds, got {seconds:g}")
    return seconds
