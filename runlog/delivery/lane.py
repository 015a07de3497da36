"""
One producer's events on their way: which batch goes next, and what an answer makes of it.

`runlog.delivery.worker` has a lane for what this process logs and one for each
backlog that another process left. No I/O, no clock, no threads: the worker
sends what `next_batch` returns and tells `answered` what came back.

Invariant: batches leave in the order of their seqs, and one is not followed by
the next before it is acknowledged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from runlog.delivery.retry import Verdict, judge
from runlog.records import shorten_encoded

if TYPE_CHECKING:
    from runlog.delivery.batching import Batch
    from runlog.delivery.producer import Producer
    from runlog.delivery.retry import Answer

LEAST_CUT_BYTES = 8192
"""A lone event that a server finds too large is halved down to this; a smaller one is sent again as it is."""


REFUSALS = 2
"""How often a lone event must be refused to be given up: a proxy may refuse it in passing."""


class Source(Protocol):
    """Where a lane's batches come from."""

    def take(self) -> Batch | None:
        """Return the next batch, `None` if nothing waits."""

    def settle(self, events: int, held_bytes: int) -> None:
        """Let go of so many events, of so many bytes, that were taken."""

    def acknowledged(self, seq: int) -> None:
        """Forget what the server has, up to *seq*."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an answer made of a batch."""

    verdict: Verdict
    acked: int | None = None
    """The seq up to which everything is acknowledged now."""
    rejected: tuple[int, bytes] | None = None
    """Seq and text of an event that the server will not take."""
    events: int = 0
    """How many events were acknowledged."""


class Lane:
    """
    The way of one producer's events to the server.

    Not thread-safe: `next_batch` and `answered` are called by whoever sends, the
    latter under the lock of the source.

    Args:
        producer: Under whose name the events go.
        source: Where batches come from.
    """

    def __init__(self, producer: Producer, source: Source) -> None:
        self.producer = producer
        self.source = source
        self._outgoing: deque[Batch] = deque()
        self._refusals = 0

    @property
    def is_sending(self) -> bool:
        """Whether a batch was taken and is not acknowledged."""
        return bool(self._outgoing)

    def next_batch(self) -> Batch | None:
        """Return the batch that goes next, `None` if nothing waits; the same until it is answered."""
        if not self._outgoing:
            batch = self.source.take()
            if batch is None:
                return None
            self._outgoing.append(batch)
        return self._outgoing[0]

    def answered(self, answer: Answer) -> Outcome:
        """Take note of what came back for the batch that `next_batch` returned last."""
        batch = self._outgoing[0]
        verdict = judge(answer, last_seq=batch.last_seq)
        if verdict is Verdict.RESUME and not 0 <= (answer.expected or 0) < batch.first_seq:
            verdict = Verdict.RETRY
        if verdict is Verdict.ACKED:
            self._refusals = 0
            self._outgoing.popleft()
            self.source.settle(len(batch.events), batch.held_bytes)
            self.source.acknowledged(batch.last_seq)
            return Outcome(verdict, acked=batch.last_seq, events=len(batch.events))
        if verdict is Verdict.RESUME:
            # The server's store is not the one that acknowledged the events before.
            self._outgoing[0] = batch.starting_at(answer.expected or 0, "acknowledged_elsewhere")
            return Outcome(verdict)
        if verdict is Verdict.SPLIT:
            return self._split(batch, answer)
        return Outcome(Verdict.RETRY)

    def _split(self, batch: Batch, answer: Answer) -> Outcome:
        if len(batch.events) > 1:
            self._outgoing.popleft()
            self._outgoing.extendleft(reversed(batch.split()))
            return Outcome(Verdict.SPLIT)
        if not batch.events:
            return Outcome(Verdict.RETRY)
        (event,) = batch.events
        self._refusals += 1
        if self._refusals < REFUSALS:
            return Outcome(Verdict.RETRY)
        self._refusals = 0
        if answer.status == 413:
            if len(event) <= LEAST_CUT_BYTES:
                return Outcome(Verdict.RETRY)
            shorter = replace(batch, events=(shorten_encoded(event, len(event) // 2),))
            self.source.settle(0, batch.held_bytes - shorter.held_bytes)
            self._outgoing[0] = shorter
            return Outcome(Verdict.SPLIT)
        seq = next(seq for seq, found, _ in batch.in_order() if found is not None)
        self.source.settle(1, batch.held_bytes)
        self._outgoing[0] = batch.without_events("rejected")
        return Outcome(Verdict.SPLIT, rejected=(seq, event))
