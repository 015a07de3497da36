"""
The embedded store: one SQLite file, one thread that writes, a few that read.

``schema`` says what is in the file, ``file`` guards it, ``writer`` and
``reader`` hold its connections, ``rows`` translates. `SQLiteStorage` puts them
together behind `runlog.server.storage.base.LogStorage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from typing import TYPE_CHECKING, TypeVar

from runlog.exceptions import StorageError, StorageFullError
from runlog.server.storage.base import (
    LogStorage,
    Pruned,
    Size,
    Statistics,
    Writing,
)
from runlog.server.storage.sqlite.arrivals import arrival_before, last_arrival, read_arrivals
from runlog.server.storage.sqlite.file import FileLock, prepare_file, storage_errors
from runlog.server.storage.sqlite.keys import SELECT_KEYS, UPSERT_KEY, key_of_row, key_row
from runlog.server.storage.sqlite.lines import count_lines, read_histogram, read_line, read_lines, run_parts
from runlog.server.storage.sqlite.pruning import (
    USED_BYTES,
    delete_lines,
    delete_producers,
    find_old_lines,
    find_old_producers,
)
from runlog.server.storage.sqlite.reader import ReaderPool
from runlog.server.storage.sqlite.runs import read_run_set, read_runs, read_tree
from runlog.server.storage.sqlite.schema import SCHEMA_VERSION, migrate
from runlog.server.storage.sqlite.shares import read_shares
from runlog.server.storage.sqlite.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from runlog.records import EventBatch
    from runlog.server.counting import GroupBy, Histogram, LineCount
    from runlog.server.keys import ApiKey
    from runlog.server.query import Condition, LogQuery, Position
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.base import Appended, Arrivals, RunQuery, StoredLine
    from runlog.server.storage.shares import ProducerShare
    from runlog.server.storage.sqlite.reader import Reader

T = TypeVar("T")


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
        self._pruning = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<SQLiteStorage {'closed' if self._writer is None else 'open'} at {self._path}>"

    def may_have_keys(self) -> bool:
        """Return whether there is a file."""
        return self._path.exists()

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
        with contextlib.ExitStack() as undo, storage_errors(self._path):
            lock = FileLock(self._path)
            undo.callback(lock.release)
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            undo.callback(connection.close)
            migrate(connection, self._path)
            (self.epoch,) = connection.execute("SELECT epoch FROM store").fetchone()
            self._writer = Writer(connection, self._path)
            undo.pop_all()
        self._lock = lock
        self._readers = ReaderPool(self._path, lambda: self.max_query_s)

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
        """Read from an index in the query's order."""
        if query.limit <= 0:
            return []

        def question(reader: Reader) -> list[StoredLine]:
            runs = read_run_set(reader, query.within) if query.within is not None else None
            return read_lines(reader, query, runs)

        return await self._reading.ask(question)

    async def read_line(self, producer: str, seq: int) -> StoredLine | None:
        """Look it up by its unique key."""
        return await self._reading.ask(lambda reader: read_line(reader, producer, seq))

    async def count_lines(self, query: LogQuery, by: GroupBy | None = None) -> list[LineCount]:
        """Count along an index where there is one."""

        def question(reader: Reader) -> list[LineCount]:
            runs = read_run_set(reader, query.within) if query.within is not None else None
            return count_lines(reader, query, runs, by)

        return await self._reading.ask(question)

    async def read_histogram(
        self,
        query: LogQuery,
        *,
        earliest_ns: int | None = None,
        latest_ns: int | None = None,
        max_buckets: int,
    ) -> Histogram | None:
        """Find the ends of an index, then count along it."""

        def question(reader: Reader) -> Histogram | None:
            runs = read_run_set(reader, query.within) if query.within is not None else None
            return read_histogram(
                reader, query, runs, earliest_ns=earliest_ns, latest_ns=latest_ns, max_buckets=max_buckets
            )

        return await self._reading.ask(question)

    async def read_arrivals(
        self,
        after: int,
        *,
        where: Condition | None = None,
        within: str | None = None,
        upto: int | None = None,
        limit: int = 1000,
    ) -> Arrivals:
        """Read along the rowid."""

        def question(reader: Reader) -> Arrivals:
            runs = read_run_set(reader, within) if within is not None else None
            return read_arrivals(reader, after, where=where, runs=runs, upto=upto, limit=limit)

        return await self._reading.ask(question)

    async def last_arrival(self) -> int:
        """Read the greatest rowid."""
        return await self._reading.ask(lambda reader: last_arrival(reader.connection))

    async def arrival_before(self, timestamp_ns: int) -> int:
        """Read along the index by time, which has the rowids."""
        return await self._reading.ask(lambda reader: arrival_before(reader.connection, timestamp_ns))

    async def read_runs(self, query: RunQuery) -> list[RunSummary]:
        """Read along the index by start, or by what is more selective."""
        return await self._reading.ask(lambda reader: read_runs(reader, query))

    async def read_tree(self, run_id: str) -> list[RunSummary]:
        """Walk down in one statement."""
        return await self._reading.ask(lambda reader: read_tree(reader, run_id))

    async def read_shares(self, run_id: str) -> list[ProducerShare]:
        """Count along the indexes by run, then look for what lies between the lines."""
        return await self._reading.ask(
            lambda reader: read_shares(reader, run_id, run_parts(read_run_set(reader, run_id)))
        )

    async def read_statistics(self) -> Statistics:
        """Add up the producers' counts: counting the lines themselves would read an index through."""
        rows = await self._reading.ask(
            lambda reader: reader.all(
                "SELECT (SELECT count(*) FROM runs), (SELECT coalesce(sum(lines), 0) FROM producers)"
            )
        )
        return Statistics(*rows[0])

    def writing(self) -> Writing | None:
        """Look at the writer's queue."""
        writer = self._writer
        return Writing(writer.waiting, writer.commits) if writer is not None else None

    async def read_size(self) -> Size:
        """Ask SQLite for its pages, and the file system for the files' sizes."""
        (row,) = await self._reading.ask(lambda reader: reader.all(USED_BYTES))
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return Size(int(row[0]), sum(file.stat().st_size for file in files if file.exists()))

    async def prune(
        self, keep_from_ns: Sequence[int | None], *, after: Position | None = None, limit: int = 1000
    ) -> Pruned:
        """Let a reader find the lines and the writer delete them; one call at a time."""
        writer = self._writer
        async with self._pruning:
            found = await self._reading.ask(lambda reader: find_old_lines(reader, keep_from_ns, after, limit))
            if not found.lines or writer is None:
                return Pruned(0, 0, found.after)

            def change(connection: sqlite3.Connection) -> Pruned:
                lines, runs = delete_lines(connection, found.lines)
                writer.forget_runs(runs)
                return Pruned(lines, len(runs), found.after)

            return await self._write(change)

    async def forget_producers(self, silent_since_ns: int, *, limit: int = 1000) -> int:
        """Let a reader find them and the writer delete them."""
        writer = self._writer
        keys = await self._reading.ask(lambda reader: find_old_producers(reader, silent_since_ns, limit))
        if not keys or writer is None:
            return 0

        def change(connection: sqlite3.Connection) -> int:
            gone = delete_producers(connection, keys, silent_since_ns)
            writer.forget_producers(gone)
            return len(gone)

        return await self._write(change)

    async def vacuum(self) -> None:
        """Let the writer write the file anew; rowids stay, see ``schema``."""
        if self._writer is None:
            raise self._closed()
        used = (await self.read_size()).used_bytes
        if shutil.disk_usage(self._path.parent).free < 2 * used:  # a whole copy, first in the WAL
            raise StorageFullError(
                f"the database {self._path} cannot be made smaller: that takes {2 * used} bytes for a while"
            )
        await self._writer.run(_vacuum, asyncio.get_running_loop(), in_transaction=False)

    async def read_keys(self) -> list[ApiKey]:
        """Read the table."""
        return await self._reading.ask(lambda reader: [key_of_row(row) for row in reader.all(SELECT_KEYS)])

    async def add_key(self, key: ApiKey) -> None:
        """Write a row."""
        await self._write(lambda connection: connection.execute(UPSERT_KEY, key_row(key)))

    async def remove_key(self, key_id: str) -> bool:
        """Delete a row."""
        deleted = await self._write(
            lambda connection: connection.execute("DELETE FROM api_keys WHERE id = ?", (key_id,)).rowcount
        )
        return bool(deleted)

    async def mark_keys_used(self, used_ns: Mapping[str, int]) -> None:
        """Write the times in one transaction."""
        times = [(last_used_ns, key_id) for key_id, last_used_ns in used_ns.items()]
        await self._write(
            lambda connection: connection.executemany(
                "UPDATE api_keys SET last_used_ns = ? WHERE id = ?", times
            )
        )

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Let the writer run *change* in a transaction of its own, between batches."""
        if self._writer is None:
            raise self._closed()
        return await self._writer.run(change, asyncio.get_running_loop())


def _vacuum(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
