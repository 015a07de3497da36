"""
The tables, and how a file gets from one version of them to the next.

A file carries SQLite's ``application_id``, so that another program's database is
never taken for an empty one of ours, and its schema version in ``user_version``.
A migration is a script and is never changed once released: the next one is
appended. All that are missing run in one transaction.

Version 1:

- ``logs`` has one row a line. It is a table with a rowid and a unique index over
  ``(producer, seq)`` rather than one clustered by that key: rows have several
  hundred bytes, and such trees are shallow only with the rows in their leaves.
  The unique index is the last defence against storing a line twice.
- Three indexes serve a flow run, a task run, and everything by time, each in the
  order of `runlog.server.query.Position`; the level at their end lets a filter
  by level pass over a line without reading it.
- What many lines share is stored once and numbered: producers, loggers, and
  scopes (what a line says about its runs). Two scopes may be equal.
- ``runs`` is `runlog.server.run_summary.RunSummary`; of its columns, those that
  are asked for are spelled out, the facts with their times are JSON.

Version 2:

- ``producers`` know who has said goodbye. Those of version 1 never could.
- A small index finds the events that ended a run, for its receipt: the run is
  the innermost of such a line, and keys of flow runs and task runs never meet.

The version with ``api_keys``:

- ``api_keys`` is `runlog.server.keys.ApiKey`; permissions are joined by spaces.
- What retention took away is no loss: ``removed`` has the seqs, in ranges of which
  no two touch, and ``removed_of_runs`` how many lines of which runs they were, and
  the first and the last of them.

The version with ``store``:

- The rowid of ``logs`` is the arrival of a line: there is one writer, so that it
  rises in the order of commits. SQLite gives a new row the greatest rowid plus
  one, and so the row with the greatest one is never deleted. ``VACUUM`` keeps the
  rowids of a table that has indexes.
- ``store`` has one row; its epoch is different for every database ever made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runlog.exceptions import SchemaVersionError, StorageError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

APPLICATION_ID = 0x726C_6F67
"""``rlog`` in ASCII."""

MIGRATIONS = (
    """
    CREATE TABLE producers (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        next_seq INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        resource TEXT NOT NULL,
        first_observed_ns INTEGER NOT NULL,
        last_observed_ns INTEGER NOT NULL
    );
    CREATE TABLE drops (
        producer INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        count INTEGER NOT NULL,
        reason TEXT NOT NULL,
        observed_ns INTEGER NOT NULL,
        PRIMARY KEY (producer, seq)
    ) WITHOUT ROWID;
    CREATE TABLE loggers (
        key INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    );
    CREATE TABLE scopes (
        key INTEGER PRIMARY KEY,
        flow_run_id TEXT,
        flow_run_name TEXT,
        flow_name TEXT,
        task_run_id TEXT,
        task_run_name TEXT,
        task_name TEXT,
        parent_flow_run_id TEXT,
        parent_task_run_id TEXT,
        attempt INTEGER
    );
    CREATE TABLE runs (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT,
        parent_id TEXT,
        flow_run_id TEXT,
        state TEXT NOT NULL,
        started_ns INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        counts TEXT NOT NULL,
        first_line_ns INTEGER NOT NULL,
        last_line_ns INTEGER NOT NULL,
        facts TEXT NOT NULL,
        attempt INTEGER,
        opened TEXT,
        verdict TEXT,
        UNIQUE (id, kind)
    );
    CREATE INDEX runs_by_start ON runs (started_ns, id, kind);
    CREATE INDEX runs_by_parent ON runs (parent_id) WHERE parent_id IS NOT NULL;
    CREATE INDEX runs_by_name ON runs (name) WHERE name IS NOT NULL;
    CREATE TABLE logs (
        producer INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        timestamp_ns INTEGER NOT NULL,
        observed_ns INTEGER NOT NULL,
        level INTEGER NOT NULL,
        logger INTEGER NOT NULL,
        scope INTEGER NOT NULL,
        flow_run INTEGER,
        task_run INTEGER,
        message TEXT NOT NULL,
        attributes TEXT,
        exception TEXT,
        event_name TEXT,
        trace_id TEXT,
        span_id TEXT,
        truncated_bytes INTEGER NOT NULL,
        UNIQUE (producer, seq)
    );
    CREATE INDEX logs_by_flow_run ON logs (flow_run, timestamp_ns, producer, seq, level)
        WHERE flow_run IS NOT NULL;
    CREATE INDEX logs_by_task_run ON logs (task_run, timestamp_ns, producer, seq, level)
        WHERE task_run IS NOT NULL;
    CREATE INDEX logs_by_time ON logs (timestamp_ns, producer, seq, level);
    """,
    """
    ALTER TABLE producers ADD COLUMN goodbye INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX logs_by_finished_run ON logs (ifnull(task_run, flow_run))
        WHERE event_name = 'runlog.run.finished';
    """,
    """
    CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        digest BLOB NOT NULL,
        permissions TEXT NOT NULL,
        flow_run_id TEXT,
        flow_name TEXT,
        created_ns INTEGER NOT NULL,
        expires_ns INTEGER,
        last_used_ns INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE removed (
        producer INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        PRIMARY KEY (producer, first_seq)
    ) WITHOUT ROWID;
    CREATE TABLE removed_of_runs (
        flow_run INTEGER,
        task_run INTEGER,
        producer INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL
    );
    CREATE INDEX removed_of_flow_runs ON removed_of_runs (flow_run) WHERE flow_run IS NOT NULL;
    CREATE INDEX removed_of_task_runs ON removed_of_runs (task_run) WHERE task_run IS NOT NULL;
    """,
    """
    CREATE TABLE store (epoch TEXT NOT NULL);
    INSERT INTO store VALUES (lower(hex(randomblob(8))));
    """,
)
"""Scripts that lead from version n to n + 1, in order."""

SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """
    Bring a file to the present schema; an empty one becomes a store.

    Args:
        connection: In autocommit mode, the only one that writes.
        path: For the error's text.

    Raises:
        SchemaVersionError: If a newer runlog wrote it.
        StorageError: If it is another program's database.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if owner != APPLICATION_ID and (owner or tables):
        raise StorageError(
            f"{path} is the database of another program; give runlog a file of its own with --database"
        )
    if found > SCHEMA_VERSION:
        raise SchemaVersionError(found, SCHEMA_VERSION)
    if found == SCHEMA_VERSION:
        return
    if found == 0:
        connection.execute("PRAGMA page_size = 8192")  # rows of several hundred bytes: 15 to a page
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in MIGRATIONS[found:]:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
