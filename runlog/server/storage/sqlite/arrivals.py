"""
Lines in the order in which they were committed: that of their rowids, see ``schema``.

A question looks at a bounded range of rowids, so that it takes a fraction of a
second however much is stored and however few lines pass: whoever follows a busy
store with a narrow filter asks several short questions and never a long one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from runlog.server.query import AnyOf, RunIn
from runlog.server.storage.base import Arrivals
from runlog.server.storage.sqlite.rows import LINE_COLUMNS, stored_lines

if TYPE_CHECKING:
    import sqlite3

    from runlog.server.query import Condition
    from runlog.server.storage.base import RunSet
    from runlog.server.storage.sqlite.reader import Reader

MAX_SCANNED = 20_000
"""Rowids that one question looks at: some 10 MB of rows, 20 to 100 ms."""

MAX_PAGE_BYTES = 256 * 1024
"""Of messages and attributes in one answer: a reader that does not go on holds no more."""

MESSAGE = 7
"""Where the message is in a row; the attributes follow."""


def last_arrival(connection: sqlite3.Connection) -> int:
    """Return the greatest rowid, 0 if there is none."""
    (last,) = connection.execute("SELECT ifnull(max(rowid), 0) FROM logs").fetchone()
    return int(last)


def arrival_before(connection: sqlite3.Connection, timestamp_ns: int) -> int:
    """Return the arrival before the first line that has this timestamp or a later one."""
    (oldest_ns,) = connection.execute("SELECT min(timestamp_ns) FROM logs").fetchone()
    if oldest_ns is not None and oldest_ns >= timestamp_ns:  # everything: no need to look at each
        (first,) = connection.execute("SELECT min(rowid) FROM logs").fetchone()
        return int(first) - 1
    (first,) = connection.execute(
        "SELECT min(rowid) FROM logs INDEXED BY logs_by_time WHERE timestamp_ns >= ?", (timestamp_ns,)
    ).fetchone()
    return last_arrival(connection) if first is None else int(first) - 1


def read_arrivals(
    reader: Reader,
    after: int,
    *,
    where: Condition | None,
    runs: RunSet | None,
    upto: int | None,
    limit: int,
) -> Arrivals:
    """
    Return lines in the order of their arrival; see `LogStorage.read_arrivals`.

    Args:
        reader: In a transaction.
        after: Only lines behind this rowid.
        where: Only lines that pass.
        runs: Only lines of these runs; `None` for those of all.
        upto: Only lines up to this rowid; `None` for the last one.
        limit: Most lines.
    """
    last = last_arrival(reader.connection)
    if upto is not None:
        last = min(last, upto)
    # What retention removed is stepped over in one go.
    ((first,),) = reader.all("SELECT min(rowid) FROM logs WHERE rowid > ?", after)
    if first is None or first > last:
        return Arrivals([], max(last, after))
    end = min(last, first + MAX_SCANNED - 1)
    tests = ["l.rowid > ?", "l.rowid <= ?"]
    parameters: list[Any] = [after, end]
    parts = [where.sql()] if where is not None else []
    if runs is not None:
        parts.append(AnyOf((RunIn("flow", runs.flow_run_ids), RunIn("task", runs.task_run_ids))).sql())
    for part in parts:
        tests.append(f"({part.text})")
        parameters += part.parameters
    # NOT INDEXED: an index by run would be read from its beginning for each page.
    cursor = reader.connection.execute(
        f"SELECT {LINE_COLUMNS}, l.rowid FROM logs l NOT INDEXED "  # noqa: S608 - literals with question marks
        f"WHERE {' AND '.join(tests)} ORDER BY l.rowid LIMIT ?",
        (*parameters, limit),
    )
    rows, size = [], 0
    with contextlib.closing(cursor):  # one that is left early would keep this view of the data
        for row in cursor:
            rows.append(row)
            size += len(row[MESSAGE]) + len(row[MESSAGE + 1] or "")
            if size >= MAX_PAGE_BYTES:
                break
    lines = stored_lines([row[:-1] for row in rows], reader.producer, reader.logger, reader.scope)
    found = list(zip([row[-1] for row in rows], lines, strict=True))
    is_whole = len(found) < limit and size < MAX_PAGE_BYTES
    return Arrivals(found, end if is_whole else found[-1][0])
