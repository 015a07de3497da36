"""
How a line of the server is shown to people. No I/O.

One event becomes a first line with time, level, run and message, followed by
its extras, and further lines, indented, where the message has several or there
is a traceback::

    2026-11-21 10:53:37.123 | WARNING | parse-lib2to3 - cannot parse bad.py  module=lib2to3.bad lines=12

Only a first line begins at the edge, so that no message can pass for an event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runlog.cli.times import show_time
from runlog.rendering import visible, visible_lines

if TYPE_CHECKING:
    from datetime import tzinfo

INDENT = "    "

_LEVEL_STYLES: tuple[tuple[int, dict[str, Any]], ...] = (
    (50, {"fg": "bright_red", "bold": True}),
    (40, {"fg": "red"}),
    (30, {"fg": "yellow"}),
    (20, {"fg": "cyan"}),
    (0, {"fg": "bright_blue"}),
)
"""Lowest level of each style, highest first."""

_NOT_EXTRAS = ("code.", "thread.", "process.", "asyncio.", "runlog.")
"""How attributes begin that runlog adds itself: every line has them, and they are shown on demand."""

_PLAIN = re.compile(r"[^\s\"'=]+")
"""A value that needs no quotes to be told from what follows it."""


class Style(Protocol):
    """What puts a text in colour, or does not."""

    def __call__(self, text: str, **styles: Any) -> str:
        """Return *text* in a style of `click.style`."""


class LineFormat:
    """
    Turn events into text.

    Args:
        zone: Zone of the times.
        style: Puts a text in colour.
        verbose: Whether to show the logger and the place in the code as well.
    """

    def __init__(self, *, zone: tzinfo, style: Style, verbose: bool = False) -> None:
        self._zone = zone
        self._style = style
        self._verbose = verbose

    def __call__(self, log: dict[str, Any]) -> str:
        """
        Return one event's text, without the last line break.

        Args:
            log: An event as `runlog.client.LogReader.logs` yields it.
        """
        attributes = log.get("attributes") or {}
        time = visible(show_time(log.get("timestamp"), self._zone))
        level_name = visible(str(log.get("level_name") or log.get("level")))
        level = self._style(f"{level_name:<8}", **_style_of(log.get("level")))
        run = visible(str(log.get("task_run_name") or log.get("flow_run_name") or "-"))
        parts = [time, level, self._style(run, fg="magenta")]
        if self._verbose:
            parts[2:2] = [visible(str(log.get("name")))]
        message, line_break, rest = visible_lines(str(log.get("message")), INDENT).partition("\n")
        text = f"{' | '.join(parts)} - {message}"
        extras = [f"{visible(key)}={_value(value)}" for key, value in self._extras(log, attributes)]
        if extras:
            text += "  " + self._style(" ".join(extras), dim=True)
        text += line_break + rest
        exception = log.get("exception") or {}
        trace = str(exception.get("traceback") or "").rstrip("\n")
        return f"{text}\n{INDENT}{visible_lines(trace, INDENT)}" if trace else text

    def _extras(self, log: dict[str, Any], attributes: dict[str, Any]) -> list[tuple[str, Any]]:
        extras = [(key, value) for key, value in attributes.items() if not key.startswith(_NOT_EXTRAS)]
        attempt = log.get("attempt")
        if isinstance(attempt, int) and attempt > 1:
            extras.append(("attempt", attempt))
        if log.get("truncated_bytes"):
            extras.append(("truncated_bytes", log["truncated_bytes"]))
        if self._verbose and "code.file.path" in attributes:
            extras.append(("at", f"{attributes['code.file.path']}:{attributes.get('code.line.number')}"))
        return extras


def _style_of(level: Any) -> dict[str, Any]:
    number = level if isinstance(level, int) else 0
    return next((style for floor, style in _LEVEL_STYLES if number >= floor), {})


def _value(value: Any) -> str:
    """As it is if it is one word, else as JSON, which quotes it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return visible(value)
    return visible(msgspec.json.encode(value).decode())
