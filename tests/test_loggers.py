"""Run loggers: what they put on a record, where records go, and what becomes of ``print``."""

from __future__ import annotations

import builtins
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import _fields, context
from runlog.context import FlowRunContext, TaskRunContext
from runlog.exceptions import MissingContextError
from runlog.loggers import (
    LogEavesdropper,
    RunLogAdapter,
    disable_logger,
    disable_run_logger,
    flow_run_logger,
    get_logger,
    get_run_logger,
    patch_print,
    task_run_logger,
)

ETL = SimpleNamespace(id="f-1", name="swift-otter")
LOAD = SimpleNamespace(id="t-1", name="load-1")


class Collector(logging.Handler):
    """Keep records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture(autouse=True)
def restored_hierarchy(monkeypatch):
    """Loggers made here are forgotten, so that their parents are; no name was warned of yet."""
    monkeypatch.setattr(_fields, "_warned_of", set())
    for name in ("", "server", "flow_runs", "task_runs"):  # they stay, whoever makes them first
        get_logger(name)
    known = dict(logging.root.manager.loggerDict)
    yield
    logging.root.manager.loggerDict.clear()
    logging.root.manager.loggerDict.update(known)


@pytest.fixture
def collected():
    """Collects what ``runlog`` and its children log, from INFO."""
    collector = Collector()
    logger = logging.getLogger("runlog")
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    return collector


def flow(**options):
    return FlowRunContext(ETL, "etl", **({"log_prints": False} | options))


def task(**options):
    return TaskRunContext(LOAD, "load", **options)


def here():
    """Line number of the caller."""
    return sys._getframe(1).f_lineno


# --- get_logger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "full"),
    [
        (None, "runlog"),
        ("", "runlog"),
        ("runlog", "runlog"),
        ("x", "runlog.x"),
        ("runlog.x", "runlog.x"),
        ("runlogger", "runlog.runlogger"),
        ("Task B", "runlog.Task B"),
    ],
)
def test_names_are_relative_to_runlog(name, full):
    """A name is below ``runlog`` unless it says so itself."""
    assert get_logger(name) is logging.getLogger(full)


# --- get_run_logger -----------------------------------------------------------------------------------


def test_a_record_carries_its_run(collected):
    """Every field of the run is an attribute of the record, whose place is the caller's line."""
    with flow(extra={"source": "s3"}):
        get_run_logger().info("in a flow run")
        with task(attempt=2):
            line = here() + 1
            get_run_logger().warning("in a task run, %d", 1, extra={"table": "orders"})
    first, second = collected.records
    assert (first.name, second.name) == ("runlog.flow_runs", "runlog.task_runs")
    assert (first.flow_run_id, first.flow_run_name, first.flow_name) == ("f-1", "swift-otter", "etl")
    assert first.source == "s3"
    assert (second.task_run_id, second.task_run_name, second.task_name) == ("t-1", "load-1", "load")
    assert (second.flow_run_id, second.attempt, second.table) == ("f-1", 2, "orders")
    assert (second.pathname, second.lineno, second.funcName) == (
        __file__,
        line,
        "test_a_record_carries_its_run",
    )


def test_extra_of_a_call_wins(collected):
    """The most specific extra counts: of the call, then of the logger, then of the run."""
    with flow(extra={"a": 1, "b": 1, "c": 1}):
        get_run_logger(b=2, c=2).info("x", extra={"c": 3})
    (record,) = collected.records
    assert (record.a, record.b, record.c) == (1, 2, 3)


def test_without_a_run_the_error_says_what_to_do():
    """Outside of any run there is no run logger; the error names `carry`."""
    with pytest.raises(MissingContextError, match=r"runlog\.carry\(\)"):
        get_run_logger()


def test_a_given_context_counts(collected):
    """A context that is given need not be active, nor be the innermost."""
    with flow() as outer, task():
        get_run_logger(outer).info("of the flow run")
    get_run_logger(task()).info("of a task run")
    assert [record.name for record in collected.records] == ["runlog.flow_runs", "runlog.task_runs"]


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        (SimpleNamespace(flow_run=ETL, flow=None), "runlog.flow_runs"),
        (SimpleNamespace(task_run=LOAD), "runlog.task_runs"),
    ],
)
def test_contexts_of_others_serve(foreign, name):
    """An object with a flow run or a task run, such as Prefect's contexts, is a context too."""
    logger = get_run_logger(foreign, table="orders")
    assert logger.name == name
    assert logger.extra["table"] == "orders"


