"""
``runlog demo``: a real job, its own server, and the proof that every line arrived.

The job is in `runlog.cli.demo_survey`, the count in `runlog.cli.demo_count`;
here they are put together and shown. The demo starts a server on a free
loopback port, points the settings of this process at it (``carry`` takes them to
the child process), runs the job, flushes, and reads everything back over HTTP.

Its data is kept in ``$RUNLOG_HOME/demo/<time>/``, not in the working directory,
which may be a repository or not writable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runlog.cli.options import color_option
from runlog.cli.output import STATE_COLORS, Cell, Column, Output, note
from runlog.cli.times import show_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runlog.cli.demo_count import Tally
    from runlog.cli.demo_survey import Plan, Survey
    from runlog.cli.output import ColorChoice
    from runlog.client import LogReader

FLUSH_TIMEOUT = 60.0
"""Seconds to wait for the last lines: far more than it takes, also on a slow disk."""

SAMPLES = ("surveying", "json/decoder.py:", "does not parse", "retrying in", "The largest package is")
"""The first line with each of these in it is shown, whatever else there is."""

TREE = (
    Column("RUN"),
    Column("STATE"),
    Column("DURATION", right=True),
    Column("LINES", right=True),
    *(Column(level, right=True) for level in ("DEBUG", "INFO", "WARNING", "ERROR")),
)


@click.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to keep the data.  [default: $RUNLOG_HOME/demo/<time>]",
)
@color_option
def demo(directory: Path | None, color: ColorChoice) -> None:
    """
    Run a real job on this machine and read its lines back.

    The job surveys the Python standard library: a flow run with a task for each
    package, in threads, in a child process and in a sub-flow, with a retry, a
    captured print and thousands of lines. The demo starts a log server of its own
    on a free port, counts what was sent, stored, lost and doubled, and ends with
    exit code 0 if that is right. It takes some 10 seconds.
    """
    output = Output(color)
    directory = (directory or _new_directory()).absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    run_demo(output, directory)


def run_demo(output: Output, directory: Path, make_plan: Callable[[], Plan] | None = None) -> None:
    """
    Run the job, read it back and show both.

    Args:
        output: Where to show it.
        directory: Where to keep the data; it exists.
        make_plan: What decides what is surveyed; by default the whole library.

    Raises:
        MissingDependencyError: If the server is not installed.
        click.exceptions.Exit: With code 1, if a line is missing or doubled.
    """
    from runlog.cli import demo_survey  # noqa: PLC0415 - brings the whole library, and --help needs none of it
    from runlog.cli.demo_count import tally  # noqa: PLC0415 - as above
    from runlog.client import LogReader  # noqa: PLC0415 - as above

    database = directory / "runlog.db"
    plan = (make_plan or demo_survey.make_plan)()
    with serving(database) as url:
        note(f"surveying the standard library of Python {sys.version.split()[0]}, {plan.root}")
        note(f"log server at {url}, database {database}")
        found, sent, seconds = _run_job(plan, url, directory)
        with LogReader(url) as reader:
            counts = tally(sent, reader.logs())
            tree = reader.run("latest")
            samples = list(_samples(reader, tree["id"]))
    _show(output, samples, tree, found, seconds)
    _show_tally(output, counts)
    _show_next(output, database)
    if not counts.is_exact:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def serving(database: Path) -> Iterator[str]:
    """Run a log server on a free port of this machine while the block runs; yield its API address."""
    from runlog.cli.server import import_server  # noqa: PLC0415 - as above

    with import_server("runlog demo").BackgroundServer(database=str(database), port=0) as server:
        yield server.url


def _run_job(plan: Plan, url: str, directory: Path) -> tuple[Survey, int, float]:
    """Run the job, its lines going to *url*; return its findings, how many lines it logged, and seconds."""
    from runlog import flush, setup_logging  # noqa: PLC0415 - as above
    from runlog.cli.demo_count import counting  # noqa: PLC0415 - as above
    from runlog.cli.demo_survey import survey  # noqa: PLC0415 - as above

    started = time.perf_counter()
    with _environment(url):
        setup_logging()
        try:
            with _progress(plan.tasks) as progress, counting() as lines:
                found = survey(plan, directory / "report" / "survey.json", progress)
        finally:
            # Also after Ctrl-C: the server stops next, and the end of the program would look for it in vain.
            flush(FLUSH_TIMEOUT)
    return found, lines.count + found.sent_by_child, time.perf_counter() - started


@contextlib.contextmanager
def _environment(url: str) -> Iterator[None]:
    """Point this process at the demo's server while the block runs, as one does: through the environment."""
    from runlog.settings import reset_settings_cache  # noqa: PLC0415 - as above

    changes = {
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_CONFIG_PATH": str(Path(__file__).with_name("demo.yml")),
        # On a slow disk the demo rather waits than drops.
        "RUNLOG_DELIVERY_BLOCK_TIMEOUT": "10",
    }
    before = dict(os.environ)
    # Credentials are for the server that the user configured, and not for this one.
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS"):
        os.environ.pop(name, None)
    os.environ.update(changes)
    reset_settings_cache()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        reset_settings_cache()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many parts are done; on anything else, keep quiet."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="runlog: surveying", file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)


