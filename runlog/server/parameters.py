"""
Query parameters of our own routes, made into values.

What is unknown, given twice, out of range or of the wrong kind is refused with one
line that says what was expected, and never ignored.
"""

from __future__ import annotations

import logging
import time
import zoneinfo
from typing import TYPE_CHECKING, Any

from runlog.exceptions import QueryError
from runlog.server.expression import parse_expression
from runlog.server.query import LevelBetween, LoggerIs, RunIn, TaskIs, TextMatches, TimeBetween
from runlog.server.text_search import MAX_QUERY_LENGTH
from runlog.server.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from runlog.server.query import Condition

CONDITION_PARAMETERS = frozenset(
    {"query", "timezone", "flow_run_id", "task_run_id", "level", "search", "task", "logger", "since", "until"}
)
"""What `conditions` knows."""


def parameters(request: Request, known: frozenset[str]) -> dict[str, str]:
    """Return the query's parameters; one that is unknown, or given twice, is refused and not ignored."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise QueryError(f"unknown parameter {name[:100]!r}; expected one of {', '.join(sorted(known))}")
        if name in found:
            raise QueryError(f"parameter {name!r} is given twice")
        found[name] = value
    return found


def conditions(ask: dict[str, str]) -> Iterable[Condition]:
    """
    Return what lines must meet.

    Raises:
        QueryError: If a parameter makes no sense.
    """
    zone = _zone(ask["timezone"]) if "timezone" in ask else None
    if "query" in ask:
        yield parse_expression(ask["query"], now_ns=time.time_ns(), zone=zone)
    if "flow_run_id" in ask:
        yield RunIn("flow", (ask["flow_run_id"],))
    if "task_run_id" in ask:
        yield RunIn("task", (ask["task_run_id"],))
    if "level" in ask:
        yield LevelBetween(_level(ask["level"]))
    if "since" in ask or "until" in ask:
        yield TimeBetween(time_of(ask, "since"), time_of(ask, "until"))
    if "task" in ask:
        yield TaskIs(ask["task"])
    if "logger" in ask:
        name = ask["logger"]
        yield LoggerIs(name.removesuffix(".*"), children=name.endswith(".*"))
    if "search" in ask:
        if len(ask["search"]) > MAX_QUERY_LENGTH:
            raise QueryError(
                f"search must have at most {MAX_QUERY_LENGTH} characters, got {len(ask['search'])}"
            )
        yield TextMatches(ask["search"])


def integer_of(ask: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    """
    Return a number from a parameter.

    Raises:
        QueryError: If it is none, or out of range.
    """
    text = ask.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise QueryError(f"{name} must be a number from {low} to {high}, got {text[:100]!r}")
    return int(text)


def choice_of(ask: dict[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    """
    Return a word from a parameter, `None` if it is not given.

    Raises:
        QueryError: If it is none of the choices.
    """
    text = ask.get(name)
    if text is not None and text not in choices:
        raise QueryError(f"{name} must be one of {', '.join(choices)}, got {text[:100]!r}")
    return text


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except Exception as error:  # for odd names zoneinfo raises anything up to IsADirectoryError
        raise QueryError(
            f"timezone must be a name such as UTC or Europe/Paris, got {name[:100]!r}"
        ) from error


def _level(text: str) -> int:
    names: dict[str, Any] = logging.getLevelNamesMapping()
    level = names.get(text.strip().upper())
    if level is None:
        try:
            level = int(text) if len(text) < 10 else None
        except ValueError:
            level = None
    if level is None:
        raise QueryError(f"level must be a number or one of {', '.join(names)}, got {text[:100]!r}")
    return int(level)


def time_of(ask: dict[str, str], name: str) -> int | None:
    """
    Return a point in time, in nanoseconds since the epoch; `None` if the parameter is not given.

    Raises:
        QueryError: If it is none.
    """
    try:
        return parse_time(ask[name]) if name in ask else None
    except ValueError as error:
        raise QueryError(f"{name}: {error}; expected RFC 3339, or seconds since the epoch") from error
