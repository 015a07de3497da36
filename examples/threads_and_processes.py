"""
One run over several threads and processes.

A new thread or process knows nothing of the run that started it. ``carry(fn)``
returns a function that runs *fn* in the run in which ``carry`` was called,
wherever it is called. Run it with ``python examples/threads_and_processes.py``.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from runlog import carry, flow_run, flush, get_run_logger, setup_logging, task_run


def download(page: int) -> int:
    """Runs in a thread."""
    with task_run("download"):
        get_run_logger().info("page %d", page, extra={"page": page})
    return page * 100


def square(number: int) -> int:
    """Runs in a process, where carry has set up logging as it is here."""
    with task_run("square"):
        get_run_logger().info("%d squared", number, extra={"number": number})
    flush(10)  # a process of a pool ends without waiting for its lines
    return number**2


def main() -> None:
    setup_logging()
    with flow_run("spread-out", run_name="spread-out") as run:
        with ThreadPoolExecutor(3) as threads:
            sizes = list(threads.map(carry(download), range(1, 4)))
        # "spawn" works on every system and shares nothing; carry works with "fork" and "forkserver", too.
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
            squares = list(processes.map(carry(square), sizes))
        run.logger.info("sum of the squares: %d", sum(squares))


if __name__ == "__main__":
    main()
