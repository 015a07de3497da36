"""Followers of a server that is killed and started again and again get all that is stored, once and in order."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from server_lines import line
from streaming import Events, Sender, Socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from runlog._http import Client, HTTPError

SCRIPT = Path(__file__).with_name("serve_until_killed.py")
PRODUCERS = 3
TIME_LIMIT = 60

GONE = (OSError, HTTPError, ConnectionClosed, InvalidHandshake, InvalidMessage, EOFError, StopIteration)
"""What a client meets whose server was killed."""


class KilledServer:
    """A server process, on the same database each time and at another address."""

    def __init__(self, tmp_path):
        self.arguments = [sys.executable, str(SCRIPT), str(tmp_path / "runlog.db"), str(tmp_path / "home")]
        self.url = None
        self.process = None
        self.is_over = False
        self._changed = threading.Condition()

    def start(self):
        process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE, text=True)
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        with self._changed:
            self.process, self.url = process, url
            self._changed.notify_all()

    def kill(self):
        with self._changed:
            self.url = None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def address(self):
        """Wait for a server that runs; `None` once all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.url is not None or self.is_over, TIME_LIMIT)
            return self.url

    def end(self):
        with self._changed:
            self.is_over = True
            self._changed.notify_all()


class Writer(threading.Thread):
    """A producer that sends each batch until it is acknowledged, and then the next one."""

    def __init__(self, server, number, acknowledged):
        super().__init__(name=f"writer-{number}")
        self.server = server
        self.producer = f"{number:020x}"
        self.random = random.Random(number)
        self.acknowledged = acknowledged
        self.stop = threading.Event()

    def run(self):
        next_seq, count = 0, 0
        while not self.stop.is_set() and (url := self.server.address()) is not None:
            try:
                with Sender(url, self.producer) as sender:
                    sender.next_seq = next_seq
                    while not self.stop.is_set():
                        count = count or self.random.randint(1, 40)
                        first = sender.next_seq
                        sender.send(*(line(str(first + n), at=-first - n) for n in range(count)))
                        next_seq, count = sender.next_seq, 0
                        self.acknowledged.release()
            except GONE:
                continue


class Reader(threading.Thread):
    """Follows, and comes back with its last cursor whenever it is cut off."""

    def __init__(self, server):
        super().__init__(name=type(self).__name__)
        self.server = server
        self.cursor = None
        self.received = []
        self.gaps = 0
        self.last = None  # the line after which all was seen
        self.arrived = threading.Condition()

    def run(self):
        while (url := self.server.address()) is not None:
            try:
                self.follow(url)
            except GONE:
                continue

    def take(self, log, cursor):
        self.cursor = cursor
        with self.arrived:
            self.received.append((log["producer"], log["seq"]))
            self.arrived.notify_all()


class SocketReader(Reader):
    def follow(self, url):
        with Socket(url, cursor=self.cursor, since=0, heartbeat=1) as client:
            while True:
                message = client.receive()
                if message["type"] == "log":
                    self.take(message["log"], message["cursor"])
                else:
                    self.gaps += message["type"] == "gap"
                    self.cursor = message["cursor"]


class EventReader(Reader):
    def follow(self, url):
        with Events(url, last_event_id=self.cursor, since=0, heartbeat=1) as client:
            while True:
                block = client.next()
                if block.get("event") == "log":
                    self.take(json.loads(block["data"]), block["id"])
                else:
                    self.gaps += block.get("event") == "gap"
                    self.cursor = block["id"] or self.cursor


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(100, marks=pytest.mark.soak)], ids=["10 rounds", "100 rounds"]
)
def test_what_is_received_is_what_is_stored(tmp_path, rounds):
    """Nothing is missing, nothing comes twice, and each producer's lines come in their order."""
    server = KilledServer(tmp_path)
    acknowledged = threading.Semaphore(0)
    writers = [Writer(server, number, acknowledged) for number in range(PRODUCERS)]
    readers = [SocketReader(server), EventReader(server), SocketReader(server)]
    chance = random.Random(rounds)
    server.start()
    try:
        for thread in (*writers, *readers):
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
        stored = read_all(server.url)
        for reader in readers:
            with reader.arrived:
                reader.arrived.wait_for(lambda found=reader.received: len(found) >= len(stored), TIME_LIMIT)
    finally:
        server.end()
        for writer in writers:
            writer.stop.set()
        server.kill()
        for thread in (*writers, *readers):
            thread.join(TIME_LIMIT)
    for reader in readers:
        assert len(reader.received) == len(stored)
        assert sorted(reader.received) == sorted(stored)
        for number in range(PRODUCERS):
            seqs = [seq for producer, seq in reader.received if producer == f"{number:020x}"]
            assert seqs == list(range(len(seqs)))
    assert len(stored) > rounds


def read_all(url):
    found, cursor = [], None
    with Client(base_url=url) as client:
        while True:
            parameters = {"limit": 10_000, **({"cursor": cursor} if cursor else {})}
            page = client.get("/runlog/v1/logs", params=parameters).json()
            found += [(log["producer"], log["seq"]) for log in page["logs"]]
            cursor = page["next"]
            if cursor is None:
                return found
