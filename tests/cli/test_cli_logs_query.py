"""Tests of ``runlog logs --query``."""

from __future__ import annotations

import pytest


@pytest.fixture
def ask(run_cli, real_server):
    """Ask the real server for lines of the newest flow run."""

    def ask(expression, *arguments):
        return run_cli(
            "logs", "friday", "--url", real_server, "--timezone", "utc", "-q", expression, *arguments
        )

    return ask


def test_an_expression_chooses_lines(ask):
    """The server understands the expression, beside the other options."""
    result = ask("table=orders rows>=42")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "2026-11-21 11:00:12.000 | INFO     | extract-orders - loaded 42 rows  table=orders rows=42"
    ]
    assert ask("table=orders", "--level", "error").stdout == ""
    assert "no lines match" in ask("-task:extract -friday nothing-of-this").stderr


@pytest.mark.parametrize("zone", ["utc", "Europe/Paris"])
def test_times_in_an_expression_are_in_the_zone_that_is_shown(run_cli, real_server, zone):
    """A time without a zone means what the screen shows."""
    clock = {"utc": "11:00:12", "Europe/Paris": "12:00:12"}[zone]
    result = run_cli(
        *("logs", "friday", "--url", real_server, "--timezone", zone),
        *("--query", f"since:2026-11-21T{clock} until:2026-11-21T{clock}"),
    )
    assert [text.split(".")[0] for text in result.stdout.splitlines()] == [f"2026-11-21 {clock}"]


def test_a_wrong_expression_is_pointed_at(ask):
    """The fault is under the expression, the reason below it, and the exit code is that of a wrong option."""
    result = ask("表 level>=wurst")
    assert result.exit_code == 2
    expression, caret, reason = result.stderr.splitlines()
    assert expression == "  表 level>=wurst"
    assert caret == "  " + " " * len("表_ level>=") + "^", "the first character takes two columns"
    assert reason.startswith("runlog: expected a number or one of CRITICAL,")
    assert result.stdout == ""


def test_what_was_typed_cannot_act_on_the_terminal(ask):
    """Escapes in a wrong expression are shown and not sent."""
    result = ask("\x1b[31m x=")
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
    assert result.stderr.splitlines()[1].index("^") == result.stderr.splitlines()[0].index("x=") + 2