def _samples(reader: LogReader, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield, in their order, a few lines that show what a line can carry."""
    wanted = list(SAMPLES)
    shown_trace = False  # one is enough to see what it looks like
    for log in reader.logs(run=run_id, level="INFO"):
        for text in wanted:
            if text in log["message"]:
                wanted.remove(text)
                yield log if not shown_trace else {**log, "exception": None}
                shown_trace = shown_trace or bool(log["exception"])
                break


def _show(
    output: Output, samples: list[dict[str, Any]], tree: dict[str, Any], found: Survey, seconds: float
) -> None:
    from runlog.cli.lines import LineFormat  # noqa: PLC0415 - as above
    from runlog.cli.times import parse_zone  # noqa: PLC0415 - as above

    line_format = LineFormat(zone=parse_zone("local"), style=output.style)
    output.lines(["", output.style("A few of its lines, read back from the server", bold=True), ""])
    output.lines(line_format(log) for log in samples)
    output.lines(["", output.style("The run, with its tasks and sub-flows", bold=True), ""])
    output.table(TREE, list(_tree_rows(tree, 0)))
    total = found.total
    work = f"{total.files:,} files in {show_duration(seconds)}: {total.lines:,} lines of source"
    contents = f"{total.classes:,} classes, {total.functions:,} functions"
    output.lines(["", f"Surveyed {work}, {contents}; {total.unparsable} files do not parse."])


def _tree_rows(run: dict[str, Any], depth: int) -> Iterator[list[str | Cell]]:
    """Yield the rows of a run and of those below it, the oldest first."""
    is_flow = run["kind"] == "flow"
    name = f"{run['flow_name']} ({run['name']})" if is_flow else run["task_name"]
    counts = run["counts"]
    numbers = [counts["DEBUG"], counts["INFO"], counts["WARNING"], counts["ERROR"] + counts["CRITICAL"]]
    yield [
        f"{'  ' * depth}{'flow ' if is_flow else ''}{name}",
        Cell(run["state"], STATE_COLORS.get(run["state"])),
        show_duration(run["duration_s"]),
        str(run["lines"]),
        *(
            Cell(str(number), color if number else None)
            for number, color in zip(numbers, _NUMBER_COLORS, strict=True)
        ),
    ]
    for child in sorted(run["children"], key=lambda child: child["started"] or ""):
        yield from _tree_rows(child, depth + 1)


_NUMBER_COLORS = (None, None, "yellow", "red")


def _show_tally(output: Output, counts: Tally) -> None:
    good, bad = {"fg": "green"}, {"fg": "red", "bold": True}
    verdict = [
        output.style(f"{number:,} {word}", **(good if number == 0 else bad))
        for number, word in ((counts.lost, "lost"), (counts.doubled, "doubled"))
    ]
    output.lines([f"Lines: {counts.sent:,} sent, {counts.stored:,} stored, {', '.join(verdict)}."])
    if not counts.is_exact:
        from runlog.delivery import statistics  # noqa: PLC0415 - for this trouble only

        for worker in statistics():
            note(f"what this process delivered: {worker}")


def _show_next(output: Output, database: Path) -> None:
    program = program_name()
    # Without it, a reader who has PREFECT_API_URL set would ask that other server.
    where = " --url http://127.0.0.1:4210/api" if os.environ.get("PREFECT_API_URL") else ""
    output.lines(
        [
            "",
            output.style("Look around", bold=True),
            "",
            f"  {program} server start --database {shlex.quote(str(database))}",
            "",
            "and, in another terminal:",
            "",
            f"  {program} runs --kind all{where}",
            f"  {program} logs latest --level WARNING{where}",
            f"  {program} logs latest --task 'survey json' --tail 20 -v{where}",
            f"  {program} logs latest --search decoder -o jsonl{where}",
        ]
    )


def program_name() -> str:
    """Return how the user can call this program again, from where he called it now."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m runlog"
    found = shutil.which("runlog")
    if found and Path(found).resolve() == Path(called).resolve():
        return "runlog"
    return shlex.quote(called)


def _new_directory() -> Path:
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    return get_current_settings().home / "demo" / f"{datetime.now():%Y-%m-%dT%H%M%S}"  # noqa: DTZ005 - for people here
