"""
The judgement on a run: whether all that was logged in it is stored, and if not, why not.

A storage tells what each producer sent (`runlog.server.storage.shares`); here
that becomes an answer. A run is complete only if that is proven: its beginning and
its end are stored, and those of what was opened in it; no seq between its lines
is missing or was given up; every producer that said how many lines were logged
has that many stored, and of every other it is known that nothing more follows.
Where something is lost that may have been another run's, or may still be on its
way, the run is neither complete nor incomplete: it is not proven.

A process of which no line arrived is not known, and so not missed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import msgspec

from runlog.server.run_summary import FINAL_STATES
from runlog.server.storage.shares import NOT_LOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runlog.records import DropMarker
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.shares import ProducerShare

ReceiptVerdict = Literal["complete", "not proven", "not complete"]
"""``not proven``: nothing is known to be missing, but something may be."""


class MissingRange(msgspec.Struct):
    """Seqs that are not stored, both ends included."""

    first_seq: int
    last_seq: int
    count: int


class DroppedRange(MissingRange):
    """Seqs that the producer gave up."""

    reason: str


class ProducerReceipt(msgspec.Struct):
    """What became of one producer's lines. Ranges lie between its first and its last line of the run."""

    producer: str
    first_seq: int
    last_seq: int
    stored: int
    dropped: int
    """Between its lines, without those that another server has; those of other runs are among them."""
    dropped_at_most: int
    """How many lines of the run it gave up at most, the possible ones included."""
    truncated: int
    dropped_by_reason: dict[str, int]
    dropped_ranges: list[DroppedRange]
    """With those that another server has (``acknowledged_elsewhere``)."""
    possibly_dropped: int
    """Before its first line of the run or after the last: perhaps the run's."""
    possibly_dropped_ranges: list[DroppedRange]
    missing: int
    missing_ranges: list[MissingRange]
    goodbye: bool
    expected: int | None
    """Lines that it says were logged until it ended the run."""
    arrived: int | None
    """How many of those are stored."""


class Receipt(msgspec.Struct):
    """What became of a run's lines, and of those of all that was opened in it."""

    run_id: str
    complete: bool
    verdict: ReceiptVerdict
    reasons: list[str]
    """Why it is not complete, or not proven to be, a sentence each."""
    state: str
    producers: list[ProducerReceipt]
    stored: int
    dropped: int
    dropped_at_most: int
    truncated: int
    missing: int
    removed: int
    """Lines that were stored, and that retention took away since."""
    dropped_by_reason: dict[str, int]


def receipt_of(
    run: RunSummary,
    shares: Sequence[ProducerShare],
    opened_in_it: Sequence[tuple[RunSummary, Sequence[ProducerShare]]] = (),
) -> Receipt:
    """
    Return the receipt of a run.

    Args:
        run: The run.
        shares: What each producer sent of it.
        opened_in_it: The runs below it, each with what was sent of it by
            producers that do not say how many lines of *run* they sent.
    """
    by_reason: Counter[str] = Counter()
    for share in shares:
        by_reason.update(share.dropped_by_reason)
    losses = [*_losses(run, shares), *_losses_below(opened_in_it)]
    doubts = list(_doubts(run, shares))
    producers = [_producer_receipt(run, share) for share in shares]
    return Receipt(
        run_id=run.id,
        complete=not losses and not doubts,
        verdict="not complete" if losses else "not proven" if doubts else "complete",
        reasons=losses + doubts,
        state=run.state,
        producers=producers,
        stored=sum(share.stored for share in shares),
        dropped=by_reason.total(),
        dropped_at_most=sum(producer.dropped_at_most for producer in producers),
        truncated=sum(share.truncated for share in shares),
        missing=sum(part.length for share in shares for part in share.missing),
        removed=sum(share.removed for share in shares),
        dropped_by_reason=dict(sorted(by_reason.items())),
    )


def _producer_receipt(run: RunSummary, share: ProducerShare) -> ProducerReceipt:
    by_reason = share.dropped_by_reason
    outside = _possible(run, share)
    return ProducerReceipt(
        producer=share.producer,
        first_seq=share.first_seq,
        last_seq=share.last_seq,
        stored=share.stored,
        dropped=sum(by_reason.values()),
        dropped_at_most=sum(_at_most(share).values()) + sum(marker.count for marker in outside),
        truncated=share.truncated,
        dropped_by_reason=by_reason,
        dropped_ranges=[_dropped_range(marker) for marker in share.drops],
        possibly_dropped=sum(marker.count for marker in outside),
        possibly_dropped_ranges=[_dropped_range(marker) for marker in outside],
        missing=sum(part.length for part in share.missing),
        missing_ranges=[MissingRange(part.first_seq, part.last_seq, part.length) for part in share.missing],
        goodbye=share.goodbye,
        expected=share.expected,
        arrived=share.arrived if share.expected is not None else None,
    )


