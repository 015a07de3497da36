"""
Statements that find and count lines, and the ways to read few of many for it.

However many lines a run has, a page of them is read from the ends of index ranges:
SQLite leaves a range of an IN as soon as it has a page's worth that comes before,
and merges the parts of a compound SELECT as they come. So a question is first taken
apart into `Source`s, which no line belongs to two of: those of a run and its
children, those of the runs that a condition about runs can mean, or, for words that
few lines have, the lines that ``text_index`` names.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from runlog.server.conditions import ScopeMatches
from runlog.server.counting import Histogram, LineCount, TimeCount, choose_width
from runlog.server.query import AllOf, AnyOf, FlowIs, RunIn, Sql, TaskIs
from runlog.server.storage.base import RunSet
from runlog.server.storage.sqlite.rows import LINE_COLUMNS, stored_lines
from runlog.server.storage.sqlite.text_index import find_candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runlog.server.counting import GroupBy
    from runlog.server.query import Condition, LogQuery
    from runlog.server.storage.base import StoredLine
    from runlog.server.storage.sqlite.reader import Reader

MAX_NARROW_RUNS = 500
"""
Runs among which a condition about runs looks.

One that means more of them reads along the index by time instead: it has its page soon.
"""

_GROUPS: dict[GroupBy | None, tuple[str, str, str]] = {
    None: ("NULL", "NULL", ""),
    "logger": ("l.logger", "g.name", "JOIN loggers g ON g.key = found.key"),
    "task": ("l.scope", "g.task_name", "JOIN scopes g ON g.key = found.key"),
    "flow": ("l.scope", "g.flow_name", "JOIN scopes g ON g.key = found.key"),
}
"""What lines are counted by: a key of theirs, the name that it leads to, and how."""


class Source(NamedTuple):
    """Some of the lines, as a table expression and a condition."""

    table: str
    where: Sql


def read_lines(reader: Reader, query: LogQuery, runs: RunSet | None) -> list[StoredLine]:
    """
    Return the lines that a query asks for, in its order.

    Args:
        reader: In a transaction.
        query: With a limit above 0.
        runs: Those that ``query.within`` stands for.
    """
    rows = reader.all(*lines_statement(reader, query, runs))
    return stored_lines(rows, reader.producer, reader.logger, reader.scope)


def lines_statement(reader: Reader, query: LogQuery, runs: RunSet | None) -> tuple[Any, ...]:
    """Return a statement for the lines that a query asks for, followed by its parameters."""
    after = Sql("1", ())
    if query.after is not None:
        sign = ">" if query.order == "asc" else "<"
        after = Sql(f"(l.timestamp_ns, l.producer, l.seq) {sign} (?, ?, ?)", tuple(query.after))
    selects, parameters = [], []
    for table, where in _sources(reader, query, runs, page=query.offset + query.limit):
        selects.append(f"SELECT {LINE_COLUMNS} FROM {table} WHERE {where.text} AND {after.text}")  # noqa: S608 - literals with question marks
        parameters += [*where.parameters, *after.parameters]
    direction = query.order.upper()
    # The third, first and second of the columns: a compound has no other names for them.
    order = f"ORDER BY 3 {direction}, 1 {direction}, 2 {direction} LIMIT ? OFFSET ?"
    return f"{' UNION ALL '.join(selects)} {order}", *parameters, query.limit, query.offset


def read_line(reader: Reader, producer: str, seq: int) -> StoredLine | None:
    """Return one line, `None` if it is not stored."""
    rows = reader.all(
        f"SELECT {LINE_COLUMNS} FROM logs l "  # noqa: S608 - constants
        "WHERE l.producer = (SELECT key FROM producers WHERE id = ?) AND l.seq = ?",
        producer,
        seq,
    )
    found = stored_lines(rows, reader.producer, reader.logger, reader.scope)
    return found[0] if found else None


def count_lines(reader: Reader, query: LogQuery, runs: RunSet | None, by: GroupBy | None) -> list[LineCount]:
    """Return how many lines there are of each level in each group; see `LogStorage.count_lines`."""
    column, name, join = _GROUPS[by]
    counts: dict[tuple[str | None, int], int] = {}
    for table, where in _sources(reader, query, runs):
        rows = reader.all(
            f"SELECT {name}, found.level, sum(found.lines) FROM ("  # noqa: S608 - literals with question marks
            f"SELECT {column} AS key, l.level AS level, count(*) AS lines "
            f"FROM {table} WHERE {where.text} GROUP BY 1, 2) found {join} GROUP BY 1, 2",
            *where.parameters,
        )
        for group, level, lines in rows:
            counts[group, level] = counts.get((group, level), 0) + lines
    return [LineCount(group, level, lines) for (group, level), lines in counts.items()]


def read_histogram(
    reader: Reader,
    query: LogQuery,
    runs: RunSet | None,
    *,
    earliest_ns: int | None,
    latest_ns: int | None,
    max_buckets: int,
) -> Histogram | None:
    """Return lines by time and level; see `LogStorage.read_histogram`."""
    sources = list(_sources(reader, query, runs))
    first, last = earliest_ns, latest_ns
    for table, where in sources:
        for aggregate in ("min", "max"):
            if (earliest_ns if aggregate == "min" else latest_ns) is not None:
                continue
            ((found,),) = reader.all(
                f"SELECT {aggregate}(l.timestamp_ns) FROM {table} WHERE {where.text}",  # noqa: S608 - literals with question marks
                *where.parameters,
            )
            if found is not None and aggregate == "min":
                first = found if first is None else min(first, found)
            elif found is not None:
                last = found if last is None else max(last, found)
    if first is None or last is None:
        return None
    last = max(first, last)
    width = choose_width(first, last, max_buckets)
    counts: dict[tuple[int, int], int] = {}
    for table, where in sources:
        rows = reader.all(
            # SQLite divides towards zero: one step back for times before the epoch.
            "SELECT l.timestamp_ns / ? - (l.timestamp_ns % ? < 0), l.level, count(*) "  # noqa: S608 - literals with question marks
            f"FROM {table} WHERE {where.text} AND l.timestamp_ns BETWEEN ? AND ? GROUP BY 1, 2",
            width,
            width,
            *where.parameters,
            first,
            last,
        )
        for step, level, lines in rows:
            counts[step, level] = counts.get((step, level), 0) + lines
    found = [TimeCount(step, level, lines) for (step, level), lines in sorted(counts.items())]
    return Histogram(width, first // width, last // width, found)


# --- sources ------------------------------------------------------------------------------------------


def _sources(
    reader: Reader, query: LogQuery, runs: RunSet | None, *, page: int | None = None
) -> Iterator[Source]:
    where = query.where.sql()
    condition = Sql(f"({where.text})", where.parameters)
    candidates = find_candidates(reader, query.where, page)
    if candidates is not None:
        rowids, upto = candidates
        if runs is not None:
            condition = _and(
                AnyOf((RunIn("flow", runs.flow_run_ids), RunIn("task", runs.task_run_ids))).sql(), condition
            )
        listed = Sql(
            "l.rowid IN (SELECT value FROM json_each(?)) AND l.rowid <= ?", (json.dumps(rowids), upto)
        )
        # NOT INDEXED leaves the rowid alone to go by.
        yield Source("logs l NOT INDEXED", _and(listed, condition))
        yield Source("logs l NOT INDEXED", _and(Sql("l.rowid > ?", (upto,)), condition))
        return
    if runs is None:
        runs = _runs_meant(reader, query.where)
    for part in run_parts(runs) if runs is not None else [Sql("1", ())]:
        yield Source("logs l", _and(part, condition))


def _and(*parts: Sql) -> Sql:
    text = " AND ".join(f"({part.text})" for part in parts)
    return Sql(text, tuple(value for part in parts for value in part.parameters))


def run_parts(runs: RunSet) -> list[Sql]:
    """Return conditions that no line meets two of, and each of which an index serves."""
    flows, tasks = RunIn("flow", runs.flow_run_ids).sql(), RunIn("task", runs.task_run_ids).sql()
    if not runs.task_run_ids:
        return [flows]
    if not runs.flow_run_ids:
        return [tasks]
    elsewhere = f"(l.flow_run IS NULL OR NOT ({flows.text}))"
    return [flows, Sql(f"{tasks.text} AND {elsewhere}", (*tasks.parameters, *flows.parameters))]


def _runs_meant(reader: Reader, where: Condition) -> RunSet | None:
    """Return the only runs whose lines can meet a condition; `None` if it says too little about them."""
    if isinstance(where, AllOf):
        return next((runs for part in where.parts if (runs := _runs_meant(reader, part)) is not None), None)
    if isinstance(where, TaskIs):
        flows, tasks = None, Sql("? IN (task_name, task_run_name, task_run_id)", (where.name,))
    elif isinstance(where, FlowIs):
        flows, tasks = Sql("flow_name = ?", (where.name,)), None
    elif isinstance(where, ScopeMatches):
        of_task = tuple(test for test in where.tests if test[0].startswith("task_"))
        others = tuple(test for test in where.tests if not test[0].startswith("task_"))
        flows = ScopeMatches(others).scope_sql() if others else None
        tasks = ScopeMatches(of_task).scope_sql() if of_task else None
    else:
        return None
    meant: list[tuple[str, str, str | None]] = []
    for test, by_task in ((flows, False), (tasks, True)):
        if test is None:
            continue
        scopes: list[tuple[Any, ...]] = reader.all(
            f"SELECT DISTINCT flow_run_id, task_run_id FROM scopes WHERE {test.text} LIMIT ?",  # noqa: S608 - literals with question marks
            *test.parameters,
            MAX_NARROW_RUNS + 1,
        )
        if len(scopes) > MAX_NARROW_RUNS:
            return None
        for flow_run_id, task_run_id in scopes:
            if flow_run_id is not None and (task_run_id is None or not by_task):
                meant.append((flow_run_id, "flow", None))
            elif task_run_id is not None:
                meant.append((task_run_id, "task", flow_run_id))
            else:
                return None  # lines that name a task or a flow, but no run
    return RunSet.of(meant)
