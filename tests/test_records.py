"""What an event is: identity, wire form, and how any record at all becomes one."""

from __future__ import annotations

import json
import logging
import sys
import types
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import records
from runlog.records import (
    DropMarker,
    EventBatch,
    ExceptionInfo,
    LogEvent,
    decode_batch,
    encode_event,
    event_from_record,
    event_id,
    format_timestamp,
    level_name,
    new_producer_id,
    parse_event_id,
    severity_number,
)

PRODUCER = "0123456789abcdef0123"
LIMIT = 1_000_000


def make_record(msg="hello", args=(), *, level=logging.INFO, name="app", exc_info=None, **extra):
    record = logging.LogRecord(name, level, "/app/main.py", 7, msg, args, exc_info, func="work")
    record.__dict__.update(extra)
    return record


def through_the_wire(event, limit=LIMIT):
    """The event as the server sees it."""
    return msgspec.json.decode(encode_event(event, limit), type=LogEvent)


# --- identity ---


@given(st.integers(0, 2**80 - 1), st.integers(0, 2**42 - 1))
def test_an_event_id_is_made_of_producer_and_seq(producer, seq):
    """An id is a UUIDv8 that can be taken apart again, so that no other id needs to be stored."""
    made = event_id(f"{producer:020x}", seq)
    assert made.version == 8
    assert made.variant == uuid.RFC_4122
    assert parse_event_id(made) == (f"{producer:020x}", seq)


def test_ids_of_one_producer_ascend():
    """Ids sort like seqs."""
    ids = [event_id(PRODUCER, seq) for seq in range(1000)]
    assert ids == sorted(ids)


def test_foreign_ids_are_refused():
    """A UUID that runlog did not make is not an event id."""
    with pytest.raises(ValueError, match="expected a UUID of version 8, got 4"):
        parse_event_id(uuid.uuid4())


def test_producer_ids():
    """A producer id is 20 hex digits, a new one each time."""
    ids = {new_producer_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 20 and int(one, 16) >= 0 for one in ids)


# --- levels and time ---


@pytest.mark.parametrize(
    ("level", "number"),
    [(0, 1), (5, 1), (10, 5), (15, 5), (20, 9), (25, 9), (30, 13), (40, 17), (50, 21), (1000, 21), (-3, 1)],
)
def test_severity_numbers(level, number):
    """Levels map to OpenTelemetry's numbers, those between two rounded down."""
    assert severity_number(level) == number


