"""
Follow lines from a program, as they are logged.

::

    async with get_logs_subscriber(query="level>=warning", since="10m") as subscriber:
        async for line in subscriber:
            print(line.timestamp, line.name, line.message)

From a runlog server every line comes exactly once, across lost connections and
restarts of the server: each line has a cursor, and a subscriber that comes back
goes on behind the last one. A Prefect server has no cursors: what it streams
comes once, and what is logged while there is no connection does not.
`SyncLogsSubscriber` is the twin for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from websockets.exceptions import InvalidURI, WebSocketException
from websockets.typing import Subprotocol as Offer

from runlog._version import __version__
from runlog.client.connecting import (
    Address,
    Connect,
    Door,
    cut_by_filter,
    failure_of,
    is_clean,
    is_cut,
    logs_out_socket_from_api_url,
)
from runlog.client.following import Following, Wish, filter_of, pause_before
from runlog.client.lines import Gap, Heartbeat, LogLine, News, RunReceipt
from runlog.exceptions import APIError, QueryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType
    from typing import Self

    from websockets.asyncio.client import ClientConnection

    from runlog.client.following import Subprotocol, SupportsModelDump
    from runlog.client.sync_subscriber import SyncLogsSubscriber

__all__ = [
    "Gap",
    "Heartbeat",
    "LogLine",
    "LogsSubscriber",
    "News",
    "RunReceipt",
    "get_logs_subscriber",
    "get_sync_logs_subscriber",
    "logs_out_socket_from_api_url",
]

HEARTBEAT = 5.0
"""Seconds without a line after which the server is to say that it is there."""

MISSED_HEARTBEATS = 3
"""So many in a row mean that the connection is dead."""

OPEN_TIMEOUT = 10.0
"""Seconds until a connection stands, and again for each answer until lines can come."""

CLOSE_TIMEOUT = 0.2
"""Seconds for a farewell. Nothing is lost without one, and behind many lines it is not heard."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one line. A runlog server takes 32 MiB at a time at most, and JSON may be longer than that."""

MAX_WAITING = 64
"""Lines that are received ahead of whoever iterates; then the server is made to wait."""

# Nobody's: what it said about each frame would be sent to the server as lines, which come as frames.
_quiet = logging.Logger("runlog.client.websockets", logging.CRITICAL + 1)  # noqa: LOG001 - on purpose no child of root


def get_logs_subscriber(
    filter: Mapping[str, Any] | SupportsModelDump | None = None,  # noqa: A002 - the name that Prefect's has
    reconnection_attempts: int = 10,
    reconnect_on_clean_close: bool = False,
    since: datetime | str | None = None,
    *,
    query: str | None = None,
    run: str | None = None,
    cursor: str | None = None,
    api_url: str | None = None,
    api_key: str | None = None,
    auth_string: str | None = None,
) -> LogsSubscriber:
    """
    Return a subscriber to the lines of the configured log server, to be entered and iterated.

    All conditions must hold for a line; without any, all lines come.

    Args:
        filter: Prefect's filter of logs, as a dictionary or as its ``LogFilter``.
        reconnection_attempts: How often in a row to come back without hearing anything of the server.
        reconnect_on_clean_close: Come back also if the connection is closed as
            it should be; otherwise the iteration ends then. A server that is
            stopped or restarted closes in another way.
        since: Only lines logged then or later, those that are stored already
            first. Aware, or text such as ``10m`` (ago) or ``2026-11-21T10:00:00Z``;
            text without a zone is in this machine's. By default only what comes from now on.
        query: An expression, such as ``level>=warning task:extract``.
        run: Id of a run: its lines, those of all that is opened in it, and its receipt.
        cursor: Go on behind it, see `LogLine.cursor`; wins over *since*, which
            goes on to choose lines.
        api_url: Address to follow; by default ``PREFECT_API_URL``, else the
            server that runs on this machine with the same ``RUNLOG_HOME``.
        api_key: By default ``PREFECT_API_KEY``.
        auth_string: ``user:password``; by default ``PREFECT_API_AUTH_STRING``. Wins over *api_key*.

    Raises:
        QueryError: If *since* is no time, or one without a zone.
        ValueError: If *reconnection_attempts* is negative.
        TypeError: If *filter* is no filter.
        SettingsError: If a setting is wrong.
    """
    wish = Wish(filter_of(filter), query, run, _moment(since), cursor)
    door = Door.from_settings(api_url, api_key=api_key, auth_string=auth_string)
    return LogsSubscriber(
        door,
        wish,
        reconnection_attempts=reconnection_attempts,
        reconnect_on_clean_close=reconnect_on_clean_close,
    )


