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

from runlog.records import DropMarker
from runlog.server.run_summary import FINISHED
from runlog.server.storage.shares import (
    Claim,
    ProducerShare,
    SeqRange,
    claimed_lines,
    merge_shares,
    range_of,
    uncovered,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runlog.server.query import Sql
    from runlog.server.storage.sqlite.reader import Reader


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
    claims = _claims(reader, run_id)
    shares = []
    for share in merge_shares(counted):
        key = keys[share.producer]
        drops = _drops(reader, key, share)
        claim = claims.get(key)
        shares.append(
            replace(
                share,
                drops=drops,
                missing=_missing(reader, key, SeqRange(share.first_seq, share.last_seq), drops),
                goodbye=bool(reader.all("SELECT goodbye FROM producers WHERE key = ?", key)[0][0]),
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


def _drops(reader: Reader, key: int, share: ProducerShare) -> tuple[DropMarker, ...]:
    return tuple(
        DropMarker(*row)
        for row in reader.all(
            "SELECT seq, count, reason FROM drops WHERE producer = ? AND seq > ? AND seq < ? ORDER BY seq",
            key,
            share.first_seq,
            share.last_seq,
        )
    )


def _missing(
    reader: Reader, key: int, within: SeqRange, drops: tuple[DropMarker, ...]
) -> tuple[SeqRange, ...]:
    ((stored,),) = reader.all(
        "SELECT count(*) FROM logs WHERE producer = ? AND seq BETWEEN ? AND ?", key, *within
    )
    if stored + sum(marker.count for marker in drops) == within.length:
        return ()
    # Of seqs in a row, each is as far from its rank as the others.
    islands = reader.all(
        "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island "
        "FROM logs WHERE producer = ? AND seq BETWEEN ? AND ?) GROUP BY island",
        key,
        *within,
    )
    return uncovered(within, [*(SeqRange(*row) for row in islands), *(range_of(marker) for marker in drops)])


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
