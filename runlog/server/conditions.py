"""
Conditions that `runlog.server.expression` makes, beside those of `runlog.server.query`.

`TextTest`s are asked about what a line says of its run (`ScopeMatches`), its
logger, its own texts, its exception. `Not` turns any condition round. As with all
conditions the SQL and the predicate stand side by side and agree; the SQL may be
NULL where the predicate is false, which ``IS NOT TRUE`` takes for what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from runlog.records import ExceptionInfo
from runlog.server import attributes, text_tests
from runlog.server.query import Sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runlog.records import LogEvent
    from runlog.server.query import Condition
    from runlog.server.text_tests import TextTest

ScopeColumn = Literal[
    "flow_run_id",
    "flow_run_name",
    "flow_name",
    "task_run_id",
    "task_run_name",
    "task_name",
    "parent_flow_run_id",
    "parent_task_run_id",
]
LineColumn = Literal["message", "event_name", "trace_id", "span_id"]
ExceptionPart = Literal["type", "message", "traceback", "text"]

_decode_exception = msgspec.json.Decoder(ExceptionInfo).decode


@dataclass(frozen=True, slots=True)
class Not:
    """The other condition does not pass."""

    part: Condition

    def sql(self) -> Sql:
        """Return what is true where the other is false or NULL."""
        inner = self.part.sql()
        return Sql(f"({inner.text}) IS NOT TRUE", inner.parameters)

    def matches(self, event: LogEvent) -> bool:
        """Return whether the other does not pass."""
        return not self.part.matches(event)


@dataclass(frozen=True, slots=True)
class ScopeMatches:
    """
    One of some texts that a line says about its run passes.

    Args:
        tests: Columns of ``scopes`` and fields of a line, with what is asked about each.
    """

    tests: tuple[tuple[ScopeColumn, TextTest], ...]

    def sql(self) -> Sql:
        """Return a look-up among the scopes, of which there are few."""
        inner = self.scope_sql()
        return Sql(f"l.scope IN (SELECT key FROM scopes WHERE {inner.text})", inner.parameters)  # noqa: S608 - literals with question marks

    def scope_sql(self) -> Sql:
        """Return the test of a row of ``scopes``."""
        found = [test.sql(column) for column, test in self.tests]
        return Sql(
            " OR ".join(f"({part.text})" for part in found),
            tuple(value for part in found for value in part.parameters),
        )

    def matches(self, event: LogEvent) -> bool:
        """Return whether one of them passes."""
        return any(test.matches(getattr(event, column)) for column, test in self.tests)


def any_of(columns: Iterable[ScopeColumn], test: TextTest) -> ScopeMatches:
    """Return one test of several columns."""
    return ScopeMatches(tuple((column, test) for column in columns))


@dataclass(frozen=True, slots=True)
class AttemptBetween:
    """The attempt is known and within bounds, both inclusive; `None` is no bound."""

    lowest: int | None = None
    highest: int | None = None

    def sql(self) -> Sql:
        """Return a look-up among the scopes."""
        tests, values = ["attempt IS NOT NULL"], []
        for operator, bound in ((">=", self.lowest), ("<=", self.highest)):
            if bound is not None:
                tests.append(f"attempt {operator} ?")
                values.append(bound)
        return Sql(f"l.scope IN (SELECT key FROM scopes WHERE {' AND '.join(tests)})", tuple(values))  # noqa: S608 - literals with question marks

    def matches(self, event: LogEvent) -> bool:
        """Return whether it is within bounds."""
        attempt = event.attempt
        return (
            attempt is not None
            and (self.lowest is None or attempt >= self.lowest)
            and (self.highest is None or attempt <= self.highest)
        )


@dataclass(frozen=True, slots=True)
class LoggerMatches:
    """The logger's name passes."""

    test: TextTest

    def sql(self) -> Sql:
        """Return a look-up among the loggers, of which there are few."""
        inner = self.test.sql("name")
        return Sql(f"l.logger IN (SELECT key FROM loggers WHERE {inner.text})", inner.parameters)  # noqa: S608 - literals with question marks

    def matches(self, event: LogEvent) -> bool:
        """Return whether it passes."""
        return self.test.matches(event.name)


@dataclass(frozen=True, slots=True)
class LineMatches:
    """A text of the line itself passes."""

    column: LineColumn
    test: TextTest

    def sql(self) -> Sql:
        """Return the test of the column."""
        return self.test.sql(f"l.{self.column}")

    def matches(self, event: LogEvent) -> bool:
        """Return whether it passes."""
        return self.test.matches(getattr(event, self.column))


@dataclass(frozen=True, slots=True)
class Says:
    """
    A word occurs in the message or in the logger's name, without regard to case.

    Args:
        word: In lower case, not empty.
    """

    word: str

    def sql(self) -> Sql:
        """Return a search in the message, and a look-up among the loggers."""
        test = text_tests.Contains(self.word)
        message, logger = test.sql("l.message"), LoggerMatches(test).sql()
        return Sql(f"({message.text} OR {logger.text})", (*message.parameters, *logger.parameters))

    def matches(self, event: LogEvent) -> bool:
        """Return whether it occurs."""
        return self.word in event.message.lower() or self.word in event.name.lower()


@dataclass(frozen=True, slots=True)
class ExceptionMatches:
    """
    The line has an exception, and a part of it passes.

    Args:
        part: ``text`` is type, message and traceback together.
        test: What is asked about it.
    """

    part: ExceptionPart
    test: TextTest

    def sql(self) -> Sql:
        """Return the test of what ``exception_part`` takes out of the JSON."""
        inner = self.test.sql(f"exception_part('{self.part}', l.exception)")
        return Sql(f"l.exception IS NOT NULL AND {inner.text}", inner.parameters)

    def matches(self, event: LogEvent) -> bool:
        """Return whether it passes."""
        return event.exception is not None and self.test.matches(_part(self.part, event.exception))


def _part(part: ExceptionPart, exception: ExceptionInfo) -> str:
    if part == "text":
        return f"{exception.type}: {exception.message}\n{exception.traceback}"
    text: str = getattr(exception, part)
    return text


def _exception_part(part: ExceptionPart, exception: str | None) -> str | None:
    return _part(part, _decode_exception(exception)) if exception is not None else None


SQL_FUNCTIONS: dict[str, tuple[int, Callable[..., str | int | None]]] = {
    **text_tests.SQL_FUNCTIONS,
    **attributes.SQL_FUNCTIONS,
    "exception_part": (2, _exception_part),
}
"""Functions that the SQL of conditions calls, by name, with the number of their arguments."""
