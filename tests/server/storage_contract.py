"""What every storage must do: the tests of a storage subclass `StorageContract` and give it a ``storage``."""

from __future__ import annotations

import pytest
from server_lines import (
    FLOW,
    OTHER_FLOW,
    OTHER_PRODUCER,
    PRODUCER,
    START,
    TASK,
    batch,
    finished,
    line,
    started,
)

from runlog.records import DropMarker, ExceptionInfo
from runlog.server.query import AllOf, LevelBetween, LogQuery, RunIn
from runlog.server.storage.base import ProducerGapError, RunQuery, Statistics, run_position
from runlog.server.storage.shares import ProducerShare, SeqRange

OBSERVED = START + 5


class StorageContract:
    """
    Subclasses have a fixture ``storage``: empty, open, and closed afterwards.

    Their method ``lose`` takes lines, by their seqs, out of what is stored.
    """

    pytestmark = pytest.mark.anyio

    # --- append -----------------------------------------------------------------------------------

    async def test_a_line_comes_back_as_it_was(self, storage):
        """A line with every field set comes back with each of them unchanged."""
        event = line(
            "what\0ever \N{SNOWMAN}",
            level=35,
            name="a.b",
            flow_run_id=FLOW,
            flow_run_name="quick-owl",
            flow_name="etl",
            task_run_id=TASK,
            task_run_name="extract-1",
            task_name="extract",
            parent_flow_run_id=OTHER_FLOW,
            parent_task_run_id="p",
            attempt=2,
            event_name="something",
            attributes={"a": [1, {"b": None}], "huge": 2**70, "text": "ä\0"},
            exception=ExceptionInfo("ValueError", "no", "Traceback\n..."),
            trace_id="0" * 32,
            span_id="1" * 16,
            truncated_bytes=7,
        )
        await storage.append(batch(event, resource={"service.name": "x"}), observed_ns=OBSERVED)
        (found,) = await storage.read_lines(LogQuery())
        assert found.event == event
        assert (found.producer, found.seq, found.observed_ns) == (PRODUCER, 0, OBSERVED)

    async def test_a_batch_is_acknowledged_to_its_end(self, storage):
        """The answer names the batch's last seq, and the first that was new."""
        assert (await storage.append(batch(line(), line()), observed_ns=1))[:2] == (1, 0)
        assert (await storage.append(batch(line(), first_seq=2), observed_ns=1))[:2] == (2, 2)

    async def test_a_batch_that_was_stored_is_not_stored_again(self, storage):
        """A repeated batch is acknowledged up to the mark and adds nothing."""
        await storage.append(batch(line("a"), line("b")), observed_ns=1)
        assert (await storage.append(batch(line("a")), observed_ns=2))[:2] == (1, 2)
        assert (await storage.append(batch(line("a"), line("b")), observed_ns=2))[:2] == (1, 2)
        assert await messages(storage) == ["a", "b"]
        assert await storage.read_statistics() == Statistics(runs=0, lines=2)

    async def test_of_an_overlapping_batch_the_tail_is_stored(self, storage):
        """What lies below the mark is left out, what lies above is stored."""
        await storage.append(batch(line("a"), line("b", at=1)), observed_ns=1)
        overlapping = batch(line("b", at=1), line("c", at=2), first_seq=1)
        assert (await storage.append(overlapping, observed_ns=2))[:2] == (2, 2)
        assert await messages(storage) == ["a", "b", "c"]

    async def test_a_gap_is_refused(self, storage):
        """A batch above the mark is refused with the expected seq, and stores nothing."""
        await storage.append(batch(line()), observed_ns=1)
        with pytest.raises(ProducerGapError) as refusal:
            await storage.append(batch(line(), first_seq=5), observed_ns=1)
        assert (refusal.value.expected, refusal.value.got) == (1, 5)
        with pytest.raises(ProducerGapError, match="must go on with seq 0, got a batch that begins at 1"):
            await storage.append(batch(line(), producer=OTHER_PRODUCER, first_seq=1), observed_ns=1)
        assert len(await messages(storage)) == 1

    async def test_a_marker_fills_a_gap(self, storage):
        """Dropped lines move the mark as stored ones do, wherever in the batch they were."""
        dropped = [DropMarker(0, 2, "queue_full"), DropMarker(3, 1, "closed")]
        assert (await storage.append(batch(line(), line(), dropped=dropped), observed_ns=1))[:2] == (4, 0)
        assert [found.seq for found in await storage.read_lines(LogQuery())] == [2, 4]
        only = batch(first_seq=5, dropped=[DropMarker(5, 10, "queue_full")])
        assert (await storage.append(only, observed_ns=1))[:2] == (14, 5)

    async def test_an_empty_batch_tells_the_mark(self, storage):
        """A batch of nothing changes nothing and is answered with the mark."""
        assert (await storage.append(batch(), observed_ns=1))[:2] == (-1, 0)
        await storage.append(batch(line()), observed_ns=1)
        assert (await storage.append(batch(first_seq=1), observed_ns=1))[:2] == (0, 1)

    # --- lines ------------------------------------------------------------------------------------

    async def test_lines_are_ordered_by_time_producer_and_seq(self, storage):
        """Time decides; lines of the same time keep each producer's order; both directions mirror each other."""
        await storage.append(batch(line("c", at=1), line("a"), line("d", at=1)), observed_ns=1)
        await storage.append(batch(line("e", at=1), line("b"), producer=OTHER_PRODUCER), observed_ns=1)
        assert await messages(storage) == ["a", "b", "c", "d", "e"]
        assert await messages(storage, order="desc") == ["e", "d", "c", "b", "a"]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_pages_join_without_gap_or_overlap(self, storage, order):
        """Reading on from each page's last line gives every line once, in order."""
        events = [line(str(number), at=number // 3) for number in range(10)]
        await storage.append(batch(*events[:5]), observed_ns=1)
        await storage.append(batch(*events[5:], producer=OTHER_PRODUCER), observed_ns=1)
        whole = await storage.read_lines(LogQuery(order=order))
        paged, after = [], None
        while page := await storage.read_lines(LogQuery(order=order, after=after, limit=3)):
            paged += page
            after = page[-1].position
        assert paged == whole
        assert len(whole) == 10

    async def test_offset_and_limit(self, storage):
        """Lines are left out from the front and cut at the end; a limit of 0 gives none."""
        await storage.append(batch(*(line(str(number), at=number) for number in range(5))), observed_ns=1)
        assert await messages(storage, offset=1, limit=2) == ["1", "2"]
        assert await messages(storage, offset=9, limit=2) == []
        assert await messages(storage, limit=0) == []

    async def test_a_condition_chooses_lines(self, storage):
        """Only lines that pass are given, and they count for the limit."""
        await storage.append(
            batch(*(line(str(number), at=number, level=10 * (number % 3)) for number in range(9))),
            observed_ns=1,
        )
        where = AllOf((LevelBetween(20),))
        assert await messages(storage, where=where, limit=2) == ["2", "5"]

    # --- arrivals ---------------------------------------------------------------------------------

    async def test_lines_are_read_in_the_order_of_arrival(self, storage):
        """Arrivals count up from 1 across producers, whatever the timestamps; `append` tells the first."""
        assert await storage.last_arrival() == 0
        assert await storage.read_arrivals(0) == ([], 0)
        first = await storage.append(batch(line("late", at=9), line("a", at=1)), observed_ns=1)
        second = await storage.append(batch(line("old", at=-9), producer=OTHER_PRODUCER), observed_ns=1)
        third = await storage.append(batch(line("a", at=1), line("b"), first_seq=1), observed_ns=1)
        assert [one.first_arrival for one in (first, second, third)] == [1, 3, 4]
        assert len({first.producer_key, third.producer_key, second.producer_key}) == 2
        assert await arrivals(storage) == [(1, "late"), (2, "a"), (3, "old"), (4, "b")]
        assert await storage.last_arrival() == 4
        found = await storage.read_arrivals(0)
        assert sorted((one for _, one in found.lines), key=place) == await storage.read_lines(LogQuery())
        assert found.lines[2][1].producer_key == second.producer_key

    async def test_what_stores_nothing_arrives_not(self, storage):
        """A batch sent again, an empty one, and one of markers alone have no arrival."""
        await storage.append(batch(line()), observed_ns=1)
        for repeated in (
            batch(line()),
            batch(first_seq=1),
            batch(dropped=[DropMarker(1, 2, "closed")], first_seq=1),
        ):
            assert (await storage.append(repeated, observed_ns=1))[2:] == (0, 0)
        assert await storage.last_arrival() == 1

    async def test_reading_on_from_an_arrival_gives_each_line_once(self, storage):
        """Pages that begin where the last one ended join, and tell how far was looked."""
        for number in range(3):
            events = [line(f"{number}-{n}", level=10 * (n % 3)) for n in range(5)]
            await storage.append(batch(*events, first_seq=5 * number), observed_ns=1)
        found, after = [], 0
        while after < 15:
            page = await storage.read_arrivals(after, where=LevelBetween(20), limit=2)
            assert page.upto > after
            assert all(after < arrival <= page.upto for arrival, _ in page.lines)
            found += page.lines
            after = page.upto
        assert found == [pair for pair in (await storage.read_arrivals(0)).lines if pair[1].event.level == 20]
        assert after == 15
        assert await storage.read_arrivals(15) == ([], 15)
        assert await storage.read_arrivals(99) == ([], 99)

    async def test_arrivals_are_read_up_to_a_bound(self, storage):
        """Nothing behind the bound is looked at, and the answer does not claim it was."""
        await storage.append(batch(*(line(str(n)) for n in range(5))), observed_ns=1)
        page = await storage.read_arrivals(1, upto=3)
        assert ([arrival for arrival, _ in page.lines], page.upto) == ([2, 3], 3)

    async def test_arrivals_within_a_run_are_those_of_its_tree(self, storage):
        """A run's stream has the lines of all that was opened in it, in the order of arrival."""
        await self.fill_tree(storage)
        assert await arrivals(storage, within="task") == [
            (2, "task"),
            (3, "nested"),
            (4, "sub"),
            (5, "deep"),
            (6, "stray"),
        ]
        assert await arrivals(storage, within="root", where=LevelBetween(30)) == [(5, "deep")]
        assert await arrivals(storage, within="nobody") == []

    async def test_arrivals_of_lost_lines_are_passed_over(self, storage):
        """Lines that are stored no more are left out, and an arrival is not given again."""
        await storage.append(batch(*(line(str(n)) for n in range(6))), observed_ns=1)
        await self.lose(storage, {0, 1, 3})
        assert await arrivals(storage) == [(3, "2"), (5, "4"), (6, "5")]
        assert await arrivals(storage, after=1) == [(3, "2"), (5, "4"), (6, "5")]
        appended = await storage.append(batch(line("6"), first_seq=6), observed_ns=1)
        assert appended.first_arrival == 7

    async def test_an_arrival_is_found_by_time(self, storage):
        """Behind the arrival before a time is every line of that time or later."""
        await storage.append(batch(line(at=5), line(at=1), line(at=7), line(at=3)), observed_ns=1)
        second = 1_000_000_000
        found = [await storage.arrival_before(START + at * second) for at in (0, 4, 6, 7, 8)]
        assert found == [0, 0, 2, 2, 4]

    async def test_a_store_has_an_epoch(self, storage):
        """It is text that tells this store from others."""
        assert len(storage.epoch) >= 8

    # --- runs -------------------------------------------------------------------------------------

    async def test_a_run_is_derived_from_its_lines(self, storage):
        """Names, state, times, attributes and counts of a run are those that its lines tell."""
        await storage.append(
            batch(
                started(extra={"source": "s3"}, flow_run_name="owl", flow_name="etl"),
                line(at=1, level=30, flow_run_id=FLOW),
                line(at=2, level=45, flow_run_id=FLOW, task_run_id=TASK, task_name="extract"),
                finished(at=3, duration=2.5, flow_run_name="owl", flow_name="etl"),
            ),
            observed_ns=1,
        )
        (flow,) = await storage.read_runs(RunQuery(kind="flow"))
        assert (flow.id, flow.name, flow.text("flow_name")) == (FLOW, "owl", "etl")
        assert (flow.state, flow.duration_s, flow.attributes) == ("COMPLETED", 2.5, {"source": "s3"})
        assert (flow.lines, flow.counts) == (4, [0, 2, 1, 1, 0])
        (task,) = await storage.read_runs(RunQuery(kind="task"))
        assert (task.id, task.state, task.lines, task.parent_id) == (TASK, "UNKNOWN", 1, FLOW)
        assert task.text("task_name") == "extract"

    async def test_runs_grow_with_each_batch(self, storage):
        """What later batches, of other producers too, say about a run is added to it."""
        await storage.append(batch(finished(at=9)), observed_ns=1)
        await storage.append(batch(started(), line(flow_run_id=FLOW), producer=OTHER_PRODUCER), observed_ns=1)
        await storage.append(batch(line(at=20, flow_run_id=FLOW), first_seq=1), observed_ns=1)
        (run,) = await storage.read_runs(RunQuery())
        assert (run.state, run.lines, run.started_ns) == ("COMPLETED", 4, START)
        assert run.last_line_ns == START + 20_000_000_000

    async def test_runs_are_found(self, storage):
        """Each part of a query chooses runs, and all parts must hold."""
        await storage.append(
            batch(
                started("aaaa-1", at=1, flow_run_name="Nightly Owl"),
                finished("aaaa-1", at=2, flow_run_name="Nightly Owl"),
                started("aaaa-2", at=3, flow_run_name="daily owl"),
                started("bbbb-1", at=4, kind="task", flow_run_id="aaaa-2", task_run_name="nightly"),
                started("cccc-1", at=5, flow_run_name="sub", parent_task_run_id="bbbb-1"),
            ),
            observed_ns=1,
        )
        assert await run_ids(storage) == ["cccc-1", "bbbb-1", "aaaa-2", "aaaa-1"]
        assert await run_ids(storage, kind="task") == ["bbbb-1"]
        assert await run_ids(storage, states=("COMPLETED",)) == ["aaaa-1"]
        assert await run_ids(storage, name_contains="NIGHTLY") == ["bbbb-1", "aaaa-1"]
        assert await run_ids(storage, name_contains="nightly", kind="flow") == ["aaaa-1"]
        assert await run_ids(storage, name="nightly") == ["bbbb-1"]
        assert await run_ids(storage, id="aaaa-1") == ["aaaa-1"]
        assert await run_ids(storage, id="aaaa") == []
        assert await run_ids(storage, id_prefix="aaaa") == ["aaaa-2", "aaaa-1"]
        assert await run_ids(storage, parent_id="aaaa-2") == ["bbbb-1"]
        assert await run_ids(storage, top_level=True) == ["aaaa-2", "aaaa-1"]
        assert await run_ids(storage, top_level=True, offset=1, limit=1) == ["aaaa-1"]

    async def test_pages_of_runs_join(self, storage):
        """Reading on from the last run of each page gives every run once, newest first."""
        await storage.append(
            batch(*(started(f"run-{number}", at=number // 2) for number in range(7))), observed_ns=1
        )
        paged, after = [], None
        while page := await storage.read_runs(RunQuery(after=after, limit=2)):
            paged += [run.id for run in page]
            after = run_position(page[-1])
        assert paged == [f"run-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]

    async def test_a_tree_has_everything_that_was_opened_in_a_run(self, storage):
        """Tasks, their flows, and those flows' tasks are in the tree; other runs are not."""
        await self.fill_tree(storage)
        tree = [run.id for run in await storage.read_tree("root")]
        assert tree == ["root", "task", "nested", "sub", "deep", "stray"]
        assert [run.id for run in await storage.read_tree("sub")] == ["sub", "deep"]
        assert await storage.read_tree("nobody") == []

    async def test_lines_within_a_run_are_those_of_its_tree(self, storage):
        """A flow's lines include its tasks' and sub-flows'; a task's those of the flow opened in it."""
        await self.fill_tree(storage)
        within_root = await messages(storage, within="root")
        assert within_root == ["root", "task", "nested", "sub", "deep", "stray", "late"]
        assert await messages(storage, within="root", order="desc", limit=2) == ["late", "stray"]
        assert await messages(storage, within="root", where=LevelBetween(30)) == ["deep"]
        assert await messages(storage, within="task") == ["task", "nested", "sub", "deep", "stray"]
        assert await messages(storage, within="nested") == ["nested"]
        assert await messages(storage, within="nobody") == []

    async def test_lines_within_many_runs_keep_their_order(self, storage):
        """The lines of a flow with hundreds of sub-flows come in order of time, page by page."""
        events = [
            line(str(number), at=number, flow_run_id=f"sub-{number % 600}", parent_flow_run_id="root")
            for number in range(1200)
        ]
        await storage.append(batch(line("first", at=-1, flow_run_id="root"), *events), observed_ns=1)
        assert await messages(storage, within="root", limit=5) == ["first", "0", "1", "2", "3"]
        middle = (await storage.read_lines(LogQuery(within="root", limit=700)))[-1].position
        assert await messages(storage, within="root", after=middle, limit=2) == ["699", "700"]

    async def test_a_ring_of_parents_ends(self, storage):
        """Runs that name each other, or themselves, as parents are each given once."""
        await storage.append(
            batch(
                line(flow_run_id="a", parent_flow_run_id="b"),
                line(at=1, flow_run_id="b", parent_flow_run_id="a"),
                line(at=2, flow_run_id="self", parent_flow_run_id="self"),
            ),
            observed_ns=1,
        )
        assert [run.id for run in await storage.read_tree("a")] == ["a", "b"]
        assert [run.id for run in await storage.read_tree("self")] == ["self"]

    async def fill_tree(self, storage):
        """Root > task > (nested task, sub-flow > deep task), a task run without flow in the task, and a stranger."""
        task = {"task_run_id": "task", "flow_run_id": "root"}
        await storage.append(
            batch(
                line("root", at=0, flow_run_id="root"),
                line("task", at=1, **task),
                line("nested", at=2, task_run_id="nested", flow_run_id="root", parent_task_run_id="task"),
                line("sub", at=3, flow_run_id="sub", parent_task_run_id="task", parent_flow_run_id="root"),
                line("deep", at=4, level=40, task_run_id="deep", flow_run_id="sub"),
                line("stray", at=5, task_run_id="stray", parent_task_run_id="task"),
                line("stranger", at=6, flow_run_id="stranger"),
                line("nothing", at=7),
                line("late", at=8, flow_run_id="root"),
            ),
            observed_ns=1,
        )

    # --- counting ---------------------------------------------------------------------------------

    async def test_shares_tell_what_each_producer_sent(self, storage):
        """Stored and truncated lines, and drops between a run's lines, are counted for each producer."""
        await storage.append(
            batch(
                line(flow_run_id=FLOW),
                line(flow_run_id=FLOW, truncated_bytes=3),
                line(flow_run_id=OTHER_FLOW),
                dropped=[DropMarker(1, 4, "queue_full"), DropMarker(6, 2, "acknowledged_elsewhere")],
            ),
            observed_ns=1,
        )
        child = line(flow_run_id=OTHER_FLOW, task_run_id=TASK, parent_flow_run_id=FLOW)
        await storage.append(batch(child, producer=OTHER_PRODUCER), observed_ns=1)
        await storage.append(batch(dropped=[DropMarker(9, 1, "closed")], first_seq=9), observed_ns=1)
        drop, elsewhere = DropMarker(1, 4, "queue_full"), DropMarker(6, 2, "acknowledged_elsewhere")
        last = DropMarker(9, 1, "closed")
        assert await storage.read_shares(FLOW) == [
            ProducerShare(PRODUCER, 0, 5, stored=2, truncated=1, drops=(drop,), outside=(elsewhere, last))
        ]
        assert await storage.read_shares("nobody") == []
        sub = line(flow_run_id=OTHER_FLOW, parent_flow_run_id=FLOW)
        await storage.append(batch(sub, producer=OTHER_PRODUCER, first_seq=1), observed_ns=1)
        shares = await storage.read_shares(FLOW)
        assert shares == [
            ProducerShare(PRODUCER, 0, 8, stored=3, truncated=1, drops=(drop, elsewhere), outside=(last,)),
            ProducerShare(OTHER_PRODUCER, 0, 1, stored=2, truncated=0),
        ]
        assert (shares[0].dropped_by_reason, shares[0].elsewhere) == ({"queue_full": 4}, 2)

    async def test_a_share_covers_what_other_runs_have(self, storage):
        """A seq between a run's lines that is another run's line is not missing."""
        own, other = line(flow_run_id=FLOW), line(flow_run_id=OTHER_FLOW)
        await storage.append(batch(own, other, line(), own), observed_ns=1)
        (share,) = await storage.read_shares(FLOW)
        assert (share.first_seq, share.last_seq, share.stored, share.missing) == (0, 3, 2, ())

    async def test_what_is_neither_stored_nor_marked_is_missing(self, storage):
        """Lines that went from the store are told as ranges between the run's first and last line."""
        own = [line(str(n), at=n, flow_run_id=FLOW) for n in range(10)]
        await storage.append(batch(*own, dropped=[DropMarker(4, 1, "closed")]), observed_ns=1)
        await self.lose(storage, {2, 3, 5, 8})
        (share,) = await storage.read_shares(FLOW)
        assert share.missing == (SeqRange(2, 3), SeqRange(5, 5), SeqRange(8, 8))
        assert (share.stored, share.dropped_by_reason) == (6, {"closed": 1})

    async def test_a_goodbye_is_kept_until_a_line_follows(self, storage):
        """The goodbye holds if it reaches the mark; a later batch takes it back, one sent again does not bring it."""

        async def goodbye():
            return (await storage.read_shares(FLOW))[0].goodbye

        own = line(flow_run_id=FLOW)
        assert (await storage.append(batch(closing=True), observed_ns=1))[:2] == (-1, 0)
        await storage.append(batch(own, own), observed_ns=1)
        assert not await goodbye()
        assert (await storage.append(batch(first_seq=2, closing=True), observed_ns=1))[:2] == (1, 2)
        assert await goodbye()
        await storage.append(batch(own, own), observed_ns=1)
        assert await goodbye()
        await storage.append(batch(own, first_seq=2), observed_ns=1)
        assert not await goodbye()
        await storage.append(batch(first_seq=2, closing=True), observed_ns=1)
        assert not await goodbye()
        await storage.append(batch(own, first_seq=3, closing=True), observed_ns=1)
        assert await goodbye()
        await storage.append(batch(first_seq=4, dropped=[DropMarker(4, 1, "closed")]), observed_ns=1)
        assert not await goodbye()

    @pytest.mark.parametrize("is_ended", [False, True])
    async def test_drops_beside_the_lines_of_a_run_are_told(self, storage, is_ended):
        """Those that lie, by the lines around them, more than a minute before or after the run are left out."""
        end = [finished(at=1000)] if is_ended else []
        await storage.append(batch(started(at=900), *end, producer=OTHER_PRODUCER), observed_ns=1)
        near, before, inside, edge = (DropMarker(seq, 1, "queue_full") for seq in (3, 5, 7, 10))
        last = DropMarker(12, 2, "closed")
        await storage.append(
            batch(
                line(at=0),
                line(at=839),
                line(at=841),
                line(at=910, flow_run_id=FLOW),
                line(at=911, flow_run_id=FLOW),
                line(at=1059),
                line(at=1061),
                dropped=[DropMarker(1, 1, "queue_full"), near, before, inside, edge, last],
            ),
            observed_ns=1,
        )
        share = next(s for s in await storage.read_shares(FLOW) if s.producer == PRODUCER)
        assert (share.first_seq, share.last_seq, share.drops) == (6, 8, (inside,))
        assert share.outside == (near, before, edge, *(() if is_ended else (last,)))
        assert share.settled is is_ended

    async def test_a_producer_whose_last_line_ended_a_run_is_settled(self, storage):
        """So is one that said goodbye; one that merely stopped is not."""
        inside = {"flow_run_id": FLOW}
        await storage.append(batch(started(), line(**inside)), observed_ns=1)
        assert [share.settled for share in await storage.read_shares(FLOW)] == [False]
        await storage.append(batch(finished(TASK, kind="task", **inside), first_seq=2), observed_ns=1)
        assert [share.settled for share in await storage.read_shares(FLOW)] == [True]
        await storage.append(batch(line(**inside), first_seq=3, closing=True), observed_ns=1)
        assert [share.settled for share in await storage.read_shares(FLOW)] == [True]

    async def test_what_a_producer_claims_is_compared_with_what_arrived(self, storage):
        """The claim in the run's own end counts, with the lines of its tree up to there; later ones are extra."""
        sub = {"flow_run_id": OTHER_FLOW, "parent_flow_run_id": FLOW}
        await storage.append(
            batch(
                line(flow_run_id=FLOW),
                line(**sub, task_run_id=TASK),
                line(task_run_id="stray", parent_task_run_id=TASK),
                ended(2, run_id=OTHER_FLOW, parent_flow_run_id=FLOW),
                ended(5, at=2),
                line("late", at=3, flow_run_id=FLOW),
            ),
            observed_ns=1,
        )
        await storage.append(batch(line(**sub), producer=OTHER_PRODUCER), observed_ns=1)
        here, there = await storage.read_shares(FLOW)
        assert (here.expected, here.arrived, here.stored) == (5, 5, 6)
        assert (there.expected, there.arrived, there.stored) == (None, 0, 1)
        (here, there) = await storage.read_shares(OTHER_FLOW)
        assert (here.expected, here.arrived) == (2, 3)
        (task,) = await storage.read_shares("stray")
        assert task.expected is None

    async def test_claims_of_a_run_that_ended_twice_add_up(self, storage):
        """A run that was opened again under its id is counted anew by its producer."""
        own = line(flow_run_id=FLOW)
        await storage.append(batch(own, ended(2), own, own, ended(3)), observed_ns=1)
        (share,) = await storage.read_shares(FLOW)
        assert (share.expected, share.arrived) == (5, 5)

    @pytest.mark.parametrize("claim", ["5", None, True, -1, 2.0, 2**63])
    async def test_a_claim_that_is_no_number_is_none(self, storage, claim):
        """Whatever stands in the attribute, only a count is taken for one."""
        await storage.append(batch(ended(claim)), observed_ns=1)
        (share,) = await storage.read_shares(FLOW)
        assert share.expected is None

    async def test_the_part_of_a_marker_above_the_mark_counts(self, storage):
        """A marker that was told in part before is counted once."""
        await storage.append(
            batch(line(flow_run_id=FLOW), dropped=[DropMarker(1, 2, "queue_full")]), observed_ns=1
        )
        overlapping = batch(line(flow_run_id=FLOW), first_seq=1, dropped=[DropMarker(1, 3, "queue_full")])
        assert (await storage.append(overlapping, observed_ns=1))[:2] == (4, 3)
        (share,) = await storage.read_shares(FLOW)
        assert (share.dropped_by_reason, share.stored, share.last_seq) == ({"queue_full": 3}, 2, 4)

    async def test_a_query_of_flow_runs_keeps_time_order(self, storage):
        """Lines of several runs asked for by id come in order of time."""
        await storage.append(
            batch(*(line(str(n), at=n, flow_run_id=(FLOW, OTHER_FLOW, TASK)[n % 3]) for n in range(9))),
            observed_ns=1,
        )
        found = await messages(storage, where=RunIn("flow", (FLOW, OTHER_FLOW)), limit=4)
        assert found == ["0", "1", "3", "4"]

    async def test_a_store_says_where_it_is(self, storage):
        """Location and schema version are known, and the representation names the kind."""
        assert isinstance(storage.location, str)
        assert storage.schema_version >= 0
        assert type(storage).__name__ in repr(storage)


def ended(claim, **fields):
    """The end of a run, with what its producer says that it sent."""
    event = finished(**fields)
    event.attributes["runlog.run.lines"] = claim
    return event


async def messages(storage, **query):
    return [found.event.message for found in await storage.read_lines(LogQuery(**query))]


async def arrivals(storage, after=0, **query):
    found = await storage.read_arrivals(after, **query)
    return [(arrival, line.event.message) for arrival, line in found.lines]


def place(line):
    return line.position


async def run_ids(storage, **query):
    return [run.id for run in await storage.read_runs(RunQuery(**query))]
