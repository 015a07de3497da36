"""
Count what became of the lines that programs sent: stored, lost, doubled, reordered.

Programs say which texts they logged under which producer; `stored_in` reads a
server's database file, `stored_at` asks its API, and `count` compares. The
rules, for each producer:

- sent: log calls that returned;
- stored: distinct seqs among the rows;
- lost: texts that were sent and are in no row;
- dropped: seqs that the server knows as dropped by the client, from its markers;
- doubled: rows beyond one for each seq, and texts stored under more seqs than they were sent;
- reordered: places where the seq falls in the order of storage, or where a seq
  that rises goes with a text that was sent earlier.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from runlog.client import LogReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


class Line(NamedTuple):
    """One stored line."""

    producer: str
    seq: int
    message: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What a server has."""

    lines: list[Line]
    """In the order in which they were stored, or for `stored_at` in the order in which they are shown."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many lines each producer has reported as dropped."""


@dataclass(frozen=True, slots=True)
class Count:
    """What became of lines; the module says how each number is found."""

    sent: int = 0
    stored: int = 0
    lost: int = 0
    dropped: int = 0
    doubled: int = 0
    reordered: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            *(getattr(self, name) + getattr(other, name) for name in self.__slots__),
        )

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, name)} {name}" for name in self.__slots__)


def stored_in(database: Path) -> Stored:
    """
    Read a database file, also of a server that runs or was killed.

    Raises:
        AssertionError: If the database is damaged.
    """
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.DatabaseError as error:
            raise AssertionError(f"the database is damaged: {error}") from error
        assert verdict == [("ok",)], f"the database is damaged: {verdict}"
        lines = connection.execute(
            "SELECT producers.id, logs.seq, logs.message FROM logs"
            " JOIN producers ON producers.key = logs.producer ORDER BY logs.rowid"
        )
        dropped = connection.execute(
            "SELECT producers.id, sum(drops.count) FROM drops"
            " JOIN producers ON producers.key = drops.producer GROUP BY 1"
        )
        return Stored([Line(*row) for row in lines], dict(dropped.fetchall()))


def stored_at(api_url: str) -> Stored:
    """Read all lines of a running server as its readers see them, in the order of time."""
    with LogReader(api_url) as reader:
        return Stored([Line(log["producer"], log["seq"], log["message"]) for log in reader.logs()])


def count(sent: Mapping[str, Sequence[str]], stored: Stored) -> dict[str, Count]:
    """
    Return what became of the lines of each producer.

    Args:
        sent: The texts of each producer, in the order of the calls; all different.
        stored: What the server has.

    Raises:
        AssertionError: If the server has a line that nobody sent, or *sent* has a text twice.
    """
    rows: dict[str, list[Line]] = defaultdict(list)
    for line in stored.lines:
        rows[line.producer].append(line)
    strangers = (rows.keys() | stored.dropped.keys()) - sent.keys()
    assert not strangers, f"lines of producers that nobody started: {strangers}"
    return {
        producer: _count_one(texts, rows[producer], stored.dropped.get(producer, 0))
        for producer, texts in sent.items()
    }


def _count_one(texts: Sequence[str], rows: Sequence[Line], dropped: int) -> Count:
    place = {text: number for number, text in enumerate(texts)}
    assert len(place) == len(texts), "the texts of a producer must differ, to be told apart"
    foreign = [line.message for line in rows if line.message not in place]
    assert not foreign, f"texts that nobody sent: {foreign[:3]}"
    by_seq = {line.seq: line.message for line in rows}
    again = Counter(by_seq.values())
    return Count(
        sent=len(texts),
        stored=len(by_seq),
        lost=len(place.keys() - again.keys()),
        dropped=dropped,
        doubled=len(rows) - len(by_seq) + sum(times - 1 for times in again.values()),
        reordered=_falls(line.seq for line in rows) + _falls(place[by_seq[seq]] for seq in sorted(by_seq)),
    )


def _falls(numbers: Iterable[int]) -> int:
    """In how many places a number is below the one before."""
    return sum(later < earlier for earlier, later in itertools.pairwise(numbers))


def total(counts: Iterable[Count]) -> Count:
    """Add the counts of several producers up."""
    return sum(counts, Count())
