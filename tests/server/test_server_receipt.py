"""Tests of the judgement on a run."""

from __future__ import annotations

import pytest
from server_lines import FLOW, OTHER_PRODUCER, PRODUCER, finished, line, started

from runlog.records import DropMarker
from runlog.server.receipt import receipt_of
from runlog.server.run_summary import summarise
from runlog.server.storage.shares import ProducerShare, SeqRange, uncovered

pytestmark = pytest.mark.anyio


def run(*events):
    return summarise(events)[0]["flow", FLOW]


ENDED = run(started(), finished())


def share(**changes):
    return ProducerShare(
        **{"producer": PRODUCER, "first_seq": 0, "last_seq": 9, "stored": 10, "truncated": 0} | changes
    )


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"goodbye": True},
        {"expected": 10, "arrived": 10},
        {"truncated": 3},
        {"stored": 12, "last_seq": 20},
    ],
)
def test_a_run_is_complete_if_nothing_speaks_against_it(facts):
    """Neither cut lines nor seqs of other runs in between make a run incomplete."""
    receipt = receipt_of(ENDED, [share(**facts)])
    assert (receipt.complete, receipt.reasons) == (True, [])


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            {"drops": (DropMarker(1, 2, "closed"), DropMarker(5, 1, "closed"))},
            f"3 lines dropped by producer {PRODUCER}: closed",
        ),
        (
            {"drops": (DropMarker(1, 1, "acknowledged_elsewhere"),)},
            f"1 line of producer {PRODUCER} went to another server",
        ),
        ({"missing": (SeqRange(3, 5),)}, f"3 lines of producer {PRODUCER} missing: seq 3 to 5"),
        (
            {"expected": 1200, "arrived": 1100},
            f"producer {PRODUCER} sent 1,200 lines of this run, 1,100 are stored",
        ),
        ({"expected": 9, "arrived": 10}, f"producer {PRODUCER} sent 9 lines of this run, 10 are stored"),
    ],
)
def test_each_loss_is_a_reason(facts, reason):
    """What was dropped, is elsewhere, is missing or does not add up is told in a sentence of its own."""
    receipt = receipt_of(ENDED, [share(**facts), share(producer=OTHER_PRODUCER)])
    assert (receipt.complete, receipt.reasons) == (False, [reason])


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        (run(started()), "the run has not ended"),
        (run(line(flow_run_id=FLOW)), "nothing tells that the run has ended"),
    ],
)
def test_a_run_that_has_not_ended_is_not_complete(summary, reason):
    """Lines may still come, so that nothing can be said for certain."""
    receipt = receipt_of(summary, [share()])
    assert (receipt.complete, receipt.reasons) == (False, [reason])


def test_a_run_without_its_beginning_is_not_complete():
    """Where the first line is not there, neither may be those that followed it."""
    receipt = receipt_of(run(line(flow_run_id=FLOW), finished()), [share()])
    assert (receipt.complete, receipt.reasons) == (False, ["the line that began the run is not stored"])


def test_counts_add_up_over_producers():
    """Totals are those of all producers; what another server has is not counted as dropped."""
    receipt = receipt_of(
        ENDED,
        [
            share(
                truncated=1,
                drops=(DropMarker(1, 2, "queue_full"), DropMarker(3, 4, "acknowledged_elsewhere")),
                missing=(SeqRange(8, 8),),
                expected=3,
                arrived=2,
            ),
            share(
                producer=OTHER_PRODUCER, drops=(DropMarker(1, 3, "closed"), DropMarker(5, 1, "queue_full"))
            ),
        ],
    )
    assert (receipt.stored, receipt.dropped, receipt.truncated, receipt.missing) == (20, 6, 1, 1)
    assert receipt.dropped_by_reason == {"closed": 3, "queue_full": 3}
    first, second = receipt.producers
    assert (first.dropped, first.missing, first.expected, first.arrived) == (2, 1, 3, 2)
    assert [part.reason for part in first.dropped_ranges] == ["queue_full", "acknowledged_elsewhere"]
    assert (second.dropped, second.expected, second.arrived) == (4, None, None)


async def test_a_count_that_is_short_is_told(client, send):
    """A run whose end claims more lines than came is not complete; with as many, it is."""
    end = finished()
    end.attributes["runlog.run.lines"] = 3
    await send(started(), end)
    receipt = (await client.get(f"/runlog/v1/runs/{FLOW}/receipt")).json()
    assert receipt["complete"] is False
    assert receipt["reasons"] == [f"producer {PRODUCER} sent 3 lines of this run, 2 are stored"]
    end.attributes["runlog.run.lines"] = 2
    await send(started("other"), finished("other"), closing=True, producer=OTHER_PRODUCER)
    receipt = (await client.get("/runlog/v1/runs/other/receipt")).json()
    assert (receipt["complete"], receipt["producers"][0]["goodbye"]) == (True, True)


@pytest.mark.parametrize(
    ("covered", "left"),
    [
        ([], [(2, 9)]),
        ([(0, 20)], []),
        ([(2, 9)], []),
        ([(5, 6), (2, 3)], [(4, 4), (7, 9)]),
        ([(3, 8), (4, 5)], [(2, 2), (9, 9)]),
        ([(12, 15)], [(2, 9)]),
        ([(0, 4), (8, 12)], [(5, 7)]),
    ],
)
def test_what_no_range_covers_is_left(covered, left):
    """Ranges may come in any order, overlap, and reach over the ends."""
    assert list(uncovered(SeqRange(2, 9), [SeqRange(*part) for part in covered])) == left
