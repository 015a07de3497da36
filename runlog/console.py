r"""
Write records to the terminal, in colour where that is wanted, and never get in the way.

The stream is what `sys.stderr` is at the time of the write, unless another one is
given, so that a test or notebook that replaces it gets the lines. A stream that is
closed, or whose reader is gone, is silent: that is found out once. Nothing is raised
into a log call.

Lines are not wrapped. Colours come from `DEFAULT_STYLES` and are used on a terminal
only; ``PREFECT_LOGGING_COLORS=false``, ``NO_COLOR`` and ``TERM=dumb`` turn them off,
``FORCE_COLOR`` turns them on elsewhere (https://no-color.org, https://force-color.org).
rich knows terminals and styles; it is imported when the first colour is needed. The
text is put together here, which costs a tenth of `rich.console.Console.print`.

What may stand in a line is the business of `runlog.formatters`. A plain
`logging.Formatter` is replaced by a `RunFormatter` of the same layout; of another
class's lines secrets are masked and control characters shown, except line breaks and
the colours it may want.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from runlog.formatters import JsonFormatter, RunFormatter
from runlog.redaction import redact_text
from runlog.rendering import clean_text, safe_str, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

DEFAULT_STYLES: Mapping[str, str] = {
    "log.debug_level": "bright_black",
    "log.info_level": "cyan",
    "log.warning_level": "yellow",
    "log.error_level": "red",
    "log.critical_level": "bold red",
    "log.web_url": "bright_blue",
    "log.local_url": "bright_blue",
    "log.flow_run_name": "magenta",
    "log.flow_name": "bold magenta",
    "log.task_run_name": "blue",
    "log.task_name": "bold blue",
    "log.running_state": "blue",
    "log.completed_state": "green",
    "log.cancelled_state": "yellow",
    "log.failed_state": "red",
    "log.crashed_state": "bright_red",
    "log.cached_state": "bright_blue",
}
"""Style of each thing that is told apart in a line, in the words of rich; Prefect's names."""

_NAME = r"""'[^'\n]{1,200}'|"[^"\n]{1,200}\""""
_PARTS = re.compile(
    rf"""
    (?P<web_url>\b(?:https?|wss?)://[^\s'"<>|]+)
  | (?P<local_url>\bfile://[^\s'"<>|]+)
  | \b(?:(?P<debug_level>DEBUG)|(?P<info_level>INFO)|(?P<warning_level>WARNING)|(?P<error_level>ERROR)
    |(?P<critical_level>CRITICAL))\b
  | \b[Ff]low\ run\ (?P<flow_run_name>{_NAME})
  | \b[Tt]ask\ run\ (?P<task_run_name>{_NAME})
  | \b[Ff]low\ (?P<flow_name>{_NAME})
  | \b[Tt]ask\ (?P<task_name>{_NAME})
  | \b(?:(?P<completed_state>Completed\b|COMPLETED\b|completed(?=\ in\ \d))
    |(?P<running_state>Running\b|RUNNING\b)
    |(?P<cancelled_state>Cancelled\b|CANCELLED\b|cancelled(?=\ after\ \d))
    |(?P<failed_state>Failed\b|FAILED\b|failed(?=\ after\ \d))
    |(?P<crashed_state>Crashed\b|CRASHED\b)
    |(?P<cached_state>Cached\b|CACHED\b))
    """,
    re.VERBOSE,
)

_GONE = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET})
"""Errors after which a stream takes nothing any more; others, such as a full disk, may pass."""

_STYLES_OF_LAYOUTS: dict[type, Any] = {
    logging.PercentStyle: "%",
    logging.StrFormatStyle: "{",
    logging.StringTemplateStyle: "$",
}


