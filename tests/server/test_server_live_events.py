"""Server-sent events: back-fill, live lines, resuming, and the end."""

from __future__ import annotations

import json
import threading

import pytest
from server_lines import FLOW, OTHER_FLOW, finished, line, started
from streaming import Events, Sender

from runlog._http import Client
from runlog.server.app import BackgroundServer
from runlog.server.state import Limits


@pytest.fixture
def server():
    with BackgroundServer() as server:
        yield server


@pytest.fixture
def sender(server):
    with Sender(server.url) as sender:
        yield sender


def message(event):
    return json.loads(event["data"])["message"]


def test_the_answer_is_an_event_stream(server):
    """Its type is the one of events, it is neither compressed nor kept by anybody, and it begins at once."""
    with Events(server.url, headers={"Accept-Encoding": "gzip"}) as events:
        assert events.response.headers["content-type"] == "text/event-stream"
        assert events.response.headers["cache-control"] == "no-store"
        assert events.response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in events.response.headers
        assert "content-length" not in events.response.headers
        assert events.next() == {"retry": "1000", "id": None}
        assert set(events.next()) == {"comment", "id"}


def test_a_question_for_the_headers_ends(server):
    """HEAD is answered by the headers of the stream, and nothing is streamed."""
    with Client() as client:
        response = client.head(f"{server.url}/runlog/v1/logs/stream")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")


def test_lines_are_events_with_cursors(server, sender):
    """The data is what a query answers, the id a place to come back to."""
    with Events(server.url) as events:
        events.next()
        events.next()
        sender.send(*(line(str(n), at=-n) for n in range(5)))
        found = [events.until("log") for _ in range(5)]
    (stored,) = sender.client.get("/runlog/v1/logs", params={"limit": 1}).json()["logs"]
    assert json.loads(found[4]["data"]) == stored
    assert [message(event) for event in found] == ["0", "1", "2", "3", "4"]
    with Events(server.url, last_event_id=found[1]["id"], cursor="ignored") as events:
        assert [message(events.until("log")) for _ in range(3)] == ["2", "3", "4"]
    with Events(server.url, cursor=found[3]["id"]) as events:
        assert message(events.until("log")) == "4"


def test_parameters_choose_lines(server, sender):
    """They are those of a query for lines, and hold for the back-fill and for what comes."""
    sender.send(line("low"), line("horse", level=40), line("cow", level=40))
    with Events(server.url, since="2000-01-01T00:00:00Z", level="warning", search="horse") as events:
        assert message(events.until("log")) == "horse"
        sender.send(line("horse again"), line("no", level=50), line("late horse", level=30))
        assert message(events.until("log")) == "late horse"


def test_a_run_is_followed_to_its_receipt(server, sender):
    """Its lines come, those of others do not, and its end brings the receipt."""
    with Events(server.url, run=FLOW) as events:
        events.next()
        events.next()
        sender.send(started(), line(flow_run_id=OTHER_FLOW), finished())
        assert [message(events.until("log")) for _ in range(2)] == ["started", "finished"]
        assert json.loads(events.until("receipt")["data"])["run_id"] == FLOW


def test_heartbeats_have_the_place(server, sender):
    """They are comments; their id moves on with lines that do not pass."""
    with Events(server.url, level="critical", heartbeat="0.1") as events:
        events.next()
        first = events.next()
        sender.send(line("hidden"))
        later = events.next()
        while later["id"] == first["id"]:
            later = events.next()
        assert (later["comment"], "data" in later) == ("heartbeat", False)
    with Events(server.url, last_event_id=first["id"]) as events:
        assert message(events.until("log")) == "hidden"


def test_a_place_in_another_store_is_told(server):
    """The event ``gap`` says why lines may come again."""
    with BackgroundServer() as other, Sender(other.url) as sender:
        with Events(server.url) as events:
            events.next()
            foreign = events.next()["id"]
        sender.send(line("theirs"))
        with Events(other.url, last_event_id=foreign) as events:
            gap = events.until("gap")
            assert "not of this store" in json.loads(gap["data"])["detail"]
            assert message(events.until("log")) == "theirs"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("cursor=nonsense", "is not one that this server gave out"),
        ("nonsense=1", "unknown parameter 'nonsense'"),
        ("limit=1", "unknown parameter 'limit'"),
        ("level=loud", "level must be a number or one of"),
        ("heartbeat=x", "heartbeat must be a number of seconds, got 'x'"),
        ("heartbeat=nan", "heartbeat must be from 0.1 to 3600 seconds, got nan"),
        ("since=x", "since: unable to parse"),
        ("run=a&run=b", "parameter 'run' is given twice"),
    ],
)
def test_what_makes_no_sense_is_refused(server, query, detail):
    """422 with a line that says what is wrong, before anything is streamed."""
    with Client() as client:
        response = client.get(f"{server.url}/runlog/v1/logs/stream?{query}")
    assert (response.status_code, detail in response.json()["detail"]) == (422, True), response.text


def test_too_many_streams_are_refused():
    """Past the limit, 503 and when to come again."""
    with BackgroundServer(limits=Limits(max_followers=1)) as server, Events(server.url) as events:
        events.next()
        with Client() as client:
            response = client.get(f"{server.url}/runlog/v1/logs/stream")
        assert (response.status_code, "retry-after" in response.headers) == (503, True)


def test_a_stream_ends_with_the_server():
    """The body ends properly, so that the client sees an end and not a fault."""
    with BackgroundServer() as server, Events(server.url) as events:
        events.next()
        events.next()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert all("event" not in block for block in events.rest())
        stopping.join()


def test_a_client_that_leaves_is_forgotten(server):
    """Its place can be taken by another one."""
    tail = server._server.config.app.state.server.tail
    for _ in range(3):
        with Events(server.url, heartbeat="0.1") as events:
            events.next()
            assert tail.streams >= 1
    with Events(server.url, heartbeat="0.1") as events:
        while tail.streams > 1 or tail.followers > 1:
            events.next()
