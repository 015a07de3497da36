"""
``runlog doctor``: why lines do not arrive.

`examine` looks at everything between a log call and the server's answer, in the
order in which a line passes it, and tells each thing that it finds in one line,
with what to do if something is wrong. It sends nothing and changes nothing.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from runlog.cli.config import DEFAULT_ORIGIN, facts
from runlog.cli.options import color_option, output_option
from runlog.cli.output import Output
from runlog.cli.times import show_duration
from runlog.client.addresses import without_password

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from runlog.cli.output import ColorChoice
    from runlog.settings import Settings

Verdict = Literal["ok", "note", "wrong"]

COLORS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "red"}

SERVER_TIMEOUT = 5.0
"""Seconds that the server has to answer: one that takes longer is not well."""

RUN_LOGGERS = ("runlog.flow_runs", "runlog.task_runs")
"""The loggers that run loggers log with."""

COUNTING_SECONDS = 2.0
"""Most seconds to count the lines that wait on disk."""

MAX_CLOCK_SKEW = 2.0
"""Seconds by which the server's clock may differ: it is known to the second only."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    """``note`` is worth knowing and may be meant so; ``wrong`` makes the exit code 1."""
    subject: str
    text: str
    remedy: str | None = None


@click.command()
@output_option
@color_option
@click.pass_context
def doctor(ctx: click.Context, *, output_format: str, color: ColorChoice) -> None:
    """
    Find out why lines do not arrive.

    Looks at the settings and where they come from, the logging configuration and
    overrides of it, disabled loggers, what waits, and the server. Exit code 1 if
    something is wrong.
    """
    from runlog.rendering import visible  # noqa: PLC0415 - not for --help

    output = Output(color)
    failed = False

    def watched() -> Iterator[Finding]:
        nonlocal failed
        for finding in examine():
            failed = failed or finding.verdict == "wrong"
            yield finding

    def line(finding: Finding) -> str:
        verdict = output.style(f"{finding.verdict:<5}", fg=COLORS[finding.verdict])
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        return f"{verdict}  {finding.subject:<9}  {visible(finding.text + remedy)}"

    if output_format == "default":
        output.lines(line(finding) for finding in watched())
    else:
        output.objects((asdict(finding) for finding in watched()), array=output_format == "json")
    if failed:
        ctx.exit(1)


def examine() -> Iterator[Finding]:
    """Look at everything and yield what is found, in the order in which a line passes it."""
    from runlog._version import __version__  # noqa: PLC0415 - beside its only use
    from runlog.exceptions import ConfigurationError  # noqa: PLC0415 - as above
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    yield Finding("ok", "runlog", f"version {__version__}")
    try:
        settings = get_current_settings()
    except ConfigurationError as error:
        # Everything else depends on the settings.
        yield Finding("wrong", "settings", error.problem, error.remedy)
        return
    yield from _settings()
    configured = yield from _configuration(settings)
    if configured:
        yield from _loggers()
    yield from _delivery(settings)
    yield from _spool(settings)
    yield from _server(settings)


def _settings() -> Iterator[Finding]:
    changed = [item for item in facts() if item["origin"] != DEFAULT_ORIGIN]
    if not changed:
        yield Finding("ok", "settings", "all as by default")
    for item in changed:
        yield Finding("ok", "settings", f"{item['name']}={item['value'] or ''}, from: {item['origin']}")


def _configuration(settings: Settings) -> Generator[Finding, None, bool]:
    """Set logging up in this process, as a program does; return whether that went well."""
    from runlog.configuration import describe_overrides, setup_logging  # noqa: PLC0415 - as above

    own = settings.home / "logging.yml"
    file = settings.logging.config_path or (own if own.is_file() else "the file that comes with runlog")
    refused = False
    try:
        for override in describe_overrides():
            refused = refused or override.status in {"ambiguous", "invalid"}
            if override.status == "applied":
                # Not its value: it may be a key for a handler.
                yield Finding("ok", "logging", f"{override.name} sets {', '.join(override.targets)}")
            else:
                yield Finding("wrong", "logging", override.problem or override.name, override.remedy)
        if refused:
            return False
        with warnings.catch_warnings(
            action="ignore"
        ):  # of overrides that match nothing: that was said just now
            setup_logging()
    except Exception as error:  # whatever a class that the file names raises
        problem = str(getattr(error, "problem", error)) or type(error).__name__
        remedy = getattr(error, "remedy", None) or "mend it, or let PREFECT_LOGGING_CONFIG_PATH name another"
        yield Finding("wrong", "logging", f"{getattr(error, 'file', None) or file}: {problem}", remedy)
        return False
    yield Finding("ok", "logging", f"set up from {file}")
    return True


def _loggers() -> Iterator[Finding]:
    """Where the lines of runs go, and which loggers let none pass."""
    if logging.root.manager.disable >= logging.INFO:
        name = logging.getLevelName(logging.root.manager.disable)
        yield Finding(
            "wrong", "loggers", f"logging.disable({name}) is in force", "call logging.disable(logging.NOTSET)"
        )
    for name in RUN_LOGGERS:
        logger = logging.getLogger(name)
        handlers = list(_handlers_of(logger))
        places = ", ".join(handler.get_name() or type(handler).__name__ for handler in handlers)
        level = logging.getLevelName(logger.getEffectiveLevel())
        yield Finding("ok", "loggers", f"{name}: {level} and above to {places or 'nowhere'}")
        if not any(getattr(handler, "accepts_run_events", False) for handler in handlers):
            yield Finding(
                "wrong",
                "loggers",
                f"{name} has no handler that sends to the log server",
                "give it one of class runlog.handlers.APILogHandler in the logging configuration",
            )
    ours = [
        name for name in logging.root.manager.loggerDict if name == "runlog" or name.startswith("runlog.")
    ]
    for name in sorted(ours):
        if logging.getLogger(name).disabled:
            yield Finding(
                "wrong",
                "loggers",
                f"{name} is disabled: its lines go nowhere",
                "set disable_existing_loggers to false in the configuration that was loaded last",
            )


