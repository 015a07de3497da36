"""
One thread and one clock that drive batching, retry and transport for one target.

`runlog.handlers` hands encoded events to `DeliveryWorker.put` in the calling
thread; the worker's thread sends them. Invariants: one batch is in flight at a
time, so that nothing is reordered; nothing here uses `logging`, so that
delivering a line never makes another; `put` may be interrupted by a signal
handler or a finalizer that logs, and neither deadlocks nor loses that line.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import random
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runlog.delivery import lifecycle
from runlog.delivery.batching import Batcher
from runlog.delivery.producer import Producer
from runlog.delivery.retry import Answer, Backoff, Verdict, judge
from runlog.delivery.transport import TOTAL_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.delivery.batching import Batch
    from runlog.delivery.transport import Transport

WhenFull = Literal["block", "drop_oldest", "drop_newest"]
"""What becomes of an event for which the queue has no room."""

REPORT_INTERVAL = 60.0
"""Least seconds between two reports of one kind on stderr."""

NOWHERE_INTERVAL = 1.0
"""Seconds between two looks for a server while there is none to send to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one worker. Defaults are those of the settings of the same names."""

    max_batch_bytes: int = 4_000_000
    batch_interval: float = 2.0
    """Longest time an event waits to be sent, in seconds."""
    max_queue_bytes: int = 16 * 1024 * 1024
    when_full: WhenFull = "block"
    block_timeout: float = 0.1
    """Longest time that a log call waits for room, in seconds, with ``block``."""
    shutdown_timeout: float = 5.0
    """Longest time that the end of the program waits for delivery, in seconds."""


class DeliveryWorker:
    """
    Deliver events to one target, in order and once.

    All methods are thread-safe. The thread starts with the first event and is a
    daemon: `runlog.delivery.lifecycle` drains it when the program ends.

    Args:
        transport: Where batches go.
        limits: Bounds and policies.
        backoff: Waiting times between tries.
        clock: Monotonic seconds.
        sleep: Waits that many seconds, in a thread that drains.
        report: Gets one line for people when lines are lost or cannot be sent;
            by default they go to stderr, each kind once a minute at most.
    """

    def __init__(
        self,
        transport: Transport,
        limits: Limits | None = None,
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._transport = transport
        self.limits = limits or Limits()
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._sleep = sleep
        self._write_report = report or _write_to_stderr
        self._reset()

    def _reset(self) -> None:
        """Make everything that a fork must not inherit: locks, identity, queue, thread."""
        limits = self.limits
        # Re-entrant, because a finalizer or a signal handler may log while this thread holds it; see `put`.
        self._lock = threading.RLock()
        self._reentered: deque[bytes] = deque()
        self._producer = Producer()
        self._batcher = Batcher(
            max_batch_bytes=limits.max_batch_bytes,
            batch_interval=limits.batch_interval,
            max_queue_bytes=limits.max_queue_bytes,
        )
        # Whoever holds this sends: the worker's thread, or a thread that drains.
        self._send_lock = threading.Lock()
        self._outgoing: deque[Batch] = deque()
        self._failures = 0
        self._retry_at = float("-inf")
        self._progress = threading.Condition()
        self._acked_seq = -1
        self._flush_seq = -1
        # SimpleQueue.put may be interrupted and called again in the same thread, Event.set may not.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._sender_ident: int | None = None
        self._generation = 0
        self._sendable = True
        self._accepted = 0
        self._dropped: Counter[str] = Counter()
        self._told_of_drops = 0
        self._last_error = ""
        self._reported_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<DeliveryWorker to {self._transport!r}: {self._batcher!r}>"

    # --- taking events in ---

    def put(self, event: bytes, *, background: bool = True) -> bool:
        """
        Take one encoded event.

        Blocks for at most ``block_timeout``, and only where the policy is
        ``block``, the queue is full, the server takes lines, and the calling
        thread runs no event loop.

        Args:
            event: One JSON object as UTF-8.
            background: Whether a thread is to send it; without, `send_now` must be called.

        Returns:
            Whether it was taken; if not, it is counted and told to the server.
        """
        if os.getpid() != self._producer.pid:  # a fork that ran no hooks
            self.reset_after_fork()
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - what threading.Condition asks, too
            # This thread was interrupted inside `put` by a finalizer or a signal
            # handler: the interrupted call takes this event in before it returns.
            self._reentered.append(event)
            return True
        with lock:
            taken, wake = self._admit(event)
            if self._reentered:
                wake |= self._admit_reentered()
        if taken is None:
            taken, wake = self._admit_later(event)
        if wake and background:
            self._wake_up()
        if not taken or self._told_of_drops < self._dropped["queue_full"]:
            self._tell_of_drops()
        return taken

    def _wake_up(self) -> None:
        self._wake.put(None)
        if self._thread is None:
            self._start()

    def _tell_of_drops(self) -> None:
        self._told_of_drops = self._dropped["queue_full"]
        self._report(
            "queue_full",
            f"the queue of {self.limits.max_queue_bytes} bytes is full: "
            f"{self._told_of_drops} lines were dropped so far, and the server will be told",
        )

    def _admit(self, event: bytes, *, final: bool = False) -> tuple[bool | None, bool]:
        """
        Queue the event or drop it by policy. Holds the lock.

        Returns:
            Whether it was taken, `None` if the caller should wait for room; and
            whether the sender must be woken.
        """
        batcher = self._batcher
        now = self._clock()
        if batcher.has_room(len(event)):
            self._accepted += 1
            return True, batcher.add(event, now=now)
        if self.limits.when_full == "drop_oldest":
            self._dropped["queue_full"] += batcher.drop_oldest(len(event), "queue_full")
            if batcher.has_room(len(event)):
                self._accepted += 1
                return True, batcher.add(event, now=now)
            # All that is held is in flight.
        elif self.limits.when_full == "block" and self._may_wait() and not final:
            return None, False
        return self._drop_new(now)

    def _admit_reentered(self) -> bool:
        """Queue what calls that interrupted a `put` left here. Holds the lock; returns whether to wake."""
        wake = False
        while self._reentered:
            event = self._reentered.popleft()
            now = self._clock()
            if self._batcher.has_room(len(event)):
                self._accepted += 1
                wake |= self._batcher.add(event, now=now)
            else:
                wake |= self._drop_new(now)[1]
        return wake

    def _drop_new(self, now: float) -> tuple[bool, bool]:
        self._dropped["queue_full"] += 1
        return False, self._batcher.add_dropped("queue_full", now=now)

    def _may_wait(self) -> bool:
        """
        Tell whether waiting for room can help and harms nobody.

        It cannot help while the server takes nothing, and it must not hold up
        an event loop, nor the thread that sends.
        """
        if self._failures or not self._sendable or self.is_own_thread:
            return False
        return asyncio._get_running_loop() is None  # noqa: SLF001 - documented for this use, and raises nothing

    def _admit_later(self, event: bytes) -> tuple[bool, bool]:
        deadline = self._clock() + self.limits.block_timeout
        self._wake_up()
        while True:
            with self._progress:
                remaining = deadline - self._clock()
                if remaining > 0:
                    self._progress.wait(remaining)
            with self._lock:
                taken, wake = self._admit(event, final=remaining <= 0)
            if taken is not None:
                return taken, wake

    # --- the thread ---

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            # In an empty context: what this thread does belongs to no run.
            thread = threading.Thread(
                target=contextvars.Context().run,
                args=(self._run, self._generation),
                name="runlog-delivery",
                daemon=True,
            )
            self._thread = thread
        lifecycle.watch_multiprocessing()
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending (3.12 refuses threads then): whoever drains sends in its own thread.
            self._thread = None

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is the one that sends, whose own records must not breed more."""
        return threading.get_ident() == self._sender_ident

    def _run(self, generation: int) -> None:
        self._sender_ident = threading.get_ident()
        while self._generation == generation:
            try:
                with self._send_lock:
                    pause = self._step(TOTAL_TIMEOUT)
            except Exception as error:  # a defect of ours must not end delivery
                self._failed(Answer(None, detail=f"{type(error).__name__}: {error}"))
                pause = self._backoff.maximum
            if pause != 0:
                with contextlib.suppress(queue.Empty):
                    self._wake.get(timeout=pause)
                    while True:
                        self._wake.get_nowait()

    def _step(self, timeout: float) -> float | None:
        """
        Send at most one batch. Holds the send lock.

        Returns:
            Seconds until the next step is due: 0 for at once, `None` for when something is put.
        """
        now = self._clock()
        if now < self._retry_at:
            return self._retry_at - now
        if not self._outgoing:
            with self._lock:
                self._admit_reentered()
                due = self._batcher.next_due()
                if due is None:
                    return None
                if due > now and self._flush_seq < self._batcher.first_seq:
                    return due - now
            if self._transport.target is None:
                self._sendable = False
                self._last_error = "no log server is running on this machine"
                self._retry_at = now + NOWHERE_INTERVAL
                return NOWHERE_INTERVAL
            self._sendable = True
            with self._lock:
                batch = self._batcher.take()
            assert batch is not None, "what is due is there to be taken by whoever holds the send lock"
            self._outgoing.append(batch)
        self._send(self._outgoing[0], timeout)
        return max(0.0, self._retry_at - self._clock())

    def _send(self, batch: Batch, timeout: float) -> None:
        answer = self._transport.send(self._producer.id, batch, timeout=timeout)
        verdict = judge(answer, last_seq=batch.last_seq)
        if verdict is Verdict.RESUME and not 0 <= (answer.expected or 0) < batch.first_seq:
            verdict = Verdict.RETRY
        if verdict is Verdict.RETRY:
            self._failed(answer)
            return
        self._outgoing.popleft()
        if verdict is Verdict.ACKED:
            self._succeeded(batch)
        elif verdict is Verdict.RESUME:
            # The server's store is not the one that acknowledged the events before.
            missing = batch.starting_at(answer.expected or 0, "acknowledged_elsewhere")
            self._outgoing.appendleft(missing)
            self._report(
                "resume", f"{self._transport.target} has forgotten lines of this process; continuing"
            )
        elif len(batch.events) > 1:
            self._outgoing.extendleft(reversed(batch.split()))
        elif batch.events:
            with self._lock:
                self._dropped["rejected"] += 1
                self._batcher.settle(batch)
            self._report(
                "rejected", f"the server refused a line, which is dropped and counted: {answer.detail}"
            )
            self._outgoing.appendleft(batch.without_events("rejected"))
        else:
            self._outgoing.appendleft(batch)
            self._failed(answer)

    def _succeeded(self, batch: Batch) -> None:
        if self._failures:
            self._reported_at.pop("unreachable", None)
        self._failures = 0
        self._retry_at = float("-inf")
        self._last_error = ""
        with self._lock:
            self._batcher.settle(batch)
        with self._progress:
            self._acked_seq = batch.last_seq
            self._progress.notify_all()

    def _failed(self, answer: Answer) -> None:
        self._failures += 1
        self._last_error = answer.detail
        delay = self._backoff.delay(self._failures, random=random.random(), retry_after=answer.retry_after)  # noqa: S311
        self._retry_at = self._clock() + delay
        if self._failures == 2:  # one failure is a restart; two are worth a word
            self._report(
                "unreachable",
                f"lines cannot be sent to {self._transport.target}: {answer.detail}; "
                "they are kept and sent later",
            )
        with self._progress:
            self._progress.notify_all()

    # --- waiting ---

    def flush(self, timeout: float | None = None) -> bool:
        """
        Send what was taken before the call, at once, and wait for the acknowledgement.

        Args:
            timeout: Most seconds to wait; by default ``shutdown_timeout``.

        Returns:
            Whether all of it is acknowledged. `False` at once if there is
            nowhere to send it, or if called from the thread that sends.
        """
        if os.getpid() != self._producer.pid:
            self.reset_after_fork()
        if self.is_own_thread:
            return False
        deadline = self._clock() + (self.limits.shutdown_timeout if timeout is None else timeout)
        with self._lock:
            self._admit_reentered()
            target = self._batcher.next_seq - 1
        if self._acked_seq >= target:
            return True
        if self._transport.target is None:
            return False
        self._flush_seq = target
        self._retry_at = min(self._retry_at, self._clock())  # a flush is worth a try now
        self._wake.put(None)
        thread = self._thread
        if thread is None:
            self._start()
            thread = self._thread
        if thread is None or not thread.is_alive():
            self._drain(target, deadline)
            return self._acked_seq >= target
        with self._progress:
            return self._progress.wait_for(
                lambda: self._acked_seq >= target, timeout=max(0.0, deadline - self._clock())
            )

    def _drain(self, target: int, deadline: float) -> None:
        """Send in the calling thread until *target* is acknowledged or the time is up."""
        if not self._send_lock.acquire(timeout=max(0.0, deadline - self._clock())):
            return
        try:
            while (
                self._acked_seq < target
                and (remaining := deadline - self._clock()) > 0
                and (pause := self._step(min(remaining, TOTAL_TIMEOUT))) is not None
            ):
                if pause > 0:
                    self._sleep(min(pause, max(0.0, deadline - self._clock())))
        finally:
            self._send_lock.release()

    def send_now(self, timeout: float | None = None) -> bool:
        """
        Send what was taken in the calling thread, without any background thread.

        For ``mode="sync"``. Arguments and answer are those of `flush`.
        """
        deadline = self._clock() + (self.limits.shutdown_timeout if timeout is None else timeout)
        with self._lock:
            target = self._batcher.next_seq - 1
        if self._acked_seq < target and self._transport.target is not None:
            self._flush_seq = target
            self._retry_at = min(self._retry_at, self._clock())
            self._drain(target, deadline)
        return self._acked_seq >= target

    def close(self, timeout: float | None = None) -> bool:
        """
        Flush, stop the thread and close the connections.

        An event that is put later starts them again, and so does one that is
        put meanwhile. Idempotent.

        Returns:
            What `flush` returned.
        """
        flushed = self.flush(timeout)
        with self._lock:
            thread, self._thread = self._thread, None
            self._generation += 1  # the thread ends when it looks next; another may start at once
        self._wake.put(None)
        if thread is not None and thread is not threading.current_thread():
            # A thread that waits for a server which does not answer ends by itself later; it is a daemon.
            thread.join(timeout=1.0 if flushed else 0.0)
        if thread is None or not thread.is_alive():
            self._transport.close()
        if flushed and self._batcher.held:
            self._start()
        return flushed

    def reset_after_fork(self) -> None:
        """Start afresh in a child process: what waits belongs to the parent, which still has it."""
        self._transport.forget_connections()
        self._reset()

    # --- telling ---

    def statistics(self) -> dict[str, Any]:
        """
        Return what happened so far in this process, as JSON.

        ``accepted`` events were taken in, ``queued`` of them wait or are in
        flight, ``dropped`` counts by reason; ``acked`` is the seq up to which
        the server has everything, -1 for nothing.
        """
        with self._lock:
            return {
                "target": self._transport.target,
                "producer": self._producer.id,
                "accepted": self._accepted,
                "acked": self._acked_seq,
                "queued": self._batcher.held,
                "queued_bytes": self._batcher.held_bytes,
                "dropped": dict(self._dropped),
                "last_error": self._last_error,
            }

    def report_undelivered(self) -> None:
        """Say once how many lines the end of the program leaves behind."""
        left = self.statistics()
        if not left["queued"]:
            return
        if left["target"] is None:
            self._report(
                "undelivered",
                f"{left['queued']} lines were not stored: no log server is running; "
                "start one with: runlog server start",
            )
        else:
            self._report(
                "undelivered",
                f"{left['queued']} lines were not delivered to {left['target']}: "
                f"{left['last_error'] or 'no time left'}",
            )

    def _report(self, kind: str, text: str) -> None:
        now = self._clock()
        if now - self._reported_at.get(kind, float("-inf")) < REPORT_INTERVAL:
            return
        self._reported_at[kind] = now
        with contextlib.suppress(Exception):
            self._write_report(text)


def _write_to_stderr(text: str) -> None:
    # Not through logging: its records would come back here. None under pythonw, closed at some exits.
    if sys.stderr is not None:
        sys.stderr.write(f"runlog: {text}\n")
