"""
How long a line takes from `logger.info` in one process to a subscriber in another.

Server, program and subscriber are processes of their own, all with the default
settings: the lines go through the spool, over HTTP into SQLite, and out again by
WebSocket. Each line carries the time of its call; the subscriber takes the
difference when it holds the line, by the same clock. Lines are logged at two
rates, and in a burst as fast as the program can. All must arrive, once each and
in order, or the benchmark fails.

    python benchmarks/live.py [--seconds 10] [--burst 2000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

RATES = (5, 100)
"""Lines a second."""

TIME_LIMIT = 60.0
"""Seconds after which a line will not come any more."""


def log() -> None:
    """Log as told on standard input, ``{"case", "lines", "pause"}`` a line of JSON, and answer when done."""
    from runlog import flow_run, flush, get_run_logger, setup_logging  # noqa: PLC0415 - in the child alone

    setup_logging()
    with flow_run("benchmark"):
        logger = get_run_logger()
        for text in sys.stdin:
            case, lines, pause = json.loads(text)
            begin = time.monotonic()
            for number in range(lines):
                if pause:
                    time.sleep(max(0.0, begin + number * pause - time.monotonic()))
                logger.info("%s %d %d", case, number, time.time_ns())
            print("done", flush=True)
            flush(TIME_LIMIT)


async def follow() -> None:
    """Print the case, the number and the nanoseconds on the way of each line that arrives."""
    from runlog.client import get_logs_subscriber  # noqa: PLC0415 - in the child alone

    async with get_logs_subscriber() as subscriber:
        print("ready", flush=True)
        case, found, expected = "", [], 0
        while True:
            try:
                line = await asyncio.wait_for(anext(subscriber), TIME_LIMIT)
            except TimeoutError:
                print(json.dumps([case, found]), flush=True)  # what is missing tells the rest
                return
            arrived = time.time_ns()
            words = line.message.split()
            if len(words) != 3 or not words[2].isdecimal():
                continue
            case, found = (case, found) if words[0] == case else (words[0], [])
            expected = int(case.rpartition("/")[2])
            found.append([int(words[1]), arrived - int(words[2])])
            if len(found) == expected:
                print(json.dumps([case, found]), flush=True)


@contextlib.contextmanager
def child(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program as long as the block does."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of *values*, sorted, does not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]


def measure(seconds: float, burst: int) -> list[dict[str, Any]]:
    """
    Return a row for each case.

    Raises:
        RuntimeError: If a line is missing, or came twice or out of order.
    """
    from runlog.discovery import find_local_server  # noqa: PLC0415 - after the environment is set
    from runlog.settings import get_current_settings  # noqa: PLC0415 - the same

    rows = []
    home = get_current_settings().home
    with child("-m", "runlog", "server", "start", "--port", "0"):
        deadline = time.monotonic() + TIME_LIMIT
        while (server := find_local_server(home)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError("the server does not start")
            time.sleep(0.05)
        with child(__file__, "--as", "subscriber") as subscriber, child(__file__, "--as", "logger") as logger:
            assert logger.stdin and logger.stdout and subscriber.stdout  # noqa: PT018 - for type checkers
            if subscriber.stdout.readline() != "ready\n":
                raise RuntimeError(f"the subscriber cannot reach {server.url}")
            cases = [(f"{rate} lines/s", max(2, round(rate * seconds)), 1 / rate) for rate in RATES]
            cases.append(("burst", burst, 0.0))
            for name, lines, pause in cases:
                time.sleep(1)  # each case begins after a pause
                case = f"{name.replace(' ', '_')}/{lines}"
                logger.stdin.write(json.dumps([case, lines, pause]) + "\n")
                logger.stdin.flush()
                if logger.stdout.readline() != "done\n":
                    raise RuntimeError("the program that logs has ended")
                told, found = json.loads(subscriber.stdout.readline())
                if told != case or [number for number, _ in found] != list(range(lines)):
                    raise RuntimeError(
                        f"{name}: {lines} lines were logged, {len(found)} came, or not in their order"
                    )
                times = sorted(nanoseconds / 1e6 for _, nanoseconds in found)
                shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
                figures = {key: round(percentile(times, share), 2) for key, share in shares.items()}
                rows.append({"case": name, "lines": lines, **figures, "max_ms": round(times[-1], 2)})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="length of each rate (default 10)")
    parser.add_argument("--burst", type=int, default=2000, help="lines of the burst (default 2000)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--as", dest="role", choices=["logger", "subscriber"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "logger":
        log()
        return
    if options.role == "subscriber":
        asyncio.run(follow())
        return
    with tempfile.TemporaryDirectory() as home:
        # No setting of whoever runs this has a part in it.
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "RUNLOG_"))]:
            del os.environ[name]
        os.environ["RUNLOG_HOME"] = home
        rows = measure(options.seconds, options.burst)
    if options.json:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count()}
        json.dump({**machine, "rows": rows}, sys.stdout, indent=2)
        print()
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, ms from logger.info to a subscriber")
    print(f"{'lines':>7}  {'p50':>8}  {'p95':>8}  {'p99':>8}  {'max':>8}")
    for row in rows:
        print(
            f"{row['lines']:7d}  {row['p50_ms']:8.2f}  {row['p95_ms']:8.2f}  {row['p99_ms']:8.2f}"
            f"  {row['max_ms']:8.2f}  {row['case']}"
        )


if __name__ == "__main__":
    main()
