"""Tests of ``runlog runs``."""

from __future__ import annotations

import json

import pytest

from runlog.cli.runs import id_length

RUN = {
    "id": "aaaaaaaa-0000-4000-8000-000000000001",
    "kind": "flow",
    "name": "friday",
    "flow_name": "nightly-etl",
    "task_name": None,
    "state": "FAILED",
    "started": "2026-11-21T11:00:10.000000Z",
    "duration_s": 5.0,
    "lines": 6,
    "counts": {"DEBUG": 0, "INFO": 3, "WARNING": 1, "ERROR": 2, "CRITICAL": 1},
}
TASK = {
    **RUN,
    "kind": "task",
    "name": "extract-orders",
    "task_name": "extract",
    "state": "RUNNING",
    "counts": {},
}


def page(*runs):
    return {"runs": list(runs), "next": None}


def test_runs_are_listed_as_a_table(run_cli, answers):
    """One row a run: short id, state, names, start, duration and counts."""
    odd = {**TASK, "started": None, "duration_s": None, "name": "odd\x1b[31m\nname"}
    answers.by_path["/runs"] = page(RUN, odd)
    result = run_cli("runs", "--kind", "all", "--timezone", "utc")
    assert result.exit_code == 0
    titles, first, second = result.stdout.splitlines()
    assert " ".join(titles.split()) == "ID STATE RUN FLOW OR TASK STARTED DURATION LINES WARNINGS ERRORS"
    assert " ".join(first.split()) == "aaaaaaaa FAILED friday nightly-etl 2026-11-21 11:00:10.000 5.0 s 6 1 3"
    assert second.split()[:2] == ["aaaaaaaa", "RUNNING"]
    assert second.split()[-6:] == ["extract", "-", "-", "6", "0", "0"]
    assert "\x1b" not in second


def test_filters_reach_the_server(run_cli, answers):
    """State, name, kind and limit are the server's business; flow runs are what is listed by default."""
    answers.by_path["/runs"] = page()
    run_cli("runs")
    run_cli("runs", "--state", "failed", "--name", "fri", "--kind", "all", "-n", "7")
    assert answers.asked == [
        ("/runs", {"kind": "flow", "limit": "20"}),
        ("/runs", {"state": "FAILED", "name": "fri", "limit": "7"}),
    ]


def test_no_runs_is_a_remark(run_cli, answers):
    """Nothing to list leaves stdout empty and is no error."""
    answers.by_path["/runs"] = page()
    result = run_cli("runs")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "runlog: no runs\n")


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_has_what_the_server_said(run_cli, answers, form):
    """Nothing is left out or made up, and nothing is coloured."""
    answers.by_path["/runs"] = page(RUN, TASK)
    result = run_cli("runs", "-o", form, "--color", "always", color=True)
    text = result.stdout
    assert (json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]) == [
        RUN,
        TASK,
    ]
    assert "\x1b" not in text


def test_states_are_coloured(run_cli, answers):
    """Failures stand out, if colours are wanted."""
    answers.by_path["/runs"] = page(RUN)
    assert "\x1b[31mFAILED\x1b[0m" in run_cli("runs", "--color", "always", color=True).stdout
    assert "\x1b" not in run_cli("runs", "--color", "never", color=True).stdout


def test_a_real_server_lists_its_runs(run_cli, real_server):
    """The newest first, with what its lines say of it."""
    result = run_cli("runs", "--url", real_server, "--timezone", "utc")
    first, second = (" ".join(line.split()) for line in result.stdout.splitlines()[1:])
    assert first.startswith("aaaaaaaa FAILED friday nightly-etl 2026-11-21 11:00:10.000 5.0 s ")
    assert second.startswith("aaaabbbb RUNNING thursday nightly-etl ")


@pytest.mark.parametrize(
    ("ids", "length"),
    [
        ([], 8),
        (["01a1feb5-aaaa", "3f9a2c11-bbbb"], 8),
        (["01a1feb5-aaaa", "01a1feb5-aabb"], 12),
        (["short", "short"], 8),
    ],
)
def test_ids_are_shown_as_far_as_they_differ(ids, length):
    """Ids that were made at about the same time begin alike."""
    assert id_length(ids) == length
