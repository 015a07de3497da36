"""Programs that are killed, and disks that fill up under them: every line whose call returned is stored once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import pytest
from counting import stored_in

WAIT = 60.0
"""Seconds after which what takes one or two has failed."""

PROGRAM = """
import faulthandler, logging, os, sys
faulthandler.dump_traceback_later(60, exit=True)
from runlog.handlers import APILogHandler
log = logging.getLogger("app")
log.setLevel("INFO")
log.addHandler(APILogHandler(service_name="s"))
for i in range(int(sys.argv[2])):
    log.info("%s %d", sys.argv[1], i)
    os.write(1, b"%d\\n" % i)
"""

FINISH = """
import logging, sys, runlog
from runlog.delivery import workers
from runlog.handlers import APILogHandler
log = logging.getLogger("app")
log.addHandler(APILogHandler(service_name="s"))
log.warning("finish 0")
assert runlog.flush(30)
(worker,) = workers()
worker.send_backlogs(60)
"""


@pytest.fixture
def program(tmp_path, server):
    """Start a program that logs so many lines and prints the number of each whose call has returned."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {
        **os.environ,
        "PREFECT_API_URL": server.url,
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.05",
    }
    started = []

    def start(name, lines=10**9, **changes):
        process = subprocess.Popen(
            [sys.executable, str(script), name, str(lines)],
            env=environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    start.environment = environment
    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(environment):
    """A last program, which sends what others left."""
    subprocess.run([sys.executable, "-c", FINISH], env=environment, check=True, timeout=WAIT)


def kill_at_random(start, number, rounds):
    """Kill programs after some lines; returns, by name, how many calls had returned at least."""
    chance = random.Random(number)
    returned = {}
    for round_ in range(rounds):
        name = f"{number}-{round_}"
        process = start(name)
        enough = chance.randrange(1, 3000)
        for line in process.stdout:
            returned[name] = int(line) + 1
            if returned[name] >= enough:
                break
        process.kill()
        rest, errors = process.communicate()
        assert errors == b""
        complete = rest.rpartition(b"\n")[0].split()
        returned[name] = max([returned.get(name, 0), *(int(line) + 1 for line in complete[-1:])])
    return returned


def check(returned, stored):
    """Every line whose call returned is there once, and those of one program are in the order of the calls."""
    found = {}
    for line in sorted(stored.lines, key=lambda line: (line.producer, line.seq)):
        name, number = line.message.split()
        found.setdefault((line.producer, name), []).append(int(number))
    by_name = {name: numbers for (_, name), numbers in found.items()}
    assert len(by_name) == len(found), "one program under two names"
    for name, calls in returned.items():
        assert by_name[name] == list(range(len(by_name[name])))
        assert len(by_name[name]) >= calls
    assert not stored.dropped


@pytest.mark.parametrize(
    "rounds", [8, pytest.param(200, marks=pytest.mark.soak)], ids=["8 rounds", "200 rounds"]
)
def test_programs_that_are_killed(program, database, server, rounds):
    """Whenever a program is killed: its lines are stored once and in order, by it or by the next."""
    returned = kill_at_random(program, 1, rounds)
    finish(program.environment)
    check(returned, stored_in(database))


def test_programs_that_are_killed_together(program, database, server):
    """Programs that start and die beside each other send each other's lines once."""
    returned = {}
    threads = [
        threading.Thread(target=lambda n=n: returned.update(kill_at_random(program, n, 3))) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    finish(program.environment)
    assert len(returned) == 9
    check(returned, stored_in(database))


@pytest.fixture
def small_disk(mount_disk):
    """A file system of one MiB, on a machine that lets us make one."""
    return mount_disk("1m")


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
def test_a_disk_that_takes_nothing(program, database, server, small_disk, read_only):
    """On a full or read-only disk a program goes on, says so once, and its lines are delivered from memory."""
    if read_only:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    else:
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(bytes(2**21))
    process = program("a", 5000, RUNLOG_HOME=str(small_disk))
    output, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0
    assert output.count(b"\n") == 5000
    assert errors.count(b"\n") == 1
    assert b"cannot be written" in errors
    check({"a": 5000}, stored_in(database))


def test_a_disk_that_fills_up(program, database, server, small_disk):
    """A disk that fills up while lines wait stops nothing: the rest waits in memory, and what is left is said."""
    # Nobody listens there: all lines wait, first on the disk of one MiB and then in memory.
    address = "http://127.0.0.1:9/api"
    process = program("a", 10_000, RUNLOG_HOME=str(small_disk), PREFECT_API_URL=address)
    output, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0
    assert output.count(b"\n") == 10_000
    assert b"cannot be written (No space left on device)" in errors
    assert b"10000 lines were not delivered" in errors
    assert b"Traceback" not in errors