@pytest.mark.parametrize("wrong", [1, "etl", ETL, SimpleNamespace(flow_run=None)])
def test_what_is_no_context_is_refused(wrong):
    """Anything else is a TypeError with expected and got."""
    with pytest.raises(TypeError, match=f"FlowRunContext or a TaskRunContext, got {type(wrong).__name__}"):
        get_run_logger(wrong)


def test_a_run_has_one_logger():
    """Without extras, all who ask in a run share one adapter, whose extras are read-only."""
    with flow():
        logger = get_run_logger()
        assert get_run_logger() is logger
        with pytest.raises(TypeError):
            logger.extra["a"] = 1


def test_it_finds_the_run_of_a_parent_program(monkeypatch):
    """A run handed over in the environment is found without any set-up."""
    monkeypatch.setattr(context, "_inherited", None)
    monkeypatch.setattr(context, "_environment_is_read", False)
    monkeypatch.setenv("RUNLOG_CONTEXT", '{"v":1,"run":{"flow_run_id":"f"}}')
    assert get_run_logger().extra["flow_run_id"] == "f"


def test_a_hundred_threads_each_have_their_run(collected):
    """Threads that log at the same time in runs of their own never get each other's ids."""
    barrier = threading.Barrier(100, timeout=60)

    def work(number):
        run = FlowRunContext(SimpleNamespace(id=str(number), name="x"), log_prints=False)
        with run, TaskRunContext(SimpleNamespace(id=f"t{number}", name="x")):
            barrier.wait()
            for _ in range(20):
                get_run_logger().info("%s", number)

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(work, range(100)))
    assert len(collected.records) == 2000
    for record in collected.records:
        assert (record.flow_run_id, record.task_run_id) == (record.getMessage(), f"t{record.getMessage()}")


# --- flow_run_logger, task_run_logger -----------------------------------------------------------------


def test_logger_of_a_flow_run():
    """A flow run's logger needs no context."""
    logger = flow_run_logger(ETL, SimpleNamespace(name="etl"), a=1)
    assert logger.name == "runlog.flow_runs"
    assert logger.extra == {
        "flow_run_id": "f-1",
        "flow_run_name": "swift-otter",
        "flow_name": "etl",
        "a": 1,
    }


def test_logger_of_a_task_run():
    """A task run's logger takes the flow run that is given, or the active one, or none."""
    given = task_run_logger(LOAD, "load", ETL, "etl", a=1)
    assert given.name == "runlog.task_runs"
    assert given.extra == {
        "task_run_id": "t-1",
        "task_run_name": "load-1",
        "task_name": "load",
        "flow_run_id": "f-1",
        "flow_run_name": "swift-otter",
        "flow_name": "etl",
        "a": 1,
    }
    with flow():
        assert task_run_logger(LOAD, "load", a=1).extra == given.extra
    assert task_run_logger(LOAD).extra["flow_run_id"] is None


# --- the adapter --------------------------------------------------------------------------------------


def test_get_child(collected):
    """A child has its own name and extras, and the run's."""
    with flow():
        get_run_logger().getChild("sql", extra={"a": 1}).getChild("x").info("x")
        get_run_logger().getChild("plain").info("x")
    assert [record.name for record in collected.records] == [
        "runlog.flow_runs.sql.x",
        "runlog.flow_runs.plain",
    ]
    assert collected.records[0].a == 1
    assert {record.flow_run_id for record in collected.records} == {"f-1"}


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickling(pickler):
    """An adapter arrives with its logger and extras, also as a child."""
    with flow(extra={"a": 1}):
        logger = get_run_logger().getChild("x")
    copy = pickle.loads(pickler.dumps(logger))
    assert type(copy) is RunLogAdapter
    assert copy.logger is logger.logger
    assert copy.extra == logger.extra


