"""
An index of the words in messages, made when the writer has nothing else to do.

FTS5 with trigrams, without a copy of the text and without places: for each three
characters that occur in messages, in lower case by Python's rules, the rowids of
the lines that have them. A search asks for the lines that have all trigrams of its
words and lets the exact condition decide about each, so that the index can only
save work and never change an answer. Lines above ``text_index.upto`` are not in it
yet, and a search looks at each of them.

The writer's thread fills it in slices of some twenty milliseconds, and only after no
batch has come for a while: a burst of batches is not slowed by it. The tables are
no part of the schema's version: they can be dropped at any time, are made anew when
they are missing, and where SQLite has no FTS5 there are none.

Lines that retention removes stay in the index, where they are a few bytes that lead
nowhere, until as many lines are gone as are left: then it is made anew.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from typing import TYPE_CHECKING

from runlog.server.conditions import LineMatches, LoggerMatches, Says
from runlog.server.query import AllOf, TextMatches
from runlog.server.text_search import parse_text_search
from runlog.server.text_tests import Contains

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runlog.server.query import Condition
    from runlog.server.storage.sqlite.reader import Reader

logger = logging.getLogger("runlog.server")

SLICE_LINES = 1000
"""
Lines indexed in one transaction: some 20 ms in which a batch that comes has to wait.

With fewer, more time goes into merging what the transactions leave.
"""

IDLE_S = 0.05
"""Seconds without a batch, after which the writer indexes."""

MAX_CANDIDATES = 20_000
"""
Lines that a search looks up one by one.

A search that may find more reads along an index instead: it has its page soon.
"""

MIN_CANDIDATES = 1000
"""So few lines are looked up in any case."""

MAX_TRIGRAMS = 12
"""Trigrams of a word that are asked for; more of them hardly leave out more lines."""

REBUILD_FROM_LINES = 100_000
"""An index with fewer lines in it that are gone is left as it is."""

_CREATE = (
    "CREATE TABLE IF NOT EXISTS text_index (first INTEGER NOT NULL, upto INTEGER NOT NULL)",
    """
    CREATE VIRTUAL TABLE IF NOT EXISTS logs_text
    USING fts5 (message, content = '', columnsize = 0, detail = none, tokenize = 'trigram')
    """,
    "INSERT INTO text_index SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM text_index)",
)


# --- writing ------------------------------------------------------------------------------------------


class TextIndexer:
    """
    Fills the index. Used by the writer's thread alone.

    Args:
        connection: The writer's.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.create_function("indexed_text", 1, _indexed_text, deterministic=True)
        self.is_behind = self._prepare()
        """Whether there may be lines that are not in the index yet."""
        self._works = self.is_behind

    def lines_came(self) -> None:
        """Note that lines were stored."""
        self.is_behind = self._works

    def step(self) -> None:
        """Index some lines. What goes wrong is told once, and tried again when lines come."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self.is_behind = self._index_slice()
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self.is_behind = False
            logger.warning("the index of messages cannot be written, searches take longer: %s", error)

    def _prepare(self) -> bool:
        execute = self._connection.execute
        try:
            if not execute("SELECT 1 FROM sqlite_schema WHERE name = 'logs_text'").fetchone():
                execute("DROP TABLE IF EXISTS text_index")  # it tells of an index that is gone
            for statement in _CREATE:
                execute(statement)
        except sqlite3.Error as error:
            logger.info("no index of messages, searches take longer: %s", error)
            return False
        return True

    def _index_slice(self) -> bool:
        """Index the next lines; return whether there are more behind them."""
        execute = self._connection.execute
        first, upto = execute("SELECT first, upto FROM text_index").fetchone()
        # One question each: for both at once SQLite would read the whole table.
        (oldest,) = execute("SELECT ifnull(min(rowid), 1) FROM logs").fetchone()
        (newest,) = execute("SELECT ifnull(max(rowid), 0) FROM logs").fetchone()
        if oldest - 1 - first > max(newest - oldest, REBUILD_FROM_LINES):
            execute("INSERT INTO logs_text (logs_text) VALUES ('delete-all')")
            first = upto = oldest - 1
        start = max(upto, oldest - 1)
        end = min(start + SLICE_LINES, newest)
        execute(
            "INSERT INTO logs_text (rowid, message) SELECT rowid, indexed_text(message) "
            "FROM logs WHERE rowid > ? AND rowid <= ?",
            (start, end),
        )
        execute("UPDATE text_index SET first = ?, upto = ?", (first, end))
        return bool(end < newest)


def _indexed_text(message: str) -> str:
    """Return what is indexed of a message; a text ends for FTS5 where a NUL is."""
    return message.lower().replace("\0", " ")


# --- reading ------------------------------------------------------------------------------------------


def find_candidates(reader: Reader, where: Condition, page: int | None) -> tuple[list[int], int] | None:
    """
    Return where alone lines can be that meet a condition.

    Args:
        reader: In a transaction.
        where: The condition.
        page: Lines that are wanted at most; `None` for all.

    Returns:
        Rowids, and the rowid from which on every line has to be looked at as well;
        `None` if the index does not help.
    """
    words = [word for word in _needed_words(where) if len(word) >= 3 and not _in_logger(reader, word)]
    trigrams = list(dict.fromkeys(trigram for word in words for trigram in _trigrams(word)))
    if not trigrams:
        return None
    try:
        ((first, upto),) = reader.all("SELECT first, upto FROM text_index")
        most = MAX_CANDIDATES
        if page is not None:
            # Among n lines of which c have the words, reading on until a page is full takes page * n / c.
            most = min(most, max(math.isqrt(page * (upto - first)), MIN_CANDIDATES))
        question = " AND ".join('"' + trigram.replace('"', '""') + '"' for trigram in trigrams)
        found = reader.all("SELECT rowid FROM logs_text WHERE logs_text MATCH ? LIMIT ?", question, most + 1)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise
        return None  # there is no index, or none that can be read
    if len(found) > most:
        return None
    return [rowid for (rowid,) in found], upto


def _needed_words(where: Condition) -> Iterator[str]:
    """Yield texts in lower case that message or logger name have in every line that meets a condition."""
    if isinstance(where, AllOf):
        for part in where.parts:
            yield from _needed_words(part)
    elif isinstance(where, Says):
        yield where.word
    elif isinstance(where, LineMatches) and where.column == "message" and isinstance(where.test, Contains):
        yield where.test.part
    elif isinstance(where, TextMatches):
        search = parse_text_search(where.query)
        # One with a space may begin in the message and end in the logger's name.
        yield from (word for word in search.require if not _has_space(word))
        if len(search.include) == 1 and not _has_space(search.include[0]):
            yield search.include[0]


def _has_space(word: str) -> bool:
    return any(character.isspace() for character in word)


def _in_logger(reader: Reader, word: str) -> bool:
    """Return whether a word may be found in a logger's name, which the index does not have."""
    test = LoggerMatches(Contains(word)).test.sql("name")
    return bool(reader.all(f"SELECT 1 FROM loggers WHERE {test.text} LIMIT 1", *test.parameters))  # noqa: S608 - literals with question marks


def _trigrams(word: str) -> Iterable[str]:
    """Return trigrams that lie over the whole of a word."""
    last = len(word) - 3
    step = max(1, -(-last // (MAX_TRIGRAMS - 1)))
    trigrams = (word[start : start + 3] for start in (*range(0, last, step), last))
    return (trigram for trigram in trigrams if "\0" not in trigram)
