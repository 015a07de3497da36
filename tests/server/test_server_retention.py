"""Old lines go: which ones, how, and what is known of them afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import threading
import time

import pytest
from server_lines import (
    FLOW,
    OTHER_FLOW,
    OTHER_PRODUCER,
    PRODUCER,
    SECOND,
    START,
    TASK,
    batch,
    encoded,
    finished,
    line,
    started,
)

from runlog._http import Client
from runlog.exceptions import StorageError, StorageFullError
from runlog.records import DropMarker
from runlog.server.app import BackgroundServer
from runlog.server.authentication import Authenticator
from runlog.server.keeping import Keeper, Keeping, Pruner
from runlog.server.keys import new_key
from runlog.server.query import LogQuery
from runlog.server.receipt import receipt_of
from runlog.server.storage.base import ProducerGapError, RunQuery
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.shares import SeqRange
from runlog.server.storage.sqlite import SQLiteStorage
from runlog.server.storage.sqlite.backup import back_up
from runlog.server.storage.sqlite.pruning import ranges_of

pytestmark = pytest.mark.anyio

FOREVER = 2**62


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request, tmp_path):
    storage = MemoryStorage() if request.param == "memory" else SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    yield storage
    await storage.close()


async def prune(storage, keep_from_ns, *, limit=1000):
    """Prune to the end; return how many lines and runs went."""
    keep = keep_from_ns if isinstance(keep_from_ns, list) else [keep_from_ns] * 5
    lines, runs, after = 0, 0, None
    while True:
        pruned = await storage.prune(keep, after=after, limit=limit)
        lines, runs, after = lines + pruned.lines, runs + pruned.runs, pruned.after
        if after is None:
            return lines, runs


async def messages(storage):
    return [found.event.message for found in await storage.read_lines(LogQuery(limit=10_000))]


async def receipt(storage, run_id=FLOW):
    (run,) = await storage.read_runs(RunQuery(id=run_id))
    return receipt_of(run, await storage.read_shares(run_id))


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_lines_before_a_time_go(storage, limit):
    """Of lines that are older, all go, in steps of any size; what came at that time or later stays."""
    await storage.append(batch(*(line(str(at), at=at) for at in range(6))), observed_ns=1)
    assert await prune(storage, START + 4 * SECOND, limit=limit) == (4, 0)
    assert await messages(storage) == ["4", "5"]
    assert (await storage.read_statistics()).lines == 2
    assert await prune(storage, START + 4 * SECOND) == (0, 0)
    assert await prune(storage, None) == (0, 0)


async def test_each_level_has_its_age(storage):
    """A level's own time counts for it and for custom levels above it; ``None`` keeps a level for ever."""
    levels = [5, 10, 15, 20, 25, 30, 40, 50, 60]
    await storage.append(
        batch(*(line(str(level), level=level) for level in levels), line("last", at=1)), observed_ns=1
    )
    keep = [FOREVER, START, START + SECOND, None, FOREVER]
    assert await prune(storage, keep) == (6, 0)
    assert await messages(storage) == ["20", "25", "40", "last"]


async def test_a_line_stays_as_long_after_it_came(storage):
    """A line that was on its way for long is not taken away the moment it comes."""
    await storage.append(batch(line("late"), line("x", at=9)), observed_ns=START + 100 * SECOND)
    assert await prune(storage, START + 50 * SECOND) == (0, 0)
    assert await prune(storage, START + 101 * SECOND) == (1, 0)


async def test_the_newest_line_stays(storage):
    """The line that came last stays, however old: no number of an arrival is ever given again."""
    await storage.append(batch(line("a", at=5), line("b", at=1), line("c", at=3)), observed_ns=1)
    last = await storage.last_arrival()
    assert await prune(storage, FOREVER) == (2, 0)
    assert await messages(storage) == ["c"]
    appended = await storage.append(batch(line("d"), first_seq=3), observed_ns=2)
    assert appended.first_arrival == last + 1


async def test_marks_stay(storage):
    """What was stored and taken away is not stored again, and a producer goes on where it was."""
    await storage.append(batch(line("a"), line("b")), observed_ns=1)
    await storage.append(batch(line("x"), producer=OTHER_PRODUCER), observed_ns=1)
    await prune(storage, FOREVER)
    assert (await storage.append(batch(line("a"), line("b")), observed_ns=2)).acked == 1
    assert await messages(storage) == ["x"]
    with pytest.raises(ProducerGapError):
        await storage.append(batch(line("c"), first_seq=3), observed_ns=2)
    assert (await storage.append(batch(line("c"), first_seq=2), observed_ns=2)).acked == 2
    assert await messages(storage) == ["c", "x"]


