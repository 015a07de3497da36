"""A query means the same as SQL and as a predicate."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_FLOW, OTHER_PRODUCER, START, TASK, batch, line

from runlog.exceptions import QueryError
from runlog.server.query import (
    AllOf,
    AnyOf,
    LevelBetween,
    LoggerIs,
    LogQuery,
    Position,
    RunIn,
    TaskIs,
    TaskRunIsNull,
    TextMatches,
    TimeBetween,
    decode_cursor,
    encode_cursor,
)
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

RUN_IDS = (FLOW, OTHER_FLOW, TASK, "run 4", "")
NAMES = ("etl", "etl.load", "etl2", "etl.load.x", "ETL", "", "e%l", "etl_")
WORDS = ("alpha", "Beta", "straße", "ÄÖ", "%", "_", "\0", "a b", "K", "beta-2", '"', "\\", "+x", "İ")


def every_kind_of_line():
    """Lines in which each value of each field meets many of the others'."""
    count = 240
    pick = lambda values, number: values[number % len(values)]  # noqa: E731
    return [
        line(
            f"{pick(WORDS, n)} {pick(WORDS, n // 3)}",
            at=n // 4,
            level=pick((10, 20, 25, 30, 40, 50, 0), n),
            name=pick(NAMES, n // 2),
            flow_run_id=pick((None, *RUN_IDS), n // 5),
            task_run_id=pick((None, *RUN_IDS[::-1]), n // 7),
            task_name=pick((None, *NAMES), n // 11),
            task_run_name=pick((None, "one", "etl"), n // 13),
            parent_flow_run_id=pick((None, FLOW, OTHER_FLOW), n // 17),
            parent_task_run_id=pick((None, TASK, None), n // 19),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same lines in both storages, and what asks both."""
    path = tmp_path_factory.mktemp("query") / "runlog.db"
    with asyncio.Runner() as runner:
        storages = (MemoryStorage(), SQLiteStorage(path))
        events = every_kind_of_line()
        for storage in storages:
            runner.run(storage.open())
            runner.run(storage.append(batch(*events[:150]), observed_ns=1))
            runner.run(storage.append(batch(*events[150:], producer=OTHER_PRODUCER), observed_ns=1))

        def ask(query):
            return [runner.run(storage.read_lines(query)) for storage in storages]

        yield ask
        for storage in storages:
            runner.run(storage.close())


bounds = st.none() | st.sampled_from([0, 10, 20, 25, 30, 50, 2**63 - 1, -(2**63) + 1])
times = st.none() | st.integers(-1, 61).map(lambda seconds: START + seconds * 1_000_000_000)
run_ids = st.lists(st.sampled_from((*RUN_IDS, "nobody")), max_size=4).map(tuple)
texts = st.lists(
    st.sampled_from([*WORDS, "-beta", "+alpha", "!etl", '"a b"', "-", "etl", "k", "i̇"]), max_size=4
).map(" ".join)
simple = st.one_of(
    st.builds(LevelBetween, bounds, bounds),
    st.builds(TimeBetween, times, times),
    st.builds(RunIn, st.sampled_from(["flow", "task"]), run_ids),
    st.builds(TaskRunIsNull, st.booleans()),
    st.builds(TaskIs, st.sampled_from([*NAMES, *RUN_IDS, "one"])),
    st.builds(LoggerIs, st.sampled_from(NAMES), st.booleans()),
    st.builds(TextMatches, texts),
)
conditions = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)
queries = st.builds(
    LogQuery,
    where=conditions,
    within=st.none() | st.sampled_from((*RUN_IDS, "nobody")),
    order=st.sampled_from(["asc", "desc"]),
    after=st.none() | st.builds(Position, times.filter(bool), st.integers(0, 3), st.integers(0, 200)),
    limit=st.integers(0, 300),
    offset=st.integers(0, 20),
)


@given(query=queries)
def test_sql_and_predicate_agree(both, query):
    """SQLite and the in-memory storage give the same lines in the same order, whatever is asked."""
    in_memory, in_sqlite = both(query)
    assert in_sqlite == in_memory


def test_many_ids_are_looked_up(both):
    """A list of more ids than a statement may have question marks works like a short one."""
    ids = (FLOW, *(f"run-{number}" for number in range(2000)), "")
    many = both(LogQuery(where=RunIn("flow", ids), limit=1000))
    few = both(LogQuery(where=RunIn("flow", (FLOW, "")), limit=1000))
    assert many == few
    assert len(few[0]) > 0


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62), st.integers(0, 2**42))
def test_a_cursor_stands_for_a_place(timestamp_ns, producer, seq):
    """A page token gives back the place that it was made of, and is safe in a URL."""
    position = Position(timestamp_ns, producer, seq)
    cursor = position.cursor()
    assert Position.from_cursor(cursor) == position
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "!!!!",
        encode_cursor((1, 2)),
        encode_cursor((1, "a", 3)),
        encode_cursor((1, True, 3)),
        encode_cursor((2**63, 1, 1)),
        "eyJhIjoxfQ",
        encode_cursor((1.0, 1, 1)),
        "W1tbW1tbW1tb" * 3000,
    ],
)
def test_a_foreign_cursor_is_refused(cursor):
    """What is not one of our page tokens is a query error and never anything else."""
    with pytest.raises(QueryError, match="is not one that this server gave out"):
        Position.from_cursor(cursor)


def test_a_cursor_may_hold_text():
    """A page token keeps text as it is."""
    assert decode_cursor(encode_cursor((1, 'ä"', "")), (int, str, str)) == [1, 'ä"', ""]
