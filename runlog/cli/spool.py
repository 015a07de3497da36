"""``runlog spool``: the lines that wait on this machine for their server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from runlog.cli.lines import LineFormat
from runlog.cli.options import color_option, output_option, timezone_option
from runlog.cli.output import Column, Output, note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo
    from pathlib import Path

    from runlog.cli.output import ColorChoice
    from runlog.delivery.sending import Sent
    from runlog.settings import Settings

EXIT_REMAINS = 1

COLUMNS = (
    Column("TARGET"),
    Column("ADDRESS"),
    Column("PRODUCERS", right=True),
    Column("SEGMENTS", right=True),
    Column("BYTES", right=True),
    Column("IN USE", right=True),
    Column("DEAD LETTERS", right=True),
)

target_option = click.option(
    "--target", metavar="NAME", help='Only this target, as "runlog spool status" names it.'
)


@click.group()
def spool() -> None:
    """See, send or delete lines that wait on this machine."""


@spool.command()
@output_option
@color_option
def status(*, output_format: str, color: ColorChoice) -> None:
    """
    Tell what waits, for each target.

    IN USE are segments of a process that lives, and sends them itself.
    """
    from runlog.delivery.sending import dead_letters, segments  # noqa: PLC0415 - not for --help

    settings, output, found = _settings(), Output(color), []
    for directory in _directories(settings, None):
        files = segments(directory)
        found.append(
            {
                "target": directory.name,
                "api_url": _address(directory, settings),
                "producers": len({file.name.producer for file in files}),
                "segments": len(files),
                "bytes": sum(file.size_bytes for file in files),
                "owned_segments": sum(file.is_owned for file in files),
                "dead_letters": sum(1 for _ in dead_letters(directory)),
            }
        )
    if output_format != "default":
        output.objects(found, array=output_format == "json")
    elif found:
        output.table(
            COLUMNS,
            [
                [str(value or "-" if key == "api_url" else value) for key, value in row.items()]
                for row in found
            ],
        )
    else:
        note("no line was ever spooled here")


@spool.command()
@target_option
@click.option(
    "--url", metavar="URL", help="API of a server that gets all of it. [default: each target's own]"
)
@click.pass_context
def send(ctx: click.Context, *, target: str | None, url: str | None) -> None:
    """
    Send what programs that have ended left behind.

    Each target's lines go to its own server; with --url all of them go there.
    What a program that runs has spooled is sent by itself. The exit code is 1 if
    something remains.
    """
    from runlog.cli.local import local_headers  # noqa: PLC0415 - loads the HTTP client, 100 ms
    from runlog.delivery.spool import without_credentials  # noqa: PLC0415 - not for --help
    from runlog.delivery.transport import HTTPTransport  # noqa: PLC0415 - the same

    settings = _settings()
    remains = False
    for directory in _directories(settings, target):
        if not any(not file.is_owned for file in _segments(directory)):
            continue
        is_local = directory.name == "local"
        address = url or _address(directory, settings)
        if address is None and not is_local:
            note(f"{directory.name}: nothing tells its address; name it with --url")
            remains = True
            continue
        # A key is for the server that the settings or the user name, and for no other that was used once.
        known = url or settings.api.url
        is_ours = is_local or (
            known is not None
            and address is not None
            and without_credentials(known) == without_credentials(address)
        )
        transport = HTTPTransport(
            address, home=settings.home, headers=local_headers(settings) if is_ours else None
        )
        if transport.target is None:
            note("local: no log server runs on this machine; start one with: runlog server start")
            remains = True
            continue
        try:
            sent = _send(directory, transport)
        finally:
            transport.close()
        note(_summary(directory.name, transport.target or str(address), sent))
        remains = remains or not sent.is_done
    if remains:
        ctx.exit(EXIT_REMAINS)


def _send(directory: Path, transport: Any) -> Sent:
    from runlog.delivery.sending import send_spool  # noqa: PLC0415 - not for --help

    length = sum(file.size_bytes for file in _segments(directory) if not file.is_owned)
    with click.progressbar(
        length=length, label=directory.name, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        return send_spool(directory, transport, progress=bar.update)


def _summary(name: str, address: str, sent: Sent) -> str:
    text = f"{name}: {sent.lines} lines sent to {address}"
    if sent.refused:
        text += f", {sent.refused} refused; see them with: runlog spool inspect"
    return text if sent.is_done else f"{text}; the rest waits: {sent.detail}"


@spool.command()
@target_option
@output_option
@timezone_option
@color_option
def inspect(*, target: str | None, output_format: str, zone: tzinfo, color: ColorChoice) -> None:
    """
    Print the lines that wait, and those that a server refused.

    Changes nothing. Lines that the server has already are among them until their
    segment is deleted.
    """
    output = Output(color)
    found = (item for directory in _directories(_settings(), target) for item in _items(directory))
    if output_format != "default":
        count = output.objects(found, array=output_format == "json")
    else:
        line_format = LineFormat(zone=zone, style=output.style)
        count = output.lines(_line(item, line_format) for item in found)
    if count == 0:
        note("nothing waits")


def _items(directory: Path) -> Iterator[dict[str, Any]]:
    import msgspec  # noqa: PLC0415 - not for --help

    from runlog.delivery.sending import dead_letters, waiting  # noqa: PLC0415 - not for --help

    for name, seq, payload in waiting(directory):
        yield {
            "target": directory.name,
            "state": "waiting",
            "producer": name.producer,
            "seq": seq,
            "event": msgspec.json.decode(payload),
        }
    for letter in dead_letters(directory):
        yield {"target": directory.name, "state": "refused", **letter}


def _line(item: dict[str, Any], line_format: LineFormat) -> str:
    from runlog.records import format_timestamp, level_name  # noqa: PLC0415 - not for --help
    from runlog.rendering import visible  # noqa: PLC0415 - the same

    event = item.get("event")
    event = event if isinstance(event, dict) else {}
    number, level = event.get("timestamp_ns"), event.get("level")
    shown = {
        **event,
        "timestamp": format_timestamp(number) if isinstance(number, int) else None,
        "level_name": level_name(level) if isinstance(level, int) else None,
    }
    text = line_format(shown)
    return text if item["state"] == "waiting" else f"refused ({visible(str(item.get('detail')))}): {text}"


@spool.command()
@target_option
@click.option("--dead-letters", is_flag=True, help="Delete the lines that a server refused as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(*, target: str | None, dead_letters: bool, yes: bool) -> None:
    """
    Delete what programs that have ended left behind, unsent.

    What belongs to a program that runs stays.
    """
    from runlog.delivery.sending import purge as delete  # noqa: PLC0415 - not for --help

    directories = _directories(_settings(), target)
    free = sum(not file.is_owned for directory in directories for file in _segments(directory))
    if not yes:
        click.confirm(f"Delete {free} segments of lines that no server has?", abort=True, err=True)
    count = sum(delete(directory, with_dead_letters=dead_letters) for directory in directories)
    note(f"{count} segments deleted")


def _settings() -> Settings:
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    return get_current_settings()


def _segments(directory: Path) -> list[Any]:
    from runlog.delivery.sending import segments  # noqa: PLC0415 - not for --help

    return list(segments(directory))


def _directories(settings: Settings, target: str | None) -> list[Path]:
    root = settings.home / "spool"
    found = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if target is None:
        return found
    chosen = [path for path in found if path.name == target]
    if not chosen:
        names = ", ".join(path.name for path in found) or "none"
        raise click.BadParameter(f"{target!r} is not in the spool, which has: {names}", param_hint="--target")
    return chosen


def _address(directory: Path, settings: Settings) -> str | None:
    from runlog.delivery.spool import remembered_target, spool_directory  # noqa: PLC0415 - not for --help

    if settings.api.url is not None and spool_directory(settings.home, settings.api.url) == directory:
        return settings.api.url
    return remembered_target(directory)
