"""
Count log lines twice, once where they are logged and once where they are stored.

The demo claims that no line is lost and none doubled. To be worth something,
the claim rests on a count that has nothing to do with delivery: a plain
`logging` handler beside the one that ships. What the server stores is read back
over HTTP and compared.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN_LOGGERS = ("runlog.flow_runs", "runlog.task_runs")
"""The loggers of which every record is shipped."""


class CountingHandler(logging.Handler):
    """Count records and keep none. Thread-safe, as `logging` holds the handler's lock around `emit`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - one record is as good as another
        """Count one record."""
        self.count += 1


@contextlib.contextmanager
def counting() -> Iterator[CountingHandler]:
    """Count what is logged on the run loggers of this process while the block runs."""
    handler = CountingHandler()
    loggers = [logging.getLogger(name) for name in RUN_LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@dataclass(frozen=True, slots=True)
class Tally:
    """Lines that were logged against lines that are stored."""

    sent: int
    """Log calls, counted where they were made."""
    stored: int
    """Lines read back from the server."""
    distinct: int
    """Lines among them that differ in (producer, seq)."""

    @property
    def doubled(self) -> int:
        """Lines that are stored more than once."""
        return self.stored - self.distinct

    @property
    def lost(self) -> int:
        """Lines that were sent and are not stored; negative if more are stored than were sent."""
        return self.sent - self.distinct

    @property
    def is_exact(self) -> bool:
        """Whether every line is stored once and only once."""
        return self.doubled == 0 and self.lost == 0


def tally(sent: int, logs: Iterable[dict[str, Any]]) -> Tally:
    """
    Compare what was sent with what is stored.

    Args:
        sent: Number of log calls.
        logs: Every line that the server has, as `runlog.client.LogReader.logs` yields them.
    """
    stored = 0
    identities = set()
    for log in logs:
        stored += 1
        identities.add((log["producer"], log["seq"]))
    return Tally(sent, stored, len(identities))
