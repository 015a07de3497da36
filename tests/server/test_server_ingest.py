from __future__ import annotations

import asyncio

import pytest
from server_lines import line

from runlog.exceptions import StorageFullError
from runlog.server import ingest as ingest_module
from runlog.server.ingest import Ingest
from runlog.server.query import LogQuery
from runlog.server.storage.memory import MemoryStorage

pytestmark = pytest.mark.anyio


class GatedStorage(MemoryStorage):
    """Appends when it is told to, and notes how many lines each batch had."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.sizes = []
        self.errors = []

    async def append(self, batch, *, observed_ns):
        self.sizes.append(len(batch.events))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return await super().append(batch, observed_ns=observed_ns)


@pytest.fixture
def storage():
    return GatedStorage()


@pytest.fixture
def ingest(storage):
    return Ingest(storage, clock=lambda: 42)


async def stored(storage):
    return [found.event.message for found in await storage.read_lines(LogQuery(limit=1000))]


async def begin(ingest, *texts):
    task = asyncio.ensure_future(ingest.take_events([line(text, at=0) for text in texts]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_requests_that_wait_are_stored_together(ingest, storage):
    """Lines that come while others are being stored share the next batch, in order, and are numbered densely."""
    tasks = [await begin(ingest, str(number), "x") for number in range(5)]
    assert storage.sizes == [2]
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.sizes == [2, 8]
    assert await stored(storage) == ["0", "x", "1", "x", "2", "x", "3", "x", "4", "x"]
    lines = await storage.read_lines(LogQuery())
    assert [found.seq for found in lines] == list(range(10))
    assert {found.observed_ns for found in lines} == {42}


async def test_a_batch_of_ones_own_is_bounded(ingest, storage, monkeypatch):
    """More waiting lines than a batch may have take several."""
    monkeypatch.setattr(ingest_module, "MAX_OWN_BATCH", 3)
    tasks = [await begin(ingest, "a", "b") for _ in range(4)]
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.sizes == [2, 4, 2]


async def test_no_lines_need_no_storage(ingest, storage):
    """An empty array is done at once."""
    await ingest.take_events([])
    assert storage.sizes == []


async def test_a_failure_reaches_those_whose_lines_it_concerns(ingest, storage):
    """Lines that could not be stored are not; later ones are, under a number that none had before."""
    storage.errors.append(StorageFullError("full"))
    failing = [await begin(ingest, "a")]
    later = await begin(ingest, "b")
    storage.gate.set()
    with pytest.raises(StorageFullError):
        await failing[0]
    await later
    assert await stored(storage) == ["b"]
    (producer,) = {found.producer for found in await storage.read_lines(LogQuery())}
    await ingest.take_events([line("c")])
    assert {found.producer for found in await storage.read_lines(LogQuery())} == {producer}


async def test_a_number_is_never_given_twice(storage, ingest):
    """After a failure whose outcome is unknown the lines that follow are another producer's."""

    async def store_and_fail(batch, *, observed_ns):
        await MemoryStorage.append(storage, batch, observed_ns=observed_ns)
        raise StorageFullError("the answer was lost")

    storage.gate.set()
    original, storage.append = storage.append, store_and_fail
    with pytest.raises(StorageFullError):
        await ingest.take_events([line("a")])
    storage.append = original
    await ingest.take_events([line("b", at=1)])
    assert await stored(storage) == ["a", "b"]


async def test_a_request_that_left_does_not_take_the_others_along(ingest, storage):
    """A cancelled request's lines are stored with those it shares a batch with, failing or not."""
    first = await begin(ingest, "a")
    leaving, staying = await begin(ingest, "b"), await begin(ingest, "c")
    leaving.cancel()
    storage.gate.set()
    await asyncio.gather(first, staying)
    assert await stored(storage) == ["a", "b", "c"]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_close_waits_for_what_was_taken(ingest, storage):
    """Closing returns once all that was taken is stored."""
    await ingest.close()
    task = await begin(ingest, "a")
    closing = asyncio.ensure_future(ingest.close())
    await asyncio.sleep(0)
    assert not closing.done()
    storage.gate.set()
    await closing
    await task
    assert await stored(storage) == ["a"]
