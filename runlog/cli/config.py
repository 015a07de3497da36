"""``runlog config``: the settings in force, and where each of them comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runlog.cli.options import color_option, output_option
from runlog.cli.output import Cell, Column, Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runlog.cli.output import ColorChoice

DEFAULT_ORIGIN = "default"
"""What `runlog.settings.origin_of` says of a setting that nothing sets."""


@click.group()
def config() -> None:
    """Show the settings and where they come from."""


@config.command()
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@click.option("--changed", is_flag=True, help="Only settings that something sets.")
@output_option
@color_option
def view(*, origin: bool, changed: bool, output_format: str, color: ColorChoice) -> None:
    """
    Show all settings, with secrets masked.

    The order in which a setting is looked for: environment, .env, runlog.toml,
    [tool.runlog] in pyproject.toml, the active profile, default.
    """
    output = Output(color)
    found = [item for item in facts() if not changed or item["origin"] != DEFAULT_ORIGIN]
    if output_format != "default":
        shown = found if origin else [{key: item[key] for key in item if key != "origin"} for item in found]
        output.objects(shown, array=output_format == "json")
        return
    columns = [Column("SETTING"), Column("VALUE")] + ([Column("ORIGIN")] if origin else [])
    output.table(columns, [row(item)[: len(columns)] for item in found])


def row(item: dict[str, str | None]) -> list[str | Cell]:
    """Return the cells of one setting; what is not as by default stands out."""
    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    is_default = item["origin"] == DEFAULT_ORIGIN
    cells = [visible(item[key] or "-") for key in ("name", "value", "origin")]
    return [cells[0], Cell(cells[1], None if is_default else "green"), cells[2]]


def facts() -> Iterator[dict[str, str | None]]:
    """
    Yield each setting's ``name``, ``value`` and ``origin``, ready to be shown: without secrets.

    Raises:
        SettingsError: If a setting is wrong.
    """
    from runlog.settings import get_current_settings, iter_settings, origin_of  # noqa: PLC0415 - pydantic, 290 ms

    settings = get_current_settings()
    for info in iter_settings():
        yield {"name": info.name, "value": info.shown(settings), "origin": origin_of(info.name)}