class ConsoleHandler(logging.StreamHandler[Any]):
    """
    Write each record as a line to a terminal, or to what stands in for one.

    Thread-safe, as every handler. The settings are read once, here; the stream
    is looked at again when it is replaced.

    Args:
        stream: Where to write. `None`, or what is `sys.stderr` or `sys.stdout`
            now, follows that name when it is replaced.
        styles: Changes of `DEFAULT_STYLES`, such as ``{"log.info_level":
            "green"}``; an empty style, or `None`, leaves a thing as it is.
        level: Lowest level of records to write, as number or name.

    Raises:
        ValueError: If a style is none; found out when it is needed first, which
            is here if the stream is a terminal.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        styles: Mapping[str, str | None] | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        from runlog.settings import get_current_settings  # noqa: PLC0415 - 290 ms, once there is something to set up

        settings = get_current_settings().logging
        self._markup = settings.markup
        self._colors = settings.colors and not os.environ.get("NO_COLOR")
        self._force = os.environ.get("FORCE_COLOR", "0") not in ("", "0")
        self._style_words = {**DEFAULT_STYLES, **(styles or {})}
        self._safe: RunFormatter | None = None
        self._known: Any = None
        """The stream that was looked at last; what follows is about it."""
        self._dead: Any = None
        """The stream that took no more."""
        self._console: Console | None = None
        self._codes: dict[str, tuple[str, str]] = {}
        super().__init__(stream)
        self.setLevel(level)
        if self.stream is not None:
            self._look_at(self.stream)

    def __repr__(self) -> str:
        where = self._follow or visible(safe_str(self._given))
        return f"<ConsoleHandler ({logging.getLevelName(self.level)}) to {where}>"

    @property
    def stream(self) -> Any:
        """Where the next line goes; `None` if there is no such stream, as under ``pythonw``."""
        return getattr(sys, self._follow) if self._follow else self._given

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._given = stream
        self._follow = None
        for name in ("stderr", "stdout"):
            if stream is getattr(sys, name) or stream is getattr(sys, f"__{name}__"):
                self._follow = name
                break

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - the name that logging gives it
        """
        Use a formatter.

        Args:
            fmt: A plain `logging.Formatter` gives its layout only: what it makes
                of a message from outside could forge a line.
        """
        super().setFormatter(fmt)
        self._safe = None
        if fmt is not None and type(fmt) is logging.Formatter:
            style = fmt._style  # noqa: SLF001 - there is no other way to read a formatter's layout
            if type(style) in _STYLES_OF_LAYOUTS:
                self._safe = RunFormatter(
                    style._fmt,  # noqa: SLF001 - the same
                    fmt.datefmt,
                    _STYLES_OF_LAYOUTS[type(style)],
                    validate=False,
                    defaults=getattr(style, "_defaults", None),
                )

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, safe to be shown; never raises."""
        formatter = self._safe or self.formatter or _BARE
        if isinstance(formatter, RunFormatter | JsonFormatter):
            return formatter.format(record)
        try:
            text = formatter.format(record)
        except Exception as error:
            return f"{_BARE.format(record)} <{type(formatter).__name__}: {type(error).__name__}>"
        return redact_text(_shown(clean_text(text)))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a stream that is gone is silent."""
        try:
            stream = self.stream
            if stream is None or stream is self._dead:
                return
            if stream is not self._known:
                try:
                    self._look_at(stream)
                except Exception:
                    self.handleError(record)  # a style that is none: said once, and the line goes out plain
            self._write(stream, self._styled(self.format(record)))
        except RecursionError:
            pass  # the program is at its limit: a report would only raise another
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Flush the stream, if it is still there; raises nothing, like `emit`."""
        stream = self.stream
        if stream is None or stream is self._dead or not hasattr(stream, "flush"):
            return
        self.acquire()
        try:
            stream.flush()
        except (OSError, ValueError):
            self._dead = stream
        except Exception:  # noqa: S110 - whoever reconfigures logging flushes; the next line tells what is wrong
            pass
        finally:
            self.release()

    # --- writing ---

    def _write(self, stream: Any, text: str) -> None:
        try:
            try:
                stream.write(text + self.terminator)
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                text = text.encode(encoding, "backslashreplace").decode(encoding)
                stream.write(text + self.terminator)
            if hasattr(stream, "flush"):
                stream.flush()
        except OSError as error:
            if error.errno in _GONE:
                self._dead = stream
        except ValueError:
            if not getattr(stream, "closed", False):
                raise
            self._dead = stream

    # --- colours ---

    def _look_at(self, stream: Any) -> None:
        """Find out what a stream can show."""
        self._known = stream
        self._console = None
        self._codes = {}
        wants_colors = self._colors and (self._force or _is_terminal(stream))
        if not wants_colors and not self._markup:
            return
        from rich.console import Console  # noqa: PLC0415 - 50 ms that most programs need not spend

        self._console = Console(file=stream, force_terminal=wants_colors or None, no_color=not wants_colors)
        if wants_colors:
            self._codes = _codes(self._style_words, self._console)

    def _styled(self, text: str) -> str:
        if self._markup and self._console is not None and "[" in text:
            marked_up = self._marked_up(text, self._console)
            if marked_up is not None:
                return marked_up
        if not self._codes:
            return text
        parts: list[str] = []
        done = 0
        for match in _PARTS.finditer(text):
            kind = match.lastgroup
            assert kind is not None
            before, after = self._codes[kind]
            start, end = match.span(kind)
            parts += [text[done:start], before, text[start:end], after]
            done = end
        return "".join(parts) + text[done:] if parts else text

    def _marked_up(self, text: str, console: Console) -> str | None:
        """Return the text with rich's markup carried out, or `None` if it cannot be."""
        from rich.errors import MarkupError  # noqa: PLC0415 - imported already, with the console
        from rich.text import Text  # noqa: PLC0415 - the same

        try:
            content = Text.from_markup(text, emoji=False)
            if self._codes:
                for match in _PARTS.finditer(content.plain):
                    kind = match.lastgroup or ""
                    content.stylize(self._style_words[f"log.{kind}"] or "", *match.span(kind))
            with console.capture() as capture:
                console.print(content, end="", soft_wrap=True)
        except MarkupError:
            return None  # brackets that are no markup
        return capture.get()


_BARE = RunFormatter("%(message)s")

_LINES_AND_COLORS = re.compile(r"(\n|\x1b\[[0-9;]*m)")


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    parts = _LINES_AND_COLORS.split(text)
    parts[::2] = [visible(part) for part in parts[::2]]
    return "".join(parts)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except Exception:
        return False  # closed, or no real stream


def _codes(words: Mapping[str, str | None], console: Console) -> dict[str, tuple[str, str]]:
    """Return what to write before and after each thing, for the colours that the terminal has."""
    from rich.console import COLOR_SYSTEMS  # noqa: PLC0415 - imported already, with the console
    from rich.errors import StyleSyntaxError  # noqa: PLC0415 - the same
    from rich.style import Style  # noqa: PLC0415 - the same

    system = console.color_system
    if system is None or console.legacy_windows:
        return {}  # a Windows console that needs calls instead of escape sequences
    codes = {}
    for name, word in words.items():
        try:
            style = Style.parse(word or "")
        except StyleSyntaxError as error:
            raise ValueError(
                f"style {name} is {word!r}, expected words such as 'bold red': {error}"
            ) from error
        before, _, after = style.render("\0", color_system=COLOR_SYSTEMS[system]).partition("\0")
        codes[name.removeprefix("log.")] = (before, after)
    return codes
