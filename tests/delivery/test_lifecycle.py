"""Forks and ends of real processes: what was accepted arrives, once, within the deadline."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from runlog import delivery, handlers
from runlog.delivery import DeliveryWorker, InMemoryTransport, Limits, lifecycle
from runlog.delivery.frames import EVENT
from runlog.delivery.retry import Answer
from runlog.delivery.segments import SegmentName, SegmentWriter
from runlog.delivery.spool import make_private_directory
from runlog.handlers import APILogHandler
from runlog.records import decode_batch

WAIT = 60.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


class Sink:
    """A log server that keeps high-water marks and counts what it stores."""

    def __init__(self):
        self.marks = {}
        self.stored = []
        self.resources = []
        lock = threading.Lock()
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                batch = decode_batch(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    mark = sink.marks.get(batch.producer, -1)
                    assert batch.first_seq <= mark + 1
                    sink.stored += [
                        (batch.producer, seq, event.message, event.flow_run_id)
                        for seq, event in batch.numbered()
                        if seq > mark
                    ]
                    sink.marks[batch.producer] = mark = max(mark, batch.last_seq)
                answer = json.dumps({"acked": mark}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def messages(self):
        return sorted(message for _, _, message, _ in self.stored)


@pytest.fixture
def sink():
    sink = Sink()
    yield sink
    sink.close()


PROLOGUE = """
import atexit, logging, multiprocessing, os, signal, sys, threading, time
import runlog
from runlog.handlers import APILogHandler

def configure(**kwargs):
    log = logging.getLogger("app")
    log.setLevel("INFO")
    log.addHandler(APILogHandler(service_name="s", **kwargs))
    return log
"""


@pytest.fixture
def run(tmp_path, sink):
    """Run a program of its own; its standard output, its error output, its exit code and how long it took."""

    def run(code, *, url=None, interval="3600", **environment):
        script = tmp_path / "program.py"
        script.write_text(PROLOGUE + code)
        env = {
            **os.environ,
            "PREFECT_API_URL": sink.url if url is None else url,
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": interval,
            **environment,
        }
        before = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            env=env,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        return done, time.monotonic() - before

    return run


def test_a_normal_end_delivers(run, sink):
    """A program that just ends has delivered its lines, and nothing is printed."""
    done, _ = run('log = configure()\nfor i in range(100): log.info("%03d", i)')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sink.messages == [f"{i:03d}" for i in range(100)]


@pytest.mark.parametrize(
    "end",
    [
        "raise RuntimeError",
        "sys.exit(3)",
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT)",
    ],
)
def test_an_abnormal_end_delivers(run, sink, end):
    """An exception at the top level, an exit code and Ctrl-C run exit hooks: the lines arrive."""
    done, _ = run(f'configure().info("last words")\n{end}')
    assert done.returncode != 0
    assert sink.messages == ["last words"]


def test_lines_logged_while_the_program_ends(run, sink):
    """Lines of exit hooks arrive, of those that run before ours and of those that run after."""
    done, _ = run(
        """
atexit.register(lambda: log.info("registered first, runs last"))
log = configure()
log.info("body")
atexit.register(lambda: log.info("registered last, runs first"))
"""
    )
    assert done.stderr == ""
    assert sink.messages == ["body", "registered first, runs last", "registered last, runs first"]


def test_the_first_line_at_exit(run, sink):
    """Where the interpreter starts no thread any more, the line is sent by the thread that ends."""
    run('log = configure()\natexit.register(lambda: log.info("only"))')
    assert sink.messages == ["only"]


def test_other_threads_log_to_the_end(run, sink):
    """A thread that outlives the main code is waited for by Python, and its lines arrive."""
    run(
        """
log = configure()
log.info("a")
main = threading.main_thread()
def late():
    main.join()
    log.info("after the main thread")
threading.Thread(target=late).start()
"""
    )
    assert sink.messages == ["a", "after the main thread"]


@pytest.mark.parametrize("durability", ["memory", "spool", "sync"])
def test_the_end_has_one_deadline(run, durability):
    """With a server that takes nothing the program ends within its deadline and says what was left."""
    done, took = run(
        """
log = configure(shutdown_timeout=0.2)
other = logging.getLogger("other")
other.addHandler(APILogHandler(service_name="t", shutdown_timeout=0.2))
for i in range(10): log.warning("x")
other.warning("x")
started = time.monotonic()
atexit.register(lambda: print(time.monotonic() - started))
""",
        url="http://127.0.0.1:9/api",
        RUNLOG_DURABILITY=durability,
    )
    assert done.returncode == 0
    if durability == "memory":
        assert "10 lines were not delivered to http://127.0.0.1:9/api" in done.stderr
        assert "1 lines were not delivered" in done.stderr
    else:
        assert "10 lines wait in " in done.stderr
        assert "for http://127.0.0.1:9/api; the next program sends them" in done.stderr
    assert took < 20


@pytest.mark.parametrize("durability", ["memory", "spool"])
def test_no_server_costs_no_time_at_exit(run, durability):
    """Where no server runs, a program does not wait for one; it says what is lost, and nothing if it is kept."""
    done, _ = run(
        """
