r"""
The query expression: one text that says which lines are wanted. Pure.

::

    level>=warning task:extract table=orders "time out" -retry logger:app.* since:10m

The grammar; spaces separate terms, and terms that stand side by side must all hold::

    expression = [ or ]
    or         = and { "or" and }
    and        = not { [ "and" ] not }
    not        = ( "-" | "not" ) not | "(" or ")" | term
    term       = name operator value          no spaces around the operator
               | word | phrase | pattern      in message or logger name; a pattern in the message
    operator   = ":" | "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    name       = letter {letter | digit | "_" | "." | "-" | "/" | "@"} | phrase
    value      = word | phrase | pattern      a pattern behind "~" only
    word       = characters without space, parenthesis and quote
    phrase     = '"' characters '"'           \" and \\ stand for the character itself
    pattern    = "/" regular expression "/" ["i"]     \/ stands for the slash

``and``, ``or`` and ``not`` are the words themselves if in quotes. A name in quotes
is an attribute's, whatever it is called; one without is a field's if there is such
a field (`runlog.server.expression_fields`), else an attribute's.

What comes out is a condition that yields SQL and is a predicate for streams; the
time that ``since:10m`` counts from is fixed when the expression is parsed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from runlog.exceptions import QueryError
from runlog.server.attributes import Typed
from runlog.server.conditions import LineMatches, Not, Says
from runlog.server.expression_fields import Term, condition_of
from runlog.server.patterns import searcher
from runlog.server.query import AllOf, AnyOf
from runlog.server.text_tests import Pattern

if TYPE_CHECKING:
    from datetime import tzinfo

    from runlog.server.query import Condition

MAX_EXPRESSION_LENGTH = 2000
"""Characters in an expression."""

MAX_TERMS = 100
"""Terms in an expression: each is looked at for each line."""

MAX_DEPTH = 30
"""Parentheses and negations within each other."""

_NAME = r"[^\W\d](?:[\w.@/-]*\w)?"
_OPERATOR = r"!=|>=|<=|[:=<>~]"
_FIELD = re.compile(rf"({_NAME})({_OPERATOR})")
_OPERATOR_ALONE = re.compile(_OPERATOR)
_WORD = re.compile(r'[^\s()"]+')
_SPACE = re.compile(r"\s*")
_ESCAPED = re.compile(r"\\([\"\\])")
_KEYWORDS = frozenset({"and", "or", "not"})


def parse_expression(text: str, *, now_ns: int, zone: tzinfo | None = None) -> Condition:
    """
    Return the condition that an expression stands for.

    Args:
        text: See the grammar in this module's docstring; empty or blank: every line.
        now_ns: What durations and days count from, in nanoseconds since the epoch.
        zone: Of times and days that name none; by default UTC.

    Raises:
        QueryError: If it cannot be understood; ``position`` says where.
    """
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise QueryError(
            f"an expression has at most {MAX_EXPRESSION_LENGTH} characters, got {len(text)}",
            position=MAX_EXPRESSION_LENGTH,
        )
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise QueryError("half of a surrogate pair is no character", position=position)
    return _Parser(text, now_ns, zone).parse()


class _Quoted(NamedTuple):
    text: str
    end: int
    """Where the closing quote was, and one further."""


class _Parser:
    """Reads one expression from left to right."""

    def __init__(self, text: str, now_ns: int, zone: tzinfo | None) -> None:
        self._text = text
        self._now_ns = now_ns
        self._zone = zone
        self._at = 0
        self._terms = 0
        self._skip_space()

    def parse(self) -> Condition:
        if self._is_over():
            return AllOf()
        found = self._or(0)
        if not self._is_over():  # nothing but a parenthesis ends an expression before its end
            self._fail("this ')' closes nothing; put text with parentheses into quotes")
        return found if isinstance(found, AllOf) else AllOf((found,))

    # --- grammar --------------------------------------------------------------------------------------

    def _or(self, depth: int) -> Condition:
        parts = [self._and(depth)]
        while self._keyword() == "or":
            self._take_word()
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _and(self, depth: int) -> Condition:
        parts = [self._not(depth)]
        while not self._is_over() and self._text[self._at] != ")" and self._keyword() != "or":
            if self._keyword() == "and":
                self._take_word()
            parts.append(self._not(depth))
        if len(parts) == 1:
            return parts[0]
        flat = (part.parts if isinstance(part, AllOf) else (part,) for part in parts)
        return AllOf(tuple(one for group in flat for one in group))

    def _not(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} parentheses and negations within each other")
        if self._is_over():
            self._fail("expected a term, got the end")
        character = self._text[self._at]
        keyword = self._keyword()
        if keyword == "not":
            self._take_word()
            return Not(self._not(depth + 1))
        if keyword is not None:
            self._fail(f"expected a term, got {keyword!r}; in quotes it is a word to look for")
        if character == "-":
            self._at += 1
            if self._is_over() or self._text[self._at].isspace():
                self._fail("expected a term directly after '-'")
            return Not(self._not(depth + 1))
        if character == "(":
            return self._group(depth)
        return self._term()

    def _group(self, depth: int) -> Condition:
        opened = self._at
        self._at += 1
        self._skip_space()
        if not self._is_over() and self._text[self._at] == ")":
            self._fail("expected a term between the parentheses")
        found = self._or(depth + 1)
        if self._is_over():
            self._fail("this '(' is not closed", opened)
        self._at += 1
        self._end_of_term("')'")
        return found

    def _term(self) -> Condition:
        self._terms += 1
        if self._terms > MAX_TERMS:
            self._fail(f"more than {MAX_TERMS} terms")
        character = self._text[self._at]
        if character == ")":
            self._fail("expected a term, got ')'; put text with parentheses into quotes")
        if character == '"':
            return self._phrase()
        if character == "/":
            return LineMatches("message", self._pattern())
        field = _FIELD.match(self._text, self._at)
        if field is not None:
            return self._field(field[1], field[2], quoted=False, value_at=field.end())
        word = _WORD.match(self._text, self._at)
        assert word is not None, "what is no space, parenthesis or quote is a word"
        if _OPERATOR_ALONE.match(word[0]):
            self._fail("expected a name before the operator, and no space between the two")
        self._at = word.end()
        self._end_of_term("a word")
        return Says(word[0].lower())

    def _phrase(self) -> Condition:
        start = self._at
        phrase = self._quoted(start)
        operator = _OPERATOR_ALONE.match(self._text, phrase.end)
        if operator is not None:
            if not phrase.text:
                self._fail("expected an attribute's name between the quotes")
            return self._field(phrase.text, operator[0], quoted=True, value_at=operator.end())
        if not phrase.text:
            self._fail("expected text between the quotes")
        self._at = phrase.end
        self._end_of_term("a phrase")
        return Says(phrase.text.lower())

    def _field(self, name: str, operator: str, *, quoted: bool, value_at: int) -> Condition:
        name_at, self._at = self._at, value_at
        if operator == "~":
            pattern = self._pattern_value(name)
            value = Typed(pattern.pattern)
        else:
            pattern, value = None, self._value(name, operator)
        term = Term(
            name=name,
            quoted_name=quoted,
            operator=operator,
            value=value,
            pattern=pattern,
            name_at=name_at,
            value_at=value_at,
            now_ns=self._now_ns,
            zone=self._zone,
        )
        self._end_of_term("a value")
        return condition_of(term)

    def _value(self, name: str, operator: str) -> Typed:
        if not self._is_over() and self._text[self._at] == '"':
            phrase = self._quoted(self._at)
            self._at = phrase.end
            return Typed(phrase.text, quoted=True)
        word = _WORD.match(self._text, self._at)
        if word is None:
            self._fail(f"expected a value directly after {name}{operator}")
        if word[0][0] in "=<>~":
            self._fail(f"expected a value after {name}{operator}, got {word[0][0]!r}; put it into quotes")
        if operator == ":" and word[0].startswith("//"):
            self._fail("an address has to be in quotes")
        self._at = word.end()
        return Typed(word[0])

    # --- patterns and quotes --------------------------------------------------------------------------

    def _pattern_value(self, name: str) -> Pattern:
        if not self._is_over() and self._text[self._at] == "/":
            return self._pattern()
        start = self._at
        text = self._value(name, "~").text
        return self._compiled(text, start, ignore_case=False)

    def _pattern(self) -> Pattern:
        start = end = self._at + 1
        while end < len(self._text) and self._text[end] != "/":
            end += 2 if self._text[end] == "\\" else 1
        if end >= len(self._text):
            self._fail("this '/' begins a regular expression that is not closed; put a path into quotes")
        pattern = self._text[start:end].replace("\\/", "/")
        ignore_case = self._text.startswith("i", end + 1)
        after = end + 1 + ignore_case
        if after < len(self._text) and not (self._text[after].isspace() or self._text[after] == ")"):
            self._fail("expected a space after the regular expression; put a path into quotes", after)
        self._at = after
        if not pattern:
            self._fail("expected a regular expression between the slashes", start)
        found = self._compiled(pattern, start, ignore_case=ignore_case)
        self._end_of_term("a regular expression")
        return found

    def _compiled(self, pattern: str, start: int, *, ignore_case: bool) -> Pattern:
        try:
            searcher(pattern, ignore_case=ignore_case)
        except QueryError as error:
            self._fail(str(error), start)
        return Pattern(pattern, ignore_case)

    def _quoted(self, start: int) -> _Quoted:
        end = start + 1
        while end < len(self._text) and self._text[end] != '"':
            end += 2 if self._text[end] == "\\" else 1
        if end >= len(self._text):
            self._fail("this quote is not closed", start)
        return _Quoted(_ESCAPED.sub(r"\1", self._text[start + 1 : end]), end + 1)

    # --- places ---------------------------------------------------------------------------------------

    def _keyword(self) -> str | None:
        """Return the keyword that comes next; a word that only begins like one is none."""
        word = _WORD.match(self._text, self._at)
        lower = word[0].lower() if word is not None else ""
        return lower if lower in _KEYWORDS else None

    def _take_word(self) -> None:
        word = _WORD.match(self._text, self._at)
        assert word is not None, "a keyword is a word"
        self._at = word.end()
        self._skip_space()

    def _end_of_term(self, what: str) -> None:
        """Go to the next term; *what* is before it."""
        before = self._at
        self._skip_space()
        if not self._is_over() and before == self._at and self._text[before] != ")":
            self._fail(
                f"expected a space after {what}, got {self._text[before]!r}; "
                "text with quotes or parentheses has to be in quotes"
            )

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space is not None, "it may be empty"
        self._at = space.end()

    def _is_over(self) -> bool:
        return self._at >= len(self._text)

    def _fail(self, message: str, position: int | None = None) -> NoReturn:
        raise QueryError(message, position=self._at if position is None else position)
