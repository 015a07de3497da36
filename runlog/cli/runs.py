"""``runlog runs``: which runs the server knows, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runlog.cli.options import color_option, open_reader, output_option, timezone_option, url_option
from runlog.cli.output import STATE_COLORS, Cell, Column, Output, note
from runlog.cli.times import show_duration, show_time

if TYPE_CHECKING:
    from datetime import tzinfo

    from runlog.cli.output import ColorChoice

COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("RUN"),
    Column("FLOW OR TASK"),
    Column("STARTED"),
    Column("DURATION", right=True),
    Column("LINES", right=True),
    Column("WARNINGS", right=True),
    Column("ERRORS", right=True),
)


SHORT_ID = 8
"""Characters of an id that are shown at least."""


@click.command()
@click.option(
    "--state",
    type=click.Choice(["running", "completed", "failed", "cancelled", "unknown"], case_sensitive=False),
    help="Only runs in this state; unknown: lines came, but neither start nor end.",
)
@click.option("--name", metavar="TEXT", help="Only runs with this in their name.")
@click.option(
    "--kind",
    type=click.Choice(["flow", "task", "all"]),
    default="flow",
    show_default=True,
    help="Flow runs, task runs, or both.",
)
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Most runs to list."
)
@output_option
@timezone_option
@color_option
@url_option
def runs(
    *,
    state: str | None,
    name: str | None,
    kind: str,
    limit: int,
    output_format: str,
    zone: tzinfo,
    color: ColorChoice,
    url: str | None,
) -> None:
    """
    List runs, newest first.

    The first column is the beginning of the run's id, which every command takes
    in place of the whole: runlog logs 3f9a2c11
    """
    output = Output(color)
    with open_reader(url) as reader:
        found = reader.runs(
            state=state.upper() if state else None,
            name=name,
            kind=None if kind == "all" else kind,  # type: ignore[arg-type] # click.Choice leaves the two
            limit=limit,
        )
        if output_format != "default":
            output.objects(found, array=output_format == "json")
            return
        listed = list(found)
    if listed:
        length = id_length([str(run.get("id")) for run in listed])
        output.table(COLUMNS, [row(run, zone, length) for run in listed])
    else:
        note("no runs")


def id_length(ids: list[str]) -> int:
    """Return how many characters tell these ids apart, at least `SHORT_ID`: ids of one time begin alike."""
    length = SHORT_ID
    while len({run_id[:length] for run_id in ids}) < len(set(ids)):
        length += 1
    return length


def row(run: dict[str, Any], zone: tzinfo, length: int) -> list[str | Cell]:
    """Return the cells of one run, with so many characters of its id."""
    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    counts = run.get("counts") or {}
    state = str(run.get("state") or "UNKNOWN")
    errors = counts.get("ERROR", 0) + counts.get("CRITICAL", 0)
    warnings = counts.get("WARNING", 0)
    return [
        visible(str(run.get("id")))[:length],
        Cell(visible(state), STATE_COLORS.get(state)),
        visible(str(run.get("name") or "-")),
        visible(str(run.get("task_name" if run.get("kind") == "task" else "flow_name") or "-")),
        visible(show_time(run.get("started"), zone)),
        show_duration(run.get("duration_s")),
        str(run.get("lines", 0)),
        Cell(str(warnings), "yellow" if warnings else None),
        Cell(str(errors), "red" if errors else None),
    ]
