r"""
Decide how a record looks as a line of text, or as a JSON object.

Handlers, ours or the program's own, give a record and get text back, redacted
and free of lone surrogates. The record is not changed, so that several handlers
can format it; formatting never raises.

**No value can forge a line.** Control characters from outside, such as escape
sequences, and bidirectional overrides are shown as escapes (``\x1b``). Line
breaks are kept in messages and tracebacks, where they help, and every line after
the first is indented by `INDENT`; in all other values they are escapes too. What
the *format* says is the program's own text and is left as it is. JSON escapes
what it must and needs none of this.
"""

from __future__ import annotations

import logging
import re
import string
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from runlog.context import current_run_fields
from runlog.redaction import redact_text, redact_value
from runlog.rendering import (
    clean_text,
    format_exception,
    normalise,
    render_message,
    safe_repr,
    safe_str,
    visible,
    visible_lines,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

INDENT = "    "
"""Begins each line of a record but its first."""

UNKNOWN = "<unknown>"
"""Stands for a field that a format names and a record lacks."""

Style = Literal["%", "{", "$"]


class RunFormatter(logging.Formatter):
    """
    Format a record by the run it belongs to.

    A record belongs to the run that its fields name; a record without such
    fields, from an ordinary logger, to the run that is active where it is
    formatted. A field that is missing is taken from the run, then from
    *defaults*, else it is ``<unknown>``. Thread-safe.

    Arguments that do not fit a message are shown after it, with the reason. A
    format that does not fit a record falls back to level, logger and message.

    Args:
        format: Layout of records outside of runs; ``%(message)s`` by default.
        datefmt: For `time.strftime`; ISO 8601 with milliseconds by default.
        style: How the three layouts are written, see `logging.Formatter`.
        validate: Whether to refuse a layout that does not fit the style.
        flow_run_fmt: Layout of a flow run's records; by default *format*.
        task_run_fmt: Layout of a task run's records; by default *format*.
        defaults: Values of fields that a record may lack.

    Raises:
        ValueError: If a layout does not fit the style, or there is no such style.
    """

    def __init__(
        self,
        format: str | None = None,  # noqa: A002 - the name that logging.yml uses
        datefmt: str | None = None,
        style: Style = "%",
        validate: bool = True,
        *,
        flow_run_fmt: str | None = None,
        task_run_fmt: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(format, datefmt, style, validate, defaults=defaults)
        if validate:
            for layout in (flow_run_fmt, task_run_fmt):
                if layout is not None:
                    logging.Formatter(layout, datefmt, style, defaults=defaults)
        outside = self._style._fmt  # noqa: SLF001 - logging's own default if none was given
        self._defaults = dict(defaults or {})
        self._outside = _LAYOUTS[style](outside)
        self._flow_run = self._outside if flow_run_fmt is None else _LAYOUTS[style](flow_run_fmt)
        self._task_run = self._outside if task_run_fmt is None else _LAYOUTS[style](task_run_fmt)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback and stack below it."""
        message, format_error = render_message(record)
        if format_error is not None:
            message = f"{message} <{format_error}>"
        # Secrets of several lines, such as keys, are found before lines are indented, all others at the end.
        message = visible_lines(message if message.isprintable() else redact_text(message), INDENT)
        try:
            text = self._line(record, message)
        except Exception:
            text = f"{visible(safe_str(record.levelname))} | {visible(safe_str(record.name))} - {message}"
        below = self._below(record)
        return redact_text(text + below if below else text)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging gives it
        """Return an exception's traceback; empty if there is no exception."""
        return format_exception(ei)[2]

    def _line(self, record: logging.LogRecord, message: str) -> str:
        own = record.__dict__
        fields: Mapping[str, Any] = own
        if own.get("task_run_id") is not None:
            layout = self._task_run
        elif own.get("flow_run_id") is not None:
            layout = self._flow_run
        else:
            fields = current_run_fields()
            if fields.get("task_run_id") is not None:
                layout = self._task_run
            elif fields.get("flow_run_id") is not None:
                layout = self._flow_run
            else:
                layout = self._outside
        values: dict[str, Any] = {}
        for name in layout.names:
            if name == "message":
                values[name] = _Message(message)
            elif name == "asctime":
                values[name] = self.formatTime(record, self.datefmt)
            else:
                value = own.get(name, _MISSING)
                if value is _MISSING or (value is None and name in fields):
                    value = fields.get(name, _MISSING)
                values[name] = self._defaults.get(name, UNKNOWN) if value is _MISSING else value
        text: str = layout.fill(values)
        return text

    def _below(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_text or record.exc_info:
            parts.append(record.exc_text or self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "".join(
            [f"\n{INDENT}{visible_lines(redact_text(safe_str(part)), INDENT)}" for part in parts if part]
        )


_MISSING: Any = object()


class _Message(str):
    """Text whose line breaks are wanted, and whose lines are indented already."""

    __slots__ = ()


class _Shown:
    """A value of no plain kind, as it may stand in a line."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return visible(safe_str(self._value))

    def __repr__(self) -> str:
        return visible(safe_repr(self._value))


def _shown(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return visible(value)
    if kind is _Message or isinstance(value, int | float | Decimal):
        return value
    return _Shown(value)


class _PercentLayout:
    def __init__(self, layout: str) -> None:
        self._layout = layout
        self.names = tuple(dict.fromkeys(re.findall(r"%\(([^)]*)\)", layout)))

    def fill(self, values: dict[str, Any]) -> str:
        return self._layout % {name: _shown(value) for name, value in values.items()}


class _DollarLayout:
    def __init__(self, layout: str) -> None:
        self._template = string.Template(layout)
        found = self._template.pattern.finditer(layout)
        self.names = tuple(
            dict.fromkeys(m["named"] or m["braced"] for m in found if m["named"] or m["braced"])
        )

    def fill(self, values: dict[str, Any]) -> str:
        return self._template.substitute({name: _shown(value) for name, value in values.items()})


class _BraceLayout(string.Formatter):
    def __init__(self, layout: str) -> None:
        self._layout = layout
        fields = [field for _, field, _, _ in self.parse(layout) if field]
        self.names = tuple(dict.fromkeys(re.split(r"[.\[]", field)[0] for field in fields))

    def fill(self, values: dict[str, Any]) -> str:
        return self.vformat(self._layout, (), values)

    def format_field(self, value: Any, format_spec: str) -> str:
        text: str = super().format_field(value, format_spec)
        return text if type(value) is _Message else visible(text)


_LAYOUTS: dict[str, Any] = {"%": _PercentLayout, "{": _BraceLayout, "$": _DollarLayout}


# --- JSON ---------------------------------------------------------------------------------------------

JsonFormat = Literal["default", "pretty"]

_SEVERITIES = (
    (50, "CRITICAL", 21),
    (40, "ERROR", 17),
    (30, "WARNING", 13),
    (20, "INFO", 9),
    (10, "DEBUG", 5),
)
"""Lowest level, the name that log services such as Google's know, and OpenTelemetry's number."""

_REPLACED = frozenset({"message", "asctime", "exc_info", "exc_text"})
"""Attributes that other formatters leave on a record, or that have no JSON."""

_OWN_NAMES = frozenset({"timestamp", "severity", "severity_number", "message", "exception", "format_error"})
"""Names that the JSON object has itself; an extra of this name is written with a trailing underscore."""


class JsonFormatter(logging.Formatter):
    """
    Format a record as one JSON object.

    It has every attribute of the record, extras and run fields included (those
    of the active run, for a record of an ordinary logger), and besides:

    - ``timestamp``: :rfc:`3339`, UTC, with microseconds;
    - ``severity``: DEBUG, INFO, WARNING, ERROR or CRITICAL, also for a custom level;
    - ``severity_number``: OpenTelemetry's, 1 to 21;
    - ``message``: rendered; ``msg`` and ``args`` have its parts;
    - ``exception``: ``{"type", "message", "traceback"}``, if there is one;
    - ``format_error``: why arguments did not fit the message, if they did not.

    Values are as `runlog.rendering.normalise` makes them. Thread-safe.

    Args:
        fmt: ``"default"`` writes one line, ``"pretty"`` an indented object.
        datefmt: Not accepted: the time is always written the same way.
        style: Not used; `logging.config.dictConfig` passes it to every formatter.
        validate: Not used, for the same reason.

    Raises:
        ValueError: If *fmt* is another word, or there is a *datefmt*.
    """

    def __init__(
        self,
        fmt: JsonFormat | None = "default",
        datefmt: None = None,
        style: Style = "%",  # noqa: ARG002 - see above
        validate: bool = True,  # noqa: ARG002 - see above
    ) -> None:
        super().__init__()
        fmt = fmt or "default"
        if fmt not in get_args(JsonFormat):
            raise ValueError(f"format of a JsonFormatter must be 'default' or 'pretty', got {fmt!r}")
        if datefmt is not None:
            raise ValueError(f"a JsonFormatter writes RFC 3339 times and takes no datefmt, got {datefmt!r}")
        self._is_pretty = fmt == "pretty"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON text."""
        message, format_error = render_message(record)
        severity, number = _severity(record.levelno)
        values: dict[str, Any] = {
            "timestamp": _timestamp(record),
            "severity": severity,
            "severity_number": number,
            "message": message,
        }
        own = record.__dict__
        if own.get("flow_run_id") is None and own.get("task_run_id") is None:
            own = {
                **own,
                **current_run_fields(),
                **{key: value for key, value in own.items() if value is not None},
            }
        for key, value in own.items():
            if key not in _REPLACED:
                name = clean_text(key) if type(key) is str else safe_str(key)
                values[f"{name}_" if name in _OWN_NAMES else name] = normalise(value)
        if format_error is not None:
            values["format_error"] = format_error
        exception = _exception(record)
        if exception is not None:
            values["exception"] = exception
        encoded = msgspec.json.encode(redact_value(values))
        return (msgspec.json.format(encoded, indent=2) if self._is_pretty else encoded).decode()


def _severity(level: Any) -> tuple[str, int]:
    if not isinstance(level, int):
        return "DEFAULT", 0  # a record made by hand: both words mean "unspecified"
    for floor, name, number in _SEVERITIES:
        if level >= floor:
            return name, number
    return "DEBUG", 1


def _timestamp(record: logging.LogRecord) -> str:
    try:
        moment = datetime.fromtimestamp(record.created, UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        moment = datetime.now(UTC)  # the record has no time; it was made a moment ago
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _exception(record: logging.LogRecord) -> dict[str, str] | None:
    kind, text, trace = format_exception(record.exc_info) if record.exc_info else ("", "", "")
    trace = trace or safe_str(record.exc_text or "")
    return {"type": kind, "message": text, "traceback": trace} if kind or trace else None
