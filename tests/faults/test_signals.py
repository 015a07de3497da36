"""Signals and finalizers while programs log: what they do stays as it was, and every line is stored once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from proxy import Fault, FaultProxy, Plan
from speakers import WAIT

CHATTER = """
import threading, time
def chatter(place):
    while True:
        say(place)
        time.sleep(0.001)
for n in range(3):
    threading.Thread(target=chatter, args=(f"thread{n}",), daemon=True).start()
"""
"""Threads that log until the process is gone."""


class Gate:
    """A server in front of the real one, which answers nothing until it is opened."""

    def __init__(self, upstream):
        self.is_open = False
        self.asked = threading.Event()
        self.proxy = FaultProxy(upstream, Plan(self._faults()))

    def _faults(self):
        while True:
            self.asked.set()
            yield Fault("pass" if self.is_open else "hang", None)


@pytest.fixture
def gate(server):
    gate = Gate(server.url)
    with gate.proxy:
        yield gate


# --- SIGTERM ---


def test_sigterm_as_ever(speakers):
    """Without a handler SIGTERM ends the process at once, with its exit code; the next process sends the lines."""
    process = speakers.program(f"from speaking import say\n{CHATTER}\nchatter('main')")
    speakers.wait_until(lambda: speakers.said_at("main") > 50)
    process.terminate()
    assert speakers.code_of(process) == -signal.SIGTERM
    assert speakers.errors_of(process) == ""
    speakers.finish()
    assert speakers.check() > 50


def test_sigterm_with_a_handler_that_exits(speakers):
    """A program's own handler decides the exit code, and the exit delivers."""
    process = speakers.program(
        """
import signal, sys
from speaking import say
def on_sigterm(number, frame):
    say("handler")
    sys.exit(3)
signal.signal(signal.SIGTERM, on_sigterm)
while True:
    say("main")
"""
    )
    speakers.wait_until(lambda: speakers.said_at("main") > 50)
    process.terminate()
    assert speakers.code_of(process) == 3
    assert speakers.errors_of(process) == ""
    assert speakers.said_at("handler") == 1
    assert speakers.check() > 50


def test_sigterm_with_a_handler_that_sets_a_flag(speakers):
    """A program that ends by itself after SIGTERM ends as ever, and has delivered."""
    process = speakers.program(
        """
import signal
from speaking import say
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
while not told:
    say("main")
say("last")
"""
    )
    speakers.wait_until(lambda: speakers.said_at("main") > 50)
    process.terminate()
    assert speakers.code_of(process) == 0
    assert speakers.errors_of(process) == ""
    speakers.check()


@pytest.mark.parametrize("durability", ["memory", "spool"])
@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, lambda *_: (say('handler'), sys.exit(3)))", 3),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(4))", 4),
        ("signal.signal(signal.SIGTERM, lambda *_: told.append(0))", 0),
    ],
    ids=["no handler", "exit", "exit without hooks", "flag"],
)
def test_flush_on_sigterm(speakers, before, code, durability):
    """Whatever the program does at SIGTERM it does still; and its lines are there, without another process."""
    process = speakers.program(
        f"""
import os, signal, sys, runlog
from speaking import say
told = []
{before}
runlog.flush_on_sigterm(30)
runlog.flush_on_sigterm(30)
while not told:
    say("main")
""",
        RUNLOG_DURABILITY=durability,
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="3600",
    )
    speakers.wait_until(lambda: speakers.said_at("main") > 50)
    process.terminate()
    assert speakers.code_of(process) == code
    assert speakers.errors_of(process) == ""
    assert speakers.check() > 50


def test_flush_on_sigterm_where_it_is_ignored(speakers):
    """A program that ignores SIGTERM goes on."""
    process = speakers.program(
        """
import os, signal, runlog
from speaking import say
signal.signal(signal.SIGTERM, signal.SIG_IGN)
runlog.flush_on_sigterm(30)
for _ in range(3):
    say("before")
    os.kill(os.getpid(), signal.SIGTERM)
say("after")
"""
    )
    assert speakers.code_of(process) == 0
    assert speakers.said_at("after") == 1
    speakers.check()


