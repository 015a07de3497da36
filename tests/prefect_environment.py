"""The interpreter that has a real Prefect, how to run its programs against a server, and its server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def _python():
    named = os.environ.get("RUNLOG_TEST_PREFECT_PYTHON")
    own = REPOSITORY / ".venv-prefect" / "bin" / "python"
    if named:
        return named
    return str(own) if own.exists() else None


# At import: the fixture that keeps the environment out of tests hides the variable from them.
PREFECT_PYTHON = _python()

needs_prefect = pytest.mark.skipif(
    PREFECT_PYTHON is None,
    reason="no environment with Prefect: neither RUNLOG_TEST_PREFECT_PYTHON nor .venv-prefect",
)


def environment(url, home, **settings):
    """Return the environment of a Prefect program that works with a server."""
    return {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "error",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_COLORS": "false",
        "DO_NOT_TRACK": "1",
        **settings,
    }


def run_prefect(url, home, *arguments, **settings):
    """Run Prefect's interpreter with *arguments*, and return what it wrote and its exit code."""
    return subprocess.run(
        [PREFECT_PYTHON, *map(str, arguments)],
        env=environment(url, home, **settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SERVER_START = 150.0
"""Seconds in which a Prefect server must answer; it creates its database first."""


@contextlib.contextmanager
def prefect_server(home, **settings):
    """Run a real Prefect server on a free port, with a database of its own; yields its API address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PREFECT_PYTHON, *command, "--no-services", "--no-ui"],
            env=environment(url, home, PREFECT_SERVER_UI_ENABLED="false", **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_healthy(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(url, process, log):
    deadline, pause = time.monotonic() + SERVER_START, threading.Event()
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        pause.wait(0.1)
