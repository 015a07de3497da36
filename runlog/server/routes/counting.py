"""How many lines there are: by level, by group, by time. For whoever looks at many before reading few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from starlette.routing import Route

from runlog.records import format_timestamp
from runlog.server.body import json_response
from runlog.server.counting import MAX_BUCKETS, MAX_GROUPS, GroupBy, by_level_name
from runlog.server.parameters import (
    CONDITION_PARAMETERS,
    choice_of,
    conditions,
    integer_of,
    parameters,
    time_of,
)
from runlog.server.query import AllOf, LogQuery
from runlog.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from runlog.server.counting import Histogram

DEFAULT_BUCKETS = 60
MIN_BUCKETS = 7
"""No fewer can be promised: where a step of a hundred years is too short, there is no longer one."""

_COUNT_PARAMETERS = CONDITION_PARAMETERS | {"run", "by"}
_HISTOGRAM_PARAMETERS = CONDITION_PARAMETERS | {"run", "buckets"}


async def get_counts(request: Request) -> Response:
    """Answer how many lines of each level match, and for each logger, task or flow apart if asked."""
    ask = parameters(request, _COUNT_PARAMETERS)
    by: GroupBy | None = choice_of(ask, "by", get_args(GroupBy))  # type: ignore[assignment] # one of them
    counts = await state_of(request).storage.count_lines(_query(ask), by)
    groups: dict[str | None, list[tuple[int, int]]] = {}
    for group, level, lines in counts:
        groups.setdefault(group, []).append((level, lines))
    answer: dict[str, Any] = {
        "lines": sum(count.lines for count in counts),
        "counts": by_level_name([(count.level, count.lines) for count in counts]),
    }
    if by is not None:
        told: list[dict[str, Any]] = [
            {by: group, "lines": sum(lines for _, lines in levels), "counts": by_level_name(levels)}
            for group, levels in groups.items()
        ]
        told.sort(key=lambda group: (-group["lines"], group[by] or ""))
        answer |= {"groups": told[:MAX_GROUPS], "groups_left_out": max(len(told) - MAX_GROUPS, 0)}
    return json_response(answer)


async def get_histogram(request: Request) -> Response:
    """Answer how many lines of each level match in each step of time, from the first to the last."""
    ask = parameters(request, _HISTOGRAM_PARAMETERS)
    histogram = await state_of(request).storage.read_histogram(
        _query(ask),
        earliest_ns=time_of(ask, "since"),
        latest_ns=time_of(ask, "until"),
        max_buckets=integer_of(ask, "buckets", DEFAULT_BUCKETS, MIN_BUCKETS, MAX_BUCKETS),
    )
    if histogram is None:
        return json_response({"width_s": None, "buckets": []})
    return json_response({"width_s": histogram.width_ns / 1e9, "buckets": _buckets(histogram)})


def _query(ask: dict[str, str]) -> LogQuery:
    return LogQuery(where=AllOf(tuple(conditions(ask))), within=ask.get("run"))


def _buckets(histogram: Histogram) -> list[dict[str, Any]]:
    """Return all steps from the first to the last, those without lines as well."""
    levels: dict[int, list[tuple[int, int]]] = {
        step: [] for step in range(histogram.first_step, histogram.last_step + 1)
    }
    for step, level, lines in histogram.counts:
        levels[step].append((level, lines))
    return [
        {
            "start": format_timestamp(step * histogram.width_ns),
            "lines": sum(lines for _, lines in found),
            "counts": by_level_name(found),
        }
        for step, found in levels.items()
    ]


ROUTES = [
    Route("/runlog/v1/logs/counts", get_counts),
    Route("/runlog/v1/logs/histogram", get_histogram),
]
