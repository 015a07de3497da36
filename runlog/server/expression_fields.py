"""
The fields of a query expression: what ``name operator value`` means. Pure.

`runlog.server.expression` takes a term apart and asks `condition_of` for its
condition. A name that is no field's, or stands in quotes, is an attribute's.
``!=`` always means that there is such a thing and that it is another; for all
other lines as well, negate the term.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from runlog.exceptions import QueryError
from runlog.server.attributes import OPERATORS, AttributeMatches, Typed
from runlog.server.conditions import (
    AttemptBetween,
    ExceptionMatches,
    LineMatches,
    LoggerMatches,
    Not,
    ScopeMatches,
    any_of,
)
from runlog.server.query import AllOf, LevelBetween, TimeBetween
from runlog.server.text_tests import Contains, Equals, InNamespace, IsThere, StartsWith
from runlog.server.times import parse_moment

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from runlog.server.conditions import ExceptionPart, LineColumn, ScopeColumn
    from runlog.server.query import Condition
    from runlog.server.text_tests import Pattern, TextTest

_INT64_MAX = 2**63 - 1
_ID_PREFIX = re.compile(r"[0-9a-f-]{4,36}")
_INTEGER = re.compile(r"[+-]?\d{1,15}", re.ASCII)


class Term(NamedTuple):
    """``name operator value``, as it was typed."""

    name: str
    quoted_name: bool
    operator: str
    value: Typed
    pattern: Pattern | None
    """What ``~`` looks for; `None` with any other operator."""
    name_at: int
    """Where it stands in the expression, from 0."""
    value_at: int
    now_ns: int
    zone: tzinfo | None

    @property
    def text(self) -> str:
        """The value as text."""
        return self.value.text

    def wrong_value(self, expected: str) -> NoReturn:
        """
        Say what the value should have been.

        Raises:
            QueryError: Always.
        """
        raise QueryError(
            f"expected {expected} after {self.name}{self.operator}, got {self.text[:100]!r}",
            position=self.value_at,
        )

    def allow(self, *operators: str) -> None:
        """
        Say which operators there are, if it has another.

        Raises:
            QueryError: If it has.
        """
        if self.operator not in operators:
            raise QueryError(
                f"{self.name} goes with {' '.join(operators)} and not with {self.operator}; "
                f'an attribute of this name is written "{self.name}" in quotes',
                position=self.name_at + len(self.name),
            )


def condition_of(term: Term) -> Condition:
    """
    Return what a term stands for.

    Raises:
        QueryError: If the field has no such operator or value.
    """
    field = None if term.quoted_name else _FIELDS.get(term.name.lower())
    return field(term) if field is not None else _attribute(term)


def _attribute(term: Term) -> Condition:
    if term.operator == "!=":
        other = AttributeMatches(term.name, "=", term.value)
        return AllOf((AttributeMatches(term.name, "has"), Not(other)))
    for operator in OPERATORS:
        if operator == term.operator:
            if term.pattern is not None and term.pattern.ignore_case:
                return AttributeMatches(term.name, "~", Typed(f"(?i){term.text}"))
            return AttributeMatches(term.name, operator, term.value)
    raise AssertionError(f"the grammar has no operator {term.operator}")


# --- numbers and times --------------------------------------------------------------------------------


def _level(term: Term) -> Condition:
    term.allow(":", "=", "!=", "<", "<=", ">", ">=")
    names = logging.getLevelNamesMapping()
    level = names.get(term.text.upper())
    if level is None:
        if not _INTEGER.fullmatch(term.text):
            term.wrong_value(f"a number or one of {', '.join(names)}")
        level = int(term.text)
    return _bounds(term.operator, level, LevelBetween)


def _attempt(term: Term) -> Condition:
    term.allow(":", "=", "!=", "<", "<=", ">", ">=")
    if not _INTEGER.fullmatch(term.text):
        term.wrong_value("a number")
    return _bounds(term.operator, int(term.text), AttemptBetween)


def _timestamp(term: Term) -> Condition:
    term.allow("=", "!=", "<", "<=", ">", ">=")
    return _bounds(term.operator, _moment(term), TimeBetween)


def _bounds(operator: str, value: int, between: Callable[[int | None, int | None], Condition]) -> Condition:
    """Return a comparison as bounds, both inclusive."""
    low, high = max(value - 1, -_INT64_MAX), min(value + 1, _INT64_MAX)
    if operator == "!=":
        return AllOf((between(None, None), Not(between(value, value))))
    bounds = {
        "<": (None, low),
        "<=": (None, value),
        ">": (high, None),
        ">=": (value, None),
    }
    return between(*bounds.get(operator, (value, value)))


def _time(operator: str) -> Callable[[Term], Condition]:
    def condition(term: Term) -> Condition:
        term.allow(":", "=")
        return _bounds(operator, _moment(term), TimeBetween)

    return condition


def _moment(term: Term) -> int:
    try:
        return parse_moment(term.text, now_ns=term.now_ns, zone=term.zone)
    except ValueError:
        term.wrong_value("a time such as 10m, 2h30m, today, 2026-11-21 or 2026-11-21T10:00:00Z")


# --- texts --------------------------------------------------------------------------------------------


def _text_condition(term: Term, exactly: TextTest, condition: Callable[[TextTest], Condition]) -> Condition:
    """Return what ``: = != ~`` mean for a text of which ``:`` says what it is."""
    term.allow(":", "=", "!=", "~")
    if term.pattern is not None:
        return condition(term.pattern)
    found = condition(exactly)
    return AllOf((condition(IsThere()), Not(found))) if term.operator == "!=" else found


def _namespace(term: Term) -> TextTest:
    """Return the test of a dotted name, where ``etl.*`` takes what is below ``etl`` as well."""
    if term.text.endswith(".*") and not term.value.quoted:
        return InNamespace(term.text.removesuffix(".*"))
    return Equals(term.text)


def _scope(*columns: ScopeColumn) -> Callable[[Term], Condition]:
    return lambda term: _text_condition(term, Equals(term.text), lambda test: any_of(columns, test))


def _run(term: Term) -> Condition:
    term.allow(":", "=", "!=")
    exact = any_of(_RUN_COLUMNS, Equals(term.text))
    lower = term.text.lower()
    if _ID_PREFIX.fullmatch(lower):
        exact = ScopeMatches(
            (*exact.tests, ("flow_run_id", StartsWith(lower)), ("task_run_id", StartsWith(lower)))
        )
    return AllOf((any_of(_RUN_COLUMNS, IsThere()), Not(exact))) if term.operator == "!=" else exact


def _logger(term: Term) -> Condition:
    return _text_condition(term, _namespace(term), LoggerMatches)


def _event(term: Term) -> Condition:
    return _text_condition(term, _namespace(term), lambda test: LineMatches("event_name", test))


def _id(column: LineColumn) -> Callable[[Term], Condition]:
    def condition(term: Term) -> Condition:
        term.allow(":", "=", "!=")
        return _text_condition(term, Equals(term.text.lower()), lambda test: LineMatches(column, test))

    return condition


def _message(term: Term) -> Condition:
    if term.operator == ":":
        return LineMatches("message", Contains(_lower(term)))
    return _text_condition(term, Equals(term.text), lambda test: LineMatches("message", test))


def _exception(term: Term) -> Condition:
    if term.operator == ":":
        return ExceptionMatches("text", Contains(_lower(term)))
    part: ExceptionPart = "text" if term.pattern is not None else "type"
    return _text_condition(term, Equals(term.text), lambda test: ExceptionMatches(part, test))


def _lower(term: Term) -> str:
    if not term.text:
        term.wrong_value("text")
    return term.text.lower()


def _has(term: Term) -> Condition:
    term.allow(":", "=")
    if not term.text:
        term.wrong_value("the name of a field or an attribute")
    known = None if term.value.quoted else _HAS.get(term.text.lower())
    return known if known is not None else AttributeMatches(term.text, "has")


_RUN_COLUMNS: tuple[ScopeColumn, ...] = ("flow_run_id", "task_run_id", "flow_run_name", "task_run_name")
_FLOW_COLUMNS: tuple[ScopeColumn, ...] = ("flow_name", "flow_run_name", "flow_run_id")
_TASK_COLUMNS: tuple[ScopeColumn, ...] = ("task_name", "task_run_name", "task_run_id")
_SCOPE_COLUMNS: tuple[ScopeColumn, ...] = (
    *_FLOW_COLUMNS,
    *_TASK_COLUMNS,
    "parent_flow_run_id",
    "parent_task_run_id",
)

_FIELDS: dict[str, Callable[[Term], Condition]] = {
    "level": _level,
    "timestamp": _timestamp,
    "since": _time(">="),
    "after": _time(">"),
    "until": _time("<="),
    "before": _time("<"),
    "flow": _scope(*_FLOW_COLUMNS),
    "task": _scope(*_TASK_COLUMNS),
    "run": _run,
    **{column: _scope(column) for column in _SCOPE_COLUMNS},
    "attempt": _attempt,
    "logger": _logger,
    "name": _logger,
    "message": _message,
    "event": _event,
    "event_name": _event,
    "trace": _id("trace_id"),
    "trace_id": _id("trace_id"),
    "span": _id("span_id"),
    "span_id": _id("span_id"),
    "exception": _exception,
    "has": _has,
}
"""What the terms of each field stand for, by the field's name; names of the log event are among them."""

_HAS: dict[str, Condition] = {
    "flow": any_of(_FLOW_COLUMNS, IsThere()),
    "task": any_of(_TASK_COLUMNS, IsThere()),
    "run": any_of(_RUN_COLUMNS, IsThere()),
    **{column: any_of((column,), IsThere()) for column in _SCOPE_COLUMNS},
    "attempt": AttemptBetween(),
    "event": LineMatches("event_name", IsThere()),
    "event_name": LineMatches("event_name", IsThere()),
    "trace": LineMatches("trace_id", IsThere()),
    "trace_id": LineMatches("trace_id", IsThere()),
    "span": LineMatches("span_id", IsThere()),
    "span_id": LineMatches("span_id", IsThere()),
    "exception": ExceptionMatches("text", IsThere()),
}
"""What ``has:`` asks for; a field that every line has is not among them."""

FIELD_NAMES = tuple(sorted(_FIELDS))
"""Names that mean a field unless they are in quotes."""
