"""
What a subscriber says, what it makes of the answers, and when it gives up. No I/O, no clock.

`runlog.client.subscriber` opens connections, and asks here what to send on a new
one, what each message means, and whether a failure is worth another try. Both
protocols of ``WS /logs/out`` begin alike: who one is, then which lines one wants.
On ``runlog``, each line has a cursor, and a subscriber that comes back says where
it was. On ``prefect`` there are no places: what was logged in between is gone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from runlog.client.lines import Heartbeat, LogLine, RunReceipt, decode_news
from runlog.exceptions import APIError, QueryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from runlog.client.lines import News

Subprotocol = Literal["runlog", "prefect"]

SEEN_LINES = 50_000
"""Ids of lines that are remembered, so that none is passed on twice: some 10 MB."""

CUTS_BY_FILTER = 3
"""Connections of a Prefect server that are cut in a row, each as soon as it has the filter."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before the first attempt to come back, and most seconds before any."""


@runtime_checkable
class SupportsModelDump(Protocol):
    """A model of pydantic's, such as Prefect's ``LogFilter``."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the model as a dictionary; with mode ``json``, of what JSON has."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which lines are wanted, and from where on."""

    filter: Mapping[str, Any] | None = None
    """Prefect's filter of logs."""
    query: str | None = None
    """An expression."""
    run: str | None = None
    """Lines of the run with this id and of all that is opened in it."""
    since: datetime | None = None
    """Aware. Earliest time of a line."""
    cursor: str | None = None
    """Begin behind it; counts before `since`. Without either, what comes from now on."""


def filter_of(given: Mapping[str, Any] | SupportsModelDump | None) -> Mapping[str, Any] | None:
    """
    Return a filter as JSON has it.

    Raises:
        TypeError: If it is no filter.
    """
    if given is None:
        return None
    asked = given.model_dump(mode="json") if isinstance(given, SupportsModelDump) else given
    try:
        built = msgspec.to_builtins(asked, str_keys=True)
    except TypeError as error:
        raise TypeError(f"filter must be a dictionary that JSON can express: {error}") from error
    if not isinstance(built, dict):
        raise TypeError(
            f"filter must be a dictionary, or have model_dump() as Prefect's LogFilter has, got {given!r}"
        )
    return built


def pause_before(attempt: int) -> float:
    """
    Return the seconds to wait before an attempt to come back.

    Drawn from the upper half of a step that doubles each time, so that the many
    subscribers of a server that was restarted do not come at once.

    Args:
        attempt: From 1.
    """
    step = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 30))
    return step * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret


