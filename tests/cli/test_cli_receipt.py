"""Tests of ``runlog receipt``, and of what ``runlog logs`` shows where lines are missing."""

from __future__ import annotations

import json

import pytest

RUN = "aaaaaaaa-0000-4000-8000-000000000001"
PRODUCER = "0123456789abcdef0123"
OTHER = "fedcba9876543210fedc"


def producer(**changes):
    return {"producer": PRODUCER, "goodbye": True, "expected": None, **changes}


def receipt(**changes):
    return {
        "run_id": RUN,
        "complete": True,
        "reasons": [],
        "stored": 9725,
        "truncated": 0,
        "producers": [producer(), producer(goodbye=False, expected=7)],
        **changes,
    }


@pytest.fixture
def told(answers):
    answers.by_path["/runs/latest"] = {"id": RUN}
    answers.by_path[f"/runs/{RUN}/receipt"] = receipt()
    return answers


def test_a_complete_run_is_told_in_one_line(run_cli, told):
    """The verdict has the counts, and the exit code is 0."""
    result = run_cli("receipt", "latest")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "complete: 9,725 lines of 2 producers, none missing\n"


def test_what_is_missing_is_listed(run_cli, told):
    """Each reason is a line, nothing in it acts on a terminal, and the exit code is 1."""
    told.by_path[f"/runs/{RUN}/receipt"] = receipt(
        complete=False, stored=1, reasons=["the run has not ended", "2 lines\n\x1b[31m dropped"], truncated=1
    )
    result = run_cli("receipt", "latest")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "not complete: 1 line of 2 producers stored",
        "  the run has not ended",
        "  2 lines\\n\\x1b[31m dropped",
        "  1 line cut to the size limit",
    ]


def test_what_is_not_proven_is_told(run_cli, told):
    """A run of which lines may be missing is neither complete nor incomplete; the exit code is 1."""
    told.by_path[f"/runs/{RUN}/receipt"] = receipt(
        complete=False, verdict="not proven", reasons=["3 lines dropped, possibly of this run"]
    )
    result = run_cli("receipt", "latest", "--color", "always", color=True)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "\x1b[33mnot proven: 9,725 lines of 2 producers stored, more may have been lost\x1b[0m",
        "  3 lines dropped, possibly of this run",
    ]


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 1)])
def test_json_is_what_the_server_said(run_cli, told, complete, code):
    """One object, nothing left out; the exit code is the same as in words."""
    answer = told.by_path[f"/runs/{RUN}/receipt"] = receipt(complete=complete)
    result = run_cli("receipt", "latest", "-o", "json", "--color", "always", color=True)
    assert (result.exit_code, json.loads(result.stdout)) == (code, answer)


@pytest.mark.parametrize(("complete", "color"), [(True, "32"), (False, "31")])
def test_the_verdict_is_coloured(run_cli, told, complete, color):
    """Green if complete, else red, if colours are wanted."""
    told.by_path[f"/runs/{RUN}/receipt"] = receipt(complete=complete)
    result = run_cli("receipt", "latest", "--color", "always", color=True)
    assert result.stdout.startswith(f"\x1b[{color}m")


def test_a_real_server_gives_a_receipt(run_cli, real_server):
    """The run of a real server is complete; the one that runs is not."""
    complete = run_cli("receipt", "friday", "--url", real_server)
    assert complete.stdout.splitlines()[0] == "complete: 6 lines of 1 producer, none missing"
    assert complete.exit_code == 0
    running = run_cli("receipt", "thursday", "--url", real_server)
    assert (running.exit_code, running.stdout.splitlines()[1]) == (1, "  the run has not ended")


# --- in the lines of a run ----------------------------------------------------------------------------


def line(seq, who=PRODUCER):
    return {
        "timestamp": "2026-11-21T11:00:00.000000Z",
        "level": 20,
        "level_name": "INFO",
        "flow_run_name": "friday",
        "message": f"line {seq}",
        "producer": who,
        "seq": seq,
    }


def shown(result):
    return [text.partition(" - ")[2] or text for text in result.stdout.splitlines()]


@pytest.fixture
def lossy(told):
    told.by_path[f"/runs/{RUN}/receipt"] = receipt(
        producers=[
            producer(
                dropped_ranges=[
                    {"first_seq": 2, "count": 11, "reason": "queue_full"},
                    {"first_seq": 13, "count": 1, "reason": "queue_full"},
                    {"first_seq": 14, "count": 1, "reason": "\x1b"},
                ],
                missing_ranges=[{"first_seq": 21, "count": 2}],
            )
        ]
    )
    return told


def show(told, *lines):
    told.by_path["/logs"] = {"logs": list(lines), "next": None}


def test_a_loss_is_shown_where_it_was(run_cli, lossy):
    """A mark stands above the producer's next line, one for each reason; the receipt is asked for once."""
    show(
        lossy, line(0), line(0, OTHER), line(1), line(1, OTHER), line(15), line(20), line(23), line(5, OTHER)
    )
    result = run_cli("logs", "latest")
    assert shown(result) == [
        *("line 0", "line 0", "line 1", "line 1"),
        "--- 12 lines are missing here: queue_full ---",
        "--- 1 line is missing here: \\x1b ---",
        *("line 15", "line 20"),
        "--- 2 lines are missing here: they never came ---",
        *("line 23", "line 5"),
    ]
    assert [path for path, _ in lossy.asked] == ["/runs/latest", "/logs", f"/runs/{RUN}/receipt"]


def test_a_loss_is_shown_once(run_cli, lossy):
    """Lines of threads that overtook each other do not repeat a mark, and what lies before the first is not shown."""
    show(lossy, line(15), line(23), line(20), line(24))
    assert shown(run_cli("logs", "latest")) == [
        "line 15",
        "--- 2 lines are missing here: they never came ---",
        *("line 23", "line 20", "line 24"),
    ]


def test_lines_without_a_hole_need_no_receipt(run_cli, lossy):
    """As long as the numbers follow each other, nothing more is asked."""
    show(lossy, line(15), line(16), line(17), {"message": "of another server"})
    assert len(shown(run_cli("logs", "latest"))) == 4
    assert [path for path, _ in lossy.asked] == ["/runs/latest", "/logs"]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_lines_have_no_marks(run_cli, lossy, form):
    """Programs get lines and nothing else."""
    show(lossy, line(1), line(15))
    assert "missing" not in run_cli("logs", "latest", "-o", form).stdout