def test_level_names():
    """Names are those of `logging`."""
    assert [level_name(30), level_name(25)] == ["WARNING", "Level 25"]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_795_258_417_123_456_789, "2026-11-21T10:53:37.123456Z"),
        (-1_000_000_000, "1969-12-31T23:59:59.000000Z"),
        (10**30, "9999-12-31T23:59:59.999999Z"),
        (-(10**30), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_timestamps(ns, text):
    """Times are RFC 3339 with microseconds; what no text can hold becomes the nearest that it can."""
    assert format_timestamp(ns) == text


# --- batches ---


def batch_json(**changes):
    event = {"timestamp_ns": 1, "level": 20, "name": "n", "message": "m"}
    return json.dumps({"producer": PRODUCER, "first_seq": 0, "events": [event, event]} | changes).encode()


def test_decode_batch():
    """Events are numbered from the first seq, around the markers."""
    batch = decode_batch(
        batch_json(
            first_seq=5,
            dropped=[
                {"seq": 5, "count": 2, "reason": "queue_full"},
                {"seq": 8, "count": 1, "reason": "closed"},
            ],
        )
    )
    assert [seq for seq, _ in batch.numbered()] == [7, 9]
    assert batch.last_seq == 9


def test_an_empty_batch():
    """A batch may have no events; its last seq lies before its first."""
    batch = decode_batch(batch_json(events=[]))
    assert list(batch.numbered()) == []
    assert batch.last_seq == -1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"producer": "xyz"}, "producer must be 20 lower-case hex digits, got 'xyz'"),
        ({"producer": PRODUCER.upper()}, "producer must be 20 lower-case hex digits"),
        ({"first_seq": -1}, "first_seq must be >= 0, got -1"),
        ({"first_seq": 2**42}, "seq must be below"),
        ({"first_seq": "0"}, r"not a batch of events: Expected `int`, got `str` - at `\$.first_seq`"),
        ({"events": 3}, "not a batch of events"),
        ({"dropped": [{"seq": 0, "count": 0, "reason": ""}]}, "count must be >= 1, got 0"),
        (
            {"first_seq": 4, "dropped": [{"seq": 3, "count": 1, "reason": ""}]},
            "drop markers must ascend from first_seq; seq 3 is below 4",
        ),
        (
            {"dropped": [{"seq": 0, "count": 2, "reason": ""}, {"seq": 1, "count": 1, "reason": ""}]},
            "seq 1 is below 2",
        ),
        ({"dropped": [{"seq": 9, "count": 1, "reason": ""}]}, "reaches seq 9, the batch ends at seq 2"),
    ],
)
def test_batches_that_are_none(changes, text):
    """A body that is not a batch is refused with one line that says where and why."""
    with pytest.raises(ValueError, match=text) as caught:
        decode_batch(batch_json(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_none(body):
    """Whatever comes instead of JSON is a `ValueError`."""
    with pytest.raises(ValueError, match="not a batch of events"):
        decode_batch(body)


@given(st.lists(st.one_of(st.none(), st.integers(1, 3)), max_size=12), st.integers(0, 100))
def test_numbering_against_a_model(items, first_seq):
    """Events take, in order, the seqs that no marker covers."""
    events, dropped, expected = [], [], []
    seq = first_seq
    for item in items:
        if item is None:
            events.append(LogEvent(timestamp_ns=0, level=20, name="n", message=str(seq)))
            expected.append(seq)
            seq += 1
        else:
            dropped.append(DropMarker(seq, item, "x"))
            seq += item
    batch = EventBatch(producer=PRODUCER, first_seq=first_seq, events=events, dropped=dropped)
    again = decode_batch(msgspec.json.encode(batch))
    assert [number for number, _ in again.numbered()] == expected
    assert all(event.message == str(number) for number, event in again.numbered())
    assert again.last_seq == seq - 1


# --- from a record to an event ---


def test_an_ordinary_line():
    """A record's own facts arrive under their OpenTelemetry names, its extras under their own."""
    event = through_the_wire(
        event_from_record(make_record("loaded %d rows", (42,), table="orders", rows=42), {})
    )
    assert event.message == "loaded 42 rows"
    assert (event.level, event.name) == (20, "app")
    assert event.attributes["code.file.path"] == "/app/main.py"
    assert event.attributes["code.line.number"] == 7
    assert event.attributes["code.function.name"] == "work"
    assert event.attributes["thread.name"] == "MainThread"
    assert isinstance(event.attributes["process.pid"], int)
    assert (event.attributes["table"], event.attributes["rows"]) == ("orders", 42)
    assert event.exception is None
    assert event.truncated_bytes == 0


def test_the_record_is_not_changed():
    """Other handlers see the record as it was."""
    record = make_record("%s", ("x",), extra_list=[1, 2])
    before = dict(record.__dict__)
    encode_event(event_from_record(record, {"flow_run_id": "f"}), LIMIT)
    assert record.__dict__ == before


def test_time_is_kept_to_the_microsecond():
    """The event has the record's time, to the microsecond that `logging` can tell."""
    record = make_record()
    record.created = 1795258417.123456
    assert event_from_record(record, {}).timestamp_ns == 1_795_258_417_123_456_000


RUN = {
    "flow_run_id": "f1",
    "flow_run_name": "brave-otter",
    "flow_name": "etl",
    "task_run_id": "t1",
    "task_run_name": "load-1",
    "task_name": "load",
    "parent_flow_run_id": "f0",
    "parent_task_run_id": "t0",
    "attempt": 2,
}


def test_run_fields_of_the_record_win():
    """A record that an adapter labelled belongs to that run, whatever run is active."""
    event = event_from_record(make_record(**RUN), {"flow_run_id": "other", "note": "not ours"})
    assert {name: getattr(event, name) for name in RUN} == RUN
    assert "note" not in event.attributes


def test_run_fields_of_the_context_serve_the_rest():
    """A plain logger's record belongs to the active run and carries that run's extras."""
    event = event_from_record(make_record(color="red"), RUN | {"source": "s3", "color": "blue"})
    assert {name: getattr(event, name) for name in RUN} == RUN
    assert (event.attributes["source"], event.attributes["color"]) == ("s3", "red")


def test_empty_run_fields_of_the_record_give_way():
    """A record that names no run, though it has the attributes, belongs to the active one."""
    event = event_from_record(make_record(flow_run_id=None, task_run_id=None), RUN)
    assert (event.flow_run_id, event.task_run_id) == ("f1", "t1")


def test_ids_that_are_not_text():
    """Ids may be UUIDs; an attempt that is no number is left out."""
    run = uuid.uuid4()
    event = event_from_record(make_record(flow_run_id=run, attempt="2", event_name="e"), {})
    assert (event.flow_run_id, event.attempt, event.event_name) == (str(run), None, "e")
    assert event_from_record(make_record(flow_run_id=7), {}).flow_run_id == "7"


def test_an_exception_is_rendered():
    """An exception arrives as type, message and traceback."""
    try:
        raise KeyError("order 7")
    except KeyError:
        event = through_the_wire(event_from_record(make_record(exc_info=sys.exc_info()), {}))
    assert event.exception.type == "KeyError"
    assert event.exception.message == "'order 7'"
    assert event.exception.traceback.startswith("Traceback (most recent call last):")


def test_a_rendered_exception_and_a_stack():
    """Text that another formatter or process left on the record is kept."""
    event = event_from_record(make_record(exc_text="Traceback: ...", stack_info="Stack: ..."), {})
    assert event.exception == ExceptionInfo("", "", "Traceback: ...")
    assert event.attributes["code.stacktrace"] == "Stack: ..."


def test_wrong_arguments_keep_the_line():
    """Arguments that do not fit the template cost neither."""
    event = event_from_record(make_record("%d rows of %s", ("many",)), {})
    assert "%d rows of %s" in event.message
    assert "'many'" in event.message
    assert event.attributes["format_error"]


def test_asyncio_task_name():
    """The asyncio task is named where `logging` knows it."""
    assert event_from_record(make_record(taskName="Task-3"), {}).attributes["asyncio.task.name"] == "Task-3"
    assert "asyncio.task.name" not in event_from_record(make_record(taskName=None), {}).attributes


def test_secrets_are_redacted_everywhere():
    """Message, extras, traceback and stack are redacted before anything leaves this function."""
    token = "ghp_" + "a1B2" * 9
    try:
        raise ValueError(token)
    except ValueError:
        record = make_record(
            f"token {token}", exc_info=sys.exc_info(), password="hunter2", note=token, nested=[token]
        )
    record.stack_info = token
    encoded = encode_event(event_from_record(record, {}), LIMIT)
    assert token.encode() not in encoded
    assert b"hunter2" not in encoded


class Span:
    def __init__(self, *, valid=True):
        self.is_valid = valid
        self.trace_id, self.span_id = 0xABC, 0xDEF

    def get_span_context(self):
        return self


@pytest.mark.parametrize(
    ("span", "ids"),
    [
        (Span(), ("0" * 29 + "abc", "0" * 13 + "def")),
        (Span(valid=False), (None, None)),
        (None, (None, None)),
    ],
)
def test_the_active_span(monkeypatch, span, ids):
    """The ids of an active OpenTelemetry span are taken, and trouble in that library costs only them."""
    fake = types.SimpleNamespace(get_current_span=lambda: span)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", fake)
    event = event_from_record(make_record(), {})
    assert (event.trace_id, event.span_id) == ids


class Hostile:
    """Every way in which an object can refuse to be rendered."""

    def __init__(self, error=ValueError):
        self.error = error

    def __str__(self):
        raise self.error("str")

    def __repr__(self):
        raise self.error("repr")

    def __eq__(self, other):
        raise self.error("eq")

    def __hash__(self):
        raise self.error("hash")

    def __len__(self):
        raise self.error("len")

    def __iter__(self):
        raise self.error("iter")


circular = []
circular.append(circular)
deep = []
for _ in range(100_000):
    deep = [deep]

hostile_values = st.one_of(
    st.builds(Hostile, st.sampled_from([ValueError, RecursionError])),
    st.sampled_from(
        [
            circular,
            deep,
            float("nan"),
            float("inf"),
            10**5000,
            -(2**63) - 1,
            2**64,
            b"\xff\x00",
            "\ud800",
            {1: 2, (3, 4): 5, None: 6, Hostile.__init__: 7},
            {"\udfff": "\ud800"},
            {str(i): i for i in range(1000)},
            object(),
            types,
            "x" * 100_000,
            "\x1b[31m\r\n\x00",
        ]
    ),
    st.text(),
    st.integers(),
    st.floats(),
    st.binary(),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
            st.sets(st.text()),
        ),
        max_leaves=10,
    ),
)
surrogates = st.text(st.characters(exclude_categories=()), max_size=40)