async def test_a_producer_without_lines_is_forgotten(storage):
    """One that said goodbye, is silent and has no lines goes, the newest excepted; all others keep their marks."""
    names = [f"{number:020x}" for number in range(5)]
    for producer, closing, observed in zip(
        names, (True, False, True, True, True), (1, 1, 9, 1, 1), strict=True
    ):
        await storage.append(
            batch(line(flow_run_id=FLOW), producer=producer, closing=closing), observed_ns=observed
        )
    await storage.append(batch(line("newest"), producer=names[3], first_seq=1, closing=True), observed_ns=1)
    assert await storage.forget_producers(5) == 0
    assert await prune(storage, START + SECOND) == (5, 1)
    assert await storage.forget_producers(5) == 1
    assert await storage.forget_producers(5) == 0
    again = batch(line("again"), producer=names[0])
    assert (await storage.append(again, observed_ns=9)).new_from == 0
    for producer in (names[1], names[2], names[4]):
        assert (await storage.append(batch(line(), producer=producer), observed_ns=9)).new_from == 1
    assert await messages(storage) == ["newest", "again"] or await messages(storage) == ["again", "newest"]


async def test_a_run_goes_with_its_last_line(storage):
    """A run without lines goes; one in which another is left stays until that goes as well."""
    await storage.append(
        batch(
            started(FLOW),
            started(OTHER_FLOW, at=1, parent_flow_run_id=FLOW),
            line(at=1, task_run_id=TASK, flow_run_id=OTHER_FLOW),
            finished(FLOW, at=2),
            line("inner", at=5, flow_run_id=OTHER_FLOW),
            line("newest", at=9),
        ),
        observed_ns=1,
    )
    assert await prune(storage, START + 4 * SECOND) == (4, 1)
    assert {run.id for run in await storage.read_runs(RunQuery())} == {FLOW, OTHER_FLOW}
    assert await prune(storage, START + 6 * SECOND) == (1, 2)
    assert await storage.read_runs(RunQuery()) == []
    assert await storage.read_shares(FLOW) == []
    # It may come to life again, without what was known of it.
    await storage.append(batch(line(at=10, flow_run_id=FLOW), first_seq=6), observed_ns=2)
    (run,) = await storage.read_runs(RunQuery(id=FLOW))
    assert (run.state, run.lines) == ("UNKNOWN", 1)
    (share,) = await storage.read_shares(FLOW)
    assert (share.stored, share.removed) == (1, 0)


def a_run(lines, **rest):
    end = finished(at=lines)
    end.attributes["runlog.run.lines"] = lines + 2
    return batch(
        started(),
        *(line(str(at), at=at, level=10 + at % 2 * 10, flow_run_id=FLOW) for at in range(1, lines + 1)),
        end,
        line("newest", at=lines + 100),
        closing=True,
        **rest,
    )


async def test_a_receipt_tells_what_was_removed(storage):
    """Lines that retention took are not missing: they are told as what they are, and the run is not complete."""
    await storage.append(a_run(10), observed_ns=1)
    before = await receipt(storage)
    assert (before.complete, before.removed, before.missing) == (True, 0, 0)
    assert await prune(storage, [START + 8 * SECOND, None, None, None, None]) == (3, 0)
    after = await receipt(storage)
    assert (after.complete, after.stored, after.removed, after.missing) == (False, 9, 3, 0)
    assert after.reasons == [
        f"3 lines of producer {PRODUCER} were stored and have been removed since, by retention"
    ]
    assert await prune(storage, START + 11 * SECOND) == (9, 1)


async def test_a_receipt_of_a_producer_of_which_nothing_is_left(storage):
    """A producer whose lines are all gone is still named."""
    await storage.append(batch(line(flow_run_id=FLOW), line(flow_run_id=FLOW)), observed_ns=1)
    await storage.append(
        batch(line(at=5, flow_run_id=FLOW), line(at=9), producer=OTHER_PRODUCER, closing=True), observed_ns=1
    )
    assert await prune(storage, START + SECOND) == (2, 0)
    gone, left = await storage.read_shares(FLOW)
    assert (gone.producer, gone.stored, gone.removed, gone.first_seq, gone.last_seq) == (PRODUCER, 0, 2, 0, 1)
    assert (left.producer, left.stored, left.removed) == (OTHER_PRODUCER, 1, 0)
    assert gone.missing == left.missing == ()


