"""
Tests of one text: equal, contains, within a namespace, begins, pattern.

A test knows itself as SQL about a column and as a predicate over a text, as the
conditions of `runlog.server.query` do; `runlog.server.conditions` puts the two
together. No test passes where there is no text: the predicate says false, the
SQL false or NULL.

The SQL calls functions that a storage gives its connections; they are in
`SQL_FUNCTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runlog.server.patterns import searcher
from runlog.server.query import Sql

if TYPE_CHECKING:
    from collections.abc import Callable


class TextTest(Protocol):
    """A test of one text. The column's name is ours, never from outside."""

    def sql(self, column: str) -> Sql:
        """Return the test of a column."""

    def matches(self, text: str | None) -> bool:
        """Return whether a text passes; `None` never does."""


@dataclass(frozen=True, slots=True)
class Equals:
    """The text is this one, letter for letter."""

    text: str

    def sql(self, column: str) -> Sql:
        """Return a comparison."""
        return Sql(f"{column} = ?", (self.text,))

    def matches(self, text: str | None) -> bool:
        """Return whether it is the text."""
        return text == self.text


@dataclass(frozen=True, slots=True)
class Contains:
    """
    The text contains this one, without regard to case.

    Args:
        part: Made lower-case by whoever makes the test.
    """

    part: str

    def sql(self, column: str) -> Sql:
        """Return a search in the text made lower-case by Python's rules, within SQLite where they allow."""
        return Sql(f"instr({_lower_sql(column, self.part)}, ?)", (self.part,))

    def matches(self, text: str | None) -> bool:
        """Return whether it occurs."""
        return text is not None and self.part in text.lower()


def _lower_sql(column: str, part: str) -> str:
    """
    Return SQL that makes a text lower-case as far as a search for *part* needs it.

    SQLite's ``lower`` leaves all but ASCII alone. For a search for ASCII that is
    what Python does, but for the two other letters whose small form has ASCII in
    it, the Kelvin sign and the Turkish İ; and it takes a tenth of the time of a
    call into Python.
    """
    if not part.isascii():
        return f"lower_text({column})"
    if "k" in part:
        column = f"replace({column}, char(8490), 'k')"
    if "i" in part:
        column = f"replace({column}, char(304), 'i' || char(775))"
    return f"lower({column})"


@dataclass(frozen=True, slots=True)
class StartsWith:
    """The text begins with this one, letter for letter."""

    prefix: str

    def sql(self, column: str) -> Sql:
        """Return a comparison of the beginning; LIKE would ask for escapes and forget case."""
        return Sql(f"substr({column}, 1, ?) = ?", (len(self.prefix), self.prefix))

    def matches(self, text: str | None) -> bool:
        """Return whether it begins so."""
        return text is not None and text.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class InNamespace:
    """The text is this dotted name or one below it, as ``etl.load`` is below ``etl``."""

    name: str

    def sql(self, column: str) -> Sql:
        """Return two comparisons."""
        below = f"{self.name}."
        return Sql(f"({column} = ? OR substr({column}, 1, ?) = ?)", (self.name, len(below), below))

    def matches(self, text: str | None) -> bool:
        """Return whether it is in the namespace."""
        return text is not None and (text == self.name or text.startswith(f"{self.name}."))


@dataclass(frozen=True, slots=True)
class Pattern:
    """
    A regular expression occurs in the text, see `runlog.server.patterns`.

    Args:
        pattern: Valid: whoever makes the test has compiled it.
        ignore_case: Whether case does not matter.
    """

    pattern: str
    ignore_case: bool = False

    def sql(self, column: str) -> Sql:
        """Return a call; as a blob, the text is not decoded only to be encoded again."""
        return Sql(
            f"pattern_matches(?, ?, CAST({column} AS BLOB))",
            (self.pattern, int(self.ignore_case)),
        )

    def matches(self, text: str | None) -> bool:
        """Return whether it occurs."""
        return text is not None and searcher(self.pattern, ignore_case=self.ignore_case)(text.encode())


@dataclass(frozen=True, slots=True)
class IsThere:
    """There is a text, even an empty one."""

    def sql(self, column: str) -> Sql:
        """Return a test for NULL."""
        return Sql(f"{column} IS NOT NULL", ())

    def matches(self, text: str | None) -> bool:
        """Return whether there is one."""
        return text is not None


def _lower_text(text: str | None) -> str | None:
    return text.lower() if text is not None else None


def _pattern_matches(pattern: str, ignore_case: int, text: bytes | None) -> bool:
    return text is not None and searcher(pattern, ignore_case=bool(ignore_case))(text)


SQL_FUNCTIONS: dict[str, tuple[int, Callable[..., str | int | None]]] = {
    "lower_text": (1, _lower_text),
    "pattern_matches": (3, _pattern_matches),
}
"""Functions that the SQL of this module calls, by name, with the number of their arguments."""
