"""
Whenever a program is killed: each line whose call returned is stored once, or its drop is counted.

A server that keeps its word and lists of what was logged are the model. The
program is a `DeliveryWorker` with its spool, which sends in the calling thread
by a clock of the test's; `MortalFiles` kills it at any call that changes a file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from mortal_files import HOWS, Killed, MortalFiles

from runlog.delivery import spool_queue
from runlog.delivery.retry import Answer
from runlog.delivery.transport import InMemoryTransport
from runlog.delivery.worker import DeliveryWorker, Limits

pytestmark = pytest.mark.skipif(os.name != "posix", reason="drives the file calls of POSIX systems")

SEGMENT_BYTES = 400
"""Four lines of 90 bytes or so, and the header."""

BATCH_BYTES = 300

SPOOL_BYTES = 1500
"""Some four segments."""

PATIENCE = 10_000.0
"""Seconds, of a clock that costs nothing, in which all is sent."""

FULL = {"spool_full", "queue_full"}


def event(text, length=0):
    return b'{"timestamp_ns":0,"level":20,"name":"n","message":"%s"}' % text.ljust(length, ".").encode()


@dataclass
class Line:
    """What the model knows of one call, which had a seq of its own."""

    text: str
    taken: bool | None = None
    """What the call returned; `None` if it did not return."""
    is_at_risk: bool = False
    """Whether it was only in memory, because the disk was full: a kill may cost it."""


@dataclass
class Log:
    """What one process logged."""

    lines: list[Line] = field(default_factory=list)
    was_killed: bool = False
    dropped: Counter = field(default_factory=Counter)
    """What it said at its end that it had dropped, by reason."""


class Server(InMemoryTransport):
    """Stores what it is sent, or has the fault that comes next, and takes a second for it."""

    def __init__(self, files):
        super().__init__()
        self.files = files
        self.now = 1000.0
        self.faults = []
        self.refused = set()
        """Producer and seq of lines that were refused when they came alone."""

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def send(self, producer, batch, *, timeout):
        self.now += 1.0
        fault = self.faults.pop(0) if self.faults else "ok"
        if fault == "lost answer":
            super().send(producer, batch, timeout=timeout)
            return Answer(None, detail="the connection was cut")
        if fault == "killed before":
            self.files.kill()
        if fault == "killed after":
            super().send(producer, batch, timeout=timeout)
            self.files.kill()
        if fault == 409:
            return Answer(409, expected=self.next_seqs.get(producer.id, 0))
        if fault == 400 and len(batch.events) == 1:
            self.refused |= {(producer.id, seq) for seq, found, _ in batch.in_order() if found is not None}
        if fault != "ok":
            return Answer(fault, detail=f"HTTP {fault}")
        return super().send(producer, batch, timeout=timeout)


class World:
    """A server, a directory, and one process after the other."""

    def __init__(self, directory, **limits):
        self.directory = directory
        self.spool = directory / "spool"
        self.files = MortalFiles(directory)
        self.server = Server(self.files)
        self.logs = {}
        self.limits = {
            "durability": "spool",
            "when_full": "drop_newest",
            "max_batch_bytes": BATCH_BYTES,
            "max_spool_bytes": SPOOL_BYTES,
            "max_queue_bytes": 1000,
        } | limits
        self.number = 0
        self.start()

    def start(self):
        self.worker = DeliveryWorker(
            self.server,
            Limits(**self.limits),
            spool=self.spool,
            clock=self.server.clock,
            sleep=self.server.sleep,
            report=lambda text: None,
        )
        self.log = Log()
        self.producer = self.worker.statistics()["producer"]
        self.logs[self.producer] = self.log

    @contextlib.contextmanager
    def mortal(self):
        """Once the program is killed in the block, the next one starts."""
        try:
            yield
        except Killed:
            self.log.was_killed = True
            self.files.bury()
            self.server.faults.clear()
            self.start()

    def put(self, length=0):
        line = Line(f"line {self.number}", is_at_risk=self.files.is_full)
        self.number += 1
        self.log.lines.append(line)
        taken = self.worker.put(event(line.text, length), background=False)
        line.taken = taken
        if taken and not self.files.is_full:  # what memory held is on the disk before the line
            for before in self.log.lines:
                before.is_at_risk = False
        return taken

    def end(self):
        """What the end of a program does, and what the kernel does after it."""
        self.files.spare()
        self.files.is_full = False
        self.server.faults.clear()
        self.worker.send_now(PATIENCE)
        self.worker.send_backlogs(PATIENCE)
        self.worker.tidy()
        self.log.dropped = Counter(self.worker.statistics()["dropped"])
        self.files.bury()

    def recover(self):
        """Let the last program end, and a new one after it: then all is where it belongs."""
        self.end()
        self.start()
        self.put()
        self.end()
        self.check()
        left = sorted(path.name for path in self.spool.glob("*.seg"))
        assert not left, f"segments that nobody needs: {left}"

    def check(self):
        """What the server has is what the model has."""
        for producer, log in self.logs.items():
            found = self.found(producer)
            assert sorted(found) == list(range(len(found))), "a hole"
            assert len(found) <= len(log.lines), "lines that nobody logged"
            for seq, line in enumerate(log.lines):
                reason, text = found.get(seq, ("missing", None))
                if text is not None:
                    assert text.rstrip(".") == line.text
                    assert line.taken is not False, f"{line} was stored, though its call said otherwise"
                elif line.taken:
                    self.check_loss(producer, log, seq, reason)
                elif line.taken is False and not log.was_killed:
                    assert reason in FULL, (line, reason)
            if not log.was_killed:
                # What was refused is counted by whoever sent it, and stored all the same if it had been before.
                told = Counter(reason for reason, _ in found.values() if reason in FULL)
                said = Counter({reason: log.dropped[reason] for reason in FULL if log.dropped[reason]})
                assert told == said, "the process and the server count differently"

    def found(self, producer):
        """Reason and text by seq; each seq is there once, and they are in order."""
        found = {}
        for batch in self.server.batches:
            if batch.producer == producer:
                assert batch.first_seq == len(found), "a batch out of order"
                for marker in batch.dropped:
                    for seq in range(marker.seq, marker.seq + marker.count):
                        assert found.setdefault(seq, (marker.reason, None)) == (marker.reason, None)
                for seq, stored in batch.numbered():
                    assert seq not in found, "two lines for one seq"
                    found[seq] = ("", stored.message)
        return found

    def check_loss(self, producer, log, seq, reason):
        """A line whose call returned is not stored: then that is told, and there is a reason."""
        line = log.lines[seq]
        if line.is_at_risk and log.was_killed:
            return
        assert reason != "missing", f"{line} is lost without a word"
        if reason == "rejected":
            assert (producer, seq) in self.server.refused
            return
        assert self.limits["when_full"] == "drop_oldest", f"{line} is lost as {reason}"
        # A killed process cannot say why what it dropped from the front is missing.
        assert reason in FULL or (log.was_killed and reason == "acknowledged_elsewhere"), f"{line}: {reason}"


@pytest.fixture(autouse=True, scope="module")
def small_segments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_queue, "SEGMENT_BYTES", SEGMENT_BYTES)
        yield


# --- one story, ended at each of its calls ---


def tell(world):
    """Twelve lines over three segments, one dropped among them; the first segment is acknowledged on the way."""
    for number in range(12):
        assert world.put()
        if number == 5:
            assert not world.put(length=SPOOL_BYTES)
        if number == 7:
            while world.worker.statistics()["acked"] < 4:
                assert world.worker.statistics()["queued"]
                world.worker.send_now(1.0)
    world.worker.send_now(PATIENCE)
    world.worker.tidy()


@pytest.fixture
def make_world(tmp_path):
    """Worlds below directories of their own, whose calls are watched until the test is over."""
    with contextlib.ExitStack() as made:

        def make(name="world", **limits):
            directory = tmp_path / name
            directory.mkdir()
            world = World(directory, **limits)
            made.enter_context(world.files)
            return world

        yield make


def calls_of(world, story):
    before = len(world.files.calls)
    story(world)
    return len(world.files.calls) - before


def test_the_story_is_the_one_that_is_meant(make_world):
    """It takes three segments, one of them deleted before the end, and one line is dropped."""
    world = make_world()
    tell(world)
    calls = world.files.calls
    made = [call.path for call in calls if call.name == "rename"]
    removed = [number for number, call in enumerate(calls) if call.name == "unlink"]
    written = [number for number, call in enumerate(calls) if call.name in {"write", "store"}]
    assert len(made) == 3
    assert len(removed) == 3
    assert removed[0] < written[-1]
    assert world.worker.statistics()["dropped"] == {"spool_full": 1}
    world.recover()


@pytest.mark.parametrize("how", HOWS)
def test_a_kill_at_every_call(make_world, how):
    """At whichever call that changes a file the program is killed, in the middle of it or not: nothing is lost."""
    length = calls_of(make_world("whole"), tell)
    assert length > 20
    for number in range(length):
        world = make_world(str(number))
        world.files.kill_at(number, how)
        with world.mortal():
            tell(world)
        assert sum(log.was_killed for log in world.logs.values()) == 1, number
        world.recover()
        world.files.__exit__()


def leave_twelve(world):
    for _ in range(12):
        world.put()
    with world.mortal():
        world.files.kill()


def take_over(world):
    """What the next program does with what is left: it sends it beside a line of its own."""
    world.put()
    world.worker.send_now(PATIENCE)
    world.worker.send_backlogs(PATIENCE)
    world.worker.tidy()


@pytest.mark.parametrize("how", HOWS)
def test_a_kill_at_every_call_of_the_next_program(make_world, how):
    """A program that is killed while it sends what another left loses none of it; the third sends the rest."""
    world = make_world("whole")
    leave_twelve(world)
    length = calls_of(world, take_over)
    assert length > 5
    for number in range(length):
        world = make_world(str(number))
        leave_twelve(world)
        world.files.kill_at(number, how)
        with world.mortal():
            take_over(world)
        assert sum(log.was_killed for log in world.logs.values()) == 2, number
        world.recover()
        world.files.__exit__()


@pytest.mark.parametrize("fault", ["killed before", "killed after"])
def test_a_kill_in_every_request(make_world, fault):
    """Whether or not the server had stored the batch: it is there once."""
    whole = make_world("whole")
    tell(whole)
    for number in range(whole.server.sends):
        world = make_world(str(number))
        world.server.faults = ["ok"] * number + [fault]
        with world.mortal():
            tell(world)
        assert sum(log.was_killed for log in world.logs.values()) == 1
        world.recover()


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "ended"])
def test_a_batch_on_its_way_is_written_when_there_is_room(make_world, is_killed):
    """Lines of a full disk's time that were sent in vain are on the disk once it takes lines again."""
    world = make_world()
    world.files.is_full = True
    for _ in range(2):
        world.put()
    world.server.faults = [500]
    world.worker.send_now(1.0)
    world.files.is_full = False
    world.server.now += 100.0
    world.put()
    assert world.worker.statistics()["queued"] == 3
    if is_killed:
        with world.mortal():
            world.files.kill()
    else:
        world.worker.tidy()
        world.files.bury()
        world.start()
    world.recover()
    stored = [text for reason, text in world.found(next(iter(world.logs))).values()]
    assert stored == ["line 0", "line 1", "line 2"]


