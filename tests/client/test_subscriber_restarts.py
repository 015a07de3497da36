"""Subscribers to a server that is killed and started again and again get all that is stored, once and in order."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from live_servers import Sender, line

from runlog._http import HTTPError
from runlog.client import LogReader, LogsSubscriber, SyncLogsSubscriber
from runlog.client.connecting import Door
from runlog.client.following import Wish
from runlog.discovery import find_local_server
from runlog.exceptions import APIError

PRODUCERS = 3
TIME_LIMIT = 60


class KilledServer:
    """``runlog server start``, on the same database each time."""

    def __init__(self, home):
        self.home = home
        self.url = None
        self.is_over = False
        self._port = 0
        self._changed = threading.Condition()

    def start(self):
        command = [sys.executable, "-m", "runlog", "server", "start", "--port", str(self._port)]
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | {"RUNLOG_HOME": str(self.home)}, **output)
        deadline = time.monotonic() + TIME_LIMIT
        while (found := find_local_server(self.home)) is None or found.pid != self.process.pid:
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        self._port = int(found.url.rpartition(":")[2].partition("/")[0])
        with self._changed:
            self.url = found.url
            self._changed.notify_all()

    def kill(self):
        with self._changed:
            self.url = None
        self.process.kill()
        self.process.wait()

    def address(self):
        """Wait for a server that runs; `None` once all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.url is not None or self.is_over, TIME_LIMIT)
            return None if self.is_over else self.url

    def end(self):
        with self._changed:
            self.is_over = True
            self._changed.notify_all()


class Writer(threading.Thread):
    """A producer that sends each batch until it is acknowledged, and then the next one."""

    def __init__(self, server, number, acknowledged):
        super().__init__(name=f"writer-{number}")
        self.server, self.producer = server, f"{number:020x}"
        self.random, self.acknowledged = random.Random(number), acknowledged
        self.stop = threading.Event()

    def run(self):
        next_seq, count = 0, 0
        while not self.stop.is_set() and (url := self.server.address()) is not None:
            try:
                with Sender(url, self.producer) as sender:
                    sender.next_seq = next_seq
                    while not self.stop.is_set():
                        # The same batch again, if it is not known whether it is stored.
                        count = count or self.random.randint(1, 40)
                        sender.send(*(line(f"{next_seq + n}", at=-next_seq - n) for n in range(count)))
                        next_seq, count = sender.next_seq, 0
                        self.acknowledged.release()
            except (OSError, HTTPError):
                continue


class Follower(threading.Thread):
    """Iterates a subscriber from the first line on, until it is stopped."""

    def __init__(self, server, **wish):
        super().__init__(name=type(self).__name__)
        self.server, self.wish = server, wish
        self.received, self.error = [], None
        self.arrived = threading.Condition()

    def subscriber(self):
        # The local server has another token each time; the address stays.
        return LogsSubscriber(
            Door(self.server.home, None),
            Wish(**self.wish),
            reconnection_attempts=1000,
            heartbeat=1,
            pause=lambda _attempt: 0.05,
        )

    def run(self):
        try:
            self.follow()
        except APIError as error:
            self.error = error

    def take(self, each):
        with self.arrived:
            self.received.append((each.producer, each.seq))
            self.arrived.notify_all()

    def wait_for(self, count):
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.received) >= count, TIME_LIMIT)


class AsyncFollower(Follower):
    def follow(self):
        asyncio.run(self._follow())

    async def _follow(self):
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            async with self.subscriber() as following:
                async for each in following:
                    self.take(each)
        except asyncio.CancelledError:
            pass

    def stop(self):
        self.loop.call_soon_threadsafe(self.task.cancel)


class SyncFollower(Follower):
    def follow(self):
        with SyncLogsSubscriber(self.subscriber()) as self.following:
            for each in self.following:
                self.take(each)

    def stop(self):
        self.following.close()


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(100, marks=pytest.mark.soak)], ids=["10 rounds", "100 rounds"]
)
def test_what_is_received_is_what_is_stored(tmp_path, rounds):
    """Nothing is missing, nothing comes twice, and each producer's lines come in their order."""
    server = KilledServer(tmp_path / "home")
    acknowledged = threading.Semaphore(0)
    writers = [Writer(server, number, acknowledged) for number in range(PRODUCERS)]
    since = datetime(2000, 1, 1, tzinfo=UTC)
    followers = [AsyncFollower(server, since=since), SyncFollower(server, since=since)]
    chance = random.Random(rounds)
    server.start()
    try:
        for thread in (*followers, *writers):
            thread.start()
        for _ in range(rounds):
            for _ in range(chance.randint(1, 30)):
                assert acknowledged.acquire(timeout=TIME_LIMIT)
            server.kill()
            server.start()
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(TIME_LIMIT)
        with LogReader(server.url) as reader:
            stored = [(each["producer"], each["seq"]) for each in reader.logs()]
        came = [follower.wait_for(len(stored)) for follower in followers]
    finally:
        server.end()
        for thread in (*writers, *followers):
            thread.stop.set() if isinstance(thread, Writer) else thread.stop()
        for thread in (*writers, *followers):
            thread.join(TIME_LIMIT)
        server.kill()
    for follower in followers:
        assert follower.error is None
        assert len(follower.received) == len(stored)
        assert sorted(follower.received) == sorted(stored)
        for number in range(PRODUCERS):
            seqs = [seq for producer, seq in follower.received if producer == f"{number:020x}"]
            assert seqs == list(range(len(seqs)))
    assert came == [True, True]
    assert len(stored) > rounds
    print(f"{rounds} rounds: {len(stored)} lines stored, {len(stored)} received by each")
