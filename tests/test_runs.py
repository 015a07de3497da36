"""Runs: what they report, what they change for the code inside, and how often they try."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import pickle
import random
import sys
import uuid
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import _open_run, runs
from runlog._run_names import ADJECTIVES, ANIMALS, readable_name
from runlog._stepping import is_async_generator_function, is_coroutine_function, is_generator_function
from runlog.context import FlowRunContext, TaskRunContext, current_run_context, current_run_fields
from runlog.loggers import disable_run_logger, get_logger, get_run_logger
from runlog.runs import Flow, FlowRun, Task, TaskRun, flow_run, task_run

ID = uuid.UUID(int=7)
EVENT = "event_name"
STATE = "runlog.run.state"


class Collector(logging.Handler):
    """Keep records."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]

    @property
    def events(self):
        return [(getattr(record, EVENT, None), getattr(record, STATE, None)) for record in self.records]


@pytest.fixture
def collected():
    """Collects what ``runlog`` and its children log, from INFO."""
    collector = Collector()
    get_logger().addHandler(collector)
    get_logger().setLevel(logging.INFO)
    return collector


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told, or when a run sleeps; remembers for how long it slept."""
    clock = SimpleNamespace(now=100.0, slept=[])

    def sleep(seconds):
        clock.slept.append(seconds)
        clock.now += seconds

    async def sleep_async(seconds):
        sleep(seconds)

    monkeypatch.setattr(_open_run.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(runs, "sleep", sleep)
    monkeypatch.setattr(runs, "sleep_async", sleep_async)
    return clock


def here():
    """Line number of the caller."""
    return sys._getframe(1).f_lineno


# --- what a run reports -------------------------------------------------------------------------------


def test_start_and_end_are_records_of_the_run(collected, clock):
    """A run logs two records with event, state, duration and the place where it was opened."""
    with flow_run("nightly-etl", id=ID, source="s3") as run:
        line = here() - 1
        clock.now += 1.5
        run.logger.info("in it")
    start, inside, end = collected.records
    assert collected.messages == [
        "Flow 'nightly-etl' started",
        "in it",
        "Flow 'nightly-etl' completed in 1.50 s",
    ]
    assert collected.events == [
        ("runlog.run.started", "RUNNING"),
        (None, None),
        ("runlog.run.finished", "COMPLETED"),
    ]
    assert getattr(end, "runlog.run.duration_s") == 1.5
    assert not hasattr(start, "runlog.run.duration_s")
    assert not hasattr(start, "runlog.run.attempt")
    for record in (start, end):
        assert (record.name, record.levelname) == ("runlog.flow_runs", "INFO")
        assert (record.pathname, record.lineno) == (__file__, line)
        assert record.funcName == "test_start_and_end_are_records_of_the_run"
    for record in (start, inside, end):
        assert (record.flow_run_id, record.flow_name, record.source) == (str(ID), "nightly-etl", "s3")


def test_what_a_run_knows(collected):
    """A run has id, name, state and logger, before, in and after."""
    with flow_run("etl") as flow, task_run("load", run_name="load-1", attempt=2) as task:
        assert isinstance(flow, FlowRun)
        assert isinstance(task, TaskRun)
        assert isinstance(flow.id, uuid.UUID)
        assert flow.name == readable_name(flow.id)
        assert (flow.state, task.state) == ("RUNNING", "RUNNING")
        assert (flow.attempt, task.attempt) == (None, 2)
        assert (task.name, task.flow_run_id) == ("load-1", str(flow.id))
        assert task.logger is get_run_logger()
        assert FlowRunContext.get().flow_run is flow
        assert TaskRunContext.get().task_run is task
        assert repr(task) == f"<TaskRun 'load-1' ({task.id}), RUNNING>"
    assert (flow.state, task.state) == ("COMPLETED", "COMPLETED")
    flow.logger.info("after it")
    assert collected.records[-1].flow_run_id == str(flow.id)
    assert getattr(collected.records[1], "runlog.run.attempt") == 2
    assert collected.messages[1].endswith("started, attempt 2 of 2")


def test_runs_nest(collected):
    """A task run belongs to the flow run around it, a flow run in it is its child."""
    with flow_run("etl") as outer, task_run("load") as task, flow_run("sub") as inner:
        fields = current_run_fields()
        assert fields["flow_run_id"] == str(inner.id)
        assert fields["parent_flow_run_id"] == str(outer.id)
        assert fields["parent_task_run_id"] == str(task.id)
    assert current_run_context() is None


def test_async_with(collected):
    """``async with`` does what ``with`` does."""

    async def main():
        async with flow_run("etl") as run:
            assert current_run_context().flow_run is run
        with pytest.raises(ValueError, match="x"):
            async with task_run("load"):
                raise ValueError("x")

    asyncio.run(main())
    assert [state for _, state in collected.events] == ["RUNNING", "COMPLETED", "RUNNING", "FAILED"]


def test_an_object_opens_one_run_at_a_time(collected):
    """One object opens run after run, each with a new id, but not one inside the other."""
    opener = flow_run("etl", log_prints=False)
    with opener as first, pytest.raises(RuntimeError, match=r"flow_run\('etl'\) is open already"):
        opener.__enter__()
    with opener as second:
        assert second.id != first.id
    with pytest.raises(RuntimeError, match="left without having been entered"):
        opener.__exit__(None, None, None)


def test_leaving_in_the_wrong_order_changes_nothing(collected):
    """A run around an open one cannot be left: nothing is logged, and the right order works afterwards."""
    outer, inner = flow_run("etl"), task_run("load")
    outer.__enter__()
    run = inner.__enter__()
    with pytest.raises(RuntimeError, match="cannot be left before"):
        outer.__exit__(None, None, None)
    assert len(collected.records) == 2
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    assert run.state == "COMPLETED"
    assert len(collected.records) == 4


def test_prints_of_a_run(collected):
    """A run that asks for it logs what is printed, and runs in it do too."""
    with flow_run("etl", log_prints=True), task_run("load"):
        print("printed")
    assert "printed" in collected.messages


def test_what_a_stack_opens_points_at_the_caller(collected):
    """Opened through an ExitStack, the place is the line that did so."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(flow_run("etl"))
        line = here() - 1
    assert {record.lineno for record in collected.records} == {line}
    assert {record.pathname for record in collected.records} == {__file__}


