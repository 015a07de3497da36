"""What bounds the delivery to one target, and what happens at the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WhenFull = Literal["block", "drop_oldest", "drop_newest"]
"""What becomes of an event for which the queue has no room."""

Durability = Literal["memory", "spool", "sync"]
"""
What an event survives once its call has returned.

``memory``: a normal end of the program. ``spool``: also a kill of the process.
``sync``: what a flush confirmed survives a power cut as well.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one worker. Defaults are those of the settings of the same names."""

    max_batch_bytes: int = 4_000_000
    batch_interval: float = 2.0
    """Longest time an event waits to be sent, in seconds."""
    linger: float | None = None
    """
    Least time between two batches that are not full, in seconds; by default ``batch_interval``.

    With less than that, the first event after a pause goes at once. Where the
    server takes long to answer, it is ten times as long as that.
    """
    max_queue_bytes: int = 16 * 1024 * 1024
    when_full: WhenFull = "block"
    block_timeout: float = 0.1
    """Longest time that a log call waits for room, in seconds, with ``block``."""
    shutdown_timeout: float = 5.0
    """Longest time that the end of the program waits for delivery, in seconds."""
    durability: Durability = "memory"
    max_spool_bytes: int = 1024 * 1024 * 1024