def _handlers_of(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Yield the handlers that a record of *logger* comes to."""
    current: logging.Logger | None = logger
    while current is not None:
        yield from current.handlers
        current = current.parent if current.propagate else None


def _delivery(settings: Settings) -> Iterator[Finding]:
    """Whether lines are sent at all, and what waits."""
    from runlog.delivery import statistics  # noqa: PLC0415 - as above

    if not settings.logging.to_api.enabled:
        yield Finding(
            "note",
            "queue",
            "lines are not sent to the server",
            "set PREFECT_LOGGING_TO_API_ENABLED=true to send them",
        )
    limits = settings.delivery
    in_memory = settings.durability == "memory"
    size = f"{(limits.max_queue_bytes if in_memory else limits.max_spool_bytes) / 2**20:,.0f} MiB"
    where = "in memory" if in_memory else "on disk"
    queues = statistics()
    if not queues:
        yield Finding(
            "ok",
            "queue",
            f"nothing waits in this process; a program holds up to {size} {where}, then: {limits.when_full}",
        )
    for queue in queues:
        lost = sum(queue["dropped"].values())
        counts = f"{queue['accepted']} lines taken in, {queue['queued']} wait, {lost} dropped"
        text = f"{queue['target'] or 'no server'}: {counts}"
        error = queue["last_error"]
        yield Finding(
            "wrong" if lost or error else "ok", "queue", f"{text}, last error: {error}" if error else text
        )


def _spool(settings: Settings) -> Iterator[Finding]:
    """What programs, living and dead ones, have on disk for each server."""
    from runlog.delivery.spool import DEAD_LETTERS, directory_bytes  # noqa: PLC0415 - as above

    spool = settings.home / "spool"
    targets = sorted(path for path in spool.iterdir() if path.is_dir()) if spool.is_dir() else []
    waiting = [(target, directory_bytes(target)) for target in targets]
    if not any(size for _, size in waiting):
        yield Finding("ok", "spool", f"nothing waits in {spool}")
    for target, size in waiting:
        if size:
            yield Finding(
                "note", "spool", f"{size:,} bytes of lines in {target}, of running programs included"
            )
        if (target / DEAD_LETTERS).exists():
            yield Finding(
                "note",
                "spool",
                f"the server refused lines: {target / DEAD_LETTERS}",
                "look at what was refused",
            )


def _server(settings: Settings) -> Iterator[Finding]:
    """Which server is asked, whether it answers, and what it is."""
    from runlog._version import __version__  # noqa: PLC0415 - as above
    from runlog.client import LogReader  # noqa: PLC0415 - as above
    from runlog.discovery import RUNTIME_FILE, find_local_server  # noqa: PLC0415 - as above
    from runlog.exceptions import APIError  # noqa: PLC0415 - as above

    local, file = find_local_server(settings.home), settings.home / RUNTIME_FILE
    if local is not None:
        yield Finding("ok", "server", f"one runs on this machine: {local.url}, pid {local.pid}, by {file}")
    elif file.exists():
        yield Finding("note", "server", f"{file} is left from a server that was killed; it is ignored")
    if local is not None and settings.api.url and settings.api.url.rstrip("/") != local.url.rstrip("/"):
        yield Finding("note", "server", "lines do not go to it, as PREFECT_API_URL names another")
    try:
        with LogReader.from_settings(timeout=SERVER_TIMEOUT) as reader:
            health = reader.health()
            status = reader.status()
    except APIError as error:
        if local is None and settings.api.url is None and settings.durability != "memory":
            yield _without_server(settings)
            return
        problem, _, remedy = str(error).partition("; ")
        yield Finding("wrong", "server", problem, remedy or None)
        return
    answer = f"{without_password(reader.api_url)} answers in {show_duration(health.round_trip_s)}"
    store = f"{status.get('runs')} runs, {status.get('lines')} lines, {status.get('database')}"
    yield Finding("ok", "server", f"{answer}: runlog {health.version}, {store}")
    if health.version != __version__:
        yield Finding(
            "note", "server", f"it has runlog {health.version}, this is {__version__}", "update the older"
        )
    if health.clock_skew_s is not None and abs(health.clock_skew_s) > MAX_CLOCK_SKEW:
        ahead = "ahead of" if health.clock_skew_s > 0 else "behind"
        yield Finding(
            "wrong",
            "clock",
            f"the server's clock is {show_duration(abs(health.clock_skew_s))} {ahead} this machine's",
            "set both by NTP: lines of several machines stand in the order of their clocks",
        )


def _without_server(settings: Settings) -> Finding:
    """Tell what becomes of lines where no server was set up: they wait for a command that reads."""
    from runlog.delivery.sending import count_waiting  # noqa: PLC0415 - as above
    from runlog.delivery.spool import spool_directory  # noqa: PLC0415 - as above

    directory = spool_directory(settings.home, None)
    count, oldest_ns, is_all = count_waiting(directory, timeout=COUNTING_SECONDS)
    waiting = f"{'' if is_all else 'more than '}{count:,} line{'' if count == 1 else 's'} in {directory}"
    if oldest_ns is not None:
        waiting += f", the oldest of {show_duration(max(0.0, time.time() - oldest_ns / 1e9))} ago"
    return Finding(
        "note",
        "server",
        "none runs on this machine, and PREFECT_API_URL is not set: lines wait on disk until they are read; "
        f"now {waiting if count else 'there are none'}",
        "read them with: runlog logs latest; or start a server with: runlog server start",
    )