# --- how runs end -------------------------------------------------------------------------------------


class OddError(Exception):
    """Cannot be shown, nor be marked."""

    def __str__(self):
        raise KeyError("str")

    def __setattr__(self, name, value):
        raise AttributeError(name)


@pytest.mark.parametrize(
    ("error", "state", "level", "text"),
    [
        (ValueError("bad\nvery"), "FAILED", "ERROR", "failed after 0 ms: ValueError: bad"),
        (KeyError(), "FAILED", "ERROR", "failed after 0 ms: KeyError"),
        (OddError(), "FAILED", "ERROR", "failed after 0 ms: OddError: <unprintable: KeyError>"),
        (SystemExit(), "COMPLETED", "INFO", "completed in 0 ms"),
        (SystemExit(0), "COMPLETED", "INFO", "completed in 0 ms"),
        (SystemExit(2), "FAILED", "ERROR", "failed after 0 ms: SystemExit: 2"),
        (SystemExit("no"), "FAILED", "ERROR", "failed after 0 ms: SystemExit: no"),
        (KeyboardInterrupt(), "CANCELLED", "WARNING", "cancelled after 0 ms"),
        (asyncio.CancelledError(), "CANCELLED", "WARNING", "cancelled after 0 ms"),
        (GeneratorExit(), "COMPLETED", "INFO", "completed in 0 ms"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_what_becomes_of_a_run(collected, error, state, level, text):
    """The exception decides the state; it goes on as it came."""
    with pytest.raises(type(error)) as caught, flow_run("etl") as run:
        raise error
    assert caught.value is error
    assert run.state == state
    end = collected.records[-1]
    assert (end.levelname, getattr(end, STATE)) == (level, state)
    assert end.getMessage() == f"Flow 'etl' {text}"
    assert (end.exc_info is not None) == (state == "FAILED")


def test_one_traceback_per_exception(collected):
    """The innermost run logs the traceback, those around it name the exception in one line."""
    with pytest.raises(ValueError, match="bad"), flow_run("etl"), task_run("a"), task_run("b"):
        raise ValueError("bad")
    ends = collected.records[-3:]
    assert [record.exc_info is not None for record in ends] == [True, False, False]
    assert all(record.getMessage().endswith("ValueError: bad") for record in ends)
    assert all(record.levelname == "ERROR" for record in ends)


def test_another_exception_has_its_own_traceback(collected):
    """An exception raised from another is logged with its traceback."""

    def work():
        try:
            with task_run("a"):
                raise ValueError("bad")
        except ValueError as error:
            raise KeyError("worse") from error

    with pytest.raises(KeyError), flow_run("etl"):
        work()
    assert [record.exc_info is not None for record in collected.records] == [False, False, True, True]


def test_an_exception_object_that_is_raised_again(collected):
    """The traceback of an object that fails two runs, one after the other, is logged for both."""
    error = ValueError("the same")
    with flow_run("etl"):
        for _ in range(2):
            with contextlib.suppress(ValueError), task_run("a"):
                raise error
    assert sum(record.exc_info is not None for record in collected.records) == 2


def test_a_traceback_that_was_logged_in_a_worker_process(collected):
    """What an inner run logged is known after the exception was pickled."""

    def work():
        try:
            with task_run("a"):
                raise ValueError("bad")
        except ValueError as error:
            return pickle.loads(pickle.dumps(error))

    with pytest.raises(ValueError, match="bad"), flow_run("etl"):
        raise work()
    assert [record.exc_info is not None for record in collected.records] == [False, False, True, False]


# --- events and levels --------------------------------------------------------------------------------


class EventCollector(Collector):
    """A handler that wants to know of every run."""

    accepts_run_events = True


@pytest.mark.parametrize(
    ("logger_level", "handler_level"),
    [(logging.INFO, logging.NOTSET), (logging.WARNING, logging.NOTSET), (logging.INFO, logging.ERROR)],
)
def test_events_reach_who_accepts_them_whatever_the_level(logger_level, handler_level):
    """Start and end go once to each handler that accepts run events; lines go by level as always."""
    eager, ordinary = EventCollector(handler_level), Collector(handler_level)
    get_logger().addHandler(eager)
    get_logger("task_runs").addHandler(ordinary)
    get_logger().setLevel(logger_level)
    with task_run("load") as run:
        run.logger.info("a line")
    events = [event for event in eager.events if event != (None, None)]
    assert events == [("runlog.run.started", "RUNNING"), ("runlog.run.finished", "COMPLETED")]
    is_shown = logger_level <= logging.INFO and handler_level <= logging.INFO
    assert len(ordinary.records) == (3 if is_shown else 0)
    assert len(eager.records) == (3 if is_shown else 2)


def test_events_follow_propagation():
    """A handler above a logger that does not propagate gets no events."""
    above = EventCollector()
    get_logger().addHandler(above)
    get_logger().setLevel(logging.WARNING)
    get_logger("task_runs").propagate = False
    with task_run("load"):
        pass
    assert above.records == []


def test_a_disabled_run_logger_reports_nothing(collected):
    """Inside `disable_run_logger` a run works and is silent."""
    eager = EventCollector()
    get_logger().addHandler(eager)
    with disable_run_logger(), flow_run("etl") as run:
        pass
    assert run.state == "COMPLETED"
    assert collected.records == eager.records == []


def test_a_handler_that_raises_at_the_start(collected):
    """If reporting the start fails, the run is not active."""

    class Faulty(logging.Handler):
        def handle(self, record):
            raise OSError("disk")

    faulty = Faulty()
    get_logger().addHandler(faulty)
    opener = flow_run("etl", log_prints=False)
    with pytest.raises(OSError, match="disk"):
        opener.__enter__()
    assert current_run_context() is None
    get_logger().removeHandler(faulty)
    with opener:
        pass


# --- decorators ---------------------------------------------------------------------------------------


def test_each_call_is_a_run(collected):
    """A decorated function keeps its name and value; each call is a run, whose place is the function."""

    @flow_run("etl", source="s3")
    def double(number: int, by: int = 2) -> int:
        """Multiply."""
        get_run_logger().info("in it")
        return number * by

    assert (double.__name__, double.__doc__) == ("double", "Multiply.")
    assert str(inspect.signature(double)).startswith("(number: 'int', by: 'int' = 2)")
    assert double(2) + double(1, by=3) == 7
    ids = [record.flow_run_id for record in collected.records]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4] == ids[5]
    assert {record.source for record in collected.records} == {"s3"}
    assert collected.records[0].funcName == "double"
    assert collected.records[0].lineno == double.__wrapped__.__code__.co_firstlineno


def test_recursion_and_methods(collected):
    """A decorated method may call itself: runs nest."""

    class Worker:
        @task_run("work")
        def work(self, depth):
            return [current_run_fields()["task_run_id"], *(self.work(depth - 1) if depth else [])]

    assert len(set(Worker().work(3))) == 4


def test_async_functions(collected):
    """An async function is awaited in its run, and concurrent calls have a run each."""

    @task_run("work")
    async def work(number):
        run = current_run_context()
        for _ in range(3):
            await asyncio.sleep(0)  # lets the others have their turn
            assert current_run_context() is run
        return number

    async def main():
        assert await asyncio.gather(*(work(number) for number in range(20))) == list(range(20))
        task = asyncio.ensure_future(work(1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert inspect.iscoroutinefunction(work)
    asyncio.run(main())
    states = [state for event, state in collected.events if event == "runlog.run.finished"]
    assert states == ["COMPLETED"] * 20 + ["CANCELLED"]


def test_a_failing_call(collected):
    """What a function raises is reported and raised."""

    @task_run("work")
    def work():
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        work()
    assert collected.events[-1] == ("runlog.run.finished", "FAILED")


def test_callables_of_other_kinds(collected):
    """Partials and objects with ``__call__`` are functions too."""

    class Adder:
        def __call__(self, a):
            return a + 1

    class AsyncAdder:
        async def __call__(self, a):
            return a + 1

    assert task_run("add")(Adder())(1) == 2
    assert task_run("add")(functools.partial(max, 3))(1) == 3
    assert asyncio.run(task_run("add")(AsyncAdder())(1)) == 2
    assert collected.records[0].pathname == __file__


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (lambda: flow_run("etl")(3), r"flow_run\('etl'\) decorates functions, got int"),
        (
            lambda: flow_run(len),
            r'flow_run needs a name, got builtin_function_or_method; write @flow_run\("..."\)',
        ),
    ],
)
def test_what_cannot_be_decorated(decorate, message):
    """A decorator without its name, and a thing that is no function, are TypeErrors."""
    with pytest.raises(TypeError, match=message):
        decorate()


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempt": 0},
        {"retries": -1},
        {"retry_delay": -0.5},
        {"id": "no uuid"},
        {"id": 7},
    ],
)
def test_wrong_arguments(wrong):
    """Numbers out of range and ids that are no UUIDs are refused by name."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got "):
        task_run("load", **wrong)


def test_an_id_is_for_one_run(collected):
    """An id is taken as text too, and refused for a decorator."""
    opener = flow_run("etl", id=str(ID))
    with opener as run:
        assert run.id == ID
    with pytest.raises(ValueError, match="each call is a new run"):
        opener(len)


# --- names --------------------------------------------------------------------------------------------


def test_run_names_from_arguments(collected):
    """Placeholders are filled in with the arguments of the call, defaults included."""

    @task_run("load", run_name="load-{table}-{options.retries:02}-{extra}")
    def load(table, options=SimpleNamespace(retries=3), **more):  # noqa: B008 - never changed
        return TaskRunContext.get().run_name

    assert load("orders", extra="x") == "load-orders-03-x"
    assert load(table="a" * 500, extra=1).startswith("load-aaa")
    assert len(load(table="a" * 500, extra=1)) == 200


def test_names_without_placeholders(collected):
    """A name without placeholders is every call's; a double brace is a brace."""

    @flow_run("etl", run_name="{{x}}")
    def etl():
        return FlowRunContext.get().run_name

    assert etl() == "{x}"
    with flow_run("etl", run_name="{x}") as run:
        assert run.name == "{x}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "load-{tabel}",
            r"has the placeholder {tabel}, which is no parameter of .*load; its parameters: table",
        ),
        ("load-{}", r"has the placeholder {}"),
        ("load-{0}", r"has the placeholder {0}"),
        ("load-{", r"is no template"),
    ],
)
def test_wrong_placeholders_are_told_when_decorating(template, message):
    """A template that can never be filled in is refused at once."""

    def load(table):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        task_run("load", run_name=template)(load)