async def test_what_is_missing_is_still_missing(storage):
    """Removed lines hide no loss: drops are told beside them."""
    dropped = [DropMarker(2, 3, "queue_full")]
    await storage.append(
        batch(*(line(str(at), at=at, flow_run_id=FLOW) for at in range(6)), line(at=99), dropped=dropped),
        observed_ns=1,
    )
    await prune(storage, START + 3 * SECOND)
    (share,) = await storage.read_shares(FLOW)
    assert (share.first_seq, share.last_seq, share.stored, share.removed) == (0, 8, 3, 3)
    assert (share.missing, share.drops) == ((), tuple(dropped))


def test_ranges():
    """Ascending seqs become ranges that do not touch."""
    assert ranges_of([]) == []
    assert ranges_of([1, 2, 4, 6, 7, 8]) == [SeqRange(1, 2), SeqRange(4, 4), SeqRange(6, 8)]


async def test_ranges_of_what_was_removed_grow_together(tmp_path):
    """However lines go, their seqs are kept in as few ranges as there are gaps."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    order = [3, 7, 1, 5, 0, 2, 8, 4, 6]
    times = {seq: at for at, seq in enumerate(order)}
    await storage.append(batch(*(line(at=times[seq]) for seq in range(9)), line(at=99)), observed_ns=1)
    expected = [
        [(3, 3)], [(3, 3), (7, 7)], [(1, 1), (3, 3), (7, 7)], [(1, 1), (3, 3), (5, 5), (7, 7)],
        [(0, 1), (3, 3), (5, 5), (7, 7)], [(0, 3), (5, 5), (7, 7)], [(0, 3), (5, 5), (7, 8)],
        [(0, 5), (7, 8)], [(0, 8)],
    ]  # fmt: skip
    with sqlite3.connect(tmp_path / "runlog.db") as connection:
        for at, ranges in enumerate(expected, 1):
            assert await prune(storage, START + at * SECOND) == (1, 0)
            assert connection.execute("SELECT first_seq, last_seq FROM removed").fetchall() == ranges
    connection.close()
    await storage.close()


async def test_a_writer_forgets_runs_that_went(tmp_path):
    """Lines of a run that was deleted, and of its scope, make both anew; keys are not given twice."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    await storage.append(batch(line(flow_run_id=FLOW), line(at=9, flow_run_id=OTHER_FLOW)), observed_ns=1)
    assert await prune(storage, START + SECOND) == (1, 1)
    await storage.append(batch(line(at=10, flow_run_id=FLOW), first_seq=2), observed_ns=1)
    assert {run.id for run in await storage.read_runs(RunQuery())} == {FLOW, OTHER_FLOW}
    lines = await storage.read_lines(LogQuery())
    assert [found.event.flow_run_id for found in lines] == [OTHER_FLOW, FLOW]
    assert await prune(storage, START + 20 * SECOND) == (1, 1)
    await storage.append(batch(line(at=30, flow_run_id="third"), first_seq=3), observed_ns=1)
    lines = await storage.read_lines(LogQuery())
    assert [found.event.flow_run_id for found in lines] == [FLOW, "third"]
    await storage.close()


