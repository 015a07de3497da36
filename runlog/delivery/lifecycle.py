"""
What forks and the end of the program mean for delivery.

Keeps every worker of the process. A forked child starts each of them afresh;
the end of the program drains them, all within one deadline. No signal handler
is installed here (see `runlog.delivery.sigterm`): a signal that ends the process
without running exit hooks ends delivery with it.

Exit hooks run in this order: non-daemon threads end (they may log until then),
`atexit` callbacks (ours among them), and last `logging.shutdown`, which flushes
each handler once more and so delivers what other callbacks logged. Children of
`multiprocessing` skip `atexit` up to Python 3.12; for them there is a finalizer.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runlog.delivery.worker import DeliveryWorker

BACKLOG_SECONDS = 1.0
"""Most seconds that the end of a program spends on what other processes left behind."""

COUNTING_SECONDS = 0.3
"""Most seconds that the end of a program spends on counting what it leaves behind of others."""

GOODBYE_SECONDS = 1.0
"""Most seconds that a goodbye may take: it proves that nothing is missing, and carries no line."""

_workers: set[DeliveryWorker] = set()
_lock = threading.RLock()  # a signal handler may log while this thread holds it
_fork_lock = threading.Lock()
_watched_pid: int | None = None
_finalized_pid: int | None = None
_deadline: float | None = None


def watch(worker: DeliveryWorker) -> None:
    """Drain *worker* when the program ends, and start it afresh in forked children. Thread-safe."""
    global _watched_pid  # noqa: PLW0603 - one registration a process
    with _lock:
        _workers.add(worker)
        if _watched_pid is None:
            atexit.register(drain)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=_before_fork,
                    after_in_parent=_after_fork_in_parent,
                    after_in_child=_after_fork_in_child,
                )
        _watched_pid = os.getpid()


def unwatch(worker: DeliveryWorker) -> None:
    """
    Forget a worker that is closed and has delivered all it took.

    One that has not is to be kept: the end of the program tries again.
    """
    with _lock:
        _workers.discard(worker)


@contextlib.contextmanager
def no_fork() -> Iterator[None]:
    """
    Keep other threads from forking while the block runs.

    For imports: a module that one thread is importing when another forks stays
    locked in the child, and whoever imports it there waits for ever.
    """
    with _fork_lock:
        yield


def watch_multiprocessing() -> None:
    """
    Drain at the end of a `multiprocessing` child, too.

    To be called in the child once it runs user code: the bootstrap of a forked
    child clears all finalizers that it inherits.
    """
    global _finalized_pid  # noqa: PLW0603 - one registration a process
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _finalized_pid != os.getpid():
        _finalized_pid = os.getpid()
        # Above multiprocessing's own finalizers (the highest is 10), which stop what we may need.
        util.Finalize(None, drain, exitpriority=100)


def workers() -> list[DeliveryWorker]:
    """Return the workers of this process."""
    with _lock:
        return list(_workers)


def drain() -> None:
    """Deliver what waits, all workers within one deadline; say what is left. Idempotent."""
    for worker in workers():
        if worker.flush(remaining_time(worker.limits.shutdown_timeout)):
            worker.send_backlogs(min(BACKLOG_SECONDS, remaining_time(worker.limits.shutdown_timeout)))
            worker.say_goodbye(min(GOODBYE_SECONDS, remaining_time(worker.limits.shutdown_timeout)))
            worker.tidy()
            worker.report_backlogs(min(COUNTING_SECONDS, remaining_time(worker.limits.shutdown_timeout)))
        else:
            worker.report_undelivered()


def remaining_time(timeout: float) -> float:
    """
    Return how much of *timeout* the end of the program has left, in seconds.

    The first call sets the deadline that all later ones share.
    """
    global _deadline  # noqa: PLW0603 - one end a process
    if _deadline is None:
        _deadline = time.monotonic() + timeout
    return max(0.0, _deadline - time.monotonic())


def is_ending() -> bool:
    """Whether the end of the program has begun, as far as delivery is concerned."""
    return _deadline is not None


def _before_fork() -> None:
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _lock, _fork_lock, _deadline  # noqa: PLW0603 - a child has its own
    _lock = threading.RLock()
    _fork_lock = threading.Lock()
    _deadline = None
    for worker in list(_workers):
        worker.reset_after_fork()