def test_wrong_placeholders_that_only_a_call_can_tell(collected):
    """A template that an argument does not fit is one clear error, before the function runs."""

    @task_run("load", run_name="load-{table.name}")
    def load(table):
        raise AssertionError

    with pytest.raises(ValueError, match=r"'load-{table.name}' cannot be filled in: AttributeError"):
        load("orders")
    with pytest.raises(TypeError, match="missing a required argument: 'table'"):
        load()
    assert collected.records == []


@given(st.uuids())
def test_readable_names(run_id):
    """A name is two known words, and the same for the same id."""
    adjective, animal = readable_name(run_id).split("-")
    assert adjective in ADJECTIVES
    assert animal in ANIMALS
    assert readable_name(run_id) == readable_name(uuid.UUID(str(run_id)))


def test_word_lists():
    """Words are plain, lower-case, and listed once."""
    for words in (ADJECTIVES, ANIMALS):
        assert len(words) == len(set(words)) >= 100
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_naming_draws_no_random_numbers(collected):
    """A program that seeds `random` gets the same numbers with and without runs."""
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with flow_run("etl"):
        assert random.random() == expected


# --- retries ------------------------------------------------------------------------------------------


def failing(times, error=ValueError):
    """Return a function that fails some times before it returns its attempt."""
    calls = []

    def work():
        calls.append(current_run_fields())
        if len(calls) <= times:
            raise error(f"bad {len(calls)}")
        return [(fields["task_run_id"], fields["attempt"]) for fields in calls]

    return work