async def test_sizes(tmp_path):
    """What is used shrinks when lines go; the file does not, until the space is given back."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    await storage.append(batch(*(line("x" * 1000, at=at) for at in range(2000))), observed_ns=1)
    before = await storage.read_size()
    assert before.file_bytes >= before.used_bytes > 2_000_000
    await prune(storage, FOREVER)
    after = await storage.read_size()
    assert after.used_bytes < 500_000
    assert after.file_bytes >= before.used_bytes
    await storage.close()
    assert (await MemoryStorage().read_size()) == (0, 0)


# --- by itself ----------------------------------------------------------------------------------------


async def test_steps_end_when_nothing_is_too_old_or_too_much(storage):
    """Ages come first, then the size; without either, nothing is done."""
    await storage.append(batch(*(line(str(at), at=at) for at in range(5))), observed_ns=1)
    for keeping, expected in (
        (Keeping(), 0),
        (Keeping(max_bytes=2**40), 0),
        (Keeping((3.0, 3.0, None, None, None)), 2),
    ):
        pruner = Pruner(storage, keeping, START + 5 * SECOND)
        while not pruner.is_done:
            await pruner.step()
        assert pruner.lines == expected


async def test_the_oldest_lines_make_room(tmp_path):
    """Past the most space, oldest lines go until there is some room again; the newest stay."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    await storage.append(batch(*(line("x" * 1000, at=at) for at in range(6000))), observed_ns=1)
    limit = 4_000_000
    assert (await storage.read_size()).used_bytes > limit
    pruner = Pruner(storage, Keeping(max_bytes=limit), START)
    while not pruner.is_done:
        await pruner.step()
    assert (await storage.read_size()).used_bytes < limit
    (oldest,) = await storage.read_lines(LogQuery(limit=1))
    assert oldest.seq == pruner.lines > 2000
    assert (await storage.read_statistics()).lines == 6000 - pruner.lines > 1000
    pruner = Pruner(storage, Keeping(max_bytes=1), START)
    while not pruner.is_done:
        await pruner.step()
    assert (await storage.read_statistics()).lines == 1
    await storage.close()


def test_an_age_is_counted_back_from_now():
    """Each level has its own."""
    keeping = Keeping((1.0, 2.0, None, None, 0.0))
    assert keeping.keep_from_ns(10 * SECOND) == [9 * SECOND, 8 * SECOND, None, None, 10 * SECOND]


async def test_the_keeper_works_beside_the_server(storage):
    """It takes old lines away and stores uses of keys, round after round, whatever goes wrong in between."""
    await storage.append(batch(*(line(str(at), at=at) for at in range(5))), observed_ns=1)
    token, key = new_key("n", ["read"])
    await storage.add_key(key)
    authenticator = Authenticator(storage)
    await authenticator.load()
    authenticator.by_token(token)
    keeper = Keeper(
        storage, authenticator, Keeping((3.0,) * 5), interval_s=0, clock=lambda: START + 5 * SECOND
    )
    broken, storage.read_keys_used = [StorageError("no")], storage.mark_keys_used

    async def mark_keys_used(used):
        if broken:
            raise broken.pop()
        await storage.read_keys_used(used)

    storage.mark_keys_used = mark_keys_used
    keeper.start()
    while keeper.rounds < 3:  # noqa: ASYNC110 - rounds are counted, not told
        await asyncio.sleep(0)
    await keeper.close()
    await keeper.close()
    assert keeper.lines == 2
    assert await messages(storage) == ["2", "3", "4"]
    assert (await storage.read_keys())[0].last_used_ns is not None


def test_a_server_keeps_what_it_is_told_to(tmp_path):
    """A server with an age takes old lines away from its start on."""
    database = str(tmp_path / "runlog.db")
    with BackgroundServer(database) as server, Client(base_url=server.url) as client:
        client.post("/runlog/v1/batches", content=encoded(line("old"), line("newest", at=1)))
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("UPDATE logs SET observed_ns = 1")
    connection.close()
    keeping = Keeping((60.0,) * 5)
    with BackgroundServer(database, keeping=keeping) as server, Client(base_url=server.url) as client:
        deadline = time.monotonic() + 30
        while client.get("/runlog/v1/status").json()["lines"] != 1:
            assert time.monotonic() < deadline
        (left,) = client.get("/runlog/v1/logs").json()["logs"]
        assert left["message"] == "newest"


# --- by hand ------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path):
    """A server over a file with 3,000 lines, the first half of them DEBUG."""
    database = tmp_path / "runlog.db"
    with BackgroundServer(str(database)) as server, Client(base_url=server.url) as client:
        events = [line("x" * 500, at=at, level=10 + 10 * (at >= 1500)) for at in range(3000)]
        assert client.post("/runlog/v1/batches", content=encoded(*events)).status_code == 200
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("UPDATE logs SET observed_ns = 1")
    connection.close()
    with BackgroundServer(str(database)) as server, Client(base_url=server.url, timeout=60) as client:
        client.database = database
        yield client


