"""
What a log event is, in memory and on the wire.

`runlog.handlers` turns a `logging.LogRecord` into a `LogEvent` in the calling
thread, `runlog.delivery` sends encoded events as an `EventBatch`, and
`runlog.server` decodes the batch: this module is all that the two sides share.

An event's identity is ``(producer, seq)``. A producer is one incarnation of one
process, ``seq`` counts its events from 0 without a hole, and neither is written
into the event: a batch names its producer and its first seq, and an event's
place in the batch gives the rest.
"""

from __future__ import annotations

import functools
import logging
import secrets
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from runlog._fields import RUN_FIELDS
from runlog.redaction import is_sensitive_key, redact_text, redact_value
from runlog.rendering import clean_text, format_exception, normalise, render_message, safe_str

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PRODUCER_BITS = 80
"""Random bits of a producer's id: a thousand million producers collide with a chance of 4e-7."""

SEQ_BITS = 42
"""Bits of a seq: 4.4e12 events from one process."""

TRUNCATION_MARK = "... [truncated]"
"""Ends a text that was cut; the event's ``truncated_bytes`` says by how much."""


class ExceptionInfo(msgspec.Struct, frozen=True):
    """An exception as text, rendered where it was logged."""

    type: str
    """Qualified name of the class, without ``builtins.``."""
    message: str
    traceback: str
    """What `traceback.format_exception` prints, causes and contexts included."""