@pytest.mark.parametrize("is_async", [False, True])
def test_retries(collected, clock, is_async):
    """A function that fails is called again after the delay: one run, attempts 1 to 3, each failure logged."""
    work = failing(2)
    if is_async:

        async def work_async():
            return work()

        seen = asyncio.run(task_run("work", retries=2, retry_delay=2)(work_async)())
    else:
        seen = task_run("work", retries=2, retry_delay=2)(work)()
    assert clock.slept == [2, 2]
    assert len({run_id for run_id, _ in seen}) == 1
    assert [attempt for _, attempt in seen] == [1, 2, 3]
    title = "Task 'work'"
    assert collected.messages == [
        f"{title} started, attempt 1 of 3",
        f"{title} failed, attempt 1 of 3, retrying in 2 s: ValueError: bad 1",
        f"{title} started, attempt 2 of 3",
        f"{title} failed, attempt 2 of 3, retrying in 2 s: ValueError: bad 2",
        f"{title} started, attempt 3 of 3",
        f"{title} completed in 4.00 s",
    ]
    assert [record.levelname for record in collected.records[1::2]] == ["WARNING", "WARNING", "INFO"]
    assert [record.exc_info is not None for record in collected.records[1::2]] == [True, True, False]
    assert [getattr(record, "runlog.run.attempt") for record in collected.records] == [1, 1, 2, 2, 3, 3]
    assert [record.attempt for record in collected.records] == [1, 1, 2, 2, 3, 3]
    assert collected.events[1] == (None, None)


