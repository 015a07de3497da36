"""Tests of ``runlog logs``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from runlog._http import Response

RUN = "aaaaaaaa-0000-4000-8000-000000000001"


def line(number, **changes):
    return {
        "timestamp": f"2026-11-21T11:00:{number:02d}.000000Z",
        "level": 20,
        "level_name": "INFO",
        "name": "runlog.flow_runs",
        "message": f"line {number}",
        "flow_run_name": "friday",
        "attributes": {},
        **changes,
    }


@pytest.fixture
def stored(answers):
    answers.by_path["/runs/latest"] = {"id": RUN}
    answers.by_path["/logs"] = {"logs": [line(n) for n in range(3)], "next": None}
    return answers


def test_lines_are_printed_in_order(run_cli, stored):
    """The run is looked up once, its lines come as they are stored."""
    result = run_cli("logs", "latest", "--timezone", "utc")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"2026-11-21 11:00:0{n}.000 | INFO     | friday - line {n}" for n in range(3)
    ]
    assert result.stderr == ""
    assert stored.asked == [
        ("/runs/latest", {}),
        ("/logs", {"run": RUN, "order": "asc", "limit": "1000"}),
    ]


def test_filters_reach_the_server(run_cli, stored):
    """Each option becomes the parameter of its name; times are sent with their zone."""
    run_cli(
        *(
            "logs",
            "latest",
            "--level",
            "warning",
            "--search",
            "a -b",
            "--task",
            "extract",
            "--logger",
            "etl.*",
        ),
        *(
            "--since",
            "2026-11-21T10:00",
            "--until",
            "2026-11-21",
            "--timezone",
            "Europe/Paris",
            "--head",
            "5",
        ),
    )
    assert stored.asked[-1] == (
        "/logs",
        {
            "run": RUN,
            "level": "WARNING",
            "search": "a -b",
            "task": "extract",
            "logger": "etl.*",
            "since": "2026-11-21T09:00:00+00:00",
            "until": "2026-11-20T23:00:00+00:00",
            "order": "asc",
            "limit": "5",
        },
    )


def test_durations_count_from_now(run_cli, stored):
    """--since 10m is ten minutes ago."""
    before = datetime.now(UTC)
    run_cli("logs", "latest", "--since", "10m", "--level", "25")
    asked = stored.asked[-1][1]
    moment = datetime.fromisoformat(asked["since"]) + timedelta(minutes=10)
    assert before <= moment <= datetime.now(UTC)
    assert asked["level"] == "25"


def test_the_tail_is_asked_for_backwards(run_cli, stored):
    """The last lines come newest first from the server, and oldest first to the reader."""
    stored.by_path["/logs"]["logs"].reverse()
    result = run_cli("logs", "latest", "--tail", "3")
    assert [text[-1] for text in result.stdout.splitlines()] == ["0", "1", "2"]
    assert stored.asked[-1][1] == {"run": RUN, "order": "desc", "limit": "3"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tail", "1", "--head", "1"], "--tail and --head"),
        (["--since", "soon"], "Invalid value for --since: 'soon' is no time: expected a time such as 10m"),
        (["--until", "25:00"], "Invalid value for --until"),
        (["--level", "loud"], "'loud' is no level: expected DEBUG, INFO"),
        (["--timezone", "Mars"], "'Mars' is no time zone: expected local, utc"),
        (["--tail", "-1"], "--tail"),
        (["-o", "xml"], "xml"),
    ],
)
def test_wrong_options_are_explained(run_cli, stored, arguments, message):
    """The message names the option and what is expected, and nothing is asked."""
    result = run_cli("logs", "latest", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert stored.asked == []


def test_an_unknown_run_is_3(run_cli, answers):
    """So that a script can tell it from an error."""
    answers.by_path["/runs/nope"] = Response(404, json={"detail": "no run 'nope'"})
    result = run_cli("logs", "nope")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "runlog: no run 'nope'\n")


def test_an_ambiguous_run_lists_the_candidates(run_cli, answers):
    """What was typed, and what it may mean."""
    candidates = [{"id": f"aaaa{n}", "name": "etl", "started": "2026-11-21T11:00:00Z"} for n in range(2)]
    answers.by_path["/runs/aaaa"] = Response(409, json={"detail": "several", "candidates": candidates})
    result = run_cli("logs", "aaaa")
    assert result.exit_code == 1
    assert "aaaa0 (etl, 2026-11-21T11:00:00Z), aaaa1 (etl" in result.stderr


def test_no_lines_is_a_remark(run_cli, stored):
    """Nothing found is no error, and says whether a filter may be why."""
    stored.by_path["/logs"] = {"logs": [], "next": None}
    assert run_cli("logs", "latest").stderr == "runlog: no lines\n"
    result = run_cli("logs", "latest", "--level", "ERROR")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "runlog: no lines match\n")


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_has_the_whole_event(run_cli, stored, form):
    """One object a line, never coloured."""
    text = run_cli("logs", "latest", "-o", form, "--color", "always", color=True).stdout
    assert (json.loads(text) if form == "json" else [json.loads(row) for row in text.splitlines()]) == [
        line(n) for n in range(3)
    ]


def test_no_server_names_the_command_that_starts_one(run_cli):
    """Without setting and server, the remedy is in the message."""
    result = run_cli("logs", "latest")
    assert result.exit_code == 1
    assert "runlog server start" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_real_server_answers(run_cli, real_server):
    """Names, filters and hostile text, from storage to screen."""
    result = run_cli("logs", "friday", "--url", real_server, "--timezone", "utc", "--level", "INFO")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (
        lines[2]
        == "2026-11-21 11:00:12.000 | INFO     | extract-orders - loaded 42 rows  table=orders rows=42"
    )
    assert "\x1b" not in result.stdout
    assert lines[4].startswith("    2026-11-21 | CRITICAL"), "a forged line does not begin at the edge"
    assert "    KeyError: 'amount'" in lines
    assert run_cli("logs", "latest", "--url", real_server).stdout.count(" | ") == result.stdout.count(" | ")
    assert run_cli("logs", "latest~1", "--url", real_server).stdout.count("\n") == 1
    assert run_cli("logs", "aaaaa", "--url", real_server, "--task", "extract", "--tail", "1").stdout.count(
        "KeyError"
    )
    assert run_cli("logs", "aaaa", "--url", real_server).exit_code == 1, "two runs begin so"
    assert run_cli("logs", "saturday", "--url", real_server).exit_code == 3
    assert run_cli("logs", "latest", "--url", real_server, "--search", "x" * 300).exit_code in {0, 2}


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
@pytest.mark.parametrize("form", ["default", "json", "jsonl"])
def test_a_reader_that_stops_reading_is_no_error(real_server, form):
    """A pipe whose other end is closed ends the command silently, as SIGPIPE would."""
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "runlog", "logs", "friday", "--url", real_server, "-o", form],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_poor_encoding_loses_nothing(real_server, tmp_path):
    """What the encoding of stdout lacks is written as an escape; JSON is UTF-8 all the same."""
    from runlog._http import Client

    event = {
        "timestamp_ns": 1_795_258_900_000_000_000,
        "level": 20,
        "name": "x",
        "message": "café 日本",
        "flow_run_id": "cccccccc-0000-4000-8000-000000000009",
        "flow_run_name": "unicode",
    }
    with Client() as client:
        body = {"producer": "f" * 20, "first_seq": 0, "events": [event]}
        assert client.post(f"{real_server}/runlog/v1/batches", json=body).status_code == 200

    def printed(form):
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        command = [sys.executable, "-m", "runlog", "logs", "unicode", "--url", real_server, "-o", form]
        return subprocess.run(command, capture_output=True, check=True, env=environment, timeout=60).stdout

    assert b"caf\xe9 \\u65e5\\u672c" in printed("default")
    assert json.loads(printed("jsonl").decode("utf-8"))["message"] == "café 日本"
