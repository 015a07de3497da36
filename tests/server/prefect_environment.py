"""The interpreter that has a real Prefect, and how to run its programs against a server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


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
