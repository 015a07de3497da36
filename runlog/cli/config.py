"""``runlog config``: the settings in force, and where each of them comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runlog.cli.options import color_option, output_option
from runlog.cli.output import Cell, Column, Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runlog.cli.output import ColorChoice
    from runlog.settings import SettingInfo, Settings

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
    rows: list[list[str | Cell]] = []
    for item in found:
        emphasis = None if item["origin"] == DEFAULT_ORIGIN else "green"
        row: list[str | Cell] = [item["name"], Cell(text_of(item["value"]), emphasis)]
        rows.append([*row, item["origin"]] if origin else row)
    output.table(columns, rows)


def facts() -> Iterator[dict[str, Any]]:
    """
    Yield each setting's ``name``, ``value`` and ``origin``, ready to be shown.

    Raises:
        SettingsError: If a setting is wrong.
    """
    from runlog.settings import get_current_settings, iter_settings, origin_of  # noqa: PLC0415 - pydantic, 290 ms

    settings = get_current_settings()
    for info in iter_settings():
        yield {"name": info.name, "value": shown_value(settings, info), "origin": origin_of(info.name)}


def shown_value(settings: Settings, info: SettingInfo) -> Any:
    """Return a setting's value as plain data that may be shown: no secret, and no password in an address."""
    from runlog.client.addresses import without_password  # noqa: PLC0415 - with the settings only
    from runlog.redaction import redact_value  # noqa: PLC0415 - with the settings only

    value: Any = settings
    for name in info.path:
        value = getattr(value, name)
    if value is None or isinstance(value, bool | int | float):
        return value
    if info.secret:
        return "***"
    if isinstance(value, dict | list | tuple):
        return redact_value(value)
    return redact_value(without_password(str(value)))


def text_of(value: Any) -> str:
    """Return a value as one would write it into the environment; ``-`` if there is none."""
    import msgspec  # noqa: PLC0415 - not for --help

    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return visible(",".join(str(item) for item in value)) or "-"
    if isinstance(value, dict):
        return visible(msgspec.json.encode(value).decode()) if value else "-"
    return visible(str(value))
