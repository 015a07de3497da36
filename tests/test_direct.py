"""Calls that make no `LogRecord`: their events are those of the ordinary way, and whoever wants a record gets one."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import FlowRunContext, get_run_logger, redaction
from runlog.delivery import InMemoryTransport
from runlog.direct import DirectEncoder
from runlog.handlers import APILogHandler
from runlog.loggers import RunLogAdapter
from runlog.settings import temporary_settings

WAIT = 20.0
FIELDS = {
    "flow_run_id": "5a4b3c52-0f3c-4a3f-9f0f-7b6d1e2a3c4d",
    "flow_run_name": "sandy-egret",
    "flow_name": "etl",
}


class Seen(logging.Handler):
    """Keeps what it is given."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []

    def emit(self, record):
        self.records.append(record)


class Scene:
    """A run logger with one API handler, what arrives there, and how many calls made no record."""

    def __init__(self, fields=FIELDS, name="runlog.flow_runs.direct"):
        self.transport = InMemoryTransport()
        self.handler = APILogHandler(transport=self.transport)
        self.logger = logging.Logger(name)
        self.logger.setLevel(1)
        self.logger.addHandler(self.handler)
        self.log = RunLogAdapter(self.logger, fields)
        self.direct = 0
        self.log.info("the first record finds the worker")
        self.events()

    def events(self):
        """Return the events that arrived since the last call."""
        assert self.handler.flush(WAIT)
        before, self.transport.batches[:] = list(self.transport.batches), []
        return [msgspec.to_builtins(event) for batch in before for event in batch.events]

    def close(self):
        self.handler.close()


@pytest.fixture
def scene(count):
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def count(monkeypatch):
    """Count the calls that made no record."""
    counted = []
    encode = DirectEncoder.encode

    def counting(self, *args):
        event = encode(self, *args)
        counted.append(event is not None)
        return event

    monkeypatch.setattr(DirectEncoder, "encode", counting)
    return lambda: sum(counted)


# --- the same event ---


class Odd:
    """Has no text."""

    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class Fine:
    def __str__(self):
        return "fine"

    def __repr__(self):
        return "Fine()"


texts = st.text(max_size=20) | st.sampled_from(
    [
        "%s",
        "%d rows",
        "%(table)s",
        "100 %",
        "%s and %s",
        "\udc80",
        "password=hunter22",
        "é",
        "",
        "%",
        "%s\n%s",
    ]
)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.binary(max_size=5),
    st.builds(Odd),
    st.builds(Fine),
    st.dictionaries(texts, st.integers(), max_size=2),
    st.lists(st.integers(), max_size=2),
    st.tuples(st.integers()),
)
LOADED = [
    "attempt",
    "event_name",
    "message",
    "name",
    "args",
    "asctime",
    "taskName",
    "password",
    "send_to_api",
]
LOADED += ["code.line.number", "thread.name", "api_key", "task_run_id", "level", "own", "table", *FIELDS]
names = st.text(max_size=8) | st.sampled_from(LOADED)
extras = st.none() | st.dictionaries(names, values, max_size=3)
fields = st.fixed_dictionaries(
    {"flow_run_id": st.sampled_from(["a", "b"])},
    optional={
        "flow_run_name": texts,
        "task_run_id": st.sampled_from(["c", None]),
        "attempt": st.integers(0, 3),
        "own": values,
        "api_token": texts,
        "event_name": texts,
        "code.line.number": st.integers(),
    },
)
calls = st.tuples(
    st.sampled_from(["debug", "info", "warning", "error", "critical"]),
    texts | values,
    st.lists(values, max_size=3),
    extras,
    st.booleans(),
)


def make(log, call):
    """Make a call, always at this very line."""
    level, msg, args, extra, is_failing = call
    options = {} if extra is None else {"extra": dict(extra)}
    if is_failing:
        options["exc_info"] = ValueError("no")
    getattr(log, level)(msg, *args, **options)


@given(fields, st.lists(calls, min_size=1, max_size=5))
@pytest.mark.filterwarnings("ignore")
def test_the_event_is_that_of_the_ordinary_way(fields, calls):
    """Whatever is logged, with whatever extras, it makes no difference to what is stored."""
    scene = Scene(fields)
    try:
        for call in calls:
            make(scene.log, call)
        direct = scene.events()
        scene.logger.addFilter(lambda record: True)
        for call in calls:
            make(scene.log, call)
        ordinary = scene.events()
    finally:
        scene.close()
    for event in (*direct, *ordinary):
        del event["timestamp_ns"]
    assert direct == ordinary


