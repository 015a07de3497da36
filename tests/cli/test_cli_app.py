"""Tests of `runlog.cli.app`: which commands there are, and how they end."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import runlog
from runlog.cli import main
from runlog.cli.app import COMMANDS, LazyCommand, LazyGroup, cli, forget_stdout
from runlog.exceptions import (
    AmbiguousRunError,
    ConfigurationError,
    MissingDependencyError,
    QueryError,
    RunNotFoundError,
    ServerUnreachableError,
)


def group_that(action):
    """A group like the real one, whose one command does *action*."""
    group = LazyGroup(
        name="runlog",
        lazy_commands={"act": LazyCommand("unused:unused", "Act.")},
        params=[click.Option(["--debug"], is_flag=True)],
    )
    group.get_command = lambda ctx, name: click.Command("act", callback=action)
    return group


def outcome(action, *options):
    return CliRunner().invoke(group_that(action), [*options, "act"])


def raising(error):
    def action():
        raise error

    return action


def test_help_lists_every_command():
    """Each command is listed with its summary, sorted by name."""
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", result.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == [(name, command.help) for name, command in sorted(COMMANDS.items())]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_summaries_are_those_of_the_commands(name):
    """What the group says of a command without importing it is what the command says itself."""
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command.help.strip().splitlines()[0] == COMMANDS[name].help
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_version():
    """--version names the program and its version."""
    result = CliRunner().invoke(cli, ["--version"])
    assert result.stdout == f"runlog {runlog.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["logs"], ["runs", "--limit", "0"], ["runs", "x"]]
)
def test_wrong_usage_is_2(arguments):
    """A wrong command, option or value ends with 2 and says so on stderr."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


def test_a_mistyped_command_names_the_nearest():
    """So that the next try succeeds."""
    result = CliRunner().invoke(cli, ["log", "latest"])
    assert result.exit_code == 2
    assert "No such command 'log'. Did you mean 'logs'?" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("level is 'x'", remedy="choose another"), 1),
        (ServerUnreachableError("no answer"), 1),
        (AmbiguousRunError("several"), 1),
        (MissingDependencyError("runlog server", "starlette", "server"), 1),
        (QueryError("level: expected"), 2),
        (RunNotFoundError("no run 'x'"), 3),
    ],
)
def test_an_error_of_runlog_is_one_line(error, code):
    """No traceback, and an exit code that scripts can tell apart."""
    result = outcome(raising(error))
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"runlog: {error}\n")


def test_what_the_server_wrote_cannot_act_on_the_terminal():
    """An escape sequence or line break in an error's text is shown, not obeyed."""
    result = outcome(raising(RunNotFoundError("no run '\x1b[2Jx\nrunlog: all is well'")))
    assert "\x1b" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_of_the_system_name_the_file():
    """A path that cannot be used is one line as well."""
    result = outcome(Path("/nonexistent/x").read_bytes)
    assert (result.exit_code, result.stderr) == (1, "runlog: No such file or directory: /nonexistent/x\n")
    assert outcome(raising(OSError("odd"))).stderr == "runlog: odd\n"


def test_errors_of_ours_are_told_as_such():
    """A bug shows its kind and how to see more."""
    result = outcome(lambda: 1 / 0)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "runlog: unexpected ZeroDivisionError: division by zero; run again with: "
    )


def test_debug_shows_the_traceback():
    """With --debug the exception leaves as it is."""
    assert isinstance(outcome(raising(QueryError("x")), "--debug").exception, QueryError)


def test_clicks_own_endings_are_left_alone():
    """Exit codes, usage errors and aborts of commands work as click says."""
    assert outcome(raising(click.exceptions.Exit(7))).exit_code == 7
    assert outcome(raising(click.UsageError("x"))).exit_code == 2
    assert outcome(raising(click.Abort())).exit_code == 1


def test_an_interrupted_command_is_quiet():
    """Ctrl-C is 130 and nothing else."""
    result = outcome(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


def test_a_closed_pipe_is_quiet():
    """So is a reader that has gone, with 141."""
    result = outcome(raising(BrokenPipeError(32, "Broken pipe")))
    assert (result.exit_code, result.output) == (141, "")


def test_what_waits_in_stdout_is_forgotten(tmp_path, monkeypatch):
    """Python's own flush at exit finds nobody to complain to."""
    file = tmp_path / "stdout"
    with file.open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        stdout.write("waits")
        forget_stdout()
        stdout.flush()
    assert file.read_text() == ""


def test_main_leaves_with_the_exit_code():
    """`main` is the entry point: it always raises SystemExit."""
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0


def test_help_imports_nothing_heavy():
    """--help costs click and runlog's own few modules."""
    code = textwrap.dedent(
        """
        import sys
        from runlog.cli import main
        try:
            main(["--help"])
        finally:
            heavy = {"pydantic", "httpx", "rich", "pendulum", "msgspec", "starlette", "yaml"}
            print(sorted(heavy & set(sys.modules)), file=sys.stderr)
        """
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