def test_the_last_failure_is_raised(collected, clock):
    """When no attempt is left, the run has failed with the last exception."""
    work = task_run("work", retries=2)(failing(9))
    with pytest.raises(ValueError, match="bad 3"):
        work()
    assert clock.slept == [0, 0]
    assert [state for _, state in collected.events if state] == ["RUNNING"] * 3 + ["FAILED"]


def test_attempts_are_counted_from_the_given_one(collected, clock):
    """A program that is started again itself says where to go on counting."""
    assert [attempt for _, attempt in task_run("work", retries=1, attempt=4)(failing(1))()] == [4, 5]
    assert collected.messages[0].endswith("started, attempt 4 of 5")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_only_exceptions_are_retried(collected, clock, error):
    """What is meant to end the program, or cancels the task, ends the run at once."""
    with pytest.raises(error):
        task_run("work", retries=2)(failing(1, error))()
    assert clock.slept == []


def test_the_real_sleeps(monkeypatch):
    """Between attempts a function sleeps with `time.sleep`, an async one with `asyncio.sleep`."""
    import time

    assert runs.sleep is time.sleep
    assert runs.sleep_async is asyncio.sleep


def test_what_cannot_be_retried():
    """A with block and a generator cannot run again."""

    def generator():
        yield

    async def async_generator():
        yield

    with pytest.raises(TypeError, match="a with block cannot run again"):
        task_run("work", retries=1).__enter__()
    for fn in (generator, async_generator):
        with pytest.raises(TypeError, match="generator function, which cannot run again"):
            task_run("work", retries=1)(fn)


