"""The index of messages saves work and never changes an answer."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_PRODUCER, batch, line

from runlog.server.expression import parse_expression
from runlog.server.query import AllOf, LogQuery, TextMatches
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage, text_index
from runlog.server.storage.sqlite.text_index import TextIndexer, find_candidates

pytestmark = pytest.mark.anyio


def parse(text):
    return parse_expression(text, now_ns=0)


def state_of_index(storage):
    with sqlite3.connect(storage.location) as connection:
        (row,) = connection.execute("SELECT first, upto FROM text_index").fetchall()
    connection.close()
    return row


async def until_indexed(storage, upto):
    """Wait for the writer to have the time."""
    async with asyncio.timeout(20):
        while state_of_index(storage)[1] < upto:  # noqa: ASYNC110 - the thread tells nobody
            await asyncio.sleep(0.01)


def step(storage, times=1):
    """Index in the test's own connection, at the moment that the test chooses."""
    connection = sqlite3.connect(storage.location, isolation_level=None)
    indexer = TextIndexer(connection)
    for _ in range(times):
        indexer.step()
    connection.close()
    return indexer.is_behind


@pytest.fixture
async def storage(tmp_path, monkeypatch):
    """A store whose own thread never indexes."""
    monkeypatch.setattr("runlog.server.storage.sqlite.writer.IDLE_S", 3600)
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    yield storage
    await storage.close()


async def candidates(storage, where, page=None):
    return await storage._readers.ask(lambda reader: find_candidates(reader, where, page))


async def texts(storage, where, **query):
    return [line.event.message for line in await storage.read_lines(LogQuery(where=where, **query))]


async def test_an_idle_writer_indexes(tmp_path):
    """Soon after the last batch all its lines are in the index, also those of an earlier process."""
    for first in (0, 3):
        storage = SQLiteStorage(tmp_path / "runlog.db")
        await storage.open()
        await storage.append(
            batch(*(line(f"text {first + n}") for n in range(3)), first_seq=first), observed_ns=1
        )
        if first:
            await until_indexed(storage, 6)
            assert await candidates(storage, parse('"text 2"')) == ([3], 6)
        await storage.close()


async def test_batches_come_before_the_index(storage, monkeypatch):
    """While batches keep coming nothing is indexed, and what waits when the store is closed is stored."""
    for seq in range(20):
        await storage.append(batch(line("some text"), first_seq=seq), observed_ns=1)
    assert state_of_index(storage) == (0, 0)


async def test_lines_above_the_index_are_found_as_well(storage):
    """A search finds what is indexed and what is not yet, each once and in order."""
    await storage.append(
        batch(line("needle 0", at=5), line("hay", at=1), line("needle 2", at=3)), observed_ns=1
    )
    step(storage)
    await storage.append(
        batch(line("needle 3", at=4), line("hay", at=0), producer=OTHER_PRODUCER), observed_ns=1
    )
    assert await candidates(storage, parse("needle")) == ([1, 3], 3)
    assert await texts(storage, parse("needle")) == ["needle 2", "needle 3", "needle 0"]
    assert await texts(storage, parse("needle -2"), order="desc", limit=1) == ["needle 0"]


async def test_a_run_narrows_what_the_index_names(storage):
    """The lines of a run and the lines that have a word are both looked at together."""
    await storage.append(batch(line("needle 0", flow_run_id=FLOW), line("needle 1")), observed_ns=1)
    step(storage)
    await storage.append(
        batch(line("needle 2", flow_run_id=FLOW), line("needle 3"), producer=OTHER_PRODUCER), observed_ns=1
    )
    assert await texts(storage, parse("needle"), within=FLOW) == ["needle 0", "needle 2"]
    (count,) = await storage.count_lines(LogQuery(where=parse("needle"), within=FLOW))
    assert count.lines == 2


@pytest.mark.parametrize(
    ("where", "helps"),
    [
        (parse("needle"), True),
        (parse('message:"e d"'), True),
        (parse("level>=info (needle task:x)"), True),
        (TextMatches("needle"), True),
        (TextMatches("+needle hay"), True),
        (parse("needle or hay"), False),
        (parse("-needle"), False),
        (parse("ne"), False),
        (parse('"\0\0\0"'), False),
        (parse("app.db"), False),
        (TextMatches("needle hay"), False),
        (TextMatches('"e r"'), False),
        (TextMatches("-needle"), False),
        (parse("level>=info"), False),
        (parse("/needle/"), False),
    ],
)
async def test_the_index_helps_where_a_text_is_needed(storage, where, helps):
    """It is asked for texts of three characters and more that the message of every found line must have."""
    await storage.append(batch(line("a needle e dry", name="app.db")), observed_ns=1)
    step(storage)
    assert (await candidates(storage, AllOf((where,))) is not None) == helps


