r"""
Turn whatever a log call was given into text and plain values. Never raises an `Exception`.

`runlog.records`, the formatters and the command line call this in the place
where a record, an extra or an exception meets text. What cannot be rendered
becomes a placeholder such as ``<unprintable Order: ValueError>`` and the line
lives on; `KeyboardInterrupt` and other exceptions that are no `Exception` pass
through, as they are meant for the program.

Results hold no lone surrogate, so that they can be written as UTF-8, and
`normalise` returns only what JSON knows. Imports nothing but the standard
library, does no I/O (a traceback reads source lines) and has no state.
"""

from __future__ import annotations

import enum
import math
import re
import sys
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import date, time, timedelta
from itertools import islice
from logging import LogRecord
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

MAX_TEXT_CHARS = 8192
"""Most characters of the text of an object that is neither text nor a plain value."""

MAX_NODES = 2000
"""
Most values that one call of `normalise` visits, some 2 ms.

An object whose ``str`` has to be asked counts as `_OBJECT_NODES`.
"""

MAX_EXCEPTIONS = 64
"""Most exceptions in a chain or group that are shown with all that `traceback` knows about them."""

_OBJECT_NODES = 20
_MAX_FRAMES = 256
"""A deeper traceback shows its innermost half of these: a raised recursion limit makes for endless text."""
_MAX_INT_BITS = 14_000
"""Longer ints have no decimal text: Python refuses above 4300 digits (CVE-2020-10735)."""

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1

CIRCULAR = "<circular>"
TOO_DEEP = "<too deep>"
MORE = "..."
"""Key, or beginning of the last item, that tells how much was left out."""

# --- text ---------------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    r"""
    Return *text* with lone surrogates shown as ``\udc80``; the same object if there is none.

    One of them makes the whole text impossible to encode, and a batch with it.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


_CONTROL_CLASS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[\n{_CONTROL_CLASS}]")
_CONTROLS_BUT_LINES = re.compile(f"\r\n|[{_CONTROL_CLASS}]")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\r\n": "\n"}


def visible(text: str) -> str:
    r"""
    Return *text* on one line, with what could forge or disturb a line made visible.

    Line breaks, escape (``\x1b``) and other C0 and C1 control characters, line
    and paragraph separators, bidirectional overrides and isolates (U+202A to
    U+202E, U+2066 to U+2069) and lone surrogates become backslash escapes. Tabs
    stay. Returns the same object if there is nothing to do.
    """
    if text.isprintable():
        return text
    return _CONTROLS.sub(_escape, text)


def visible_lines(text: str, indent: str) -> str:
    r"""
    Return *text* with its lines kept and all else as in `visible`.

    Every line but the first begins with *indent*, so that none can pass for a
    record of its own; empty ones stay empty. ``\r\n`` counts as one line break.
    """
    if text.isprintable():
        return text
    text = _CONTROLS_BUT_LINES.sub(_escape_line, text)
    if "\n" not in text:
        return text
    first, *rest = text.split("\n")
    return "\n".join([first, *(indent + line if line else line for line in rest)])


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character == "\n":
        return "\\n"
    return _escape_line(match)


def _escape_line(match: re.Match[str]) -> str:
    found = match.group()
    if found == "\r\n":
        return "\n"
    if found == "\r":
        return "\\r"
    number = ord(found)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


# --- objects ------------------------------------------------------------------------------------------


def safe_str(obj: object) -> str:
    """Return ``str(obj)``, clean; or a placeholder if that fails."""
    try:
        return clean_text(str.__str__(str(obj)))
    except Exception as error:
        return _unprintable(obj, error)


def safe_repr(obj: object, max_chars: int = MAX_TEXT_CHARS) -> str:
    """
    Return ``repr(obj)``, clean; or a placeholder if that fails.

    Args:
        obj: Anything.
        max_chars: Longer text is cut and ends in ``...``.
    """
    try:
        return _cut(clean_text(str.__str__(repr(obj))), max_chars)
    except Exception as error:
        return _unprintable(obj, error)


