"""Options of the commands that look after a server's store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_AGE = re.compile(r"(\d{1,9})([smhdwy])", re.ASCII)
_SECONDS_PER = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}


class AgeType(click.ParamType):  # type: ignore[type-arg] # generic from click 8.4 on only
    """A length of time, such as ``30d``; in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = _AGE.fullmatch(str(value).strip())
        if found is None or not int(found[1]):
            self.fail(
                f"{value!r} is no age: expected a number and a unit, such as 12h, 30d or 1y", param, ctx
            )
        return int(found[1]) * _SECONDS_PER[found[2]]


def server_url_option(function: F) -> F:
    """Add ``--url``: which server is meant."""
    return click.option(
        "--url",
        metavar="URL",
        help="API of the server to ask; it needs a key with scope admin. [default: this machine's]",
    )(function)


def database_option(function: F) -> F:
    """Add ``--database``: which store is opened."""
    return click.option(
        "--database",
        metavar="FILE",
        help="Store to open, while no server has it. "
        "[default: $RUNLOG_SERVER_DATABASE, $RUNLOG_HOME/runlog.db]",
    )(function)