async def test_what_many_lines_have_is_read_along_another_index(storage, monkeypatch):
    """Looking up many lines one by one would take longer than reading until a page is full."""
    monkeypatch.setattr(text_index, "MIN_CANDIDATES", 2)
    await storage.append(batch(*(line(f"text {n}", at=n) for n in range(50))), observed_ns=1)
    step(storage)
    assert await candidates(storage, parse("text"), page=10) is None
    assert await candidates(storage, parse('"text 4"'), page=10) == ([5, *range(41, 51)], 50)
    assert await candidates(storage, parse("text")) is not None
    assert await texts(storage, parse("text"), limit=2) == ["text 0", "text 1"]


async def test_an_index_of_lines_that_are_gone_is_made_anew(storage, monkeypatch):
    """It does not grow for ever where old lines are removed."""
    monkeypatch.setattr(text_index, "REBUILD_FROM_LINES", 10)
    await storage.append(batch(*(line(f"text {n}") for n in range(40))), observed_ns=1)
    step(storage)
    with sqlite3.connect(storage.location) as connection:
        connection.execute("DELETE FROM logs WHERE rowid <= 30")
    connection.close()
    assert state_of_index(storage) == (0, 40)
    step(storage)
    assert state_of_index(storage) == (30, 40)
    assert (await candidates(storage, parse("text")))[0] == list(range(31, 41))
    assert await texts(storage, parse('"text 35"')) == ["text 35"]


async def test_without_an_index_searches_take_longer_and_no_more(storage):
    """Where SQLite cannot read the index, or has none, each line is looked at."""
    await storage.append(batch(line("needle")), observed_ns=1)
    step(storage)
    with sqlite3.connect(storage.location) as connection:
        connection.execute("DROP TABLE logs_text")
    connection.close()
    assert await candidates(storage, parse("needle")) is None
    assert await texts(storage, parse("needle")) == ["needle"]
    step(storage)
    assert await texts(storage, parse("needle")) == ["needle"]


def test_trouble_with_the_index_is_told_and_hurts_nobody(tmp_path, caplog):
    """An index that cannot be written is a warning; the thread that stores lines goes on."""
    connection = sqlite3.connect(tmp_path / "odd.db", isolation_level=None)
    connection.execute("CREATE TABLE logs (message TEXT)")
    indexer = TextIndexer(connection)
    connection.execute("DROP TABLE logs_text")
    connection.execute("INSERT INTO logs VALUES ('text')")
    indexer.step()
    assert "the index of messages cannot be written" in caplog.text
    assert not indexer.is_behind
    assert not connection.in_transaction
    connection.close()


# --- equal answers ------------------------------------------------------------------------------------

ALPHABET = "abAB \0kK\u212aİıßẞσςΣäÄ\"'%_-🦉"  # noqa: RUF001 - letters whose small forms are odd
messages = st.text(ALPHABET, max_size=12)
words = st.text(ALPHABET, min_size=1, max_size=5).filter(str.strip)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def stores(runner, tmp_path_factory):
    found = MemoryStorage(), SQLiteStorage(tmp_path_factory.mktemp("index") / "runlog.db")
    for store in found:
        runner.run(store.open())
    yield found
    for store in found:
        runner.run(store.close())


_stored = [0]


@given(st.lists(messages, max_size=8), st.lists(words, min_size=1, max_size=2), st.booleans())
@settings(max_examples=100, deadline=None)
def test_searches_with_the_index_find_what_searches_without_it_find(runner, stores, found, sought, indexed):
    """Letters of any script, case and length: the index leaves out no line that the predicate lets pass."""
    for store in stores:
        if found:
            runner.run(store.append(batch(*map(line, found), first_seq=_stored[0]), observed_ns=1))
    _stored[0] += len(found)
    if indexed:
        step(stores[1])
    quoted = " ".join('"' + word.replace('"', '\\"') + '"' for word in sought)
    for where in (parse(quoted), AllOf((TextMatches(sought[0]),))):
        query = LogQuery(where=where, limit=10_000)
        in_memory, in_sqlite = (runner.run(store.read_lines(query)) for store in stores)
        assert in_sqlite == in_memory
