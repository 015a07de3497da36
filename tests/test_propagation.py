"""Runs in other threads, processes and programs: what travels, and what happens where it arrives."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest

from runlog import configuration, context, propagation
from runlog._handover import Handover
from runlog.context import FlowRunContext, TaskRunContext, current_run_context, current_run_fields
from runlog.exceptions import MissingContextError
from runlog.loggers import get_logger, get_run_logger
from runlog.propagation import capture, carry, restore
from runlog.runs import flow_run, task_run
from runlog.settings import get_current_settings, reset_settings_cache, temporary_settings

ETL = SimpleNamespace(id="f-1", name="swift-otter")
LOAD = SimpleNamespace(id="t-1", name="load-1")
METHODS = [
    name for name in ("fork", "spawn", "forkserver") if name in multiprocessing.get_all_start_methods()
]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """Nothing has arrived in this process yet; logging counts as not set up."""
    monkeypatch.setattr(propagation, "_is_set_up_in", "")
    monkeypatch.setattr(propagation, "_known_settings", [])
    monkeypatch.setattr(context, "_inherited", None)
    monkeypatch.setattr(context, "_environment_is_read", False)
    reset_settings_cache()
    yield
    reset_settings_cache()


@pytest.fixture
def set_up(monkeypatch):
    """Counts how often logging was set up, instead of doing it."""
    calls = []
    monkeypatch.setattr(configuration, "setup_logging", lambda: calls.append(get_current_settings()))
    return calls


def flow(**options):
    return FlowRunContext(ETL, "etl", **({"log_prints": False} | options))


def task(**options):
    return TaskRunContext(LOAD, "load", **options)


def from_elsewhere(**parts):
    """Text as another process would have captured it."""
    run = {"flow_run_id": "f-1", "flow_run_name": "swift-otter", "flow_name": "etl"}
    return Handover(**({"run": run, "process": "another"} | parts)).encode()


# Module-level, so that they can be pickled by name.
def fields(*args):
    return dict(current_run_fields()), args


def state():
    return {
        "pid": os.getpid(),
        "fields": dict(get_run_logger().extra),
        "level": get_current_settings().logging.level,
        "has_handlers": bool(get_logger("task_runs").handlers),
    }


async def fields_async(*args):
    await asyncio.sleep(0)
    return dict(current_run_fields()), args


def fields_step_by_step():
    got = yield current_run_fields()["task_run_id"]
    yield got
    return current_run_fields()["task_run_id"]


async def fields_step_by_step_async():
    yield current_run_fields()["task_run_id"]
    await asyncio.sleep(0)
    yield current_run_fields()["task_run_id"]


def fail_in_a_task():
    with task_run("inner"):
        raise ValueError("bad")


# --- threads ------------------------------------------------------------------------------------------


def test_a_thread_pool():
    """Functions carried into threads run in the run that was active when they were carried, at once."""
    barrier = threading.Barrier(8, timeout=60)

    def work(number):
        barrier.wait()
        return current_run_fields(), number

    with ThreadPoolExecutor(8) as pool, flow():
        with task() as run:
            carried = carry(work)
        futures = [pool.submit(carried, number) for number in range(8)]
        assert [future.result() for future in futures] == [(run.fields, number) for number in range(8)]
        assert pool.submit(current_run_context).result() is None
        assert current_run_context().run_name == "swift-otter"


def test_runs_opened_there_are_children():
    """A run opened in a carried function is inside the carried run."""
    with flow() as outer, ThreadPoolExecutor(1) as pool:

        def work():
            with task() as inner:
                return inner.outer

        assert pool.submit(carry(work)).result() is outer


def test_nothing_to_carry():
    """Carried outside of any run, a function runs in whatever is active where it is called."""
    carried = carry(fields)
    with flow() as run:
        assert carried(1) == (dict(run.fields), (1,))


def test_a_carried_function_looks_like_its_function():
    """Name, documentation and signature are those of the function, which is kept."""

    def work(number: int) -> None:
        """Work."""

    carried = carry(work)
    assert (carried.__name__, carried.__doc__) == ("work", "Work.")
    assert inspect.signature(carried) == inspect.signature(work)
    assert carried.__wrapped__ is work
    assert repr(carried) == f"carry({work!r})"


def test_callables_of_other_kinds():
    """Partials, methods and objects can be carried; what cannot be called is refused."""

    class Adder:
        def __call__(self, a):
            return a, current_run_fields()["flow_run_id"]

    with flow():
        carried = [carry(Adder()), carry(functools.partial(fields, 1)), carry("abc".upper)]
    assert carried[0](1) == (1, "f-1")
    assert carried[1](2)[1] == (1, 2)
    assert carried[2]() == "ABC"
    with pytest.raises(TypeError, match=r"carry\(\) takes a function, got int"):
        carry(3)


def test_prints_are_carried(capsys):
    """A run that logs what is printed does so in other threads."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    get_logger().addHandler(handler)
    get_logger().setLevel(logging.INFO)
    with flow(log_prints=True), ThreadPoolExecutor(1) as pool:
        pool.submit(carry(lambda: print("printed"))).result()
    assert lines == ["printed"]
    assert capsys.readouterr().out == ""


