"""Fixtures of the fault suite: a real server on a database file, and programs that log."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest
from producers import Group, Producer
from speakers import Speakers

from runlog.server.app import BackgroundServer


@pytest.fixture
def database(tmp_path):
    return tmp_path / "lines.db"


@pytest.fixture
def server(database):
    with BackgroundServer(str(database)) as server:
        yield server


@pytest.fixture
def start_producers():
    """Start programs, three by default; those that still run at the end of the test are killed."""
    if sys.platform == "win32":
        pytest.skip("the programs wait for commands by select, which this system has for sockets only")
    with contextlib.ExitStack() as started:

        def start(api_url, *, number=3, **options):
            return started.enter_context(
                Group(Producer(f"producer-{n}", api_url, **options) for n in range(number))
            )

        yield start


@pytest.fixture
def speakers(tmp_path, database, server):
    """Start programs of any kind that log to the server."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("the programs tell what they have logged through a named pipe, which this system has not")
    with Speakers(tmp_path, database, server.url) as speakers:
        yield speakers
