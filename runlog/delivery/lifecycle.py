"""
What forks and the end of the program mean for delivery.

Keeps every worker of the process. A forked child starts each of them afresh;
the end of the program drains them, all within one deadline. No signal handler
is installed unless `flush_on_sigterm` is called: a signal that ends the process
without running exit hooks ends delivery with it.

Exit hooks run in this order: non-daemon threads end (they may log until then),
`atexit` callbacks (ours among them), and last `logging.shutdown`, which flushes
each handler once more and so delivers what other callbacks logged. Children of
`multiprocessing` skip `atexit` up to Python 3.12; for them there is a finalizer.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from runlog.delivery.worker import DeliveryWorker

BACKLOG_SECONDS = 1.0
"""Most seconds that the end of a program spends on what other processes left behind."""

COUNTING_SECONDS = 0.3
"""Most seconds that the end of a program spends on counting what it leaves behind of others."""

GOODBYE_SECONDS = 1.0
"""Most seconds that a goodbye may take: it proves that nothing is missing, and carries no line."""

INTERRUPTED_PAUSE = 0.005
"""Seconds between two looks whether the call that a signal interrupted has ended."""

_workers: set[DeliveryWorker] = set()
_lock = threading.Lock()
_fork_lock = threading.Lock()
_watched_pid: int | None = None
_finalized_pid: int | None = None
_deadline: float | None = None
_on_sigterm: _FlushOnSigterm | None = None


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


def flush_on_sigterm(timeout: float = 5.0) -> None:
    """
    Deliver what was logged when the process gets SIGTERM, before it does what it did before.

    For places whose disk ends with the process, such as containers: elsewhere
    the spool keeps the lines. A handler that was installed before is called
    afterwards, with the same arguments; without one the process ends by the
    signal, as ever (exit code -15); where the signal was ignored, it stays so. A
    second SIGTERM during the delivery is not kept waiting.

    Call it in the main thread, after a framework has installed its own
    handlers. A second call changes the timeout. Forked children inherit it.

    Args:
        timeout: Most seconds that the delivery takes, for all targets together; at least 0.

    Raises:
        ValueError: If *timeout* is negative, or in a thread other than the main one.
        RuntimeError: If a handler is installed that Python cannot call.
    """
    global _on_sigterm  # noqa: PLW0603 - one disposition a process
    if not timeout >= 0:
        raise ValueError(f"timeout must be >= 0 s, got {timeout}")
    previous = signal.getsignal(signal.SIGTERM)
    if previous is None:
        raise RuntimeError("the handler of SIGTERM was not installed from Python, and could not be called")
    if isinstance(previous, _FlushOnSigterm):
        previous.timeout = timeout
        return
    handler = _FlushOnSigterm(timeout, previous)
    signal.signal(signal.SIGTERM, handler)
    _on_sigterm = handler


class _FlushOnSigterm:
    """
    The handler that `flush_on_sigterm` installs.

    Runs in the main thread, between any two of its instructions. Inside a log
    call or a flush that thread may hold locks which delivery needs: then the
    handler returns, so that the call can end, and the signal is sent again.

    Args:
        timeout: Most seconds for delivery.
        previous: What `signal.getsignal` returned.
    """

    def __init__(self, timeout: float, previous: Callable[[int, FrameType | None], Any] | int) -> None:
        self.timeout = timeout
        self._previous = previous
        self._deadline: float | None = None
        self._is_flushing = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self.timeout
        if not self._is_flushing and now < self._deadline:
            if _is_delivering(frame):
                # Not by threading, whose locks the interrupted code may hold. Fails where Python ends.
                with contextlib.suppress(RuntimeError):
                    _thread.start_new_thread(self._send_again, (number, self._deadline))
                    return
            else:
                self._flush(self._deadline)
        self._deadline = None
        self._go_on(number, frame)

    def _flush(self, deadline: float) -> None:
        self._is_flushing = True
        try:
            if self._previous == signal.SIG_DFL:
                remaining_time(max(0.0, deadline - time.monotonic()))
                drain()
            else:
                for worker in workers():
                    worker.flush(max(0.0, deadline - time.monotonic()))
        finally:
            self._is_flushing = False

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self._previous):
            self._previous(number, frame)
        elif self._previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def reset_after_fork(self) -> None:
        """Forget a signal that the parent has begun to handle."""
        self._deadline = None
        self._is_flushing = False

    @staticmethod
    def _send_again(number: int, deadline: float) -> None:
        main = threading.main_thread().ident or 0
        while time.monotonic() < deadline and _is_delivering(sys._current_frames().get(main)):  # noqa: SLF001
            time.sleep(INTERRUPTED_PAUSE)
        os.kill(os.getpid(), number)


def _is_delivering(frame: FrameType | None) -> bool:
    """Whether a handler or delivery is among the callers of a frame."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("runlog.delivery", "runlog.handlers")):
            return True
        frame = frame.f_back
    return False


def _before_fork() -> None:
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _lock, _fork_lock, _deadline  # noqa: PLW0603 - a child has its own
    _lock = threading.Lock()
    _fork_lock = threading.Lock()
    _deadline = None
    if _on_sigterm is not None:
        _on_sigterm.reset_after_fork()
    for worker in list(_workers):
        worker.reset_after_fork()
