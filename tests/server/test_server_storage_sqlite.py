from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading

import pytest
from server_lines import FLOW, OTHER_PRODUCER, PRODUCER, batch, line
from storage_contract import StorageContract, messages

from runlog.exceptions import SchemaVersionError, StorageError, StorageFullError
from runlog.server.query import LevelBetween, LogQuery, RunIn
from runlog.server.storage.base import ProducerGapError
from runlog.server.storage.sqlite import SQLiteStorage, arrivals, reader, writer
from runlog.server.storage.sqlite.lines import lines_statement
from runlog.server.storage.sqlite.schema import APPLICATION_ID, SCHEMA_VERSION

pytestmark = pytest.mark.anyio


class TestSQLiteStorage(StorageContract):
    @pytest.fixture
    async def storage(self, tmp_path):
        storage = SQLiteStorage(tmp_path / "lines" / "runlog.db")
        await storage.open()
        yield storage
        await storage.close()

    async def lose(self, storage, seqs):
        with sqlite3.connect(storage.location) as connection:
            connection.executemany("DELETE FROM logs WHERE seq = ?", [(seq,) for seq in seqs])
        connection.close()


@pytest.fixture
async def storage(tmp_path):
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    yield storage
    await storage.close()


# --- the file -----------------------------------------------------------------------------------------


async def test_what_was_stored_is_there_after_a_restart(tmp_path):
    """Lines, runs and marks outlive the storage that wrote them, and its keys are found again."""
    for number in range(3):
        storage = SQLiteStorage(tmp_path / "runlog.db")
        await storage.open()
        appended = await storage.append(
            batch(line(str(number), at=number, flow_run_id=FLOW), first_seq=number), observed_ns=1
        )
        assert appended.acked == number
        await storage.close()
    await storage.open()
    assert await messages(storage) == ["0", "1", "2"]
    (run,) = await storage.read_tree(FLOW)
    assert run.lines == 3
    with pytest.raises(ProducerGapError):
        await storage.append(batch(line(), first_seq=7), observed_ns=1)
    await storage.close()


async def test_only_the_owner_may_read_the_file(tmp_path):
    """The database and its lock have mode 0600, a directory that is made has 0700."""
    storage = SQLiteStorage(tmp_path / "a" / "runlog.db")
    await storage.open()
    await storage.append(batch(line()), observed_ns=1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"runlog.db", "runlog.db-wal", "runlog.db.lock"} <= set(modes)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    await storage.close()


async def test_nothing_is_left_beside_a_closed_database(tmp_path):
    """Closing empties the write-ahead log into the database and ends both kinds of threads."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    await storage.append(batch(line()), observed_ns=1)
    await messages(storage)
    await storage.close()
    await storage.close()
    assert {path.name for path in tmp_path.iterdir()} == {"runlog.db", "runlog.db.lock"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("runlog-sqlite")]


async def test_a_second_server_is_refused(storage, tmp_path):
    """A database that is in use cannot be opened again, and can be once it is closed."""
    second = SQLiteStorage(tmp_path / "runlog.db")
    with pytest.raises(StorageError, match=r"runlog\.db is in use by another runlog server; stop that one"):
        await second.open()
    await storage.close()
    await second.open()
    await second.close()


@pytest.mark.parametrize(
    "content", [b"not a database, only text that is longer than its header is" * 20, b"x"]
)
async def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    """Another kind of file is neither overwritten nor taken for an empty store."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="file is not a database"):
        await SQLiteStorage(path).open()
    assert path.read_bytes() == content