def test_a_segment_without_its_name_is_deleted(make_world):
    """What a kill left of a segment that was being made holds no line, and goes once it is old."""
    world = make_world("whole")
    tell(world)
    renames = [number for number, call in enumerate(world.files.calls) if call.name == "rename"]
    world = make_world("killed")
    world.files.kill_at(renames[0])
    with world.mortal():
        tell(world)
    (left,) = world.spool.iterdir()
    os.utime(left, (0, 0))
    world.recover()
    assert not list(world.spool.iterdir())


# --- any story ---


FAULTS = st.sampled_from(
    ["ok", "ok", "ok", "lost answer", 500, 413, 400, 409, "killed before", "killed after"]
)


class Stories(RuleBasedStateMachine):
    """Programs that log, send, die and follow each other, in any order."""

    @initialize(when_full=st.sampled_from(["drop_newest", "drop_oldest"]))
    def begin(self, when_full):
        self.home = tempfile.TemporaryDirectory()
        self.world = World(Path(self.home.name).resolve(), when_full=when_full)
        self.world.files.__enter__()

    @rule(lines=st.integers(1, 6), length=st.sampled_from([0, 0, 40, 200]))
    def log(self, lines, length):
        with self.world.mortal():
            for _ in range(lines):
                self.world.put(length)

    @rule()
    def log_what_finds_no_room(self):
        with self.world.mortal():
            self.world.put(SPOOL_BYTES)

    @rule(faults=st.lists(FAULTS, min_size=1, max_size=4))
    def send(self, faults):
        with self.world.mortal():
            self.world.server.faults = faults[:]
            for _ in faults:  # a request takes a second, so that each is one
                self.world.worker.send_now(1.0)
        self.world.server.faults.clear()

    @rule(faults=st.lists(FAULTS, max_size=3))
    def send_what_others_left(self, faults):
        with self.world.mortal():
            self.world.server.faults = faults[:]
            self.world.worker.send_backlogs(5.0)
        self.world.server.faults.clear()

    @rule()
    def tidy(self):
        with self.world.mortal():
            self.world.worker.tidy()

    @rule(calls=st.integers(0, 15), how=st.sampled_from(HOWS))
    def die_soon(self, calls, how):
        self.world.files.kill_at(calls, how)

    @rule()
    def die(self):
        with self.world.mortal():
            self.world.files.kill()

    @precondition(lambda self: not self.world.files.is_full)
    @rule()
    def fill_the_disk(self):
        self.world.files.is_full = True

    @precondition(lambda self: self.world.files.is_full)
    @rule()
    def make_room(self):
        self.world.files.is_full = False
        self.world.server.now += 100.0

    @rule()
    def end(self):
        with self.world.mortal():
            self.world.end()
            self.world.start()

    def teardown(self):
        if hasattr(self, "world"):
            try:
                self.world.recover()
            finally:
                self.world.files.__exit__()
                self.home.cleanup()


Stories.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_story = Stories.TestCase
