"""
Who sends: one producer for each incarnation of a process.

A forked or spawned child is a producer of its own, with its own sequence; so is
the same program started again. The server keeps one high-water mark for each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from runlog.records import new_producer_id


@dataclass(frozen=True, slots=True)
class Producer:
    """The identity under which events go to a target."""

    id: str = field(default_factory=new_producer_id)
    """20 lower-case hex digits."""
    pid: int = field(default_factory=os.getpid)
    """The process that it belongs to."""
    resource: bytes = b"{}"
    """OpenTelemetry resource attributes of that process, as one JSON object."""
