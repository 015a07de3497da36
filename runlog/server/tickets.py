"""
Tickets: how a browser opens a stream without a credential in its address.

A page cannot give headers to ``WebSocket`` or ``EventSource``, and what stands in
an address ends up in histories and in the logs of proxies. So it asks for a
ticket with its credential first: a random word that opens one stream, once, soon.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.server.principal import Principal

LIFETIME = 30.0
"""Seconds within which a ticket must be used."""

MAX_TICKETS = 10_000
"""Unused tickets that are kept; past it, the oldest is worth nothing any more."""


class Tickets:
    """
    Gives tickets out and takes them back. For one event loop; they end with the process.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, tuple[float, Principal]] = {}

    def __repr__(self) -> str:
        return f"<Tickets: {len(self._given)} not used>"

    def give(self, principal: Principal) -> str:
        """Return a ticket that stands for *principal*, as a reader."""
        now = self._clock()
        while self._given:  # the oldest come first
            oldest, (deadline, _) = next(iter(self._given.items()))
            if deadline > now and len(self._given) < MAX_TICKETS:
                break
            del self._given[oldest]
        ticket = secrets.token_urlsafe(32)
        self._given[ticket] = (now + LIFETIME, principal.only(["read"]))
        return ticket

    def take(self, ticket: str) -> Principal | None:
        """Return who a ticket stands for, and make it worthless; `None` if it is."""
        deadline, principal = self._given.pop(ticket, (0.0, None))
        return principal if deadline > self._clock() else None
