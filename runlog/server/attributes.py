"""
Conditions on the attributes of a line, its extras.

**A name** is a key, dots and all. Where there is no such key, a dotted name leads
into objects: ``order.id`` is the ``id`` in the object ``order``.

**Values are compared as what they are.** A number that was typed without quotes is
compared with numbers by value (``5`` equals ``5.0``) and, for equality, with text
letter for letter; ``true``, ``false`` and ``null`` without quotes likewise. What
was typed in quotes is text, and equals text alone. Order is that of numbers among
numbers and of text, by code point, among text; what is of the other kind is on
neither side. Of a list, one element that passes is enough; an object never passes.

In a database attributes are JSON text. One Python function looks into it, the same
that the predicate calls; the SQL in front of it passes over lines in whose JSON the
name, or the text to be equalled, does not occur, or has another integer, which costs
a tenth.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import msgspec

from runlog.server.patterns import searcher
from runlog.server.query import Sql

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runlog.records import LogEvent

Operator = Literal["has", "=", ":", "~", "<", "<=", ">", ">="]
"""``:`` is "contains, without regard to case", ``~`` a regular expression."""

OPERATORS: tuple[Operator, ...] = get_args(Operator)

_MISSING = object()
_WORDS = frozenset({"true", "false", "null"})
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?", re.ASCII)
_PLAIN = re.compile(r"[\w-]+", re.ASCII)
"""What JSON spells in one way only."""
_DOTTED = re.compile(r"[\w.-]+", re.ASCII)
_COMPARISONS = frozenset({"=", "<", "<=", ">", ">="})
_EXACT = 2**53
"""Below it, SQLite compares an integer of any size as Python does."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Typed(NamedTuple):
    """A value as somebody typed it."""

    text: str
    quoted: bool = False

    @property
    def number(self) -> int | float | None:
        """The number that it is; `None` if it is none, or in quotes."""
        return _number(self.text) if not self.quoted else None

    @property
    def is_text(self) -> bool:
        """Whether only text equals it."""
        return self.quoted or (self.text.lower() not in _WORDS and self.number is None)


NOTHING = Typed("")
"""What ``has`` compares with."""


@functools.lru_cache(maxsize=256)
def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


@dataclass(frozen=True, slots=True)
class AttributeMatches:
    """
    An attribute passes a test.

    Args:
        name: A key, or a way into objects.
        operator: The test.
        value: What to compare with; a valid pattern for ``~``; nothing for ``has``.
    """

    name: str
    operator: Operator
    value: Typed = NOTHING

    def sql(self) -> Sql:
        """Return a call of ``attribute_matches`` behind a look for the name."""
        call = "attribute_matches(?, ?, ?, ?, l.attributes)"
        parameters = (self.name, self.operator, self.value.text, int(self.value.quoted))
        key = self.name.rpartition(".")[2]
        looks = [Sql("l.attributes IS NOT NULL", ())]
        if _PLAIN.fullmatch(key):
            looks.append(Sql("instr(l.attributes, ?)", (f'{key}":',)))
        if self.operator == "=" and self.value.is_text and _PLAIN.fullmatch(self.value.text):
            looks.append(Sql("instr(l.attributes, ?)", (f'"{self.value.text}"',)))
        number = self.value.number
        if self.operator in _COMPARISONS and number is not None and abs(number) < _EXACT:
            looks.append(self._integer_sql(number))
        looks.append(Sql(call, parameters))
        return Sql(
            " AND ".join(look.text for look in looks),
            tuple(value for look in looks for value in look.parameters),
        )

    def _integer_sql(self, number: float) -> Sql:
        """
        Return a comparison with integers, true of all else that may pass.

        A fraction is left to Python: SQLite may read its last digit otherwise.
        """
        if not _DOTTED.fullmatch(self.name):  # its path would need escapes
            return Sql("1", ())
        path = f'$."{self.name}"'
        text = "WHEN 'text' THEN 1 " if self.operator == "=" else ""
        absent = 1 if "." in self.name else 0  # the name may lead into an object
        return Sql(
            f"CASE coalesce(json_type(l.attributes, ?), 'absent') WHEN 'absent' THEN {absent} {text}"
            f"WHEN 'integer' THEN json_extract(l.attributes, ?) {self.operator} ? "
            "WHEN 'real' THEN 1 WHEN 'array' THEN 1 ELSE 0 END",
            (path, path, number),
        )

    def matches(self, event: LogEvent) -> bool:
        """Return whether the attribute is there and passes."""
        return self.passes(event.attributes)

    def passes(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether the attribute is there and passes."""
        found = look_up(attributes, self.name)
        if found is _MISSING:
            return False
        if self.operator == "has":
            return True
        test = _TESTS[self.operator]
        return any(test(value, self.value) for value in (found if isinstance(found, list) else (found,)))


def look_up(attributes: Mapping[str, Any], name: str) -> Any:
    """Return the value that a name leads to: of the longest key that is there, an own object if none is."""
    found = attributes.get(name, _MISSING)
    if found is not _MISSING:
        return found
    dot = name.rfind(".")
    while dot > 0:
        inner = attributes.get(name[:dot])
        if isinstance(inner, dict):
            found = look_up(inner, name[dot + 1 :])
            if found is not _MISSING:
                return found
        dot = name.rfind(".", 0, dot)
    return _MISSING


def _text(value: Any) -> str | None:
    """Return a value as JSON writes it, text without its quotes; `None` of what holds values itself."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return None


def _equals(value: Any, literal: Typed) -> bool:
    if isinstance(value, str):
        return value == literal.text
    if literal.quoted:
        return False
    if value is None or isinstance(value, bool):
        return literal.text.lower() == _text(value)
    number = literal.number
    return isinstance(value, int | float) and number is not None and value == number


def _contains(value: Any, literal: Typed) -> bool:
    text = _text(value)
    return text is not None and literal.text.lower() in text.lower()


def _has_pattern(value: Any, literal: Typed) -> bool:
    text = _text(value)
    return text is not None and searcher(literal.text)(text.encode(errors="replace"))


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Typed], bool]:
    def test(value: Any, literal: Typed) -> bool:
        number = literal.number
        if number is None:
            return isinstance(value, str) and compare(value, literal.text)
        return isinstance(value, int | float) and not isinstance(value, bool) and compare(value, number)

    return test


_TESTS: dict[str, Callable[[Any, Typed], bool]] = {
    "=": _equals,
    ":": _contains,
    "~": _has_pattern,
    "<": _ordered(lambda one, other: bool(one < other)),
    "<=": _ordered(lambda one, other: bool(one <= other)),
    ">": _ordered(lambda one, other: bool(one > other)),
    ">=": _ordered(lambda one, other: bool(one >= other)),
}


@functools.lru_cache(maxsize=256)
def _condition(name: str, operator: Operator, text: str, quoted: int) -> AttributeMatches:
    return AttributeMatches(name, operator, Typed(text, bool(quoted)))


def _attribute_matches(name: str, operator: Operator, text: str, quoted: int, attributes: str | None) -> bool:
    return attributes is not None and _condition(name, operator, text, quoted).passes(_decode(attributes))


SQL_FUNCTIONS: dict[str, tuple[int, Callable[..., str | int | None]]] = {
    "attribute_matches": (5, _attribute_matches)
}
"""Functions that the SQL of this module calls, by name, with the number of their arguments."""
