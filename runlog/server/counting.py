"""
What is counted of lines: by level, by group, by time. Values and arithmetic, no I/O.

A storage counts by raw level and by whole steps of time; `histogram_answer` and
`counts_answer` in `runlog.server.routes.lines` make answers of it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from runlog.server.run_summary import LEVELS, level_index

GroupBy = Literal["logger", "task", "flow"]

MAX_GROUPS = 100
"""Groups in an answer, those with the most lines."""

MAX_BUCKETS = 1000

_MS = 1_000_000
_S = 1000 * _MS
WIDTHS_NS = (
    *(step * _MS for step in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(step * _S for step in (1, 2, 5, 10, 15, 30)),
    *(step * 60 * _S for step in (1, 2, 5, 10, 15, 30)),
    *(step * 3600 * _S for step in (1, 2, 3, 6, 12)),
    *(step * 86_400 * _S for step in (1, 2, 7, 14, 28, 91, 364, 1820, 3640, 36_400)),
)
"""Steps of time that people read easily, in nanoseconds, ascending; the longest cuts 584 years into six."""


class LineCount(NamedTuple):
    """How many lines of one level are in one group."""

    group: str | None
    """The logger's, task's or flow's name; `None` of lines without, and where nothing is grouped by."""
    level: int
    lines: int


class TimeCount(NamedTuple):
    """How many lines of one level are in one step of time."""

    step: int
    """The step's number: its beginning, in nanoseconds since the epoch, divided by the width."""
    level: int
    lines: int


class Histogram(NamedTuple):
    """Lines by time and level."""

    width_ns: int
    first_step: int
    last_step: int
    counts: list[TimeCount]
    """Steps without lines are left out."""


def choose_width(first_ns: int, last_ns: int, max_buckets: int) -> int:
    """
    Return the shortest of `WIDTHS_NS` that cuts a period into few enough steps.

    Args:
        first_ns: Its beginning.
        last_ns: Its last nanosecond.
        max_buckets: Most steps; at least 7. A period that begins within a step touches one more.
    """
    for width in WIDTHS_NS:
        if last_ns // width - first_ns // width < max_buckets:
            return width
    return WIDTHS_NS[-1]


def by_level_name(counts: list[tuple[int, int]]) -> dict[str, int]:
    """
    Return how many lines there are of each named level.

    Args:
        counts: Levels and numbers of lines; a custom level counts as the one below it.
    """
    found = dict.fromkeys(LEVELS, 0)
    for level, lines in counts:
        found[LEVELS[level_index(level)]] += lines
    return found