log = configure(shutdown_timeout=3600)
log.info("x")
""",
        url="",
        RUNLOG_DURABILITY=durability,
    )
    assert done.returncode == 0
    lost = "runlog: 1 lines were not stored: no log server is running; start one with: runlog server start\n"
    assert done.stderr == (lost if durability == "memory" else "")


def test_fork_while_threads_log(run, sink):
    """Children forked while four threads log deliver their own lines, and nothing of the parent's."""
    done, _ = run(
        """
log = configure()
stop = threading.Event()
counts = [0] * 4
def chatter(n):
    while not stop.is_set():
        log.info("parent")
        counts[n] += 1
        time.sleep(0)
threads = [threading.Thread(target=chatter, args=(n,)) for n in range(4)]
for t in threads: t.start()
for i in range(20):
    pid = os.fork()
    if pid == 0:
        log.info("child %d", i)
        ok = runlog.flush(30)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for t in threads: t.join()
print(sum(counts))
""",
        interval="0.01",
    )
    assert done.stderr == ""
    assert done.returncode == 0
    children = sorted(message for message in sink.messages if message != "parent")
    assert children == sorted(f"child {i}" for i in range(20))
    assert len(sink.stored) - 20 == int(done.stdout)
    assert len({(producer, seq) for producer, seq, _, _ in sink.stored}) == len(sink.stored)
    assert len(sink.marks) == 21


def test_a_fork_in_a_fork(run, sink):
    """A grandchild is a producer of its own."""
    run(
        """
log = configure()
log.info("0")
if os.fork() == 0:
    log.info("1")
    if os.fork() == 0:
        log.info("2")
        sys.exit()
    os.wait()
    sys.exit()
os.wait()
"""
    )
    assert sink.messages == ["0", "1", "2"]
    assert len(sink.marks) == 3


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_deliver(run, sink, method):
    """Children of every start method deliver at their end, though some of them skip `atexit`."""
    done, _ = run(
        f"""
def work(n):
    configure().info("child %d", n)

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    children = [context.Process(target=work, args=(n,)) for n in range(3)]
    for child in children: child.start()
    for child in children: child.join()
    print([child.exitcode for child in children])
"""
    )
    assert done.stdout == "[0, 0, 0]\n"
    assert sink.messages == ["child 0", "child 1", "child 2"]


def test_a_pool_of_processes(run, sink):
    """The lines of a `ProcessPoolExecutor`'s workers arrive."""
    run(
        """
from concurrent.futures import ProcessPoolExecutor
log = configure()
def work(n):
    log.info("%d", n)
    return n
if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(work, range(40))) == list(range(40))
"""
    )
    assert sink.messages == sorted(str(n) for n in range(40))


# --- the same hooks, called in this process ---


@pytest.fixture
def fresh(monkeypatch):
    """The lifecycle of a process that has no worker yet and does not end."""
    monkeypatch.setattr(lifecycle, "_workers", set())
    monkeypatch.setattr(lifecycle, "_deadline", None)


def put(worker, message):
    worker.put(b'{"timestamp_ns":0,"level":20,"name":"n","message":"%s"}' % message, background=False)


def test_drain_delivers_all_workers(fresh):
    """The end of the program delivers what every worker holds, and says what it cannot."""
    reports = []
    here, nowhere = InMemoryTransport(), InMemoryTransport(target=None)
    for transport in (here, nowhere):
        worker = DeliveryWorker(transport, report=reports.append)
        lifecycle.watch(worker)
        put(worker, b"x")
    assert len(lifecycle.workers()) == 2
    assert not lifecycle.is_ending()
    lifecycle.drain()
    assert lifecycle.is_ending()
    assert here.messages == ["x"]
    assert reports == [
        "1 lines were not stored: no log server is running; start one with: runlog server start"
    ]
    nowhere.target = "memory"
    lifecycle.drain()
    assert nowhere.messages == ["x"]
    for worker in lifecycle.workers():
        assert delivery.close_worker(worker)
    assert lifecycle.workers() == []


