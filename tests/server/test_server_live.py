"""The tail and its followers: every line that passes, once, in the order of arrival, however slow the reader."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_FLOW, OTHER_PRODUCER, PRODUCER, TASK, batch, finished, line

from runlog.server.follower import Follower, Step, follow
from runlog.server.ingest import Ingest
from runlog.server.live import MAX_STEP_BYTES, MAX_STEP_LINES, Tail
from runlog.server.query import LevelBetween, RunIn
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio


class Writer:
    """Appends lines of one producer after the other through an `Ingest`."""

    def __init__(self, storage, tail):
        self.ingest = Ingest(storage, tail)
        self.next = dict.fromkeys((PRODUCER, OTHER_PRODUCER), 0)

    async def write(self, *events, producer=PRODUCER):
        first = self.next[producer]
        await self.ingest.take_batch(batch(*events, producer=producer, first_seq=first))
        self.next[producer] += len(events)


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def tail():
    return Tail()


@pytest.fixture
def writer(storage, tail):
    return Writer(storage, tail)


async def drain(follower):
    """What a follower can read now, and whether it fell behind on the way."""
    found, fell_behind = [], False
    while not (step := await follower.next(0)).timed_out:
        found += step.lines
        fell_behind = fell_behind or step.fell_behind
        assert not step.lines or step.lines[-1].arrival <= step.cursor
    return [(live.arrival, live.line.event.message) for live in found], fell_behind


def stored(storage, **query):
    async def read():
        found, after = [], 0
        while True:
            page = await storage.read_arrivals(after, **query)
            found += page.lines
            if page.upto == after:
                return [(arrival, one.event.message) for arrival, one in found]
            after = page.upto

    return read()


# --- properties ---------------------------------------------------------------------------------------

CONDITIONS = {
    "all": {},
    "level": {"where": LevelBetween(30)},
    "run": {"where": RunIn("flow", (FLOW,))},
    "tree": {"within": FLOW},
    "level in tree": {"within": FLOW, "where": LevelBetween(30)},
}

lines_of_runs = st.builds(
    lambda level, run: line(level=level, **run),
    st.sampled_from([10, 30, 40]),
    st.sampled_from(
        [
            {},
            {"flow_run_id": FLOW},
            {"flow_run_id": FLOW, "task_run_id": TASK},
            {"flow_run_id": OTHER_FLOW},
            {"flow_run_id": "sub", "parent_task_run_id": TASK, "parent_flow_run_id": FLOW},
            {"flow_run_id": "below", "parent_flow_run_id": FLOW},
        ]
    ),
)

actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.sampled_from([PRODUCER, OTHER_PRODUCER]),
            st.lists(lines_of_runs, max_size=9),
        ),
        st.tuples(st.just("behind"), st.lists(lines_of_runs, min_size=1, max_size=3)),
        st.tuples(st.just("join"), st.sampled_from(sorted(CONDITIONS)), st.sampled_from(["now", "start"])),
        st.tuples(st.just("step"), st.integers(0, 5)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(actions, st.integers(1, 12))
def test_each_follower_sees_each_line_once_in_the_order_of_arrival(steps, size):
    """Whatever is appended, read and left in whatever order, and however short the tail is."""
    asyncio.run(play(steps, size))


async def play(steps, size):
    storage, tail = MemoryStorage(), Tail(max_lines=size)
    writer = Writer(storage, tail)
    joined, number = [], 0

    def name(events):
        nonlocal number
        for event in events:
            event.message = str(number)
            number += 1
        return events

    for action, *arguments in steps:
        if action == "append":
            await writer.write(*name(arguments[1]), producer=arguments[0])
        elif action == "behind":  # stored, and the tail does not hear of it
            events = name(arguments[0])
            await storage.append(batch(*events, first_seq=writer.next[PRODUCER]), observed_ns=1)
            writer.next[PRODUCER] += len(events)
        elif action == "join":
            after = await storage.last_arrival() if arguments[1] == "now" else 0
            query = CONDITIONS[arguments[0]]
            joined.append((await follow(tail, storage, after=after, **query), after, query, []))
        elif action == "step" and arguments[0] < len(joined):
            follower, _, _, got = joined[arguments[0]]
            got += [live.arrival for live in (await follower.next(0)).lines]
        elif action == "leave" and arguments[0] < len(joined):
            joined.pop(arguments[0])[0].close()
    await writer.write(line("end", flow_run_id=FLOW, level=50))
    for follower, after, query, got in joined:
        found, _ = await drain(follower)
        got += [arrival for arrival, _ in found]
        expected = [arrival for arrival, _ in await stored(storage, **query) if arrival > after]
        assert got == expected
        follower.close()
    assert tail.followers == 0


async def test_followers_of_a_busy_store_miss_nothing(tmp_path):
    """Many producers at once, whose batches share commits, and followers of every speed."""
    storage, tail = SQLiteStorage(tmp_path / "runlog.db"), Tail(max_lines=60)
    await storage.open()
    ingest = Ingest(storage, tail)

    async def produce(number):
        chance = random.Random(number)
        first = 0
        for _ in range(15):
            events = [line(f"{number}-{first + n}") for n in range(chance.randint(1, 20))]
            sending = asyncio.create_task(
                ingest.take_batch(batch(*events, producer=f"{number:020x}", first_seq=first))
            )
            if chance.random() < 0.2:  # the request ends before its answer
                await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait([sending])
                first = (await ingest.take_batch(batch(producer=f"{number:020x}"))).acked + 1
            else:
                first = (await sending).acked + 1

    async def read(pause):
        follower, got, gaps = await follow(tail, storage), [], 0
        ready.release()
        while not got or got[-1][1] != "end":
            step = await asyncio.wait_for(follower.next(None), 30)
            got += [(live.arrival, live.line.event.message) for live in step.lines]
            gaps += step.fell_behind
            if pause:
                await asyncio.sleep(pause)
        follower.close()
        return got, gaps

    ready = asyncio.Semaphore(0)
    reading = [asyncio.create_task(read(pause)) for pause in (0, 0, 0.001, 0.02, 0.1)]
    for _ in reading:
        await ready.acquire()
    await asyncio.gather(*(produce(number) for number in range(12)))
    await ingest.close()
    await ingest.take_batch(batch(line("end"), producer="f" * 20))
    found = await asyncio.gather(*reading)
    expected, after = [], 0
    while (page := await storage.read_arrivals(after)).lines:
        expected += [(arrival, one.event.message) for arrival, one in page.lines]
        after = page.upto
    assert [got == expected for got, _ in found] == [True] * len(found)
    assert found[-1][1] > 0  # the slowest was told that it fell behind
    await storage.close()


# --- the tail -----------------------------------------------------------------------------------------


async def test_nothing_is_kept_while_nobody_follows(storage, tail, writer):
    """The tail holds lines for followers alone, and lets go of them with the last one."""
    await writer.write(line("before"))
    follower = await follow(tail, storage)
    await writer.write(line("after"))
    assert tail.last == 2
    assert tail.after(1)[0].line.event.message == "after"
    follower.close()
    follower.close()
    assert (tail.followers, tail.after(1)) == (0, None)


async def test_a_follower_is_woken_by_a_commit(storage, tail, writer):
    """It waits without asking again and again, and goes on as soon as a line is stored."""
    follower = await follow(tail, storage)
    waiting = asyncio.create_task(follower.next(None))
    await asyncio.sleep(0)
    assert not waiting.done()
    await writer.write(line("hello"))
    step = await asyncio.wait_for(waiting, 5)
    assert [live.line.event.message for live in step.lines] == ["hello"]
    follower.close()


async def test_a_line_whose_sender_left_wakes_followers(storage, tail):
    """A request that is cancelled while its batch is being stored is stored, and told."""
    release = asyncio.Event()

    class Slow(MemoryStorage):
        async def append(self, batch, *, observed_ns):
            await release.wait()
            return await super().append(batch, observed_ns=observed_ns)

    slow = Slow()
    ingest = Ingest(slow, tail)
    follower = await follow(tail, slow)
    request = asyncio.create_task(ingest.take_batch(batch(line("kept"))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    release.set()
    step = await asyncio.wait_for(follower.next(None), 5)
    assert [live.line.event.message for live in step.lines] == ["kept"]
    await ingest.close()
    follower.close()


async def test_waiting_ends_when_the_tail_is_closed(storage, tail):
    """Followers that wait, and those that come later, are told that it is over."""
    follower = await follow(tail, storage)
    waiting = asyncio.create_task(follower.next(None))
    await asyncio.sleep(0)
    tail.close()
    assert await asyncio.wait_for(waiting, 5) is None
    assert await follower.next(None) is None
    follower.close()


async def test_a_cancelled_wait_leaves_nothing_behind(storage, tail, writer):
    """A follower whose wait was cancelled goes on where it was."""
    follower = await follow(tail, storage)
    for _ in range(3):
        waiting = asyncio.create_task(follower.next(None))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not tail._waiting
    await writer.write(line("hello"))
    assert await drain(follower) == ([(1, "hello")], False)
    follower.close()


async def test_the_tail_is_bounded_by_lines_and_by_bytes(storage):
    """Old lines go when there are too many, and when they are too long; a huge one is not kept at all."""
    tail = Tail(max_lines=100, max_bytes=100_000)
    writer = Writer(storage, tail)
    follower = await follow(tail, storage)
    await writer.write(*(line(str(n)) for n in range(150)))
    assert len(tail._lines) == 75
    await writer.write(*(line("x" * 10_000) for _ in range(20)))
    assert tail._bytes <= 100_000
    assert tail._bytes == sum(live.size_bytes for live in tail._lines)
    await writer.write(line("x" * 1_000_000))
    assert (tail._lines, tail._bytes) == ([], 0)
    found, fell_behind = await drain(follower)
    assert (len(found), fell_behind) == (171, True)
    follower.close()


async def test_a_step_is_bounded(storage, tail, writer):
    """However far behind, a follower takes a bounded number of lines and bytes at a time."""
    follower = await follow(tail, storage)
    await writer.write(*(line() for _ in range(MAX_STEP_LINES + 1)))
    assert len((await follower.next(0)).lines) == MAX_STEP_LINES
    await writer.write(*(line("x" * (MAX_STEP_BYTES // 2)) for _ in range(5)))
    assert len((await follower.next(0)).lines) <= 3
    assert len((await drain(follower))[0]) >= 3
    follower.close()


async def test_a_line_is_encoded_once(storage, tail, writer):
    """All followers are given the same line, and its forms are made for the first one that wants them."""
    one, other = await follow(tail, storage), await follow(tail, storage)
    await writer.write(line())
    ((mine,), (theirs,)) = [(await follower.next(0)).lines for follower in (one, other)]
    assert mine is theirs
    assert mine.form("text", lambda *_: b"made") is theirs.form("text", lambda *_: b"made again")
    assert theirs.form("other", lambda arrival, stored: b"%d %d" % (arrival, stored.seq)) == b"1 0"
    one.close()
    other.close()


# --- followers ----------------------------------------------------------------------------------------


async def test_a_follower_begins_now_or_where_it_is_told(storage, tail, writer):
    """Without a place it gets what comes; with one, what is stored behind it first."""
    await writer.write(*(line(str(n)) for n in range(3)))
    now, later = await follow(tail, storage), await follow(tail, storage, after=1)
    await writer.write(line("3"))
    assert await drain(now) == ([(4, "3")], False)
    assert await drain(later) == ([(2, "1"), (3, "2"), (4, "3")], False)
    now.close()
    later.close()


async def test_a_follower_that_fell_behind_says_so_once(storage):
    """It is told before it catches up from the storage, and not for the back-fill that it asked for."""
    tail = Tail(max_lines=4)
    writer = Writer(storage, tail)
    await writer.write(*(line(str(n)) for n in range(3)))
    follower = await follow(tail, storage, after=0)
    assert await drain(follower) == ([(1, "0"), (2, "1"), (3, "2")], False)
    for n in range(3, 30):
        await writer.write(line(str(n)))
    first = await follower.next(0)
    assert (first.fell_behind, first.lines, first.cursor) == (True, [], 3)
    found, again = await drain(follower)
    assert ([arrival for arrival, _ in found], again) == (list(range(4, 31)), False)
    follower.close()


async def test_runs_that_appear_later_are_followed(storage, tail, writer):
    """A task, a sub-flow and what is opened in them belong to a run from their first line on."""
    follower = await follow(tail, storage, within="root")
    await writer.write(
        line("stranger", flow_run_id="stranger"),
        line("root", flow_run_id="root"),
        line("task", flow_run_id="root", task_run_id="task"),
        line("nested", flow_run_id="root", task_run_id="nested", parent_task_run_id="task"),
        line("sub", flow_run_id="sub", parent_task_run_id="task", parent_flow_run_id="root"),
        line("deep", flow_run_id="sub", task_run_id="deep"),
        line("stray", task_run_id="stray", parent_task_run_id="deep"),
        line("own flow of another", flow_run_id="stranger", parent_flow_run_id="other"),
        line("nothing"),
    )
    found, _ = await drain(follower)
    assert [message for _, message in found] == ["root", "task", "nested", "sub", "deep", "stray"]
    follower.close()


async def test_a_task_is_followed_without_its_flow(storage, tail, writer):
    """Lines of the flow in which a task runs are not the task's."""
    follower = await follow(tail, storage, within=TASK)
    await writer.write(
        line("flow", flow_run_id=FLOW),
        line("task", flow_run_id=FLOW, task_run_id=TASK),
        line("other task", flow_run_id=FLOW, task_run_id="other"),
        line("in task", flow_run_id="sub", parent_flow_run_id=FLOW, parent_task_run_id=TASK),
    )
    found, _ = await drain(follower)
    assert [message for _, message in found] == ["task", "in task"]
    follower.close()


async def test_the_end_of_a_run_is_noticed_whatever_the_filter(storage, tail, writer):
    """The line that ends the run need not pass; ends of other runs, and of its tasks, are not its end."""
    follower = await follow(tail, storage, within=FLOW, where=LevelBetween(50))
    assert (await follower.next(0)).run_may_have_ended  # up to date: it may have been before
    await writer.write(finished(OTHER_FLOW), finished(TASK, kind="task", flow_run_id=FLOW))
    assert await follower.next(0) == Step([], 2, timed_out=True)
    await writer.write(finished(FLOW))
    assert await follower.next(None) == Step([], 3, run_may_have_ended=True)
    follower.close()


async def test_followers_that_leave_are_forgotten(storage, tail, writer):
    """Nothing refers to a follower once it is closed."""
    for _ in range(10):
        follower = await follow(tail, storage)
        await writer.write(line())
        await drain(follower)
        follower.close()
    del follower
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Follower]
    assert (tail.followers, tail._lines) == (0, [])
