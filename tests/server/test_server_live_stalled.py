"""Sockets that never read cost those that do nothing, and the server little."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_lines import PRODUCER, line
from streaming import ANY_TIME, Sender, frame, raw_connection

SCRIPT = Path(__file__).with_name("serve_until_killed.py")
BATCH = 250
SENDERS = 4
HEALTHY = 3

GREETING = frame(json.dumps({"type": "auth", "token": None}).encode())
WISH = frame(json.dumps({"type": "filter", "filter": {}}).encode())

_SENT_AT = re.compile(rb'"message":"at (\d+) x*"')


@pytest.fixture
def server(tmp_path):
    """A server process; its address and its process id."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "runlog.db"), str(tmp_path / "home")],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().strip(), process.pid
    process.terminate()
    process.wait()
    process.stdout.close()


def memory_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def open_stream(url):
    sock = raw_connection(url, "prefect")
    sock.sendall(GREETING + WISH)
    return sock


class HealthyReader(threading.Thread):
    """Reads all that comes, as bytes, and notes how old each line is when it comes."""

    def __init__(self, url):
        super().__init__()
        self.sock = open_stream(url)
        self.ages = []

    def run(self):
        rest = b""
        with contextlib.suppress(OSError):
            while data := self.sock.recv(262_144):
                now = time.time_ns()
                rest += data
                end = 0
                for found in _SENT_AT.finditer(rest):
                    self.ages.append(now - int(found[1]))
                    end = found.end()
                rest = rest[end:]


def send_lines(url, producer, *, rate, seconds):
    """Send lines at a rate, each with the time at which it was logged; return how many."""
    begin = time.monotonic()
    sent = 0
    with Sender(url, producer) as sender:
        while sent < rate * seconds:
            at = f"at {time.time_ns()} " + "x" * 80
            sender.send(*(line(at, at=sent, flow_run_id="run") for _ in range(BATCH)))
            sent += BATCH
            time.sleep(max(0.0, begin + sent / rate - time.monotonic()))
    return sent


def wait_for(condition):
    deadline = time.monotonic() + ANY_TIME
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("stalled", "rate", "least_rate", "seconds", "latency_s"),
    [
        # The machine may be busy with other tests: of this one, the lines and the memory count.
        pytest.param(30, 2_000, 200, 2, 5.0, id="30 sockets"),
        pytest.param(300, 10_000, 9_000, 20, 0.25, id="300 sockets", marks=pytest.mark.soak),
    ],
)
def test_sockets_that_never_read_harm_nobody(server, *, stalled, rate, least_rate, seconds, latency_s):
    """Healthy readers get every line, almost all of them soon; the server stays small."""
    url, pid = server
    readers = [HealthyReader(url) for _ in range(HEALTHY)]
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.sock.close)
            reader.start()
        send_lines(url, PRODUCER, rate=1_000, seconds=1)  # so that what is needed once is there
        for reader in readers:
            wait_for(lambda reader=reader: len(reader.ages) == 1_000)
            reader.ages.clear()
        before = memory_bytes(pid)
        for _ in range(stalled):
            stack.enter_context(open_stream(url))
        peak = [before]
        measured = threading.Event()

        def watch():
            while not measured.wait(0.2):
                peak.append(memory_bytes(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            sending = [
                pool.submit(send_lines, url, f"{number:020x}", rate=rate / SENDERS, seconds=seconds)
                for number in range(SENDERS)
            ]
        sent = sum(one.result() for one in sending)
        took = time.monotonic() - begin
        wait_for(lambda: all(len(reader.ages) >= sent for reader in readers))
        measured.set()
        watcher.join()
        for reader in readers:
            reader.sock.shutdown(2)
            reader.join()
    growth = (max(peak) - before) / 2**20
    ages = sorted(age for reader in readers for age in reader.ages)
    p50, p99 = (ages[int(len(ages) * part)] / 1e6 for part in (0.5, 0.99))
    print(
        f"\n{stalled} stalled, {sent / took:,.0f} lines/s: p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
        f"most {ages[-1] / 1e6:.0f} ms; the server grew by {growth:.0f} MiB from {before / 2**20:.0f} MiB"
    )
    assert [len(reader.ages) for reader in readers] == [sent] * HEALTHY
    assert sent / took > least_rate
    assert p99 < latency_s * 1000
    assert growth < 300
