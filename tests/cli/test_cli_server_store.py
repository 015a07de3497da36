"""Tests of ``runlog server keys``, ``prune``, ``vacuum`` and ``backup``."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest

from runlog._http import Client
from runlog.settings import get_current_settings

app = pytest.importorskip("runlog.server.app")

BATCH = {
    "producer": "0123456789abcdef0123",
    "first_seq": 0,
    "events": [
        {"timestamp_ns": at * 10**9, "level": 10 + at % 2 * 10, "name": "n", "message": "x" * 300}
        for at in range(1000)
    ],
}


@pytest.fixture
def home():
    return get_current_settings().home


@pytest.fixture
def filled(home):
    """A store with 1,000 lines of 1970, and no server."""
    home.mkdir(parents=True, exist_ok=True)
    with app.BackgroundServer(str(home / "runlog.db")) as server, Client() as client:
        assert client.post(server.url + "/runlog/v1/batches", json=BATCH).status_code == 200
    connection = sqlite3.connect(home / "runlog.db", isolation_level=None)
    connection.execute("UPDATE logs SET observed_ns = 1")
    connection.close()
    return home / "runlog.db"


@pytest.fixture
def served(filled, home):
    """The same with a server that the home knows, which asks for credentials."""
    with app.BackgroundServer(str(filled), home=home, auth_string="user:password") as server:
        yield server


@pytest.mark.parametrize("running", [False, True])
def test_keys_are_made_listed_and_revoked(run_cli, request, filled, running):
    """With a server and without: the key alone is on stdout, once; the list has its beginning."""
    if running:
        request.getfixturevalue("served")
    result = run_cli(
        "server", "keys", "create", "for \x1b[31mCI", "--scope", "read", "--scope", "ingest", "--expires", "30d",
        "--flow", "etl",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    key = result.stdout.strip()
    assert re.fullmatch(r"rl_[0-9a-f]{8}_[\w-]{43}", key)
    assert "the only time that it is shown" in result.stderr
    listed = run_cli("server", "keys", "list")
    assert key[:11] in listed.stdout
    assert key not in listed.stdout
    assert "\x1b" not in listed.stdout
    assert "ingest read" in listed.stdout
    assert "flow etl" in listed.stdout
    (found,) = json.loads(run_cli("server", "keys", "list", "-o", "json").stdout)
    assert (found["id"], found["scopes"]) == (key[:11], ["ingest", "read"])
    revoked = run_cli("server", "keys", "revoke", key[:11])
    assert (revoked.exit_code, revoked.stderr) == (0, f"runlog: key {key[:11]} is worth nothing any more\n")
    assert run_cli("server", "keys", "list").stderr == "runlog: no keys\n"
    gone = run_cli("server", "keys", "revoke", key[:11])
    assert gone.exit_code == 1
    assert "answered 404: no key" in gone.stderr


def test_a_key_is_asked_for_elsewhere(run_cli, served, monkeypatch):
    """A server that is named by its address needs a key with scope admin; the text says how."""
    monkeypatch.setenv("RUNLOG_HOME", "/nonexistent")
    from runlog.settings import reset_settings_cache

    reset_settings_cache()
    result = run_cli("server", "keys", "list", "--url", served.url)
    assert result.exit_code == 1
    assert "answered 401: Unauthorized; set PREFECT_API_KEY to a key with scope admin" in result.stderr
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:password")
    reset_settings_cache()
    assert run_cli("server", "keys", "list", "--url", served.url).exit_code == 0
    away = run_cli("server", "keys", "list", "--url", "http://me:pw@127.0.0.1:9/api")
    assert away.exit_code == 1
    assert "no answer from http://127.0.0.1:9/api" in away.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scope", "root"],
        ["--scope", "read", "--expires", "soon"],
        ["--scope", "read", "--expires", "0d"],
    ],
)
def test_a_key_needs_a_scope(run_cli, arguments):
    """Options that make no sense end with a line about usage."""
    result = run_cli("server", "keys", "create", "n", *arguments)
    assert result.exit_code == 2


def test_a_store_that_another_has_is_left_alone(run_cli, filled):
    """A server that the home does not know has the file: nothing is touched, and the text says why."""
    with app.BackgroundServer(str(filled)):
        for arguments in (["keys", "list"], ["prune", "--older-than", "1d", "-y"], ["vacuum"]):
            result = run_cli("server", *arguments)
            assert result.exit_code == 1
            assert "is in use by another runlog server" in result.stderr


@pytest.mark.parametrize("running", [False, True])
def test_old_lines_are_deleted_and_space_given_back(run_cli, request, filled, running):
    """Lines of a level and an age go, after a question; vacuum tells what it gave back."""
    if running:
        request.getfixturevalue("served")
    asked = run_cli("server", "prune", "--older-than", "30d", "--level", "debug", input="n\n")
    assert asked.exit_code == 1
    result = run_cli("server", "prune", "--older-than", "30d", "--level", "debug", input="y\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("runlog: 500 lines and 0 runs deleted\n")
    result = run_cli("server", "prune", "--max-bytes", "0", "--yes")
    assert result.stderr == "runlog: 499 lines and 0 runs deleted\n"
    result = run_cli("server", "vacuum")
    assert result.exit_code == 0, result.output
    assert int(re.search(r"([\d,]+) less than before", result.stderr)[1].replace(",", "")) > 100_000
    assert run_cli("server", "prune").exit_code == 2


@pytest.mark.parametrize("running", [False, True])
def test_a_backup_is_a_store(run_cli, request, filled, running, tmp_path):
    """With a server and without: the copy can be read like the original; nothing is ever replaced."""
    if running:
        request.getfixturevalue("served")
    target = tmp_path / "copy.db"
    result = run_cli("server", "backup", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"runlog: {target.stat().st_size:,} bytes copied to {target}\n"
    with app.BackgroundServer(str(target)) as server, Client() as client:
        assert client.get(server.url + "/runlog/v1/status").json()["lines"] == 1000
    again = run_cli("server", "backup", str(target))
    assert (again.exit_code, "exists, and a backup replaces nothing" in again.stderr) == (1, True)
    memory = run_cli("server", "backup", str(tmp_path / "x.db"), "--database", "memory://")
    assert (memory.exit_code, "cannot be backed up" in memory.stderr) == (1, True)


def test_certificate_and_key_belong_together(run_cli):
    """One without the other is a mistake of usage."""
    result = run_cli("server", "start", "--ssl-certfile", "x.pem")
    assert result.exit_code == 2
    assert "belong together" in result.stderr
    result = run_cli("server", "start", "--port", "0", "--ssl-certfile", "x.pem", "--ssl-keyfile", "y.pem")
    assert result.exit_code == 1
    assert "certificate x.pem and key y.pem cannot be used" in result.stderr
