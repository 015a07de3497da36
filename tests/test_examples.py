"""Every example runs as its first lines say, and its lines arrive at a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runlog.client import LogReader

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def server(tmp_path):
    app = pytest.importorskip("runlog.server.app")
    with app.BackgroundServer(database=str(tmp_path / "lines.db"), port=0) as running:
        yield running


@pytest.fixture
def reader(server):
    with LogReader(server.url) as reading:
        yield reading


def run(name, server, directory, **environment):
    """Run an example in *directory* and return what it printed."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=directory,
        env={**os.environ, "PREFECT_API_URL": server.url, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def lines_of(reader, **filters):
    return list(reader.logs(run=reader.run("latest")["id"], **filters))


def names(runs):
    return sorted(run["task_name"] for run in runs)


def test_every_example_has_a_test():
    """A new example needs one here."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "custom_handler",
        "first_flow",
        "threads_and_processes",
    }


def test_first_flow(server, reader, tmp_path):
    """Console and server have the same lines; the server has the values as well."""
    printed = run("first_flow.py", server, tmp_path)
    tree = reader.run("latest")
    assert (tree["flow_name"], tree["state"]) == ("orders", "COMPLETED")
    assert names(tree["children"]) == ["check", "extract"]
    messages = {log["message"]: log for log in lines_of(reader)}
    for message in (
        "found 3 orders",
        "order 2 has a negative amount",
        "2 of 3 orders are good",
        "total: 200.50",
    ):
        assert message in printed
        assert message in messages
    assert messages["total: 200.50"]["attributes"]["source"] == "memory"
    assert messages["order 2 has a negative amount"]["attributes"]["amount"] == -5.0
    assert messages["2 of 3 orders are good"]["task_name"] == "check", "the print is a line of its task"


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_custom_handler(server, reader, tmp_path, folder):
    """The handler gets the lines beside console and server; the environment can move its folder."""
    override = {"PREFECT_LOGGING_HANDLERS_FILES_FOLDER": folder} if folder else {}
    printed = run("custom_handler.py", server, tmp_path, **override)
    written = (tmp_path / (folder or "run-logs") / "friday.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert {"level": "INFO", "task": None, "message": "starting"} in lines
    assert {"level": "INFO", "task": "send-all", "message": "sent 12 invoices"} in lines
    hidden = "the server gets this line, console and file do not"
    assert hidden not in printed
    assert hidden not in [line["message"] for line in lines]
    assert hidden in [log["message"] for log in lines_of(reader, level="DEBUG")]


def test_threads_and_processes(server, reader, tmp_path):
    """Lines of threads and processes belong to the one flow run, and come from several processes."""
    run("threads_and_processes.py", server, tmp_path)
    tree = reader.run("latest")
    assert (tree["name"], tree["state"]) == ("spread-out", "COMPLETED")
    assert names(tree["children"]) == ["download"] * 3 + ["square"] * 3
    lines = lines_of(reader)
    assert sorted(log["attributes"]["page"] for log in lines if "page" in log["attributes"]) == [1, 2, 3]
    assert sorted(log["attributes"]["number"] for log in lines if "number" in log["attributes"]) == [
        100,
        200,
        300,
    ]
    assert "sum of the squares: 140000" in [log["message"] for log in lines]
    assert len({log["producer"] for log in lines}) > 1
