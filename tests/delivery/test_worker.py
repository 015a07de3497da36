"""One worker and one target: what is accepted is delivered once and in order, or counted."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest

from runlog.delivery.batching import EVENT_OVERHEAD_BYTES
from runlog.delivery.retry import Answer, Backoff
from runlog.delivery.transport import InMemoryTransport
from runlog.delivery.worker import DeliveryWorker, Limits
from runlog.records import DropMarker

WAIT = 20.0
"""Seconds after which a test that waits for a thread has failed."""


def event(text="x"):
    return b'{"timestamp_ns":0,"level":20,"name":"n","message":"%s"}' % text.encode()


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def reports():
    return []


@pytest.fixture
def make_worker(reports):
    """Workers whose thread has ended when the test has."""
    made = []

    def make(transport=None, *, fake=None, backoff=None, **limits):
        times = {"clock": fake.clock, "sleep": fake.sleep} if fake else {}
        worker = DeliveryWorker(
            transport or InMemoryTransport(),
            Limits(**limits),
            backoff=backoff,
            report=reports.append,
            **times,
        )
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker._transport.target = None  # nothing more to wait for
        worker.close(0)


class GatedTransport(InMemoryTransport):
    """Answers nothing until it is let."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def send(self, producer, batch, *, timeout):
        self.reached.set()
        assert self.go_on.wait(WAIT)
        return super().send(producer, batch, timeout=timeout)


def test_flush_delivers(make_worker):
    """After a flush, everything that was put before is acknowledged, in order."""
    transport = InMemoryTransport()
    worker = make_worker(transport, batch_interval=3600)
    for i in range(100):
        assert worker.put(event(str(i)))
    assert worker.flush(WAIT)
    assert transport.messages == [str(i) for i in range(100)]
    assert worker.statistics() | {"producer": ""} == {
        "target": "memory",
        "producer": "",
        "accepted": 100,
        "acked": 99,
        "queued": 0,
        "queued_bytes": 0,
        "dropped": {},
        "last_error": "",
        "exactly_once": True,
    }


def test_flush_of_nothing(make_worker):
    """A worker that was given nothing has delivered all of it, and starts no thread for that."""
    worker = make_worker()
    assert worker.flush()
    assert worker._thread is None


def test_a_due_batch_is_sent_without_a_flush(make_worker):
    """An interval of 0 sends at once."""
    transport = GatedTransport()
    worker = make_worker(transport, batch_interval=0)
    worker.put(event())
    assert transport.reached.wait(WAIT)
    transport.go_on.set()
    assert worker.flush(WAIT)


@pytest.mark.parametrize(("linger", "next_due"), [(0.25, 0.25), (None, 2.0)])
def test_the_first_line_after_a_pause_goes_at_once(make_worker, linger, next_due):
    """With a linger, only a line that follows another batch closely waits, and not for the batch interval."""
    fake = FakeTime()
    worker = make_worker(fake=fake, batch_interval=2.0, linger=linger)
    worker.put(event("a"), background=False)
    assert worker._step(1.0) == (2.0 if linger is None else 0.0)
    worker.send_now(WAIT)
    worker.put(event("b"), background=False)
    assert worker._step(1.0) == next_due
    fake.now += next_due
    assert worker._step(1.0) == 0.0
    assert worker.statistics()["acked"] == 1


def test_a_slow_server_is_asked_less_often(make_worker):
    """The linger grows with the time that an answer takes, up to the batch interval."""
    fake = FakeTime()
    transport = InMemoryTransport()
    send = transport.send

    def slow(producer, batch, *, timeout):
        fake.now += times.pop(0)
        return send(producer, batch, timeout=timeout)

    transport.send = slow
    worker = make_worker(transport, fake=fake, batch_interval=2.0, linger=0.1)
    times = [0.001, 0.05, 0.125, 1.0]
    for due in [0.1, 0.5, 1.25, 2.0]:
        worker.put(event(), background=False)
        assert worker.send_now(WAIT)
        worker.put(event(), background=False)
        assert worker._step(1.0) == pytest.approx(due)
        fake.now += 1000.0
        times.insert(0, 0.0)
        assert worker.send_now(WAIT)


