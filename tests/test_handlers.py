"""The handler: which records go, where to, and what a log call never does."""

from __future__ import annotations

import logging
import logging.config
import threading
import warnings

import pytest

from runlog import delivery
from runlog._http import Client, MockTransport, Response
from runlog.context import FlowRunContext, TaskRunContext
from runlog.delivery import InMemoryTransport
from runlog.exceptions import MissingContextError
from runlog.handlers import APILogHandler
from runlog.settings import temporary_settings

WAIT = 20.0


@pytest.fixture(autouse=True)
def no_workers_of_other_tests(monkeypatch):
    """Workers whose server never came are kept to the end of the program; here they end with the test."""
    monkeypatch.setattr("runlog.delivery.lifecycle._workers", set())


class Entity:
    def __init__(self, id, name):
        self.id, self.name = id, name


@pytest.fixture
def memory():
    return InMemoryTransport()


@pytest.fixture
def make_logger(request):
    """A logger with an API handler; both are gone after the test."""
    made = []

    def make(*, name=None, handler_class=APILogHandler, **kwargs):
        logger = logging.getLogger(name or f"test.{request.node.name}")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        handler = handler_class(**kwargs)
        logger.addHandler(handler)
        made.append((logger, handler))
        return logger

    yield make
    for logger, handler in made:
        logger.removeHandler(handler)
        handler.close()


def flow_run(id="f1", name="brave-otter"):
    return FlowRunContext(Entity(id, name), Entity("flow", "etl"))


def test_a_line_in_a_run(make_logger, memory):
    """A plain logger's line belongs to the run in which it was logged."""
    logger = make_logger(transport=memory)
    with flow_run():
        logger.info("loaded %d rows", 42, extra={"table": "orders"})
    assert logger.handlers[0].flush(WAIT)
    (event,) = (event for batch in memory.batches for event in batch.events)
    assert event.message == "loaded 42 rows"
    assert (event.flow_run_id, event.flow_run_name, event.flow_name) == ("f1", "brave-otter", "etl")
    assert event.attributes["table"] == "orders"


def test_settings_are_followed_per_record(make_logger, memory):
    """Switching delivery off and on takes effect at the next line."""
    logger = make_logger(transport=memory)
    with flow_run():
        with temporary_settings({"PREFECT_LOGGING_TO_API_ENABLED": False}):
            logger.info("off")
        logger.info("on")
    assert logger.handlers[0].flush(WAIT)
    assert memory.messages == ["on"]


@pytest.mark.parametrize("name", ["send_to_api", "send_to_orion"])
def test_a_single_line_can_stay_here(make_logger, memory, name):
    """A line can be kept from the server by an extra, under its new and its old name."""
    logger = make_logger(transport=memory)
    with flow_run():
        logger.info("private", extra={name: False})
        logger.info("public", extra={name: True})
    assert logger.handlers[0].flush(WAIT)
    assert memory.messages == ["public"]
    assert name not in memory.batches[0].events[0].attributes


@pytest.mark.parametrize("excluded", [["noisy"], "noisy", "other, noisy"])
def test_excluded_loggers(make_logger, memory, excluded):
    """Lines of excluded loggers and their children are not sent; the list may be text, as in an INI file."""
    quiet = make_logger(name="noisy.child", transport=memory, exclude_loggers=excluded)
    heard = make_logger(name="noisy2", transport=memory, exclude_loggers=excluded)
    with flow_run():
        quiet.info("no")
        heard.info("yes")
    assert heard.handlers[0].flush(WAIT)
    assert memory.messages == ["yes"]


@pytest.mark.parametrize(
    "name", ["httpx", "httpcore.connection", "hpack", "runlog.delivery", "runlog.server"]
)
def test_lines_about_sending_are_not_sent(make_logger, memory, name):
    """Loggers that speak whenever a batch is sent would breed lines without end."""
    logger = make_logger(name=name, transport=memory)
    with flow_run():
        logger.info("HTTP Request: POST")
    assert logger.handlers[0].flush(WAIT)
    assert memory.messages == []


def test_lines_of_the_sending_thread_wait_for_others(make_logger):
    """Whatever logs while a batch is sent, under whatever name, does not make another batch, and is not lost."""

    class Chatty(InMemoryTransport):
        def send(self, producer, batch, *, timeout):
            logger.warning("connection pool is full")
            return super().send(producer, batch, timeout=timeout)

    chatty = Chatty()
    logger = make_logger(transport=chatty, service_name="app")
    logger.info("a")
    assert logger.handlers[0].flush(WAIT)
    logger.info("b")
    assert logger.handlers[0].flush(WAIT)
    said = chatty.messages
    assert [text for text in said if text != "connection pool is full"] == ["a", "b"]
    assert 1 <= said.count("connection pool is full") <= 4, "at most one for each flush and each line"


