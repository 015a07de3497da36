"""A whole Prefect program without a Prefect server: its runs, their names and states are noted."""

from __future__ import annotations

from pathlib import Path

from prefect_environment import needs_prefect, run_prefect

from runlog._http import Client
from runlog.server.app import BackgroundServer

FLOW_PROGRAM = Path(__file__).with_name("prefect_flow.py")


def tree_of(run):
    """A run as its flow or task name, state, attempt and children."""
    name = run["task_name"] if run["kind"] == "task" else run["flow_name"]
    children = sorted((tree_of(child) for child in run.get("children", [])), key=str)
    return (name, run["state"], run["attempt"], *children)


AUTH_STRING = "somebody:secret"


@needs_prefect
def test_an_unmodified_program(tmp_path):
    """Flows, tasks, retries and nested flows of an unmodified program end as they should, and are found."""
    with BackgroundServer(f"sqlite:///{tmp_path}/runlog.db", auth_string=AUTH_STRING) as server:
        result = run_prefect(
            server.url, tmp_path / "prefect", FLOW_PROGRAM, PREFECT_API_AUTH_STRING=AUTH_STRING
        )
        with Client(base_url=server.url, auth=tuple(AUTH_STRING.split(":"))) as client:
            runs = client.get("/runlog/v1/runs", params={"kind": "flow"}).json()["runs"]
            by_flow = {run["flow_name"]: run for run in runs}
            outer, failing = by_flow["outer-flow"], by_flow["failing-flow"]
            tree = client.get(f"/runlog/v1/runs/{outer['id']}").json()
            logs = client.get("/runlog/v1/logs", params={"run": outer["id"], "limit": 1000}).json()["logs"]
            end = client.get("/runlog/v1/logs", params={"flow_run_id": failing["id"]}).json()["logs"][-2:]
    assert result.returncode == 1  # the second flow raises
    assert "RuntimeError: on purpose" in result.stderr
    assert "RESULT [3, 'weather', 7, 6, 'lucky']" in result.stdout
    assert "PrefectHTTPStatusError" not in result.stderr
    assert "Unable to" not in result.stderr
    assert tree_of(tree) == (
        "outer-flow",
        "COMPLETED",
        None,
        ("add", "COMPLETED", None),
        ("add", "COMPLETED", None),
        ("fails", "FAILED", None),
        ("inner", "COMPLETED", None, ("add", "COMPLETED", None)),
        ("second-time-lucky", "COMPLETED", 2),
        ("unsteady", "COMPLETED", 2),
    )
    assert by_flow["inner"]["name"] == "inner of 5"
    assert 0 < outer["duration_s"] < 60
    told = {(log["message"], log["flow_name"], log["task_name"], log["level"]) for log in logs}
    assert {
        (f"hello from {outer['name']}", "outer-flow", None, 20),
        ("adding 3 and 4", "outer-flow", "add", 20),
        ("inside 5", "inner", None, 20),
        ("adding 5 and 1", "inner", "add", 20),
        ("as expected", "outer-flow", None, 30),
    } <= told
    assert all(log["flow_run_name"] for log in logs)
    assert {log["task_run_name"] for log in logs if log["task_name"] == "unsteady"} == {"unsteady-weather"}
    assert failing["state"] == "FAILED"
    assert any("failed after" in log["message"] and "on purpose" in log["message"] for log in end)
