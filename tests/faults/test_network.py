"""Bad networks and bad servers: nothing lost, nothing doubled, nothing reordered, and no hang."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from counting import stored_at, stored_in
from proxy import FaultProxy, Plan

LINES = 1000
"""Lines of each of three producers: 3,000 in a case."""

SEND_TIMEOUT = 0.25
"""Seconds that a producer waits for an answer."""

FLUSH = 30.0
"""Seconds for what takes one or two, on a machine that is busy."""

QUEUE_BYTES = 16 * 1024 * 1024
"""The default of ``RUNLOG_DELIVERY_MAX_QUEUE_BYTES``."""

MIXED = {
    "pass": 0.70,
    "cut_after": 0.08,
    "500": 0.04,
    "503": 0.02,
    "429:0.05": 0.04,
    "401": 0.01,
    "cut_before": 0.04,
    "late:600": 0.02,
    "hang": 0.01,
    "empty200": 0.01,
    "garbage": 0.01,
    "truncated": 0.01,
    "redirect": 0.01,
}
"""
Three answers in ten are faulty.

None of them judges a batch (400, 413, 422): until a refusal of a lone line is
known to be meant, such a line is dropped, and then the numbers below are those
of the refusals.
"""


@pytest.mark.parametrize(
    ("fault", "batch_bytes"),
    [
        ("500", 8192),
        ("503", 8192),
        ("429:0.02", 8192),
        ("401", 8192),
        ("cut_before", 8192),
        ("cut_after", 8192),
        ("hang", 20480),  # fewer requests, each of these costs SEND_TIMEOUT
        ("late:400", 20480),
        ("slow:2000", 20480),
        ("empty200", 8192),
        ("garbage", 8192),
        ("truncated", 8192),
        ("redirect", 8192),
    ],
)
def test_one_answer_in_four(fault, batch_bytes, server, database, start_producers):
    """Whatever one answer in four is, all lines are stored, once and in order, and the key goes nowhere else."""
    with FaultProxy(server.url, Plan.repeating(fault, "pass", "pass", "pass")) as proxy:
        producers = start_producers(
            proxy.url, batch_bytes=batch_bytes, send_timeout=SEND_TIMEOUT, PREFECT_API_KEY="a-secret-key"
        )
        producers.ask("log", lines=LINES)
        producers.flush(FLUSH)
        producers.end()
    assert proxy.given[fault.partition(":")[0]] >= 10
    assert (proxy.elsewhere.contacts, proxy.elsewhere.authorizations) == (0, [])
    result = producers.count(stored_in(database))
    print(f"{fault}: {result}; {producers.timing}; {dict(proxy.given)}")
    assert (result.sent, result.stored) == (3 * LINES, 3 * LINES)
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)
    assert producers.dropped == 0


def test_nothing_but_faults_for_a_while(server, database, start_producers):
    """An outage in which no answer is right is waited out; after it, all lines are stored, once and in order."""
    outage = ["503", "cut_after", "hang", "garbage", "401", "late:400"] * 5
    with FaultProxy(server.url, Plan.first(*outage)) as proxy:
        producers = start_producers(proxy.url, send_timeout=SEND_TIMEOUT)
        producers.ask("log", lines=LINES)
        producers.flush(FLUSH)
        producers.end()
    result = producers.count(stored_in(database))
    print(f"outage: {result}; {producers.timing}; {dict(proxy.given)}")
    assert (result.sent, result.stored) == (3 * LINES, 3 * LINES)
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)


@pytest.mark.parametrize("fault", ["413", "400"])
def test_one_refusal_in_four(fault, server, database, start_producers):
    """Refusals that are not meant cost at most lines that are refused alone, each of them counted on both sides."""
    with FaultProxy(server.url, Plan.repeating(fault, "pass", "pass", "pass")) as proxy:
        producers = start_producers(proxy.url, send_timeout=SEND_TIMEOUT)
        producers.ask("log", lines=LINES)
        producers.flush(FLUSH)
        producers.end()
    assert proxy.given[fault] >= 10
    result = producers.count(stored_in(database))
    print(f"{fault}: {result}; {producers.timing}; {dict(proxy.given)}")
    assert result.sent == 3 * LINES
    assert (result.lost, result.doubled, result.reordered) == (result.dropped, 0, 0)
    assert producers.dropped == result.dropped


@pytest.mark.parametrize("fault", ["413", "400"])
def test_a_lone_line_survives_a_refusal_that_passes(fault, server, database, start_producers):
    """A line alone that is refused once, by something in front of the server, is sent again."""
    with FaultProxy(server.url, Plan.first(fault)) as proxy:
        producers = start_producers(proxy.url, number=1)
        producers.ask("log", lines=1)
        producers.flush(FLUSH)
        producers.end()
    result = producers.count(stored_in(database))
    assert (result.sent, result.stored, result.lost, result.dropped) == (1, 1, 0, 0)


def test_an_answer_that_dribbles_is_given_up(server, database, start_producers):
    """An answer that keeps coming, but too slowly, is given up after the total time; the next try succeeds."""
    with FaultProxy(server.url, Plan.first("slow:10")) as proxy:
        producers = start_producers(proxy.url, number=1, send_timeout=SEND_TIMEOUT)
        producers.ask("log", lines=1)
        # The whole answer takes 20 s and more.
        producers.flush(SEND_TIMEOUT + 5)
        producers.end()


def test_a_pause_that_no_clock_can_hold(server, database, start_producers):
    """A server that asks to be left alone for 3,000 years does not end delivery by an exception."""
    with FaultProxy(server.url, Plan.first("429:1e11")) as proxy:
        producers = start_producers(proxy.url, number=1)
        producers.ask("log", lines=1)
        producers.ask("flush", timeout=0.5)
        producers.end()  # fails on a traceback on stderr


def test_a_server_that_comes_and_goes_is_reported_once(server, database, start_producers):
    """What is the matter is said once a minute at most, also where now and then an answer is right."""
    with FaultProxy(server.url, Plan.repeating("500", "500", "pass")) as proxy:
        producers = start_producers(proxy.url, number=1)
        producers.ask("log", lines=LINES)
        producers.flush(FLUSH)
        producers.end()
    assert producers.producers[0].errors.count("lines cannot be sent") == 1


def test_a_stderr_that_nobody_reads(server, start_producers):
    """Delivery goes on, though nobody takes what it has to say: stderr is a pipe, and full."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        with FaultProxy(server.url, Plan.first("500", "500")) as proxy:
            producers = start_producers(proxy.url, number=1, stderr=writer)
            producers.ask("log", lines=1)
            producers.flush(5)
            producers.end()
    finally:
        os.close(reader)
        os.close(writer)


