"""
Ask a runlog server for what it stores, and follow what comes.

The names below are loaded when they are first used here, because they bring the
HTTP client and the WebSocket client with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runlog.client.lines import Gap, Heartbeat, LogLine, RunReceipt
    from runlog.client.reader import LogReader, ServerHealth
    from runlog.client.subscriber import (
        LogsSubscriber,
        get_logs_subscriber,
        get_sync_logs_subscriber,
        logs_out_socket_from_api_url,
    )
    from runlog.client.sync_subscriber import SyncLogsSubscriber

_HOME_OF = {
    "Gap": "runlog.client.lines",
    "Heartbeat": "runlog.client.lines",
    "LogLine": "runlog.client.lines",
    "RunReceipt": "runlog.client.lines",
    "LogReader": "runlog.client.reader",
    "ServerHealth": "runlog.client.reader",
    "LogsSubscriber": "runlog.client.subscriber",
    "get_logs_subscriber": "runlog.client.subscriber",
    "get_sync_logs_subscriber": "runlog.client.subscriber",
    "logs_out_socket_from_api_url": "runlog.client.subscriber",
    "SyncLogsSubscriber": "runlog.client.sync_subscriber",
}
"""Module of each name."""

__all__ = [
    "Gap",
    "Heartbeat",
    "LogLine",
    "LogReader",
    "LogsSubscriber",
    "RunReceipt",
    "ServerHealth",
    "SyncLogsSubscriber",
    "get_logs_subscriber",
    "get_sync_logs_subscriber",
    "logs_out_socket_from_api_url",
]


def __getattr__(name: str) -> Any:
    """Load a name on first use (:pep:`562`)."""
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
