"""Tests of ``runlog server start``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from runlog.client.reader import LogReader
from runlog.discovery import find_local_server
from runlog.settings import get_current_settings

app = pytest.importorskip("runlog.server.app")


@pytest.fixture
def started(monkeypatch):
    """The arguments that the server was started with, instead of a server."""
    calls = []

    def run_server(*arguments, on_ready, **options):
        calls.append((*arguments, options))
        on_ready("http://127.0.0.1:4999/api")

    monkeypatch.setattr(app, "run_server", run_server)
    return calls


def test_defaults_come_from_the_settings(run_cli, started, monkeypatch):
    """Without options, the settings decide; without settings, loopback and a file in the home."""
    home = get_current_settings().home
    result = run_cli("server", "start")
    assert result.exit_code == 0
    assert started == [("127.0.0.1", 4210, str(home / "runlog.db"), home, {"reload": False, "tls": None})]
    assert result.stdout == ""
    assert result.stderr == (
        f"runlog: log server at http://127.0.0.1:4999/api, database {home / 'runlog.db'}; Ctrl-C stops it\n"
    )


def test_options_win(run_cli, started):
    """Each option reaches the server; a password in a database URL is not printed."""
    home = get_current_settings().home
    options = ["--host", "::1", "--port", "0", "--database", "postgresql://me:s3cret@db/lines", "--reload"]
    result = run_cli("server", "start", *options)
    assert started == [("::1", 0, "postgresql://me:s3cret@db/lines", home, {"reload": True, "tls": None})]
    assert "s3cret" not in result.output


def test_the_server_extra_may_be_missing(run_cli, monkeypatch):
    """One line says how to install it."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run_cli("server", "start")
    assert result.exit_code == 1
    assert result.stderr == (
        "runlog: runlog server start needs uvicorn; install it with: pip install 'runlog[server]'\n"
    )


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "x"], ["--host"]])
def test_wrong_options(run_cli, started, arguments):
    """They end before anything is started."""
    assert run_cli("server", "start", *arguments).exit_code == 2
    assert started == []


def test_an_open_address_without_auth_is_refused(run_cli):
    """The remedy is named."""
    result = run_cli("server", "start", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 1
    assert "PREFECT_SERVER_API_AUTH_STRING" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_server(tmp_path, number):
    """It says where it listens, is found by the local programs, and ends quietly when it is told to."""
    command = [
        sys.executable,
        "-m",
        "runlog",
        "server",
        "start",
        "--port",
        "0",
        "--database",
        str(tmp_path / "x.db"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"log server at (\S+), database (\S+);", process.stderr.readline())[1]
        local = find_local_server(get_current_settings().home)
        assert (local.url, local.pid) == (url, process.pid)
        with LogReader.from_settings() as reader:
            assert reader.status()["database"] == str(tmp_path / "x.db")
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, output, errors) == (0, "", "")