async def test_the_database_of_another_program_is_refused(tmp_path):
    """A foreign database is left as it is."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE things (name)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        StorageError, match="is the database of another program; give runlog a file of its own"
    ):
        await SQLiteStorage(path).open()
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused(tmp_path):
    """A database of a newer runlog is refused with both versions, and may be opened by that one again."""
    path = tmp_path / "runlog.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(SchemaVersionError) as refusal:
        await SQLiteStorage(path).open()
    assert (refusal.value.found, refusal.value.supported) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)


async def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    """All scripts run in one transaction: a file is of the old version or of the new one."""
    from runlog.server.storage.sqlite import schema

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (x); NONSENSE;"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    path = tmp_path / "runlog.db"
    with pytest.raises(StorageError, match="NONSENSE"):
        await SQLiteStorage(path).open()
    monkeypatch.undo()
    storage = SQLiteStorage(path)
    await storage.open()
    await storage.append(batch(line()), observed_ns=1)
    await storage.close()


async def test_an_older_schema_is_brought_up(tmp_path, monkeypatch):
    """A database of an older version gets the scripts that it lacks, and keeps its lines."""
    from runlog.server.storage.sqlite import schema

    path = tmp_path / "runlog.db"
    storage = SQLiteStorage(path)
    await storage.open()
    await storage.append(batch(line("old")), observed_ns=1)
    await storage.close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (x);"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    await storage.open()
    assert await messages(storage) == ["old"]
    await storage.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert connection.execute("SELECT count(*) FROM more").fetchone() == (0,)
    connection.close()


async def test_a_database_of_version_1_is_brought_up(tmp_path, monkeypatch):
    """Its producers have not said goodbye and may do so from then on; its lines and runs have a receipt."""
    from runlog.server.storage.sqlite import schema

    path = tmp_path / "runlog.db"
    connection = sqlite3.connect(path, isolation_level=None)
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 1)
    schema.migrate(connection, path)
    monkeypatch.undo()
    connection.execute("INSERT INTO producers VALUES (1, ?, 2, 1, '{}', 1, 1)", (PRODUCER,))
    connection.execute("INSERT INTO drops VALUES (1, 0, 1, 'queue_full', 1)")
    connection.execute("INSERT INTO loggers VALUES (1, 'old')")
    connection.execute("INSERT INTO scopes (key, flow_run_id) VALUES (1, ?)", (FLOW,))
    connection.execute(
        "INSERT INTO runs VALUES (1, ?, 'flow', NULL, NULL, NULL, 'UNKNOWN', 1, 1, '[0,1,0,0,0]', 1, 1, "
        "'{}', NULL, NULL, NULL)",
        (FLOW,),
    )
    connection.execute(
        "INSERT INTO logs VALUES (1, 1, 1, 1, 20, 1, 1, 1, NULL, 'old', '{\"runlog.run.lines\":2}', NULL, "
        "'runlog.run.finished', NULL, NULL, 0)"
    )
    connection.close()
    for goodbye in (False, True):
        storage = SQLiteStorage(path)
        await storage.open()
        assert await messages(storage) == ["old"]
        (share,) = await storage.read_shares(FLOW)
        assert (share.stored, share.expected, share.arrived, share.goodbye) == (1, 2, 1, goodbye)
        assert (await storage.append(batch(first_seq=2, closing=True), observed_ns=1))[:2] == (1, 2)
        await storage.close()
    assert len(schema.MIGRATIONS) == schema.SCHEMA_VERSION


async def test_the_end_of_a_run_is_found_without_its_lines(storage):
    """A receipt looks for the claims along the index that was made for it."""
    from runlog.server.storage.sqlite import shares

    statements = []

    class Explainer:
        def all(self, sql, *parameters):
            statements.extend(storage._readers._local.reader.all(f"EXPLAIN QUERY PLAN {sql}", *parameters))
            return []

    await storage._reading.ask(lambda reader: shares._claims(Explainer(), FLOW))
    assert any("logs_by_finished_run" in row[3] for row in statements), statements


@pytest.mark.parametrize("place", ["directory", "file/runlog.db", "directory.lock"])
async def test_a_place_where_no_file_can_be_is_refused(tmp_path, place):
    """A path that is a directory, lies below a file, or cannot be locked is a storage error."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "directory.lock").unlink(missing_ok=True)
    path = tmp_path / place
    if place == "directory.lock":
        path = tmp_path / "database"
        (tmp_path / "database.lock").mkdir()
    with pytest.raises(StorageError, match=r"cannot (open|lock) the database"):
        await SQLiteStorage(path).open()


