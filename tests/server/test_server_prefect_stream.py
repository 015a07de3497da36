"""An unmodified Prefect 3 client follows lines on runlog's socket, with every filter it has, and misses none."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from prefect_environment import PREFECT_PYTHON, needs_prefect

from runlog.server.app import BackgroundServer

SCRIPT = Path(__file__).with_name("prefect_subscriber.py")


def subscribe(url, home, **environment):
    return subprocess.run(
        [PREFECT_PYTHON, str(SCRIPT)],
        env={
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_prefect
@pytest.mark.parametrize("auth_string", [None, "somebody:secret"])
def test_prefects_subscriber_gets_every_line_that_it_wants(tmp_path, auth_string):
    """5,000 of 5,000 lines of a burst come, once and in order, and each filter lets its lines pass."""
    environment = {"PREFECT_API_AUTH_STRING": auth_string} if auth_string else {}
    with BackgroundServer(f"sqlite:///{tmp_path}/runlog.db", auth_string=auth_string) as server:
        result = subscribe(server.url, tmp_path / "prefect", **environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["burst"], found["ids"], found["in order"]) == (5000, 5000, True)
    recent = [
        "plain",
        "other run",
        "task",
        "Zebra",
        "striped zebra in the dark",
        "something in the dark",
        "last",
    ]
    old = "too old: the client asks for the last minute"
    assert found["lines"] == {
        "all": recent,
        "run": ["plain", "task", "Zebra", "something in the dark", "last"],
        "task run": ["task"],
        "level": ["Zebra", "striped zebra in the dark"],
        "levels": ["task"],
        "text": ["Zebra", "something in the dark"],
        "either": [*recent[:-1], old, recent[-1]],  # the last minute is one of the parts
    }


@needs_prefect
def test_prefects_subscriber_is_refused_with_a_wrong_auth_string(tmp_path):
    """The reason of the closing reaches the user."""
    with BackgroundServer(auth_string="somebody:secret") as server:
        result = subscribe(
            server.url,
            tmp_path,
            PREFECT_API_AUTH_STRING="somebody:else",
            PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED="false",  # it would be refused before the socket is
        )
    assert result.returncode != 0
    assert "Unable to authenticate to the log stream" in result.stderr
    assert "Invalid token" in result.stderr
