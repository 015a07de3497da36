"""``runlog server keys``: make, list and revoke API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runlog.cli.options import color_option, output_option, timezone_option
from runlog.cli.output import Cell, Column, Output, note
from runlog.cli.server_options import AgeType, database_option, server_url_option
from runlog.cli.times import show_time

if TYPE_CHECKING:
    from datetime import tzinfo

    from runlog.cli.output import ColorChoice

COLUMNS = (
    Column("ID"),
    Column("NAME"),
    Column("SCOPES"),
    Column("BOUND TO"),
    Column("CREATED"),
    Column("EXPIRES"),
    Column("LAST USED"),
)
KEYS = "/runlog/v1/admin/keys"


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. From the first one on, the server asks for credentials."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["ingest", "read", "admin"]),
    help="What it may do: send lines, read them, or all of that and look after the server. May be repeated.",
)
@click.option("--expires", type=AgeType(), metavar="AGE", help="Worth nothing after this time, such as 90d.")
@click.option("--flow-run", metavar="ID", help="Sees this flow run and its task runs alone.")
@click.option("--flow", metavar="NAME", help="Sees runs of this flow alone.")
@database_option
@server_url_option
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    expires: float | None,
    flow_run: str | None,
    flow: str | None,
    database: str | None,
    url: str | None,
) -> None:
    """
    Make a key and print it, once: it is not stored.

    NAME says what it is for. Programs take the key from PREFECT_API_KEY.
    """
    from runlog.cli.server_api import open_server  # noqa: PLC0415 - not for --help

    with open_server(url, database, "runlog server keys") as server:
        made = server.ask(
            "POST",
            KEYS,
            {
                "name": name,
                "scopes": list(scopes),
                "expires_s": expires,
                "flow_run_id": flow_run,
                "flow_name": flow,
            },
        )
    note(f"key {made['id']} made; this is the only time that it is shown:")
    click.echo(made["key"])


@keys.command("list")
@database_option
@output_option
@timezone_option
@color_option
@server_url_option
def list_keys(
    *, database: str | None, output_format: str, zone: tzinfo, color: ColorChoice, url: str | None
) -> None:
    """List the keys, oldest first: their beginnings, never the keys themselves."""
    from runlog.cli.server_api import open_server  # noqa: PLC0415 - not for --help

    output = Output(color)
    with open_server(url, database, "runlog server keys") as server:
        found = server.ask("GET", KEYS)["keys"]
    if output_format != "default":
        output.objects(found, array=output_format == "json")
    elif found:
        output.table(COLUMNS, [row(key, zone) for key in found])
    else:
        note("no keys")


@keys.command()
@click.argument("key_id", metavar="ID")
@database_option
@server_url_option
def revoke(*, key_id: str, database: str | None, url: str | None) -> None:
    """Make a key worthless, at once. ID is its beginning, as `runlog server keys list` shows it."""
    from urllib.parse import quote  # noqa: PLC0415 - not for --help

    from runlog.cli.server_api import open_server  # noqa: PLC0415 - not for --help

    with open_server(url, database, "runlog server keys") as server:
        server.ask("DELETE", f"{KEYS}/{quote(key_id, safe='')}")
    note(f"key {key_id} is worth nothing any more")


def row(key: dict[str, Any], zone: tzinfo) -> list[str | Cell]:
    """Return the cells of one key."""
    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    bounds = [
        f"{what} {key[name]}" for what, name in (("run", "flow_run_id"), ("flow", "flow_name")) if key[name]
    ]
    expires = visible(show_time(key["expires"], zone)) if key["expires"] else "never"
    return [
        visible(key["id"]),
        visible(key["name"]),
        " ".join(key["scopes"]),
        visible(" and ".join(bounds) or "-"),
        visible(show_time(key["created"], zone)),
        Cell(f"{expires} (over)", "yellow") if key["expired"] else expires,
        visible(show_time(key["last_used"], zone)) if key["last_used"] else "-",
    ]
