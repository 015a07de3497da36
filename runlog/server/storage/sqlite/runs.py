"""Statements that find runs: by what is asked about them, and down the tree from one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runlog.server.storage.base import MAX_TREE_RUNS, RunSet
from runlog.server.storage.sqlite.rows import RUN_COLUMNS, run_of_row

if TYPE_CHECKING:
    from runlog.server.run_summary import RunSummary
    from runlog.server.storage.base import RunQuery
    from runlog.server.storage.sqlite.reader import Reader


def read_runs(reader: Reader, query: RunQuery) -> list[RunSummary]:
    """Return the runs that a query asks for, newest first."""
    where, parameters = _condition(query)
    rows = reader.all(
        f"SELECT {RUN_COLUMNS} FROM runs r WHERE {where} "  # noqa: S608 - literals with question marks
        "ORDER BY started_ns DESC, id DESC, kind DESC LIMIT ? OFFSET ?",
        *parameters,
        query.limit,
        query.offset,
    )
    return [run_of_row(row) for row in rows]


def read_tree(reader: Reader, run_id: str) -> list[RunSummary]:
    """Return a run and all that were opened in it, oldest first."""
    return [run_of_row(row) for row in reader.all(*_tree_statement(RUN_COLUMNS, run_id))]


def read_run_set(reader: Reader, run_id: str) -> RunSet:
    """Return a run and all that were opened in it, as few as their lines can be told by."""
    return RunSet.of(reader.all(*_tree_statement("id, kind, flow_run_id", run_id)))


def _tree_statement(columns: str, run_id: str) -> tuple[Any, ...]:
    """Return a statement that walks down from a run; UNION ends it where parents form a ring."""
    sql = (
        "WITH RECURSIVE tree (id) AS ("  # noqa: S608 - constants
        " SELECT id FROM runs WHERE id = ?"
        " UNION SELECT runs.id FROM tree JOIN runs ON runs.parent_id = tree.id LIMIT ?) "
        f"SELECT {columns} FROM runs WHERE id IN (SELECT id FROM tree) ORDER BY started_ns, id, kind"
    )
    return sql, run_id, MAX_TREE_RUNS


def _condition(query: RunQuery) -> tuple[str, list[Any]]:
    tests: list[tuple[str, tuple[Any, ...]]] = [("1", ())]
    for column, value in (
        ("kind", query.kind),
        ("name", query.name),
        ("id", query.id),
        ("parent_id", query.parent_id),
    ):
        if value is not None:
            tests.append((f"{column} = ?", (value,)))
    if query.states is not None:
        tests.append((f"state IN ({', '.join('?' * len(query.states))})", query.states))
    for fact, value in (("flow_name", query.flow_name), ("task_name", query.task_name)):
        if value is not None:
            # A fact is the JSON array of whether it is sure, its time and its text.
            tests.append((f"json_extract(facts, '$.{fact}[2]') = ?", (value,)))
    if query.search is not None:
        part = query.search.lower()
        names = ("name", "json_extract(facts, '$.flow_name[2]')", "json_extract(facts, '$.task_name[2]')")
        anywhere = " OR ".join(f"instr(lower_text({name}), ?)" for name in names)
        tests.append((f"({anywhere} OR instr(id, ?) = 1)", (part,) * 4))
    if query.since_ns is not None:
        tests.append(("started_ns >= ?", (query.since_ns,)))
    if query.until_ns is not None:
        tests.append(("started_ns <= ?", (query.until_ns,)))
    if query.min_attempt is not None:
        tests.append(("attempt >= ?", (query.min_attempt,)))
    if query.id_prefix is not None:
        tests.append(
            ("id >= ? AND substr(id, 1, ?) = ?", (query.id_prefix, len(query.id_prefix), query.id_prefix))
        )
    if query.name_contains is not None:
        tests.append(("instr(lower_text(coalesce(name, '')), ?)", (query.name_contains.lower(),)))
    if query.top_level:
        tests.append(("NOT EXISTS (SELECT 1 FROM runs outer_run WHERE outer_run.id = r.parent_id)", ()))
    if query.visible_flow_run is not None:
        own_id = "CASE kind WHEN 'flow' THEN id ELSE flow_run_id END = ?"
        tests.append((own_id, (query.visible_flow_run,)))
    if query.visible_flow is not None:
        # A fact is the JSON array of whether it is sure, its time and its text.
        tests.append(("json_extract(facts, '$.flow_name[2]') = ?", (query.visible_flow,)))
    if query.after is not None:
        tests.append(("(started_ns, id, kind) < (?, ?, ?)", query.after))
    return " AND ".join(text for text, _ in tests), [value for _, values in tests for value in values]