def test_an_ordinary_call_makes_no_record(scene, count):
    """The point of it all: message, arguments and extras, from a function of the program's."""
    before = count()
    scene.log.info("loaded %d rows", 42, extra={"table": "orders", "password": "hunter22"})
    assert count() == before + 1
    (event,) = scene.events()
    assert event["message"] == "loaded 42 rows"
    assert event["attributes"]["table"] == "orders"
    assert event["attributes"]["password"] == "***"
    assert event["attributes"]["code.function.name"] == "test_an_ordinary_call_makes_no_record"


def test_each_thread_and_place_is_told(scene, count):
    """What is remembered of one thread or place is not another's."""
    other = threading.Thread(target=lambda: scene.log.info("there"), name="other")
    scene.log.info("here")
    other.start()
    other.join()
    threading.current_thread().name, before = "renamed", threading.current_thread().name
    try:
        scene.log.info("renamed")
    finally:
        threading.current_thread().name = before
    here, there, renamed = (event["attributes"] for event in scene.events())
    assert (here["thread.name"], there["thread.name"], renamed["thread.name"]) == (before, "other", "renamed")
    assert here["thread.id"] == renamed["thread.id"] != there["thread.id"]
    assert len({attributes["code.line.number"] for attributes in (here, there, renamed)}) == 3
    assert count() == 3


def test_a_secret_that_is_registered_later(scene, count, monkeypatch):
    """Also what was rendered before is masked from then on."""
    monkeypatch.setattr(redaction, "_values", ())
    monkeypatch.setattr(redaction, "_names", redaction._names)
    log = RunLogAdapter(scene.logger, {**FIELDS, "ssn": "123456789", "note": "tiger tiger"})
    log.info("a tiger")
    redaction.register_secret("tiger")
    redaction.register_sensitive_key("ssn")
    log.info("a tiger")
    first, second = scene.events()
    assert first["message"] == "a tiger"
    assert (second["message"], second["attributes"]["ssn"]) == ("a ***", "***")
    assert second["attributes"]["note"] == "*** ***"
    assert count() == 2


# --- whoever wants a record gets one ---


def test_a_handler_that_is_added_sees_the_next_line(scene, count):
    """On the logger or above it, from the call on that follows; and no more once it is removed."""
    seen, above = Seen(), Seen()
    scene.log.info("a")
    scene.logger.addHandler(seen)
    scene.log.info("b")
    parent = logging.Logger("parent")
    scene.logger.parent = parent
    parent.addHandler(above)
    scene.log.info("c")
    scene.logger.propagate = False
    scene.log.info("d")
    scene.logger.removeHandler(seen)
    scene.log.info("e")
    assert [record.getMessage() for record in seen.records] == ["b", "c", "d"]
    assert [record.getMessage() for record in above.records] == ["c"]
    assert [event["message"] for event in scene.events()] == ["a", "b", "c", "d", "e"]
    assert count() == 2


def test_a_handler_for_other_levels_costs_nothing(scene, count):
    """A handler that takes errors alone is asked for errors alone."""
    errors = Seen(logging.ERROR)
    scene.logger.addHandler(errors)
    scene.log.info("a")
    assert count() == 1
    scene.log.error("b")
    errors.setLevel(logging.INFO)
    scene.log.info("c")
    assert count() == 1
    assert [record.getMessage() for record in errors.records] == ["b", "c"]
    assert [event["message"] for event in scene.events()] == ["a", "b", "c"]


def _drop(record):
    return "keep" in record.getMessage()


def _patched(name):
    def look(scene, seen):
        real = getattr(logging.Logger, name)

        def patched(self, *args, **kwargs):
            seen.append(name)
            return real(self, *args, **kwargs)

        return mock.patch.object(logging.Logger, name, patched)

    return look


def _factory(scene, seen):
    def make(*args, **kwargs):
        seen.append(args)
        return logging.LogRecord(*args, **kwargs)

    return mock.patch.object(logging, "_logRecordFactory", make)


