"""``runlog server``: run the log server in the foreground, and what else concerns its store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runlog.cli.output import note
from runlog.cli.server_keys import keys
from runlog.cli.server_store import backup, prune, vacuum
from runlog.client.addresses import without_password

if TYPE_CHECKING:
    from types import ModuleType


@click.group()
def server() -> None:
    """Start the log server, and look after what it keeps."""


for command in (keys, prune, vacuum, backup):
    server.add_command(command)


@server.command()
@click.option(
    "--host", metavar="ADDRESS", help="Address to listen on.  [default: $RUNLOG_SERVER_HOST, 127.0.0.1]"
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.  [default: $RUNLOG_SERVER_PORT, 4210]",
)
@click.option(
    "--database",
    metavar="FILE",
    help="SQLite file to keep the lines in.  [default: $RUNLOG_SERVER_DATABASE, $RUNLOG_HOME/runlog.db]",
)
@click.option("--ssl-certfile", metavar="FILE", help="Serve HTTPS with this certificate, in PEM form.")
@click.option("--ssl-keyfile", metavar="FILE", help="The certificate's key.")
@click.option(
    "--ssl-keyfile-password",
    envvar="RUNLOG_SERVER_SSL_KEYFILE_PASSWORD",
    help="The key's password; better in $RUNLOG_SERVER_SSL_KEYFILE_PASSWORD, where no other user sees it.",
)
@click.option("--reload", is_flag=True, help="Start anew when a source file changes, for work on the server.")
def start(
    *,
    host: str | None,
    port: int | None,
    database: str | None,
    ssl_certfile: str | None,
    ssl_keyfile: str | None,
    ssl_keyfile_password: str | None,
    reload: bool,
) -> None:
    """
    Start the log server and run it until Ctrl-C.

    Programs and commands of this machine with the same RUNLOG_HOME find it by
    themselves; others need PREFECT_API_URL. What programs left in the spool while
    no server ran is taken in.
    """
    if (ssl_certfile is None) != (ssl_keyfile is None):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile belong together")
    app = import_server("runlog server start")
    from runlog.cli.local import SpoolIntake  # noqa: PLC0415 - only for a server that runs
    from runlog.configuration import setup_logging  # noqa: PLC0415 - only for a server that runs
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    settings = get_current_settings()
    setup_logging()  # so that what the server itself has to say is seen
    database = database or settings.server.database or str(settings.home / "runlog.db")
    intake = SpoolIntake(settings)
    tls = None
    if ssl_certfile is not None:
        tls = app.TLS(ssl_certfile, ssl_keyfile, ssl_keyfile_password)

    def ready(url: str) -> None:
        note(f"log server at {url}, database {without_password(database)}; Ctrl-C stops it")
        intake.start()

    try:
        app.run_server(
            host or settings.server.host,
            settings.server.port if port is None else port,
            database,
            settings.home,
            reload=reload,
            on_ready=ready,
            tls=tls,
        )
    finally:
        intake.stop()


def import_server(feature: str) -> ModuleType:
    """
    Return the server's module.

    Args:
        feature: What needs it, for the message.

    Raises:
        MissingDependencyError: If the packages of the extra ``server`` are not installed.
    """
    try:
        import starlette  # noqa: F401, PLC0415 - whether it is there is the question
        import uvicorn  # noqa: F401, PLC0415 - the same
    except ImportError as error:
        from runlog.exceptions import MissingDependencyError  # noqa: PLC0415 - for this trouble only

        raise MissingDependencyError(feature, error.name or "starlette", "server") from error
    from runlog.server import app  # noqa: PLC0415 - 100 ms

    return app
