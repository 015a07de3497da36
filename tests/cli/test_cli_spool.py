"""Tests of ``runlog spool``."""

from __future__ import annotations

import json
import logging
import os

import pytest

from runlog._locks import lock_file
from runlog.client import LogReader
from runlog.delivery.frames import EVENT
from runlog.delivery.retry import Answer
from runlog.delivery.segments import SegmentName, SegmentWriter
from runlog.delivery.sending import count_waiting, remove_unfinished, segments, send_spool
from runlog.delivery.spool import (
    make_private_directory,
    remember_target,
    remembered_target,
    spool_directory,
    write_dead_letter,
)
from runlog.delivery.transport import HTTPTransport, InMemoryTransport
from runlog.settings import get_current_settings, reset_settings_cache

PRODUCER = "0123456789abcdef0123"
OTHER = "3210fedcba9876543210"


def text(number):
    return json.dumps(
        {
            "timestamp_ns": 1_795_258_800_000_000_000 + number,
            "level": logging.INFO,
            "name": "job",
            "message": f"line {number}",
        }
    ).encode()


def leave(directory, *numbers, producer=PRODUCER, first=None):
    """Write a segment; returns its writer, which owns it until it is closed."""
    make_private_directory(directory)
    name = SegmentName(producer, numbers[0] if first is None else first)
    writer = SegmentWriter(directory, name, {"pid": 1, "resource": {}})
    for number in numbers:
        writer.append(number, EVENT, text(number))
    return writer


@pytest.fixture
def home():
    return get_current_settings().home


@pytest.fixture
def local(home):
    return spool_directory(home, None)


def test_status(run_cli, home, local):
    """Each target with what waits, whose it is, and what was refused."""
    assert run_cli("spool", "status").stderr == "runlog: no line was ever spooled here\n"
    url = "http://me:s3cret@logs.test/api"
    remote = spool_directory(home, url)
    remember_target(remote, url)
    leave(remote, 0, 1).close()
    write_dead_letter(remote, PRODUCER, 7, text(7), "HTTP 422 too odd")
    owner = leave(local, 0, 1, 2)
    (found_local, found) = json.loads(run_cli("spool", "status", "-o", "json").stdout)
    assert found == {
        "target": remote.name,
        "api_url": "http://logs.test/api",
        "producers": 1,
        "segments": 1,
        "bytes": found["bytes"],
        "owned_segments": 0,
        "dead_letters": 1,
    }
    assert found_local["owned_segments"] == 1
    table = run_cli("spool", "status").stdout
    assert "http://logs.test/api" in table
    assert "s3cret" not in table
    owner.close()


def test_inspect(run_cli, local):
    """Waiting lines of living owners and refused ones are printed, and nothing changes."""
    assert run_cli("spool", "inspect").stderr == "runlog: nothing waits\n"
    owner = leave(local, 0, 1)
    write_dead_letter(local, PRODUCER, 7, text(7), "HTTP 422 too odd")
    before = {path: path.read_bytes() for path in local.iterdir()}
    lines = run_cli("spool", "inspect", "--timezone", "utc").stdout.splitlines()
    assert [line.partition(" - - ")[2] for line in lines] == ["line 0", "line 1", "line 7"]
    assert lines[2].startswith("refused (HTTP 422 too odd): ")
    items = [json.loads(line) for line in run_cli("spool", "inspect", "-o", "jsonl").stdout.splitlines()]
    assert [(item["state"], item["seq"]) for item in items] == [
        ("waiting", 0),
        ("waiting", 1),
        ("refused", 7),
    ]
    assert {path: path.read_bytes() for path in local.iterdir()} == before
    owner.close()