def _emit(scene, seen):
    return mock.patch.object(scene.handler, "emit", side_effect=seen.append)


def _class_emit(scene, seen):
    return mock.patch.object(APILogHandler, "emit", side_effect=seen.append)


@pytest.mark.parametrize(
    "look",
    [_factory, _emit, _class_emit, *map(_patched, ["callHandlers", "handle", "_log", "makeRecord"])],
)
def test_whoever_looks_at_records_sees_them(scene, count, look):
    """Ways in which tests and other libraries look: each counts from the next call on, and until it ends."""
    seen = []
    with look(scene, seen):
        scene.log.info("a")
        assert seen
    assert count() == 0
    scene.log.info("b")
    assert count() == 1


@pytest.mark.parametrize("where", ["logger", "handler"])
def test_filters_decide(scene, count, where):
    """A filter on the way lets pass what it wants."""
    getattr(scene, where).addFilter(_drop)
    scene.log.info("drop this")
    scene.log.info("keep this")
    assert [event["message"] for event in scene.events()] == ["keep this"]
    assert count() == 0


def test_levels_and_switches_decide(scene, count):
    """The handler's level, the logger's, that of all loggers, and the setting."""
    scene.handler.setLevel(logging.WARNING)
    scene.log.info("below the handler's level")
    scene.handler.setLevel(logging.NOTSET)
    scene.logger.setLevel(logging.ERROR)
    scene.log.warning("below the logger's level")
    scene.logger.setLevel(logging.INFO)
    scene.logger.disabled = True
    scene.log.critical("disabled")
    scene.logger.disabled = False
    with temporary_settings({"PREFECT_LOGGING_TO_API_ENABLED": "false"}):
        scene.log.critical("switched off")
    assert scene.events() == []
    scene.log.info("after all")
    assert [event["message"] for event in scene.events()] == ["after all"]


def test_loggers_of_another_class_and_adapters_of_another_kind(scene, count):
    """A program's own logger class, or adapter, may do anything: it does it."""

    class Loud(RunLogAdapter):
        def process(self, msg, kwargs):
            return super().process(msg.upper(), kwargs)

    class Own(logging.Logger):
        pass

    Loud(scene.logger, FIELDS).info("a")
    own = Own("own", logging.INFO)
    own.addHandler(scene.handler)
    RunLogAdapter(own, FIELDS).info("b")
    logging.LoggerAdapter(scene.log, {}).info("c")
    assert [event["message"] for event in scene.events()] == ["A", "b", "c"]
    assert count() == 0


def test_two_handlers_of_ours_both_get_it(scene):
    """With a second target, each line goes to both."""
    other = Scene()
    scene.logger.addHandler(other.handler)
    scene.log.info("a")
    assert [[event["message"] for event in found.events()] for found in (scene, other)] == [["a"], ["a"]]
    other.close()


def test_the_caller_is_told_on_every_way(scene):
    """Path, line and function are those of the call, with and without a record, and with a stacklevel."""

    def helper():
        scene.log.info("a", stacklevel=2)

    helper()
    scene.log.log(logging.INFO, "b")
    try:
        raise ValueError("no")
    except ValueError:
        scene.log.exception("c")
    with pytest.warns(DeprecationWarning, match="warn"):
        scene.log.warn("d")
    scene.log.info("e", exc_info=True)
    for event in scene.events():
        assert event["attributes"]["code.function.name"] == "test_the_caller_is_told_on_every_way"
        assert event["attributes"]["code.file.path"] == __file__


def test_in_an_event_loop(scene):
    """The name of the asyncio task is told where `logging` tells it; the line is there in any case."""

    async def main():
        scene.log.info("a")

    asyncio.run(main())
    assert [event["message"] for event in scene.events()] == ["a"]


def test_the_run_logger_of_a_context(count):
    """It is what `get_run_logger` returns that is fast."""
    transport = InMemoryTransport()
    handler = APILogHandler(transport=transport)
    logger = logging.getLogger("runlog.flow_runs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with FlowRunContext(flow_run=SimpleNamespace(id="a", name="b"), flow=SimpleNamespace(name="c")):
            get_run_logger().info("first")
            get_run_logger().info("second")
            assert handler.flush(WAIT)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        handler.close()
    assert transport.messages == ["first", "second"]
    assert count() == 1
