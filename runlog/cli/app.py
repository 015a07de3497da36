"""
The root command: which commands there are, and how each of them ends.

A command's module is imported when the command is run, so that ``runlog
--help`` costs click and nothing else. Whatever a command raises becomes one
line on stderr and an exit code here, and nowhere else.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from runlog._version import __version__
from runlog.exceptions import QueryError, RunlogError, RunNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_INTERRUPTED = 130
"""128 + SIGINT, which a shell takes for the user's Ctrl-C."""
EXIT_PIPE_CLOSED = 141
"""128 + SIGPIPE, which a shell shows for ``runlog logs ... | head`` under ``pipefail``."""


class LazyCommand(NamedTuple):
    """A command that is not imported yet."""

    target: str
    """``module:attribute`` of the click command."""
    help: str
    """What ``--help`` of the group says, without importing the command."""


COMMANDS = {
    "config": LazyCommand("runlog.cli.config:config", "Show the settings and where they come from."),
    "demo": LazyCommand("runlog.cli.demo:demo", "Run a real job on this machine and read its lines back."),
    "doctor": LazyCommand("runlog.cli.doctor:doctor", "Find out why lines do not arrive."),
    "logs": LazyCommand("runlog.cli.logs:logs", "Print the lines of a run."),
    "receipt": LazyCommand("runlog.cli.receipt:receipt", "Tell whether all lines of a run are stored."),
    "runs": LazyCommand("runlog.cli.runs:runs", "List runs, newest first."),
    "server": LazyCommand("runlog.cli.server:server", "Start the log server, and look after what it keeps."),
    "spool": LazyCommand("runlog.cli.spool:spool", "See, send or delete lines that wait on this machine."),
}
"""Every command, by name."""


class LazyGroup(click.Group):
    """
    A group whose commands are imported when they are run.

    Args:
        lazy_commands: The commands, by name.
    """

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy_commands)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names, sorted."""
        return sorted(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return None
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with; name the nearest if there is none."""
        near = difflib.get_close_matches(args[0], self._lazy, n=1)
        if args[0] not in self._lazy and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from what is known without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what it raises into a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own ways to end
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                forget_stdout()
                raise click.exceptions.Exit(EXIT_PIPE_CLOSED) from None
            if ctx.params.get("debug"):
                raise
            click.echo(f"runlog: {explain(error)}", err=True)
            raise click.exceptions.Exit(exit_code_of(error)) from None


def explain(error: Exception) -> str:
    """Return one line that says what went wrong; what a server wrote into it cannot act on a terminal."""
    from runlog.rendering import visible  # noqa: PLC0415 - only when something went wrong

    if isinstance(error, RunlogError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    else:
        text = f"unexpected {type(error).__name__}: {error}; run again with: runlog --debug ..."
    return visible(text)


def exit_code_of(error: Exception) -> int:
    """Return the exit code that an exception ends a command with."""
    if isinstance(error, RunNotFoundError):
        return EXIT_NOT_FOUND
    if isinstance(error, QueryError):
        return EXIT_USAGE
    return EXIT_ERROR


def forget_stdout() -> None:
    """Point stdout at nothing: Python flushes it once more at exit, and would complain there."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # not a file, as in a test
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@click.group(
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: runlog demo",
)
@click.version_option(__version__, "-V", "--version", message="runlog %(version)s")
@click.option("--debug", is_flag=True, envvar="RUNLOG_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """
    Log lines of workflow runs: keep them, find them, read them.

    A command takes its settings from the environment, runlog.toml and the
    active profile; "runlog config view --origin" shows which come from where.
    """
