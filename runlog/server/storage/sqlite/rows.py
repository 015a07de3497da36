"""Between the objects of the server and the rows of the tables. No connection is held here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runlog.records import ExceptionInfo, LogEvent
from runlog.server.run_summary import RunSummary, Scope, Verdict
from runlog.server.storage.base import StoredLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_encode = msgspec.json.Encoder().encode
_decode_attributes = msgspec.json.Decoder(dict[str, Any]).decode
_decode_exception = msgspec.json.Decoder(ExceptionInfo).decode
_decode_facts = msgspec.json.Decoder(dict[str, tuple[bool, int, str]]).decode

INSERT_LINE = f"INSERT INTO logs VALUES ({', '.join('?' * 16)})"  # noqa: S608 - question marks

LINE_COLUMNS = (
    "l.producer, l.seq, l.timestamp_ns, l.observed_ns, l.level, l.logger, l.scope, l.message, "
    "l.attributes, l.exception, l.event_name, l.trace_id, l.span_id, l.truncated_bytes"
)

RUN_COLUMNS = "id, kind, lines, counts, first_line_ns, last_line_ns, facts, attempt, opened, verdict"

UPSERT_RUN = (
    "INSERT INTO runs (key, id, kind, name, parent_id, flow_run_id, state, started_ns, "  # noqa: S608 - constants
    "lines, counts, first_line_ns, last_line_ns, facts, attempt, opened, verdict) "
    f"VALUES ({', '.join('?' * 16)}) ON CONFLICT (key) DO UPDATE SET "
    "name = excluded.name, parent_id = excluded.parent_id, flow_run_id = excluded.flow_run_id, "
    "state = excluded.state, started_ns = excluded.started_ns, lines = excluded.lines, "
    "counts = excluded.counts, first_line_ns = excluded.first_line_ns, last_line_ns = excluded.last_line_ns, "
    "facts = excluded.facts, attempt = excluded.attempt, opened = excluded.opened, verdict = excluded.verdict"
)


def line_row(
    event: LogEvent,
    seq: int,
    *,
    producer: int,
    observed_ns: int,
    logger: int,
    scope: tuple[int, int | None, int | None],
) -> tuple[Any, ...]:
    """
    Return the row of a line.

    Args:
        event: The line.
        seq: Its number.
        producer: Key of its producer.
        observed_ns: When it came.
        logger: Key of its logger.
        scope: Keys of its scope, flow run and task run.
    """
    attributes, exception = event.attributes, event.exception
    return (
        producer,
        seq,
        event.timestamp_ns,
        observed_ns,
        event.level,
        logger,
        *scope,
        event.message,
        _encode(attributes).decode() if attributes else None,
        _encode(exception).decode() if exception is not None else None,
        event.event_name,
        event.trace_id,
        event.span_id,
        event.truncated_bytes,
    )


def stored_lines(
    rows: Iterable[tuple[Any, ...]],
    producer_of: Callable[[int], str],
    logger_of: Callable[[int], str],
    scope_of: Callable[[int], Scope],
) -> list[StoredLine]:
    """
    Return the lines in rows of `LINE_COLUMNS`.

    Args:
        rows: As they come from a cursor.
        producer_of: The id of a producer by its key.
        logger_of: The name of a logger by its key.
        scope_of: A scope by its key.
    """
    return [
        StoredLine(
            producer_of(producer),
            producer,
            seq,
            observed_ns,
            LogEvent(
                timestamp_ns=timestamp_ns,
                level=level,
                name=logger_of(logger),
                message=message,
                **scope_of(scope)._asdict(),
                event_name=event_name,
                attributes=_decode_attributes(attributes) if attributes is not None else {},
                exception=_decode_exception(exception) if exception is not None else None,
                trace_id=trace_id,
                span_id=span_id,
                truncated_bytes=truncated_bytes,
            ),
        )
        for (
            producer,
            seq,
            timestamp_ns,
            observed_ns,
            level,
            logger,
            scope,
            message,
            attributes,
            exception,
            event_name,
            trace_id,
            span_id,
            truncated_bytes,
        ) in rows
    ]


def run_row(key: int | None, run: RunSummary) -> tuple[Any, ...]:
    """Return the row of a run, for `UPSERT_RUN`."""
    return (
        key,
        run.id,
        run.kind,
        run.name,
        run.parent_id,
        run.text("flow_run_id"),
        run.state,
        run.started_ns,
        run.lines,
        _encode(run.counts).decode(),
        run.first_line_ns,
        run.last_line_ns,
        _encode(run.facts).decode(),
        run.attempt,
        _encode(run.opened).decode() if run.opened is not None else None,
        _encode(run.verdict).decode() if run.verdict is not None else None,
    )


def run_of_row(row: tuple[Any, ...]) -> RunSummary:
    """Return the run in a row of `RUN_COLUMNS`."""
    run_id, kind, lines, counts, first_line_ns, last_line_ns, facts, attempt, opened, verdict = row
    return RunSummary(
        id=run_id,
        kind=kind,
        lines=lines,
        counts=msgspec.json.decode(counts),
        first_line_ns=first_line_ns,
        last_line_ns=last_line_ns,
        facts=_decode_facts(facts),
        attempt=attempt,
        opened=tuple(msgspec.json.decode(opened)) if opened is not None else None,
        verdict=Verdict(*msgspec.json.decode(verdict)) if verdict is not None else None,
    )
