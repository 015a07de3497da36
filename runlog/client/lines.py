"""
What a log server tells a subscriber: lines, and news about the stream itself.

A `LogLine` has the fields of Prefect's log under Prefect's names; what only a
runlog server knows has a default, so that lines of either server are used alike.
"""

from __future__ import annotations

import uuid  # noqa: TC003 - msgspec looks annotations up
from datetime import datetime  # noqa: TC003 - the same
from typing import Any

import msgspec

from runlog.records import ExceptionInfo, level_name


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """
    One line of log, as the server has it.

    Attributes from `attributes` on are known to runlog servers alone; lines of a
    Prefect server have their defaults.
    """

    id: uuid.UUID
    """The line's own; the same wherever the line is read."""
    timestamp: datetime
    """When it was logged, aware, to the microsecond."""
    level: int
    """As in `logging`."""
    name: str
    """Of the logger."""
    message: str
    flow_run_id: str | None = None
    task_run_id: str | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    """What the log call gave as ``extra``, and where in the code it stands."""
    exception: ExceptionInfo | None = None
    flow_run_name: str | None = None
    flow_name: str | None = None
    task_run_name: str | None = None
    task_name: str | None = None
    parent_flow_run_id: str | None = None
    parent_task_run_id: str | None = None
    attempt: int | None = None
    event_name: str | None = None
    """Of lines that mean something to programs, such as ``runlog.run.finished``."""
    trace_id: str | None = None
    span_id: str | None = None
    truncated_bytes: int = 0
    """How much of a message that was too long is missing."""
    observed_timestamp: datetime | None = None
    """When the server took it."""
    producer: str | None = None
    """The process that logged it."""
    seq: int | None = None
    """Its place among all lines of its producer, from 0."""
    cursor: str | None = None
    """The place behind it, for a subscriber that begins there; `None` where there are no places."""

    @property
    def level_name(self) -> str:
        """The name that `logging` has for the level, such as ``WARNING`` or ``Level 25``."""
        return level_name(self.level)


class Gap(msgspec.Struct, frozen=True, tag="gap"):
    """
    The stream is not where its reader may think; nothing is lost.

    Either the reader was slower than the lines came, and what follows is read from
    the server's store; or the cursor is not of this store, and all lines follow.
    """

    cursor: str
    """The place from which it goes on."""
    detail: str
    """Why, for people."""


class RunReceipt(msgspec.Struct, frozen=True, tag="receipt"):
    """The run that is followed has ended."""

    run: str
    """Its id."""
    receipt: dict[str, Any]
    """Whether all its lines are stored, as `LogReader.receipt` returns it."""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The server is there, and has nothing more to tell at the moment."""

    cursor: str
    """A place to come back to."""


class LogMessage(msgspec.Struct, frozen=True, tag="log"):
    """A line on the wire."""

    log: LogLine
    cursor: str | None = None


News = LogLine | Gap | RunReceipt | Heartbeat

_decoder: msgspec.json.Decoder[LogMessage | Gap | RunReceipt | Heartbeat] = msgspec.json.Decoder(
    LogMessage | Gap | RunReceipt | Heartbeat
)
_KINDS = frozenset({"log", "gap", "receipt", "heartbeat"})


def decode_news(message: str | bytes) -> News | None:
    """
    Return what a message of a server says; `None` for kinds of messages that are not known here.

    Raises:
        ValueError: If it is not such a message.
    """
    try:
        news = _decoder.decode(message)
    except msgspec.ValidationError:
        kind = msgspec.json.decode(message, type=dict[str, Any]).get("type")
        if isinstance(kind, str) and kind not in _KINDS:
            return None  # of a newer server
        raise
    if isinstance(news, Gap | RunReceipt | Heartbeat):
        return news
    if news.cursor is None:
        return news.log
    return msgspec.structs.replace(news.log, cursor=news.cursor)
