"""
How long single log calls take, in a program whose lines go to a real server.

A server runs in a process of its own. The program logs in bursts, alternately to
a handler that only counts and through the API handler, and the time of each call
is kept: the figures are percentiles over all calls. Between two bursts nothing
is waited for, so that the worker reads back and sends what the bursts before
left while the next one runs; a burst is as fast as the program can.

    python benchmarks/call_latency.py [--calls 50000] [--threads 1 8] [--durability spool] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain

BURST = 1000
"""Calls of one kind before it is the other's turn."""


class CountingHandler(logging.Handler):
    """Does the least that a handler can."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - it only counts
        """Count."""
        self.count += 1


def timed(logger: logging.Logger | logging.LoggerAdapter[logging.Logger], times: list[int]) -> None:
    """Make one burst, and note what each call took, in nanoseconds."""
    clock = time.perf_counter_ns
    for i in range(BURST):
        before = clock()
        logger.info("loaded %d rows", i)
        times.append(clock() - before)


def measure(threads: int, calls: int) -> tuple[list[int], list[int]]:
    """Return the times of the calls to the counting handler, and of those to the API handler."""
    from runlog import flow_run, get_run_logger  # noqa: PLC0415 - after the environment is set

    plain = logging.getLogger("benchmark")
    plain.handlers = [CountingHandler()]
    plain.propagate = False
    plain.setLevel(logging.INFO)
    floor: list[list[int]] = [[] for _ in range(threads)]
    ours: list[list[int]] = [[] for _ in range(threads)]

    def work(number: int) -> None:
        with flow_run("latency"):
            logger = get_run_logger()
            timed(logger, [])  # what only the first calls cost
            for _ in range(calls // threads // BURST):
                timed(plain, floor[number])
                timed(logger, ours[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return list(chain.from_iterable(floor)), list(chain.from_iterable(ours))


def percentiles(times: list[int]) -> dict[str, float]:
    """Return percentiles in microseconds."""
    times.sort()
    count = len(times)
    found = {
        name: times[min(count - 1, int(count * share))] / 1000
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }
    return found | {"worst": times[-1] / 1000}


def run_child(threads: int, calls: int) -> None:
    """Measure, and print JSON; the environment says where the server is."""
    import runlog  # noqa: PLC0415 - as above
    from runlog import delivery  # noqa: PLC0415 - as above
    from runlog.handlers import APILogHandler  # noqa: PLC0415 - as above

    runlog.setup_logging()
    for name in ("", "runlog.flow_runs"):
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, APILogHandler)]
    floor, ours = measure(threads, calls)
    started = time.perf_counter()
    if not runlog.flush(120):
        raise SystemExit("not all lines were acknowledged")
    (facts,) = delivery.statistics()
    result = {
        "floor": percentiles(floor),
        "runlog": percentiles(ours),
        "flushed_s": time.perf_counter() - started,
        "accepted": facts["accepted"],
        "dropped": facts["dropped"],
    }
    print(json.dumps(result))


def main() -> None:
    """Start a server, measure in programs of their own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--calls", type=int, default=50_000, help="calls of each kind (default 50000)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 8], help="numbers of threads (default 1 8)"
    )
    parser.add_argument("--durability", choices=["memory", "spool", "sync"], default="spool")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child, options.calls)
        return
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "RUNLOG_HOME": home,
            "RUNLOG_DURABILITY": options.durability,
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "runlog", "server", "start", "--port", "0"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            server.stderr.readline()  # it says where it listens
            found = {}
            for threads in options.threads:
                command = [sys.executable, __file__, "--child", str(threads), "--calls", str(options.calls)]
                child = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found[threads] = json.loads(child.stdout.splitlines()[-1])
        finally:
            server.terminate()
            server.wait()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {options.durability}, "
        f"{options.calls} calls of each kind, microseconds\n"
    )
    print("threads  handler         p50       p99     p99.9     worst")
    for threads, figures in found.items():
        for name in ("floor", "runlog"):
            row = figures[name]
            shown = "".join(f"{row[share]:10.1f}" for share in ("p50", "p99", "p99.9", "worst"))
            print(f"{threads:7}  {name:8}{shown}")
        print(f"         dropped {sum(figures['dropped'].values())} of {figures['accepted']}")


if __name__ == "__main__":
    main()