def test_flush_on_sigterm_while_the_program_ends(speakers):
    """SIGTERM during the exit does not keep it from delivering."""
    process = speakers.program(
        """
import atexit, os, signal, runlog
from speaking import say
runlog.flush_on_sigterm(30)
for _ in range(1000):
    say("main")
from runlog.delivery import lifecycle, workers
(worker,) = workers()
send = worker._transport.send
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return send(*args, **kwargs)
worker._transport.send = interrupted
""",
        RUNLOG_DURABILITY="memory",
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="3600",
    )
    # Which of the two is faster is left open: the signal, or the end.
    assert speakers.code_of(process) in {0, -signal.SIGTERM}
    assert speakers.check() == 1000


@pytest.mark.parametrize("seconds", [0.3, 3600])
def test_flush_on_sigterm_with_a_server_that_is_silent(speakers, gate, seconds):
    """Delivery that gets no answer ends in time, or when the signal comes again; the next process sends the lines."""
    speakers.environment["PREFECT_API_URL"] = gate.proxy.url
    process = speakers.program(
        f"""
import signal, runlog
from speaking import note, say
runlog.flush_on_sigterm({seconds})
for _ in range(10):
    say("main")
note("ready")
signal.pause()
""",
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="3600",
    )
    speakers.wait_until(lambda: "ready" in speakers.notes)
    process.terminate()
    if seconds == 3600:
        assert gate.asked.wait(WAIT)
        process.terminate()
    assert speakers.code_of(process) == -signal.SIGTERM
    gate.is_open = True
    speakers.finish()
    assert speakers.check() == 11


def test_flush_on_sigterm_says_what_it_cannot_do():
    """A wrong timeout and a thread other than the main one are refused, and nothing is installed."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import signal, threading, runlog
def try_it(*args):
    try:
        runlog.flush_on_sigterm(*args)
    except ValueError as error:
        print(error)
try_it(-1)
thread = threading.Thread(target=try_it)
thread.start()
thread.join()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
""",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == "timeout must be >= 0 s, got -1"
    assert "main thread" in second


# --- SIGINT ---


def test_sigint_once(speakers):
    """Ctrl-C is a KeyboardInterrupt with its traceback and exit code, and the exit delivers."""
    process = speakers.program(
        """
import runlog, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background has it ignored
from speaking import say
say("first")
runlog.flush(30)
while True:
    say("main")
"""
    )
    speakers.wait_until(lambda: speakers.said_at("main") > 50)
    process.send_signal(signal.SIGINT)
    assert speakers.code_of(process) == -signal.SIGINT
    errors = speakers.errors_of(process)
    assert errors.startswith("Traceback")
    assert errors.endswith("KeyboardInterrupt\n")
    assert errors.count("Traceback") == 1
    speakers.check()


def test_sigint_before_the_first_request(speakers):
    """The exit code is that of Ctrl-C also if nothing has been sent yet: what sending needs is there before."""
    process = speakers.program(
        """
import signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from runlog.delivery import HTTPTransport
from speaking import say
prepare, is_prepared = HTTPTransport.prepare, threading.Event()
def prepare_and_tell(transport):
    prepare(transport)
    is_prepared.set()
HTTPTransport.prepare = prepare_and_tell
say("first")
is_prepared.wait()
say("main")
while True:
    signal.pause()
""",
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="3600",
    )
    speakers.wait_until(lambda: speakers.said_at("main") == 1)
    process.send_signal(signal.SIGINT)
    assert speakers.code_of(process) == -signal.SIGINT


def test_sigint_twice_while_the_program_ends(speakers, gate):
    """Ctrl-C during the delivery at exit, twice, ends the program; the next process sends its lines."""
    speakers.environment["PREFECT_API_URL"] = gate.proxy.url
    process = speakers.program(
        """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from speaking import say
for _ in range(100):
    say("main")
""",
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="3600",
        RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT="3600",
    )
    assert gate.asked.wait(WAIT)
    process.send_signal(signal.SIGINT)
    while "KeyboardInterrupt" not in speakers.errors_of(process) and process.poll() is None:
        time.sleep(0.01)  # its stderr is all that tells when the first has arrived
    process.send_signal(signal.SIGINT)
    speakers.code_of(process)
    gate.is_open = True
    speakers.finish()
    assert speakers.check() == 101


# --- calls that interrupt calls ---