# --- async and generators -----------------------------------------------------------------------------


def test_async_functions():
    """A coroutine awaited elsewhere is in the run, is recognised as one, and leaks nothing."""
    with flow() as run:
        carried = carry(fields_async)
    assert inspect.iscoroutinefunction(carried) or asyncio.iscoroutinefunction(carried)
    assert inspect.iscoroutinefunction(type(carried).__call__)

    async def main():
        assert await asyncio.gather(carried(1), carried(2)) == [(dict(run.fields), (n,)) for n in (1, 2)]
        assert await carried(3) == (dict(run.fields), (3,))
        assert current_run_context() is None

    asyncio.run(main())
    copy = pickle.loads(pickle.dumps(carried))
    assert asyncio.run(copy(1)) == (dict(run.fields), (1,))


def test_generators():
    """A generator's steps are in the run, its reader is not; values go both ways."""
    with flow(), task():
        carried = carry(fields_step_by_step)
    for version in (carried, pickle.loads(pickle.dumps(carried))):
        generator = version()
        assert next(generator) == "t-1"
        assert current_run_context() is None
        assert generator.send("sent") == "sent"
        with pytest.raises(StopIteration) as stop:
            next(generator)
        assert stop.value.value == "t-1"


def test_async_generators():
    """The same holds for async generators."""
    with flow(), task():
        carried = carry(fields_step_by_step_async)

    async def main():
        return [(step, current_run_context()) async for step in carried()]

    assert asyncio.run(main()) == [("t-1", None), ("t-1", None)]


# --- text ---------------------------------------------------------------------------------------------


def test_capture_writes_the_run():
    """The text is JSON with version, ids, names, extras and changed settings."""
    with (
        temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}),
        flow(),
        task(attempt=2, extra={"table": "orders"}),
    ):
        value = json.loads(capture())
    assert value.pop("process") != ""
    assert value["settings"].pop("PREFECT_LOGGING_LEVEL") == "DEBUG"
    value.pop("settings")  # RUNLOG_HOME of the test
    assert value == {
        "v": 1,
        "run": {
            "flow_run_id": "f-1",
            "flow_run_name": "swift-otter",
            "flow_name": "etl",
            "task_run_id": "t-1",
            "task_run_name": "load-1",
            "task_name": "load",
            "attempt": 2,
        },
        "extra": {"table": "orders"},
    }


def test_odd_fields_travel_as_text():
    """A run field that an extra replaced by something else arrives as text."""
    with flow(extra={"flow_name": Path("x")}):
        assert json.loads(capture())["run"]["flow_name"] == "x"


def test_capture_never_holds_a_key(monkeypatch):
    """Keys of the settings and extras that look secret stay at home."""
    secrets = {"PREFECT_API_KEY": "pnu_secretkey", "PREFECT_API_AUTH_STRING": "admin:secretkey"}
    with (
        temporary_settings(secrets),
        flow(extra={"password": "secretkey", "header": "Bearer secretkey12345"}),
    ):
        assert "secretkey" not in capture()


def test_capture_without_a_run():
    """Outside of any run, only settings are captured, and restored."""
    assert "run" not in json.loads(capture())
    with restore(capture()) as run:
        assert run is None
        with pytest.raises(MissingContextError):
            get_run_logger()


def test_restore_in_the_same_process(set_up):
    """In the process that captured it, text brings back the run and neither settings nor logging."""
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}), flow(), task(extra={"a": 1}) as run:
        text = capture()
    with restore(text) as restored:
        assert restored is current_run_context()
        assert restored.fields == run.fields
        assert FlowRunContext.get().run_id == "f-1"
        assert get_current_settings().logging.level == "INFO"
    assert current_run_context() is None
    assert set_up == []