# --- lines of no run ---


def test_a_line_of_no_run_warns_at_its_caller(make_logger, memory):
    """The warning names the logger and what to do, and points at the line that logged."""
    logger = make_logger(transport=memory)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger.info("lost")
    (warning,) = caught
    assert warning.filename == __file__
    assert "carry" in str(warning.message)
    assert logger.name in str(warning.message)
    with open(__file__) as source:
        assert 'logger.info("lost")' in source.readlines()[warning.lineno - 1]


def test_a_line_of_no_run_may_be_an_error(make_logger, memory):
    """Who asks for an error gets it, at the log call."""
    logger = make_logger(transport=memory)
    with (
        temporary_settings({"PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "error"}),
        pytest.raises(MissingContextError, match="outside of any flow or task run"),
    ):
        logger.info("lost")


def test_a_line_of_no_run_may_be_ignored(make_logger, memory):
    """Who asks for silence gets it."""
    logger = make_logger(transport=memory)
    with temporary_settings({"PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore"}):
        logger.info("lost")
    assert memory.sends == 0


def test_a_service_needs_no_run(make_logger, memory):
    """With a service name, from an argument or from the settings, lines of no run are sent."""
    logger = make_logger(transport=memory, service_name="shop")
    logger.info("a")
    assert logger.handlers[0].flush(WAIT)
    other = make_logger(name="test.other", transport=memory)
    with temporary_settings({"RUNLOG_SERVICE_NAME": "shop"}):
        other.info("b")
        assert other.handlers[0].flush(WAIT)
    assert memory.messages == ["a", "b"]


# --- a log call never raises ---


def test_a_defect_costs_the_line_and_nothing_else(make_logger, memory, capsys):
    """An exception in a subclass is reported as `logging` does, and does not reach the program."""

    class Broken(APILogHandler):
        def prepare(self, record):
            raise ZeroDivisionError

    logger = make_logger(handler_class=Broken, transport=memory, service_name="x")
    logger.info("a")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_prepare_can_be_overridden(make_logger, memory):
    """A subclass may change events, as it could change payloads in Prefect."""

    class Tagging(APILogHandler):
        def prepare(self, record):
            event = super().prepare(record)
            event.attributes["region"] = "eu"
            return event

    logger = make_logger(handler_class=Tagging, transport=memory, service_name="x")
    logger.info("a")
    assert logger.handlers[0].flush(WAIT)
    assert memory.batches[0].events[0].attributes["region"] == "eu"


def test_filters_may_replace_the_record(make_logger, memory):
    """A filter may reject a record or, since Python 3.12, return another one."""
    logger = make_logger(transport=memory, service_name="x")
    handler = logger.handlers[0]

    def replace(record):
        if record.msg == "reject":
            return False
        changed = logging.makeLogRecord(record.__dict__ | {"msg": "replaced"})
        return changed if record.msg == "replace" else True

    handler.addFilter(replace)
    logger.info("reject")
    logger.info("plain")
    assert handler.flush(WAIT)
    assert memory.messages == ["plain"]
    record = logging.LogRecord("x", 20, "f", 1, "replace", (), None)
    handler.filter = replace
    handler.handle(record)
    assert handler.flush(WAIT)
    assert memory.messages == ["plain", "replaced"]


# --- arguments ---


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        (
            {"queue_size": 1000},
            "queue_size must be >= 65536 bytes, got 1000",
        ),
        ({"when_full": "explode"}, "when_full must be one of block, drop_oldest, drop_newest, got 'explode'"),
        ({"shutdown_timeout": -1}, "shutdown_timeout must be >= 0 s, got -1"),
        ({"mode": "async"}, "mode must be 'background' or 'sync', got 'async'"),
        (
            {"transport": InMemoryTransport(), "api_url": "http://x/api"},
            "give either a transport or an address",
        ),
    ],
)
def test_wrong_arguments(kwargs, text):
    """A wrong argument is refused with its name, what is right and what came."""
    with pytest.raises(ValueError, match=text):
        APILogHandler(**kwargs)


def test_a_client_brings_its_credentials():
    """A ready client and credentials beside it contradict each other."""
    with Client() as client, pytest.raises(ValueError, match="give either a client"):
        APILogHandler(client=client, api_key="k")


def test_a_ready_client(make_logger):
    """A given client sends, with the resource that the arguments describe, and stays open."""
    bodies = []

    def answer(request):
        import json

        body = json.loads(request.content)
        bodies.append(body)
        return Response(200, json={"acked": body["first_seq"] + len(body["events"]) - 1})

    with Client(transport=MockTransport(answer)) as client:
        logger = make_logger(
            client=client,
            api_url="http://log.example/api",
            service_name="shop",
            service_version="1.2",
            environment="test",
        )
        logger.info("a")
        assert logger.handlers[0].flush(WAIT)
        logger.handlers[0].close()
        assert not client.is_closed
    resource = bodies[0]["resource"]
    assert resource["service.name"] == "shop"
    assert resource["service.version"] == "1.2"
    assert resource["deployment.environment.name"] == "test"