# Events hold JSON values and so no cycles: the collector need not look at the thousands of a batch.
class LogEvent(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """
    One log record, rendered: no argument or object of the program is left in it.

    Ids are text as the program gave them; an unknown name is ``"<unknown>"``.
    """

    timestamp_ns: int
    """When it happened, in nanoseconds since the epoch, UTC. Resolution of `logging`: about 1 µs."""
    level: int
    """The number that `logging` uses: 10 to 50, or a custom one."""
    name: str
    """Name of the logger."""
    message: str
    flow_run_id: str | None = None
    flow_run_name: str | None = None
    flow_name: str | None = None
    task_run_id: str | None = None
    task_run_name: str | None = None
    task_name: str | None = None
    parent_flow_run_id: str | None = None
    """The flow run in which this event's flow run was opened."""
    parent_task_run_id: str | None = None
    """The task run in which this event's innermost run was opened."""
    attempt: int | None = None
    """Which try of a task run this is, from 1."""
    event_name: str | None = None
    """OpenTelemetry's name for a kind of event, such as ``runlog.run.started``; `None` for ordinary lines."""
    attributes: dict[str, Any] = {}
    """Extras and OpenTelemetry attributes such as ``code.line.number``; values are JSON."""
    exception: ExceptionInfo | None = None
    trace_id: str | None = None
    """32 lower-case hex digits of the active OpenTelemetry span."""
    span_id: str | None = None
    """16 lower-case hex digits."""
    truncated_bytes: int = 0
    """How many bytes of UTF-8 were cut from message, exception and attributes."""


class DropMarker(msgspec.Struct, frozen=True):
    """Stands in a batch where events were dropped, so that the sequence stays dense and the loss is told."""

    seq: int
    """The first seq that was dropped."""
    count: int
    """How many were, at least 1."""
    reason: str
    """``queue_full``, ``spool_full``, ``rejected``, ``closed``, ``acknowledged_elsewhere``."""


class EventBatch(msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    A contiguous range of one producer's events, the body of ``POST /api/runlog/v1/batches``.

    The range starts at ``first_seq``; an event takes the next seq that no
    marker covers. Use `decode_batch`, which checks that the two fit together.
    """

    producer: str
    """20 lower-case hex digits."""
    first_seq: int
    events: list[LogEvent]
    dropped: list[DropMarker] = []
    """In ascending order, without overlap."""
    resource: dict[str, Any] = {}
    """OpenTelemetry resource attributes of the process, such as ``service.name``."""
    closing: bool = False
    """
    Whether the producer says goodbye: as far as it knows, no event follows.

    A batch that only says so has no events. One that follows all the same takes it back.
    """

    @property
    def last_seq(self) -> int:
        """The last seq of the range; ``first_seq - 1`` if the batch is empty."""
        return self.first_seq + len(self.events) + sum(marker.count for marker in self.dropped) - 1

    def numbered(self) -> Iterator[tuple[int, LogEvent]]:
        """Yield each event with its seq, in order."""
        seq = self.first_seq
        markers = iter(self.dropped)
        marker = next(markers, None)
        for event in self.events:
            while marker is not None and marker.seq == seq:
                seq += marker.count
                marker = next(markers, None)
            yield seq, event
            seq += 1


class BatchAnswer(msgspec.Struct, frozen=True):
    """What the server says once a batch is committed; nothing else counts as success."""

    acked: int
    """Every event of the producer up to this seq is stored."""


# --- identity -----------------------------------------------------------------------------------------


def new_producer_id() -> str:
    """Return a random producer id, 20 lower-case hex digits. Safe after a fork: the kernel is asked."""
    return secrets.token_hex(PRODUCER_BITS // 8)


def event_id(producer: str, seq: int) -> uuid.UUID:
    """
    Return the id of an event: a UUIDv8 (:rfc:`9562`, 5.8) made of producer and seq.

    Args:
        producer: 20 hex digits.
        seq: From 0, below ``2**42``.
    """
    bits = (int(producer, 16) << SEQ_BITS) | seq
    high, middle, low = bits >> 74, (bits >> 62) & 0xFFF, bits & ((1 << 62) - 1)
    return uuid.UUID(int=(high << 80) | (0x8 << 76) | (middle << 64) | (0b10 << 62) | low)


def parse_event_id(value: uuid.UUID) -> tuple[str, int]:
    """
    Return the producer and the seq of an id made by `event_id`.

    Raises:
        ValueError: If it is a UUID of another version.
    """
    if value.version != 8:
        raise ValueError(f"{value} is not an event id: expected a UUID of version 8, got {value.version}")
    number = value.int
    bits = ((number >> 80) << 74) | (((number >> 64) & 0xFFF) << 62) | (number & ((1 << 62) - 1))
    return f"{bits >> SEQ_BITS:020x}", bits & ((1 << SEQ_BITS) - 1)


# --- levels and time ----------------------------------------------------------------------------------

_SEVERITIES = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5))


def severity_number(level: int) -> int:
    """Return OpenTelemetry's severity number, 1 to 21; a level between two is rounded down."""
    for floor, number in _SEVERITIES:
        if level >= floor:
            return number
    return 1


def level_name(level: int) -> str:
    """Return the name that `logging` has for a level, such as ``WARNING`` or ``Level 25``."""
    return logging.getLevelName(level)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_timestamp(timestamp_ns: int) -> str:
    """
    Return :rfc:`3339` text with microseconds, such as ``2026-11-21T10:53:37.123456Z``.

    A time outside the years 1 to 9999 becomes the nearest that text can hold.
    """
    seconds, microseconds = divmod(timestamp_ns // 1000, 1_000_000)
    try:
        return f"{_format_second(seconds)}.{microseconds:06d}Z"
    except OverflowError:
        return "9999-12-31T23:59:59.999999Z" if timestamp_ns > 0 else "0001-01-01T00:00:00.000000Z"


@functools.lru_cache(maxsize=1024)
def _format_second(seconds: int) -> str:
    """Return a time without its fraction: lines that are read together have few different ones."""
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00")


# --- decoding -----------------------------------------------------------------------------------------

_batch_decoder = msgspec.json.Decoder(EventBatch)


def decode_batch(body: bytes) -> EventBatch:
    """
    Return the batch in a request body.

    Raises:
        ValueError: If it is not one, with one line that says where and why.
    """
    try:
        batch = _batch_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a batch of events: {error}") from error
    _check_batch(batch)
    return batch


def _check_batch(batch: EventBatch) -> None:
    producer = batch.producer
    if len(producer) != PRODUCER_BITS // 4 or set(producer) - set("0123456789abcdef"):
        raise ValueError(
            f"producer must be {PRODUCER_BITS // 4} lower-case hex digits, got {producer[:40]!r}"
        )
    if batch.first_seq < 0:
        raise ValueError(f"first_seq must be >= 0, got {batch.first_seq}")
    free_from = batch.first_seq
    for marker in batch.dropped:
        if marker.count < 1:
            raise ValueError(f"a drop marker's count must be >= 1, got {marker.count}")
        if marker.seq < free_from:
            raise ValueError(
                f"drop markers must ascend from first_seq; seq {marker.seq} is below {free_from}"
            )
        free_from = marker.seq + marker.count
    last_seq = batch.last_seq
    if batch.dropped and free_from - 1 > last_seq:
        raise ValueError(f"a drop marker reaches seq {free_from - 1}, the batch ends at seq {last_seq}")
    if last_seq >= 1 << SEQ_BITS:
        raise ValueError(f"seq must be below {1 << SEQ_BITS}, got {last_seq}")


# --- from a record to an event ------------------------------------------------------------------------

_STANDARD_KEYS = tuple(logging.makeLogRecord({}).__dict__)
"""What `logging` puts on every record, in its order; extras come after it."""

_STANDARD_COUNT = len(_STANDARD_KEYS)
_LAST_STANDARD_KEY = _STANDARD_KEYS[-1]

_NOT_ATTRIBUTES = frozenset(
    {*_STANDARD_KEYS, "message", "asctime", "taskName", "send_to_api", "send_to_orion"}
)
"""What a record has besides its extras; formatters add two of them."""

_EVENT_FIELDS = frozenset({*RUN_FIELDS, "event_name"})
"""Extras that are fields of `LogEvent`."""

_INT64 = range(-(2**63), 2**63)


def event_from_record(record: logging.LogRecord, run_fields: Mapping[str, Any]) -> LogEvent:
    """
    Render a record into an event. Runs in the caller, where its arguments still have their values.

    Whatever the record holds, an event comes back: what cannot be rendered is
    replaced by a placeholder. Secrets are redacted here, before anything is
    queued or written. The record is not changed.

    Args:
        record: Any record; its extras and run fields are its attributes.
        run_fields: Fields of the active run, for a record that has none of its
            own: those of `RUN_FIELDS` and the extras of the run.
    """
    own = record.__dict__
    message, format_error = render_message(record)
    attributes: dict[str, Any] = {
        "code.file.path": record.pathname,
        "code.function.name": record.funcName,
        "code.line.number": record.lineno,
        "thread.name": record.threadName,
        "thread.id": record.thread,
        "process.pid": record.process,
    }
    event = LogEvent(
        timestamp_ns=round(record.created * 1_000_000) * 1000,
        level=record.levelno,
        name=record.name,
        message=redact_text(message),
        attributes=attributes,
    )
    keys = list(own)
    if len(keys) >= _STANDARD_COUNT and keys[_STANDARD_COUNT - 1] == _LAST_STANDARD_KEY:
        # No look at the twenty-odd keys that every record begins with.
        del keys[:_STANDARD_COUNT]
    if run_fields and own.get("flow_run_id") is None and own.get("task_run_id") is None:
        for key, value in run_fields.items():
            _add(event, attributes, key, value)
    for key in keys:
        value = own[key]
        if key not in _EVENT_FIELDS:
            _add(event, attributes, key, value)
        elif type(value) is str and key != "attempt":
            setattr(event, key, value)  # what a run's adapter puts on each record, without a call for each
        elif value is not None:
            _add(event, attributes, key, value)
    task_name = own.get("taskName")
    if task_name is not None:
        attributes["asyncio.task.name"] = task_name
    if format_error is not None:
        attributes["format_error"] = redact_text(format_error)
    if record.exc_info:
        kind, text, trace = format_exception(record.exc_info)
        if kind:  # (None, None, None) is what sys.exc_info() has where nothing is handled
            event.exception = ExceptionInfo(kind, redact_text(text), redact_text(trace))
    elif record.exc_text:
        event.exception = ExceptionInfo("", "", redact_text(clean_text(record.exc_text)))
    if record.stack_info:
        attributes["code.stacktrace"] = redact_text(clean_text(str(record.stack_info)))
    if "opentelemetry.trace" in sys.modules:
        event.trace_id, event.span_id = _active_span()
    return event


def is_plain_extra(name: str) -> bool:
    """Return whether an extra of this name is an attribute and nothing else."""
    return name not in _EVENT_FIELDS and name not in _NOT_ATTRIBUTES


def _add(event: LogEvent, attributes: dict[str, Any], key: Any, value: Any) -> None:
    """Put one extra where it belongs: into a field of the event, or into its attributes."""
    if key in _EVENT_FIELDS:
        if key == "attempt":
            value = value if type(value) is int and value in _INT64 else None
        elif value is not None and type(value) is not str:
            value = safe_str(value)
        setattr(event, key, value)
    elif key not in _NOT_ATTRIBUTES:
        name = key if type(key) is str else safe_str(key)
        attributes[name] = attribute_value(name, value)


def attribute_value(name: str, value: Any) -> Any:
    """Return an extra as JSON knows it, without secrets."""
    if is_sensitive_key(name):
        return "***"
    kind = type(value)
    if kind is str:
        return redact_text(value)
    if value is None or kind is bool or (kind is int and value in _INT64):
        return value
    return redact_value(normalise(value))


def _active_span() -> tuple[str | None, str | None]:
    """Ids of the active OpenTelemetry span, of a program that has loaded OpenTelemetry."""
    try:
        context = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    except Exception:  # noqa: S110 - another library's trouble costs the ids, never the line
        pass
    return None, None


# --- encoding -----------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


def encode_event(event: LogEvent, max_bytes: int) -> bytes:
    """
    Return an event as one JSON object in UTF-8, at most *max_bytes* long.

    An event that is longer is cut, never refused: first its large attributes,
    then its traceback (from the front: the last lines name the fault), then its
    message, each on a character boundary and marked; ``truncated_bytes`` says
    how much is missing.

    Args:
        event: Not changed.
        max_bytes: At least 4096.
    """
    try:
        encoded = _encode(event)
    except Exception:
        # Lone surrogates, or a subclass's `prepare` that put unusual values in: clean everything once.
        event = _clean(event)
        encoded = _encode(event)
    if len(encoded) <= max_bytes:
        return encoded
    return _encode_cut(event, max_bytes)


def shorten_encoded(encoded: bytes, max_bytes: int) -> bytes:
    """
    Return an event that `encode_event` made, cut to *max_bytes*.

    Args:
        encoded: One JSON object in UTF-8.
        max_bytes: At least 4096.
    """
    return encode_event(msgspec.json.decode(encoded, type=LogEvent), max_bytes)


def _clean(event: LogEvent) -> LogEvent:
    values = {
        name: normalise(getattr(event, name)) for name in LogEvent.__struct_fields__ if name != "exception"
    }
    for name in ("name", "message"):
        values[name] = str(values[name])
    if not isinstance(values["attributes"], dict):
        values["attributes"] = {"attributes": values["attributes"]}
    error = event.exception
    if error is not None:
        error = ExceptionInfo(clean_text(error.type), clean_text(error.message), clean_text(error.traceback))
    return LogEvent(**values, exception=error)


def _encode_cut(event: LogEvent, max_bytes: int) -> bytes:
    cut = event.truncated_bytes
    attributes = {}
    for key, value in event.attributes.items():
        # A sixteenth each, so that one huge value does not cost the message its room.
        short_key, lost = _cut_text(key, 256)
        cut += lost
        if len(_encode(value)) > max_bytes // 16:
            text = value if isinstance(value, str) else _encode(value).decode()
            value, lost = _cut_text(text, max_bytes // 16)  # noqa: PLW2901 - the cut value takes its place
            cut += lost
        attributes[short_key] = value
    if len(_encode(attributes)) > max_bytes // 4:
        cut += len(_encode(attributes))
        attributes = {"truncated": True}
    error = event.exception
    if error is not None:
        trace, lost = _cut_text(error.traceback, max_bytes // 4, keep_end=True)
        text, lost_text = _cut_text(error.message, max_bytes // 16)
        cut += lost + lost_text
        error = ExceptionInfo(_cut_text(error.type, 256)[0], text, trace)
    changes: dict[str, Any] = {"attributes": attributes, "exception": error}
    for name in ("name", *RUN_FIELDS, "event_name"):
        value = getattr(event, name)
        if isinstance(value, str):
            changes[name], lost = _cut_text(value, max_bytes // 64)
            cut += lost
    # JSON may need six bytes for one (control characters), so the message's share is found by trial.
    budget = max_bytes
    while True:
        message, lost = _cut_text(event.message, budget)
        shorter = msgspec.structs.replace(event, message=message, truncated_bytes=cut + lost, **changes)
        encoded = _encode(shorter)
        if len(encoded) <= max_bytes:
            return encoded
        budget = min(
            budget // 2 if budget < len(encoded) - max_bytes else budget - (len(encoded) - max_bytes),
            budget - 1,
        )


def _cut_text(text: str, max_bytes: int, *, keep_end: bool = False) -> tuple[str, int]:
    """Return *text* within *max_bytes* of UTF-8, mark included, and how many of its bytes are gone."""
    data = text.encode()
    if len(data) <= max_bytes:
        return text, 0
    keep = max(max_bytes - len(TRUNCATION_MARK), 0)
    if keep_end:
        kept = data[len(data) - keep :].decode(errors="ignore")
        return TRUNCATION_MARK + "\n" + kept.partition("\n")[2], len(data) - len(
            kept.partition("\n")[2].encode()
        )
    kept = data[:keep].decode(errors="ignore")
    return kept + TRUNCATION_MARK, len(data) - len(kept.encode())


@functools.lru_cache(maxsize=1)
def process_resource() -> dict[str, Any]:
    """Return OpenTelemetry resource attributes of this machine and of runlog; cached, not to be changed."""
    import socket  # noqa: PLC0415 - once a process, and 5 ms for whoever never sends

    from runlog._version import __version__  # noqa: PLC0415 - beside its only use

    return {
        "host.name": socket.gethostname(),
        "telemetry.sdk.name": "runlog",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
