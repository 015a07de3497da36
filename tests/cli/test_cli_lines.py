"""Tests of `runlog.cli.lines`: one event as text."""

from __future__ import annotations

from datetime import UTC

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.cli.lines import LineFormat


def plain(text, **styles):
    return text


def marked(text, **styles):
    """Show styles as markup."""
    return f"<{' '.join(f'{key}={value}' for key, value in styles.items())}>{text}</>"


def log(**changes):
    return {
        "timestamp": "2026-11-21T10:53:37.123456Z",
        "level": 20,
        "level_name": "INFO",
        "name": "runlog.task_runs",
        "message": "loaded 42 rows",
        "flow_run_name": "brave-otter",
        "task_run_name": "extract",
        "attributes": {"code.file.path": "/x/etl.py", "code.line.number": 7, "process.pid": 1},
        "exception": None,
        "attempt": None,
        "truncated_bytes": 0,
        **changes,
    }


def shown(verbose=False, style=plain, **changes):
    return LineFormat(zone=UTC, style=style, verbose=verbose)(log(**changes))


def test_a_line_shows_time_level_run_and_message():
    """What runlog adds to every line itself is not shown."""
    assert shown() == "2026-11-21 10:53:37.123 | INFO     | extract - loaded 42 rows"


def test_the_innermost_run_is_named():
    """A line of a flow shows the flow run, a line of none a dash."""
    assert " | brave-otter - " in shown(task_run_name=None)
    assert " | - - " in shown(task_run_name=None, flow_run_name=None)


def test_verbose_adds_the_logger_and_the_place():
    """The logger comes before the run, the place in the code last."""
    assert shown(verbose=True) == (
        "2026-11-21 10:53:37.123 | INFO     | runlog.task_runs | extract - loaded 42 rows  at=/x/etl.py:7"
    )
    assert shown(verbose=True, attributes={}).endswith("loaded 42 rows")


def test_extras_follow_the_message():
    """Words stand as they are, the rest as JSON, so that where a value ends can be seen."""
    attributes = {
        "table": "orders",
        "n": 42,
        "ok": True,
        "text": "two words",
        "quoted": 'a"b',
        "list": [1, None],
    }
    assert shown(attributes=attributes).endswith(
        'loaded 42 rows  table=orders n=42 ok=true text="two words" quoted="a\\"b" list=[1,null]'
    )


def test_attempts_and_cuts_are_told():
    """A repeated attempt and a cut line say so."""
    assert shown(attempt=2, truncated_bytes=17).endswith("  attempt=2 truncated_bytes=17")
    assert shown(attempt=1).endswith("rows")


def test_further_lines_are_indented():
    """A message of several lines and a traceback stay recognisable as one event."""
    error = {"type": "ValueError", "message": "x", "traceback": "Traceback ...\n  File\nValueError: x\n"}
    text = shown(message="first\nsecond", exception=error, attributes={"a": 1})
    assert text.split("\n") == [
        "2026-11-21 10:53:37.123 | INFO     | extract - first  a=1",
        "    second",
        "    Traceback ...",
        "      File",
        "    ValueError: x",
    ]


@pytest.mark.parametrize(
    ("level", "style"),
    [
        (10, "fg=bright_blue"),
        (20, "fg=cyan"),
        (25, "fg=cyan"),
        (30, "fg=yellow"),
        (40, "fg=red"),
        (60, "fg=bright_red bold=True"),
    ],
)
def test_colours(level, style):
    """A level has its colour, a level between two that of the lower; runs stand out, extras stand back."""
    text = shown(style=marked, level=level, level_name="X", attributes={"a": 1})
    assert f"<{style}>X       </>" in text
    assert "<fg=magenta>extract</>" in text
    assert text.endswith("<dim=True>a=1</>")


def test_odd_answers_are_shown_all_the_same():
    """What is missing or of the wrong kind costs its own place and not the line."""
    text = shown(level=None, level_name=None, timestamp=None, attributes=None, message=None)
    assert text == "- | None     | extract - None"
    assert " | 35       | " in shown(level=35, level_name=None)


@given(st.text())
def test_nothing_from_outside_acts_on_a_terminal(text):
    """No control character of any field survives, and only the first line begins at the edge."""
    result = shown(
        verbose=True,
        message=text,
        name=text,
        level_name=text,
        timestamp=text,
        task_run_name=text,
        attributes={text: text, "other": [text]},
        exception={"traceback": text},
    )
    _, *rest = result.split("\n")
    assert all(line == "" or line.startswith("    ") for line in rest)
    assert all(
        character >= " " and not "\x7f" <= character <= "\x9f"
        for character in result
        if character not in "\t\n"
    )


def test_it_works_with_click_styles():
    """The style function of the output fits."""
    assert "\x1b[36mINFO    \x1b[0m" in shown(style=click.style)
