"""
What a log call costs its caller, as a multiple of a bare `logging` call.

The floor is ``logger.info("loaded %d rows", i)`` to a handler that only counts.
Every candidate runs in the same process, in turns with the floor, so that a busy
machine slows both; a figure is the median over the rounds of candidate / floor.
The handler renders, encodes and hands over each record as in production, and its
worker sends batches to a transport that acknowledges them and throws them away:
what the worker takes of the interpreter lock is part of the price. No console.

    python benchmarks/emit.py [--bursts 25] [--calls 2000] [--threads 1 8] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runlog import FlowRunContext, TaskRunContext, delivery, get_run_logger
from runlog.delivery.retry import Answer
from runlog.handlers import APILogHandler

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.delivery import Durability, Limits
    from runlog.delivery.batching import Batch
    from runlog.delivery.producer import Producer
    from runlog.settings import Settings

DURABILITIES: tuple[Durability, ...] = ("memory", "spool", "sync")
FLOOR = "logger.info, counting handler (floor)"


class CountingHandler(logging.Handler):
    """Does the least that a handler can."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - it only counts
        """Count."""
        self.count += 1


class SwallowingTransport:
    """A server that acknowledges everything and keeps nothing."""

    target = "nowhere"
    events = 0

    def send(self, producer: Producer, batch: Batch, *, timeout: float) -> Answer:  # noqa: ARG002 - a protocol's
        """Acknowledge the batch."""
        self.events += len(batch.events)
        return Answer(200, acked=batch.last_seq)

    def close(self) -> None:
        """Have nothing to close."""

    def forget_connections(self) -> None:
        """Have nothing to forget."""


class DurableHandler(APILogHandler):
    """An API handler with a level of durability of its own, whatever the settings say."""

    def __init__(self, durability: Durability) -> None:
        super().__init__(api_url="http://nowhere.invalid/api")
        self.durability = durability

    def _limits(self, settings: Settings) -> Limits:
        return replace(super()._limits(settings), durability=self.durability)


def candidates() -> tuple[dict[str, Callable[[int], None]], list[DurableHandler], SwallowingTransport]:
    """
    Set logging up; return what is measured, the floor first.

    Each candidate takes a number of calls and makes them; it runs inside a flow and a task run.
    """
    plain = logging.getLogger("benchmark")
    plain.handlers = [CountingHandler()]
    plain.propagate = False
    plain.setLevel(logging.INFO)
    four_keys = {"flow_run_id": "a", "flow_run_name": "b", "task_run_id": "c", "task_run_name": "d"}
    adapter = logging.LoggerAdapter(plain, four_keys)

    transport = SwallowingTransport()
    delivery.HTTPTransport = lambda *args, **kwargs: transport  # type: ignore[assignment,misc] # noqa: ARG005
    handlers = []
    for durability in DURABILITIES:
        handler = DurableHandler(durability)
        handlers.append(handler)
        logger = logging.getLogger(f"runlog.task_runs.{durability}")
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)

    def floor(calls: int) -> None:
        for i in range(calls):
            plain.info("loaded %d rows", i)

    def stdlib_adapter(calls: int) -> None:
        for i in range(calls):
            adapter.info("loaded %d rows", i)

    def run_logger(durability: Durability) -> Callable[[int], None]:
        def work(calls: int) -> None:
            logger = get_run_logger().getChild(durability)
            for i in range(calls):
                logger.info("loaded %d rows", i)

        return work

    def run_logger_extra(calls: int) -> None:
        logger = get_run_logger().getChild("spool")
        for i in range(calls):
            logger.info("loaded %d rows", i, extra={"table": "orders", "attempt_ms": i})

    def get_only(calls: int) -> None:
        for _ in range(calls):
            get_run_logger()

    def disabled(calls: int) -> None:
        logger = get_run_logger().getChild("spool")
        for i in range(calls):
            logger.debug("loaded %d rows", i)

    measured = {
        FLOOR: floor,
        "LoggerAdapter with 4 keys, counting handler": stdlib_adapter,
        **{f"run logger .info, API handler, {level}": run_logger(level) for level in DURABILITIES},
        "the same with 2 extras, spool": run_logger_extra,
        "get_run_logger()": get_only,
        "run logger .debug, level disabled": disabled,
    }
    return measured, handlers, transport


def burst_us(work: Callable[[int], None], calls: int, threads: int) -> float:
    """Return microseconds a call: wall time of all threads over all calls, each thread in runs of its own."""
    barrier = threading.Barrier(threads + 1)

    def body(number: int) -> None:
        flow_run = SimpleNamespace(id=f"f{number}", name=f"brave-otter-{number}")
        task_run = SimpleNamespace(id=f"t{number}", name=f"load-{number}")
        with (
            FlowRunContext(flow_run=flow_run, flow=SimpleNamespace(name="etl")),
            TaskRunContext(task_run=task_run, task=SimpleNamespace(name="load")),
        ):
            work(10)  # whatever is done once is done before the clock starts
            barrier.wait()
            work(calls)
            barrier.wait()

    workers = [threading.Thread(target=body, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return seconds / (calls * threads) * 1e6


def measure(bursts: int, calls: int, threads: int) -> list[dict[str, Any]]:
    """
    Run all candidates *bursts* times, in turns, and return a row for each.

    Raises:
        RuntimeError: If the worker lost a record: then something else was measured.
    """
    measured, handlers, transport = candidates()
    times: dict[str, list[float]] = {name: [] for name in measured}
    before = transport.events
    for _ in range(bursts):
        for name, work in measured.items():
            gc.collect()
            times[name].append(burst_us(work, max(1, calls // threads), threads))
            if not all(handler.flush(30) for handler in handlers):
                raise RuntimeError(f"{name}: not all records were acknowledged within 30 s")
    api_calls = sum("API handler" in name or "extras" in name for name in measured)
    expected = api_calls * bursts * threads * (10 + max(1, calls // threads))
    if transport.events - before != expected:
        raise RuntimeError(f"{transport.events - before} records were sent, expected {expected}")
    for handler in handlers:
        handler.close()
    return [
        {
            "candidate": name,
            "threads": threads,
            "median_us": round(statistics.median(values), 3),
            "min_us": round(min(values), 3),
            "times_floor": round(
                statistics.median(value / floor for value, floor in zip(values, times[FLOOR], strict=True)), 3
            ),
        }
        for name, values in times.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--bursts", type=int, default=25, help="bursts of each candidate (default 25)")
    parser.add_argument(
        "--calls", type=int, default=2000, help="calls in a burst, over all threads (default 2000)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 8], help="numbers of threads (default 1 8)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        # No setting of whoever runs this has a part in it.
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "RUNLOG_"))]:
            del os.environ[name]
        os.environ["RUNLOG_HOME"] = home
        rows = [row for threads in options.threads for row in measure(options.bursts, options.calls, threads)]
    if options.json:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "bursts": options.bursts}
        json.dump({**machine, "rows": rows}, sys.stdout, indent=2)
        print()
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, median of {options.bursts} bursts")
    for row in rows:
        if row["candidate"] == FLOOR:
            print(f"\n{'threads':>7}  {'median µs':>9}  {'min µs':>8}  {'x floor':>8}")
        print(
            f"{row['threads']:7d}  {row['median_us']:9.2f}  {row['min_us']:8.2f}  {row['times_floor']:8.2f}"
            f"  {row['candidate']}"
        )


if __name__ == "__main__":
    main()