def test_an_adapter_of_an_adapter(collected):
    """A stdlib adapter around ours adds to the run's fields."""
    with flow():
        logging.LoggerAdapter(get_run_logger(), {"a": 1}).info("x")
    (record,) = collected.records
    assert (record.flow_run_id, record.a) == ("f-1", 1)


def test_reserved_extras_do_not_break_the_call(collected):
    """An extra that logging would raise KeyError for is renamed, and warned of once at the caller's line."""
    with flow():
        line = here() + 2
        with pytest.warns(RuntimeWarning, match=r"'message' .* 'message_'") as caught:
            get_run_logger().info("x", extra={"message": 1, "b": 2})
        get_run_logger().info("x", extra={"message": 3})
    assert [record.message_ for record in collected.records] == [1, 3]
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_reserved_names_of_the_logger_are_renamed(collected):
    """The same holds for extras that are given for the logger."""
    with flow(), pytest.warns(RuntimeWarning, match="'module' .* 'module_'"):
        get_run_logger(module="m").info("x")
    assert collected.records[0].module_ == "m"


def test_warnings_as_errors_do_not_reach_the_call(collected):
    """With -W error, the line is logged all the same."""
    with warnings.catch_warnings(), flow():
        warnings.simplefilter("error")
        get_run_logger().info("x", extra={"levelno": 1})
    assert collected.records[0].levelno_ == 1


