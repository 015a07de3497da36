"""A server that answers what a test says, and a real one with a few runs in it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from runlog._http import Client, MockTransport, Response
from runlog.cli.app import cli
from runlog.settings import reset_settings_cache

URL = "http://server.test/api"

FLOW = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER_FLOW = "aaaabbbb-0000-4000-8000-000000000002"
TASK = "bbbbbbbb-0000-4000-8000-000000000003"


@pytest.fixture(autouse=True)
def fresh_settings():
    """The settings are read anew in each test, as a command reads them once."""
    reset_settings_cache()
    yield
    reset_settings_cache()


class Answers:
    """Answers by path, and the queries that were asked."""

    def __init__(self):
        self.by_path = {}
        self.asked = []

    def __call__(self, request):
        path = request.url.path.removeprefix("/api/runlog/v1")
        self.asked.append((path, dict(request.url.params)))
        answer = self.by_path[path]
        return answer if isinstance(answer, Response) else Response(200, json=answer)


@pytest.fixture
def answers(monkeypatch):
    """What the server at `URL` answers: ``answers.by_path["/runs"] = {...}``."""
    given = Answers()
    real = Client

    def client(**options):
        return real(transport=MockTransport(given), **options)

    monkeypatch.setattr("runlog.client.reader.Client", client)
    monkeypatch.setenv("PREFECT_API_URL", URL)
    return given


@pytest.fixture
def run_cli():
    """A function that runs one command line in this process."""

    def run(*arguments, **options):
        return CliRunner().invoke(cli, list(arguments), **options)

    return run


@pytest.fixture
def real_server(tmp_path):
    """A real server with two flow runs, one of them with a failed task; its API address."""
    app = pytest.importorskip("runlog.server.app")
    with app.BackgroundServer(database=str(tmp_path / "lines.db"), port=0) as server:
        with Client() as client:
            response = client.post(
                f"{server.url}/runlog/v1/batches",
                content=json.dumps(BATCH),
                headers={"Content-Type": "application/json"},
            )
        assert response.status_code == 200, response.text
        yield server.url


def event(second, message, *, level=20, task=False, flow=FLOW, **changes):
    fields = {
        "timestamp_ns": (1_795_258_800 + second) * 1_000_000_000,  # from 2026-11-21T11:00:00Z
        "level": level,
        "name": "runlog.task_runs" if task else "runlog.flow_runs",
        "message": message,
        "flow_run_id": flow,
        "flow_run_name": "friday" if flow == FLOW else "thursday",
        "flow_name": "nightly-etl",
        **changes,
    }
    if task:
        fields |= {"task_run_id": TASK, "task_run_name": "extract-orders", "task_name": "extract"}
    return fields


def state(name, seconds=None):
    attributes = {"runlog.run.state": name}
    if seconds is not None:
        attributes["runlog.run.duration_s"] = seconds
    return {
        "event_name": f"runlog.run.{'started' if seconds is None else 'finished'}",
        "attributes": attributes,
    }


TRACE = "Traceback (most recent call last):\n  File \"etl.py\", line 3\nKeyError: 'amount'\n"

EVENTS = [
    event(0, "Flow run started", flow=OTHER_FLOW, **state("RUNNING")),
    event(10, "Flow run started", **state("RUNNING")),
    event(11, "Task run started", task=True, **state("RUNNING")),
    event(12, "loaded 42 rows", task=True, attributes={"table": "orders", "rows": 42}),
    event(13, "odd order \x1b[31m7\n2026-11-21 | CRITICAL | forged", task=True, level=30),
    event(
        14,
        "Task run failed",
        task=True,
        level=40,
        exception={"type": "KeyError", "message": "'amount'", "traceback": TRACE},
        **state("FAILED", 3.0),
    ),
    event(15, "Flow run failed", level=40, **state("FAILED", 5.0)),
]
BATCH = {"producer": "0123456789abcdef0123", "first_seq": 0, "events": EVENTS}