def test_one_bad_record_in_a_thousand(server, database, start_producers):
    """A record that the server's rules refuse costs itself alone, and is counted on both sides."""
    bad = [0, 1, 500, LINES - 1]
    with FaultProxy(
        server.url,
        Plan.repeating("pass"),
        refuse=lambda body: 422 if b'"bad record"' in body else None,
    ) as proxy:
        producers = start_producers(proxy.url, batch_bytes=65536)
        producers.ask("log", lines=LINES, bad=bad)
        producers.flush(FLUSH)
        producers.end()
    stored = stored_in(database)
    result = producers.count(stored)
    print(f"422: {result}; {producers.timing}; {dict(proxy.given)}")
    missing = {text for producer in producers.producers for text in producer.sent} - {
        line.message for line in stored.lines
    }
    assert missing == {f"{producer.name} line {number}" for producer in producers.producers for number in bad}
    assert (result.lost, result.dropped, producers.dropped) == (12, 12, 12)
    assert (result.doubled, result.reordered) == (0, 0)


def test_readers_see_what_is_stored(server, database, start_producers):
    """The lines that the API shows are those in the database."""
    with FaultProxy(server.url, Plan.repeating("cut_after", "pass")) as proxy:
        producers = start_producers(proxy.url)
        producers.ask("log", lines=200)
        producers.flush(FLUSH)
        producers.end()
    shown, stored = stored_at(server.url), stored_in(database)
    assert sorted(shown.lines) == sorted(stored.lines)
    result = producers.count(shown)
    assert (result.stored, result.lost, result.doubled, result.reordered) == (600, 0, 0, 0)


def _assert_mixed(proxy, producers, database, peaks):
    producers.flush(FLUSH)
    producers.end()
    result = producers.count(stored_in(database))
    grown = [p.report["peak_bytes"] - before for p, before in zip(producers.producers, peaks, strict=True)]
    print(
        f"mixed: {result}; {producers.timing}; {dict(proxy.given)}; grown by {[g >> 20 for g in grown]} MiB; {sum(len(p.errors) for p in producers.producers)} bytes on stderr"
    )
    assert proxy.given["pass"] < 0.8 * proxy.requests
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)
    assert producers.dropped == 0
    assert max(grown) <= QUEUE_BYTES + 20 * 1024 * 1024
    assert proxy.elsewhere.contacts == 0


def _warm_up(producers):
    """Let each load what it needs to send, and return how much memory that took."""
    producers.ask("log", lines=100)
    producers.flush(FLUSH)
    return [report["peak_bytes"] for report in producers.ask("report")]


def test_mixed_faults(server, database, start_producers):
    """With three answers in ten faulty, in one of many ways, all lines are stored, once and in order."""
    with FaultProxy(server.url, Plan.random(MIXED, seed=20)) as proxy:
        producers = start_producers(proxy.url, send_timeout=SEND_TIMEOUT)
        peaks = _warm_up(producers)
        producers.ask("log", lines=4 * LINES)
        _assert_mixed(proxy, producers, database, peaks)


@pytest.mark.soak
def test_mixed_faults_for_ten_minutes(server, database, start_producers):
    """The same for ten minutes, with lines that come all the time: memory stays bounded, too."""
    minutes = 10
    with FaultProxy(server.url, Plan.random(MIXED, seed=21)) as proxy:
        producers = start_producers(
            proxy.url, batch_bytes=65536, send_timeout=SEND_TIMEOUT, deadline=60 * minutes + 120
        )
        peaks = _warm_up(producers)
        producers.post("chatter", pause=0.002)
        threading.Event().wait(60 * minutes)
        producers.post("flush", timeout=FLUSH)  # ends the chatter
        producers.answers()
        assert all(producers.answers())
        _assert_mixed(proxy, producers, database, peaks)
