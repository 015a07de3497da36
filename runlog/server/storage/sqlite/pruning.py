"""
Take old lines away, some at a time.

Which lines may go is found out by a reader; the writer deletes them, a slice in
each transaction, between batches. What goes is noted, so that it is not taken for
lost: its seqs in ranges, and how many lines of which run it was. A run goes with
the last of its lines, if no run is left that was opened in it.

The line with the greatest rowid stays, as do the scope and the producer with the
greatest keys: SQLite would give their numbers to others, and arrivals, cursors and
what readers remember would mean something else. The mark of a producer stays until
it has said goodbye and been silent for long.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from runlog.server.query import Position
from runlog.server.run_summary import level_index
from runlog.server.storage.shares import SeqRange

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from runlog.server.storage.sqlite.reader import Reader

_BEFORE_ALL = Position(-(2**63), 0, 0)

USED_BYTES = (
    "SELECT (page_count - freelist_count) * page_size "
    "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
"""A statement for the bytes of a database that are not free."""

_GONE_RUNS = (
    "SELECT key, parent_id FROM runs r WHERE key IN (SELECT value FROM json_each(?)) "
    "AND NOT EXISTS (SELECT 1 FROM logs WHERE flow_run = r.key) "
    "AND NOT EXISTS (SELECT 1 FROM logs WHERE task_run = r.key) "
    "AND NOT EXISTS (SELECT 1 FROM runs inner_run WHERE inner_run.parent_id = r.id)"
)


class OldLine(NamedTuple):
    """A line that may go."""

    rowid: int
    producer: int
    seq: int
    flow_run: int | None
    task_run: int | None


class Found(NamedTuple):
    """What a look for old lines found."""

    lines: list[OldLine]
    after: Position | None
    """Where to look on; `None` if that was all."""


def find_old_lines(
    reader: Reader, keep_from_ns: Sequence[int | None], after: Position | None, limit: int
) -> Found:
    """
    Look at some lines, from the oldest on, and return those that may go.

    Args:
        reader: In a transaction.
        keep_from_ns: For each of `LEVELS`, the time up to which lines may go, by
            timestamp and by arrival; `None`: none may.
        after: Look on from here; `None` from the beginning.
        limit: Lines to look at.
    """
    newest = max((limit_ns for limit_ns in keep_from_ns if limit_ns is not None), default=None)
    if newest is None:
        return Found([], None)
    rows = reader.all(
        "SELECT timestamp_ns, producer, seq, level, observed_ns, rowid, flow_run, task_run FROM logs "
        "WHERE (timestamp_ns, producer, seq) > (?, ?, ?) AND timestamp_ns < ? "
        "ORDER BY timestamp_ns, producer, seq LIMIT ?",
        *(after or _BEFORE_ALL),
        newest,
        limit,
    )
    found = []
    for timestamp_ns, producer, seq, level, observed_ns, rowid, flow_run, task_run in rows:
        keep_ns = keep_from_ns[level_index(level)]
        if keep_ns is not None and timestamp_ns < keep_ns and observed_ns < keep_ns:
            found.append(OldLine(rowid, producer, seq, flow_run, task_run))
    return Found(found, Position(*rows[-1][:3]) if len(rows) == limit else None)


def delete_lines(connection: sqlite3.Connection, lines: Sequence[OldLine]) -> tuple[int, set[int]]:
    """
    Delete lines and the runs that have none left; return how many lines went, and the keys of the runs.

    Args:
        connection: The writer's, in a transaction.
        lines: As `find_old_lines` found them; no two are the same.
    """
    (newest,) = connection.execute("SELECT max(rowid) FROM logs").fetchone()
    going = [line for line in lines if line.rowid != newest]
    deleted = connection.executemany("DELETE FROM logs WHERE rowid = ?", [(line.rowid,) for line in going])
    assert deleted.rowcount == len(going) or not going, "nobody else deletes lines"
    of_producers = Counter(line.producer for line in going)
    connection.executemany(
        "UPDATE producers SET lines = lines - ? WHERE key = ?",
        [(count, producer) for producer, count in of_producers.items()],
    )
    for producer in of_producers:
        _note_seqs(connection, producer, sorted(line.seq for line in going if line.producer == producer))
    _note_runs(connection, going)
    touched = {key for line in going for key in (line.flow_run, line.task_run) if key is not None}
    return len(going), _delete_runs(connection, touched)


_OLD_PRODUCERS = (
    "SELECT key FROM producers p WHERE goodbye AND last_observed_ns < ? "
    "AND key < (SELECT max(key) FROM producers) "
    "AND NOT EXISTS (SELECT 1 FROM logs WHERE producer = p.key)"
)


def find_old_producers(reader: Reader, silent_since_ns: int, limit: int) -> list[int]:
    """Return the keys of producers that may be forgotten; see `LogStorage.forget_producers`."""
    return [key for (key,) in reader.all(f"{_OLD_PRODUCERS} LIMIT ?", silent_since_ns, limit)]


def delete_producers(connection: sqlite3.Connection, keys: Sequence[int], silent_since_ns: int) -> set[int]:
    """
    Delete producers, and what is known of lines that they sent; return the keys of those that went.

    Args:
        connection: The writer's, in a transaction.
        keys: As `find_old_producers` found them; one that has come back since stays.
        silent_since_ns: As there.
    """
    rows = connection.execute(
        f"{_OLD_PRODUCERS} AND key IN (SELECT value FROM json_each(?))",  # noqa: S608 - constants
        (silent_since_ns, json.dumps(keys)),
    )
    gone = {key for (key,) in rows}
    listed = json.dumps(sorted(gone))
    for table, column in (
        ("removed", "producer"),
        ("removed_of_runs", "producer"),
        ("drops", "producer"),
        ("producers", "key"),
    ):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",  # noqa: S608 - constants
            (listed,),
        )
    return gone


def ranges_of(seqs: Iterable[int]) -> list[SeqRange]:
    """Return ascending seqs as ranges, no two of which touch."""
    found: list[SeqRange] = []
    for seq in seqs:
        if found and found[-1].last_seq == seq - 1:
            found[-1] = SeqRange(found[-1].first_seq, seq)
        else:
            found.append(SeqRange(seq, seq))
    return found


def _note_seqs(connection: sqlite3.Connection, producer: int, seqs: list[int]) -> None:
    """Add seqs to the ranges of what was removed; one that closes a gap makes one of two."""
    for first, last in ranges_of(seqs):
        before = connection.execute(
            "SELECT first_seq, last_seq FROM removed WHERE producer = ? AND first_seq < ? "
            "ORDER BY first_seq DESC LIMIT 1",
            (producer, first),
        ).fetchone()
        joins = before is not None and before[1] == first - 1
        behind = connection.execute(
            "SELECT last_seq FROM removed WHERE producer = ? AND first_seq = ?", (producer, last + 1)
        ).fetchone()
        if behind is not None:
            connection.execute(
                "DELETE FROM removed WHERE producer = ? AND first_seq = ?", (producer, last + 1)
            )
        connection.execute(
            "INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
            (producer, before[0] if joins else first, behind[0] if behind is not None else last),
        )


def _note_runs(connection: sqlite3.Connection, lines: Sequence[OldLine]) -> None:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for line in lines:
        if line.flow_run is not None or line.task_run is not None:
            groups.setdefault((line.flow_run, line.task_run, line.producer), []).append(line.seq)
    for group, seqs in groups.items():
        facts = (len(seqs), min(seqs), max(seqs))
        known = connection.execute(
            "UPDATE removed_of_runs SET lines = lines + ?, first_seq = min(first_seq, ?), "
            "last_seq = max(last_seq, ?) WHERE flow_run IS ? AND task_run IS ? AND producer = ?",
            (*facts, *group),
        ).rowcount
        if not known:
            connection.execute("INSERT INTO removed_of_runs VALUES (?, ?, ?, ?, ?, ?)", (*group, *facts))


def _delete_runs(connection: sqlite3.Connection, keys: set[int]) -> set[int]:
    """Delete those of some runs that have no lines left, and then those in which they were opened."""
    all_gone: set[int] = set()
    while keys:
        gone = connection.execute(_GONE_RUNS, (json.dumps(sorted(keys)),)).fetchall()
        if not gone:
            break
        listed = json.dumps([key for key, _ in gone])
        for table in ("flow_run", "task_run"):
            connection.execute(
                f"DELETE FROM removed_of_runs WHERE {table} IN (SELECT value FROM json_each(?))",  # noqa: S608 - constants
                (listed,),
            )
        for kind in ("flow", "task"):
            connection.execute(
                "DELETE FROM scopes WHERE key < (SELECT max(key) FROM scopes) "  # noqa: S608 - constants
                f"AND {kind}_run_id IN (SELECT id FROM runs WHERE kind = '{kind}' "
                "AND key IN (SELECT value FROM json_each(?)))",
                (listed,),
            )
        connection.execute("DELETE FROM runs WHERE key IN (SELECT value FROM json_each(?))", (listed,))
        all_gone.update(key for key, _ in gone)
        parents = json.dumps([parent for _, parent in gone if parent is not None])
        found = connection.execute(
            "SELECT key FROM runs WHERE id IN (SELECT value FROM json_each(?))", (parents,)
        )
        keys = {key for (key,) in found}
    return all_gone