STORM = """
import os, signal, threading, time
from speaking import say

end = time.monotonic() + float(os.environ["SECONDS"])
depth = 0

def on_alarm(number, frame):
    global depth
    depth += 1
    say(f"signal{depth}")
    depth -= 1

def chatter(place):
    while time.monotonic() < end:
        say(place)

signal.signal(signal.SIGALRM, on_alarm)
threads = [threading.Thread(target=chatter, args=(f"thread{n}",)) for n in range(3)]
for thread in threads:
    thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
chatter("main")
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
"""

GARBAGE = """
import gc, os, threading, time
from speaking import say

end = time.monotonic() + float(os.environ["SECONDS"])

class Knot:
    def __init__(self):
        self.itself = self
    def __del__(self):
        if threading.get_ident() in speaking:
            say("finalizer")

def on_gc(phase, info):
    if threading.get_ident() in speaking:
        say(phase)

speaking = {threading.get_ident()}  # not the thread that sends, which has a test of its own

def chatter(place):
    speaking.add(threading.get_ident())
    while time.monotonic() < end:
        Knot()
        say(place)
        gc.collect()

say("first")  # what is imported for it takes long with a collection at each step
gc.callbacks.append(on_gc)
gc.set_threshold(1)
threads = [threading.Thread(target=chatter, args=(f"thread{n}",)) for n in range(3)]
for thread in threads:
    thread.start()
chatter("main")
for thread in threads:
    thread.join()
gc.callbacks.remove(on_gc)
gc.set_threshold(700)
gc.collect()
"""

ROOM = {"RUNLOG_DELIVERY_MAX_QUEUE_BYTES": "1000000000", "RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT": "60"}
"""For all that is logged faster than it is sent."""

SECONDS = ["1", pytest.param("20", marks=pytest.mark.soak)]


@pytest.mark.parametrize("durability", ["memory", "spool", "sync"])
@pytest.mark.parametrize("seconds", SECONDS)
def test_a_signal_handler_that_logs(speakers, seconds, durability):
    """A handler that logs a thousand times a second, while four threads log: no deadlock, every line once."""
    code, errors = speakers.run(STORM, SECONDS=seconds, RUNLOG_DURABILITY=durability, **ROOM)
    assert (code, errors) == (0, "")
    assert speakers.said_at("signal1") > 50
    print(speakers.said_at("signal1"), "of", speakers.check(), "lines from the handler")


@pytest.mark.parametrize("durability", ["memory", "spool", "sync"])
@pytest.mark.parametrize("seconds", SECONDS)
def test_finalizers_that_log(speakers, seconds, durability):
    """Finalizers and callbacks of the collector that log at any point: no deadlock, every line once."""
    code, errors = speakers.run(GARBAGE, SECONDS=seconds, RUNLOG_DURABILITY=durability, **ROOM)
    assert (code, errors) == (0, "")
    assert min(map(speakers.said_at, ["finalizer", "start", "stop"])) > 0
    print(speakers.said_at("finalizer"), "of", speakers.check(), "lines from finalizers")


def test_signals_during_finalizers(speakers):
    """Both at once."""
    code, errors = speakers.run(
        STORM.replace(
            'chatter("main")',
            """
import gc
main = threading.get_ident()
gc.callbacks.append(lambda phase, info: threading.get_ident() == main and say(phase + str(depth)))
gc.set_threshold(10)
chatter("main")
gc.callbacks.clear()
""",
        ),
        SECONDS="1",
    )
    assert (code, errors) == (0, "")
    speakers.check()


def test_a_finalizer_in_the_thread_that_sends(speakers):
    """A line is not lost because the collector happened to run in the thread that sends."""
    code, errors = speakers.run(
        """
import gc, runlog
from runlog.delivery import workers
from speaking import say
class Knot:
    def __init__(self):
        self.itself = self
    def __del__(self):
        say("finalizer")
gc.disable()
say("before")
(worker,) = workers()
send = worker._transport.send
def collect_and_send(*args, **kwargs):
    gc.collect()
    return send(*args, **kwargs)
worker._transport.send = collect_and_send
Knot()
say("main")
assert runlog.flush(30)
say("after")
"""
    )
    assert (code, errors) == (0, "")
    assert speakers.said_at("finalizer") == 1
    speakers.check()