@given(
    msg=st.one_of(surrogates, hostile_values),
    args=st.one_of(st.just(()), st.tuples(hostile_values), st.tuples(hostile_values, hostile_values)),
    extra=st.dictionaries(surrogates, hostile_values, max_size=4),
    fields=st.dictionaries(st.sampled_from(records.RUN_FIELDS), hostile_values, max_size=4),
)
def test_any_record_becomes_an_event(msg, args, extra, fields):
    """Whatever a log call is given, an event comes out that the server can decode, within its limit."""
    record = make_record(msg)
    record.args = args
    for key, value in extra.items():
        record.__dict__.setdefault(key, value)
    encoded = encode_event(event_from_record(record, fields), 20_000)
    assert len(encoded) <= 20_000
    decoded = msgspec.json.decode(encoded, type=LogEvent)
    json.loads(encoded)
    if (
        isinstance(msg, str)
        and not args
        and len(msg) < 1000
        and not any(0xD800 <= ord(c) < 0xE000 for c in msg)
    ):
        assert decoded.message == msg


# --- cutting ---


@pytest.mark.parametrize("character", ["x", "é", "語", "🦦", "\x01"])
def test_a_long_message_is_cut_on_a_character(character):
    """A message over the limit is cut within it, on a character boundary, marked, and the loss is exact."""
    message = character * 60_000
    event = through_the_wire(LogEvent(timestamp_ns=0, level=20, name="n", message=message), 50_000)
    kept = event.message.removesuffix(records.TRUNCATION_MARK)
    assert kept != event.message
    assert kept
    assert set(kept) == {character}
    assert event.truncated_bytes == len(message.encode()) - len(kept.encode())
    assert len(encode_event(LogEvent(timestamp_ns=0, level=20, name="n", message=message), 50_000)) <= 50_000


