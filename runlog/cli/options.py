"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from runlog.cli.times import parse_time, parse_zone

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, tzinfo

    from runlog.client import LogReader

F = TypeVar("F", bound="Callable[..., Any]")

LEVEL_NAMES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class LevelType(click.ParamType):  # type: ignore[type-arg] # generic from click 8.4 on only
    """A level by name, in any case, or by number."""

    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return an upper-case name or a number."""
        text = str(value).strip().upper()
        if text in LEVEL_NAMES:
            return text
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{value!r} is no level: expected {', '.join(LEVEL_NAMES)} or a number", param, ctx)
        return int(text)


class TimezoneType(click.ParamType):  # type: ignore[type-arg] # the same
    """A time zone: ``local``, ``utc``, or a name such as ``Europe/Paris``."""

    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tzinfo:
        """Return the zone."""
        try:
            return parse_zone(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def url_option(function: F) -> F:
    """Add ``--url``: which server is read."""
    return click.option(
        "--url",
        metavar="URL",
        help="API of the server to read. [default: $PREFECT_API_URL, else the store of this machine]",
    )(function)


def color_option(function: F) -> F:
    """Add ``--color``."""
    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Colours on stdout; NO_COLOR and FORCE_COLOR are honoured.",
    )(function)


def output_option(function: F) -> F:
    """Add ``-o``: for people, as one JSON array, or as JSON lines."""
    return click.option(
        "-o",
        "--output",
        "output_format",
        type=click.Choice(["default", "json", "jsonl"]),
        default="default",
        show_default=True,
        help="For people, as a JSON array, or as one JSON object a line.",
    )(function)


def timezone_option(function: F) -> F:
    """Add ``--timezone``: in which zone times are shown and read."""
    return click.option(
        "--timezone",
        "zone",
        type=TimezoneType(),
        default="local",
        show_default=True,
        help="Zone of times: local, utc, or a name such as Europe/Paris.",
    )(function)


def moment(text: str | None, zone: tzinfo, option: str) -> datetime | None:
    """
    Return the time that an option names.

    Args:
        text: What was typed; `None` if the option was not given.
        zone: Zone of a time that names none.
        option: The option, for the message.

    Raises:
        click.BadParameter: If it is no time.
    """
    if text is None:
        return None
    try:
        return parse_time(text, zone=zone)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def open_reader(url: str | None) -> LogReader:
    """
    Return a reader of the server at *url*, by default of the one that the settings name.

    Where they name none, it reads this machine's store, with the lines that wait in its spool.

    Raises:
        ServerUnreachableError: If there is nothing to read.
    """
    from runlog.client import LogReader  # noqa: PLC0415 - loads the HTTP client, 100 ms
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    settings = get_current_settings()
    if url is None and settings.api.url is None:
        from runlog.cli.local import LocalReader  # noqa: PLC0415 - not for a server elsewhere

        return LocalReader(settings)
    return LogReader.from_settings(url)