def test_purge(run_cli, local):
    """It asks, leaves what has an owner, and deletes dead letters on demand only."""
    owner = leave(local, 0, producer=OTHER)
    leave(local, 0).close()
    letters = write_dead_letter(local, PRODUCER, 7, text(7), "no")
    assert run_cli("spool", "purge", input="n\n").exit_code == 1
    assert len(list(local.glob("*.seg"))) == 2
    assert run_cli("spool", "purge", "--yes").stderr == "runlog: 1 segments deleted\n"
    assert list(local.glob("*.seg")) == [owner.path]
    assert letters.exists()
    run_cli("spool", "purge", "--yes", "--dead-letters")
    assert not letters.exists()
    owner.close()


def test_send(run_cli, home, real_server):
    """What dead processes left goes to the address that the spool remembers, and is deleted."""
    directory = spool_directory(home, real_server)
    remember_target(directory, real_server)
    leave(directory, 0, 1, 2, producer=OTHER).close()
    result = run_cli("spool", "send")
    assert result.exit_code == 0
    assert result.stderr == f"runlog: {directory.name}: 3 lines sent to {real_server}\n"
    assert list(directory.glob("*.seg")) == []
    assert run_cli("spool", "send").stderr == ""


def test_send_elsewhere(run_cli, local, real_server):
    """With --url, what waited for another server goes there."""
    leave(local, 0, producer=OTHER).close()
    assert run_cli("spool", "send", "--target", "local", "--url", real_server).exit_code == 0
    assert list(local.glob("*.seg")) == []


def test_send_without_a_server(run_cli, home, local):
    """It says so, for each target, exits with 1 and keeps everything."""
    leave(local, 0).close()
    unknown = spool_directory(home, "http://lost.test/api")
    leave(unknown, 0).close()
    result = run_cli("spool", "send")
    assert result.exit_code == 1
    assert "runlog server start" in result.stderr
    assert "--url" in result.stderr
    assert len(list(local.glob("*.seg"))) == len(list(unknown.glob("*.seg"))) == 1


def test_a_server_that_fails(run_cli, home, monkeypatch):
    """The rest waits, the reason is told, and the exit code is 1."""
    url = "http://127.0.0.1:9/api"
    monkeypatch.setattr("runlog.delivery.sending.ATTEMPTS", 1)
    directory = spool_directory(home, url)
    remember_target(directory, url)
    leave(directory, 0).close()
    result = run_cli("spool", "send")
    assert result.exit_code == 1
    assert "the rest waits: " in result.stderr
    assert len(list(directory.glob("*.seg"))) == 1


def test_an_unknown_target(run_cli, local):
    """The targets that there are, are named."""
    leave(local, 0).close()
    result = run_cli("spool", "inspect", "--target", "locl")
    assert result.exit_code == 2
    assert "which has: local" in result.stderr


def test_the_key_goes_to_its_own_server_only(run_cli, home, monkeypatch):
    """A server that some program used once does not get the key of the one in the settings."""
    monkeypatch.setenv("PREFECT_API_URL", "http://mine.test/api")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_0123456789")
    reset_settings_cache()
    seen = {}

    class Recorded(InMemoryTransport):
        def __init__(self, api_url, *, home, headers):
            super().__init__(target=api_url)
            seen[api_url] = headers

    monkeypatch.setattr("runlog.delivery.transport.HTTPTransport", Recorded)
    for url in ("http://mine.test/api", "http://other.test/api"):
        remember_target(spool_directory(home, url), url)
        leave(spool_directory(home, url), 0).close()
    assert run_cli("spool", "send").exit_code == 0
    assert seen == {
        "http://mine.test/api": {"Authorization": "Bearer pnu_0123456789"},
        "http://other.test/api": None,
    }


def test_a_refused_line_becomes_a_dead_letter(local):
    """The others are sent."""
    leave(local, 0, 1).close()
    no = Answer(422, detail="HTTP 422 odd")
    sent = send_spool(local, transport := InMemoryTransport(answers=[no, no, no]))
    assert (sent.lines, sent.refused, sent.is_done) == (1, 1, True)
    assert transport.messages == ["line 1"]


