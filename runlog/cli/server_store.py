"""``runlog server prune``, ``vacuum`` and ``backup``: look after what the server keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runlog.cli.output import note
from runlog.cli.server_options import AgeType, database_option, server_url_option

if TYPE_CHECKING:
    from rich.progress import Progress

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@click.command()
@click.option("--older-than", type=AgeType(), metavar="AGE", help="Lines older than this go, such as 30d.")
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Only lines of this level; may be repeated.",
)
@click.option("--max-bytes", type=click.IntRange(0), help="Oldest lines go until no more space is taken.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@database_option
@server_url_option
def prune(
    *,
    older_than: float | None,
    levels: tuple[str, ...],
    max_bytes: int | None,
    yes: bool,
    database: str | None,
    url: str | None,
) -> None:
    """
    Delete old lines, and the runs of which none is left.

    RUNLOG_SERVER_RETENTION and RUNLOG_SERVER_MAX_BYTES do so by themselves, all
    the time. The space is used for new lines; "runlog server vacuum" gives it
    back to the disk.
    """
    from runlog.cli.server_api import open_server  # noqa: PLC0415 - not for --help

    if older_than is None and max_bytes is None:
        raise click.UsageError("say what is to go, with --older-than or --max-bytes")
    if not yes:
        click.confirm("Lines that are deleted cannot be had back. Go on?", abort=True, err=True)
    lines = runs = 0
    with open_server(url, database, "runlog server prune") as server, progress() as bar:
        task = bar.add_task("0 lines deleted", total=None)
        wanted: dict[str, Any] = {"older_than_s": older_than, "max_bytes": max_bytes}
        if levels:
            wanted["levels"] = list(levels)
        done = False
        while not done:
            answer = server.ask("POST", "/runlog/v1/admin/prune", wanted)
            lines, runs, done = lines + answer["lines"], runs + answer["runs"], answer["done"]
            wanted["cursor"] = answer["cursor"]
            bar.update(task, description=f"{lines:,} lines deleted")
        bar.update(task, total=1, completed=1)
    note(f"{lines:,} lines and {runs:,} runs deleted")


@click.command()
@database_option
@server_url_option
def vacuum(*, database: str | None, url: str | None) -> None:
    """
    Give the space of deleted lines back to the disk.

    Writes the database anew, which needs twice its size for a while. Lines that
    programs send meanwhile wait with them.
    """
    from runlog.cli.server_api import open_server  # noqa: PLC0415 - not for --help

    with open_server(url, database, "runlog server vacuum") as server, progress() as bar:
        task = bar.add_task("writing the database anew", total=None)
        answer = server.ask("POST", "/runlog/v1/admin/vacuum")
        bar.update(task, total=1, completed=1)
    before, after = answer["before_bytes"], answer["after_bytes"]
    note(f"the database takes {after:,} bytes, {max(0, before - after):,} less than before")


@click.command()
@click.argument("target", metavar="FILE")
@database_option
def backup(*, target: str, database: str | None) -> None:
    """
    Copy the database to a new FILE, while the server goes on.

    The copy is what was stored when it began, and is checked. It can be served
    like any other database: runlog server start --database FILE
    """
    from pathlib import Path  # noqa: PLC0415 - not for --help

    from runlog.cli.local import database_of  # noqa: PLC0415 - imports this package's others
    from runlog.exceptions import SettingsError  # noqa: PLC0415 - for this trouble only
    from runlog.server.storage import storage_from_url  # noqa: PLC0415 - the server's
    from runlog.server.storage.sqlite import SQLiteStorage  # noqa: PLC0415 - the same
    from runlog.server.storage.sqlite.backup import back_up  # noqa: PLC0415 - the same
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    storage = storage_from_url(database or database_of(get_current_settings()))
    if not isinstance(storage, SQLiteStorage):
        raise SettingsError("lines that are kept in memory cannot be backed up", key="RUNLOG_SERVER_DATABASE")
    with progress() as bar:
        task = bar.add_task(f"copying to {target}", total=None)
        size = back_up(
            Path(storage.location),
            Path(target),
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    note(f"{size:,} bytes copied to {target}")


def progress() -> Progress:
    """Return a progress bar on stderr, which shows nothing where that is no terminal."""
    from rich.console import Console  # noqa: PLC0415 - not for --help
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - the same

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