class Following:
    """
    One subscription, over as many connections as it takes.

    Args:
        wish: What is wanted.
        reconnection_attempts: How often in a row to come back without hearing anything.
        heartbeat_s: Seconds without a line after which the server is to say that it is there.
        pause: See `pause_before`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        wish: Wish,
        *,
        reconnection_attempts: int,
        heartbeat_s: float,
        pause: Callable[[int], float] = pause_before,
    ) -> None:
        if reconnection_attempts < 0:
            raise ValueError(f"reconnection_attempts must be >= 0, got {reconnection_attempts}")
        if not 0.1 <= heartbeat_s <= 3600:
            raise ValueError(f"heartbeat must be from 0.1 to 3600 s, got {heartbeat_s}")
        self._wish = wish
        self._attempts = reconnection_attempts
        self._heartbeat_s = heartbeat_s
        self._pause = pause
        self._failures = 0
        self._is_greeted = False
        self._has_heard = False
        self._cuts = 0
        self._seen: dict[int, None] = {}  # in the order in which they came
        self._receipt: RunReceipt | None = None
        self.cursor = wish.cursor
        """The place to come back to; `None` while there is none."""

    def __repr__(self) -> str:
        return f"<Following from {self.cursor}, {self._failures} failures>"

    # --- what to say --------------------------------------------------------------------------------

    def auth_message(self, token: str | None) -> str:
        """Return the first message."""
        return _text({"type": "auth", "token": token})

    def check_auth(self, answer: str | bytes) -> None:
        """
        Look at the answer to the first message.

        Raises:
            APIError: If the server does not know the token, or answers something else.
        """
        try:
            message = msgspec.json.decode(answer, type=dict[str, Any])
        except (ValueError, RecursionError):
            message = {}
        if message.get("type") == "auth_success":
            self._is_greeted = self._has_heard = False
            return
        reason = str(message.get("reason") or "")[:200]
        if message.get("type") != "auth_failure" and not reason:
            raise APIError("it answers the greeting with something else than a log server would")
        raise APIError(refusal(reason), status=401)

    def filter_message(self, protocol: Subprotocol) -> str:
        """
        Return the second message.

        Raises:
            QueryError: If a Prefect server is asked for what it does not have.
        """
        wish = self._wish
        if protocol == "runlog":
            return _text(
                {
                    "type": "filter",
                    "filter": wish.filter,
                    "query": wish.query,
                    "run": wish.run,
                    "cursor": self.cursor,
                    "since": wish.since.isoformat() if wish.since is not None else None,
                    "heartbeat": self._heartbeat_s,
                }
            )
        for name in ("query", "run", "since", "cursor"):
            if getattr(wish, name) is not None:
                raise QueryError(
                    f"{name} needs a runlog server, and this is a Prefect server: it streams what comes "
                    "from now on, by a filter"
                )
        return _text({"type": "filter", "filter": wish.filter or {}})

    # --- what is heard ------------------------------------------------------------------------------

    def take(self, message: str | bytes) -> News | None:
        """
        Return what a message says; `None` if it is nothing new.

        Raises:
            APIError: If no log server would send it.
        """
        try:
            news = decode_news(message)
        except (ValueError, RecursionError) as error:
            raise APIError(f"it sent something that cannot be understood: {error}") from error
        if news is None:
            return None
        if isinstance(news, LogLine):
            self.alive()
            self.cursor = news.cursor or self.cursor
            return news if self._is_new(news) else None
        if isinstance(news, Heartbeat):
            # The first one says that the filter was understood: a server that ends after
            # that, again and again, has told nothing.
            if self._is_greeted:
                self.alive()
            self._is_greeted = True
        if isinstance(news, RunReceipt):
            # A server says it again on each connection.
            is_known, self._receipt = news == self._receipt, news
            return None if is_known else news
        self.cursor = news.cursor
        return news

    def alive(self) -> None:
        """Note that the server is there: attempts are counted anew."""
        self._failures = self._cuts = 0
        self._has_heard = True

    def _is_new(self, line: LogLine) -> bool:
        number = line.id.int
        if number in self._seen:
            return False
        self._seen[number] = None
        if len(self._seen) > SEEN_LINES:
            del self._seen[next(iter(self._seen))]
        return True

    # --- when it fails ------------------------------------------------------------------------------

    def failed(self) -> float | None:
        """Return the seconds after which to try again; `None` if that was the last attempt."""
        self._failures += 1
        return None if self._failures > self._attempts else self._pause(self._failures)

    def cut_off(self) -> bool:
        """
        Note that the connection was cut after the greeting; returns whether the filter is to blame.

        A Prefect server that cannot make sense of a filter, and has more to say
        about it than fits into a close frame, says nothing and is gone.
        """
        if self._has_heard or self._wish.filter is None:
            return False
        self._cuts += 1
        return self._cuts >= CUTS_BY_FILTER


def refusal(reason: str) -> str:
    """Return what to tell of a server that does not accept the credentials."""
    said = f" ({reason})" if reason else ""
    return (
        f"it refuses the credentials{said}; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to what it expects"
    )


def _text(message: dict[str, Any]) -> str:
    return msgspec.json.encode(message).decode()
