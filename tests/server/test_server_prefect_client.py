"""An unmodified Prefect 3 client stores its lines in runlog, and reads them back as from its own server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect_environment import needs_prefect, run_prefect

from runlog._http import Client
from runlog.server.app import BackgroundServer

SCRIPT = Path(__file__).with_name("prefect_client.py")


ALL = [0, 1, 2, 3, 4, 5]


def run_client(url, home, **settings):
    result = run_prefect(url, home, SCRIPT, **settings)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@needs_prefect
@pytest.mark.parametrize("auth_string", [None, "somebody:secret"])
def test_prefects_client_gets_what_it_should(tmp_path, auth_string):
    """Lines of Prefect's handler are found by level, run, time and text, paged, and each once."""
    environment = {"PREFECT_API_AUTH_STRING": auth_string} if auth_string else {}
    with BackgroundServer(f"sqlite:///{tmp_path}/runlog.db", auth_string=auth_string) as server:
        found, errors = run_client(server.url, tmp_path / "prefect", **environment)
    ids = found.pop("ids")
    assert len(ids) == 6
    healthy, version = found.pop("api")
    assert healthy
    assert version.startswith("3.")
    assert found == {
        "all": ALL,
        "run": [0, 1, 2, 3],
        "both runs": ALL,
        "no run": [],
        "task run": [1, 2],
        "level from": [3, 4, 5],
        "level to": [0, 1],
        "run and level": [2, 3],
        "long ago": [],
        "since the start": ALL,
        "text": [4],
        "phrase": [3],
        "logger": [],
        "either": [1, 5],
        "page": [4, 3],
        "names": ["prefect.flow_runs.probe"],
        "late": [],
        "too many": ["PrefectHTTPStatusError", True],
    }
    assert "Traceback" not in errors


@needs_prefect
def test_prefects_client_brings_a_key(tmp_path):
    """A key with both scopes does for Prefect's client what an auth string does; without one it is told 401."""
    with (
        BackgroundServer(f"sqlite:///{tmp_path}/runlog.db", auth_string="somebody:secret") as server,
        Client(base_url=server.url, auth=("somebody", "secret")) as client,
    ):
        wanted = {"name": "Prefect", "scopes": ["ingest", "read"]}
        key = client.post("/runlog/v1/admin/keys", json=wanted).json()["key"]
        found, errors = run_client(server.url, tmp_path / "prefect", PREFECT_API_KEY=key)
        assert found["all"] == ALL
        assert found["run and level"] == [2, 3]
        assert "Traceback" not in errors
        refused = run_prefect(server.url, tmp_path / "prefect", SCRIPT, PREFECT_API_KEY=key[:-1] + "!")
        assert refused.returncode != 0
        assert "401 Unauthorized" in refused.stderr
        assert key[:-1] not in refused.stderr
