"""Tests of reading without any server: scripts leave lines in the spool, and commands take them in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from runlog.cli.local import LocalReader, SpoolIntake, database_of
from runlog.client import LogReader
from runlog.delivery.sending import segments
from runlog.discovery import find_local_server, publish_local_server
from runlog.exceptions import ServerUnreachableError, StorageError
from runlog.settings import get_current_settings

app = pytest.importorskip("runlog.server.app")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes read one spool file")

SCRIPT = """
import sys
import runlog

runlog.setup_logging()
with runlog.flow_run("job", run_name=sys.argv[1]):
    log = runlog.get_run_logger()
    for number in range(int(sys.argv[2])):
        log.info("line %d", number)
    if len(sys.argv) > 3:
        print("logged", flush=True)
        input()
"""

LINES = 40


@pytest.fixture
def local_spool():
    return get_current_settings().home / "spool" / "local"


@pytest.fixture
def started():
    """A function that starts Python with arguments; what still runs is killed in the end."""
    processes = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def script(name, *more):
    return ["-c", SCRIPT, name, str(LINES), *more]


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def logged(output):
    return [line.partition(" - ")[2] for line in output.splitlines() if " - line " in line]


def stored():
    """Every line of the store, read through a server of the test's own."""
    with LocalReader(get_current_settings()) as reader:
        return list(reader.logs())


EXPECTED = [f"line {number}" for number in range(LINES)]


def test_a_script_without_configuration_is_readable(run_cli, started, local_spool):
    """Its lines are shown once, however often they are asked for, and no longer wait in the spool."""
    finish(started(*script("one")))
    assert len(segments(local_spool)) == 1
    for _ in range(2):
        result = run_cli("logs", "latest")
        assert result.exit_code == 0, result.stderr
        assert logged(result.stdout) == EXPECTED
    assert segments(local_spool) == []
    assert run_cli("runs", "-o", "jsonl").stdout.count("\n") == 1
    assert len({log["id"] for log in stored()}) == LINES + 2


def test_a_script_that_runs_is_readable(run_cli, started, local_spool):
    """Its lines are shown meanwhile and stay its own; once it and a server have sent them, none is doubled."""
    process = started(*script("live", "wait"))
    assert process.stdout.readline() == "logged\n"
    for _ in range(2):
        assert logged(run_cli("logs", "live").stdout) == EXPECTED
    (segment,) = segments(local_spool)
    assert segment.is_owned
    process.stdin.write("\n")
    process.stdin.flush()
    finish(process)
    settings = get_current_settings()
    with app.BackgroundServer(database_of(settings), home=settings.home):
        intake = SpoolIntake(settings)
        taken_in(intake, local_spool)
        lines = stored()
    assert [log["message"] for log in lines if log["message"].startswith("line ")] == EXPECTED
    assert len({log["id"] for log in lines}) == len(lines) == LINES + 2
    result = run_cli("receipt", "live")
    assert result.exit_code == 0, result.output


def taken_in(intake, spool):
    """Run one round of an intake."""
    rounds = threading.Event()
    intake._stop.wait = lambda _seconds: (rounds.set(), intake._stop.set())
    intake.start()
    assert rounds.wait(30)
    intake.stop()
    assert segments(spool) == []


def test_ten_scripts_and_three_readers(started):
    """Nothing is lost, doubled or damaged when all begin at once."""
    scripts = [started(*script(f"run-{number}")) for number in range(10)]
    readers = [started("-m", "runlog", "runs", "-o", "json") for _ in range(3)]
    for process in scripts:
        finish(process)
    for process in readers:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0 or "where no line waits either" in error, error
    again = [started("-m", "runlog", "logs", f"run-{number}", "-o", "jsonl") for number in range(3)]
    for process in again:
        messages = [json.loads(line)["message"] for line in finish(process).splitlines()]
        assert messages[1:-1] == EXPECTED
    lines = stored()
    assert len({log["id"] for log in lines}) == len(lines) == 10 * (LINES + 2)
    for number in range(10):
        messages = [log["message"] for log in lines if log["flow_run_name"] == f"run-{number}"]
        assert messages[1:-1] == EXPECTED


def test_nothing_to_read_makes_nothing(run_cli):
    """Without a store and without a spool, the command says what to do and leaves no file."""
    result = run_cli("runs")
    assert result.exit_code == 1
    assert "runlog server start" in result.stderr
    assert not get_current_settings().home.exists()


def test_reading_goes_on_when_the_server_of_another_ends(started):
    """A reader that used another's server starts its own, in the middle of its pages."""
    finish(started(*script("paged")))
    settings = get_current_settings()
    first = LocalReader(settings)
    list(first.runs())
    with LocalReader(settings) as second:
        second.status()
        assert second._server is None
        first.close()
        assert len(list(second.logs())) == LINES + 2
        assert second._server is not None


def test_an_address_that_does_not_answer_is_told(started, monkeypatch):
    """A server that lives and does not answer is not replaced: it has the database."""
    monkeypatch.setattr("runlog.cli.local.PATIENCE", 0.0)
    home = get_current_settings().home
    with (
        publish_local_server(home, "http://127.0.0.1:9/api"),
        LocalReader(get_current_settings()) as reader,
        pytest.raises(ServerUnreachableError),
    ):
        reader.status()


def test_a_database_that_stays_in_use_is_told(monkeypatch, tmp_path):
    """Waiting for another process ends."""
    monkeypatch.setattr("runlog.cli.local.PATIENCE", 0.0)
    settings = get_current_settings()
    settings.home.mkdir()
    with (
        app.BackgroundServer(database_of(settings)),
        LocalReader(settings) as reader,
        pytest.raises(StorageError, match="in use"),
    ):
        reader.status()


def test_a_database_that_cannot_be_used_is_told_at_once(run_cli, monkeypatch):
    """Only one that is in use is worth waiting for."""
    monkeypatch.setattr("runlog.cli.local.time.sleep", None)
    home = get_current_settings().home
    home.mkdir()
    (home / "runlog.db").write_bytes(b"no database at all" * 1000)
    result = run_cli("runs")
    assert result.exit_code == 1
    assert "file is not a database" in result.stderr


def test_a_server_that_starts_takes_the_spool_in(started):
    """What a script logged without any server is on the server that is started later, without any command."""
    finish(started(*script("before")))
    settings = get_current_settings()
    server = started("-m", "runlog", "server", "start", "--port", "0")
    deadline = time.monotonic() + 60
    messages = []
    while len(messages) < LINES + 2:
        assert time.monotonic() < deadline, messages
        assert server.poll() is None, server.communicate()
        found = find_local_server(settings.home)
        if found is not None:
            with LogReader(found.url) as reader:
                messages = [log["message"] for log in reader.logs()]
        time.sleep(0.05)
    assert messages[1:-1] == EXPECTED
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert find_local_server(settings.home) is None


def test_the_server_extra_may_be_missing(run_cli, monkeypatch):
    """One line says what to install."""
    home = get_current_settings().home
    home.mkdir()
    (home / "runlog.db").touch()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run_cli("runs")
    assert result.exit_code == 1
    assert "pip install 'runlog[server]'" in result.stderr