def _unprintable(obj: object, error: Exception) -> str:
    return f"<unprintable {_name_of(type(obj))}: {_name_of(type(error))}>"


def _name_of(kind: type) -> str:
    """Name of a class, even if its metaclass hides it."""
    return clean_text(type.__dict__["__name__"].__get__(kind))


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - len(MORE)] + MORE


# --- messages -----------------------------------------------------------------------------------------


def render_message(record: LogRecord) -> tuple[str, str | None]:
    """
    Return a record's message and what went wrong with its arguments.

    An argument that cannot be printed is replaced by a placeholder. Arguments
    that do not fit the template follow it: ``%d rows 'many'``. The record is
    not changed.

    Returns:
        The message, and `None` or a text such as ``TypeError: not enough
        arguments for format string``.
    """
    try:
        msg = record.msg
        if type(record) is LogRecord and type(msg) is str:  # what getMessage() would do, at half the price
            text = msg % record.args if record.args else msg
        else:
            text = record.getMessage()
        if type(text) is str:
            return text if text.isascii() else clean_text(text), None
        return safe_str(text), None  # a record class of the program's own
    except Exception as error:
        return _render_badly(record, error)


def _render_badly(record: LogRecord, error: Exception) -> tuple[str, str | None]:
    template = safe_str(record.msg)
    args: Any = record.args
    if not _is_true(args):
        return template, None  # it was the message itself that has no text
    try:
        if isinstance(args, tuple):
            args = tuple([_printable(arg) for arg in args])
            reprs = ", ".join([safe_repr(arg) for arg in args])
        elif isinstance(args, Mapping):
            args = {key: _printable(arg) for key, arg in args.items()}
            reprs = safe_repr(args)
        else:
            args = (_printable(args),)
            reprs = safe_repr(args[0])
    except Exception:
        reprs = safe_repr(args)
    else:
        try:
            return clean_text(str.__str__(template % args)), None
        except Exception as second:
            error = second
    return f"{template} {reprs}", f"{_name_of(type(error))}: {safe_str(error)}"