# --- generators ---------------------------------------------------------------------------------------


def test_a_generator_is_one_run_that_does_not_leak(collected):
    """Each step runs in the run; between steps the caller is in its own."""

    @task_run("read")
    def read():
        get_run_logger().info("first")
        yield 1
        get_run_logger().info("second")
        yield 2
        return 3

    def reader():
        result = yield from read()
        yield result

    assert inspect.isgeneratorfunction(read)
    with flow_run("etl") as flow:
        for _ in reader():
            assert current_run_context().flow_run is flow
    of_task = [record for record in collected.records if record.name == "runlog.task_runs"]
    assert [record.getMessage().split(" ")[-1] for record in of_task[:3]] == ["started", "first", "second"]
    assert len({record.task_run_id for record in of_task}) == 1
    assert {record.flow_run_id for record in collected.records} == {str(flow.id)}
    assert collected.events[-2] == ("runlog.run.finished", "COMPLETED")


def test_runs_inside_a_generator_stay_inside(collected):
    """A run that is open over a yield is active in the generator only, as are its context variables."""
    variable = contextvars.ContextVar("variable", default="outside")

    @flow_run("read")
    def read():
        variable.set("inside")
        with task_run("page"):
            before = current_run_context()
            yield 1
            assert current_run_context() is before
            assert variable.get() == "inside"
        yield 2

    for _ in read():
        assert current_run_context() is None
        assert variable.get() == "outside"


def test_send_throw_and_return(collected):
    """What is sent and thrown in arrives, what is returned comes back."""

    @task_run("echo")
    def echo():
        got = []
        while len(got) < 3:
            try:
                got.append((yield len(got)))
            except ValueError as error:
                got.append(str(error))
        return got

    generator = echo()
    assert next(generator) == 0
    assert generator.send("a") == 1
    assert generator.throw(ValueError("b")) == 2
    with pytest.raises(StopIteration) as stop:
        generator.send("c")
    assert stop.value.value == ["a", "b", "c"]
    assert collected.events[-1] == ("runlog.run.finished", "COMPLETED")


def test_a_generator_that_raises(collected):
    """What a generator raises, by itself or because it was thrown in, fails its run."""

    @task_run("read")
    def read():
        yield 1
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        list(read())
    generator = read()
    next(generator)
    with pytest.raises(ValueError, match="thrown"):
        generator.throw(ValueError("thrown"))
    assert [state for event, state in collected.events if event == "runlog.run.finished"] == [
        "FAILED",
        "FAILED",
    ]


def test_a_generator_closed_early_has_completed(collected):
    """Who reads had enough: the generator cleans up in its run, which has completed."""

    @task_run("read")
    def read():
        try:
            yield 1
        finally:
            get_run_logger().info("cleaned up")

    for _ in read():
        break
    generator = read()
    next(generator)
    generator.close()
    assert collected.messages.count("cleaned up") == 2
    assert [state for event, state in collected.events if event == "runlog.run.finished"] == ["COMPLETED"] * 2


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close() has a value since Python 3.13")
def test_the_value_of_close(collected):
    """`close` returns what the generator returns."""

    @task_run("read")
    def read():
        try:
            yield 1
        except GeneratorExit:
            return "closed"

    generator = read()
    next(generator)
    assert generator.close() == "closed"


def test_a_generator_that_refuses_to_close(collected):
    """A generator that yields when it is closed fails as it would without a run."""

    @task_run("read")
    def read():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = read()
    next(generator)
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        generator.close()
    assert collected.events[-1] == ("runlog.run.finished", "FAILED")


def test_a_generator_that_is_never_read_is_no_run(collected):
    """A run starts with the first step."""

    @task_run("read")
    def read():
        yield 1

    read()
    assert collected.records == []


def test_async_generators(collected):
    """An async generator's steps run in its run, also across awaits, and the caller stays in its own."""

    @task_run("read")
    async def read():
        run = current_run_context()
        for number in range(3):
            await asyncio.sleep(0)
            assert current_run_context() is run
            got = yield number
            assert got is None
            assert current_run_context() is run

    async def main():
        seen = []
        async for number in read():
            assert current_run_context() is None
            seen.append(number)
        return seen

    assert is_async_generator_function(read)
    assert asyncio.run(main()) == [0, 1, 2]
    assert collected.events == [("runlog.run.started", "RUNNING"), ("runlog.run.finished", "COMPLETED")]


