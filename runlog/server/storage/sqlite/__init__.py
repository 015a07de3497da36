"""
The embedded store: one SQLite file, one thread that writes, a few that read.

``schema`` says what is in the file, ``file`` guards it, ``writer`` and
``reader`` hold its connections, ``rows`` translates. `SQLiteStorage` puts them
together behind `runlog.server.storage.base.LogStorage`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runlog.exceptions import StorageError
from runlog.server.query import RunIn, Sql
from runlog.server.storage.base import (
    MAX_TREE_RUNS,
    NOT_LOST,
    LogStorage,
    ProducerShare,
    Statistics,
    merge_shares,
)
from runlog.server.storage.sqlite.file import FileLock, prepare_file, storage_errors
from runlog.server.storage.sqlite.reader import ReaderPool
from runlog.server.storage.sqlite.rows import LINE_COLUMNS, RUN_COLUMNS, run_of_row, stored_lines
from runlog.server.storage.sqlite.schema import SCHEMA_VERSION, migrate
from runlog.server.storage.sqlite.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runlog.records import EventBatch
    from runlog.server.query import LogQuery, RunSet
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.base import Appended, RunQuery, StoredLine
    from runlog.server.storage.sqlite.reader import Reader

MAX_MERGED_RUNS = 100
"""
Runs of a tree that one statement merges; larger trees take several statements.

SQLite allows 500 parts of a compound SELECT, and plans many of them slowly.
"""


class SQLiteStorage(LogStorage):
    """
    Keeps lines in an SQLite database.

    Args:
        path: The file; it and its directory are made if they are missing.
    """

    schema_version = SCHEMA_VERSION

    def __init__(self, path: Path) -> None:
        self._path = path
        self.location = str(path)
        self._lock: FileLock | None = None
        self._writer: Writer | None = None
        self._readers: ReaderPool | None = None

    def __repr__(self) -> str:
        return f"<SQLiteStorage {'closed' if self._writer is None else 'open'} at {self._path}>"

    async def open(self) -> None:
        """
        Open the file, in another thread.

        Raises:
            StorageError: If it is in use, not a database, or another program's.
            SchemaVersionError: If a newer runlog wrote it.
        """
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        prepare_file(self._path)
        lock = FileLock(self._path)
        connection = None
        try:
            with storage_errors(self._path):
                connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                migrate(connection, self._path)
                self._writer = Writer(connection, self._path)
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise
        self._lock = lock
        self._readers = ReaderPool(self._path)

    async def close(self) -> None:
        """Store what is queued, answer what is asked, and close the file."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        readers, self._readers = self._readers, None
        writer, self._writer = self._writer, None
        lock, self._lock = self._lock, None
        if readers is not None and writer is not None and lock is not None:
            readers.close()
            writer.close()
            lock.release()

    async def append(self, batch: EventBatch, *, observed_ns: int) -> Appended:
        """Queue a batch and wait for the commit. Cancelling stops the wait, not the batch."""
        if self._writer is None:
            raise self._closed()
        return await self._writer.submit(batch, observed_ns, asyncio.get_running_loop())

    @property
    def _reading(self) -> ReaderPool:
        if self._readers is None:
            raise self._closed()
        return self._readers

    def _closed(self) -> StorageError:
        return StorageError(f"the database {self._path} is closed")

    async def read_lines(self, query: LogQuery) -> list[StoredLine]:
        """Read along an index in the query's order."""
        if query.limit <= 0:
            return []

        def question(reader: Reader) -> list[StoredLine]:
            pages = [reader.all(*statement) for statement in _line_statements(query)]
            if len(pages) == 1:
                rows = pages[0]
            else:  # each page is the beginning of its own runs' lines
                merged = heapq.merge(*pages, key=_position_of_row, reverse=query.order == "desc")
                rows = list(itertools.islice(merged, query.offset, query.offset + query.limit))
            return stored_lines(rows, reader.producer, reader.logger, reader.scope)

        return await self._reading.ask(question)

    async def read_runs(self, query: RunQuery) -> list[RunSummary]:
        """Read along the index by start, or by what is more selective."""
        where, parameters = _run_condition(query)
        sql = (
            f"SELECT {RUN_COLUMNS} FROM runs r WHERE {where} "  # noqa: S608 - literals with question marks
            "ORDER BY started_ns DESC, id DESC, kind DESC LIMIT ? OFFSET ?"
        )
        return await self._reading.ask(
            lambda reader: [
                run_of_row(row) for row in reader.all(sql, *parameters, query.limit, query.offset)
            ]
        )

    async def read_tree(self, run_id: str) -> list[RunSummary]:
        """Walk down in one statement; UNION ends it where parents form a ring."""
        sql = (
            "WITH RECURSIVE tree (id) AS ("  # noqa: S608 - constants
            " SELECT ? UNION SELECT runs.id FROM tree JOIN runs ON runs.parent_id = tree.id LIMIT ?) "
            f"SELECT {RUN_COLUMNS} FROM runs WHERE id IN (SELECT id FROM tree) ORDER BY started_ns, id, kind"
        )

        def question(reader: Reader) -> list[RunSummary]:
            if not reader.all("SELECT 1 FROM runs WHERE id = ?", run_id):
                return []
            return [run_of_row(row) for row in reader.all(sql, run_id, MAX_TREE_RUNS)]

        return await self._reading.ask(question)

    async def read_shares(self, runs: RunSet) -> list[ProducerShare]:
        """Count along the indexes by run, then look for what was dropped."""

        def question(reader: Reader) -> list[ProducerShare]:
            shares = merge_shares(
                [
                    ProducerShare(reader.producer(producer), first, last, stored, 0, truncated)
                    for branch in _branches(runs)
                    for producer, first, last, stored, truncated in reader.all(
                        "SELECT producer, min(seq), max(seq), count(*), sum(truncated_bytes > 0) "  # noqa: S608 - as above
                        f"FROM logs l WHERE {branch.text} GROUP BY producer",
                        *branch.parameters,
                    )
                ]
            )
            return [replace(share, dropped=_dropped(reader, share)) for share in shares]

        return await self._reading.ask(question)

    async def read_statistics(self) -> Statistics:
        """Add up the producers' counts: counting the lines themselves would read an index through."""
        rows = await self._reading.ask(
            lambda reader: reader.all(
                "SELECT (SELECT count(*) FROM runs), (SELECT coalesce(sum(lines), 0) FROM producers)"
            )
        )
        return Statistics(*rows[0])