def test_restore_in_another_process(set_up):
    """Elsewhere the settings are in force during the block, and logging is set up, once, with them."""
    text = from_elsewhere(settings={"PREFECT_LOGGING_LEVEL": "DEBUG"}, log_prints=True)
    for _ in range(2):
        with restore(text) as run:
            assert get_current_settings().logging.level == "DEBUG"
            assert run.log_prints
        assert get_current_settings().logging.level == "INFO"
    assert [settings.logging.level for settings in set_up] == ["DEBUG"]


def test_settings_are_worked_out_once(set_up):
    """Calls with the same settings get the same object, and only the last few are remembered."""
    seen = []
    for level in ("DEBUG", "DEBUG", *("ERROR", "WARNING") * 10, "DEBUG"):
        number = str(len(seen) % 20)
        settings = {
            "PREFECT_LOGGING_LEVEL": level,
            "RUNLOG_SERVICE_NAME": number if level != "DEBUG" else "x",
        }
        with restore(from_elsewhere(settings=settings)):
            seen.append(get_current_settings())
    assert seen[0] is seen[1] is not seen[-1]
    assert len(propagation._known_settings) == propagation.MAX_KNOWN_SETTINGS


def test_settings_that_are_the_same_here_are_not_applied(set_up):
    """Nothing is done for settings that are in force already."""
    before = get_current_settings()
    text = from_elsewhere(settings={"PREFECT_LOGGING_LEVEL": "DEBUG"})
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}) as here, restore(text):
        assert get_current_settings() is here
    with restore(from_elsewhere()):
        assert get_current_settings() is before


def test_wrong_settings_do_not_keep_a_function_from_running(set_up):
    """Settings that are refused here are warned of, and the run is restored without them."""
    with (
        pytest.warns(RuntimeWarning, match="settings that came with a run are not used: .*NO_SUCH"),
        restore(from_elsewhere(settings={"RUNLOG_NO_SUCH": "1"})) as run,
    ):
        assert run.run_name == "swift-otter"


def test_logging_that_cannot_be_set_up(monkeypatch):
    """The same holds for a logging configuration that is wrong here."""
    monkeypatch.setattr(configuration, "setup_logging", lambda: 1 / 0)
    with (
        pytest.warns(RuntimeWarning, match="logging could not be set up .* division by zero"),
        restore(from_elsewhere()) as run,
    ):
        assert run.run_name == "swift-otter"


def test_logging_that_is_set_up_is_left_alone(set_up):
    """Where runlog's loggers have handlers, set-up is not repeated."""
    get_logger("flow_runs").addHandler(logging.NullHandler())
    with restore(from_elsewhere()):
        assert set_up == []


def test_restore_from_the_environment(monkeypatch, set_up):
    """Without text, the environment counts; without that, nothing happens."""
    with restore() as run:
        assert run is None
    monkeypatch.setenv("RUNLOG_CONTEXT", from_elsewhere())
    with restore() as run:
        assert run.run_name == "swift-otter"


@pytest.mark.parametrize("text", ["{", "[]", '{"v":2}', '{"v":1,"run":3}'])
def test_text_that_cannot_be_understood(text):
    """Odd text is warned of, and there is no run."""
    restored = restore(text)
    with pytest.warns(RuntimeWarning, match="text is not a run's context and is ignored"):
        run = restored.__enter__()
    assert run is None
    restored.__exit__(None, None, None)


def test_no_text():
    """Empty text is no run, and nothing to warn of."""
    with restore("") as run:
        assert run is None


# --- processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool(method):
    """In a pool of any kind the function is in the run, with its settings, and logging is set up."""
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_TO_API_ENABLED": "false"}):
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method))
        with pool, flow(), task(extra={"a": 1}) as run:
            seen = [pool.submit(carry(state)).result() for _ in range(2)]
    assert all(one["fields"] == dict(run.fields) for one in seen)
    assert {one["level"] for one in seen} == {"DEBUG"}
    assert all(one["has_handlers"] for one in seen)
    assert seen[0]["pid"] == seen[1]["pid"] != os.getpid()


