"""A queue that is full: what is dropped is counted, marked at its place and told, and no call waits longer than it may."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import uuid

import pytest
from counting import stored_in

from runlog.client import LogReader
from runlog.delivery import DeliveryWorker, HTTPTransport, InMemoryTransport, Limits, spool_queue
from runlog.delivery.retry import Backoff
from runlog.server.app import BackgroundServer

LINES = 300
"""Of some 250 bytes: five times of what there is room for."""

ROOM_BYTES = 15_000

BLOCK_TIMEOUT = 0.1

FLUSH = 30.0
"""Seconds for what takes one or two, on a machine that is busy."""

POLICIES = pytest.mark.parametrize("when_full", ["block", "drop_newest", "drop_oldest"])
DURABILITIES = pytest.mark.parametrize("durability", ["spool", "memory"])


def event(run, number):
    return (
        b'{"timestamp_ns":%d,"level":20,"name":"n","flow_run_id":"%s","message":"line %d","attributes":{"x":"%s"}}'
        % (10**18 + number, str(run).encode(), number, b"x" * 100)
    )


@pytest.fixture
def make_worker(tmp_path, monkeypatch):
    """Workers with little room, whose thread has ended when the test has."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 3000)
    with contextlib.ExitStack() as made:

        def make(transport, *, durability, when_full, **options):
            limits = Limits(
                durability=durability,
                when_full=when_full,
                max_queue_bytes=ROOM_BYTES,
                max_spool_bytes=ROOM_BYTES,
                max_batch_bytes=2000,
                block_timeout=options.pop("block_timeout", BLOCK_TIMEOUT),
            )
            worker = DeliveryWorker(
                transport,
                limits,
                spool=tmp_path / "spool",
                backoff=Backoff(0.01, 0.05),
                report=options.pop("report", lambda text: None),
                **options,
            )
            made.callback(worker.close, 0)
            return worker

        yield make


def drops_in(database):
    """Reason by seq."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT seq, count, reason FROM drops").fetchall()
    return {first + number: reason for first, count, reason in rows for number in range(count)}


@POLICIES
@DURABILITIES
def test_a_server_that_comes_later(make_worker, tmp_path, database, when_full, durability):
    """What was logged is stored, or marked at its place with the reason; program, database and receipt agree."""
    run, reports = uuid.uuid4(), []
    worker = make_worker(
        HTTPTransport(None, home=tmp_path),
        durability=durability,
        when_full=when_full,
        block_timeout=0.01,
        report=reports.append,
    )
    taken = [worker.put(event(run, number)) for number in range(LINES)]
    with BackgroundServer(str(database), home=tmp_path) as server:
        assert worker.flush(FLUSH)
        taken += [worker.put(event(run, LINES))]
        assert worker.flush(FLUSH)
        with LogReader(server.url) as reader:
            receipt = reader.receipt(str(run))
    reason = "spool_full" if durability == "spool" else "queue_full"
    statistics = worker.statistics()
    drops = drops_in(database)
    stored = stored_in(database).lines
    assert len(drops) > LINES / 2
    assert set(drops.values()) == {reason}
    assert statistics["dropped"] == {reason: len(drops)}
    assert len(stored) + len(drops) == LINES + 1
    assert [line.message for line in stored] == [f"line {line.seq}" for line in stored]
    assert sorted([line.seq for line in stored] + list(drops)) == list(range(LINES + 1))
    if when_full == "drop_oldest":
        assert all(taken)
        assert sorted(drops) == list(range(min(drops), min(drops) + len(drops))), "the oldest give way"
        assert statistics["accepted"] == LINES + 1
    else:
        assert sorted(drops) == [number for number, was_taken in enumerate(taken) if not was_taken]
        assert statistics["accepted"] == len(stored)
    assert (receipt["stored"], receipt["dropped_at_most"]) == (len(stored), len(drops))
    assert (receipt["missing"], receipt["complete"]) == (0, False)
    assert len([text for text in reports if "is full" in text]) == 1


class SilentTransport(InMemoryTransport):
    """A server that takes a batch and does not answer until it is let."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def send(self, producer, batch, *, timeout):
        assert self.go_on.wait(FLUSH)
        return super().send(producer, batch, timeout=timeout)


class VirtualWaits:
    """
    A clock that only the waits of this thread move: they take no time, and are noted.

    A context manager: other threads wait as ever.
    """

    def __init__(self):
        self.now = 1000.0
        self.waits = []

    def clock(self):
        return self.now

    def __enter__(self):
        own, real = threading.get_ident(), threading.Condition.wait

        def wait(condition, timeout=None):
            if threading.get_ident() != own:
                return real(condition, timeout)
            assert timeout is not None, "a wait without an end"
            self.waits.append(timeout)
            self.now += timeout
            return False

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(threading.Condition, "wait", wait)
        return self

    def __exit__(self, *_):
        self._patch.undo()


@pytest.fixture
def make_slow(make_worker):
    """Workers of a server that is there and does not answer; they end with the test."""
    with contextlib.ExitStack() as made:

        def make(durability, when_full):
            transport, virtual = SilentTransport(), VirtualWaits()
            worker = make_worker(transport, durability=durability, when_full=when_full, clock=virtual.clock)
            made.callback(transport.go_on.set)
            assert worker.put(event(uuid.uuid4(), 0))  # starts the thread, which may be waited for
            return worker, virtual

        yield make


def overfill(worker, virtual):
    """Log more than there is room for; returns what each call returned, how long it waited, and how often."""
    run, calls = uuid.uuid4(), []
    for number in range(LINES):
        before, earlier = virtual.now, len(virtual.waits)
        taken = worker.put(event(run, number))
        calls.append((taken, virtual.now - before, len(virtual.waits) - earlier))
    return calls


@POLICIES
@DURABILITIES
def test_no_call_waits_longer_than_it_may(make_slow, when_full, durability):
    """A call that finds no room waits for ``block_timeout`` at most, and with the other policies not at all."""
    worker, virtual = make_slow(durability, when_full)
    with virtual:
        calls = overfill(worker, virtual)
    refused = [call for call in calls if not call[0]]
    if when_full == "drop_oldest":
        assert not refused
    else:
        assert len(refused) > LINES / 2
    allowed = BLOCK_TIMEOUT if when_full == "block" else 0.0
    assert max(waited for _, waited, _ in calls) <= allowed + 1e-6
    if when_full == "block":
        assert min(waited for _, waited, _ in refused) >= BLOCK_TIMEOUT - 1e-6


@POLICIES
@DURABILITIES
def test_no_call_waits_in_an_event_loop(make_slow, when_full, durability):
    """Inside a running event loop no call waits at all, whatever the policy."""
    worker, virtual = make_slow(durability, when_full)

    async def log():
        return overfill(worker, virtual)

    with virtual:
        calls = asyncio.run(log())
    assert [call for call in calls if call[1:] != (0.0, 0)] == []
    assert worker.statistics()["dropped"]
