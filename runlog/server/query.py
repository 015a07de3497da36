"""
What is asked about lines, as a value.

A `LogQuery` is a condition, an order and a page. A condition knows itself twice:
as SQL with bound parameters, over the tables that `runlog.server.storage.sqlite`
describes, and as a predicate over a `LogEvent`, for streams and for storages
without SQL. Both stand side by side so that they change together; property tests
hold them equal. Nothing from outside becomes SQL text.

`runlog.server.prefect_filter` and `runlog.server.parameters` make conditions,
storages answer them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from runlog.exceptions import QueryError
from runlog.server.text_search import parse_text_search

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runlog.records import LogEvent

Order = Literal["asc", "desc"]

MAX_PAGE = 10_000
"""Most lines in one answer: some 5 MB of JSON, a quarter of a second of the server's time."""

MAX_PLACEHOLDERS = 500
"""Values that get a question mark each; databases allow 999 and more in a statement."""


class Sql(NamedTuple):
    """A condition as SQL text, and the values of its question marks in order."""

    text: str
    parameters: tuple[Any, ...]


class Condition(Protocol):
    """
    A test of one line.

    The SQL refers to the table of lines as ``l``. It may be NULL where the
    predicate is false: `runlog.server.conditions.Not` turns a condition round.
    """

    def sql(self) -> Sql:
        """Return the test as SQL."""

    def matches(self, event: LogEvent) -> bool:
        """Return whether a line passes."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part must pass; without parts, every line does."""

    parts: tuple[Condition, ...] = ()

    def sql(self) -> Sql:
        """Return the parts joined with AND."""
        return _join(self.parts, " AND ", empty="1")

    def matches(self, event: LogEvent) -> bool:
        """Return whether every part passes."""
        return all(part.matches(event) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One part must pass; without parts, no line does."""

    parts: tuple[Condition, ...]

    def sql(self) -> Sql:
        """Return the parts joined with OR."""
        return _join(self.parts, " OR ", empty="0")

    def matches(self, event: LogEvent) -> bool:
        """Return whether a part passes."""
        return any(part.matches(event) for part in self.parts)


def _join(parts: Iterable[Condition], operator: str, *, empty: str) -> Sql:
    found = [part.sql() for part in parts]
    if not found:
        return Sql(empty, ())
    text = operator.join(f"({part.text})" for part in found)
    return Sql(text, tuple(value for part in found for value in part.parameters))


@dataclass(frozen=True, slots=True)
class LevelBetween:
    """The level is within bounds, both inclusive; `None` is no bound."""

    lowest: int | None = None
    highest: int | None = None

    def sql(self) -> Sql:
        """Return the bounds as comparisons."""
        return _between("l.level", self.lowest, self.highest)

    def matches(self, event: LogEvent) -> bool:
        """Return whether the level is within bounds."""
        return _is_between(event.level, self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class TimeBetween:
    """The timestamp is within bounds in nanoseconds, both inclusive; `None` is no bound."""

    earliest_ns: int | None = None
    latest_ns: int | None = None

    def sql(self) -> Sql:
        """Return the bounds as comparisons."""
        return _between("l.timestamp_ns", self.earliest_ns, self.latest_ns)

    def matches(self, event: LogEvent) -> bool:
        """Return whether the timestamp is within bounds."""
        return _is_between(event.timestamp_ns, self.earliest_ns, self.latest_ns)


def _between(column: str, low: int | None, high: int | None) -> Sql:
    tests = [(f"{column} >= ?", low), (f"{column} <= ?", high)]
    given = [(text, value) for text, value in tests if value is not None]
    if not given:
        return Sql("1", ())
    return Sql(" AND ".join(text for text, _ in given), tuple(value for _, value in given))


def _is_between(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


@dataclass(frozen=True, slots=True)
class RunIn:
    """The line's flow run, or its task run, is one of these; without ids, no line passes."""

    kind: Literal["flow", "task"]
    ids: tuple[str, ...]

    def sql(self) -> Sql:
        """Return a look-up of the ids; one id alone is a comparison, which keeps an index's order."""
        keys = "SELECT key FROM runs WHERE kind = ? AND id"
        if len(self.ids) == 1:
            return Sql(f"l.{self.kind}_run = ({keys} = ?)", (self.kind, *self.ids))
        if len(self.ids) <= MAX_PLACEHOLDERS:
            marks = ", ".join("?" * len(self.ids))
            return Sql(f"l.{self.kind}_run IN ({keys} IN ({marks}))", (self.kind, *self.ids))
        listed = f"l.{self.kind}_run IN ({keys} IN (SELECT value FROM json_each(?)))"  # noqa: S608 - constants
        return Sql(listed, (self.kind, json.dumps(self.ids)))

    def matches(self, event: LogEvent) -> bool:
        """Return whether the run is one of them."""
        run_id = event.flow_run_id if self.kind == "flow" else event.task_run_id
        return run_id in self.ids


@dataclass(frozen=True, slots=True)
class TaskRunIsNull:
    """The line belongs to no task run, or, with ``is_null=False``, to one."""

    is_null: bool

    def sql(self) -> Sql:
        """Return a test for NULL."""
        return Sql(f"l.task_run IS {'' if self.is_null else 'NOT '}NULL", ())

    def matches(self, event: LogEvent) -> bool:
        """Return whether there is a task run, or none."""
        return (event.task_run_id is None) == self.is_null


@dataclass(frozen=True, slots=True)
class TaskIs:
    """The line belongs to a task of this name, or to a task run of this name or id."""

    name: str

    def sql(self) -> Sql:
        """Return a look-up among the scopes, of which there are few."""
        return Sql(
            "l.scope IN (SELECT key FROM scopes WHERE task_name = ? OR task_run_name = ? OR task_run_id = ?)",
            (self.name,) * 3,
        )

    def matches(self, event: LogEvent) -> bool:
        """Return whether name or id is meant."""
        return self.name in (event.task_name, event.task_run_name, event.task_run_id)


@dataclass(frozen=True, slots=True)
class FlowIs:
    """The line says that it belongs to a run of this flow."""

    name: str

    def sql(self) -> Sql:
        """Return a look-up among the scopes, of which there are few."""
        return Sql("l.scope IN (SELECT key FROM scopes WHERE flow_name = ?)", (self.name,))

    def matches(self, event: LogEvent) -> bool:
        """Return whether the flow is meant."""
        return event.flow_name == self.name


@dataclass(frozen=True, slots=True)
class LoggerIs:
    """The logger has this name, or with ``children`` one below it, as ``etl.load`` is below ``etl``."""

    name: str
    children: bool = False

    def sql(self) -> Sql:
        """Return a look-up among the loggers, of which there are few."""
        if not self.children:
            return Sql("l.logger IN (SELECT key FROM loggers WHERE name = ?)", (self.name,))
        below = f"{self.name}."
        return Sql(
            "l.logger IN (SELECT key FROM loggers WHERE name = ? OR substr(name, 1, ?) = ?)",
            (self.name, len(below), below),
        )

    def matches(self, event: LogEvent) -> bool:
        """Return whether the logger is meant."""
        return event.name == self.name or (self.children and event.name.startswith(f"{self.name}."))


@dataclass(frozen=True, slots=True)
class TextMatches:
    """Message and logger name match a search, see `runlog.server.text_search`."""

    query: str

    def sql(self) -> Sql:
        """
        Return a call of ``text_matches``, which a storage gives its connections.

        SQLite's own ``lower`` knows ASCII alone, so the rule for letters is Python's.
        """
        return Sql(
            "text_matches(?, l.message, (SELECT name FROM loggers WHERE key = l.logger))", (self.query,)
        )

    def matches(self, event: LogEvent) -> bool:
        """Return whether the text matches."""
        return parse_text_search(self.query).matches(event.message, event.name)


class Position(NamedTuple):
    """A line's place in the order of all lines. Compares as the lines do."""

    timestamp_ns: int
    producer_key: int
    """The storage's own number for a producer, in the order in which it first saw them."""
    seq: int

    def cursor(self) -> str:
        """Return the place as an opaque page token."""
        return encode_cursor(self)

    @classmethod
    def from_cursor(cls, cursor: str) -> Position:
        """
        Return the place that a page token stands for.

        Raises:
            QueryError: If it is not one of ours.
        """
        return cls(*decode_cursor(cursor, (int, int, int)))


def encode_cursor(values: tuple[Any, ...]) -> str:
    """Return a place as an opaque page token."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, kinds: tuple[type, ...]) -> list[Any]:
    """
    Return the values in a page token.

    Raises:
        QueryError: If it does not hold values of these types.
    """
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, list)
        or tuple(type(value) for value in values) != kinds
        or any(type(value) is int and not -(2**63) <= value < 2**63 for value in values)
    ):
        raise QueryError(f"cursor {cursor[:40]!r} is not one that this server gave out")
    return values


@dataclass(frozen=True, slots=True)
class LogQuery:
    """
    Which lines, in which order, from where, and how many.

    Lines are ordered by ``(timestamp, producer, seq)``, so that lines of one
    process keep their order within the resolution of its clock.
    """

    where: Condition = field(default_factory=AllOf)
    within: str | None = None
    """
    Only lines of the run with this id, and of all runs that were opened in it.

    Not a condition: which runs these are is known to the storage alone.
    """
    order: Order = "asc"
    after: Position | None = None
    """Only lines behind this place, in the direction of ``order``."""
    limit: int = 200
    """Most lines in the answer; 0 for none."""
    offset: int = 0
    """Lines to leave out first. Costs as much as reading them: page with ``after``."""