@pytest.mark.skipif("fork" not in METHODS, reason="no fork on this system")
def test_a_forked_process_without_pickling():
    """`multiprocessing.Process` hands a function to its fork as it is; logging is set up there too."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    with temporary_settings({"PREFECT_LOGGING_TO_API_ENABLED": "false"}), flow(), task() as run:
        process = fork.Process(target=carry(lambda: sender.send(state())))
        process.start()
        assert receiver.poll(60)
        seen = receiver.recv()
        process.join(60)
    assert process.exitcode == 0
    assert seen["fields"] == dict(run.fields)
    assert seen["has_handlers"]


@pytest.mark.skipif("fork" not in METHODS, reason="no fork on this system")
def test_an_exception_from_a_process():
    """A traceback that was logged in the worker is not logged again where the exception arrives."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    get_logger().addHandler(handler)
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pool, pytest.raises(ValueError, match="bad"), flow_run("etl", log_prints=False):
        pool.submit(carry(fail_in_a_task)).result()
    assert records[-1].getMessage().endswith("ValueError: bad")
    assert records[-1].exc_info is None


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_pickle_can_be_passed_on(pickler):
    """What arrived can be pickled again, as schedulers do, and is still in the run."""
    with flow() as run:
        carried = carry(fields)
    twice = pickle.loads(pickler.dumps(pickle.loads(pickler.dumps(carried))))
    assert twice(1) == (dict(run.fields), (1,))


def test_pickling_in_another_thread_takes_the_right_settings():
    """Executors pickle in a thread of theirs: settings are those of where it was carried."""
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}), flow():
        carried = carry(fields)
    with ThreadPoolExecutor(1) as pool:
        text = pickle.loads(pool.submit(pickle.dumps, carried).result())._origin.text
    assert json.loads(text)["settings"]["PREFECT_LOGGING_LEVEL"] == "DEBUG"


def test_cloudpickle_of_a_function_in_main(tmp_path):
    """A function of ``__main__`` that logs is sent by value, without any context variable."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, cloudpickle\n"
        "from runlog import carry, flow_run, get_run_logger\n"
        "def work(number):\n"
        "    return get_run_logger().extra['flow_name'], number\n"
        "with flow_run('etl', log_prints=False):\n"
        "    sys.stdout.buffer.write(cloudpickle.dumps(carry(work)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], check=True, capture_output=True, env=dict(os.environ)
    )
    receiver = "import sys, pickle; print(*pickle.load(sys.stdin.buffer)(7))"
    arrived = subprocess.run(
        [sys.executable, "-c", receiver],
        input=done.stdout,
        check=True,
        capture_output=True,
        env=os.environ | {"PREFECT_LOGGING_TO_API_ENABLED": "false"},
    )
    assert arrived.stdout.split() == [b"etl", b"7"]


# --- programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", "import runlog; runlog.setup_logging();"])
def test_a_child_program(first):
    """A program started with RUNLOG_CONTEXT is in the run, in all threads, with the parent's settings."""
    program = first + (
        "import json, threading; from runlog import get_run_logger; from runlog.settings import get_current_settings;"
        "seen = [];"
        "thread = threading.Thread(target=lambda: seen.append(dict(get_run_logger().extra)));"
        "thread.start(); thread.join();"
        "print(json.dumps([dict(get_run_logger().extra), *seen, get_current_settings().logging.level]))"
    )
    settings = {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_LOGGING_TO_API_ENABLED": "false"}
    with temporary_settings(settings), flow(), task(extra={"a": 1}) as run:
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"RUNLOG_CONTEXT": capture()},
        )
    assert json.loads(done.stdout) == [dict(run.fields), dict(run.fields), "ERROR"]
    assert done.stderr == ""


# --- fork ---------------------------------------------------------------------------------------------


@pytest.mark.skipif("fork" not in METHODS, reason="no fork on this system")
def test_a_lock_held_at_a_fork_does_not_hang_the_child():
    """A child forked while another thread sets logging up can do so itself."""
    program = """
import os
from runlog import propagation
from runlog.propagation import restore
propagation._arriving.acquire()
pid = os.fork()
if pid == 0:
    with restore('{"v":1,"run":{"flow_run_id":"f"},"process":"another"}') as run:
        os._exit(0 if run.run_id == "f" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    environment = os.environ | {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)


def test_settings_of_the_moment_come_along():
    """A carried function has the settings that were active where it was carried, in a thread as well."""
    from runlog.settings import get_current_settings, temporary_settings

    with temporary_settings({"PREFECT_API_URL": "http://127.0.0.1:1/api"}):
        carried = carry(lambda: get_current_settings().api.url)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(carried).result() == "http://127.0.0.1:1/api"
    assert get_current_settings().api.url is None
