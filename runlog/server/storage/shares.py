"""
What one producer sent of a run: the facts that a receipt is made of.

A storage reads them, `runlog.server.receipt` judges them. A producer's seqs are
dense, so each one between its first and its last line of a run is stored (as a
line of this run or of another), was marked as dropped, or is missing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from runlog.records import SEQ_BITS
from runlog.server.run_summary import FINISHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from runlog.records import DropMarker
    from runlog.server.run_summary import RunSummary

RUN_LINES = "runlog.run.lines"
"""
Attribute of the event that ends a run.

How many lines of the run, and of all that was opened in it, its producer has
sent, this one included.
"""

NOT_LOST: frozenset[str] = frozenset({"acknowledged_elsewhere"})
"""Reasons of drop markers whose lines are stored, only by another server."""

CLOCK_MARGIN_NS = 60_000_000_000
"""
How far apart the clocks of two machines may be, in nanoseconds.

What a producer did longer than that before a run began, or after it ended, by
its own clock, has nothing to do with the run.
"""

_COUNTS = range(2**SEQ_BITS + 1)
"""How many lines a producer can have sent; anything else that a run's end says is no count."""


class SeqRange(NamedTuple):
    """Consecutive seqs of one producer, both ends included."""

    first_seq: int
    last_seq: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.last_seq - self.first_seq + 1


class Claim(NamedTuple):
    """What a producer says, at the end of a run, that it has sent of it."""

    seq: int
    """Of the event that ends the run."""
    lines: int
    """Lines of the run up to that event."""

    def and_before(self, earlier: Claim | None) -> Claim:
        """Add what was claimed when the same run ended before: each claim counts from the run's beginning."""
        return self if earlier is None else Claim(self.seq, self.lines + earlier.lines)


@dataclass(frozen=True, slots=True)
class ProducerShare:
    """What one producer sent of a run and of those that were opened in it."""

    producer: str
    first_seq: int
    last_seq: int
    stored: int
    """Lines of the runs."""
    truncated: int
    """Stored lines that were cut to a size limit."""
    drops: tuple[DropMarker, ...] = ()
    """
    What the producer gave up between the first line and the last, in order.

    They may have been another run's: what was dropped is not known any more.
    """
    missing: tuple[SeqRange, ...] = ()
    """Seqs between the first and the last that are neither stored nor in a marker; perhaps another run's."""
    goodbye: bool = False
    """Whether the producer said that nothing follows."""
    expected: int | None = None
    """How many lines it says that it had sent when it ended the run; `None` if it did not say."""
    arrived: int = 0
    """How many of those are stored: lines up to its end of the run. 0 where nothing is expected."""
    outside: tuple[DropMarker, ...] = ()
    """
    What the producer gave up before the first line or after the last, in order.

    Without what it gave up, by the lines around it, before the run began or after it ended.
    """
    settled: bool = False
    """
    Whether nothing more of the run is to be expected from the producer.

    Its last line of the run ended a run, it said goodbye, or it has sent a line that
    is later than the run.
    """
    removed: int = 0
    """Lines of the runs that were stored, and were taken away since; they lie in the range as well."""

    @property
    def is_alone(self) -> bool:
        """Whether no line of another run, nor of none, is stored between the first line and the last."""
        known = self.stored + sum(marker.count for marker in self.drops)
        known += sum(part.length for part in self.missing) + self.removed
        return known > self.last_seq - self.first_seq

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """Seqs that were given up, and are in no other server either."""
        counts: Counter[str] = Counter()
        for marker in self.drops:
            if marker.reason not in NOT_LOST:
                counts[marker.reason] += marker.count
        return dict(sorted(counts.items()))

    @property
    def elsewhere(self) -> int:
        """Seqs that another server has acknowledged, and this one never got."""
        return sum(marker.count for marker in self.drops if marker.reason in NOT_LOST)


class Period(NamedTuple):
    """When something of a run may have been logged, in nanoseconds by any machine's clock."""

    begin_ns: int
    end_ns: int | None
    """`None` if the run has not ended."""

    @classmethod
    def of(cls, runs: Sequence[RunSummary]) -> Period:
        """Return the period of the runs that have one id; at least one."""
        ends = [run.ended_ns for run in runs]
        known = [end for end in ends if end is not None]
        return cls(
            min(run.started_ns for run in runs) - CLOCK_MARGIN_NS,
            max(known) + CLOCK_MARGIN_NS if len(known) == len(ends) else None,
        )


def merge_shares(shares: Sequence[ProducerShare]) -> list[ProducerShare]:
    """
    Return one share a producer, sorted, from shares of disjoint sets of lines.

    They have counts and nothing else yet: what lies between the lines can be
    told only once the first and the last are known.
    """
    merged: dict[str, ProducerShare] = {}
    for share in shares:
        known = merged.get(share.producer)
        merged[share.producer] = (
            share
            if known is None
            else replace(
                known,
                first_seq=min(known.first_seq, share.first_seq),
                last_seq=max(known.last_seq, share.last_seq),
                stored=known.stored + share.stored,
                truncated=known.truncated + share.truncated,
                removed=known.removed + share.removed,
            )
        )
    return [merged[producer] for producer in sorted(merged)]


def uncovered(within: SeqRange, covered: Iterable[SeqRange]) -> tuple[SeqRange, ...]:
    """
    Return the seqs of a range that no other one covers.

    Args:
        within: The range.
        covered: Others, in any order.
    """
    found: list[SeqRange] = []
    free_from = within.first_seq
    for part in sorted(covered):
        if part.first_seq > free_from:
            found.append(SeqRange(free_from, min(part.first_seq - 1, within.last_seq)))
        free_from = max(free_from, part.last_seq + 1)
        if free_from > within.last_seq:
            break
    if free_from <= within.last_seq:
        found.append(SeqRange(free_from, within.last_seq))
    return tuple(found)


def range_of(marker: DropMarker) -> SeqRange:
    """Return the seqs that a marker stands for."""
    return SeqRange(marker.seq, marker.seq + marker.count - 1)


def claimed_lines(event_name: str | None, attributes: dict[str, Any]) -> int | None:
    """Return the number of lines that an event claims for the run it ends; `None` if it claims none."""
    lines = attributes.get(RUN_LINES)
    return lines if event_name == FINISHED and type(lines) is int and lines in _COUNTS else None