async def test_a_closed_store_says_so(tmp_path):
    """Questions and batches to a store that is not open are storage errors."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    for _ in range(2):
        with pytest.raises(StorageError, match="is closed"):
            await storage.append(batch(line()), observed_ns=1)
        with pytest.raises(StorageError, match="is closed"):
            await messages(storage)
        await storage.open()
        writer = storage._writer
        await storage.close()
        with pytest.raises(StorageError, match="is closed"):
            writer.submit(batch(line()), 1, asyncio.get_running_loop())


# --- writing ------------------------------------------------------------------------------------------


async def test_batches_that_gather_share_a_transaction(storage):
    """Batches that wait while one is being stored are stored with one commit, each with its own answer."""
    commits = []
    storage._writer._connection.set_trace_callback(
        lambda statement: commits.append(statement) if statement == "COMMIT" else None
    )
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)
    first = asyncio.ensure_future(storage.append(batch(line("0")), observed_ns=1))
    await asyncio.to_thread(entered.wait, 10)
    others = [
        asyncio.ensure_future(storage.append(batch(line(str(n)), producer=f"{n:020x}"), observed_ns=1))
        for n in range(1, 40)
    ]
    gap = asyncio.ensure_future(storage.append(batch(line(), first_seq=9), observed_ns=1))
    await asyncio.sleep(0)
    release.set()
    assert (await first)[:2] == (0, 0)
    assert [one[:2] for one in await asyncio.gather(*others)] == [(0, 0)] * 39
    with pytest.raises(ProducerGapError):
        await gap
    assert len(commits) == 2
    assert len(await messages(storage)) == 40


def hold_first_commit(storage, entered, release):
    """Stop the writer between its first group and the next."""
    original = storage._writer._store_group

    def store_group(group):
        storage._writer._store_group = original
        entered.set()
        release.wait(10)
        original(group)

    storage._writer._store_group = store_group


async def test_a_transaction_has_a_limit(storage, monkeypatch):
    """A group is closed once it has enough lines; what comes after goes into the next."""
    monkeypatch.setattr(writer, "MAX_GROUP_LINES", 3)
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)
    first = asyncio.ensure_future(storage.append(batch(line()), observed_ns=1))
    await asyncio.to_thread(entered.wait, 10)
    sizes = []
    original = storage._writer._transaction
    storage._writer._transaction = lambda group: (sizes.append(len(group)), original(group))
    others = [
        asyncio.ensure_future(storage.append(batch(line(), line(), producer=f"{n:020x}"), observed_ns=1))
        for n in range(1, 6)
    ]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *others)
    assert sizes == [1, 2, 2, 1]


async def test_one_batch_that_cannot_be_stored_does_not_harm_the_others(storage):
    """A batch that makes its transaction fail is refused alone; those that shared it are stored."""
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)
    first = asyncio.ensure_future(storage.append(batch(line()), observed_ns=1))
    await asyncio.to_thread(entered.wait, 10)
    good = asyncio.ensure_future(storage.append(batch(line("good"), producer=OTHER_PRODUCER), observed_ns=1))
    bad = batch(line(level=2**80), producer="b" * 20)  # more than a column holds: ingest refuses it
    refused = asyncio.ensure_future(storage.append(bad, observed_ns=1))
    await asyncio.sleep(0)
    release.set()
    await first
    assert (await good)[:2] == (0, 0)
    with pytest.raises(OverflowError):
        await refused
    assert await messages(storage) == ["hello", "good"]


async def test_closing_stores_what_is_queued(tmp_path):
    """Batches that were taken before the close are committed and answered."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)
    first = asyncio.ensure_future(storage.append(batch(line()), observed_ns=1))
    await asyncio.to_thread(entered.wait, 10)
    others = [
        asyncio.ensure_future(storage.append(batch(line(), producer=f"{n:020x}"), observed_ns=1))
        for n in range(1, 5)
    ]
    await asyncio.sleep(0)
    storage._writer._jobs.put(None)  # the end, as `close` puts it, behind the four
    release.set()
    await storage.close()
    assert [one[:2] for one in await asyncio.gather(first, *others)] == [(0, 0)] * 5
    await storage.open()
    assert len(await messages(storage)) == 5
    await storage.close()


