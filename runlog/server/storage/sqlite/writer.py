"""
The one thread that writes.

Batches wait in a queue. The thread takes as many as have gathered, stores them
in one transaction, and tells each waiting caller after the commit: under load,
many requests share one sync to the disk, and a lone one waits for nobody. Only
this connection commits, so only it checkpoints.

Keys of producers, loggers, scopes and runs are remembered between batches. A
failed transaction forgets them all, because it may have made some of them.

When there is nothing to store, the thread goes on with the index of messages.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from runlog.exceptions import StorageError
from runlog.server.metrics import Durations
from runlog.server.run_summary import merge, summarise
from runlog.server.storage.base import Appended, ProducerGapError, clip_drops, says_goodbye
from runlog.server.storage.sqlite.arrivals import last_arrival
from runlog.server.storage.sqlite.file import storage_errors
from runlog.server.storage.sqlite.rows import (
    INSERT_LINE,
    RUN_COLUMNS,
    UPSERT_RUN,
    line_row,
    run_of_row,
    run_row,
)
from runlog.server.storage.sqlite.text_index import IDLE_S, TextIndexer

if TYPE_CHECKING:
    import asyncio
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from runlog.records import EventBatch
    from runlog.server.run_summary import Kind, RunSummary, Scope

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")

MAX_GROUP_LINES = 20_000
"""A transaction takes no further batch from here on: some 150 ms of work, in which nobody is answered."""

MAX_REMEMBERED = 50_000
"""Keys of each kind that are remembered: some 20 MB at most."""

CHECKPOINT_PAGES = 4000
"""WAL pages, 32 MB, from which a commit also moves them into the database."""


@dataclass(slots=True)
class _Producer:
    key: int
    next_seq: int


class _Run(NamedTuple):
    key: int
    summary: RunSummary


@dataclass(slots=True)
class _Job:
    batch: EventBatch
    observed_ns: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Appended]
    outcome: Appended | BaseException | None = None


@dataclass(slots=True)
class _Change:
    """Something else to do in a transaction, see `Writer.run`."""

    change: Callable[[sqlite3.Connection], Any]
    in_transaction: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    outcome: Any = None


class Writer:
    """
    Stores batches in a thread of its own.

    Args:
        connection: In autocommit mode, usable from another thread; closed by `close`.
        path: For errors.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | _Change | None] = queue.SimpleQueue()
        self._change: _Change | None = None  # taken from the queue behind a group
        self._closing = False
        self.commits = Durations()
        """How long transactions with batches took."""
        self._forget()
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged commits in a power cut
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        self._indexer = TextIndexer(connection)
        self._thread = threading.Thread(target=self._work, name="runlog-sqlite-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Batches and changes in the queue."""
        return self._jobs.qsize()

    def submit(
        self, batch: EventBatch, observed_ns: int, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[Appended]:
        """
        Queue a batch; the future has its outcome after the commit.

        Raises:
            StorageError: If the writer is closed.
        """
        if self._closing:
            raise StorageError(f"the database {self._path} is closed")
        job = _Job(batch, observed_ns, loop, loop.create_future())
        self._jobs.put(job)
        return job.future

    def run(
        self,
        change: Callable[[sqlite3.Connection], T],
        loop: asyncio.AbstractEventLoop,
        *,
        in_transaction: bool = True,
    ) -> asyncio.Future[T]:
        """
        Queue a change of anything but batches; the future has its result after the commit.

        It takes its turn among the batches, which wait for as long as it takes.

        Args:
            change: Called in the writer's thread with its connection. If it deletes
                runs, it calls `forget_runs`.
            loop: The caller's.
            in_transaction: `False` for statements that allow none around them.

        Raises:
            StorageError: If the writer is closed.
        """
        if self._closing:
            raise StorageError(f"the database {self._path} is closed")
        job = _Change(change, in_transaction, loop, loop.create_future())
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Store what is queued, then close the connection. Blocks; later batches are refused."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while (group := self._next_group()) is not None:
            if group:
                self._store_group(group)
                _tell(group)
                self._indexer.lines_came()
            change, self._change = self._change, None
            if change is not None:
                self._make(change)
                _tell([change])
        self._connection.close()  # the last connection to close also empties the WAL

    def _next_group(self) -> list[_Job] | None:
        """
        Wait for a batch and return it with those that have gathered behind it; `None` at the end.

        A change ends the group and comes after it: it is then in ``_change``.
        """
        job = self._next_job()
        group: list[_Job] = []
        lines = 0
        while job is not None:
            if isinstance(job, _Change):
                self._change = job
                return group
            group.append(job)
            lines += len(job.batch.events)
            if lines >= MAX_GROUP_LINES:
                return group
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._jobs.put(None)  # the end comes after this group
            return group
        return None

    def _next_job(self) -> _Job | _Change | None:
        """Wait for what is next; when nothing has come for a while, index messages meanwhile."""
        patience: float | None = IDLE_S
        while self._indexer.is_behind:
            try:
                return self._jobs.get(block=patience is not None, timeout=patience)
            except queue.Empty:
                patience = None  # idle: from here on only what has come ends the work
                self._indexer.step()
        return self._jobs.get()

    def _store_group(self, group: list[_Job]) -> None:
        try:
            self._transaction(group)
        except BaseException as error:  # whatever it is, the callers must hear of it
            if len(group) == 1:
                group[0].outcome = error
            else:  # one batch's trouble must not be the others'
                for job in group:
                    self._store_group([job])

    def _transaction(self, group: list[_Job]) -> None:
        connection = self._connection
        with storage_errors(self._path):
            connection.execute("BEGIN IMMEDIATE")
            started = time.perf_counter()
            try:
                for job in group:
                    try:
                        job.outcome = self._store(job.batch, job.observed_ns)
                    except ProducerGapError as error:  # found before anything was written
                        job.outcome = error
                connection.execute("COMMIT")
                self.commits.observe(time.perf_counter() - started)
            except BaseException:
                self._forget()
                if connection.in_transaction:  # SQLite has rolled back by itself after some errors
                    connection.execute("ROLLBACK")
                raise

    def _make(self, job: _Change) -> None:
        connection = self._connection
        try:
            with storage_errors(self._path):
                if job.in_transaction:
                    connection.execute("BEGIN IMMEDIATE")
                try:
                    job.outcome = job.change(connection)
                    if job.in_transaction:
                        connection.execute("COMMIT")
                except BaseException:
                    self._forget()
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except BaseException as error:  # whatever it is, the caller must hear of it
            job.outcome = error

    def _store(self, batch: EventBatch, observed_ns: int) -> Appended:
        producer = self._producer(batch.producer)
        mark = producer.next_seq if producer is not None else 0
        if batch.first_seq > mark:
            raise ProducerGapError(batch.producer, expected=mark, got=batch.first_seq)
        last_seq = batch.last_seq
        execute = self._connection.execute
        goodbye = says_goodbye(batch, mark)
        if last_seq < mark:
            if goodbye and producer is not None:
                execute("UPDATE producers SET goodbye = 1 WHERE key = ?", (producer.key,))
            return Appended(mark - 1, mark)
        if producer is None:
            producer = self._new_producer(batch.producer, observed_ns)
        new = [(seq, event) for seq, event in batch.numbered() if seq >= mark]
        first_arrival = 0
        if new:
            first_arrival = last_arrival(self._connection) + 1
            summaries, scopes = summarise(event for _, event in new)
            self._merge_runs(summaries.values())
            # By identity: a scope is nine texts, and hashing them for each line costs as much as its row.
            keys = {key: self._scope(scope) for key, scope in {id(scope): scope for scope in scopes}.items()}
            logger = self._logger
            self._connection.executemany(
                INSERT_LINE,
                [
                    line_row(
                        event,
                        seq,
                        producer=producer.key,
                        observed_ns=observed_ns,
                        logger=logger(event.name),
                        scope=keys[id(scope)],
                    )
                    for (seq, event), scope in zip(new, scopes, strict=True)
                ],
            )
        for marker in clip_drops(batch, mark):
            execute(
                "INSERT INTO drops VALUES (?, ?, ?, ?, ?)",
                (producer.key, marker.seq, marker.count, marker.reason, observed_ns),
            )
        execute(
            "UPDATE producers SET next_seq = ?, lines = lines + ?, resource = ?, last_observed_ns = ?, "
            "goodbye = ? WHERE key = ?",
            (
                last_seq + 1,
                len(new),
                msgspec.json.encode(batch.resource).decode(),
                observed_ns,
                goodbye,
                producer.key,
            ),
        )
        producer.next_seq = last_seq + 1
        return Appended(last_seq, mark, first_arrival, producer.key if new else 0)

    # --- keys ---------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._producers: dict[str, _Producer] = {}
        self._loggers: dict[str, int] = {}
        self._scopes: dict[Scope, tuple[int, int | None, int | None]] = {}
        self._runs: dict[tuple[Kind, str], _Run] = {}

    def forget_runs(self, keys: set[int]) -> None:
        """Forget runs, and scopes of them, that are being deleted. For changes alone, see `run`."""
        self._runs = {name: run for name, run in self._runs.items() if run.key not in keys}
        self._scopes = {scope: known for scope, known in self._scopes.items() if keys.isdisjoint(known[1:])}

    def forget_producers(self, keys: set[int]) -> None:
        """Forget producers that are being deleted. For changes alone, see `run`."""
        self._producers = {name: known for name, known in self._producers.items() if known.key not in keys}

    def _producer(self, producer_id: str) -> _Producer | None:
        known = self._producers.get(producer_id)
        if known is None:
            row = self._one("SELECT key, next_seq FROM producers WHERE id = ?", producer_id)
            if row is not None:
                known = self._remember(self._producers, producer_id, _Producer(*row))
        return known

    def _new_producer(self, producer_id: str, observed_ns: int) -> _Producer:
        key = self._insert(
            "INSERT INTO producers VALUES (NULL, ?, 0, 0, '{}', ?, ?, 0)",
            producer_id,
            observed_ns,
            observed_ns,
        )
        return self._remember(self._producers, producer_id, _Producer(key, 0))

    def _logger(self, name: str) -> int:
        key = self._loggers.get(name)
        if key is None:
            row = self._one("SELECT key FROM loggers WHERE name = ?", name)
            key = row[0] if row is not None else self._insert("INSERT INTO loggers VALUES (NULL, ?)", name)
            self._remember(self._loggers, name, key)
        return key

    def _scope(self, scope: Scope) -> tuple[int, int | None, int | None]:
        """Return the keys of a scope, its flow run and its task run; the runs are there already."""
        keys = self._scopes.get(scope)
        if keys is None:
            # An equal one may be there from before a restart. Looking for it would cost an index.
            key = self._insert(f"INSERT INTO scopes VALUES (NULL{', ?' * len(scope)})", *scope)  # noqa: S608 - question marks
            flow_run_id, task_run_id = scope.flow_run_id, scope.task_run_id
            keys = (
                key,
                self._run("flow", flow_run_id).key if flow_run_id is not None else None,
                self._run("task", task_run_id).key if task_run_id is not None else None,
            )
            self._remember(self._scopes, scope, keys)
        return keys

    def _merge_runs(self, summaries: Iterable[RunSummary]) -> None:
        for summary in summaries:
            known = self._known_run(summary.kind, summary.id)
            merged = summary if known is None else merge(known.summary, summary)
            row = run_row(known.key if known is not None else None, merged)
            key = self._insert(UPSERT_RUN, *row)
            run = _Run(known.key if known is not None else key, merged)
            self._remember(self._runs, (summary.kind, summary.id), run)

    def _run(self, kind: Kind, run_id: str) -> _Run:
        run = self._known_run(kind, run_id)
        assert run is not None, "a batch's runs are stored before its lines"
        return run

    def _known_run(self, kind: Kind, run_id: str) -> _Run | None:
        known = self._runs.get((kind, run_id))
        if known is None:
            row = self._one(f"SELECT key, {RUN_COLUMNS} FROM runs WHERE id = ? AND kind = ?", run_id, kind)  # noqa: S608 - constants
            if row is not None:
                known = self._remember(self._runs, (kind, run_id), _Run(row[0], run_of_row(row[1:])))
        return known

    @staticmethod
    def _remember(known: dict[K, V], name: K, value: V) -> V:
        if len(known) >= MAX_REMEMBERED:
            known.clear()
        known[name] = value
        return value

    def _one(self, sql: str, *parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def _insert(self, sql: str, *parameters: Any) -> int:
        key = self._connection.execute(sql, parameters).lastrowid
        assert key is not None, "an INSERT sets it"
        return key


def _tell(group: Sequence[_Job | _Change]) -> None:
    """Hand each caller its outcome, in its own event loop."""
    for loop in {job.loop for job in group}:
        jobs = [job for job in group if job.loop is loop]
        try:
            loop.call_soon_threadsafe(_resolve, jobs)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(jobs: Sequence[_Job | _Change]) -> None:
    for job in jobs:
        if job.future.done():  # cancelled by its caller
            continue
        if isinstance(job.outcome, BaseException):
            job.future.set_exception(job.outcome)
        else:
            job.future.set_result(job.outcome)  # type: ignore[arg-type] # set before its caller is told
