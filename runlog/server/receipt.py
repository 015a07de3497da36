"""
The judgement on a run: whether all that was logged in it is stored, and if not, why not.

A storage tells what each producer sent (`runlog.server.storage.shares`); here
that becomes an answer. A run is complete only if nothing speaks against it: its
beginning and its end are stored, no seq between its lines is missing or was
given up, and every producer that said how many lines it sent has that many stored.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from runlog.server.run_summary import FINAL_STATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.shares import ProducerShare


class MissingRange(msgspec.Struct):
    """Seqs that are not stored, both ends included."""

    first_seq: int
    last_seq: int
    count: int


class DroppedRange(MissingRange):
    """Seqs that the producer gave up."""

    reason: str


class ProducerReceipt(msgspec.Struct):
    """What became of one producer's lines. The ranges lie between its first and its last line of the run."""

    producer: str
    first_seq: int
    last_seq: int
    stored: int
    dropped: int
    """Without those that another server has."""
    truncated: int
    dropped_by_reason: dict[str, int]
    dropped_ranges: list[DroppedRange]
    """With those that another server has (``acknowledged_elsewhere``)."""
    missing: int
    missing_ranges: list[MissingRange]
    goodbye: bool
    expected: int | None
    """Lines that it says it had sent when it ended the run."""
    arrived: int | None
    """How many of those are stored."""


class Receipt(msgspec.Struct):
    """What became of a run's lines, and of those of all that was opened in it."""

    run_id: str
    complete: bool
    reasons: list[str]
    """Why it is not complete, a sentence each."""
    state: str
    producers: list[ProducerReceipt]
    stored: int
    dropped: int
    truncated: int
    missing: int
    dropped_by_reason: dict[str, int]


def receipt_of(run: RunSummary, shares: Sequence[ProducerShare]) -> Receipt:
    """
    Return the receipt of a run.

    Args:
        run: The run.
        shares: What each producer sent of it.
    """
    by_reason: Counter[str] = Counter()
    for share in shares:
        by_reason.update(share.dropped_by_reason)
    reasons = list(_reasons(run, shares))
    return Receipt(
        run_id=run.id,
        complete=not reasons,
        reasons=reasons,
        state=run.state,
        producers=[_producer_receipt(share) for share in shares],
        stored=sum(share.stored for share in shares),
        dropped=by_reason.total(),
        truncated=sum(share.truncated for share in shares),
        missing=sum(part.length for share in shares for part in share.missing),
        dropped_by_reason=dict(sorted(by_reason.items())),
    )


def _producer_receipt(share: ProducerShare) -> ProducerReceipt:
    by_reason = share.dropped_by_reason
    return ProducerReceipt(
        producer=share.producer,
        first_seq=share.first_seq,
        last_seq=share.last_seq,
        stored=share.stored,
        dropped=sum(by_reason.values()),
        truncated=share.truncated,
        dropped_by_reason=by_reason,
        dropped_ranges=[
            DroppedRange(marker.seq, marker.seq + marker.count - 1, marker.count, marker.reason)
            for marker in share.drops
        ],
        missing=sum(part.length for part in share.missing),
        missing_ranges=[MissingRange(part.first_seq, part.last_seq, part.length) for part in share.missing],
        goodbye=share.goodbye,
        expected=share.expected,
        arrived=share.arrived if share.expected is not None else None,
    )


def _reasons(run: RunSummary, shares: Sequence[ProducerShare]) -> Iterator[str]:
    if run.state not in FINAL_STATES:
        yield "the run has not ended" if run.state == "RUNNING" else "nothing tells that the run has ended"
    elif run.opened is None:
        # What was given up before the first line that is stored lies outside every range.
        yield "the line that began the run is not stored"
    for share in shares:
        who = f"producer {share.producer}"
        for reason, count in share.dropped_by_reason.items():
            yield f"{_lines(count)} dropped by {who}: {reason}"
        if share.elsewhere:
            yield f"{_lines(share.elsewhere)} of {who} went to another server"
        for part in share.missing:
            yield f"{_lines(part.length)} of {who} missing: seq {part.first_seq} to {part.last_seq}"
        if share.expected is not None and share.expected != share.arrived:
            yield f"{who} sent {_lines(share.expected)} of this run, {share.arrived:,} are stored"


def _lines(count: int) -> str:
    return f"{count:,} line{'' if count == 1 else 's'}"