def _dropped_range(marker: DropMarker) -> DroppedRange:
    return DroppedRange(marker.seq, marker.seq + marker.count - 1, marker.count, marker.reason)


def _at_most(share: ProducerShare) -> dict[str, int]:
    """
    Return how many lines of the run were given up at most between its first and its last, by reason.

    Where the producer counted what was logged, up to its last line, no more can
    be lost than the count exceeds what is stored.
    """
    found = share.dropped_by_reason
    if share.expected is not None and share.arrived == share.stored:
        short = max(0, share.expected - share.arrived - share.removed)
        found = {reason: min(count, short) for reason, count in found.items()}
    return {reason: count for reason, count in found.items() if count}


def _possible(run: RunSummary, share: ProducerShare) -> list[DropMarker]:
    """
    Return what a producer gave up beside its lines of the run, and may have been the run's.

    A producer that says how many lines there were has begun and ended the run, so that none is outside.
    """
    if share.expected is not None and run.opened is not None:
        return []
    return [marker for marker in share.outside if marker.reason not in NOT_LOST]


def _losses(run: RunSummary, shares: Sequence[ProducerShare]) -> Iterator[str]:
    """Yield what is known to be missing."""
    if run.state not in FINAL_STATES:
        yield "the run has not ended" if run.state == "RUNNING" else "nothing tells that the run has ended"
    elif run.opened is None:
        # What was given up before the first line that is stored lies outside every range.
        yield "the line that began the run is not stored"
    for share in shares:
        who = f"producer {share.producer}"
        if share.is_alone:
            for reason, count in _at_most(share).items():
                yield f"{_lines(count)} dropped by {who}: {reason}"
        if share.elsewhere:
            yield f"{_lines(share.elsewhere)} of {who} went to another server"
        for part in share.missing:
            yield f"{_lines(part.length)} of {who} missing: seq {part.first_seq} to {part.last_seq}"
        if share.removed:
            yield f"{_lines(share.removed)} of {who} were stored and have been removed since, by retention"
        # Whether what was removed came before the end of the run or after it is not known any more.
        if share.expected is not None and not 0 <= share.expected - share.arrived <= share.removed:
            yield f"{who} logged {_lines(share.expected)} of this run, {share.arrived:,} are stored"


def _losses_below(runs: Sequence[tuple[RunSummary, Sequence[ProducerShare]]]) -> Iterator[str]:
    """Yield what is known to be missing of the runs that were opened in the run."""
    for run, shares in runs:
        who = f"{run.kind} run {run.name or run.id}" + (f" ({run.id})" if run.name else "")
        if run.state == "RUNNING":
            yield f"{who}, which was opened in it, has not ended"
        elif run.state in FINAL_STATES and run.opened is None:
            yield f"the line that began {who}, which was opened in it, is not stored"
        for share in shares:
            if share.expected is not None and not 0 <= share.expected - share.arrived <= share.removed:
                yield (
                    f"producer {share.producer} logged {_lines(share.expected)} of {who}, "
                    f"{share.arrived:,} are stored"
                )


def _doubts(run: RunSummary, shares: Sequence[ProducerShare]) -> Iterator[str]:
    """Yield what may be missing."""
    for share in shares:
        who = f"producer {share.producer}"
        if not share.is_alone:
            for reason, count in _at_most(share).items():
                yield f"at most {_lines(count)} of this run dropped by {who}: {reason}"
        possible: Counter[str] = Counter()
        for marker in _possible(run, share):
            possible[marker.reason] += marker.count
        for reason, count in sorted(possible.items()):
            yield f"{_lines(count)} dropped by {who}, possibly of this run: {reason}"
        if share.expected is None and not (share.goodbye or share.settled):
            yield f"{who} said neither goodbye nor how many lines there were: more may be on the way"


def _lines(count: int) -> str:
    return f"{count:,} line{'' if count == 1 else 's'}"
