"""
Taking events in: the queue, its lock, its bounds, and the count of a run's lines.

`runlog.handlers` calls `Intake.put` in the thread that logs;
`runlog.delivery.worker` takes batches out of the queue and sends them. `put` may
be interrupted by a signal handler or a finalizer that logs, and neither
deadlocks nor loses that line.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from runlog.records import encode_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.delivery.batching import Batcher
    from runlog.delivery.limits import Limits
    from runlog.delivery.spool_queue import SpoolQueue
    from runlog.records import LogEvent

MAX_ENDED_RUNS = 10_000
"""How many ended runs are remembered, for lines that come late."""


class Intake:
    """
    The way of events into the queue of one worker.

    `put`, `put_first` and `put_last` are thread-safe.

    Args:
        limits: Bounds and policies.
        clock: Monotonic seconds.
        make_queue: Makes the queue, guarded by the lock that it is given.
        wake: Lets the sender look at the queue.
        may_help: Tells whether waiting for room can help, and harms nobody but the caller.
        on_foreign_process: Called first if the process is not that of the last `reset`.
        on_drops: Is told how many events were dropped so far for want of room.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        *,
        make_queue: Callable[[threading.RLock], Batcher | SpoolQueue],
        wake: Callable[[], None],
        may_help: Callable[[], bool],
        on_foreign_process: Callable[[], None],
        on_drops: Callable[[int], None],
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._make_queue = make_queue
        self._wake = wake
        self._may_help = may_help
        self._on_foreign_process = on_foreign_process
        self._on_drops = on_drops

    def reset(self) -> None:
        """Start, or start afresh in a child process: no lock, queue or count is inherited."""
        self._pid = os.getpid()
        # Re-entrant, because a finalizer or a signal handler may log while this thread holds it; see `put`.
        self.lock = threading.RLock()
        self.queue = self._make_queue(self.lock)
        self.progress = threading.Condition()
        """Notified whenever the sender has learnt something."""
        self._reentered: deque[tuple[bytes, str | None]] = deque()
        # Threads that wait for room. One that is interrupted there and logs must not wait inside of waiting.
        self._patient: set[int] = set()
        # Events by flow run, of those that began in this process and have not ended.
        self._lines_of: dict[str, int] = {}
        # Of those that ended inside another: which one. A thread may still log for them.
        self._ended_in: dict[str, str] = {}
        self.accepted = 0
        self.dropped: Counter[str] = Counter()
        # For want of room, of which people are told.
        self._drops = 0
        self._told_of_drops = 0

    def put(self, event: bytes, *, run: str | None = None, background: bool = True) -> bool:
        """
        Take one encoded event.

        Blocks for at most ``block_timeout``, and only where the policy is
        ``block``, the queue is full, the server takes lines, and the calling
        thread runs no event loop.

        Args:
            event: One JSON object as UTF-8.
            run: Id of the flow run that it belongs to, for `put_last`.
            background: Whether a thread is to send it; without, `DeliveryWorker.send_now` must be called.

        Returns:
            Whether it was taken; if not, it is counted and told to the server.
        """
        if os.getpid() != self._pid:  # a fork that ran no hooks
            self._on_foreign_process()
        lock = self.lock
        if lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - what threading.Condition asks, too
            # This thread was interrupted inside `put` by a finalizer or a signal
            # handler: the interrupted call takes this event in before it returns.
            self._reentered.append((event, run))
            return True
        with lock:
            # As little as can be: while one thread is in here, others that log wait.
            taken, wake = self._admit(event, run, self._clock())
            if self._reentered:
                wake |= self.admit_reentered()
        if taken is None:
            taken, wake = self._admit_later(event, run)
        if wake or self._told_of_drops != self._drops:
            self._after_put(wake=wake and background)
        return taken

    def put_aside(self, event: bytes, *, run: str | None = None) -> None:
        """
        Take an event of the thread that sends.

        It goes with the next one of another thread, or at the end: if it were a
        reason to send, and sending the reason for it, there would be no end.
        """
        if self.lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as in `put`
            self._reentered.append((event, run))
            return
        with self.lock:
            was_idle = self.queue.next_due() is None
            self._accept_or_drop(event, run)
            if was_idle:
                self.queue.wait_for_more()

    def put_first(self, event: bytes, run: str, *, background: bool = True) -> bool:
        """Take the event with which a flow run begins, and count the run's events from it on."""
        with self.lock:
            self._lines_of.setdefault(run, 0)
        return self.put(event, run=run, background=background)

    def put_last(self, event: LogEvent, run: str, max_bytes: int, *, background: bool = True) -> bool:
        """
        Take the event with which a flow run ends, and tell in it how many there were.

        Its attribute ``runlog.run.lines`` counts the events of the run, and of
        the flow runs inside it, that were put here since `put_first`, this one
        and those that were dropped included: so the server can prove that it
        has all of them, or tell how many it has not. A run that began in
        another process is not counted.
        """
        if run not in self._lines_of:
            return self.put(encode_event(event, max_bytes), background=background)
        with self.lock:
            # Within the lock, so that no other thread's event of the run comes in between.
            event.attributes["runlog.run.lines"] = lines = self._lines_of.pop(run) + 1
            parent = self._open_run_of(event.parent_flow_run_id)
            if parent is not None:
                self._lines_of[parent] += lines - 1  # this event is added as it is taken
                self._ended_in[run] = parent
                if len(self._ended_in) > MAX_ENDED_RUNS:
                    del self._ended_in[next(iter(self._ended_in))]
            encoded = encode_event(event, max_bytes)
            taken, wake = self._admit(encoded, parent, self._clock(), final=True)
            wake |= self.admit_reentered()
        self._after_put(wake=wake and background)
        return bool(taken)

    def admit_reentered(self) -> bool:
        """Queue what calls that interrupted a `put` left here. Holds the lock; returns whether to wake."""
        wake = False
        while self._reentered:
            wake |= self._accept_or_drop(*self._reentered.popleft())
        return wake

    def _after_put(self, *, wake: bool) -> None:
        """Do what must not be done under the lock."""
        if wake:
            self._wake()
        if self._told_of_drops != self._drops:
            self._told_of_drops = self._drops
            self._on_drops(self._drops)

    def _admit(
        self, event: bytes, run: str | None, now: float, *, final: bool = False
    ) -> tuple[bool | None, bool]:
        """
        Queue the event or drop it by policy. Holds the lock.

        Returns:
            Whether it was taken, `None` if the caller should wait for room; and
            whether the sender must be woken.
        """
        waiting = self.queue
        if waiting.has_room(len(event)):
            return True, self._accept(event, run, now)
        if self._limits.when_full == "drop_oldest":
            reason = waiting.drop_reason
            dropped = waiting.drop_oldest(len(event), reason)
            self.dropped[reason] += dropped
            self._drops += dropped
            if waiting.has_room(len(event)):
                return True, self._accept(event, run, now)
            # All that is held is in flight.
        elif self._limits.when_full == "block" and not final and self._may_wait():
            return None, False
        return False, self._drop_new(run, now)

    def _accept_or_drop(self, event: bytes, run: str | None) -> bool:
        """Queue the event if there is room, whatever the policy; for who must neither wait nor take room."""
        now = self._clock()
        if self.queue.has_room(len(event)):
            return self._accept(event, run, now)
        return self._drop_new(run, now)

    def _accept(self, event: bytes, run: str | None, now: float) -> bool:
        self.accepted += 1
        if self._lines_of:
            self._count(run)
        return self.queue.add(event, now=now)

    def _count(self, run: str | None) -> None:
        counted = self._open_run_of(run)
        if counted is not None:
            self._lines_of[counted] += 1

    def _open_run_of(self, run: str | None) -> str | None:
        """Return the run, or that around it which has not ended; `None` if none is counted."""
        while run is not None and run not in self._lines_of:
            run = self._ended_in.get(run)
        return run

    def _drop_new(self, run: str | None, now: float) -> bool:
        self._count(run)
        reason = self.queue.drop_reason
        self.dropped[reason] += 1
        self._drops += 1
        return self.queue.add_dropped(reason, now=now)

    def _may_wait(self) -> bool:
        """Tell whether waiting for room can help; an event loop must not be held up."""
        return self._may_help() and asyncio._get_running_loop() is None  # noqa: SLF001 - documented for this use

    def _admit_later(self, event: bytes, run: str | None) -> tuple[bool, bool]:
        ident = threading.get_ident()
        is_nested = ident in self._patient
        deadline = self._clock() + (0.0 if is_nested else self._limits.block_timeout)
        self._wake()
        self._patient.add(ident)
        try:
            while True:
                remaining = deadline - self._clock()
                if remaining > 0:
                    with self.progress:
                        self.progress.wait(remaining)
                with self.lock:
                    taken, wake = self._admit(event, run, self._clock(), final=remaining <= 0)
                if taken is not None:
                    return taken, wake
        finally:
            if not is_nested:
                self._patient.discard(ident)