def test_a_cut_keeps_what_matters():
    """Huge attributes go first, of a traceback the end stays, and the message keeps its room."""
    event = LogEvent(
        timestamp_ns=0,
        level=20,
        name="n",
        message="m" * 1000,
        attributes={"small": 1, "blob": "b" * 50_000, "list": ["x" * 100] * 1000, "k" * 1000: 1},
        exception=ExceptionInfo("E", "e" * 50_000, "line\n" * 20_000 + "ValueError: the end"),
        flow_run_name="f" * 50_000,
    )
    cut = through_the_wire(event, 20_000)
    assert cut.message == "m" * 1000
    assert cut.attributes["small"] == 1
    assert cut.exception.traceback.startswith(records.TRUNCATION_MARK + "\nline\n")
    assert cut.exception.traceback.endswith("ValueError: the end")
    assert cut.truncated_bytes > 200_000


def test_too_many_attributes():
    """Attributes that are too many, rather than too large, give way as a whole, and the line says so."""
    many = {f"key {i}": "x" * 50 for i in range(1000)}
    cut = through_the_wire(LogEvent(timestamp_ns=0, level=20, name="n", message="m", attributes=many), 10_000)
    assert cut.attributes == {"truncated": True}
    assert cut.truncated_bytes > 50_000


def test_unusual_values_of_a_subclass():
    """A `prepare` that puts anything into an event still gives one that can be sent."""
    event = LogEvent(timestamp_ns=0, level=20, name="\ud800", message=5, attributes=[1])
    event.exception = ExceptionInfo("E", "\ud800", "\ud800")
    event.trace_id = object()
    assert json.loads(encode_event(event, LIMIT))["message"] == "5"


def test_the_resource_is_cached():
    """What describes the machine is found out once."""
    resource = records.process_resource()
    assert resource["telemetry.sdk.name"] == "runlog"
    assert records.process_resource() is resource