def test_a_full_batch_is_sent_before_its_time(make_worker):
    """Size wakes the thread that sleeps until the interval is over."""
    transport = GatedTransport()
    worker = make_worker(
        transport, batch_interval=3600, max_batch_bytes=3 * (len(event()) + EVENT_OVERHEAD_BYTES)
    )
    worker.put(event())
    worker.put(event())
    assert not transport.reached.is_set()
    worker.put(event())
    assert transport.reached.wait(WAIT)
    transport.go_on.set()


def test_threads_share_one_sequence(make_worker):
    """Lines of eight threads are all delivered, once each, those of one thread in its order."""
    transport = InMemoryTransport()
    worker = make_worker(transport, batch_interval=0)

    def log(thread):
        for i in range(500):
            worker.put(event(f"{thread} {i}"))

    threads = [threading.Thread(target=log, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worker.flush(WAIT)
    assert len(transport.messages) == 4000
    for n in range(8):
        assert [m for m in transport.messages if m.startswith(f"{n} ")] == [f"{n} {i}" for i in range(500)]


# --- failures, with a clock of our own and without a thread ---


@pytest.mark.parametrize(
    "answer",
    [
        Answer(None, detail="ConnectError: refused"),
        Answer(500),
        Answer(503),
        Answer(200),
        Answer(200, acked=0),
        Answer(302),
        Answer(401),
        Answer(404),
        RuntimeError("a defect"),
    ],
    ids=str,
)
def test_a_failed_batch_is_sent_again(make_worker, answer):
    """Whatever comes instead of an acknowledgement, the same batch goes again until one comes."""
    time = FakeTime()
    transport = InMemoryTransport(answers=[answer, answer])
    worker = make_worker(transport, fake=time)
    worker.put(event("a"), background=False)
    worker.put(event("b"), background=False)
    if isinstance(answer, Exception):
        with pytest.raises(RuntimeError):
            worker.send_now(60)
        with pytest.raises(RuntimeError):
            worker.send_now(60)
    assert worker.send_now(60)
    assert transport.messages == ["a", "b"]
    assert transport.sends == 3


def test_a_defect_does_not_end_the_thread(make_worker):
    """The thread survives what a transport was not supposed to raise, and delivers later."""
    transport = InMemoryTransport(answers=[RuntimeError("boom")])
    worker = make_worker(transport, batch_interval=0, backoff=Backoff(0.001, 0.001))
    worker.put(event("a"))
    assert worker.flush(WAIT)
    assert transport.messages == ["a"]


def test_retry_after_is_obeyed(make_worker):
    """A server that asks to be left alone for a minute is."""
    time = FakeTime()
    transport = InMemoryTransport(answers=[Answer(429, retry_after=60)])
    worker = make_worker(transport, fake=time)
    worker.put(event(), background=False)
    assert not worker.send_now(59)
    assert transport.sends == 1
    worker.put(event(), background=False)
    assert not worker.send_now(0)
    assert transport.sends == 1, "a flush does not overrule the server"
    assert worker.send_now(60)


def test_waits_grow(make_worker):
    """The tries on a server that is down come further and further apart."""
    time = FakeTime()
    transport = InMemoryTransport(answers=[Answer(None)] * 12)
    worker = make_worker(transport, fake=time)
    worker.put(event(), background=False)
    assert worker.send_now(600)
    assert len(time.slept) == 12
    assert sum(time.slept) > 60
    assert max(time.slept) <= 30


def test_the_outage_is_said_once(make_worker, reports):
    """People are told what cannot be sent, once for an outage and not for a mere restart."""
    transport = InMemoryTransport(answers=[Answer(503)])
    worker = make_worker(transport, fake=FakeTime())
    worker.put(event(), background=False)
    assert worker.send_now(60)
    assert reports == []
    transport.answers = [Answer(503, detail="HTTP 503 busy")] * 5
    worker.put(event(), background=False)
    assert worker.send_now(60)
    assert reports == ["lines cannot be sent to memory: HTTP 503 busy; they are kept and sent later"]


def test_one_refused_event_costs_no_other(make_worker, reports):
    """A batch that is refused is halved until the one bad event stands alone; its place is told."""

    class Picky(InMemoryTransport):
        def send(self, producer, batch, *, timeout):
            if any(b"bad" in one for one in batch.events):
                return Answer(422, detail="HTTP 422 not acceptable")
            return super().send(producer, batch, timeout=timeout)

    transport = Picky()
    worker = make_worker(transport, fake=FakeTime())
    for i in range(1000):
        worker.put(event("bad" if i == 700 else str(i)), background=False)
    assert worker.send_now(60)
    assert transport.messages == [str(i) for i in range(1000) if i != 700]
    assert [marker for batch in transport.batches for marker in batch.dropped] == [
        DropMarker(700, 1, "rejected")
    ]
    assert worker.statistics()["dropped"] == {"rejected": 1}
    assert worker.statistics()["queued"] == worker.statistics()["queued_bytes"] == 0
    assert reports == ["the server refused a line, which is counted and dropped: HTTP 422 not acceptable"]


def test_a_refused_marker_is_tried_again(make_worker):
    """A batch without events cannot be narrowed down: it is kept, like any failure."""
    transport = InMemoryTransport(answers=[Answer(422)] * 3)
    worker = make_worker(transport, fake=FakeTime())
    worker.put(event(), background=False)
    assert worker.send_now(60)
    assert transport.sends == 4


def test_a_server_that_forgot_us(make_worker, reports):
    """If the store was replaced, the sequence goes on with a marker for what the old one had."""
    transport = InMemoryTransport()
    worker = make_worker(transport, fake=FakeTime())
    worker.put(event("a"), background=False)
    assert worker.send_now(60)
    transport.next_seqs.clear()
    worker.put(event("b"), background=False)
    assert worker.send_now(60)
    assert transport.batches[-1].dropped == [DropMarker(0, 1, "acknowledged_elsewhere")]
    assert transport.messages == ["a", "b"]
    assert len(reports) == 1


def test_a_nonsensical_resume_is_a_failure(make_worker):
    """A 409 that asks for what we never had does not confuse the sequence."""
    transport = InMemoryTransport(answers=[Answer(409, expected=5), Answer(409, expected=-1)])
    worker = make_worker(transport, fake=FakeTime())
    worker.put(event("a"), background=False)
    assert worker.send_now(60)
    assert transport.messages == ["a"]


# --- nowhere to send ---


def test_without_a_server_lines_wait(make_worker, reports):
    """Where no server runs, nothing fails, a flush says no at once, and a server that appears gets all."""
    transport = InMemoryTransport(target=None)
    worker = make_worker(transport, fake=FakeTime())
    worker.put(event("a"), background=False)
    assert worker.flush(WAIT) is False
    assert worker.send_now(WAIT) is False
    worker.report_undelivered()
    assert reports == [
        "1 lines were not stored: no log server is running; start one with: runlog server start"
    ]
    transport.target = "memory"
    assert worker.send_now(WAIT)
    assert transport.messages == ["a"]


def test_the_thread_waits_for_a_server(make_worker, monkeypatch):
    """The thread looks for a server now and then, and sends when there is one."""
    monkeypatch.setattr("runlog.delivery.worker.NOWHERE_INTERVAL", 0.001)
    looked = threading.Event()
    here = threading.Event()

    class Appearing(GatedTransport):
        @property
        def target(self):
            looked.set()
            return "memory" if here.is_set() else None

        @target.setter
        def target(self, value):
            here.clear()

    transport = Appearing()
    transport.go_on.set()
    worker = make_worker(transport, batch_interval=0)
    worker.put(event("a"))
    assert looked.wait(WAIT)
    assert worker.statistics()["target"] is None
    here.set()
    assert transport.reached.wait(WAIT)
    assert worker.flush(WAIT)


# --- bounds ---


def fill(worker, count=3):
    return [worker.put(event(str(i)), background=False) for i in range(count)]


def room_for(count):
    return count * (len(event()) + EVENT_OVERHEAD_BYTES)


def test_drop_newest(make_worker, reports):
    """With ``drop_newest`` the queue keeps what it has; what comes is counted, marked and said once."""
    transport = InMemoryTransport()
    worker = make_worker(transport, when_full="drop_newest", max_queue_bytes=room_for(2))
    assert fill(worker, 5) == [True, True, False, False, False]
    assert worker.send_now(WAIT)
    assert transport.messages == ["0", "1"]
    assert transport.batches[0].dropped == [DropMarker(2, 3, "queue_full")]
    assert worker.statistics()["dropped"] == {"queue_full": 3}
    assert len(reports) == 1
    assert "1 lines were dropped so far" in reports[0]


def test_drop_oldest(make_worker, reports):
    """With ``drop_oldest`` the newest lines stay."""
    transport = InMemoryTransport()
    worker = make_worker(transport, when_full="drop_oldest", max_queue_bytes=room_for(2))
    assert fill(worker, 5) == [True] * 5
    assert worker.send_now(WAIT)
    assert transport.messages == ["3", "4"]
    assert transport.batches[0].dropped == [DropMarker(0, 3, "queue_full")]
    assert worker.statistics()["dropped"] == {"queue_full": 3}
    assert len(reports) == 1


def test_drop_oldest_spares_what_is_in_flight(make_worker):
    """If all that is held is on its way, the new line is the one that goes."""
    transport = GatedTransport()
    worker = make_worker(transport, when_full="drop_oldest", max_queue_bytes=room_for(2), batch_interval=3600)
    worker.put(event("0"))
    worker.put(event("1"))
    flushing = threading.Thread(target=worker.flush, args=(WAIT,))
    flushing.start()
    assert transport.reached.wait(WAIT)
    assert worker.put(event("2")) is False
    transport.go_on.set()
    flushing.join()
    assert worker.flush(WAIT)
    assert transport.messages == ["0", "1"]


def test_block_waits_for_room(make_worker):
    """With ``block`` a call waits while the server takes lines, and its line is kept."""
    transport = GatedTransport()
    worker = make_worker(
        transport, when_full="block", block_timeout=WAIT, max_queue_bytes=room_for(2), batch_interval=0
    )
    worker.put(event("0"))
    assert transport.reached.wait(WAIT)
    worker.put(event("1"))
    answers = []
    caller = threading.Thread(target=lambda: answers.append(worker.put(event("2"))))
    caller.start()
    transport.go_on.set()
    caller.join(WAIT)
    assert answers == [True]
    assert worker.flush(WAIT)
    assert transport.messages == ["0", "1", "2"]


def test_block_is_capped(make_worker, reports):
    """The wait ends with the cap; then the line is dropped, counted and said."""
    transport = GatedTransport()
    worker = make_worker(
        transport, when_full="block", block_timeout=0.001, max_queue_bytes=room_for(1), batch_interval=0
    )
    worker.put(event("0"))
    assert transport.reached.wait(WAIT)
    assert worker.put(event("1")) is False
    assert worker.statistics()["dropped"] == {"queue_full": 1}
    assert len(reports) == 1
    transport.go_on.set()


def test_block_does_not_wait_for_a_server_that_takes_nothing(make_worker):
    """While sending fails, waiting would cost the program its time and win nothing."""
    worker = make_worker(
        InMemoryTransport(answers=[Answer(503)]),
        fake=FakeTime(),
        when_full="block",
        block_timeout=3600,
        max_queue_bytes=room_for(1),
    )
    worker.put(event(), background=False)
    assert not worker.send_now(0.05)
    assert worker.put(event(), background=False) is False


def test_block_never_holds_up_an_event_loop(make_worker):
    """Inside a running event loop a full queue drops instead of waiting."""
    worker = make_worker(when_full="block", block_timeout=3600, max_queue_bytes=room_for(1))

    async def log():
        return fill(worker, 2)

    assert asyncio.run(log()) == [True, False]


# --- interruptions ---


def test_a_finalizer_in_the_sending_thread_inside_the_lock(make_worker):
    """What the sending thread sets aside while it holds the queue's lock is taken in once it has let go."""
    transport = InMemoryTransport()
    worker = make_worker(transport)
    worker.put(event("a"), background=False)
    with worker._intake.lock:
        held = worker._intake.queue.held
        worker.put_aside(event("of the finalizer"))
        assert worker._intake.queue.held == held, "the queue may be in the middle of a change"
    assert worker.send_now(WAIT)
    assert transport.messages == ["a", "of the finalizer"]


def test_what_cannot_be_prepared_does_not_end_delivery(make_worker):
    """A transport that fails before the first batch is tried again with it."""
    transport = InMemoryTransport()

    def prepare():
        raise ImportError("no such module")

    transport.prepare = prepare
    worker = make_worker(transport, batch_interval=0)
    worker.put(event("a"))
    assert worker.flush(WAIT)
    assert worker._thread.is_alive()
    assert transport.messages == ["a"]


def test_a_signal_handler_that_logs_while_its_thread_waits_for_room(make_worker):
    """It does not wait inside of waiting: handlers that come faster than that would pile up without end."""
    transport = GatedTransport()
    worker = make_worker(
        transport, when_full="block", block_timeout=WAIT, max_queue_bytes=room_for(1), batch_interval=0
    )
    worker.put(event("0"))
    assert transport.reached.wait(WAIT)
    wait = worker._intake.progress.wait
    answers = []

    def interrupted(timeout):
        answers.append(worker.put(event("of the handler")))
        transport.go_on.set()
        return wait(timeout)

    worker._intake.progress.wait = interrupted
    assert worker.put(event("1"))
    assert answers == [False], "at once, and only once"
    worker._intake.progress.wait = wait
    assert worker.flush(WAIT)
    assert transport.messages == ["0", "1"]


def test_a_finalizer_that_logs_inside_put(make_worker, monkeypatch):
    """A line logged by a finalizer, while this thread is inside `put`, is kept and nothing locks up."""
    transport = InMemoryTransport()
    worker = make_worker(transport, max_queue_bytes=room_for(3), when_full="drop_newest")
    admit = worker._intake.queue.add
    depth = []

    class Noisy:
        def __del__(self):
            for i in range(3):
                worker.put(event(str(i)), background=False)

    def add(data, *, now):
        if not depth:
            depth.append(1)
            Noisy()
            gc.collect()
        return admit(data, now=now)

    monkeypatch.setattr(worker._intake.queue, "add", add)
    assert worker.put(event("x"), background=False)
    assert worker.send_now(WAIT)
    assert transport.messages == ["x", "0", "1"]
    assert worker.statistics()["dropped"] == {"queue_full": 1}


# --- ends and forks ---


def test_close_and_go_on(make_worker):
    """Closing delivers and ends the thread; a line that comes later starts it again; closing twice is fine."""
    transport = InMemoryTransport()
    worker = make_worker(transport)
    worker.put(event("a"))
    thread = worker._thread
    assert worker.close(WAIT)
    assert not thread.is_alive()
    assert worker.close(WAIT)
    worker.put(event("b"))
    assert worker.flush(WAIT)
    assert transport.messages == ["a", "b"]


def test_close_does_not_wait_for_a_server_that_hangs(make_worker, reports):
    """A close within its time says that it is not done; what is left is counted and said."""
    transport = GatedTransport()
    worker = make_worker(transport, batch_interval=0)
    worker.put(event("a"))
    assert transport.reached.wait(WAIT)
    thread = worker._thread
    assert worker.close(0.001) is False
    worker.report_undelivered()
    worker.report_undelivered()
    assert reports == ["1 lines were not delivered to memory: no time left"]
    transport.go_on.set()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert worker.flush(WAIT)
    assert transport.messages == ["a"]


def test_without_a_thread_the_caller_sends(make_worker, monkeypatch):
    """Where the interpreter refuses threads because it is ending, a flush sends in the calling thread."""

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    transport = InMemoryTransport()
    worker = make_worker(transport)
    worker.put(event("a"))
    assert worker.flush(WAIT)
    assert transport.messages == ["a"]


def test_a_drain_waits_for_the_sender_only_so_long(make_worker):
    """A thread that drains does not wait beyond its time for another that is sending."""
    worker = make_worker(fake=None)
    worker.put(event("a"), background=False)
    with worker._send_lock:
        assert worker.send_now(0.001) is False
    assert worker.send_now(WAIT)


def test_the_sending_thread_never_waits_for_itself(make_worker):
    """A flush from inside the transport is refused instead of waiting for ever."""
    answers = []

    class Flushing(InMemoryTransport):
        def send(self, producer, batch, *, timeout):
            answers.append((worker.is_own_thread, worker.flush(WAIT)))
            return super().send(producer, batch, timeout=timeout)

    worker = make_worker(Flushing(), batch_interval=0)
    worker.put(event("a"))
    assert worker.flush(WAIT)
    assert answers == [(True, False)]
    assert not worker.is_own_thread


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_without_hooks_is_noticed(make_worker, monkeypatch):
    """If the process has another pid than the worker's, the worker starts afresh: nothing of the parent's is sent."""
    transport = InMemoryTransport()
    worker = make_worker(transport)
    worker.put(event("parent's"), background=False)
    producer = worker.statistics()["producer"]
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert worker.flush(WAIT)
    worker.put(event("child's"), background=False)
    assert worker.send_now(WAIT)
    assert transport.messages == ["child's"]
    assert worker.statistics()["producer"] != producer


def test_reports_go_to_stderr(capsys):
    """Unless told otherwise a worker says what went wrong on stderr, and survives its absence."""
    worker = DeliveryWorker(InMemoryTransport(), Limits(max_queue_bytes=1, when_full="drop_newest"))
    fill(worker, 2)
    assert capsys.readouterr().err.startswith("runlog: the queue of 1 bytes is full: 1 lines were dropped")


def test_reports_survive_without_stderr(monkeypatch):
    """A program without stderr, or with a closed one, goes on."""
    monkeypatch.setattr("sys.stderr", None)
    worker = DeliveryWorker(InMemoryTransport(), Limits(max_queue_bytes=1, when_full="drop_newest"))
    assert fill(worker, 2) == [True, False]


def test_repr_tells_the_state(make_worker):
    """The text of a worker says where it sends and what it holds."""
    assert "0 events" in repr(make_worker())


def test_a_line_put_while_closing(make_worker):
    """A line that comes while the worker is being closed starts it again by itself."""
    transport = GatedTransport()
    worker = make_worker(transport, batch_interval=0)
    worker.put(event("a"))
    assert transport.reached.wait(WAIT)

    class Late:
        """Logs while `close` waits for the thread."""

        def put(self, item):
            wake.put(item)
            if worker._thread is None:
                worker._intake.queue.add(event("late"), now=0.0)

    wake, worker._wake = worker._wake, Late()
    worker._wake.get, worker._wake.get_nowait = wake.get, wake.get_nowait
    transport.go_on.set()
    assert worker.close(WAIT)
    worker._wake = wake
    assert worker.flush(WAIT)
    assert transport.messages == ["a", "late"]


def test_starting_twice_starts_once(make_worker):
    """Two threads that log first start one thread."""
    worker = make_worker()
    worker._start()
    thread = worker._thread
    worker._start()
    assert worker._thread is thread


def test_nothing_left_is_nothing_said(make_worker, reports):
    """A worker that has delivered everything has nothing to report."""
    make_worker().report_undelivered()
    assert reports == []


def test_goodbye(make_worker):
    """A worker whose events are all acknowledged says goodbye; one that sent nothing, or not all, does not."""
    transport = InMemoryTransport()
    worker = make_worker(transport)
    worker.say_goodbye(WAIT)
    assert transport.sends == 0
    worker.put(event("a"), background=False)
    worker.say_goodbye(WAIT)
    assert transport.sends == 0
    assert worker.send_now(WAIT)
    worker.say_goodbye(WAIT)
    assert transport.sends == 2
    transport.target = None
    worker.say_goodbye(WAIT)
    assert transport.sends == 2
