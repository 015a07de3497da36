"""``runlog receipt``: whether all lines of a run are stored, in words and in the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runlog.cli.options import color_option, open_reader, url_option
from runlog.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runlog.cli.output import ColorChoice

EXIT_INCOMPLETE = 1

NOT_PROVEN = "not proven"
"""The server's verdict if nothing is known to be missing, but something may be."""


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    "output_format",
    type=click.Choice(["default", "json"]),
    default="default",
    show_default=True,
    help="For people, or as a JSON object with what each producer sent.",
)
@color_option
@url_option
@click.pass_context
def receipt(ctx: click.Context, *, run: str, output_format: str, color: ColorChoice, url: str | None) -> None:
    """
    Tell whether all lines of a run are stored.

    Those of its tasks and sub-flows are included. RUN is a run's name, its id or
    the beginning of it, or "latest". The exit code is 0 if the run is complete,
    and 1 if it has not ended, lines of it are missing, or may be missing.
    """
    output = Output(color)
    with open_reader(url) as reader:
        found = reader.receipt(reader.run(run)["id"])
    complete = found.get("complete") is True
    if output_format == "json":
        output.objects([found], array=False)
    else:
        verdict, *rest = texts(found)
        color_name = "green" if complete else "yellow" if found.get("verdict") == NOT_PROVEN else "red"
        output.lines([output.style(verdict, fg=color_name), *rest])
    if not complete:
        ctx.exit(EXIT_INCOMPLETE)


def texts(found: dict[str, Any]) -> Iterator[str]:
    """
    Yield the verdict, then what it is founded on.

    Args:
        found: A receipt as `runlog.client.LogReader.receipt` returns it.
    """
    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    producers = found.get("producers") or []
    stored = f"{_count(found.get('stored') or 0, 'line')} of {_count(len(producers), 'producer')}"
    if found.get("complete") is True:
        yield f"complete: {stored}, none missing"
    elif found.get("verdict") == NOT_PROVEN:
        yield f"not proven: {stored} stored, more may have been lost"
    else:
        yield f"not complete: {stored} stored"
    for reason in found.get("reasons") or ():
        yield f"  {visible(str(reason))}"
    if found.get("truncated"):
        yield f"  {_count(found['truncated'], 'line')} cut to the size limit"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
