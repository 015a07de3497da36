"""Tests of `runlog.cli.output`: colour, tables, JSON."""

from __future__ import annotations

import json
import sys

import click
import pytest
from click.testing import CliRunner

from runlog.cli.output import Cell, Column, Output, note, wants_color


def printed(function, *, color=False):
    """Run *function* as a command and return the result."""
    return CliRunner().invoke(click.command()(function), color=color)


class Terminal:
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("choice", "environment", "terminal", "expected"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
    ],
)
def test_who_decides_about_colour(choice, environment, terminal, expected, monkeypatch):
    """The option, then NO_COLOR, then FORCE_COLOR, then the terminal."""
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if terminal:
        monkeypatch.setattr(sys, "stdout", Terminal())
    assert wants_color(choice) is expected


def test_any_stdout_will_do(monkeypatch):
    """A replacement without an encoding to set is taken as it is."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert Output().colored


def test_styles_are_applied_only_in_colour():
    """Without colour, a style leaves the text alone."""
    assert Output("never").style("x", fg="red") == "x"
    assert Output("always").style("x", fg="red") == "\x1b[31mx\x1b[0m"


def test_lines_are_counted_and_written_in_order():
    """All of many lines are written, and how many they were comes back."""
    counts = []
    result = printed(lambda: counts.append(Output().lines(f"line {n}" for n in range(1001))))
    assert result.stdout.splitlines() == [f"line {n}" for n in range(1001)]
    assert counts == [1001]


def test_json_lines():
    """One object a line, in UTF-8, with what a terminal may act on escaped and the value unchanged."""
    items = [{"text": "é\x1b[31m\x7f\x9b31m\u202e\u2028"}, {"n": 1}]
    result = printed(lambda: Output("always").objects(iter(items), array=False), color=True)
    lines = result.stdout_bytes.decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == items
    assert lines[0] == '{"text":"é\\u001b[31m\\u007f\\u009b31m\\u202e\\u2028"}'


@pytest.mark.parametrize("items", [[], [{"a": 1}], [{"a": n} for n in range(500)]])
def test_a_json_array(items):
    """The whole is one array, with one object a line."""
    result = printed(lambda: Output().objects(iter(items), array=True))
    assert json.loads(result.stdout) == items
    assert result.stdout.count("\n") == (len(items) + 2 if items else 1)


def test_a_table_is_aligned_and_not_cut():
    """Columns are as wide as their widest cell, wide characters included; long rows stay on one line."""
    columns = (Column("NAME"), Column("N", right=True), Column("END"))
    rows = [["日本", "1", "x" * 300], ["a", "1000", Cell("red", "red")]]
    result = printed(lambda: Output("never").table(columns, rows))
    assert result.stdout.splitlines() == [
        "NAME     N  END",
        "日本     1  " + "x" * 300,
        "a     1000  red",
    ]
    coloured = printed(lambda: Output("always").table(columns, rows), color=True)
    assert "a     1000  \x1b[31mred\x1b[0m" in coloured.stdout


def test_a_table_of_nothing_has_its_titles():
    """No rows is no error."""
    assert printed(lambda: Output().table((Column("A"), Column("B")), [])).stdout == "A  B\n"


def test_notes_go_to_stderr():
    """Data and remarks do not mix."""
    result = printed(lambda: note("no runs"))
    assert (result.stdout, result.stderr) == ("", "runlog: no runs\n")