# --- SQL ----------------------------------------------------------------------------------------------


def _line_statements(query: LogQuery) -> Iterator[tuple[Any, ...]]:
    """Yield statements with their parameters, whose answers are to be merged in the query's order."""
    where = query.where.sql()
    conditions, parameters = [f"({where.text})"], list(where.parameters)
    if query.after is not None:
        sign = ">" if query.order == "asc" else "<"
        conditions.append(f"(l.timestamp_ns, l.producer, l.seq) {sign} (?, ?, ?)")
        parameters += query.after
    branches = list(_branches(query.runs)) if query.runs is not None else [Sql("1", ())]
    direction = query.order.upper()
    alone = len(branches) <= MAX_MERGED_RUNS
    for start in range(0, len(branches), MAX_MERGED_RUNS) or [0]:
        part = branches[start : start + MAX_MERGED_RUNS] or [Sql("0", ())]
        # A compound SELECT with ORDER BY merges its parts as they come, so that LIMIT ends all of them early.
        selects = " UNION ALL ".join(
            f"SELECT {LINE_COLUMNS} FROM logs l WHERE {' AND '.join([branch.text, *conditions])}"  # noqa: S608 - as above
            for branch in part
        )
        # The third, first and second of the columns: a compound has no other names for them.
        sql = f"{selects} ORDER BY 3 {direction}, 1 {direction}, 2 {direction} LIMIT ? OFFSET ?"
        values = [value for branch in part for value in (*branch.parameters, *parameters)]
        if alone:
            yield (sql, *values, query.limit, query.offset)
        else:  # what is left out can be told only once all are merged
            yield (sql, *values, query.limit + query.offset, 0)


def _branches(runs: RunSet) -> Iterator[Sql]:
    """Yield one condition a run, no two of which a line can meet, and each a range of an index."""
    for run_id in runs.flow_run_ids:
        yield RunIn("flow", (run_id,)).sql()
    for run_id in runs.task_run_ids:
        task = RunIn("task", (run_id,)).sql()
        if not runs.flow_run_ids:
            yield task
            continue
        flows = RunIn("flow", (*runs.flow_run_ids, "")).sql()
        yield Sql(
            f"{task.text} AND (l.flow_run IS NULL OR NOT {flows.text})",
            (*task.parameters, *flows.parameters),
        )


def _position_of_row(row: tuple[Any, ...]) -> tuple[int, int, int]:
    """The place of a line, from the first of `LINE_COLUMNS`."""
    producer, seq, timestamp_ns = row[:3]
    return timestamp_ns, producer, seq


def _run_condition(query: RunQuery) -> tuple[str, list[Any]]:
    tests: list[tuple[str, tuple[Any, ...]]] = [("1", ())]
    for column, value in (
        ("kind", query.kind),
        ("state", query.state),
        ("name", query.name),
        ("id", query.id),
        ("parent_id", query.parent_id),
    ):
        if value is not None:
            tests.append((f"{column} = ?", (value,)))
    if query.id_prefix is not None:
        tests.append(
            ("id >= ? AND substr(id, 1, ?) = ?", (query.id_prefix, len(query.id_prefix), query.id_prefix))
        )
    if query.name_contains is not None:
        tests.append(("instr(lower_text(coalesce(name, '')), ?)", (query.name_contains.lower(),)))
    if query.top_level:
        tests.append(("NOT EXISTS (SELECT 1 FROM runs outer_run WHERE outer_run.id = r.parent_id)", ()))
    if query.after is not None:
        tests.append(("(started_ns, id, kind) < (?, ?, ?)", query.after))
    return " AND ".join(text for text, _ in tests), [value for _, values in tests for value in values]


def _dropped(reader: Reader, share: ProducerShare) -> int:
    rows = reader.all(
        "SELECT coalesce(sum(count), 0) FROM drops "  # noqa: S608 - literals with question marks
        "WHERE producer = (SELECT key FROM producers WHERE id = ?) AND seq > ? AND seq < ? "
        f"AND reason NOT IN ({', '.join('?' * len(NOT_LOST))})",
        share.producer,
        share.first_seq,
        share.last_seq,
        *sorted(NOT_LOST),
    )
    return int(rows[0][0])
