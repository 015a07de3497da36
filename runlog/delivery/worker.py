"""
One thread and one clock that drive batching, retry and transport for one target.

`runlog.handlers` puts encoded events into the worker's `runlog.delivery.intake`
in the calling thread; the worker's thread sends them. Invariants: one batch is
in flight at a time, so that nothing is reordered; nothing here uses `logging`,
so that delivering a line never makes another.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import queue
import random
import select
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from runlog.delivery import lifecycle
from runlog.delivery.backlog import Backlog, adopt
from runlog.delivery.batching import Batch, Batcher
from runlog.delivery.intake import Intake
from runlog.delivery.lane import Lane
from runlog.delivery.limits import Limits
from runlog.delivery.producer import Producer
from runlog.delivery.retry import Answer, Backoff, Verdict
from runlog.delivery.segments import sync_and_close
from runlog.delivery.sending import count_waiting, remove_unfinished
from runlog.delivery.spool import write_dead_letter
from runlog.delivery.spool_queue import SpoolQueue
from runlog.delivery.transport import TOTAL_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runlog.delivery.lane import Outcome
    from runlog.delivery.transport import Transport

ADOPTION_INTERVAL = 30.0
"""Seconds between two looks for what other processes left behind."""

SYNC_INTERVAL = 0.5
"""Longest time until a line survives a power cut with ``sync``, in seconds, without a flush."""

REPORT_INTERVAL = 60.0
"""Least seconds between two reports of one kind on stderr."""

LINGER_FACTOR = 10
"""A program waits so many times as long as a batch takes, before it sends one that is not full."""

NOWHERE_INTERVAL = 1.0
"""Seconds between two looks for a server while there is none to send to."""


class DeliveryWorker:
    """
    Deliver events to one target, in order and once.

    All methods are thread-safe. The thread starts with the first event and is a
    daemon: `runlog.delivery.lifecycle` drains it when the program ends.

    Args:
        transport: Where batches go.
        limits: Bounds and policies.
        spool: Directory of this target's segments; `None` holds everything in memory.
        resource: OpenTelemetry resource attributes of this process, as one JSON object.
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
        spool: Path | None = None,
        resource: bytes = b"{}",
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._transport = transport
        self.limits = limits or Limits()
        self._spool = spool if self.limits.durability != "memory" else None
        self._resource = resource
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._sleep = sleep
        self._write_report = report or _write_to_stderr
        self._intake = Intake(
            self.limits,
            clock,
            make_queue=self._new_queue,
            wake=self._wake_up,
            may_help=lambda: not self._failures and self._sendable and not self.is_own_thread,
            on_foreign_process=self.reset_after_fork,
            on_drops=self._tell_of_drops,
        )
        self.put = self._intake.put
        self.put_first = self._intake.put_first
        self.put_last = self._intake.put_last
        self.put_aside = self._intake.put_aside
        self._reset()

    def _reset(self) -> None:
        """Make everything that a fork must not inherit: locks, identity, queue, thread."""
        self._producer = Producer(resource=self._resource)
        self._intake.reset()
        self._lane = Lane(self._producer, self._intake.queue)
        self._backlogs: deque[tuple[Lane, Backlog]] = deque()
        self._look_for_backlogs_at = float("-inf")
        self._is_turn_of_backlog = False
        # Whoever holds this sends: the worker's thread, or a thread that drains.
        self._send_lock = threading.Lock()
        self._failures = 0
        self._retry_at = float("-inf")
        self._not_before = float("-inf")
        # From then on an event goes at once, not only when it has waited for the batch interval.
        self._linger_until = float("inf") if self.limits.linger is None else float("-inf")
        self._acked_seq = -1
        self._flush_seq = -1
        # SimpleQueue.put may be interrupted and called again in the same thread, Event.set may not.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._sender_ident: int | None = None
        self._generation = 0
        # Set to end the thread that syncs.
        self._sync_end = threading.Event()
        self._sync_thread: threading.Thread | None = None
        self._sendable = True
        self._rejected = 0
        self._last_error = ""
        self._reported_at: dict[str, float] = {}

    def _new_queue(self, lock: threading.RLock) -> Batcher | SpoolQueue:
        limits = self.limits
        if self._spool is None:
            return Batcher(
                max_batch_bytes=limits.max_batch_bytes,
                batch_interval=limits.batch_interval,
                max_queue_bytes=limits.max_queue_bytes,
                lock=lock,
            )
        return SpoolQueue(
            self._spool,
            self._producer,
            max_batch_bytes=limits.max_batch_bytes,
            batch_interval=limits.batch_interval,
            max_spool_bytes=limits.max_spool_bytes,
            max_queue_bytes=limits.max_queue_bytes,
            report=self._report,
            lock=lock,
        )

    def __repr__(self) -> str:
        return f"<DeliveryWorker to {self._transport!r}: {self._intake.queue!r}>"

    def _wake_up(self) -> None:
        self._wake.put(None)
        if self._thread is None:
            self._start()

    def _tell_of_drops(self, count: int) -> None:
        full = (
            f"the spool of {self.limits.max_spool_bytes} bytes"
            if self._intake.queue.drop_reason == "spool_full"
            else f"the queue of {self.limits.max_queue_bytes} bytes"
        )
        self._report(
            "full", f"{full} is full: {count} lines were dropped so far, and the server will be told"
        )

    # --- the thread ---

    def _start(self) -> None:
        with self._intake.lock:
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
            self._sync_end = threading.Event()
        lifecycle.watch_multiprocessing()
        try:
            thread.start()
            if self.limits.durability == "sync":
                # Of its own, because the other may wait for a server that does not answer.
                target = contextvars.Context().run
                args = (self._sync_again, self._sync_end)
                syncing = threading.Thread(target=target, args=args, name="runlog-sync", daemon=True)
                syncing.start()
                self._sync_thread = syncing
        except RuntimeError:
            # The interpreter is ending (3.12 refuses threads then): whoever drains sends in its own thread.
            self._thread = None

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is the one that sends, whose own records must not breed more."""
        return threading.get_ident() == self._sender_ident

    def _run(self, generation: int) -> None:
        self._sender_ident = threading.get_ident()
        # An import at the end of a program that was interrupted would change its exit code.
        prepare = getattr(self._transport, "prepare", None)
        with contextlib.suppress(Exception):  # what is wrong shows again with the first batch, and is told
            if prepare is not None and self._transport.target is not None:
                prepare()
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
        with self._intake.lock:
            self._intake.admit_reentered()
            due = float("-inf") if self._lane.is_sending else self._intake.queue.next_due()
            waiting = self._intake.queue.next_seq > self._intake.queue.first_seq
            if due is not None:
                due = min(due, self._linger_until)
            if waiting and self._flush_seq >= self._intake.queue.first_seq:
                due = float("-inf")
        is_due = due is not None and due <= now
        if self._spool is not None and (is_due or self._backlogs or now >= self._look_for_backlogs_at):
            self._look_for_backlogs(now)
        if not is_due and not self._backlogs:
            return None if due is None else due - now
        if self._transport.target is None:
            self._sendable = False
            self._last_error = "no log server is running on this machine"
            self._retry_at = now + NOWHERE_INTERVAL
            return NOWHERE_INTERVAL
        self._sendable = True
        # In turns, so that what others left behind holds up no live line, nor the other way round.
        self._is_turn_of_backlog = bool(self._backlogs) and not (is_due and self._is_turn_of_backlog)
        if self._is_turn_of_backlog:
            self._send_backlog(timeout)
        else:
            self._send_own(timeout)
        return max(0.0, self._retry_at - self._clock())

    def _send_own(self, timeout: float) -> None:
        batch = self._lane.next_batch()
        assert batch is not None, "what is due is there to be taken by whoever holds the send lock"
        before = self._clock()
        answer = self._transport.send(self._producer, batch, timeout=timeout)
        if self.limits.linger is not None:
            after = self._clock()
            self._linger_until = after + max(self.limits.linger, LINGER_FACTOR * (after - before))
        with self._intake.lock:
            outcome = self._lane.answered(answer)
        self._intake.queue.clean()
        self._note(answer, outcome, self._producer)
        if outcome.acked is not None:
            with self._intake.progress:
                self._acked_seq = outcome.acked
                self._intake.progress.notify_all()

    def _note(self, answer: Answer, outcome: Outcome, producer: Producer) -> None:
        """Take note of what an answer means for the target, whoever's batch it was for."""
        if outcome.verdict is Verdict.RETRY:
            self._failed(answer)
        elif outcome.verdict is Verdict.ACKED:
            self._failures = 0
            self._retry_at = float("-inf")
            self._last_error = ""
        elif outcome.verdict is Verdict.RESUME:
            self._report("resume", f"{self._transport.target} has forgotten lines that it had; continuing")
        if outcome.rejected is not None:
            self._rejected += 1
            kept = self._bury(producer, *outcome.rejected, answer.detail)
            self._report("rejected", f"the server refused a line, which is counted{kept}: {answer.detail}")

    def _bury(self, producer: Producer, seq: int, event: bytes, detail: str) -> str:
        """Keep a refused event in a file, for people to look at; returns what to say of it."""
        if self._spool is None:
            return " and dropped"
        try:
            path = write_dead_letter(self._spool, producer.id, seq, event, detail)
        except OSError:
            return " and dropped"
        return f" and kept in {path}"

    def _failed(self, answer: Answer) -> None:
        self._failures += 1
        self._last_error = answer.detail
        delay = self._backoff.delay(self._failures, random=random.random(), retry_after=answer.retry_after)  # noqa: S311
        self._retry_at = self._clock() + delay
        # What the server asked for holds for a flush as well.
        self._not_before = self._retry_at if answer.retry_after is not None else float("-inf")
        if self._failures == 2:  # one failure is a restart; two are worth a word
            self._report(
                "unreachable",
                f"lines cannot be sent to {self._transport.target}: {answer.detail}; "
                "they are kept and sent later",
            )
        with self._intake.progress:
            self._intake.progress.notify_all()

    def _sync_again(self, end: threading.Event) -> None:
        while not end.wait(SYNC_INTERVAL):
            self._sync()

    def _sync(self) -> None:
        """Let what was taken survive a power cut."""
        with self._intake.lock:
            descriptors = self._intake.queue.unsynced()
        for descriptor in descriptors:
            try:
                sync_and_close(descriptor)
            except OSError as error:
                self._report("sync", f"the spool {self._spool} cannot be synced: {error.strerror}")

    # --- what other processes left behind ---

    def _look_for_backlogs(self, now: float) -> None:
        if self._spool is None or now < self._look_for_backlogs_at:
            return
        self._look_for_backlogs_at = now + ADOPTION_INTERVAL
        remove_unfinished(self._spool)
        for backlog in adopt(self._spool, self.limits.max_batch_bytes):
            self._backlogs.append((Lane(backlog.producer, backlog), backlog))

    def _send_backlog(self, timeout: float) -> None:
        lane, backlog = self._backlogs[0]
        batch = lane.next_batch()
        if batch is None:
            backlog.close()
            self._backlogs.popleft()
            return
        answer = self._transport.send(lane.producer, batch, timeout=timeout)
        self._note(answer, lane.answered(answer), lane.producer)

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
        target = self._last_taken()
        if self._acked_seq >= target:
            return True
        if self.limits.durability == "sync":
            self._sync()
        if self._transport.target is None:
            return False
        self._send_up_to(target)
        self._wake.put(None)
        thread = self._thread
        if thread is None:
            self._start()
            thread = self._thread
        if thread is None or not thread.is_alive():
            self._drain(target, deadline)
            return self._acked_seq >= target
        with self._intake.progress:
            return self._intake.progress.wait_for(
                lambda: self._acked_seq >= target, timeout=max(0.0, deadline - self._clock())
            )

    def _last_taken(self) -> int:
        """Return the seq of the last event that was taken; -1 for none."""
        with self._intake.lock:
            self._intake.admit_reentered()
            return self._intake.queue.next_seq - 1

    def _send_up_to(self, target: int) -> None:
        """Make all up to a seq due, and the next try with it, unless the server asked to be left alone."""
        self._flush_seq = target
        self._retry_at = min(self._retry_at, max(self._clock(), self._not_before))

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
        target = self._last_taken()
        if self._acked_seq < target and self._transport.target is not None:
            self._send_up_to(target)
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
        with self._intake.lock:
            thread, self._thread = self._thread, None
            syncing, self._sync_thread = self._sync_thread, None
            self._generation += 1  # the thread ends when it looks next; another may start at once
            self._sync_end.set()
        self._wake.put(None)
        if syncing is not None:
            syncing.join(timeout=1.0)
        if thread is not None and thread is not threading.current_thread():
            # A thread that waits for a server which does not answer ends by itself later; it is a daemon.
            thread.join(timeout=1.0 if flushed else 0.0)
        if thread is None or not thread.is_alive():
            self._transport.close()
        self.tidy()
        if flushed and self._intake.queue.held:
            self._start()
        return flushed

    def send_backlogs(self, timeout: float) -> None:
        """
        Send what other processes left behind, children that are gone among them, for so many seconds at most.

        For the end of the program, whose own events are delivered by then.
        """
        if self._spool is None or self._transport.target is None:
            return
        deadline = self._clock() + timeout
        if not self._send_lock.acquire(timeout=timeout):
            return
        try:
            self._look_for_backlogs_at = float("-inf")
            self._look_for_backlogs(self._clock())
            while self._backlogs and not self._failures and (left := deadline - self._clock()) > 0:
                self._send_backlog(min(left, TOTAL_TIMEOUT))
        finally:
            self._send_lock.release()

    def say_goodbye(self, timeout: float) -> None:
        """Tell the server that no event follows, once it has all of them. For the end of the program."""
        if self._transport.target is None or not self._send_lock.acquire(timeout=timeout):
            return
        try:
            with self._intake.lock:
                next_seq = self._intake.queue.next_seq
                is_done = 0 < next_seq == self._acked_seq + 1
            if is_done and not self._failures:
                self._transport.send(self._producer, Batch(next_seq, (), closing=True), timeout=timeout)
        finally:
            self._send_lock.release()

    def tidy(self) -> None:
        """
        Leave on disk what the server has not, and nothing else; does not wait.

        For the end of the program or of a handler.
        """
        if self._send_lock.acquire(blocking=False):
            try:
                with self._intake.lock:
                    if self._intake.queue.held:
                        self._intake.queue.save(self._clock())
                    else:
                        self._intake.queue.close(self._acked_seq)
            finally:
                self._send_lock.release()

    def reset_after_fork(self) -> None:
        """Start afresh in a child process: what waits belongs to the parent, which still has it."""
        self._transport.forget_connections()
        self._intake.queue.abandon()
        for _, backlog in self._backlogs:
            backlog.close()
        self._reset()

    # --- telling ---

    def statistics(self) -> dict[str, Any]:
        """
        Return what happened so far in this process, as JSON.

        ``accepted`` events were taken in, ``queued`` of them wait or are in
        flight, ``dropped`` counts by reason; ``acked`` is the seq up to which
        the server has everything, -1 for nothing. ``exactly_once`` is false for a
        Prefect server, which stores a line again that is sent again.
        """
        with self._intake.lock:
            return {
                "target": self._transport.target,
                "producer": self._producer.id,
                "accepted": self._intake.accepted,
                "acked": self._acked_seq,
                "queued": self._intake.queue.held,
                "queued_bytes": self._intake.queue.held_bytes,
                "dropped": self._intake.dropped | ({"rejected": self._rejected} if self._rejected else {}),
                "last_error": self._last_error,
                "exactly_once": getattr(self._transport, "dialect", "runlog") == "runlog",
            }

    def report_undelivered(self) -> None:
        """Say once how many lines the end of the program leaves behind."""
        left = self.statistics()
        if not left["queued"]:
            return
        if self._intake.queue.survives:
            if left["target"] is not None:
                self._report(
                    "undelivered",
                    f"{left['queued']} lines wait in {self._spool} for {left['target']}; "
                    "the next program sends them, or: runlog spool send",
                )
        elif left["target"] is None:
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

    def report_backlogs(self, timeout: float) -> None:
        """
        Say once how many lines of other programs remain, for the end of one that has delivered its own.

        A program that logged nothing says nothing: it did not use the server.

        Args:
            timeout: Most seconds to wait for a batch that is on its way, and to count them.
        """
        target = self._transport.target
        if self._spool is None or target is None or not self._intake.accepted or not self._backlogs:
            return
        if self._send_lock.acquire(timeout=timeout):
            try:
                batches = [(lane.producer.id, lane.next_batch()) for lane, _ in self._backlogs]
            finally:
                self._send_lock.release()
            first_seqs = {producer: batch.first_seq for producer, batch in batches if batch is not None}
        else:  # a batch is on its way to a server that does not answer
            first_seqs = {lane.producer.id: 0 for lane, _ in tuple(self._backlogs)}
        lines, _, is_all = count_waiting(self._spool, first_seqs=first_seqs, timeout=timeout)
        if lines:
            self._report(
                "backlog",
                f"{'' if is_all else 'more than '}{lines} lines of earlier programs wait in {self._spool} "
                f"for {target}; the next program sends them, or: runlog spool send",
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
    if sys.stderr is None:
        return
    if sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not every stderr has a descriptor
            _, writable, _ = select.select([], [sys.stderr.fileno()], [], 0)
            if not writable:
                return  # a pipe that nobody reads: better unsaid than a thread that waits for ever
    sys.stderr.write(f"runlog: {text}\n")
