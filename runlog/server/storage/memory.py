"""
A store in this process's memory: for tests and demonstrations, and the measure of what the others must do.

Everything is kept in plain lists and dictionaries and found by looking at each
line, so that what it answers is easily seen to be right. Nothing survives
`MemoryStorage.close`.
"""

from __future__ import annotations

import heapq
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from runlog.server.counting import Histogram, LineCount, TimeCount, choose_width
from runlog.server.patterns import TimeLimit
from runlog.server.run_summary import FINISHED, level_index, merge, summarise
from runlog.server.storage.base import (
    Appended,
    Arrivals,
    LogStorage,
    ProducerGapError,
    Pruned,
    RunSet,
    Size,
    Statistics,
    StoredLine,
    clip_drops,
    run_position,
    says_goodbye,
)
from runlog.server.storage.shares import (
    Claim,
    Period,
    ProducerShare,
    SeqRange,
    claimed_lines,
    merge_shares,
    range_of,
    uncovered,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runlog.records import DropMarker, EventBatch
    from runlog.server.counting import GroupBy
    from runlog.server.keys import ApiKey
    from runlog.server.query import Condition, LogQuery, Position
    from runlog.server.run_summary import Kind, RunSummary
    from runlog.server.storage.base import RunQuery


@dataclass(slots=True)
class _Producer:
    key: int
    next_seq: int = 0
    drops: list[DropMarker] = field(default_factory=list)
    goodbye: bool = False
    last_observed_ns: int = 0


class _Removed(NamedTuple):
    """What is left of a line that was taken away."""

    producer: str
    seq: int
    flow_run_id: str | None
    task_run_id: str | None


class MemoryStorage(LogStorage):
    """Keeps lines in memory. Not thread-safe: one event loop."""

    location = "memory"
    schema_version = 0

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(8)
        self._lines: list[StoredLine] = []
        self._arrivals: dict[tuple[str, int], int] = {}
        self._producers: dict[str, _Producer] = {}
        self._runs: dict[tuple[Kind, str], RunSummary] = {}
        self._keys: dict[str, ApiKey] = {}
        self._removed: list[_Removed] = []

    def __repr__(self) -> str:
        return f"<MemoryStorage with {len(self._lines)} lines>"

    def may_have_keys(self) -> bool:
        """Return whether there is one."""
        return bool(self._keys)

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Do nothing: the lines go with the object."""

    async def append(self, batch: EventBatch, *, observed_ns: int) -> Appended:
        """Store what is new in a batch."""
        producer = self._producers.get(batch.producer) or _Producer(self._newest_key() + 1)
        mark = producer.next_seq
        if batch.first_seq > mark:
            raise ProducerGapError(batch.producer, expected=mark, got=batch.first_seq)
        if batch.last_seq < mark:
            producer.goodbye = producer.goodbye or says_goodbye(batch, mark)
            return Appended(mark - 1, mark)
        self._producers[batch.producer] = producer
        new = [(seq, event) for seq, event in batch.numbered() if seq >= mark]
        first_arrival = len(self._arrivals) + 1
        for seq, event in new:
            self._arrivals[batch.producer, seq] = len(self._arrivals) + 1
            self._lines.append(StoredLine(batch.producer, producer.key, seq, observed_ns, event))
        producer.drops += clip_drops(batch, mark)
        producer.next_seq = batch.last_seq + 1
        producer.goodbye = says_goodbye(batch, mark)
        producer.last_observed_ns = observed_ns
        for key, summary in summarise(event for _, event in new)[0].items():
            known = self._runs.get(key)
            self._runs[key] = summary if known is None else merge(known, summary)
        if not new:
            return Appended(batch.last_seq, mark)
        return Appended(batch.last_seq, mark, first_arrival, producer.key)

    def _newest_key(self) -> int:
        return max((producer.key for producer in self._producers.values()), default=0)

    async def read_lines(self, query: LogQuery) -> list[StoredLine]:
        """Look at every line."""
        ascending = query.order == "asc"
        after = query.after
        found = (
            line
            for line in self._found(query)
            if after is None or (line.position > after if ascending else line.position < after)
        )
        pick = heapq.nsmallest if ascending else heapq.nlargest
        return pick(query.offset + query.limit, found, key=lambda line: line.position)[query.offset :]

    async def read_line(self, producer: str, seq: int) -> StoredLine | None:
        """Look at every line."""
        return next((line for line in self._lines if (line.producer, line.seq) == (producer, seq)), None)

    async def count_lines(self, query: LogQuery, by: GroupBy | None = None) -> list[LineCount]:
        """Look at every line."""
        field = {None: None, "logger": "name", "task": "task_name", "flow": "flow_name"}[by]
        counts = Counter(
            (getattr(line.event, field) if field is not None else None, line.event.level)
            for line in self._found(query)
        )
        return [LineCount(group, level, lines) for (group, level), lines in counts.items()]

    async def read_histogram(
        self,
        query: LogQuery,
        *,
        earliest_ns: int | None = None,
        latest_ns: int | None = None,
        max_buckets: int,
    ) -> Histogram | None:
        """Look at every line."""
        events = [line.event for line in self._found(query)]
        times = [event.timestamp_ns for event in events]
        first = min(times, default=None) if earliest_ns is None else earliest_ns
        last = max(times, default=None) if latest_ns is None else latest_ns
        if first is None or last is None:
            return None
        last = max(first, last)
        width = choose_width(first, last, max_buckets)
        counts = Counter(
            (event.timestamp_ns // width, event.level)
            for event in events
            if first <= event.timestamp_ns <= last
        )
        found = [TimeCount(step, level, lines) for (step, level), lines in sorted(counts.items())]
        return Histogram(width, first // width, last // width, found)

    def _found(self, query: LogQuery) -> Iterator[StoredLine]:
        """
        Yield the lines that a query asks for, whatever its order and page.

        Raises:
            QueryTimeoutError: If that takes too long.
        """
        limit = TimeLimit(self.max_query_s)
        runs = self._run_set(query.within) if query.within is not None else None
        for number, line in enumerate(self._lines):
            if number % 256 == 0:
                limit.check()
            if (runs is None or runs.matches(line.event)) and query.where.matches(line.event):
                yield line

    async def read_arrivals(
        self,
        after: int,
        *,
        where: Condition | None = None,
        within: str | None = None,
        upto: int | None = None,
        limit: int = 1000,
    ) -> Arrivals:
        """Look at every line."""
        last = len(self._arrivals) if upto is None else min(upto, len(self._arrivals))
        runs = self._run_set(within) if within is not None else None
        found = [
            (arrival, line)
            for line in self._lines
            if after < (arrival := self._arrivals[line.producer, line.seq]) <= last
            and (runs is None or runs.matches(line.event))
            and (where is None or where.matches(line.event))
        ]
        return Arrivals(found[:limit], found[limit - 1][0] if len(found) > limit else max(last, after))

    async def last_arrival(self) -> int:
        """Count: an arrival is kept when its line is not."""
        return len(self._arrivals)

    async def arrival_before(self, timestamp_ns: int) -> int:
        """Look at every line."""
        newer = (line for line in self._lines if line.event.timestamp_ns >= timestamp_ns)
        return min(
            (self._arrivals[line.producer, line.seq] - 1 for line in newer), default=len(self._arrivals)
        )

    async def read_runs(self, query: RunQuery) -> list[RunSummary]:
        """Look at every run."""
        ids = {run.id for run in self._runs.values()}
        part = query.name_contains.lower() if query.name_contains is not None else None
        found = [
            run
            for run in self._runs.values()
            if (query.kind is None or run.kind == query.kind)
            and (query.states is None or run.state in query.states)
            and (query.search is None or _is_called(run, query.search.lower()))
            and (query.flow_name is None or run.text("flow_name") == query.flow_name)
            and (query.task_name is None or run.text("task_name") == query.task_name)
            and (query.since_ns is None or run.started_ns >= query.since_ns)
            and (query.until_ns is None or run.started_ns <= query.until_ns)
            and (query.min_attempt is None or (run.attempt or 0) >= query.min_attempt)
            and (part is None or part in (run.name or "").lower())
            and (query.name is None or run.name == query.name)
            and (query.id is None or run.id == query.id)
            and (query.id_prefix is None or run.id.startswith(query.id_prefix))
            and (query.parent_id is None or run.parent_id == query.parent_id)
            and not (query.top_level and run.parent_id in ids)
            and (
                query.visible_flow_run is None
                or query.visible_flow_run == (run.id if run.kind == "flow" else run.text("flow_run_id"))
            )
            and (query.visible_flow is None or run.text("flow_name") == query.visible_flow)
            and (query.after is None or run_position(run) < query.after)
        ]
        found.sort(key=run_position, reverse=True)
        return found[query.offset : query.offset + query.limit]

    async def read_tree(self, run_id: str) -> list[RunSummary]:
        """Walk from the run to what names it as its parent."""
        return self._tree(run_id)

    def _run_set(self, run_id: str) -> RunSet:
        return RunSet.of((run.id, run.kind, run.text("flow_run_id")) for run in self._tree(run_id))

    def _tree(self, run_id: str) -> list[RunSummary]:
        children: dict[str | None, list[str]] = {}
        for run in self._runs.values():
            children.setdefault(run.parent_id, []).append(run.id)
        found: set[str] = set()
        waiting = [run_id]
        while waiting:
            known = waiting.pop(0)
            if known not in found:
                found.add(known)
                waiting += children.get(known, ())
        tree = sorted((run for run in self._runs.values() if run.id in found), key=run_position)
        return tree if any(run.id == run_id for run in tree) else []

    async def read_shares(self, run_id: str) -> list[ProducerShare]:
        """Count the lines of the runs."""
        runs = self._run_set(run_id)
        lines = [line for line in self._lines if runs.matches(line.event)]
        removed = [
            line
            for line in self._removed
            if line.flow_run_id in runs.flow_run_ids or line.task_run_id in runs.task_run_ids
        ]
        shares = merge_shares(
            [
                ProducerShare(line.producer, line.seq, line.seq, 1, int(line.event.truncated_bytes > 0))
                for line in lines
            ]
            + [ProducerShare(line.producer, line.seq, line.seq, 0, 0, removed=1) for line in removed]
        )
        claims: dict[str, Claim] = {}
        for line in lines:  # a producer's come in the order of their seqs
            event = line.event
            claimed = claimed_lines(event.event_name, event.attributes)
            if claimed is not None and (event.task_run_id or event.flow_run_id) == run_id:
                claims[line.producer] = Claim(line.seq, claimed).and_before(claims.get(line.producer))
        period = Period.of([run for run in self._runs.values() if run.id == run_id]) if shares else None
        return [
            self._explain(share, claims.get(share.producer), lines, period)
            for share in shares
            if period is not None
        ]

    def _explain(
        self, share: ProducerShare, claim: Claim | None, lines: list[StoredLine], period: Period
    ) -> ProducerShare:
        """Add to a share what lies between its lines and beside them, and what its producer says."""
        producer = self._producers[share.producer]
        drops = tuple(m for m in producer.drops if share.first_seq < m.seq < share.last_seq)
        sent = [line for line in self._lines if line.producer == share.producer]
        stored = [SeqRange(line.seq, line.seq) for line in sent]
        stored += [SeqRange(line.seq, line.seq) for line in self._removed if line.producer == share.producer]
        earlier = [
            line.seq
            for line in sent
            if line.seq < share.first_seq and line.event.timestamp_ns < period.begin_ns
        ]
        later = [
            line.seq
            for line in sent
            if line.seq > share.last_seq
            and period.end_ns is not None
            and line.event.timestamp_ns > period.end_ns
        ]
        ends = any(line.seq == share.last_seq and line.event.event_name == FINISHED for line in sent)
        return replace(
            share,
            drops=drops,
            missing=uncovered(
                SeqRange(share.first_seq, share.last_seq), [*stored, *(range_of(marker) for marker in drops)]
            ),
            goodbye=producer.goodbye,
            outside=tuple(
                m
                for m in producer.drops
                if max(earlier, default=-1) < m.seq < share.first_seq
                or share.last_seq < m.seq < min(later, default=m.seq + 1)
            ),
            settled=producer.goodbye or ends or bool(later),
            expected=claim.lines if claim is not None else None,
            arrived=sum(line.producer == share.producer and line.seq <= claim.seq for line in lines)
            if claim is not None
            else 0,
        )

    async def read_statistics(self) -> Statistics:
        """Count."""
        return Statistics(runs=len(self._runs), lines=len(self._lines))

    async def read_size(self) -> Size:
        """Tell nothing: nobody knows what an object takes."""
        return Size(0, 0)

    async def prune(
        self, keep_from_ns: Sequence[int | None], *, after: Position | None = None, limit: int = 1000
    ) -> Pruned:
        """Look at every line."""
        waiting = sorted(
            (line for line in self._lines if after is None or line.position > after),
            key=lambda line: line.position,
        )
        newest = max(self._lines, key=lambda line: self._arrivals[line.producer, line.seq], default=None)
        gone = set()
        for line in waiting[:limit]:
            keep_ns = keep_from_ns[level_index(line.event.level)]
            if (
                keep_ns is not None
                and max(line.event.timestamp_ns, line.observed_ns) < keep_ns
                and line is not newest
            ):
                event = line.event
                gone.add((line.producer, line.seq))
                self._removed.append(_Removed(line.producer, line.seq, event.flow_run_id, event.task_run_id))
        self._lines = [line for line in self._lines if (line.producer, line.seq) not in gone]
        runs = len(self._runs)
        if gone:
            self._remove_runs()
        rest = waiting[limit - 1].position if len(waiting) > limit else None
        return Pruned(len(gone), runs - len(self._runs), rest)

    async def forget_producers(self, silent_since_ns: int, *, limit: int = 1000) -> int:
        """Look at every producer and every line."""
        alive = {line.producer for line in self._lines}
        gone = [
            producer_id
            for producer_id, producer in self._producers.items()
            if producer.goodbye
            and producer.last_observed_ns < silent_since_ns
            and producer.key < self._newest_key()
            and producer_id not in alive
        ][:limit]
        for producer_id in gone:
            del self._producers[producer_id]
        self._removed = [line for line in self._removed if line.producer not in gone]
        return len(gone)

    async def vacuum(self) -> None:
        """Do nothing: Python takes its memory back by itself."""

    def _remove_runs(self) -> None:
        """Forget runs that have no lines, and in which no run is left."""
        alive = {("flow", line.event.flow_run_id) for line in self._lines}
        alive |= {("task", line.event.task_run_id) for line in self._lines}
        while True:
            parents = {run.parent_id for run in self._runs.values()}
            kept = {key: run for key, run in self._runs.items() if key in alive or run.id in parents}
            if len(kept) == len(self._runs):
                break
            self._runs = kept
        known = {run.id for run in self._runs.values()}
        self._removed = [
            line
            if line.flow_run_id in known or line.task_run_id in known
            else _Removed(line.producer, line.seq, None, None)
            for line in self._removed
        ]

    async def read_keys(self) -> list[ApiKey]:
        """Copy the list."""
        return list(self._keys.values())

    async def add_key(self, key: ApiKey) -> None:
        """Keep it."""
        self._keys[key.id] = key

    async def remove_key(self, key_id: str) -> bool:
        """Forget it."""
        return self._keys.pop(key_id, None) is not None

    async def mark_keys_used(self, used_ns: Mapping[str, int]) -> None:
        """Note the times."""
        for key_id, last_used_ns in used_ns.items():
            if key_id in self._keys:
                self._keys[key_id] = replace(self._keys[key_id], last_used_ns=last_used_ns)


def _is_called(run: RunSummary, part: str) -> bool:
    """Return whether a text in lower case is in one of a run's names, or begins its id."""
    names = (run.name, run.text("flow_name"), run.text("task_name"))
    return run.id.startswith(part) or any(name is not None and part in name.lower() for name in names)
