"""With durability ``sync``, what was logged survives a power cut once it is said to: the calls that see to it."""

from __future__ import annotations

import os
import threading

import pytest
from mortal_files import MortalFiles

from runlog.delivery import spool_queue, worker
from runlog.delivery.retry import Answer, Backoff
from runlog.delivery.transport import InMemoryTransport
from runlog.delivery.worker import DeliveryWorker, Limits

pytestmark = pytest.mark.skipif(os.name != "posix", reason="drives the file calls of POSIX systems")

WAIT = 20.0
"""Seconds after which a test that waits for a thread has failed."""

REST = 0.2
"""Seconds, many times the interval, after which the thread has looked once more, found nothing, and rests."""

INTERVAL = 0.01
"""The interval of these tests, in seconds, in place of half a second."""


def event(text):
    return b'{"timestamp_ns":0,"level":20,"name":"n","message":"%s"}' % text.encode()


class SilentTransport(InMemoryTransport):
    """Takes a batch and does not answer until it is let."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def send(self, producer, batch, *, timeout):
        self.reached.set()
        assert self.go_on.wait(WAIT)
        return super().send(producer, batch, timeout=timeout)


@pytest.fixture
def spool(tmp_path):
    """A directory that exists, and whose name a power cut does not touch."""
    directory = tmp_path / "spool"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def files(tmp_path, make_worker):
    with MortalFiles(tmp_path) as files:
        yield files
        make_worker.close()


@pytest.fixture
def make_worker(spool, monkeypatch):
    """Workers whose thread has ended when the test has, and before the calls are what they were."""
    monkeypatch.setattr(worker, "SYNC_INTERVAL", INTERVAL)
    made = []

    def make(transport=None, *, directory=spool, **limits):
        made.append(
            DeliveryWorker(
                transport or InMemoryTransport(),
                Limits(durability="sync", **({"batch_interval": 3600} | limits)),
                spool=directory,
                backoff=Backoff(3600, 3600),
                report=lambda text: None,
            )
        )
        return made[-1]

    def close():
        while made:
            made.pop().close(0)

    make.close = close
    yield make
    close()


def test_a_flush_covers_all_before_it(files, make_worker):
    """Once a flush has returned, no byte that was logged before it waits for a sync, nor does the file's name."""
    worker = make_worker()
    for number in range(3):
        for line in range(20):
            worker.put(event(f"{number} {line}"))
        assert worker.flush(WAIT)
        assert files.unsynced == set()
    assert {call.path for call in files.calls if call.name in {"fsync", "fdatasync"}} >= {"spool"}


def test_a_flush_in_vain_covers_all_before_it(files, make_worker):
    """If no server takes the lines, the flush is not confirmed, but they are safe from a power cut all the same."""
    worker = make_worker(InMemoryTransport(answers=[Answer(500)] * 99))
    for line in range(20):
        worker.put(event(str(line)))
    assert not worker.flush(0.05)
    assert files.wait_until_synced(WAIT)


def test_without_a_server_a_flush_covers_all_before_it(files, make_worker):
    """Nor does it take a server to sync."""
    worker = make_worker(InMemoryTransport(target=None))
    for line in range(20):
        worker.put(event(str(line)), background=False)
    assert not worker.flush(0)
    assert files.unsynced == set()


def test_every_segment_is_covered(files, make_worker, monkeypatch):
    """Segments that are full, and not written any more, are synced as the last one is, and so are their names."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 300)
    worker = make_worker(InMemoryTransport(answers=[Answer(500)] * 99))
    for line in range(20):
        worker.put(event(str(line)))
    assert len([call for call in files.calls if call.name == "rename"]) > 3
    assert not worker.flush(0.05)
    assert files.wait_until_synced(WAIT)


def test_the_first_line_is_covered_without_a_flush(files, make_worker):
    """A line that was logged is synced by itself."""
    worker = make_worker()
    worker.put(event("a"))
    assert files.wait_until_synced(WAIT)


def _is_covered_later(files, worker):
    """Whether a line that is logged while the thread has nothing to do is synced by itself."""
    assert files.wait_until_synced(WAIT)
    threading.Event().wait(REST)
    worker.put(event("later"))
    return files.wait_until_synced(WAIT)


def test_a_later_line_is_covered_without_a_flush(files, make_worker):
    """A line that joins others which wait is synced within the interval, not when the batch is due."""
    worker = make_worker()
    worker.put(event("a"))
    assert _is_covered_later(files, worker)


def test_a_line_is_covered_while_the_server_is_away(files, make_worker):
    """A line that is logged between two tries is synced within the interval."""
    worker = make_worker(InMemoryTransport(answers=[Answer(500)] * 99), batch_interval=0)
    worker.put(event("a"))
    assert _is_covered_later(files, worker), "the first that waits wakes the thread"
    assert _is_covered_later(files, worker), "the second does not"


def test_a_line_is_covered_while_the_server_does_not_answer(files, make_worker):
    """A line that is logged while a request is under way is synced within the interval."""
    transport = SilentTransport()
    worker = make_worker(transport, batch_interval=0)
    try:
        worker.put(event("a"))
        assert transport.reached.wait(WAIT)
        worker.put(event("b"))
        assert files.wait_until_synced(WAIT)
    finally:
        transport.go_on.set()


def test_new_directories_are_covered(files, make_worker, tmp_path):
    """A segment in a directory that was just made is not lost with the name of the directory."""
    worker = make_worker(directory=tmp_path / "home" / "spool" / "local")
    worker.put(event("a"))
    worker.flush(WAIT)
    assert files.unsynced == set()