@given(
    extra=st.one_of(st.none(), st.dictionaries(st.text(), st.integers()), st.integers(), st.lists(st.text()))
)
def test_no_extra_breaks_the_call(extra):
    """Whatever is given as extra, one record comes out and nothing is raised."""
    collector = Collector()
    logger = logging.Logger("any", logging.INFO)
    logger.addHandler(collector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RunLogAdapter(logger, {"run": 1}).info("x", extra=extra)
    (record,) = collector.records
    assert record.run == 1 or (isinstance(extra, dict) and "run" in extra)


def test_a_mapping_that_is_no_dict(collected):
    """Any mapping serves as extra; what is none becomes an extra named extra."""
    with flow():
        get_run_logger().info("x", extra=[("a", 1)])
        get_run_logger().info("x", extra=7)
    assert collected.records[0].a == 1
    assert collected.records[1].extra == 7


# --- silence ------------------------------------------------------------------------------------------


def test_disable_run_logger(collected):
    """Inside, nothing is logged, and outside of a run there is a disabled logger; afterwards all is as before."""
    with disable_run_logger():
        null = get_run_logger()
        assert null.disabled
        assert null.name == "null"
        null.error("not logged")
        with flow(), task():
            assert get_run_logger().disabled
            get_run_logger().error("not logged")
    with flow():
        assert not get_run_logger().disabled
        get_run_logger().info("logged")
    assert collected.messages == ["logged"]
    with pytest.raises(MissingContextError):
        get_run_logger()


def test_one_disabled_run_logger_is_not_enough():
    """With only one of them disabled, a missing run is still an error."""
    with disable_logger("runlog.flow_runs"), pytest.raises(MissingContextError):
        get_run_logger()


@pytest.mark.parametrize("before", [True, False])
def test_disabling_nests(before):
    """The outermost block restores what was before it."""
    logger = logging.getLogger("runlog.nested")
    logger.disabled = before
    with disable_logger(logger.name):
        with disable_logger(logger.name):
            assert logger.disabled
        assert logger.disabled
    assert logger.disabled is before


def test_disabling_overlaps_in_threads():
    """Blocks that overlap without nesting keep the logger disabled until the last ends."""
    logger = logging.getLogger("runlog.overlapping")
    first, second = disable_logger(logger.name), disable_logger(logger.name)
    with ThreadPoolExecutor(1) as pool:
        first.__enter__()
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert logger.disabled
        pool.submit(second.__exit__, None, None, None).result()
    assert not logger.disabled


# --- print --------------------------------------------------------------------------------------------


def test_prints_are_logged(collected, capsys):
    """In a run that asks for it, print logs its text at INFO with the place of the call."""
    with flow(log_prints=True):
        line = here() + 1
        print("loaded", 3, "rows 100%", sep="-", end="\r\n")
        print("no newline", end="")  # such as a progress bar
        print("two\nlines", file=sys.stdout, flush=True)
    assert collected.messages == ["loaded-3-rows 100%", "no newline", "two\nlines"]
    record = collected.records[0]
    assert (record.levelname, record.pathname, record.lineno) == ("INFO", __file__, line)
    assert record.funcName == "test_prints_are_logged"
    assert record.flow_run_id == "f-1"
    assert capsys.readouterr().out == ""


def test_prints_elsewhere_are_left_alone(collected, capsys):
    """A print to another file, outside of a run, or in a run that does not ask is a print."""
    buffer = io.StringIO()
    with flow(log_prints=True):
        print("to a file", file=buffer)
        print("to stderr", file=sys.stderr)
        with task(log_prints=False):
            print("in a task run that does not ask")
    with patch_print(), flow():
        print("in a flow run that does not ask")
    with patch_print():
        print("outside")
    assert buffer.getvalue() == "to a file\n"
    captured = capsys.readouterr()
    assert captured.err == "to stderr\n"
    assert captured.out.splitlines() == [
        "in a task run that does not ask",
        "in a flow run that does not ask",
        "outside",
    ]
    assert collected.records == []


def test_a_wrong_print_raises_what_print_raises():
    """Arguments that print refuses are refused as by print."""
    with flow(log_prints=True), pytest.raises(TypeError, match="sep must be None or a string"):
        print(1, sep=1)  # noqa: FURB105 - it is wrong on purpose


def test_print_is_put_back():
    """The last of nested and overlapping patches puts the real print back, in any order."""
    real = builtins.print
    first, second = patch_print(), patch_print()
    with ThreadPoolExecutor(1) as pool:
        first.__enter__()
        patched = builtins.print
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert builtins.print is patched is not real
        pool.submit(second.__exit__, None, None, None).result()
    assert builtins.print is real


def test_a_later_patch_of_somebody_else_survives(collected, capsys, monkeypatch):
    """Whoever replaces print after us keeps it, and what they saved as print still prints."""
    monkeypatch.setattr(builtins, "print", builtins.print)  # puts the real one back, whatever happens here
    with flow(log_prints=True):
        ours = builtins.print
        theirs = lambda *values: ours("theirs:", *values)  # noqa: E731 - somebody else's
        builtins.print = theirs
    assert builtins.print is theirs
    print("a")
    builtins.print = ours  # they put back what they found
    print("b")
    with flow(log_prints=True):
        assert builtins.print is ours
        print("c")
    assert capsys.readouterr().out.splitlines() == ["theirs: a", "b"]
    assert collected.messages == ["c"]


def test_a_handler_that_prints_does_not_go_round(collected, capsys):
    """What a handler prints while a print is logged goes to standard output."""

    class Printer(logging.Handler):
        def emit(self, record):
            print("handled", record.getMessage())

    logging.getLogger("runlog").addHandler(Printer())
    with flow(log_prints=True):
        print("x")
    assert collected.messages == ["x"]
    assert capsys.readouterr().out == "handled x\n"


# --- LogEavesdropper ----------------------------------------------------------------------------------


def test_eavesdropping():
    """It collects what the logger and its children log from its level, only during the block."""
    logger = logging.getLogger("eavesdropped")
    logger.setLevel(logging.ERROR)
    eavesdropper = LogEavesdropper("eavesdropped", level=logging.INFO)
    for _ in range(2):
        with eavesdropper:
            logger.info("one, %d", 1)
            logger.debug("too low")
            logger.getChild("child").warning("two")
        logger.error("too late")
        assert eavesdropper.text() == "[INFO]: one, 1\n[WARNING]: two"
        assert [record.levelname for record in eavesdropper.get_logged()] == ["INFO", "WARNING"]
    assert logger.level == logging.ERROR
    assert logger.handlers == []


def test_eavesdropping_hides_nothing_from_others():
    """A high level does not raise the logger's, and no level leaves it as it is."""
    logger = logging.getLogger("eavesdropped")
    logger.setLevel(logging.INFO)
    with LogEavesdropper("eavesdropped", level="ERROR") as strict, LogEavesdropper("eavesdropped") as easy:
        assert logger.level == logging.INFO
        logger.info("x")
        logger.error("y")
    assert strict.text() == "[ERROR]: y"
    assert easy.text() == "[INFO]: x\n[ERROR]: y"


def test_eavesdropping_on_a_record_that_cannot_be_formatted(capsys):
    """It is reported as by every handler, and the rest is collected."""
    logging.getLogger("eavesdropped").propagate = False  # pytest's own handler raises instead
    with LogEavesdropper("eavesdropped", level="INFO") as eavesdropper:
        logging.getLogger("eavesdropped").info("%d", "x")
        logging.getLogger("eavesdropped").info("y")
    assert eavesdropper.text() == "[INFO]: y"
    assert "Logging error" in capsys.readouterr().err


def test_leaving_an_eavesdropper_twice_is_harmless():
    """A second exit changes nothing."""
    eavesdropper = LogEavesdropper("eavesdropped")
    with eavesdropper:
        pass
    eavesdropper.__exit__(None, None, None)


# --- Prefect 1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", ["before", "after"])
@pytest.mark.parametrize("name", ["Task B", "a.b", "täsk %s {x}", "runlog.x"])
def test_a_logger_named_after_the_task(name, attached):
    """A handler on the logger named after a task gets that task's lines only; each reaches the run logger once."""
    of_task, of_runs, of_all = Collector(), Collector(), Collector()
    get_logger("task_runs").addHandler(of_runs)
    get_logger().addHandler(of_all)
    get_logger().setLevel(logging.INFO)
    if attached == "before":
        get_logger(name).addHandler(of_task)
    with flow(), TaskRunContext(LOAD, name):
        context.get("logger").info("first")
        if attached == "after":
            get_logger(name).addHandler(of_task)
        context.get("logger").info("of the task")
    with flow(), TaskRunContext(LOAD, "other"):
        context.get("logger").info("of another")
    with flow():
        context.get("logger").info("of the flow")
    expected = ["first", "of the task"] if attached == "before" else ["of the task"]
    assert of_task.messages == expected
    assert {record.task_run_id for record in of_task.records} == {"t-1"}
    assert of_runs.messages == ["first", "of the task", "of another"]
    assert of_all.messages == ["first", "of the task", "of another", "of the flow"]


def test_levels_of_a_named_logger_are_not_stale():
    """Levels that logging worked out before the logger was bound are forgotten."""
    named = get_logger("Task C")
    get_logger("task_runs").setLevel(logging.DEBUG)
    get_logger().setLevel(logging.ERROR)
    assert not named.isEnabledFor(logging.DEBUG)
    with flow(), TaskRunContext(LOAD, "Task C"):
        assert context.get("logger").isEnabledFor(logging.DEBUG)
    named.setLevel(logging.WARNING)
    with flow(), TaskRunContext(LOAD, "Task C"):
        assert not context.get("logger").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("name", "logger"),
    [
        ("server", "runlog.task_runs.server"),
        ("task_runs", "runlog.task_runs.task_runs"),
        ("server.x", "runlog.task_runs.server.x"),
        ("runlog", "runlog.task_runs.runlog"),
        ("", "runlog.task_runs"),
    ],
)
def test_tasks_named_like_our_own_loggers(name, logger):
    """The loggers that runlog uses itself keep their place; such a task logs below the run logger."""
    before = get_logger("server").parent
    with flow(), TaskRunContext(LOAD, name):
        assert context.get("logger").name == logger
    assert get_logger("server").parent is before


def test_after_a_bare_import():
    """``runlog.context.get("logger")`` needs no other import."""
    program = "import runlog; print(runlog.context.get('logger').name)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == "runlog\n"


# --- fork ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_locks_held_at_a_fork_do_not_hang_the_child():
    """A child forked while another thread holds our locks can patch print and disable loggers."""
    program = """
import os, threading
from runlog import loggers
loggers._patching.acquire(); loggers._disabling.acquire(); loggers._naming.acquire()
pid = os.fork()
if pid == 0:
    with loggers.patch_print(), loggers.disable_run_logger():
        os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=dict(os.environ))
