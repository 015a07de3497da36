"""
Where a command's output goes: data to stdout, in colour or not, remarks to stderr.

Text that came from a server is data and may hold anything; it passes through
`visible` before it is printed, so that no escape sequence or line break in it
acts on a terminal. JSON is written as UTF-8 whatever the locale says, never in
colour, one object a line.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ColorChoice = Literal["auto", "always", "never"]

LINES_AT_ONCE = 200
"""Lines written with one system call: fast in a pipe, and not noticeable on a terminal."""

STATE_COLORS = {"RUNNING": "cyan", "COMPLETED": "green", "FAILED": "red", "CANCELLED": "yellow"}
"""Colour of a run's state; others have none."""

_INVISIBLE_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""
What JSON allows as it is and a terminal may act on.

DEL and the C1 controls (U+009B begins an escape sequence), line separators, and
what turns the direction of writing.
"""


class Column(NamedTuple):
    """A column of a table."""

    title: str
    right: bool = False
    """Whether its cells end at the right edge, as numbers do."""


class Cell(NamedTuple):
    """A cell of a table; plain text serves where there is no colour."""

    text: str
    color: str | None = None


class Output:
    """
    The stdout of one command.

    Args:
        color: ``always``, ``never``, or ``auto``: if stdout is a terminal and the
            environment does not say otherwise.
    """

    def __init__(self, color: ColorChoice = "auto") -> None:
        self.colored = wants_color(color)
        # A character that the locale's encoding lacks is shown as an escape instead of ending the command.
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def style(self, text: str, **styles: Any) -> str:
        """Return *text* in a style of `click.style`, or as it is."""
        return click.style(text, **styles) if self.colored else text

    def lines(self, lines: Iterable[str]) -> int:
        """
        Write lines, as they come, and return how many they were.

        Args:
            lines: Without their line breaks; safe to print already.
        """
        count = 0
        waiting = iter(lines)
        while chunk := list(itertools.islice(waiting, LINES_AT_ONCE)):
            click.echo("\n".join(chunk), color=self.colored)
            count += len(chunk)
        return count

    def objects(self, objects: Iterable[Any], *, array: bool) -> int:
        """
        Write objects as JSON, one a line, as they come, and return how many they were.

        Args:
            objects: What `msgspec` can encode.
            array: Whether the whole is one JSON array, and not JSON lines.
        """
        import msgspec  # noqa: PLC0415 - not for --help

        encode = msgspec.json.Encoder().encode

        def texts() -> Iterator[str]:
            for index, item in enumerate(objects):
                before = "" if not array else ",\n" if index else "[\n"
                yield (
                    before + _INVISIBLE_IN_JSON.sub(_escaped, encode(item).decode()) + ("" if array else "\n")
                )

        count = 0
        waiting = texts()
        while chunk := list(itertools.islice(waiting, LINES_AT_ONCE)):
            click.echo("".join(chunk).encode(), nl=False)  # bytes pass by the locale's encoding
            count += len(chunk)
        if array:
            click.echo("\n]" if count else "[]")
        return count

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> None:
        """
        Write a table: a row is one line, of whatever length, also in a pipe.

        Args:
            columns: Titles.
            rows: As many cells each as there are columns.
        """
        from rich.cells import cell_len  # noqa: PLC0415 - widths of East Asian characters, for tables only

        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        widths = [
            max(cell_len(text) for text in (column.title, *(row[index].text for row in cells)))
            for index, column in enumerate(columns)
        ]

        def line(row: Sequence[Cell], paint: Callable[[Cell, str], str]) -> str:
            padded = []
            for column, width, cell in zip(columns, widths, row, strict=True):
                space = " " * (width - cell_len(cell.text))
                text = paint(cell, cell.text)
                padded.append(space + text if column.right else text + space)
            return "  ".join(padded).rstrip()

        titles = [Cell(column.title) for column in columns]
        self.lines([line(titles, lambda _, text: self.style(text, bold=True))])
        self.lines(
            line(row, lambda cell, text: self.style(text, fg=cell.color) if cell.color else text)
            for row in cells
        )


def note(text: str) -> None:
    """Say something about the output, on stderr."""
    click.echo(f"runlog: {text}", err=True)


def wants_color(choice: ColorChoice) -> bool:
    """
    Return whether stdout gets colours.

    ``--color always`` and ``never`` win; then ``NO_COLOR`` (https://no-color.org),
    then ``FORCE_COLOR``, each if it is set and not empty; then whether stdout is a
    terminal that knows colours.
    """
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
