"""
Connections that only read, one to each of a few threads.

Readers see the last commit and never wait for the writer, nor it for them. The
rows that lines share (producers, loggers, scopes) never change, so each reader
keeps those it has met.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from runlog.server.conditions import SQL_FUNCTIONS
from runlog.server.patterns import TimeLimit
from runlog.server.run_summary import Scope
from runlog.server.storage.sqlite.file import storage_errors
from runlog.server.text_search import parse_text_search

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

MAX_READERS = 4
"""Questions answered at once; SQLite works without Python's lock, so that other cores help."""

STEPS_BETWEEN_LOOKS = 10_000
"""Steps of SQLite's machine between two looks at the clock: less than a millisecond, some thousand lines."""

MAX_REMEMBERED = 50_000
"""Shared rows of each kind that a reader keeps."""


class Reader:
    """
    One connection and what it has met. Used by one thread at a time.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        # Not mode=ro: the first to open a WAL database after a crash may have to write its index anew.
        address = f"{path.absolute().as_uri()}?mode=rw"
        self.connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA query_only = ON")
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.connection.create_function("text_matches", 3, _text_matches, deterministic=True)
        for name, (arguments, function) in SQL_FUNCTIONS.items():
            self.connection.create_function(name, arguments, function, deterministic=True)
        self._producers: dict[int, str] = {}
        self._loggers: dict[int, str] = {}
        self._scopes: dict[int, Scope] = {}

    def all(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return all rows of an answer."""
        return self.connection.execute(sql, parameters).fetchall()

    def producer(self, key: int) -> str:
        """Return a producer's id by its key."""
        found = self._producers.get(key)
        return found or self._met(
            self._producers, key, *self._row("SELECT id FROM producers WHERE key = ?", key)
        )

    def logger(self, key: int) -> str:
        """Return a logger's name by its key."""
        found = self._loggers.get(key)
        if found is None:
            found = self._met(self._loggers, key, *self._row("SELECT name FROM loggers WHERE key = ?", key))
        return found

    def scope(self, key: int) -> Scope:
        """Return a scope by its key."""
        found = self._scopes.get(key)
        if found is None:
            row = self._row("SELECT * FROM scopes WHERE key = ?", key)
            found = self._met(self._scopes, key, Scope(*row[1:]))
        return found

    def _row(self, sql: str, key: int) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(sql, (key,)).fetchone()
        return row

    @staticmethod
    def _met(known: dict[int, T], key: int, value: T) -> T:
        if len(known) >= MAX_REMEMBERED:
            known.clear()
        known[key] = value
        return value


def _text_matches(query: str, message: str, name: str) -> bool:
    return parse_text_search(query).matches(message, name)


class ReaderPool:
    """
    Runs questions in threads that have a reader each.

    Args:
        path: The database, which the writer has opened before.
        max_query_s: Tells the seconds after which a question is given up.
    """

    def __init__(self, path: Path, max_query_s: Callable[[], float]) -> None:
        self._path = path
        self._max_query_s = max_query_s
        self._threads = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="runlog-sqlite-reader")
        self._local = threading.local()
        self._readers: list[Reader] = []

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """
        Return what *question* makes of a reader, in a consistent view of the data.

        Raises:
            StorageError: If the database cannot be read.
            QueryTimeoutError: If it takes too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)

    def _answer(self, question: Callable[[Reader], T]) -> T:
        with storage_errors(self._path):
            reader: Reader | None = getattr(self._local, "reader", None)
            if reader is None:
                reader = self._local.reader = Reader(self._path)
                self._readers.append(reader)
            limit = TimeLimit(self._max_query_s())
            # One transaction, so that the statements of a question agree with each other.
            reader.connection.execute("BEGIN")
            reader.connection.set_progress_handler(limit.is_over, STEPS_BETWEEN_LOOKS)
            try:
                return question(reader)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                    raise limit.error() from None
                raise
            finally:
                reader.connection.set_progress_handler(None, 0)
                reader.connection.execute("COMMIT")

    def close(self) -> None:
        """Finish the questions that are being answered, and close. Blocks."""
        self._threads.shutdown()
        for reader in self._readers:
            reader.connection.close()
