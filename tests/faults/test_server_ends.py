"""Servers that stop, are killed, and come back on the same database: nothing lost, doubled or reordered."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from counting import stored_in
from producers import Group

from runlog.server.app import BackgroundServer

FLUSH = 30.0
"""Seconds for what takes one or two, on a machine that is busy."""

QUEUE_BYTES = 16 * 1024 * 1024
"""The default of ``RUNLOG_DELIVERY_MAX_QUEUE_BYTES``."""

STARTED = "log server at"
"""What ``runlog server start`` writes once it answers requests."""


@pytest.fixture
def port():
    """
    A free port that stays free while no server has it.

    It is below the range from which systems give out ports by themselves, to
    other tests among others.
    """
    for number in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", number))
                return number
    raise AssertionError("no free port among a hundred")


class ServerProcess:
    """``runlog server start`` in a process of its own, on one port and one database all the time."""

    def __init__(self, port, database):
        self._command = [sys.executable, "-m", "runlog", "server", "start"]
        self._command += ["--port", str(port), "--database", str(database)]
        self.url = f"http://127.0.0.1:{port}/api"
        self._start()

    def _start(self):
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        line = self._process.stderr.readline()
        assert STARTED in line, line + self._process.stderr.read()
        # What it says later is of no interest, but a pipe that nobody reads fills up and stops it.
        self._reader = threading.Thread(target=self._process.stderr.read)
        self._reader.start()

    def run_for(self, seconds):
        """Let it serve; fails if it ends by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the server ended with {self._process.wait(seconds)}")

    def kill_and_restart(self):
        self._end(signal.SIGKILL)
        self._start()

    def stop(self):
        return self._end(signal.SIGTERM)

    def _end(self, number):
        with self._process:
            self._process.send_signal(number)
            self._reader.join()
        return self._process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end(signal.SIGKILL)


def test_a_server_that_is_away_for_a_while(port, database, start_producers):
    """Lines logged before, while and after a server is away are stored, once and in order."""
    with BackgroundServer(str(database), port=port) as server:
        producers = start_producers(server.url)
        producers.ask("log", lines=300)
        producers.flush(FLUSH)
    producers.ask("log", lines=300)
    assert producers.ask("flush", timeout=0.05) == [False, False, False]
    with BackgroundServer(str(database), port=port):
        producers.ask("log", lines=300)
        producers.flush(FLUSH)
        producers.end()
    result = producers.count(stored_in(database))
    assert (result.sent, result.stored) == (2700, 2700)
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)


def test_a_server_that_is_away_to_the_end(port, database, start_producers):
    """Lines of programs that end while the server is away are sent by the programs after them."""
    url = f"http://127.0.0.1:{port}/api"
    first = start_producers(url, RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT="0.5")
    first.ask("log", lines=1000)
    before = time.monotonic()
    first.end()
    assert time.monotonic() - before < 10
    programs = first.producers[:]
    with BackgroundServer(str(database), port=port):
        # A program waits at its end for its own lines only, so that short ones take turns.
        for number in range(20):
            later = start_producers(url, number=1)
            later.ask("log", lines=1)
            later.flush(FLUSH)
            later.end()
            programs += later.producers
            if len(stored_in(database).lines) == 3000 + number + 1:
                break
    result = Group(programs).count(stored_in(database))
    print(f"away to the end: {result}; {number + 1} later programs")
    assert (result.sent, result.stored) == (3000 + number + 1, 3000 + number + 1)
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)


def _kill_loop(port, database, start_producers, *, kills, shortest, longest, seed, deadline):
    """Kill a server again and again while three producers log all the time; count."""
    lives = random.Random(seed)
    with ServerProcess(port, database) as server:
        producers = start_producers(server.url, send_timeout=2.0, deadline=deadline)
        producers.ask("log", lines=100)  # so that each has loaded what it needs to send
        producers.flush(FLUSH)
        peaks = [report["peak_bytes"] for report in producers.ask("report")]
        producers.post("chatter", pause=0.002)
        for _ in range(kills):
            server.run_for(lives.uniform(shortest, longest))
            server.kill_and_restart()
        producers.post("flush", timeout=FLUSH)  # ends the chatter
        producers.answers()
        assert all(producers.answers()), "not all lines were acknowledged in time"
        producers.end()
        assert server.stop() == 0
    result = producers.count(stored_in(database))
    grown = [p.report["peak_bytes"] - before for p, before in zip(producers.producers, peaks, strict=True)]
    print(f"{kills} kills: {result}; {producers.timing}; grown by {[g >> 20 for g in grown]} MiB")
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)
    assert producers.dropped == 0
    assert max(grown) <= QUEUE_BYTES + 20 * 1024 * 1024


def test_a_server_that_is_killed_again_and_again(port, database, start_producers):
    """What a killed server acknowledged is in its database, which is whole; the rest is sent again."""
    _kill_loop(port, database, start_producers, kills=6, shortest=0.3, longest=1.0, seed=7, deadline=120)


@pytest.mark.soak
def test_a_server_that_is_killed_for_two_minutes(port, database, start_producers):
    """The same for two minutes, with lives of one to five seconds."""
    _kill_loop(port, database, start_producers, kills=36, shortest=1.0, longest=5.0, seed=8, deadline=600)
