"""Numbering, bounds and batches: pure, so tested by calling methods in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.delivery.batching import EVENT_OVERHEAD_BYTES, MAX_BATCH_EVENTS, Batch, Batcher
from runlog.records import DropMarker


def make(max_batch_bytes=1000, batch_interval=2.0, max_queue_bytes=100_000, **kwargs):
    return Batcher(
        max_batch_bytes=max_batch_bytes,
        batch_interval=batch_interval,
        max_queue_bytes=max_queue_bytes,
        **kwargs,
    )


def settle(batcher, batch):
    batcher.settle(len(batch.events), batch.held_bytes)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"max_batch_bytes": 0}, "max_batch_bytes must be >= 1 byte, got 0"),
        ({"max_queue_bytes": 0}, "max_queue_bytes must be >= 1 byte, got 0"),
        ({"batch_interval": -1}, "batch_interval must be >= 0 s, got -1"),
    ],
)
def test_limits_out_of_range(kwargs, text):
    """A limit that makes no sense is refused with its name, its range and what came."""
    with pytest.raises(ValueError, match=text):
        make(**kwargs)


def test_order_and_seqs():
    """Events come out in the order in which they went in, numbered from the first seq."""
    batcher = make(first_seq=7)
    for event in (b"a", b"b", b"c"):
        batcher.add(event, now=0.0)
    assert batcher.take() == Batch(7, (b"a", b"b", b"c"))
    assert batcher.next_seq == batcher.first_seq == 10


def test_take_from_an_empty_queue():
    """Nothing waits: there is no batch and nothing is due."""
    batcher = make()
    assert batcher.take() is None
    assert batcher.next_due() is None


def test_due_by_age():
    """The first event starts the clock; later ones do not move it."""
    batcher = make(batch_interval=2.0)
    assert batcher.add(b"a", now=10.0) is True
    assert batcher.add(b"b", now=11.0) is False
    assert batcher.next_due() == 12.0


def test_due_by_size():
    """A queue that holds a whole batch is due at once, and says so when it becomes so."""
    batcher = make(max_batch_bytes=2 * (EVENT_OVERHEAD_BYTES + 10))
    assert batcher.add(b"x" * 10, now=0.0) is True
    assert batcher.add(b"x" * 10, now=0.0) is True
    assert batcher.add(b"x" * 10, now=0.0) is False
    assert batcher.next_due() == float("-inf")


def test_a_batch_is_limited_by_bytes():
    """A batch holds at most the bytes allowed; the rest waits on, and is due as soon."""
    batcher = make(max_batch_bytes=25)
    for _ in range(3):
        batcher.add(b"x" * 10, now=0.0)
    assert batcher.take() == Batch(0, (b"x" * 10,) * 2)
    assert batcher.next_due() is not None
    assert batcher.take() == Batch(2, (b"x" * 10,))
    assert batcher.next_due() is None


def test_an_event_larger_than_a_batch_goes_alone():
    """Limits shape batches; they never keep an event back."""
    batcher = make(max_batch_bytes=5)
    batcher.add(b"x" * 50, now=0.0)
    batcher.add(b"y", now=0.0)
    assert batcher.take() == Batch(0, (b"x" * 50,))


def test_a_batch_is_limited_by_count():
    """Small events do not make one huge transaction on the server."""
    batcher = make(max_batch_bytes=10**9, max_queue_bytes=10**9)
    for _ in range(MAX_BATCH_EVENTS + 1):
        batcher.add(b"", now=0.0)
    assert len(batcher.take().events) == MAX_BATCH_EVENTS
    assert len(batcher.take().events) == 1


def test_dropped_events_keep_their_seqs():
    """What is dropped leaves a marker in its place; neighbours of one reason share one."""
    batcher = make()
    batcher.add(b"a", now=0.0)
    assert batcher.add_dropped("queue_full", now=0.0) is False
    batcher.add_dropped("queue_full", now=0.0)
    batcher.add_dropped("closed", now=0.0)
    batcher.add(b"b", now=0.0)
    batch = batcher.take()
    assert batch == Batch(0, (b"a", b"b"), (DropMarker(1, 2, "queue_full"), DropMarker(3, 1, "closed")))
    assert (batch.count, batch.last_seq) == (5, 4)


def test_a_drop_alone_is_told_too():
    """A marker is due like an event."""
    batcher = make(batch_interval=1.0)
    assert batcher.add_dropped("queue_full", now=5.0) is True
    assert batcher.next_due() == 6.0
    assert batcher.take() == Batch(0, (), (DropMarker(0, 1, "queue_full"),))


def test_drop_oldest_makes_room():
    """The oldest waiting events give way, and their place says so."""
    size = 10 + EVENT_OVERHEAD_BYTES
    batcher = make(max_queue_bytes=3 * size)
    for name in (b"a", b"b", b"c"):
        batcher.add(name * 10, now=0.0)
    assert not batcher.has_room(10)
    assert batcher.drop_oldest(10, "queue_full") == 1
    batcher.add(b"d" * 10, now=0.0)
    assert batcher.drop_oldest(10, "queue_full") == 1
    batcher.add(b"e" * 10, now=0.0)
    assert batcher.held == 3
    assert batcher.take() == Batch(0, (b"c" * 10, b"d" * 10, b"e" * 10), (DropMarker(0, 2, "queue_full"),))


def test_drop_oldest_keeps_markers_of_other_reasons():
    """Markers that stand between dropped events stay in their places."""
    batcher = make(max_queue_bytes=2 * (10 + EVENT_OVERHEAD_BYTES))
    batcher.add(b"a" * 10, now=0.0)
    batcher.add_dropped("rejected", now=0.0)
    batcher.add(b"b" * 10, now=0.0)
    assert batcher.drop_oldest(100, "queue_full") == 2
    assert batcher.take().dropped == (
        DropMarker(0, 1, "queue_full"),
        DropMarker(1, 1, "rejected"),
        DropMarker(2, 1, "queue_full"),
    )


def test_events_in_flight_are_held_until_settled():
    """A batch that was taken counts against the bound until it is settled, and is not dropped."""
    batcher = make(max_queue_bytes=2 * (10 + EVENT_OVERHEAD_BYTES))
    batcher.add(b"a" * 10, now=0.0)
    batcher.add(b"b" * 10, now=0.0)
    batch = batcher.take()
    assert not batcher.has_room(10)
    assert batcher.drop_oldest(10, "queue_full") == 0
    assert (batcher.held, batcher.held_bytes) == (2, batch.held_bytes)
    settle(batcher, batch)
    assert (batcher.held, batcher.held_bytes) == (0, 0)
    assert "0 events" in repr(batcher)


def test_an_empty_queue_takes_an_event_of_any_size():
    """One event above the bound is better kept than lost: it is the only one."""
    assert make(max_queue_bytes=1).has_room(10**6)


def test_split_keeps_every_seq():
    """The halves of a batch join at the same seq, markers in their places."""
    batch = Batch(10, (b"a", b"b", b"c"), (DropMarker(11, 2, "x"), DropMarker(15, 1, "y")))
    head, tail = batch.split()
    assert head == Batch(10, (b"a",), (DropMarker(11, 2, "x"),))
    assert tail == Batch(13, (b"b", b"c"), (DropMarker(15, 1, "y"),))
    assert (head.last_seq + 1, tail.last_seq) == (tail.first_seq, batch.last_seq)


def test_one_event_cannot_be_split():
    """There is nothing to halve."""
    with pytest.raises(ValueError, match="a batch of 1 events cannot be split"):
        Batch(0, (b"a",)).split()


def test_without_events():
    """A batch that is given up keeps its range, as markers."""
    batch = Batch(3, (b"a", b"b"), (DropMarker(4, 2, "queue_full"),))
    assert batch.without_events("rejected") == Batch(
        3, (), (DropMarker(3, 1, "rejected"), DropMarker(4, 2, "queue_full"), DropMarker(6, 1, "rejected"))
    )
    empty = Batch(0, (), (DropMarker(0, 1, "x"),))
    assert empty.without_events("rejected") is empty


def test_starting_at():
    """A marker in front bridges the gap to the seq that the server waits for."""
    assert Batch(5, (b"a",)).starting_at(2, "acknowledged_elsewhere") == Batch(
        2, (b"a",), (DropMarker(2, 3, "acknowledged_elsewhere"),)
    )


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 60)),
        st.tuples(st.just("drop_new"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("drop_oldest"), st.integers(0, 200)),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("settle"), st.none()),
        st.tuples(st.just("split"), st.none()),
    ),
    max_size=60,
)


@given(actions)
def test_against_a_model(steps):
    """Whatever is done in whatever order, each seq comes out once, in order, as its event or as dropped."""
    batcher = make(max_batch_bytes=100, max_queue_bytes=600)
    model: list[bytes | None] = []  # by seq: the event, or None for dropped
    taken: list[Batch] = []
    unsettled: list[Batch] = []
    for step, argument in steps:
        if step == "add":
            event = f"{len(model)}:".encode() + b"x" * argument
            batcher.add(event, now=0.0)
            model.append(event)
        elif step == "drop_new":
            batcher.add_dropped(argument, now=0.0)
            model.append(None)
        elif step == "drop_oldest":
            dropped = batcher.drop_oldest(argument, "queue_full")
            first_waiting = batcher.first_seq
            waiting = [seq for seq in range(first_waiting, len(model)) if model[seq] is not None]
            for seq in waiting[:dropped]:
                model[seq] = None
            assert batcher.has_room(argument) or waiting[dropped:] == []
        elif step == "take":
            batch = batcher.take()
            assert (batch is None) == (batcher.first_seq == (taken[-1].last_seq + 1 if taken else 0)) or batch
            if batch is not None:
                taken.append(batch)
                unsettled.append(batch)
        elif step == "settle" and unsettled:
            settle(batcher, unsettled.pop())
        elif step == "split" and taken and len(taken[-1].events) > 1:
            taken[-1:] = taken[-1].split()
        in_flight = sum(len(batch.events) for batch in unsettled)
        waiting = sum(event is not None for event in model[batcher.first_seq :])
        assert batcher.held == in_flight + waiting
    while (batch := batcher.take()) is not None:
        taken.append(batch)
    assert read_back(taken) == model


def read_back(batches):
    """The events by seq, None where one was dropped, after checking that the ranges join."""
    found: list[bytes | None] = []
    for batch in batches:
        assert batch.first_seq == len(found)
        events = iter(batch.events)
        covered = {m.seq + i for m in batch.dropped for i in range(m.count)}
        found += [
            None if seq in covered else next(events) for seq in range(batch.first_seq, batch.last_seq + 1)
        ]
        assert next(events, None) is None
    return found
