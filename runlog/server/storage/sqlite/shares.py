"""
What each producer sent of a run, read from the tables.

The lines of a run are counted along its indexes. Whether anything is missing
between them is first settled by counting, from an index alone; only where the
counts do not add up are the ranges looked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from runlog.records import SEQ_BITS, DropMarker
from runlog.server.run_summary import FINISHED
from runlog.server.storage.shares import (
    Claim,
    Period,
    ProducerShare,
    SeqRange,
    claimed_lines,
    merge_shares,
    range_of,
    uncovered,
)
from runlog.server.storage.sqlite.rows import RUN_COLUMNS, run_of_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runlog.server.query import Sql
    from runlog.server.storage.sqlite.reader import Reader


BEYOND = 2**SEQ_BITS
"""Greater than any seq."""


def read_shares(reader: Reader, run_id: str, parts: Sequence[Sql]) -> list[ProducerShare]:
    """
    Return what each producer sent of a run and of all that were opened in it, sorted by producer.

    Args:
        reader: In a transaction.
        run_id: The run.
        parts: Conditions for its lines ``l``, no two of which a line meets.
    """
    keys: dict[str, int] = {}
    counted = []
    for part in parts:
        for key, first, last, stored, truncated in reader.all(
            "SELECT producer, min(seq), max(seq), count(*), sum(truncated_bytes > 0) "  # noqa: S608 - literals with question marks
            f"FROM logs l WHERE {part.text} GROUP BY producer",
            *part.parameters,
        ):
            producer = reader.producer(key)
            keys[producer] = key
            counted.append(ProducerShare(producer, first, last, stored, truncated))
        for key, first, last, removed in reader.all(
            "SELECT producer, min(first_seq), max(last_seq), sum(lines) "  # noqa: S608 - as above
            f"FROM removed_of_runs l WHERE {part.text} GROUP BY producer",
            *part.parameters,
        ):
            producer = reader.producer(key)
            keys[producer] = key
            counted.append(ProducerShare(producer, first, last, 0, 0, removed=removed))
    if not counted:
        return []
    claims = _claims(reader, run_id)
    period = Period.of(
        [run_of_row(row) for row in reader.all(f"SELECT {RUN_COLUMNS} FROM runs WHERE id = ?", run_id)]  # noqa: S608 - a constant
    )
    shares = []
    for share in merge_shares(counted):
        key = keys[share.producer]
        drops = _drops(reader, key, share.first_seq, share.last_seq)
        claim = claims.get(key)
        shares.append(
            replace(
                share,
                drops=drops,
                missing=_missing(reader, key, SeqRange(share.first_seq, share.last_seq), drops),
                goodbye=(
                    goodbye := bool(reader.all("SELECT goodbye FROM producers WHERE key = ?", key)[0][0])
                ),
                outside=_outside(reader, key, share, period),
                settled=goodbye or _is_settled(reader, key, share, period),
                expected=claim.lines if claim is not None else None,
                arrived=_arrived(reader, key, claim, share, parts) if claim is not None else 0,
            )
        )
    return shares


def _claims(reader: Reader, run_id: str) -> dict[int, Claim]:
    """Return what each producer, by its key, says that it sent of a run."""
    claims: dict[int, Claim] = {}
    for key, seq, attributes in reader.all(
        # SQLite would rather read all lines in order than sort the few that are wanted.
        "SELECT producer, seq, attributes FROM logs INDEXED BY logs_by_finished_run "  # noqa: S608 - a constant
        f"WHERE event_name = '{FINISHED}' "
        "AND ifnull(task_run, flow_run) IN (SELECT key FROM runs WHERE id = ?) "
        "AND attributes IS NOT NULL ORDER BY producer, seq",
        run_id,
    ):
        lines = claimed_lines(FINISHED, msgspec.json.decode(attributes))
        if lines is not None:
            claims[key] = Claim(seq, lines).and_before(claims.get(key))
    return claims


def _drops(reader: Reader, key: int, after: int, before: int) -> tuple[DropMarker, ...]:
    return tuple(
        DropMarker(*row)
        for row in reader.all(
            "SELECT seq, count, reason FROM drops WHERE producer = ? AND seq > ? AND seq < ? ORDER BY seq",
            key,
            after,
            before,
        )
    )


def _outside(reader: Reader, key: int, share: ProducerShare, period: Period) -> tuple[DropMarker, ...]:
    """Return what a producer gave up beside its lines of the run, and perhaps while the run was on."""
    before = _drops(reader, key, -1, share.first_seq)
    after = _drops(reader, key, share.last_seq, BEYOND)
    if before:
        earlier = reader.all(
            # Along the seqs, which are in the order of time as far as it matters here.
            "SELECT seq FROM logs WHERE producer = ? AND seq < ? AND +timestamp_ns < ? "
            "ORDER BY seq DESC LIMIT 1",
            key,
            share.first_seq,
            period.begin_ns,
        )
        before = tuple(marker for marker in before if not earlier or marker.seq > earlier[0][0])
    if after:
        later = _later(reader, key, share, period)
        after = tuple(marker for marker in after if later is None or marker.seq < later)
    return before + after


def _later(reader: Reader, key: int, share: ProducerShare, period: Period) -> int | None:
    """Return the seq of the first line that a producer sent after the run had ended."""
    if period.end_ns is None:
        return None
    found = reader.all(
        "SELECT seq FROM logs WHERE producer = ? AND seq > ? AND +timestamp_ns > ? ORDER BY seq LIMIT 1",
        key,
        share.last_seq,
        period.end_ns,
    )
    return found[0][0] if found else None


def _is_settled(reader: Reader, key: int, share: ProducerShare, period: Period) -> bool:
    last = reader.all("SELECT event_name FROM logs WHERE producer = ? AND seq = ?", key, share.last_seq)
    return last == [(FINISHED,)] or _later(reader, key, share, period) is not None


def _missing(
    reader: Reader, key: int, within: SeqRange, drops: tuple[DropMarker, ...]
) -> tuple[SeqRange, ...]:
    ((stored,),) = reader.all(
        "SELECT count(*) FROM logs WHERE producer = ? AND seq BETWEEN ? AND ?", key, *within
    )
    dropped = sum(marker.count for marker in drops)
    if stored + dropped == within.length:
        return ()
    removed = [
        SeqRange(max(first, within.first_seq), min(last, within.last_seq))
        for first, last in reader.all(
            # No two ranges touch, so that only the last that begins before can reach into this one.
            "SELECT first_seq, last_seq FROM removed WHERE producer = ? AND first_seq <= ? "
            "AND first_seq >= ifnull((SELECT max(first_seq) FROM removed "
            "WHERE producer = ? AND first_seq <= ?), ?) AND last_seq >= ?",
            *(key, within.last_seq),
            *(key, within.first_seq),
            *(within.first_seq, within.first_seq),
        )
    ]
    if stored + dropped + sum(part.length for part in removed) == within.length:
        return ()
    # Of seqs in a row, each is as far from its rank as the others.
    islands = reader.all(
        "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island "
        "FROM logs WHERE producer = ? AND seq BETWEEN ? AND ?) GROUP BY island",
        key,
        *within,
    )
    known = [SeqRange(*row) for row in islands] + [range_of(marker) for marker in drops]
    return uncovered(within, known + removed)


def _arrived(reader: Reader, key: int, claim: Claim, share: ProducerShare, parts: Sequence[Sql]) -> int:
    if claim.seq == share.last_seq:  # the usual end: nothing came after it
        return share.stored
    return sum(
        int(
            reader.all(
                f"SELECT count(*) FROM logs l WHERE {part.text} AND l.producer = ? AND l.seq <= ?",  # noqa: S608 - literals with question marks
                *part.parameters,
                key,
                claim.seq,
            )[0][0]
        )
        for part in parts
    )
