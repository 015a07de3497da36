"""Old lines go: which ones, how, and what is known of them afterwards."""

from __future__ import annotations

import sqlite3

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
    finished,
    line,
    started,
)

from runlog.records import DropMarker
from runlog.server.query import LogQuery
from runlog.server.receipt import receipt_of
from runlog.server.storage.base import ProducerGapError, RunQuery
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.shares import SeqRange
from runlog.server.storage.sqlite import SQLiteStorage
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
