"""The command line of an unmodified Prefect prints runs that runlog keeps, whoever logged them."""

from __future__ import annotations

import pytest
from prefect_environment import needs_prefect, run_prefect
from server_lines import FLOW, TASK, encoded, finished, line, started

from runlog._http import Client
from runlog.server.app import BackgroundServer

LINES = 450
"""More than two pages of what Prefect's client reads at once."""


@pytest.fixture(scope="module")
def server():
    """A server with one run of runlog's own, which has a task, and a line every second."""
    names = {"flow_run_name": "swift-otter", "flow_name": "nightly"}
    task = {"task_run_id": TASK, "flow_run_id": FLOW, "task_run_name": "load-1", "task_name": "load", **names}
    lines = [line(f"line {number}", at=number, flow_run_id=FLOW, **names) for number in range(1, LINES - 1)]
    with BackgroundServer() as server, Client(base_url=server.url) as client:
        body = encoded(
            started(at=0, **names),
            *lines,
            line("[loaded] 42 orders", at=LINES - 1, level=30, **task),
            finished(at=LINES, **names),
        )
        client.post("/runlog/v1/batches", content=body).raise_for_status()
        yield server


@needs_prefect
def test_flow_run_logs(server, tmp_path):
    """``prefect flow-run logs`` prints the whole run, its head, its tail, and the other way round."""

    def logs(*options):
        result = run_prefect(server.url, tmp_path, "-m", "prefect", "flow-run", "logs", FLOW, *options)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.splitlines()

    everything = logs()
    first = "2023-11-14 22:13:20.000 | INFO    | Flow run 'swift-otter' - started"
    warning = "2023-11-14 22:20:49.000 | WARNING | Flow run 'swift-otter' - [loaded] 42 orders"
    assert len(everything) == LINES + 1
    assert everything[0] == first
    assert everything[-2] == warning
    assert logs("--head", "--num-logs", "3") == everything[:3]
    assert logs("--tail", "--num-logs", "250") == everything[-250:]
    assert logs("--reverse") == everything[::-1]


@needs_prefect
def test_runs(server, tmp_path):
    """``ls`` lists the run with its flow; an unknown one is not found, and said to be so."""

    def prefect(*arguments):
        return run_prefect(server.url, tmp_path, "-m", "prefect", "flow-run", *arguments, COLUMNS="200")

    listed = prefect("ls", "--limit", "5")
    assert listed.returncode == 0, listed.stderr
    (row,) = [text for text in listed.stdout.splitlines() if FLOW in text]
    assert [cell.strip() for cell in row.split("│")][2:5] == ["nightly", "swift-otter", "COMPLETED"]
    unknown = prefect("logs", FLOW.replace("1", "9"))
    assert unknown.returncode == 1
    assert "not found" in unknown.stdout + unknown.stderr
