"""Tests of the judgement on a run."""

from __future__ import annotations

import pytest
from server_lines import FLOW, OTHER_PRODUCER, PRODUCER, TASK, finished, line, started

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
        **{
            "producer": PRODUCER,
            "first_seq": 0,
            "last_seq": 9,
            "stored": 10,
            "truncated": 0,
            "settled": True,
        }
        | changes
    )


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"goodbye": True, "settled": False},
        {"expected": 10, "arrived": 10, "settled": False},
        {"expected": 10, "arrived": 10, "outside": (DropMarker(20, 5, "queue_full"),)},
        {"outside": (DropMarker(20, 5, "acknowledged_elsewhere"),)},
        {
            "expected": 10,
            "arrived": 10,
            "last_seq": 10,
            "drops": (DropMarker(4, 1, "rejected"), DropMarker(8, 3, "queue_full")),
        },
        {"truncated": 3},
        {"stored": 12, "last_seq": 20},
    ],
)
def test_a_run_is_complete_if_nothing_speaks_against_it(facts):
    """Neither cut lines nor seqs of other runs in between, nor what cannot be its own, make it incomplete."""
    receipt = receipt_of(ENDED, [share(**facts)])
    assert (receipt.complete, receipt.verdict, receipt.reasons) == (True, "complete", [])
    assert receipt.dropped_at_most == 0


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
            f"producer {PRODUCER} logged 1,200 lines of this run, 1,100 are stored",
        ),
        ({"expected": 9, "arrived": 10}, f"producer {PRODUCER} logged 9 lines of this run, 10 are stored"),
    ],
)
def test_each_loss_is_a_reason(facts, reason):
    """What was dropped, is elsewhere, is missing or does not add up is told in a sentence of its own."""
    receipt = receipt_of(ENDED, [share(**facts), share(producer=OTHER_PRODUCER)])
    assert (receipt.complete, receipt.verdict, receipt.reasons) == (False, "not complete", [reason])


@pytest.mark.parametrize(
    ("facts", "reasons", "at_most"),
    [
        (
            {"settled": False},
            [
                f"producer {PRODUCER} said neither goodbye nor how many lines there were: more may be on the way"
            ],
            0,
        ),
        (
            {"outside": (DropMarker(10, 2, "closed"), DropMarker(20, 1, "closed"))},
            [f"3 lines dropped by producer {PRODUCER}, possibly of this run: closed"],
            3,
        ),
        (
            {"last_seq": 40, "drops": (DropMarker(4, 3, "queue_full"),)},
            [f"at most 3 lines of this run dropped by producer {PRODUCER}: queue_full"],
            3,
        ),
    ],
)
def test_what_may_be_lost_is_a_doubt(facts, reasons, at_most):
    """Drops that may be another run's, and a producer that may send more, leave a run unproven."""
    receipt = receipt_of(ENDED, [share(**facts)])
    assert (receipt.complete, receipt.verdict, receipt.reasons) == (False, "not proven", reasons)
    assert receipt.dropped_at_most == receipt.producers[0].dropped_at_most == at_most


def test_a_count_bounds_what_was_refused():
    """Of lines that were taken and then refused, no more are the run's than its count is short of."""
    receipt = receipt_of(
        ENDED, [share(last_seq=40, expected=11, arrived=10, drops=(DropMarker(4, 5, "rejected"),))]
    )
    assert (receipt.verdict, receipt.dropped, receipt.dropped_at_most) == ("not complete", 5, 1)


def test_without_the_run_s_beginning_a_count_excludes_nothing():
    """What was dropped before the first line may have begun the run."""
    receipt = receipt_of(
        run(line(flow_run_id=FLOW), finished()),
        [share(expected=10, arrived=10, outside=(DropMarker(0, 4, "closed"),))],
    )
    assert receipt.verdict == "not complete"
    assert receipt.producers[0].possibly_dropped == 4
    assert [part.first_seq for part in receipt.producers[0].possibly_dropped_ranges] == [0]


@pytest.mark.parametrize(
    ("events", "facts", "reasons"),
    [
        ([started("c", flow_run_name="child"), finished("c")], {"expected": 10, "arrived": 10}, []),
        ([line(flow_run_id="c")], {}, []),
        ([started("c")], {}, ["flow run c, which was opened in it, has not ended"]),
        (
            [finished("c", flow_run_name="child")],
            {},
            ["the line that began flow run child (c), which was opened in it, is not stored"],
        ),
        (
            [started("c"), finished("c")],
            {"expected": 12, "arrived": 10},
            [f"producer {PRODUCER} logged 12 lines of flow run c, 10 are stored"],
        ),
    ],
)
def test_a_run_needs_those_that_were_opened_in_it(events, facts, reasons):
    """One that has not ended, has no beginning, or lacks lines makes its root incomplete, and is named."""
    below = summarise(events)[0]["flow", "c"]
    receipt = receipt_of(ENDED, [share()], [(below, [share(**facts)])])
    assert (receipt.complete, receipt.reasons) == (not reasons, reasons)


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


async def test_lines_that_a_child_process_lost_are_told(client, send):
    """A sub-run's own count is looked at where its process does not count for the root."""
    inside = {"parent_flow_run_id": FLOW}
    await send(started(), finished())
    end = finished("child", **inside)
    end.attributes["runlog.run.lines"] = 5
    await send(started("child", **inside), end, producer=OTHER_PRODUCER)
    await send(
        started(TASK, kind="task", parent_task_run_id=None, flow_run_id=FLOW, task_run_name="load"),
        producer="aaaaaaaaaaaaaaaaaaaa",
        closing=True,
    )
    receipt = (await client.get(f"/runlog/v1/runs/{FLOW}/receipt")).json()
    assert (receipt["complete"], receipt["verdict"]) == (False, "not complete")
    assert sorted(receipt["reasons"]) == [
        f"producer {OTHER_PRODUCER} logged 5 lines of flow run child, 2 are stored",
        f"task run load ({TASK}), which was opened in it, has not ended",
    ]


async def test_a_count_that_is_short_is_told(client, send):
    """A run whose end claims more lines than came is not complete; with as many, it is."""
    end = finished()
    end.attributes["runlog.run.lines"] = 3
    await send(started(), end)
    receipt = (await client.get(f"/runlog/v1/runs/{FLOW}/receipt")).json()
    assert receipt["complete"] is False
    assert receipt["reasons"] == [f"producer {PRODUCER} logged 3 lines of this run, 2 are stored"]
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
