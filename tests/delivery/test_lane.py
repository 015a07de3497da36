"""One producer's way to the server: which batch goes next, and what an answer makes of it."""

from __future__ import annotations

import msgspec
import pytest

from runlog.delivery.batching import Batch, Batcher
from runlog.delivery.lane import LEAST_CUT_BYTES, Lane
from runlog.delivery.producer import Producer
from runlog.delivery.retry import Answer, Verdict
from runlog.records import DropMarker, LogEvent, encode_event


@pytest.fixture
def source():
    return Batcher(max_batch_bytes=10**6, batch_interval=1, max_queue_bytes=10**7)


@pytest.fixture
def lane(source):
    return Lane(Producer("0" * 20), source)


def event(message="m"):
    return encode_event(LogEvent(timestamp_ns=0, level=20, name="n", message=message), 10**6)


def test_a_batch_goes_until_it_is_acknowledged(lane, source):
    """The same batch is next until the server has it; the next follows then."""
    source.add(event("a"), now=0.0)
    first = lane.next_batch()
    source.add(event("b"), now=0.0)
    assert lane.is_sending
    assert lane.answered(Answer(503)).verdict is Verdict.RETRY
    assert lane.next_batch() is first
    outcome = lane.answered(Answer(200, acked=0))
    assert (outcome.verdict, outcome.acked, outcome.events) == (Verdict.ACKED, 0, 1)
    assert not lane.is_sending
    assert lane.next_batch() == Batch(1, (event("b"),))


def test_nothing_waits(lane):
    """Without events there is no batch."""
    assert lane.next_batch() is None


def test_halves_go_in_order(lane, source):
    """A refused batch goes in halves, the first half first, until the bad event is alone and refused twice."""
    for name in "abcd":
        source.add(event(name), now=0.0)
    sent = []
    rejected = []
    while (batch := lane.next_batch()) is not None:
        sent.append([msgspec.json.decode(one)["message"] for one in batch.events])
        bad = event("c") in batch.events
        outcome = lane.answered(Answer(422) if bad else Answer(200, acked=batch.last_seq))
        rejected += [outcome.rejected] if outcome.rejected else []
    assert sent == [["a", "b", "c", "d"], ["a", "b"], ["c", "d"], ["c"], ["c"], [], ["d"]]
    assert rejected == [(2, event("c"))]
    assert (source.held, source.held_bytes) == (0, 0)


def test_the_seq_of_a_rejected_event(lane, source):
    """An event that follows a marker is named by its own seq."""
    source.add_dropped("queue_full", now=0.0)
    source.add(event(), now=0.0)
    lane.next_batch()
    lane.answered(Answer(400))
    assert lane.answered(Answer(400)).rejected == (1, event())
    assert lane.next_batch() == Batch(0, (), (DropMarker(0, 1, "queue_full"), DropMarker(1, 1, "rejected")))


def test_a_refusal_in_passing_costs_nothing(lane, source):
    """A lone event that is refused once and then taken is not rejected; the count starts anew with the next."""
    for name in "ab":
        source.add(event(name), now=0.0)
        lane.next_batch()
        assert lane.answered(Answer(422)).verdict is Verdict.RETRY
        assert lane.answered(Answer(200, acked=99)).verdict is Verdict.ACKED


def test_a_lone_giant_is_cut(lane, source):
    """A lone event that is too large for the server is cut until it fits, marked, and never dropped."""
    source.add(event("x" * 100_000), now=0.0)
    sizes = []
    for _ in range(20):
        (one,) = lane.next_batch().events
        sizes.append(len(one))
        if len(one) <= 20_000:
            lane.answered(Answer(200, acked=0))
            break
        lane.answered(Answer(413))
    assert len(one) <= 20_000
    cut = msgspec.json.decode(one, type=LogEvent)
    assert cut.truncated_bytes > 80_000
    assert (source.held, source.held_bytes) == (0, 0)


def test_a_small_event_is_not_too_large(lane, source):
    """A server that finds even a small event too large is not believed: the event is kept."""
    source.add(event(), now=0.0)
    assert len(event()) < LEAST_CUT_BYTES
    for _ in range(5):
        lane.next_batch()
        assert lane.answered(Answer(413)).verdict is Verdict.RETRY


def test_a_marker_alone_is_never_given_up(lane, source):
    """Without events there is nothing to blame."""
    source.add_dropped("queue_full", now=0.0)
    lane.next_batch()
    for _ in range(5):
        assert lane.answered(Answer(422)).verdict is Verdict.RETRY


def test_resume(lane, source):
    """A server that forgot what came before gets a marker for it; one that talks nonsense is tried again."""
    source.add(event("a"), now=0.0)
    lane.next_batch()
    lane.answered(Answer(200, acked=0))
    source.add(event("b"), now=0.0)
    lane.next_batch()
    for expected in (1, 5, -1):
        assert lane.answered(Answer(409, expected=expected)).verdict is Verdict.RETRY
    assert lane.answered(Answer(409, expected=0)).verdict is Verdict.RESUME
    assert lane.next_batch() == Batch(0, (event("b"),), (DropMarker(0, 1, "acknowledged_elsewhere"),))
