"""
How many lines a second a server takes in, over HTTP, with all that it does on: marks, runs, indexes, streams.

The server is a process of its own, with a database on disk and every default.
This program posts batches that were encoded before the clock starts, over a few
connections, as as many producers would; what is counted is what the server
acknowledged, and in the end what it says that it has stored. Sizes take turns,
round after round, on one database that grows; a figure is the median of its
rounds. With ``--subscribers``, as many live streams follow everything meanwhile,
in processes of their own.

    python benchmarks/ingest.py [--sizes 200 1000 3000 10000] [--lines 60000] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from runlog.discovery import find_local_server
from runlog.records import EventBatch, LogEvent, new_producer_id

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLLOW = """
import sys, httpx
with httpx.stream("GET", sys.argv[1] + "/runlog/v1/logs/stream", timeout=None) as answer:
    print("following", flush=True)
    for _ in answer.iter_raw():
        pass
"""


def bodies(size: int, lines: int) -> list[bytes]:
    """Return the batches of one producer: lines of a flow run with three task runs, some 300 bytes each."""
    producer, flow_run = new_producer_id(), str(uuid.uuid4())
    tasks = [str(uuid.uuid4()) for _ in range(3)]
    now = time.time_ns()
    encoded = []
    for first_seq in range(0, lines, size):
        events = [
            LogEvent(
                timestamp_ns=now + seq * 10_000,
                level=20 if seq % 50 else 30,
                name="runlog.task_runs",
                message=f"loaded {seq} rows of table orders in {seq % 97} ms",
                flow_run_id=flow_run,
                flow_run_name="sandy-egret",
                flow_name="etl",
                task_run_id=tasks[seq % 3],
                task_run_name=f"load-{seq % 3}",
                task_name="load",
                attributes={"code.file.path": "/srv/etl/load.py", "code.line.number": 17, "table": "orders"},
            )
            for seq in range(first_seq, min(first_seq + size, lines))
        ]
        batch = EventBatch(
            producer=producer, first_seq=first_seq, events=events, resource={"service.name": "etl"}
        )
        encoded.append(msgspec.json.encode(batch))
    return encoded


def post(url: str, series: list[list[bytes]]) -> float:
    """Post each series over a connection of its own, at the same time; return the seconds it took."""
    failures: list[Any] = []

    def work(batches: list[bytes], client: httpx.Client) -> None:
        for body in batches:
            answer = client.post(
                f"{url}/runlog/v1/batches", content=body, headers={"Content-Type": "application/json"}
            )
            if answer.status_code != 200:
                failures.append(answer.text)
                return

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(timeout=60)) for _ in series]
        for client in clients:
            client.get(f"{url}/health")
        threads = [
            threading.Thread(target=work, args=(batches, client))
            for batches, client in zip(series, clients, strict=True)
        ]
        before = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - before
    if failures:
        raise SystemExit(f"the server refused a batch: {failures[0]}")
    return took


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a server with a home of its own, and yield its address."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "RUNLOG_HOME": home}
        command = [sys.executable, "-m", "runlog", "server", "start", "--port", "0"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            process.stderr.readline()  # it says where it listens
            found = find_local_server(Path(home))
            if found is None:
                raise SystemExit("the server did not start")
            yield found.url
        finally:
            process.terminate()
            process.wait()


def measure(options: argparse.Namespace) -> dict[int, list[float]]:
    """Return the lines a second of each size's rounds."""
    rates: dict[int, list[float]] = {size: [] for size in options.sizes}
    posted = 0
    with server() as url, contextlib.ExitStack() as stack:
        for _ in range(options.subscribers):
            follower = subprocess.Popen([sys.executable, "-c", FOLLOW, url], stdout=subprocess.PIPE)
            stack.callback(follower.wait)
            stack.callback(follower.kill)
            assert follower.stdout is not None
            follower.stdout.readline()
        post(url, [bodies(1000, 20_000)])  # what only the first batches cost
        posted += 20_000
        for _ in range(options.rounds):
            for size in options.sizes:
                share = options.lines // options.connections
                series = [bodies(size, share) for _ in range(options.connections)]
                rates[size].append(share * options.connections / post(url, series))
                posted += share * options.connections
        stored = httpx.get(f"{url}/runlog/v1/logs/counts", timeout=60).json()["lines"]
        if stored != posted:
            raise SystemExit(f"posted {posted} lines, {stored} are stored")
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[200, 1000, 3000, 10_000], help="lines in a batch"
    )
    parser.add_argument(
        "--lines", type=int, default=60_000, help="lines of one round of one size (default 60000)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--connections", type=int, default=2, help="connections at a time (default 2)")
    parser.add_argument(
        "--subscribers", type=int, default=0, help="live streams that follow everything (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    options = parser.parse_args()
    rates = measure(options)
    if options.json:
        print(json.dumps({str(size): found for size, found in rates.items()}))
        return
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {options.connections} connections, "
        f"{options.subscribers} subscribers, median of {options.rounds} rounds\n"
    )
    print("lines in a batch    lines/s      best")
    for size, found in rates.items():
        print(f"{size:16,} {statistics.median(found):10,.0f} {max(found):9,.0f}")


if __name__ == "__main__":
    main()