def test_asend_athrow_and_aclose(collected):
    """What is sent and thrown into an async generator arrives; closing it runs its clean-up in the run."""

    @task_run("echo")
    async def echo():
        got = []
        try:
            while True:
                try:
                    got.append((yield list(got)))
                except ValueError as error:
                    got.append(str(error))
        finally:
            await asyncio.sleep(0)
            get_run_logger().info("cleaned up")

    async def main():
        generator = echo()
        assert await generator.asend(None) == []
        assert await generator.asend("a") == ["a"]
        assert await generator.athrow(ValueError("b")) == ["a", "b"]
        await generator.aclose()
        failing_one = echo()
        await failing_one.asend(None)
        with pytest.raises(KeyError):
            await failing_one.athrow(KeyError("c"))

    asyncio.run(main())
    assert collected.messages.count("cleaned up") == 2
    states = [state for event, state in collected.events if event == "runlog.run.finished"]
    assert states == ["COMPLETED", "FAILED"]


def test_cancelling_an_async_generator(collected):
    """A cancellation that arrives at an await inside reaches the generator, whose run is cancelled."""
    reached = []

    @task_run("wait")
    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            reached.append(current_run_context().run_name)
            raise
        yield 1

    async def main():
        task = asyncio.ensure_future(anext(wait()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(reached) == 1
    assert collected.events[-1] == ("runlog.run.finished", "CANCELLED")


@given(st.lists(st.sampled_from(["next", "send", "throw", "close"]), max_size=8))
def test_a_decorated_generator_behaves_as_the_plain_one(actions):
    """Whatever is done to it, yields, values and exceptions are those of the same generator without a run."""

    def plain():
        got = 0
        for number in range(4):
            try:
                got = yield (number, got)
            except ValueError as error:
                got = repr(error)
        return got

    def play(generator):
        seen = []
        for number, action in enumerate(actions):
            try:
                if action == "next":
                    seen.append(next(generator))
                elif action == "send":
                    seen.append(generator.send(number))
                elif action == "throw":
                    seen.append(generator.throw(ValueError(number)))
                else:
                    seen.append(generator.close())
            except Exception as error:
                seen.append(repr(error))
        return seen

    with disable_run_logger():
        assert play(task_run("plain", log_prints=False)(plain)()) == play(plain())


# --- plain objects ------------------------------------------------------------------------------------


def test_objects_for_contexts_of_your_own(collected):
    """Flow, Task, FlowRun and TaskRun can be made by hand, and have loggers without a context."""
    flow, task = Flow("etl"), Task("load")
    run = FlowRun("swift-otter", id=ID, flow=flow)
    with FlowRunContext(flow_run=run, flow=flow, log_prints=False):
        get_run_logger().info("x")
        part = TaskRun(task=task)
        part.logger.info("y")
    first, second = collected.records
    assert (first.flow_run_id, first.flow_run_name, first.flow_name) == (str(ID), "swift-otter", "etl")
    assert (second.task_run_name, second.task_name, second.flow_run_id) == (part.name, "load", str(ID))
    assert run.logger.extra["flow_name"] == "etl"
    assert TaskRun(flow_run_id=ID).flow_run_id == str(ID)
    assert (repr(flow), repr(task)) == ("Flow('etl')", "Task('load')")
    assert repr(run) == f"<FlowRun 'swift-otter' ({ID}), not started>"


def test_what_kind_of_function():
    """Functions, partials and objects are told apart by what calling them gives."""

    async def coroutine():
        pass

    def generator():
        yield

    async def async_generator():
        yield

    class Call:
        async def __call__(self):
            pass

    kinds = (is_coroutine_function, is_generator_function, is_async_generator_function)
    for fn, expected in [
        (coroutine, (True, False, False)),
        (functools.partial(coroutine), (True, False, False)),
        (Call(), (True, False, False)),
        (generator, (False, True, False)),
        (async_generator, (False, False, True)),
        (len, (False, False, False)),
    ]:
        assert tuple(is_kind(fn) for is_kind in kinds) == expected