class _Placeholder:
    """Stands in for an argument that has no text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


def _printable(arg: object) -> object:
    try:
        str(arg)
        repr(arg)
    except Exception as error:
        return _Placeholder(_unprintable(arg, error))
    return arg


def _is_true(value: object) -> bool:
    try:
        return bool(value)
    except Exception:
        return True


# --- values -------------------------------------------------------------------------------------------


def normalise(value: Any, *, depth: int = 8, max_keys: int = 128, max_items: int = 1000) -> Any:
    """
    Return *value* as ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` or `None`: what JSON knows.

    ============================  ==================================================
    NaN and infinities            ``"NaN"``, ``"Infinity"``, ``"-Infinity"``
    ints beyond 64 bits           their digits as text
    bytes                         text, with what is not UTF-8 as escapes
    mappings, dataclasses         ``dict``; keys become text
    lists, tuples, sets, deques   ``list``; a named tuple becomes a ``dict``
    enumerations                  their value
    dates and times               ISO 8601 text; a ``timedelta`` its seconds
    exceptions                    ``"ValueError: what it says"``
    NumPy scalars                 the Python number
    anything else                 its ``str``, at most `MAX_TEXT_CHARS` characters
    circular, too deep            ``"<circular>"``, ``"<too deep>"``
    what cannot be read           ``"<unprintable Order: ValueError>"``
    ============================  ==================================================

    Iterators are not consumed. Visits at most `MAX_NODES` values.

    Args:
        value: Anything; it is not changed.
        depth: Most containers inside each other.
        max_keys: Most entries of a mapping; how many are missing stands under ``"..."``.
        max_items: Most items of a list; how many are missing is said in a last item.
    """
    kind = type(value)
    if kind is str:
        return clean_text(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if _INT64_MIN <= value <= _INT64_MAX else _int_text(value)
    if kind is float:
        return value if math.isfinite(value) else _float_text(value)
    return _Normaliser(max_keys, max_items).plain(value, depth)


def _int_text(value: int) -> str:
    bits = value.bit_length()
    return str(value) if bits <= _MAX_INT_BITS else f"<int of {bits} bits>"


def _float_text(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - true of NaN alone


class _Normaliser:
    """One call of `normalise`: what it may still visit, and where it is."""

    def __init__(self, max_keys: int, max_items: int) -> None:
        self._max_keys = max_keys
        self._max_items = max_items
        self._nodes = MAX_NODES
        self._path: set[int] = set()
        """The ids of the containers around the current value."""

    def plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return clean_text(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if _INT64_MIN <= value <= _INT64_MAX else _int_text(value)
        if kind is float:
            return value if math.isfinite(value) else _float_text(value)
        try:
            return self._convert(value, kind, depth)
        except Exception as error:
            self._nodes -= _OBJECT_NODES
            return _unprintable(value, error)

    def _convert(self, value: Any, kind: type, depth: int) -> Any:
        # By the real type, not by isinstance, which asks the object: its `__class__` may lie, or raise.
        if issubclass(kind, enum.Enum):
            return self.plain(value.value, depth - 1) if depth else TOO_DEEP
        if issubclass(kind, str):
            return clean_text(str.__str__(value))
        if issubclass(kind, int):
            return self.plain(int.__index__(value), depth)
        if issubclass(kind, float):
            return self.plain(float.__float__(value), depth)
        if issubclass(kind, (bytes, bytearray, memoryview)):
            return bytes(value).decode("utf-8", "backslashreplace")
        if issubclass(kind, dict):
            return self._mapping(value, dict.items(value), dict.__len__(value), depth)
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            pairs = list(zip(kind._fields, tuple.__iter__(value), strict=False))
            return self._mapping(value, pairs, len(pairs), depth)
        for base in (list, tuple, set, frozenset, deque):
            if issubclass(kind, base):
                return self._sequence(value, base.__iter__(value), base.__len__(value), depth)
        fields = getattr(kind, "__dataclass_fields__", None)
        if fields is not None:
            pairs = [(name, _attribute(value, name)) for name in fields]
            return self._mapping(value, pairs, len(pairs), depth)
        if issubclass(kind, BaseException):
            return _cut(_exception_line(value), MAX_TEXT_CHARS)
        if issubclass(kind, Mapping):
            return self._mapping(value, value.items(), len(value), depth)
        return self._object(value, kind, depth)

    def _mapping(self, value: Any, pairs: Iterable[tuple[Any, Any]], length: int, depth: int) -> Any:
        if depth <= 0:
            return TOO_DEEP
        if id(value) in self._path:
            return CIRCULAR
        self._path.add(id(value))
        try:
            result: dict[str, Any] = {}
            seen = 0
            # Taken out at once: another thread may change the mapping meanwhile.
            for key, item in list(islice(pairs, self._max_keys)):
                if self._nodes <= 0:
                    break
                self._nodes -= 1
                seen += 1
                name = clean_text(key) if type(key) is str else self._key(key)
                result[name] = self.plain(item, depth - 1)
            if seen < length:
                result[MORE] = f"{length - seen} more"
            return result
        finally:
            self._path.discard(id(value))

    def _key(self, key: Any) -> str:
        """A key that is no text: as JSON's own encoder writes it, or what `str` says."""
        plain = self.plain(key, 2)
        return plain if type(plain) is str else _cut(str(plain), MAX_TEXT_CHARS)

    def _sequence(self, value: Any, items: Iterable[Any], length: int, depth: int) -> Any:
        if depth <= 0:
            return TOO_DEEP
        if id(value) in self._path:
            return CIRCULAR
        self._path.add(id(value))
        try:
            result: list[Any] = []
            for item in list(islice(items, self._max_items)):
                if self._nodes <= 0:
                    break
                self._nodes -= 1
                result.append(self.plain(item, depth - 1))
            if len(result) < length:
                result.append(f"{MORE} {length - len(result)} more")
            return result
        finally:
            self._path.discard(id(value))

    def _object(self, value: Any, kind: type, depth: int) -> Any:
        self._nodes -= _OBJECT_NODES
        if issubclass(kind, (date, time)):
            return clean_text(str.__str__(value.isoformat()))
        if issubclass(kind, timedelta):
            return self.plain(value.total_seconds(), depth)
        if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return self.plain(value.item(), depth - 1) if depth else TOO_DEEP
        return clean_text(_cut(str.__str__(str(value)), MAX_TEXT_CHARS))


def _attribute(obj: object, name: str) -> Any:
    try:
        return getattr(obj, name)
    except Exception as error:
        return _Placeholder(_unprintable(obj, error))


# --- exceptions ---------------------------------------------------------------------------------------


def format_exception(exc_info: Any) -> tuple[str, str, str]:
    """
    Return an exception's type, message and traceback as text.

    The type is qualified as in a traceback, without ``builtins``. The traceback
    is what `traceback.format_exception` prints, causes, contexts, notes and
    groups included, without the last line break. Of more than `MAX_EXCEPTIONS`
    the innermost context is shown and the rest is counted.

    Args:
        exc_info: What ``exc_info=`` takes: an exception, a tuple as
            `sys.exc_info` returns it, or `True` for the one being handled.

    Returns:
        Three empty texts if there is no exception.
    """
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) and len(exc_info) == 3 else exc_info
    if not isinstance(error, BaseException):
        return "", "", ""
    trace = exc_info[2] if isinstance(exc_info, tuple) else error.__traceback__
    try:
        if _is_small(error):
            text = "".join(traceback.format_exception(type(error), error, trace, limit=_frame_limit(trace)))
        else:
            text = _format_many(error)
        text = clean_text(text.removesuffix("\n"))
    except Exception as trouble:
        text = f"{_exception_line(error)}\n<no traceback: {_name_of(type(trouble))}>"
    return _qualified_name(type(error)), safe_str(error), text


def _frame_limit(trace: TracebackType | None) -> int | None:
    depth = 0
    while trace is not None:
        depth += 1
        if depth > _MAX_FRAMES:
            return -(_MAX_FRAMES // 2)
        trace = trace.tb_next
    return None


def _qualified_name(kind: type) -> str:
    name = clean_text(type.__dict__["__qualname__"].__get__(kind))
    try:
        module = kind.__module__
    except Exception:
        return name
    if type(module) is not str or module in ("builtins", "__main__"):
        return name
    return f"{clean_text(module)}.{name}"


def _exception_line(error: BaseException) -> str:
    text = safe_str(error)
    name = _qualified_name(type(error))
    return f"{name}: {text}" if text else name


def _next_in_chain(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    return None if error.__suppress_context__ else error.__context__


def _is_small(error: BaseException) -> bool:
    """Whether `traceback`, which builds all before it prints any, can be let loose on an exception."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if len(seen) > MAX_EXCEPTIONS:
            return False
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions[: MAX_EXCEPTIONS + 1]
    return True


def _format_many(error: BaseException) -> str:
    """Print a long chain, or a large group, on our own: the first few of each, the rest as a number."""
    chain: list[BaseException] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        chain.append(one)
        one = _next_in_chain(one)
    shown = chain[: MAX_EXCEPTIONS // 4]
    parts = []
    if len(shown) < len(chain):
        parts.append(f"... {len(chain) - len(shown)} earlier exceptions in the chain\n\n")
    for number, one in enumerate(reversed(shown)):
        if number:
            parts.append("\nwhich led to:\n\n")
        if one.__traceback__ is not None:
            parts += [
                "Traceback (most recent call last):\n",
                *traceback.format_tb(one.__traceback__, _MAX_FRAMES),
            ]
        parts.append(_exception_line(one) + "\n")
        if isinstance(one, BaseExceptionGroup):
            some = one.exceptions[: MAX_EXCEPTIONS // 4]
            parts += [f"  | {_exception_line(inner)}\n" for inner in some]
            if len(some) < len(one.exceptions):
                parts.append(f"  | ... {len(one.exceptions) - len(some)} more exceptions in the group\n")
    return "".join(parts)