def test_progress_is_told_batch_by_batch(local, monkeypatch):
    """A long segment moves it more than once, and in the end it is as long as the files were."""
    monkeypatch.setattr("runlog.delivery.sending.MAX_BATCH_BYTES", 3 * len(text(10)))
    leave(local, *range(10, 22), first=0).close()
    leave(local, *range(10, 13), producer=OTHER, first=0).close()
    total = sum(file.size_bytes for file in segments(local))
    steps = []
    assert send_spool(local, InMemoryTransport(), progress=steps.append).is_done
    assert sum(steps) == total
    assert len([step for step in steps if step]) > 3
    assert min(steps) >= 0


def test_what_a_crash_left_unfinished_is_deleted(local):
    """Old files that nobody holds go; young ones, those of a living process and other files stay."""
    make_private_directory(local)
    names = [str(SegmentName(PRODUCER, number)).replace(".seg", ".new") for number in range(3)]
    paths = [local / name for name in (*names, "notes.new")]
    for path in paths:
        path.touch(mode=0o600)
    for path in (paths[0], *paths[2:]):
        os.utime(path, (1, 1))
    with paths[2].open("rb+") as held:
        assert lock_file(held.fileno())
        assert remove_unfinished(local) == 1
    assert sorted(local.iterdir()) == sorted(paths[1:])
    send_spool(local, InMemoryTransport())
    assert sorted(local.iterdir()) == sorted([paths[1], paths[3]])
    assert remove_unfinished(local / "missing") == 0


def test_waiting_lines_are_counted(local):
    """All or from a seq on, with the time of the oldest; what takes too long is cut short."""
    leave(local, 1, 2, 3).close()
    leave(local, 0, 9, producer=OTHER).close()
    assert count_waiting(local, timeout=60) == (5, 1_795_258_800_000_000_000, True)
    assert count_waiting(local, first_seqs={PRODUCER: 2}, timeout=60) == (
        2,
        1_795_258_800_000_000_002,
        True,
    )
    leave(local, *range(10, 1200)).close()
    assert count_waiting(local, timeout=-1)[::2] == (1000, False)
    assert count_waiting(local / "missing", timeout=60) == (0, None, True)


def test_what_living_processes_wrote_is_copied(local, real_server):
    """It is sent, it stays, and its owner's own sending doubles nothing."""
    owner = leave(local, 0, 1, producer=OTHER)
    transport = HTTPTransport(real_server)
    for _ in range(2):
        assert send_spool(local, transport, live=True).is_done
    assert owner.path.exists()
    owner.append(2, EVENT, text(2))
    owner.close()
    send_spool(local, transport)
    transport.close()
    with LogReader(real_server) as reader:
        found = [log["message"] for log in reader.logs(logger="job")]
    assert found == ["line 0", "line 1", "line 2"]
    assert not owner.path.exists()


def test_a_hole_ends_a_copy(local):
    """The owner may hold what is missing in memory: it is not given up for lost."""
    first, second = leave(local, 0), leave(local, 2)
    transport = InMemoryTransport()
    send_spool(local, transport, live=True)
    assert transport.messages == ["line 0"]
    assert transport.next_seqs == {PRODUCER: 1}
    first.remove()
    send_spool(local, transport, live=True)
    assert transport.next_seqs == {PRODUCER: 1}
    second.close()


def test_a_producers_segments_are_adopted_together(local):
    """Whoever gets the later one alone leaves it: the earlier one is not lost, but on its way."""
    first, second = leave(local, 0), leave(local, 1)
    second.close()
    transport = InMemoryTransport()
    assert send_spool(local, transport).lines == 0
    first.close()
    assert send_spool(local, transport).lines == 2
    assert transport.messages == ["line 0", "line 1"]


def test_a_forged_address_is_not_believed(home):
    """The directory's name proves the address."""
    directory = spool_directory(home, "http://mine.test/api")
    remember_target(directory, "http://mine.test/api")
    assert remembered_target(directory) == "http://mine.test/api"
    (directory / "target.json").write_text('{"api_url": "http://evil.test/api"}')
    assert remembered_target(directory) is None
