"""
Deliver when the process is told to end by SIGTERM, for programs that ask for it.

Python runs no exit hooks at SIGTERM. `flush_on_sigterm` installs a handler that
has `runlog.delivery.lifecycle` deliver, and then lets the signal do what it did
before. Invariant: the handler waits for nothing that the code it interrupted holds.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from runlog.delivery import lifecycle

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

INTERRUPTED_PAUSE = 0.005
"""Seconds between two looks whether the call that a signal interrupted has ended."""


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
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=handler.reset_after_fork)


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
                # Not by threading, whose locks the interrupted code may hold. Where Python ends it takes no
                # thread any more: then the delivery at the end is what was interrupted, and the end follows.
                with contextlib.suppress(RuntimeError):
                    _thread.start_new_thread(self._send_again, (number, self._deadline))
                return
            self._flush(self._deadline)
        self._deadline = None
        self._go_on(number, frame)

    def _flush(self, deadline: float) -> None:
        self._is_flushing = True
        try:
            if self._previous == signal.SIG_DFL:
                lifecycle.remaining_time(max(0.0, deadline - time.monotonic()))
                lifecycle.drain()
            else:
                for worker in lifecycle.workers():
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