def test_lines_go_by_age_level_and_size(filled):
    """A request takes lines away for a moment, says how many, and goes on from its cursor."""
    wanted, lines = {"older_than_s": 60, "levels": ["DEBUG"]}, 0
    while True:
        answer = filled.post("/runlog/v1/admin/prune", json=wanted).json()
        lines += answer["lines"]
        if answer["done"]:
            break
        wanted["cursor"] = answer["cursor"]
    assert (lines, answer["cursor"]) == (1500, None)
    answer = filled.post("/runlog/v1/admin/prune", json={"max_bytes": 0}).json()
    assert (answer["lines"], answer["runs"], answer["done"]) == (1499, 0, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"x": 1}', b'{"older_than_s": -1}', b'{"older_than_s": 1e300}', b'{"max_bytes": -1}',
     b'{"levels": ["LOUD"]}', b'{"cursor": "x"}'],
)  # fmt: skip
def test_a_wrong_request_to_prune_is_refused(filled, body):
    """It is answered 422 and takes nothing away."""
    assert filled.post("/runlog/v1/admin/prune", content=body).status_code == 422
    assert filled.get("/runlog/v1/status").json()["lines"] == 3000


def test_space_is_given_back_and_rowids_stay(filled):
    """After a vacuum the file is smaller, and each line has the arrival that it had."""

    def rowids():
        connection = sqlite3.connect(filled.database, isolation_level=None)
        found = connection.execute("SELECT rowid, seq FROM logs ORDER BY rowid").fetchall()
        connection.close()
        return found

    filled.post("/runlog/v1/admin/prune", json={"older_than_s": 60, "levels": ["DEBUG"]})
    before = rowids()
    assert before[0][0] == 1501
    answer = filled.post("/runlog/v1/admin/vacuum").json()
    assert answer["after_bytes"] < answer["before_bytes"] * 0.7
    assert rowids() == before
    assert filled.get("/runlog/v1/logs", params={"limit": 1}).json()["logs"][0]["seq"] == 1500


async def test_a_vacuum_needs_room(tmp_path, monkeypatch):
    """Without twice the space it is not begun."""
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(StorageFullError, match="bytes for a while"):
        await storage.vacuum()
    await storage.close()
    await MemoryStorage().vacuum()


def test_a_backup_is_made_while_the_server_writes(filled, tmp_path):
    """The copy is sound, complete as of its beginning, readable by its owner alone, and can be served."""
    target, told = tmp_path / "copy.db", []
    stop = threading.Event()

    def write():
        seq = 3000
        while not stop.is_set():
            body = encoded(*(line("more") for _ in range(50)), first_seq=seq)
            assert filled.post("/runlog/v1/batches", content=body).status_code == 200
            seq += 50

    writer = threading.Thread(target=write)
    writer.start()
    try:
        size = back_up(filled.database, target, on_progress=lambda done, total: told.append((done, total)))
    finally:
        stop.set()
        writer.join()
    assert size == target.stat().st_size
    assert target.stat().st_mode & 0o777 == 0o600
    assert told[-1][0] == told[-1][1]
    assert not list(tmp_path.glob("*.part*"))
    with BackgroundServer(str(target)) as server, Client(base_url=server.url) as client:
        lines = client.get("/runlog/v1/status").json()["lines"]
        assert lines >= 3000
        assert (lines - 3000) % 50 == 0
    with pytest.raises(StorageError, match="exists, and a backup replaces nothing"):
        back_up(filled.database, target)


def test_a_backup_without_a_server(tmp_path):
    """A store that nobody has is copied as well; what is no store of ours is not."""
    database = tmp_path / "runlog.db"
    with BackgroundServer(str(database)) as server, Client(base_url=server.url) as client:
        client.post("/runlog/v1/batches", content=encoded(line()))
    back_up(database, tmp_path / "copy.db")
    epochs = set()
    for path in (database, tmp_path / "copy.db"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            epochs.add(connection.execute("SELECT epoch FROM store").fetchone())
    assert len(epochs) == 2, "a cursor of the original is not one of the copy"
    with pytest.raises(StorageError, match="there is no database"):
        back_up(tmp_path / "nothing.db", tmp_path / "other.db")
    with pytest.raises(StorageError, match="cannot write"):
        back_up(database, tmp_path / "no" / "such.db")
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(StorageError, match="no database of runlog"):
        back_up(tmp_path / "foreign.db", tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()
