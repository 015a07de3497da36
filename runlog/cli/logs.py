"""``runlog logs``: the lines of one run, oldest first."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from runlog.cli.lines import LineFormat
from runlog.cli.losses import LossMarks
from runlog.cli.options import (
    LevelType,
    color_option,
    moment,
    open_reader,
    output_option,
    timezone_option,
    url_option,
)
from runlog.cli.output import Output, note
from runlog.exceptions import QueryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import tzinfo

    from runlog.cli.output import ColorChoice


@click.command()
@click.argument("run")
@click.option(
    "-q",
    "--query",
    metavar="EXPRESSION",
    help='Which lines, as in: level>=warning table=orders "time out" -retry since:10m',
)
@click.option("--level", type=LevelType(), help="Lowest level, by name or number.")
@click.option("--search", metavar="TEXT", help='Words, "phrases", -without and +with, in message and logger.')
@click.option("--task", metavar="TASK", help="Only lines of this task: its name, or a task run's name or id.")
@click.option(
    "--logger", metavar="NAME", help='Only lines of this logger; "etl.*" takes its children as well.'
)
@click.option("--since", metavar="TIME", help="Earliest time: 10m, 2h30m, 14:05, 2026-11-21T10:00, RFC 3339.")
@click.option("--until", metavar="TIME", help="Latest time, in the same forms.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--head", type=click.IntRange(0), metavar="N", help="Only the first N lines.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Show the logger, and where in the code the line was logged."
)
@output_option
@timezone_option
@color_option
@url_option
def logs(
    *,
    run: str,
    query: str | None,
    level: int | str | None,
    search: str | None,
    task: str | None,
    logger: str | None,
    since: str | None,
    until: str | None,
    tail: int | None,
    head: int | None,
    verbose: bool,
    output_format: str,
    zone: tzinfo,
    color: ColorChoice,
    url: str | None,
) -> None:
    """
    Print the lines of a run.

    The oldest first, with those of its tasks and sub-flows. RUN is a run's name,
    its id or the beginning of it, "latest" for the flow run that started last, or
    "latest~1" for the one before.

    Where lines of the process were lost, a line says so and why.
    """
    if tail is not None and head is not None:
        raise click.UsageError("--tail and --head exclude each other: give one of them")
    earliest, latest = moment(since, zone, "--since"), moment(until, zone, "--until")
    output = Output(color)
    with pointing_at(query), open_reader(url) as reader:
        run_id = reader.run(run)["id"]
        found: Iterable[dict[str, Any]] = reader.logs(
            run=run_id,
            query=query,
            timezone=getattr(zone, "key", None),
            level=level,
            search=search,
            task=task,
            logger=logger,
            since=earliest,
            until=latest,
            order="asc" if tail is None else "desc",
            limit=head if tail is None else tail,
        )
        if tail is not None:
            found = reversed(list(found))
        if output_format == "default":
            line_format = LineFormat(zone=zone, style=output.style, verbose=verbose)
            marks = LossMarks(lambda: reader.receipt(run_id), output.style)
            count = output.lines(text for log in found for text in (*marks.before(log), line_format(log)))
        else:
            count = output.objects(found, array=output_format == "json")
    if count == 0:
        note("no lines match" if any((query, level, search, task, logger, since, until)) else "no lines")


@contextlib.contextmanager
def pointing_at(expression: str | None) -> Iterator[None]:
    """Show, above the error of a wrong expression, where in it the fault is."""
    try:
        yield
    except QueryError as error:
        if expression is not None and error.position is not None and error.position <= len(expression):
            from rich.cells import cell_len  # noqa: PLC0415 - only when something went wrong

            from runlog.rendering import visible  # noqa: PLC0415 - the same

            click.echo(f"  {visible(expression)}", err=True)
            click.echo(f"  {' ' * cell_len(visible(expression[: error.position]))}^", err=True)
        raise