@pytest.mark.parametrize(("logs", "is_said"), [(True, True), (False, False)])
def test_what_remains_of_others_is_said(fresh, tmp_path, logs, is_said):
    """A program that delivered its own lines says once how many of others' remain; a silent one says nothing."""
    spool = tmp_path / "spool"
    make_private_directory(spool)
    dead = SegmentWriter(spool, SegmentName("0123456789abcdef0123", 0), {"pid": 1, "resource": {}})
    for number in range(3):
        dead.append(number, EVENT, b'{"timestamp_ns":0,"level":20,"name":"n","message":"left"}')
    dead.close()

    class Partial(InMemoryTransport):
        def send(self, producer, batch, *, timeout):
            if producer.id == "0123456789abcdef0123":
                return Answer(503, detail="HTTP 503", retry_after=None)
            return super().send(producer, batch, timeout=timeout)

    reports = []
    worker = DeliveryWorker(
        Partial(),
        Limits(durability="spool", shutdown_timeout=30.0),
        spool=spool,
        report=reports.append,
    )
    lifecycle.watch(worker)
    if logs:
        put(worker, b"own")
    lifecycle.drain()
    told = [report for report in reports if "earlier programs" in report]
    assert told == (
        [
            f"3 lines of earlier programs wait in {spool} for memory; the next program sends them, or: runlog spool send"
        ]
        if is_said
        else []
    )
    lifecycle.drain()
    assert len([report for report in reports if "earlier programs" in report]) == len(told)
    delivery.close_worker(worker)
    worker.reset_after_fork()


def test_the_deadline_is_shared(fresh):
    """Whoever asks first starts the clock; the others get what is left."""
    assert lifecycle.remaining_time(1000) <= 1000
    assert lifecycle.remaining_time(5000) <= 1000
    assert APILogHandler._budget(DeliveryWorker(InMemoryTransport()), None) <= 1000
    assert APILogHandler._budget(DeliveryWorker(InMemoryTransport()), 3) == 3


def test_forks_wait_for_imports(fresh):
    """A fork waits while a thread imports; parent and child can fork again."""
    forked = threading.Event()

    def fork():
        lifecycle._before_fork()
        forked.set()
        lifecycle._after_fork_in_parent()

    thread = threading.Thread(target=fork)
    with lifecycle.no_fork():
        thread.start()
        assert not forked.is_set()
    thread.join(WAIT)
    assert forked.is_set()
    lifecycle._before_fork()
    lifecycle._after_fork_in_child()
    with lifecycle.no_fork():
        pass


def test_a_child_starts_afresh(fresh):
    """A child's workers have new identities, and nothing of what the parent's hold."""
    transport = InMemoryTransport()
    worker = DeliveryWorker(transport)
    lifecycle.watch(worker)
    put(worker, b"parent's")
    before = worker.statistics()["producer"]
    lifecycle._before_fork()
    for hook in (
        lifecycle._after_fork_in_child,
        delivery._after_fork_in_child,
        handlers._after_fork_in_child,
    ):
        hook()
    assert worker.statistics()["queued"] == 0
    assert worker.statistics()["producer"] != before
    assert not lifecycle.is_ending()


def test_children_of_multiprocessing_get_a_finalizer(fresh, monkeypatch):
    """Once in a process, and only where `multiprocessing` is used."""
    registered = []
    fake = types.SimpleNamespace(Finalize=lambda *args, **kwargs: registered.append((args, kwargs)))
    monkeypatch.setattr(lifecycle, "_finalized_pid", None)
    monkeypatch.setitem(sys.modules, "multiprocessing.util", None)
    lifecycle.watch_multiprocessing()
    assert registered == []
    monkeypatch.setitem(sys.modules, "multiprocessing.util", fake)
    lifecycle.watch_multiprocessing()
    lifecycle.watch_multiprocessing()
    assert registered == [((None, lifecycle.drain), {"exitpriority": 100})]


# --- what a process leaves behind ---


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"]
)
def test_the_next_process_sends_what_was_left(run, sink, end):
    """Lines of a process that ended without a chance to send are sent by the next one, under their own identity."""
    run(f'log = configure()\nfor i in range(100): log.info("left %02d", i)\n{end}')
    assert sink.messages == []
    run('log = configure()\nlog.info("next")')
    assert sink.messages == [*(f"left {i:02d}" for i in range(100)), "next"]
    assert len(sink.marks) == 2


def test_a_child_that_exits_at_once_loses_nothing(run, sink):
    """Children that end in `os._exit` without a flush leave their lines to their parent."""
    run(
        """
log = configure()
log.info("parent")
for i in range(5):
    pid = os.fork()
    if pid == 0:
        log.info("child %d", i)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    )
    assert sink.messages == [*(f"child {i}" for i in range(5)), "parent"]
    assert len(sink.marks) == 6


def test_nothing_is_left_of_what_was_delivered(run, sink, tmp_path):
    """A program that ended well leaves no segment behind."""
    run('log = configure()\nfor i in range(100): log.info("%02d", i)')
    assert len(sink.messages) == 100
    assert list((tmp_path / "runlog-home" / "spool").rglob("*.seg")) == []
