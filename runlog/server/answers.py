"""Lines and runs as the API answers them. The one place that knows these shapes."""

from __future__ import annotations

import functools
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from runlog.records import ExceptionInfo, event_id, format_timestamp, level_name
from runlog.server.run_summary import LEVELS, State

if TYPE_CHECKING:
    from runlog.server.run_summary import Kind, RunSummary
    from runlog.server.storage.base import StoredLine


class LogAnswer(msgspec.Struct):
    """A line: Prefect's fields, then ours. Times are :rfc:`3339` text in UTC with microseconds."""

    id: uuid.UUID
    created: str
    updated: str
    timestamp: str
    observed_timestamp: str
    level: int
    level_name: str
    name: str
    message: str
    flow_run_id: str | None
    task_run_id: str | None
    flow_run_name: str | None
    flow_name: str | None
    task_run_name: str | None
    task_name: str | None
    parent_flow_run_id: str | None
    parent_task_run_id: str | None
    attempt: int | None
    event_name: str | None
    attributes: dict[str, Any]
    exception: ExceptionInfo | None
    trace_id: str | None
    span_id: str | None
    truncated_bytes: int
    producer: str
    seq: int


class PrefectLog(msgspec.Struct):
    """A line with Prefect's fields alone, in the order of its ``Log``."""

    id: uuid.UUID
    created: str
    updated: str
    name: str
    level: int
    message: str
    timestamp: str
    flow_run_id: str | None
    task_run_id: str | None


class RunAnswer(msgspec.Struct):
    """A run. ``children`` is there only where a tree was asked for."""

    id: str
    kind: Kind
    name: str | None
    flow_name: str | None
    task_name: str | None
    flow_run_id: str | None
    parent_flow_run_id: str | None
    parent_task_run_id: str | None
    state: State
    started: str | None
    ended: str | None
    duration_s: float | None
    attempt: int | None
    lines: int
    counts: dict[str, int]
    last_line: str
    attributes: dict[str, Any]
    children: list[RunAnswer] | msgspec.UnsetType = msgspec.UNSET


def log_answer(line: StoredLine) -> LogAnswer:
    """Return a line as our own routes answer it."""
    event = line.event
    observed = format_timestamp(line.observed_ns)
    return LogAnswer(
        id=event_id(line.producer, line.seq),
        created=observed,
        updated=observed,
        timestamp=format_timestamp(event.timestamp_ns),
        observed_timestamp=observed,
        level=event.level,
        level_name=level_name(event.level),
        name=event.name,
        message=event.message,
        flow_run_id=event.flow_run_id,
        task_run_id=event.task_run_id,
        flow_run_name=event.flow_run_name,
        flow_name=event.flow_name,
        task_run_name=event.task_run_name,
        task_name=event.task_name,
        parent_flow_run_id=event.parent_flow_run_id,
        parent_task_run_id=event.parent_task_run_id,
        attempt=event.attempt,
        event_name=event.event_name,
        attributes=event.attributes,
        exception=event.exception,
        trace_id=event.trace_id,
        span_id=event.span_id,
        truncated_bytes=event.truncated_bytes,
        producer=line.producer,
        seq=line.seq,
    )


def prefect_log_answer(line: StoredLine) -> LogAnswer:
    """
    Return a line as Prefect's routes answer it.

    Prefect's client refuses a whole answer for one id that is not a UUID, and
    runlog's users may name runs as they like: such an id is left out.
    """
    answer = log_answer(line)
    answer.flow_run_id = canonical_uuid(answer.flow_run_id)
    answer.task_run_id = canonical_uuid(answer.task_run_id)
    return answer


def prefect_log(line: StoredLine) -> PrefectLog:
    """Return a line as Prefect's socket tells it; see `prefect_log_answer`."""
    event = line.event
    observed = format_timestamp(line.observed_ns)
    return PrefectLog(
        id=event_id(line.producer, line.seq),
        created=observed,
        updated=observed,
        name=event.name,
        level=event.level,
        message=event.message,
        timestamp=format_timestamp(event.timestamp_ns),
        flow_run_id=canonical_uuid(event.flow_run_id),
        task_run_id=canonical_uuid(event.task_run_id),
    )


@functools.lru_cache(maxsize=4096)
def canonical_uuid(text: str | None) -> str | None:
    """Return a UUID in its usual form; `None` if *text* is none."""
    try:
        return str(uuid.UUID(text))
    except (ValueError, TypeError):
        return None


def run_answer(run: RunSummary) -> RunAnswer:
    """Return a run without its children."""
    ended = run.ended_ns
    return RunAnswer(
        id=run.id,
        kind=run.kind,
        name=run.name,
        flow_name=run.text("flow_name"),
        task_name=run.text("task_name"),
        flow_run_id=run.id if run.kind == "flow" else run.text("flow_run_id"),
        parent_flow_run_id=run.text("parent_flow_run_id"),
        parent_task_run_id=run.text("parent_task_run_id"),
        state=run.state,
        started=format_timestamp(run.started_ns),
        ended=format_timestamp(ended) if ended is not None else None,
        duration_s=run.duration_s,
        attempt=run.attempt,
        lines=run.lines,
        counts=dict(zip(LEVELS, run.counts, strict=True)),
        last_line=format_timestamp(run.last_line_ns),
        attributes=run.attributes,
    )
