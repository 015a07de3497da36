"""Programs of many processes: every one is a producer of its own, and each line whose call returned is stored once."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from speakers import WAIT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

needs_gunicorn = pytest.mark.skipif(
    importlib.util.find_spec("gunicorn") is None, reason="needs gunicorn: pip install 'runlog[dev]'"
)
needs_celery = pytest.mark.skipif(
    importlib.util.find_spec("celery") is None, reason="needs celery: pip install 'runlog[dev]'"
)


# --- gunicorn ---

WEB_APPLICATION = """
import atexit, os, runlog
from speaking import note, say

say("import")
with runlog.flow_run("warm-up"):
    say("run", runlog.get_run_logger())
atexit.register(lambda: say("atexit"))

def application(environ, start_response):
    with runlog.flow_run("request"):
        say("request", runlog.get_run_logger())
    while environ["PATH_INFO"] == "/endless":
        say("endless")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""

WEB_CONFIGURATION = """
from speaking import note, say
def when_ready(server):
    note("ready")
def worker_exit(server, worker):
    say("worker_exit")
"""


@pytest.fixture
def web_server(speakers):
    """Start gunicorn with two workers that fork from a loaded application; returns it and how to ask it."""
    # A socket's path is short, and a test's directory need not be.
    directory = tempfile.mkdtemp()
    address = os.path.join(directory, "s")
    speakers.write("web_application.py", WEB_APPLICATION)
    speakers.write("web_configuration.py", WEB_CONFIGURATION)

    def ask(path="/", read=True):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(WAIT)
        connection.connect(address)
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        if not read:
            return connection
        with connection, connection.makefile("rb") as answer:
            return int(answer.read().rpartition(b"\r\n")[2])

    process = speakers.start(
        *("-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"unix:{address}"),
        *("--config", "web_configuration.py", "--log-level", "warning", "--worker-tmp-dir", directory),
        *("--no-control-socket", "web_application:application"),
    )
    speakers.wait_until(lambda: "ready" in speakers.notes)
    yield process, ask
    shutil.rmtree(directory)


def ask_until_both_answered(ask):
    """Ask the web server until two workers have answered; returns how often."""
    pids = []
    while len(set(pids)) < 2:
        pids.append(ask())
        assert len(pids) < 10_000
    return len(pids)


@needs_gunicorn
def test_gunicorn_with_preload(speakers, web_server):
    """Lines of the import, of runs, of requests and of workers that end arrive, once, under an identity for each."""
    process, ask = web_server
    times = ask_until_both_answered(ask)
    process.terminate()
    assert speakers.code_of(process) == 0
    assert "Traceback" not in speakers.errors_of(process)
    assert (speakers.said_at("import"), speakers.said_at("run"), speakers.said_at("request")) == (1, 1, times)
    workers = speakers.pids_at("request")
    assert speakers.pids_at("worker_exit") == workers
    assert speakers.pids_at("atexit") == {*workers, process.pid}
    speakers.check()


@needs_gunicorn
def test_gunicorn_with_a_worker_that_is_killed(speakers, web_server):
    """The lines of a worker that was killed while it logged are sent, and the others go on."""
    process, ask = web_server
    ask_until_both_answered(ask)
    with ask("/endless", read=False):
        speakers.wait_until(lambda: speakers.said_at("endless") > 200)
        (killed,) = speakers.pids_at("endless")
        os.kill(killed, signal.SIGKILL)
    before = speakers.pids_at("request")
    ask_until_both_answered(ask)
    process.terminate()
    assert speakers.code_of(process) == 0
    assert len(speakers.pids_at("request") - before) == 1
    speakers.finish()
    assert speakers.check() > 200


# --- Celery ---

TASKS = """
import os, celery, runlog
from celery.signals import worker_process_init, worker_process_shutdown, worker_ready
from speaking import note, say

say("import")
app = celery.Celery("tasks", broker="memory://")
app.conf.broker_transport_options = {"polling_interval": 0.01}
app.conf.broker_connection_retry_on_startup = False

@app.task
def work(lines):
    with runlog.flow_run("work"):
        for _ in range(lines):
            say("task", runlog.get_run_logger())
    note("done")

@app.task
def endless():
    while True:
        say("endless")

@worker_process_init.connect
def on_init(**_):
    say("init")

@worker_process_shutdown.connect
def on_shutdown(**_):
    say("shutdown")

@worker_ready.connect
def on_ready(**_):
    say("ready")
    if "ENDLESS" in os.environ:
        endless.delay()
    for _ in range(20):
        work.delay(10)
"""


@pytest.fixture
def task_worker(speakers):
    """Start Celery with two processes for its tasks, of which there are 20 with 10 lines each."""
    speakers.write("tasks.py", TASKS)

    def start(*options, **changes):
        return speakers.start(
            *("-m", "celery", "--app", "tasks", "worker", "--pool", "prefork", "--concurrency", "2"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"),
            *options,
            **changes,
        )

    return start


@needs_celery
@pytest.mark.parametrize("most_tasks", [None, 3])
def test_celery_prefork(speakers, task_worker, most_tasks):
    """Lines of tasks in a run arrive, once, also of processes that are replaced after a few tasks."""
    process = task_worker(*([] if most_tasks is None else ["--max-tasks-per-child", str(most_tasks)]))
    speakers.wait_until(lambda: len(speakers.notes) == 20)
    process.terminate()
    assert speakers.code_of(process) == 0
    assert "Traceback" not in speakers.errors_of(process)
    speakers.finish()
    assert speakers.said_at("task") == 200
    assert len(speakers.pids_at("task")) >= (1 if most_tasks is None else 7)
    assert speakers.pids_at("task") <= speakers.pids_at("init")
    assert process.pid not in speakers.pids_at("task")
    speakers.check()


@needs_celery
def test_celery_ends_while_tasks_log(speakers, task_worker):
    """A warm shutdown waits for the tasks that run, and their lines arrive."""
    process = task_worker()
    speakers.wait_until(lambda: speakers.said_at("task") > 0)
    process.terminate()
    assert speakers.code_of(process) == 0
    speakers.finish()
    assert speakers.said_at("task") == 10 * len(speakers.notes)
    speakers.check()


@needs_celery
def test_celery_with_a_process_that_is_killed(speakers, task_worker):
    """The lines of a process that was killed in a task are sent, and the other tasks run."""
    process = task_worker(ENDLESS="1")
    speakers.wait_until(lambda: speakers.said_at("endless") > 200)
    (killed,) = speakers.pids_at("endless")
    os.kill(killed, signal.SIGKILL)
    speakers.wait_until(lambda: len(speakers.notes) == 20)
    process.terminate()
    speakers.code_of(process)
    speakers.finish()
    assert speakers.check() > 400


# --- out of memory ---

MEMORY = 96 * 2**20
"""Bytes that a control group may use: a program that logs needs less than a third."""


@pytest.fixture
def small_memory():
    """A file: a process that writes 0 to it may use `MEMORY` bytes, and is killed by Linux if it wants more."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("needs root on Linux, to limit the memory of a process so that the system kills it")
    name = f"runlog-test-{os.getpid()}"
    for base, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / name
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(MEMORY))
                yield group / "cgroup.procs"
                return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made here, to limit the memory of a process")


def test_out_of_memory(speakers, small_memory):
    """The lines of a program that the system kills for its use of memory are sent by the next one."""
    process = speakers.program(
        f"""
from speaking import say
with open({str(small_memory)!r}, "w") as group:
    group.write("0")
import threading
def chatter(place):
    while True:
        say(place)
for n in range(2):
    threading.Thread(target=chatter, args=(f"thread{{n}}",), daemon=True).start()
taken = []
while True:
    say("main")
    taken.append(bytearray(200_000))
"""
    )
    assert speakers.code_of(process) == -signal.SIGKILL
    assert speakers.errors_of(process) == ""
    assert speakers.said_at("main") > 100
    speakers.finish()
    assert speakers.check() > 100


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs /proc, to know how much memory is used"
)
def test_memory_errors(speakers):
    """A program for which there is no more memory gets its own MemoryError, and its lines arrive."""
    code, errors = speakers.run(
        """
import resource, runlog
from speaking import say
say("before")
assert runlog.flush(30)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
for _ in range(20):
    try:
        bytearray(2**27)
    except MemoryError:
        say("refused")
"""
    )
    assert (code, errors) == (0, "")
    assert speakers.said_at("refused") == 20
    speakers.check()


# --- threads that fail, and threads that outlive the program ---


def test_exceptions_and_exits_in_threads(speakers):
    """An exception in a thread goes to the program's own hook and sys.exit ends the thread; all lines arrive."""
    code, errors = speakers.run(
        """
import sys, threading
from speaking import note, say
def hook(args):
    say("hook")
    note(args.exc_type.__name__)
threading.excepthook = hook
def fail(n):
    say("before")
    if n % 2:
        sys.exit(3)
    raise LookupError(n)
threads = [threading.Thread(target=fail, args=(n,)) for n in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert threading.excepthook is hook
threading.excepthook = threading.__excepthook__
thread = threading.Thread(target=fail, args=(0,), name="last")
thread.start()
thread.join()
"""
    )
    assert code == 0
    assert errors.startswith("Exception in thread last:\nTraceback")
    assert errors.endswith("LookupError: 0\n")
    assert errors.count("Traceback") == 1
    assert sorted(speakers.notes) == ["LookupError"] * 5 + ["SystemExit"] * 5
    assert (speakers.said_at("before"), speakers.said_at("hook")) == (11, 10)
    speakers.check()


def test_exit_hooks_that_fail(speakers):
    """Exit hooks that log and raise, the last one after logging itself has ended: no line is lost."""
    code, errors = speakers.run(
        """
import atexit
def fail(place):
    say(place)
    raise LookupError(place)
atexit.register(fail, "first")  # runs last, for logging is not yet imported
from speaking import say
say("main")
atexit.register(fail, "last")
"""
    )
    assert code == 0
    assert errors.count("Traceback") == 2
    assert speakers.said_at("first") == speakers.said_at("last") == 1
    speakers.finish()
    speakers.check(most_producers=2)


def test_a_daemon_thread_that_logs_to_the_end(speakers):
    """Lines that come after the last delivery of a program that ends are sent by the next one."""
    code, errors = speakers.run(
        """
import threading
from speaking import say
def chatter():
    while True:
        say("daemon")
threading.Thread(target=chatter, daemon=True).start()
for _ in range(200):
    say("main")
"""
    )
    assert code == 0
    assert "Traceback" not in errors
    speakers.finish()
    assert speakers.check(most_producers=2) > 200


# --- children ---


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_children_of_multiprocessing_that_are_ended(speakers, method, end):
    """Lines of a child that its parent terminates or kills while it logs are sent, by the parent or the next."""
    code, errors = speakers.run(
        f"""
import multiprocessing
from speaking import say
def work(ready):
    while True:
        for _ in range(100):
            say("child")
        ready.set()
if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    say("parent")
    ready = context.Event()
    child = context.Process(target=work, args=(ready,))
    child.start()
    assert ready.wait(60)
    child.{end}()
    child.join(60)
    say("parent")
"""
    )
    assert (code, errors) == (0, "")
    speakers.finish()
    assert speakers.check() > 100


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_with_a_process_that_is_killed(speakers, method):
    """The lines of all workers of a broken `ProcessPoolExecutor` arrive, those of the dead one too."""
    code, errors = speakers.run(
        f"""
import concurrent.futures.process as process_pools, multiprocessing, os, signal
from speaking import note, say
def work(n):
    say("work")
    if n == 25:
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    say("parent")
    context = multiprocessing.get_context("{method}")
    with process_pools.ProcessPoolExecutor(2, mp_context=context) as pool:
        try:
            list(pool.map(work, range(100)))
        except process_pools.BrokenProcessPool:
            note("broken")
"""
    )
    assert (code, errors) == (0, "")
    assert speakers.notes == ["broken"]
    assert speakers.said_at("work") > 20
    speakers.finish()
    speakers.check()


def test_a_pool_whose_processes_are_replaced(speakers):
    """Processes of a `Pool` that end after some tasks, and are terminated at last, leave no line behind."""
    code, errors = speakers.run(
        """
import multiprocessing
from speaking import say
def work(n):
    say("work")
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=5) as pool:
        pool.map(work, range(50), chunksize=1)
"""
    )
    assert (code, errors) == (0, "")
    assert speakers.said_at("work") == 50
    assert len(speakers.pids_at("work")) >= 10
    speakers.finish()
    speakers.check()


@pytest.mark.parametrize(
    "rounds", ["10", pytest.param("200", marks=pytest.mark.soak)], ids=["10 rounds", "200 rounds"]
)
def test_a_fork_in_a_fork_while_threads_log(speakers, rounds):
    """Children and grandchildren that end without any hook, forked while threads log: nothing is lost, no hang."""
    code, errors = speakers.run(
        """
import os, signal, threading
from speaking import say
stop = threading.Event()
def chatter(place):
    while not stop.wait(0.0005):
        say(place)
def start():
    threads = [threading.Thread(target=chatter, args=(f"thread{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    return threads
threads = start()
for _ in range(int(os.environ["ROUNDS"])):
    if (child := os.fork()) == 0:
        start()
        say("child")
        if (grandchild := os.fork()) == 0:
            say("grandchild")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(grandchild, 0)
        say("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
""",
        ROUNDS=rounds,
    )
    assert code == 0
    assert not errors or " of earlier programs wait in " in errors, errors
    assert speakers.said_at("child") == 2 * int(rounds)
    assert speakers.said_at("grandchild") == int(rounds)
    speakers.finish()
    print(speakers.check(), "lines of", 1 + 2 * int(rounds), "processes")