async def test_a_cancelled_wait_does_not_cancel_the_batch(storage):
    """Who stops waiting for an answer hears nothing; the batch is stored all the same."""
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)
    waiting = asyncio.ensure_future(storage.append(batch(line("a")), observed_ns=1))
    await asyncio.to_thread(entered.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await storage.append(batch(line("b"), first_seq=1), observed_ns=1)
    assert await messages(storage) == ["a", "b"]


def test_a_loop_that_is_gone_harms_nobody(tmp_path):
    """A batch whose event loop was closed is stored, and the writer goes on."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    asyncio.run(storage.open())
    entered, release = threading.Event(), threading.Event()
    hold_first_commit(storage, entered, release)

    async def leave():
        storage._writer.submit(batch(line("a")), 1, asyncio.get_running_loop())
        await asyncio.to_thread(entered.wait, 10)

    asyncio.run(leave())
    release.set()
    assert asyncio.run(storage.append(batch(line("b"), first_seq=1), observed_ns=1))[:2] == (1, 1)
    asyncio.run(storage.close())


async def test_a_full_disk_is_told_and_reading_goes_on(storage):
    """A batch without room is refused whole; what is stored can be read; it goes in once there is room."""
    await storage.append(batch(line("before")), observed_ns=1)
    connection = storage._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    large = batch(*(line("x" * 5000, flow_run_id=FLOW) for _ in range(50)), first_seq=1)
    with pytest.raises(StorageFullError, match="database or disk is full"):
        await storage.append(large, observed_ns=1)
    assert await messages(storage) == ["before"]
    assert await storage.read_tree(FLOW) == []
    connection.execute("PRAGMA max_page_count = 1000000")
    assert (await storage.append(large, observed_ns=1)).acked == 50
    (run,) = await storage.read_tree(FLOW)
    assert run.lines == 50


async def test_memory_of_keys_is_bounded(storage, monkeypatch):
    """With room for two keys of a kind, many producers, loggers, scopes and runs are stored and read rightly."""
    monkeypatch.setattr(writer, "MAX_REMEMBERED", 2)
    monkeypatch.setattr(reader, "MAX_REMEMBERED", 2)
    expected = []
    for seq in range(4):
        for n in range(5):
            events = [
                line(
                    f"{n}.{seq}", at=seq * 5 + n, name=f"logger.{n}", flow_run_id=f"f{n}", flow_name=f"n{n}"
                ),
                line("x", at=seq * 5 + n + 0.5, name=f"logger.{n}", flow_run_id=f"g{n}"),
            ]
            expected += [(PRODUCER[:-1] + str(n), event) for event in events]
            appended = await storage.append(
                batch(*events, producer=PRODUCER[:-1] + str(n), first_seq=seq * 2), observed_ns=1
            )
            assert appended.new_from == seq * 2
    found = await storage.read_lines(LogQuery())
    assert [(item.producer, item.event) for item in found] == expected
    (run,) = await storage.read_tree("f3")
    assert run.lines == 4


async def test_many_tasks_append_and_read_at_once(storage):
    """Twenty producers with fifty batches each lose nothing, double nothing, and keep their order."""

    async def produce(number):
        producer = f"{number:020x}"
        for seq in range(50):
            await storage.append(
                batch(line(f"{number}:{seq}", at=seq, flow_run_id=FLOW), producer=producer, first_seq=seq),
                observed_ns=1,
            )

    async def read():
        while len(found := await messages(storage, limit=5000)) < 1000:
            assert len(set(found)) == len(found)

    await asyncio.gather(read(), *(produce(number) for number in range(20)))
    found = await messages(storage, limit=5000)
    for number in range(20):
        assert [text for text in found if text.startswith(f"{number}:")] == [
            f"{number}:{s}" for s in range(50)
        ]
    (run,) = await storage.read_tree(FLOW)
    assert run.lines == 1000


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (LogQuery(), "logs_by_time"),
        (LogQuery(where=RunIn("flow", (FLOW,))), "logs_by_flow_run"),
        (LogQuery(where=RunIn("task", (FLOW,)), order="desc"), "logs_by_task_run"),
    ],
    ids=["all", "flow", "task"],
)
async def test_lines_are_read_in_the_order_of_an_index(storage, query, index):
    """A page of lines, of all or of one run, is read from an index and not sorted."""

    def explain(one):
        sql, *values = lines_statement(one, query, None)
        return one.all(f"EXPLAIN QUERY PLAN {sql}", *values)

    plan = await storage._readers.ask(explain)
    steps = " ".join(row[3] for row in plan)
    assert index in steps
    assert "TEMP B-TREE" not in steps


async def test_readers_cannot_write(storage):
    """A reader's connection refuses to change anything."""
    with pytest.raises(StorageError, match="readonly"):
        await storage._readers.ask(lambda one: one.all("DELETE FROM logs"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
async def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A child that was forked while the store was open does not stop it from being opened anew."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    try:
        await storage.close()
        await storage.open()
        await storage.close()
    finally:
        os.write(writing, b"x")
        await asyncio.to_thread(os.waitpid, child, 0)
        os.close(reading)
        os.close(writing)


# --- arrivals -----------------------------------------------------------------------------------------


async def test_arrivals_outlive_restarts_and_vacuum(tmp_path):
    """A cursor is good for as long as the store is: neither a restart nor VACUUM numbers lines anew."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    await storage.append(batch(*(line(str(n)) for n in range(200))), observed_ns=1)
    epoch = storage.epoch
    await storage.close()
    connection = sqlite3.connect(tmp_path / "runlog.db", isolation_level=None)
    connection.execute("DELETE FROM logs WHERE seq < 150")
    before = connection.execute("SELECT rowid, seq FROM logs").fetchall()
    connection.execute("VACUUM")
    assert connection.execute("SELECT rowid, seq FROM logs").fetchall() == before
    connection.close()
    await storage.open()
    assert storage.epoch == epoch
    found = await storage.read_arrivals(160)
    assert [(arrival, one.seq) for arrival, one in found.lines] == [(n + 1, n) for n in range(160, 200)]
    assert (await storage.append(batch(line(), first_seq=200), observed_ns=1)).first_arrival == 201
    await storage.close()


async def test_a_page_of_arrivals_is_bounded(storage, monkeypatch):
    """A question looks at so many lines, and returns so many bytes, and says how far it came."""
    monkeypatch.setattr(arrivals, "MAX_SCANNED", 30)
    monkeypatch.setattr(arrivals, "MAX_PAGE_BYTES", 1000)
    await storage.append(batch(*(line("x" * 90, level=n) for n in range(100))), observed_ns=1)
    assert await storage.read_arrivals(0, where=LevelBetween(50)) == ([], 30)
    page = await storage.read_arrivals(0)
    assert (len(page.lines), page.upto) == (12, 12)
    connection = sqlite3.connect(storage.location, isolation_level=None)
    connection.execute("DELETE FROM logs WHERE seq BETWEEN 10 AND 89")
    connection.close()
    page = await storage.read_arrivals(10)
    assert ([arrival for arrival, _ in page.lines], page.upto) == (list(range(91, 101)), 100)


async def test_a_page_that_is_left_early_keeps_no_view_of_the_data(storage, monkeypatch):
    """The next question of the same reader sees what was stored since."""
    monkeypatch.setattr(arrivals, "MAX_PAGE_BYTES", 1)
    for number in range(8):
        await storage.append(batch(line(str(number)), first_seq=number), observed_ns=1)
        assert await storage.last_arrival() == number + 1
        assert (await storage.read_arrivals(0)).upto == 1


async def test_two_databases_have_different_epochs(tmp_path):
    """A cursor of one is not taken for one of the other."""
    epochs = set()
    for name in ("a.db", "b.db"):
        storage = SQLiteStorage(tmp_path / name)
        await storage.open()
        epochs.add(storage.epoch)
        await storage.close()
    assert len(epochs) == 2
