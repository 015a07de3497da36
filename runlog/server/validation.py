"""
Check a decoded JSON body, and word what is wrong with it as pydantic does.

Prefect's clients and tests read these words, so the checks follow pydantic's
rules for converting values (``"20"`` is a number, ``"INFO"`` is not) without
loading it. A check returns the value or notes a fault in `Faults`; the caller
goes on, so that one answer tells all faults.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from runlog.server.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
_INTEGER = re.compile(r"\s*[+-]?\d{1,40}(\.0*)?\s*", re.ASCII)

Location = tuple[str | int, ...]


class Faults:
    """What is wrong with one body, in the order in which it was found."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def add(self, kind: str, at: Location, message: str, value: Any, **context: Any) -> None:
        """Note a fault."""
        fault = {"type": kind, "loc": at, "msg": message, "input": value}
        if context:
            fault["ctx"] = context
        self.found.append(fault)

    # --- checks: the value, or None and a fault ---------------------------------------------------

    def text(self, value: Any, at: Location, *, max_length: int | None = None) -> str | None:
        """Check for text."""
        if not isinstance(value, str):
            self.add("string_type", at, "Input should be a valid string", value)
        elif max_length is not None and len(value) > max_length:
            message = f"String should have at most {max_length} characters"
            self.add("string_too_long", at, message, value, max_length=max_length)
        else:
            return value
        return None

    def integer(self, value: Any, at: Location) -> int | None:
        """Check for a whole number, or text that is one."""
        if isinstance(value, int):
            return int(value)  # True is 1, to pydantic
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            message = "Input should be a valid integer, got a number with a fractional part"
            self.add("int_from_float", at, message, value)
        elif isinstance(value, str):
            if _INTEGER.fullmatch(value):
                return int(value.partition(".")[0])
            message = "Input should be a valid integer, unable to parse string as an integer"
            self.add("int_parsing", at, message, value)
        else:
            self.add("int_type", at, "Input should be a valid integer", value)
        return None

    def boolean(self, value: Any, at: Location) -> bool | None:
        """Check for true or false, or one of pydantic's words for them."""
        if isinstance(value, bool):
            return value
        word = str(value).lower() if isinstance(value, str | int | float) else None
        if word in _TRUE or value == 1:
            return True
        if word in _FALSE or value == 0:
            return False
        if word is None:
            self.add("bool_type", at, "Input should be a valid boolean", value)
        else:
            message = "Input should be a valid boolean, unable to interpret input"
            self.add("bool_parsing", at, message, value)
        return None

    def time(self, value: Any, at: Location) -> int | None:
        """Check for a time; see `runlog.server.times`."""
        try:
            return parse_time(value)
        except ValueError:
            if isinstance(value, str):
                self.add("value_error", at, f"Value error, Unable to parse string [{value}]", value, error={})
            else:
                self.add("value_error", at, "value is not a valid datetime", value)
        return None

    def uuid(self, value: Any, at: Location) -> str | None:
        """Check for a UUID in one of its spellings; the usual one comes back."""
        if not isinstance(value, str):
            self.add("uuid_type", at, "UUID input should be a string, bytes or UUID object", value)
            return None
        try:
            return str(uuid.UUID(value))
        except ValueError:
            problem = _uuid_problem(value)
            message = f"Input should be a valid UUID, {problem}"
            self.add("uuid_parsing", at, message, value, error=problem)
        return None

    def choice(self, value: Any, at: Location, choices: tuple[str, str]) -> str | None:
        """Check for one of two words."""
        if value in choices:
            return str(value)
        expected = " or ".join(f"'{choice}'" for choice in choices)
        self.add("enum", at, f"Input should be {expected}", value, expected=expected)
        return None

    def mapping(self, value: Any, at: Location) -> dict[str, Any] | None:
        """Check for a JSON object."""
        if isinstance(value, dict):
            return value
        message = "Input should be a valid dictionary or object to extract fields from"
        self.add("model_attributes_type", at, message, value)
        return None

    def array(self, value: Any, at: Location) -> list[Any] | None:
        """Check for a JSON array."""
        if isinstance(value, list):
            return value
        self.add("list_type", at, "Input should be a valid list", value)
        return None

    def missing(self, at: Location, value: Any) -> None:
        """Note that a field is not there; *value* is what it should be in."""
        self.add("missing", at, "Field required", value)

    def forbid_others(self, value: dict[str, Any], at: Location, known: Iterable[str]) -> None:
        """Note every key that is not known."""
        for name, extra in value.items():
            if name not in known:
                self.add("extra_forbidden", (*at, name), "Extra inputs are not permitted", extra)


def _uuid_problem(text: str) -> str:
    for position, character in enumerate(text):
        if character not in "0123456789abcdefABCDEF-":
            return f"invalid character: found `{character}` at {position}"
    return f"invalid length: found {len(text)}"