def get_sync_logs_subscriber(
    filter: Mapping[str, Any] | SupportsModelDump | None = None,  # noqa: A002 - as above
    reconnection_attempts: int = 10,
    reconnect_on_clean_close: bool = False,
    since: datetime | str | None = None,
    *,
    query: str | None = None,
    run: str | None = None,
    cursor: str | None = None,
    api_url: str | None = None,
    api_key: str | None = None,
    auth_string: str | None = None,
) -> SyncLogsSubscriber:
    """
    Return a subscriber for a ``with`` and a ``for``; otherwise as `get_logs_subscriber`.

    Works in any thread, also in one that runs an event loop, which it then blocks.
    """
    from runlog.client.sync_subscriber import SyncLogsSubscriber  # noqa: PLC0415 - it imports this module

    return SyncLogsSubscriber(
        get_logs_subscriber(
            filter,
            reconnection_attempts,
            reconnect_on_clean_close,
            since,
            query=query,
            run=run,
            cursor=cursor,
            api_url=api_url,
            api_key=api_key,
            auth_string=auth_string,
        )
    )


class LogsSubscriber:
    """
    Lines as they are logged. An asynchronous context manager and iterator; made by `get_logs_subscriber`.

    Entering it connects: of a runlog server, all that is stored from then on will
    come. What is wrong with address, credentials or conditions is raised there; a
    Prefect server tells of a wrong filter with the first line. Iterating gives
    `LogLine` objects; `news` also tells of gaps, heartbeats and the receipt of a
    run. One that was left may be entered again, and goes on behind its last line.

    For one task. Cancelling an iteration loses nothing.

    Args:
        door: How to get to the server.
        wish: Which lines, and from where on.
        reconnection_attempts: See `get_logs_subscriber`.
        reconnect_on_clean_close: See `get_logs_subscriber`.
        heartbeat: Seconds without a line after which the server is to say that
            it is there, 0.1 to 3600. A connection on which it does not for three
            times as long is dead.
        pause: Seconds to wait before an attempt to come back, by its number from
            1; by default 1 s, doubling up to 30 s, with jitter.

    Raises:
        APIError: When it is entered or iterated: the server cannot be reached,
            refuses the credentials, or is none. While it is iterated, only once
            all attempts have failed.
        QueryError: The same: the server cannot make sense of what is asked for.
    """

    def __init__(
        self,
        door: Door,
        wish: Wish,
        *,
        reconnection_attempts: int = 10,
        reconnect_on_clean_close: bool = False,
        heartbeat: float = HEARTBEAT,
        pause: Callable[[int], float] = pause_before,
    ) -> None:
        self._following = Following(
            wish, reconnection_attempts=reconnection_attempts, heartbeat_s=heartbeat, pause=pause
        )
        self._door = door
        self._reconnect_on_clean_close = reconnect_on_clean_close
        self._silence = heartbeat * MISSED_HEARTBEATS
        self._websocket: ClientConnection | None = None
        self._address: Address | None = None
        self._waiting: deque[News] = deque()  # said before lines could come
        self._is_entered = False
        self._is_over = False
        self.receipt: dict[str, Any] | None = None
        """Of the run that is followed, once it has ended."""
        self.on_gap: Callable[[Gap], object] | None = None
        """Called for each gap, before the lines behind it."""

    def __repr__(self) -> str:
        state = "left" if not self._is_entered else "connected" if self._websocket else "disconnected"
        return f"<{type(self).__name__} of {self._door.api_url or 'the local server'}, {state}>"

    @property
    def cursor(self) -> str | None:
        """The place behind the last line, for one that is to go on there; `None` while there is none."""
        return self._following.cursor

    @property
    def protocol(self) -> Subprotocol | None:
        """What is spoken with the server; `None` while there is no connection."""
        return cast("Subprotocol", self._websocket.subprotocol) if self._websocket is not None else None

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise RuntimeError("a subscriber is entered once at a time; make another one")
        try:
            await self._connect()
        except _FAILURES as error:
            raise failure_of(error, self._address_or_none()).error from _cause(error)
        self._is_entered, self._is_over = True, False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_entered = False
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogLine:
        """Return the next line, however long it takes."""
        while True:
            news = await self._next()
            if isinstance(news, LogLine):
                return news

    async def news(self) -> AsyncIterator[News]:
        """Yield all that the server tells: `LogLine`, `Gap`, `RunReceipt` and `Heartbeat`."""
        while True:
            try:
                news = await self._next()
            except StopAsyncIteration:
                return
            yield news

    # --- one after the other ------------------------------------------------------------------------

    async def _next(self) -> News:
        if not self._is_entered:
            raise RuntimeError("a subscriber is iterated where it is entered: async with subscriber: ...")
        if self._is_over:
            raise StopAsyncIteration
        while True:
            try:
                if self._websocket is None:
                    await self._connect()
                if self._waiting:
                    news: News | None = self._waiting.popleft()
                else:
                    news = self._following.take(await self._receive())
            except _FAILURES as error:
                await self._recover(error)
                continue
            if news is None:
                continue
            if isinstance(news, RunReceipt):
                self.receipt = news.receipt
            elif isinstance(news, Gap) and self.on_gap is not None:
                self.on_gap(news)
            return news

    async def _receive(self) -> str | bytes:
        websocket = self._websocket
        pong: asyncio.Future[float] | None = None
        assert websocket is not None
        has_heartbeats = websocket.subprotocol == "runlog"
        while True:
            try:
                async with asyncio.timeout(self._silence if has_heartbeats else self._silence / 2):
                    return await websocket.recv()
            except TimeoutError:
                if has_heartbeats or (pong is not None and not pong.done()):
                    raise TimeoutError(f"nothing was heard of it for {self._silence:g} s") from None
            # A Prefect server is asked now and then whether it is there.
            if pong is not None:
                self._following.alive()
            pong = cast("asyncio.Future[float]", await websocket.ping())

    async def _recover(self, error: Exception) -> None:
        """Wait until it is time to come back, or raise what ends the iteration."""
        is_prefect = self.protocol == "prefect"
        self._drop()
        if not self._reconnect_on_clean_close and is_clean(error):
            self._is_over = True
            raise StopAsyncIteration
        failure = failure_of(error, self._address_or_none())
        if is_prefect and is_cut(error) and self._following.cut_off():
            failure = cut_by_filter(self._address_or_none())
        # What a local server published may be of the one before: a new one has another token.
        is_final = failure.is_final and (
            isinstance(failure.error, QueryError) or self._door.has_own_credentials
        )
        pause = None if is_final else self._following.failed()
        if pause is None:
            self._is_over = True
            raise failure.error from _cause(error)
        await asyncio.sleep(pause)

    # --- one connection -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Connect, and return once lines can come."""
        self._address = None
        address = self._address = self._door.address()
        websocket = await Connect(
            address.socket_url,
            ssl=self._door.tls(address),
            subprotocols=[Offer("prefect"), Offer("runlog")],
            additional_headers=self._door.headers,
            user_agent_header=f"runlog/{__version__}",
            compression=None,  # costs more time than it saves on a local network
            open_timeout=OPEN_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            # A program that takes its time over a line answers no pings meanwhile, and is alive.
            ping_interval=None,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=MAX_WAITING,
            logger=_quiet,
        )
        self._websocket = websocket
        try:
            await self._greet(websocket, address.token)
        except BaseException:
            self._drop()
            raise

    async def _greet(self, websocket: ClientConnection, token: str | None) -> None:
        following, protocol = self._following, websocket.subprotocol
        if protocol is None:
            raise APIError("it speaks neither runlog's protocol nor that of Prefect 3")
        async with asyncio.timeout(OPEN_TIMEOUT):
            await websocket.send(following.auth_message(token))
            following.check_auth(await websocket.recv())
            await websocket.send(following.filter_message(cast("Subprotocol", protocol)))
        self._waiting.clear()
        if protocol == "runlog":
            async with asyncio.timeout(OPEN_TIMEOUT):
                # A heartbeat, which says that it follows; before it perhaps a gap.
                while not self._waiting or isinstance(self._waiting[-1], Gap):
                    news = following.take(await websocket.recv())
                    if news is not None:
                        self._waiting.append(news)

    def _drop(self) -> None:
        """Forget a connection without a farewell: there may be nobody at the other end."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            websocket.transport.abort()

    def _address_or_none(self) -> Address:
        return self._address or Address(self._door.api_url or "", None)


_FAILURES = (OSError, EOFError, TimeoutError, ValueError, WebSocketException, APIError, QueryError)
"""What may go wrong with a connection. `asyncio.CancelledError` is none of them."""


def _cause(error: Exception) -> Exception | None:
    """Return what to show as the cause; not what repeats an address with its password."""
    return None if isinstance(error, InvalidURI | APIError | QueryError) else error


def _moment(since: datetime | str | None) -> datetime | None:
    if since is None:
        return None
    if isinstance(since, str):
        from runlog._times import parse_time  # noqa: PLC0415 - for those who name a time

        try:
            return parse_time(since, zone=datetime.now().astimezone().tzinfo or UTC)
        except ValueError as error:
            raise QueryError(f"since: {error}") from None
    if since.tzinfo is None:
        raise QueryError(f"since must be a time with a zone, got {since.isoformat()}; use datetime.now(UTC)")
    return since