def test_from_dict_config(memory):
    """All arguments can be given by `dictConfig`, as plain values."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "api": {
                    "class": "runlog.handlers.APILogHandler",
                    "level": "WARNING",
                    "api_url": "http://127.0.0.1:1/api",
                    "api_key": "sekrit",
                    "auth_string": "u:p",
                    "service_name": "shop",
                    "service_version": "1",
                    "environment": "test",
                    "exclude_loggers": ["noisy"],
                    "queue_size": 100_000,
                    "when_full": "drop_oldest",
                    "shutdown_timeout": 0,
                    "mode": "background",
                }
            },
            "loggers": {"test.dict_config": {"handlers": ["api"], "level": "DEBUG", "propagate": False}},
        }
    )
    (handler,) = logging.getLogger("test.dict_config").handlers
    assert handler.level == logging.WARNING
    assert "http://127.0.0.1:1/api" in repr(handler)
    assert "sekrit" not in repr(handler)


def test_sync_mode(make_logger, memory):
    """In sync mode a line is acknowledged when its call returns, and there is no thread."""
    logger = make_logger(transport=memory, mode="sync", service_name="x")
    before = set(threading.enumerate())
    logger.info("a")
    assert memory.messages == ["a"]
    assert set(threading.enumerate()) == before


# --- workers ---


def test_handlers_of_one_target_share_a_worker(make_logger):
    """Two handlers of one server send through one worker and keep one order; the last to close ends it."""
    first = make_logger(
        name="test.one", api_url="http://127.0.0.1:1/api", service_name="s", shutdown_timeout=0
    )
    second = make_logger(
        name="test.two", api_url="http://127.0.0.1:1/api", service_name="s", shutdown_timeout=0
    )
    other = make_logger(
        name="test.three", api_url="http://127.0.0.1:2/api", service_name="s", shutdown_timeout=0
    )
    before = len(delivery.workers())
    for logger in (first, second, other):
        logger.info("a")
    assert len(delivery.workers()) == before + 2
    assert first.handlers[0]._worker is second.handlers[0]._worker
    first.handlers[0].close()
    assert second.handlers[0]._worker in {shared.worker for shared in delivery._by_target.values()}
    second.handlers[0].close()
    other.handlers[0].close()
    assert delivery._by_target == {}


def test_a_change_of_settings_changes_the_target(make_logger):
    """Where lines go follows the settings of the moment, and back."""
    logger = make_logger(service_name="s", shutdown_timeout=0)
    handler = logger.handlers[0]
    logger.info("a")
    first = handler._worker
    with temporary_settings({"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_KEY": "secret-key"}):
        logger.info("b")
        second = handler._worker
        assert second is not first
    logger.info("c")
    assert handler._worker is first
    assert second.statistics()["target"] == "http://127.0.0.1:1/api"


def test_close_and_go_on(make_logger, memory):
    """A handler that was closed delivers what it had, and serves a line that comes later."""
    logger = make_logger(transport=memory, service_name="x")
    handler = logger.handlers[0]
    logger.info("a")
    handler.close()
    logger.info("b")
    assert handler.flush(WAIT)
    assert memory.messages == ["a", "b"]


def test_flush_all(make_logger, memory):
    """`runlog.flush` covers every handler of the process, within one time."""
    first = make_logger(name="test.one", transport=memory, service_name="x")
    nowhere = InMemoryTransport(target=None)
    second = make_logger(name="test.two", transport=nowhere, service_name="x")
    first.info("a")
    assert delivery.flush(WAIT)
    second.info("b")
    assert not delivery.flush()
    assert memory.messages == ["a"]
    assert {"memory", None} <= {state["target"] for state in delivery.statistics()}
    nowhere.target = "memory"
    assert delivery.flush(WAIT)


def test_each_line_carries_its_own_run(make_logger, memory):
    """100 threads in runs of their own, interleaved: every line carries its own run."""
    logger = make_logger(transport=memory)
    start = threading.Barrier(100)

    def work(n):
        start.wait(WAIT)
        for i in range(20):
            with flow_run(id=f"f{n}"), TaskRunContext(Entity(f"t{n}", "t")):
                logger.info("%d %d", n, i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logger.handlers[0].flush(WAIT)
    events = [event for batch in memory.batches for event in batch.events]
    assert len(events) == 2000
    assert all(
        (e.flow_run_id, e.task_run_id) == (f"f{n}", f"t{n}") for e in events for n in [e.message.split()[0]]
    )


def test_each_asyncio_task_carries_its_own_run(make_logger, memory):
    """100 asyncio tasks in runs of their own, interleaved: every line carries its own run."""
    import asyncio

    logger = make_logger(transport=memory)

    async def work(n):
        with flow_run(id=f"f{n}"), TaskRunContext(Entity(f"t{n}", "t")):
            for i in range(20):
                logger.info("%d %d", n, i)
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(work(n) for n in range(100)))

    asyncio.run(main())
    assert logger.handlers[0].flush(WAIT)
    events = [event for batch in memory.batches for event in batch.events]
    assert len(events) == 2000
    assert all(
        (e.flow_run_id, e.task_run_id) == (f"f{n}", f"t{n}") for e in events for n in [e.message.split()[0]]
    )


def test_a_closed_own_worker_says_what_it_leaves(make_logger, capsys):
    """A handler that is closed while there is no server says what was not stored."""
    logger = make_logger(transport=InMemoryTransport(target=None), service_name="x")
    logger.info("a")
    logger.handlers[0].close()
    assert "1 lines were not stored" in capsys.readouterr().err


def test_a_transport_survives_a_change_of_settings(make_logger, memory):
    """A given transport keeps its one worker, and its one sequence, whatever the settings become."""
    logger = make_logger(transport=memory, service_name="x")
    logger.info("a")
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}):
        logger.info("b")
    logger.info("c")
    assert logger.handlers[0].flush(WAIT)
    assert memory.messages == ["a", "b", "c"]
    assert len(memory.next_seqs) == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "header"),
    [
        ({"api_key": "own-key"}, {"PREFECT_API_KEY": "other-key"}, "Bearer own-key"),
        ({"auth_string": "u:p"}, {"PREFECT_API_KEY": "other-key"}, "Basic dTpw"),
        ({}, {"PREFECT_API_KEY": "other-key"}, "Bearer other-key"),
        ({}, {"PREFECT_API_AUTH_STRING": "u:p", "PREFECT_API_KEY": "k" * 8}, "Basic dTpw"),
        ({}, {"PREFECT_CLIENT_CUSTOM_HEADERS": {"Authorization": "Own x"}}, "Own x"),
    ],
)
def test_credentials(make_logger, arguments, settings, header):
    """Credentials come from the arguments, else from the settings; the text of a target does not show them."""
    logger = make_logger(api_url="http://127.0.0.1:1/api", shutdown_timeout=0, service_name="x", **arguments)
    handler = logger.handlers[0]
    with temporary_settings(settings):
        logger.info("a")
        ((target, _),) = handler._shared
    assert dict(target.headers)["Authorization"] == header
    assert header not in repr(target)


def test_a_flow_run_ends_with_the_number_of_its_lines(make_logger, memory):
    """The last line of a flow run says how many there were, those of its tasks and of inner flows included."""
    from runlog.loggers import get_run_logger
    from runlog.runs import flow_run as opened_flow
    from runlog.runs import task_run

    make_logger(name="runlog.flow_runs", transport=memory)
    handler = logging.getLogger("runlog.flow_runs").handlers[0]
    logging.getLogger("runlog.task_runs").addHandler(handler)
    logging.getLogger("runlog").setLevel(logging.INFO)
    with opened_flow("outer"):
        get_run_logger().info("1")
        with task_run("task"):
            get_run_logger().info("2")
            with opened_flow("inner"):
                get_run_logger().info("3")
        handler.flush(WAIT)
    with FlowRunContext(Entity("bare", "bare")):
        get_run_logger().info("not counted")
    assert handler.flush(WAIT)
    events = [event for batch in memory.batches for event in batch.events]
    told = [
        event.attributes["runlog.run.lines"] for event in events if "runlog.run.lines" in event.attributes
    ]
    inner, outer = told
    assert inner == 3
    assert outer == len(events) - 1 == 9
    assert handler._worker._intake._lines_of == {}


def test_a_late_line_counts_for_the_run_around(make_logger, memory, monkeypatch):
    """A line of an inner flow that comes after its end is counted by the flow around it."""
    from runlog.loggers import get_run_logger
    from runlog.runs import flow_run as opened_flow

    monkeypatch.setattr("runlog.delivery.intake.MAX_ENDED_RUNS", 2)
    make_logger(name="runlog.flow_runs", transport=memory)
    handler = logging.getLogger("runlog.flow_runs").handlers[0]
    logging.getLogger("runlog").setLevel(logging.INFO)
    with opened_flow("outer"):
        with opened_flow("forgotten"):
            pass
        with opened_flow("middle"), opened_flow("inner") as inner:
            late = inner.logger
        late.info("late")
        get_run_logger().info("x")
    assert handler.flush(WAIT)
    events = [event for batch in memory.batches for event in batch.events]
    assert events[-1].attributes["runlog.run.lines"] == len(events)
