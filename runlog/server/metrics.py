"""
What the server counts, in the text form that Prometheus reads.

Counters are plain numbers, each raised by one thread alone: counting costs some
ten nanoseconds. What is a matter of looking, such as the size of the database,
is looked at when somebody asks.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COMMIT_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper ends of the steps by which commits are counted, in seconds."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others count as one: a method is whatever a client sends."""


class Durations:
    """
    Counts durations by steps. One thread observes, any may read.

    Args:
        bounds: Upper ends of the steps, ascending, in seconds.
    """

    def __init__(self, bounds: tuple[float, ...] = COMMIT_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Durations in each step; the last has no end."""
        self.sum_s = 0.0

    def __repr__(self) -> str:
        return f"<Durations of {sum(self.counts)}, {self.sum_s:.3f} s in all>"

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds


@dataclass(slots=True)
class IngestCounts:
    """What was put in since the start. Raised in the event loop."""

    batches: int = 0
    """That were stored or acknowledged again."""
    lines: int = 0
    """That were stored."""
    duplicates: int = 0
    """That came again, and were not stored again."""
    dropped: int = 0
    """That producers told they had given up."""


@dataclass(slots=True)
class RequestCounts:
    """What was asked since the start. Raised in the event loop."""

    by_status: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Answers, by method and status."""
    sockets: int = 0
    """Handshakes."""
    received_bytes: int = 0
    """Of bodies, as they came."""
    refused: int = 0
    """Requests and sockets without a valid credential, or with one that allows too little."""
    held_bytes: int = 0
    """Of bodies that are being taken or answered now, inflated."""


def render(families: Iterable[tuple[str, str, str, Mapping[str, float] | Durations]]) -> str:
    """
    Return metrics as text.

    Args:
        families: Name, kind (``counter``, ``gauge`` or ``histogram``), help, and the
            values by their labels as they stand between braces, ``""`` for none.
    """
    lines = []
    for name, kind, text, values in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        if isinstance(values, Durations):
            count = 0
            for bound, step in zip((*values.bounds, "+Inf"), list(values.counts), strict=True):
                count += step
                lines.append(f'{name}_bucket{{le="{bound}"}} {count}')
            lines += [f"{name}_sum {values.sum_s!r}", f"{name}_count {count}"]
        else:
            lines += [
                f"{name}{{{label}}} {value}" if label else f"{name} {value}"
                for label, value in values.items()
            ]
    return "\n".join(lines) + "\n"
