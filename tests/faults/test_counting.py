"""The counting rules, on stores made up for each: the suite finds what it looks for."""

from __future__ import annotations

import pytest
from counting import Count, Line, Stored, count, stored_in, total

TEXTS = ["a", "b", "c", "d"]


def one(*rows, dropped=0):
    """Count rows of ``(seq, message)`` of one producer that sent four lines."""
    stored = Stored([Line("p", seq, message) for seq, message in rows], {"p": dropped} if dropped else {})
    return count({"p": TEXTS}, stored)["p"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(0, "a"), (1, "b"), (2, "c"), (3, "d")], Count(4, 4, 0, 0, 0, 0), id="all"),
        pytest.param([], Count(4, 0, 4, 0, 0, 0), id="none"),
        pytest.param([(0, "a"), (2, "c"), (3, "d")], Count(4, 3, 1, 0, 0, 0), id="one is lost"),
        pytest.param(
            [(0, "a"), (1, "b"), (1, "b"), (2, "c"), (3, "d")],
            Count(4, 4, 0, 0, 1, 0),
            id="a seq is stored twice",
        ),
        pytest.param(
            [(0, "a"), (1, "b"), (2, "b"), (3, "c"), (4, "d")],
            Count(4, 5, 0, 0, 1, 0),
            id="a text is stored under two seqs",
        ),
        pytest.param(
            [(0, "a"), (2, "c"), (1, "b"), (3, "d")], Count(4, 4, 0, 0, 0, 1), id="stored out of order"
        ),
        pytest.param(
            [(0, "a"), (1, "c"), (2, "b"), (3, "d")], Count(4, 4, 0, 0, 0, 1), id="numbered out of order"
        ),
    ],
)
def test_what_became_of_lines(rows, expected):
    """Each way in which lines can go wrong is counted as that and as nothing else."""
    assert one(*rows) == expected


def test_drops_are_counted_beside_losses():
    """A line that the client has reported as dropped is lost, and known to be."""
    assert one((0, "a"), (1, "b"), (3, "d"), dropped=1) == Count(4, 3, 1, 1, 0, 0)


def test_producers_are_counted_apart():
    """Order holds within a producer only; the counts add up."""
    rows = [Line("p", 0, "a"), Line("q", 0, "a"), Line("p", 1, "b"), Line("q", 1, "b")]
    counts = count({"p": ["a", "b"], "q": ["a", "b"], "r": ["a"]}, Stored(rows))
    assert counts == {"p": Count(2, 2), "q": Count(2, 2), "r": Count(1, 0, 1)}
    assert total(counts.values()) == Count(5, 4, 1)
    assert str(counts["r"]) == "1 sent, 0 stored, 1 lost, 0 dropped, 0 doubled, 0 reordered"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        pytest.param({}, Stored([Line("p", 0, "a")]), id="a stranger's line"),
        pytest.param({}, Stored([], {"p": 1}), id="a stranger's drop"),
        pytest.param({"p": ["a"]}, Stored([Line("p", 0, "b")]), id="a text nobody sent"),
        pytest.param({"p": ["a", "a"]}, Stored([]), id="texts that cannot be told apart"),
    ],
)
def test_what_cannot_be_counted(sent, stored):
    """Lines out of nowhere are an error, and so are lines that cannot be told apart."""
    with pytest.raises(AssertionError):
        count(sent, stored)


def test_a_damaged_database(server, database):
    """A database that is not whole is an error, whatever can be read from it."""
    server.stop()
    assert stored_in(database) == Stored([])
    with open(database, "r+b") as file:
        page_bytes = int.from_bytes(file.read(100)[16:18], "big")
        file.seek(page_bytes)
        file.write(b"\xff" * page_bytes)
    with pytest.raises(AssertionError, match="damaged"):
        stored_in(database)
