"""
Time questions over a store of many lines, and what the index of messages costs.

::

    python benchmarks/search.py --lines 1000000 --directory /tmp/search

Fills a store with batches of 1,000 lines from four producers, waits until all messages are in the
index, and asks a server in a thread over HTTP. A store that is already in the directory is asked
again without filling it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from runlog.records import EventBatch, LogEvent
from runlog.server.app import BackgroundServer
from runlog.server.storage.sqlite import SQLiteStorage

BATCH = 1000
PRODUCERS = 4
START_NS = 1_790_000_000 * 10**9
QUESTIONS = {
    "first 200 lines of a run": {"run": "run-17", "limit": "200"},
    "run:... as an expression": {"query": "run:run-17", "limit": "200"},
    "newest 200 lines": {"order": "desc"},
    "a word that 1 line has": {"query": "needle-in-haystack"},
    "a word that no line has": {"query": "nosuchword"},
    "a word that 1 line in 1,000 has": {"query": "retrying"},
    "a word that every line has": {"query": "rows"},
    "two words, each in many lines": {"query": "orders customers"},
    "two letters that few lines have": {"query": "q9 level>=error"},
    "Prefect's search, one line": {"search": "needle-in-haystack"},
    "attribute, 1 line in 500": {"query": "table=table_17"},
    "attribute that no line has": {"query": "nosuch=1"},
    "number of an attribute": {"query": "rows>99990"},
    "pattern that no line has": {"query": "/xyz[0-9]+q/"},
    "errors of a task": {"query": "task:load level>=error"},
}
COUNTS = {
    "counts, all lines": ("counts", {}),
    "counts by logger": ("counts", {"by": "logger"}),
    "counts of a word that few lines have": ("counts", {"query": "retrying"}),
    "histogram, all lines": ("histogram", {}),
    "histogram of a run": ("histogram", {"run": "run-17"}),
}


def lines(first: int, count: int, words: list[str]) -> list[LogEvent]:
    """Return lines like those of a job that loads tables; which they are depends on *first* alone."""
    chance = random.Random(first)  # noqa: S311 - reproducible lines
    found = []
    for number in range(first, first + count):
        run = number // 1000
        message = (
            f"{chance.choice(words)} {chance.choice(words)} loaded {chance.randrange(10**5)} rows "
            f"from table {chance.choice(words)} in {chance.random():.3f} s, id {chance.getrandbits(48):012x}"
        )
        if number % 1000 == 500:
            message = f"retrying after a time out of host-{chance.randrange(50)}"
        if number == 123_456:
            message = "needle-in-haystack"
        found.append(
            LogEvent(
                timestamp_ns=START_NS + number * 3_000_000,
                level=(20, 20, 20, 20, 10, 10, 30, 20, 20, 40)[chance.randrange(10)],
                name=("app.db", "app.load", "runlog.task_runs")[number % 3],
                message=message,
                flow_run_id=f"run-{run}",
                flow_run_name=f"owl-{run}",
                flow_name="etl",
                task_run_id=f"task-{run}-{number % 5}",
                task_run_name=f"load-{number % 5}",
                task_name=("extract", "load", "check", "clean", "report")[number % 5],
                attributes={
                    "code.file.path": "/srv/app/jobs/load.py",
                    "code.function.name": "load",
                    "code.line.number": number % 300,
                    "thread.name": "MainThread",
                    "thread.id": 140_123_456_789_000,
                    "process.pid": 4242,
                    "table": f"table_{number % 500}",
                    "rows": chance.randrange(10**5),
                },
            )
        )
    return found


async def fill(path: Path, count: int) -> None:
    """Store the lines and wait for the index; print what each takes."""
    chance = random.Random(1)  # noqa: S311 - reproducible words
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["orders", "customers"]
    words += ["".join(chance.choices(letters, k=chance.randrange(3, 10))) for _ in range(2000)]
    storage = SQLiteStorage(path)
    await storage.open()

    async def produce(producer: int) -> None:
        for seq, first in enumerate(range(producer * BATCH, count, PRODUCERS * BATCH)):
            batch = EventBatch(
                producer=f"{producer:020x}", first_seq=seq * BATCH, events=lines(first, BATCH, words)
            )
            await storage.append(batch, observed_ns=time.time_ns())

    begun = time.perf_counter()
    await asyncio.gather(*(produce(producer) for producer in range(PRODUCERS)))
    took = time.perf_counter() - begun
    print(f"stored {count} lines in {took:.1f} s, the making of them included")
    begun = time.perf_counter()
    while indexed(path) < count:  # noqa: ASYNC110 - the thread tells nobody
        await asyncio.sleep(0.2)
    print(f"indexed the rest of them in {time.perf_counter() - begun:.1f} s")
    await storage.close()


def indexed(path: Path) -> int:
    """Return how far the index has come."""
    with sqlite3.connect(path) as connection:
        (upto,) = connection.execute("SELECT upto FROM text_index").fetchone()
    connection.close()
    return int(upto)


def ask(path: Path) -> None:
    """Ask each question some times over HTTP; print median and least."""
    with (
        BackgroundServer(str(path)) as server,
        httpx.Client(base_url=f"{server.url}/runlog/v1", timeout=60) as client,
    ):
        questions = [(name, "/logs", query) for name, query in QUESTIONS.items()]
        questions += [(name, f"/logs/{kind}", query) for name, (kind, query) in COUNTS.items()]
        for name, route, query in questions:
            times = []
            for _ in range(7):
                begun = time.perf_counter()
                response = client.get(route, params=query)
                times.append(time.perf_counter() - begun)
                if sum(times) > 8:
                    break
            answer = response.json()
            what = len(answer["logs"]) if "logs" in answer else answer.get("lines", answer.get("detail", ""))
            median, least = statistics.median(times) * 1000, min(times) * 1000
            print(f"{name:40} {median:9.1f} ms {least:9.1f} ms  {response.status_code}  {what}")


def main() -> None:
    """Fill and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.directory or Path(temporary)) / "runlog.db"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            asyncio.run(fill(path, options.lines))
        size = path.stat().st_size
        print(f"{size / 1e6:.0f} MB, {size / options.lines:.0f} bytes a line")
        ask(path)


if __name__ == "__main__":
    main()
