"""Few of many lines are reached without looking at the others."""

from __future__ import annotations

import sqlite3

import pytest
from server_lines import FLOW, OTHER_FLOW, TASK, batch, line

from runlog.server.expression import parse_expression
from runlog.server.query import AllOf, FlowIs, LogQuery, TaskIs
from runlog.server.storage.sqlite import SQLiteStorage, lines
from runlog.server.storage.sqlite.lines import lines_statement
from runlog.server.storage.sqlite.text_index import TextIndexer

pytestmark = pytest.mark.anyio


def parse(text):
    return parse_expression(text, now_ns=0)


@pytest.fixture
async def storage(tmp_path):
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    events = [
        line("0", flow_run_id=FLOW, flow_run_name="owl", flow_name="etl"),
        line("1", flow_run_id=FLOW, flow_run_name="owl", flow_name="etl", task_run_id=TASK, task_name="load"),
        line("2", flow_run_id=OTHER_FLOW, flow_run_name="dog", flow_name="weekly"),
        line("3", task_run_id="lone", task_name="load"),
        line("4"),
    ]
    await storage.append(batch(*events), observed_ns=1)
    yield storage
    await storage.close()


async def plan(storage, where):
    def explain(reader):
        sql, *values = lines_statement(reader, LogQuery(where=where), None)
        return " ".join(row[3] for row in reader.all(f"EXPLAIN QUERY PLAN {sql}", *values))

    return await storage._readers.ask(explain)


@pytest.mark.parametrize(
    ("where", "found", "indexes"),
    [
        (parse("run:owl"), "01", {"flow"}),
        (parse(f"run:{FLOW} level>=info"), "01", {"flow"}),
        (parse("run:1111 -0"), "1", {"flow"}),
        (parse(f"run:{TASK}"), "1", {"task"}),
        (parse("task:load"), "13", {"task"}),
        (parse("flow:etl"), "01", {"flow"}),
        (AllOf((TaskIs("load"),)), "13", {"task"}),
        (AllOf((AllOf((FlowIs("weekly"),)),)), "2", {"flow"}),
        (parse("run:nobody"), "", {"flow"}),
        (parse("run:owl or run:dog"), "012", {"time"}),
        (parse("-run:owl"), "234", {"time"}),
        (parse("has:run"), "0123", {"flow", "task"}),
    ],
)
async def test_conditions_about_runs_are_served_by_an_index(storage, where, found, indexes):
    """What can only be in a few runs is read along their lines, in order, and not sorted."""
    steps = await plan(storage, where)
    used = {"logs_by_time": "time", "logs_by_flow_run": "flow", "logs_by_task_run": "task"}
    assert {short for name, short in used.items() if name in steps} == indexes
    assert "".join(one.event.message for one in await storage.read_lines(LogQuery(where=where))) == found


async def test_conditions_that_mean_many_runs_are_not_narrowed(storage, monkeypatch):
    """A page of lines that many runs have is soon there without a look at each run."""
    monkeypatch.setattr(lines, "MAX_NARROW_RUNS", 1)
    assert "logs_by_time" in await plan(storage, parse("task:load"))
    assert [one.event.message for one in await storage.read_lines(LogQuery(where=parse("task:load")))] == [
        "1",
        "3",
    ]


async def test_lines_that_name_a_task_but_no_run_are_found(storage):
    """A name without an id belongs to no run that could be looked up."""
    await storage.append(batch(line("5", task_name="load"), first_seq=5), observed_ns=1)
    found = await storage.read_lines(LogQuery(where=parse("task:load")))
    assert [one.event.message for one in found] == ["1", "3", "5"]


def test_a_step_of_the_index_costs_the_same_in_a_large_store(tmp_path):
    """SQLite goes through as many steps for a new line in a large table as in a small one."""
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    connection.execute("CREATE TABLE logs (message TEXT)")
    indexer = TextIndexer(connection)
    costs = []
    for size in (10, 5000):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO logs VALUES (?)", [("text",)] * size)
        connection.execute("COMMIT")
        indexer.lines_came()
        while indexer.is_behind:
            indexer.step()
        connection.execute("INSERT INTO logs VALUES ('text')")
        steps = []
        connection.set_progress_handler(lambda steps=steps: steps.append(1), 1)
        indexer.step()
        connection.set_progress_handler(None, 0)
        costs.append(len(steps))
    connection.close()
    assert costs[1] < costs[0] * 2
