"""Who may follow what, and what one follower can do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_lines import FLOW, OTHER_FLOW, TASK, batch, finished, line, started
from streaming import ANY_TIME, Events, Sender, Socket, closing_code, frame, raw_connection
from websockets.exceptions import ConnectionClosed

from runlog._http import Client
from runlog.exceptions import QueryTimeoutError
from runlog.server import connections, serving, subscription
from runlog.server.app import BackgroundServer
from runlog.server.follower import follow
from runlog.server.ingest import Ingest
from runlog.server.live import Tail
from runlog.server.storage.memory import MemoryStorage

GREETING = frame(json.dumps({"type": "auth", "token": None}).encode())
WISH = frame(json.dumps({"type": "filter", "filter": {}}).encode())


@pytest.fixture
def server():
    with BackgroundServer() as server:
        yield server


@pytest.fixture
def sender(server):
    with Sender(server.url) as sender:
        yield sender


# --- expressions --------------------------------------------------------------------------------------


def test_an_expression_chooses_lines(server, sender):
    """On the socket and in the stream of events, among what is stored and what comes."""
    event = {"flow_run_id": FLOW, "attributes": {"table": "orders"}}
    sender.send(line("stored", level=30, **event), line("low", **event), line("other", level=30))
    query = "level>=warning table=orders"
    with (
        Socket(server.url, query=query, since=0) as client,
        Events(server.url, query=query, since="0") as events,
    ):
        assert client.logs(1) == ["stored"]
        assert json.loads(events.until("log")["data"])["message"] == "stored"
        sender.send(line("low", **event), line("live", level=40, **event), line("other", level=50))
        assert client.logs(1) == ["live"]
        assert json.loads(events.until("log")["data"])["message"] == "live"


@pytest.mark.parametrize(
    ("query", "reason"), [("level>=", "level"), ('"open', "quot"), (5, "query must be text")]
)
def test_a_wrong_expression_is_refused(server, query, reason):
    """1002, with what is wrong."""
    with Socket(server.url, query=query) as client:
        with pytest.raises(ConnectionClosed):
            client.receive()
        assert client.connection.close_code == 1002
        assert client.connection.close_reason.startswith("Invalid filter: ")
        assert reason in client.connection.close_reason


def test_filter_and_expression_must_both_hold(server, sender):
    """One does not replace the other."""
    with Socket(server.url, query="horse", filter={"level": {"ge_": 30}}) as client:
        client.until("heartbeat")
        sender.send(line("horse"), line("cow", level=40), line("horse!", level=40))
        assert client.logs(1) == ["horse!"]


# --- keys ---------------------------------------------------------------------------------------------


@pytest.fixture
def guarded():
    with BackgroundServer(auth_string="user:secret") as server:
        yield server


@pytest.fixture
def new_key(guarded):
    """Make a key with these bounds."""
    with Client(base_url=guarded.url, auth=("user", "secret")) as client:

        def new(*scopes, **bounds):
            body = {"name": "test", "scopes": scopes, **bounds}
            response = client.post("/runlog/v1/admin/keys", json=body)
            assert response.status_code == 201, response.text
            return response.json()["key"]

        yield new


@pytest.fixture
def trusted(guarded):
    with Sender(guarded.url, headers={"Authorization": "Basic dXNlcjpzZWNyZXQ="}) as sender:
        yield sender


@pytest.mark.parametrize(
    "wish", [{}, {"run": OTHER_FLOW}, {"filter": {"flow_run_id": {"any_": [OTHER_FLOW]}}}]
)
def test_a_key_of_one_run_sees_no_other(guarded, new_key, trusted, wish):
    """Neither what is stored nor what comes, whatever it asks for; nor another run's receipt."""
    key = new_key("read", flow_run_id=FLOW)
    trusted.send(line("not yours", flow_run_id=OTHER_FLOW), line("yours", flow_run_id=FLOW))
    with Socket(guarded.url, token=key, since=0, heartbeat=0.1, **wish) as client:
        client.until("heartbeat")
        trusted.send(
            started(OTHER_FLOW), line("live", flow_run_id=FLOW, task_run_id=TASK), finished(OTHER_FLOW)
        )
        seen = [client.receive() for _ in range(6)]
        if not wish:
            while not any(message.get("log", {}).get("message") == "live" for message in seen):
                seen.append(client.receive())
    assert {message["log"]["message"] for message in seen if message["type"] == "log"} <= (
        {"yours", "live"} if not wish else set()
    )
    assert {message["type"] for message in seen} <= {"log", "heartbeat"}


def test_a_key_of_one_run_sees_no_other_in_events(guarded, new_key, trusted):
    """The stream of events has the same bounds."""
    headers = {"Authorization": f"Bearer {new_key('read', flow_run_id=FLOW)}"}
    trusted.send(line("not yours", flow_run_id=OTHER_FLOW), line("yours", flow_run_id=FLOW))
    with Events(guarded.url, headers=headers, since="0") as events:
        assert json.loads(events.until("log")["data"])["message"] == "yours"
        trusted.send(line("not yours", flow_run_id=OTHER_FLOW), line("live", flow_run_id=FLOW))
        assert json.loads(events.until("log")["data"])["message"] == "live"


def test_a_key_that_may_not_read_is_refused(guarded, new_key):
    """A key for sending opens no stream."""
    key = new_key("ingest")
    with Client() as client:
        url = f"{guarded.url}/runlog/v1/logs/stream"
        assert client.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 403
        assert client.get(url).status_code == 401
    with pytest.raises((ConnectionClosed, AssertionError)):
        Socket(guarded.url, token=key)


def test_credentials_of_the_handshake_count(guarded, trusted):
    """A client that sends them as a header need not send a token."""
    with Socket(guarded.url, headers={"Authorization": "Basic dXNlcjpzZWNyZXQ="}) as client:
        client.until("heartbeat")
        trusted.send(line("hello"))
        assert client.logs(1) == ["hello"]


def test_a_stream_ends_when_its_key_is_revoked(guarded, new_key, trusted, monkeypatch):
    """A socket is told why; events end; those with other credentials go on."""
    monkeypatch.setattr(subscription, "CREDENTIALS_CHECK_S", 0.05)
    key = new_key("read")
    headers = {"Authorization": f"Bearer {key}"}
    with (
        Socket(guarded.url, token=key) as client,
        Socket(guarded.url, "prefect", token=key, filter={}) as theirs,
        Socket(guarded.url, token="user:secret", heartbeat=0.1) as other,
        Events(guarded.url, headers=headers) as events,
    ):
        events.next()
        identity = trusted.client.get("/runlog/v1/admin/keys").json()["keys"][0]["id"]
        assert trusted.client.delete(f"/runlog/v1/admin/keys/{identity}").is_success
        for refused in (client, theirs):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    refused.receive()
            found = refused.connection.close_code, refused.connection.close_reason
            assert found == (1008, "the credentials are no longer valid")
        events.rest()
        trusted.send(line("hello"))
        assert other.logs(1) == ["hello"]


# --- clients that take nothing ------------------------------------------------------------------------


def fill(sender):
    """Send more than a client's and the server's buffers take."""
    for _ in range(60):
        sender.send(*(line("x" * 10_000) for _ in range(20)))


@pytest.mark.parametrize("kind", ["socket", "events"])
def test_a_client_that_takes_nothing_is_dropped(server, sender, monkeypatch, kind):
    """After a while its connection is cut, and its place is free; one that reads goes on."""
    monkeypatch.setattr(connections, "STALL_TIMEOUT", 1.0)
    tail = server._server.config.app.state.server.tail
    with contextlib.ExitStack() as stack:
        if kind == "socket":
            sock = stack.enter_context(raw_connection(server.url, "prefect"))
            sock.sendall(GREETING + WISH)
        else:
            stack.enter_context(Events(server.url)).next()
        healthy = stack.enter_context(Socket(server.url, heartbeat=0.1))
        healthy.until("heartbeat")
        filling = stack.enter_context(ThreadPoolExecutor(1)).submit(fill, sender)
        assert len(healthy.logs(1200)) == 1200
        filling.result()
        deadline = time.monotonic() + ANY_TIME
        while tail.streams > 1 and time.monotonic() < deadline:
            healthy.until("heartbeat")
        assert tail.streams == 1


@pytest.mark.parametrize("kind", ["socket", "events"])
def test_a_server_that_stops_waits_for_nobody(sender, server, caplog, kind):
    """A client that takes nothing does not hold up the end, and nothing is logged as a defect."""
    caplog.set_level(logging.WARNING)
    with contextlib.ExitStack() as stack:
        if kind == "socket":
            sock = stack.enter_context(raw_connection(server.url, "prefect"))
            sock.sendall(GREETING + WISH)
        else:
            stack.enter_context(Events(server.url)).next()
        fill(sender)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 4  # uvicorn would wait for 5 s
    assert [record.getMessage() for record in caplog.records] == []


@pytest.fixture
def pinging(monkeypatch):
    """A server that pings its sockets all the time."""
    monkeypatch.setattr(serving, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(serving, "PING_TIMEOUT", 0.2)
    with BackgroundServer() as server:
        yield server


def test_a_client_that_answers_no_ping_has_vanished(pinging):
    """Its socket is closed with 1011; one that answers stays."""
    with Socket(pinging.url, heartbeat=0.1) as answering, raw_connection(pinging.url, "prefect") as silent:
        silent.sendall(GREETING + WISH)
        assert closing_code(silent) == 1011
        for _ in range(5):
            answering.until("heartbeat")


def test_a_client_that_reads_late_has_not_vanished(pinging):
    """It cannot answer a ping that waits behind lines which it has not read; once it reads, it gets all."""
    wish = frame(json.dumps({"type": "filter", "since": 0}).encode())
    with Sender(pinging.url) as sender:
        fill(sender)
    with raw_connection(pinging.url) as late:
        late.sendall(GREETING + wish)
        with Socket(pinging.url, heartbeat=0.1) as other:
            for _ in range(6):  # more than the ping's time is over
                other.until("heartbeat")
        with late.makefile("rb") as stream:
            found = 0
            while found < 1200:
                opcode, size = (byte & 0x7F for byte in stream.read(2))
                size = int.from_bytes(stream.read({126: 2, 127: 8}[size])) if size >= 126 else size
                payload = stream.read(size)
                if opcode & 0x0F == 9:
                    late.sendall(frame(payload, opcode=10))
                found += payload.startswith(b'{"type":"log"')


# --- filters that take long ---------------------------------------------------------------------------


class Slow:
    """A condition that takes its time."""

    def matches(self, event):
        time.sleep(0.002)
        return event.level >= 20


@pytest.mark.anyio
async def test_a_slow_filter_lets_others_go_on(monkeypatch):
    """A step ends when its time is over, and the next one goes on where it stopped."""
    monkeypatch.setattr("runlog.server.follower.MAX_STEP_S", 0.005)
    storage, tail = MemoryStorage(), Tail()
    follower = await follow(tail, storage, where=Slow())
    await Ingest(storage, tail).take_batch(batch(*(line(str(n)) for n in range(50))))
    found = []
    while len(found) < 50:
        step = await follower.next(0)
        assert len(step.lines) < 20
        found += [live.line.event.message for live in step.lines]
    assert found == [str(n) for n in range(50)]
    follower.close()


@pytest.mark.anyio
async def test_a_filter_that_is_given_up_is_asked_about_fewer_lines():
    """What takes too long for many lines may do for few; if not, the error comes through."""
    asked = []

    class Limited(MemoryStorage):
        async def read_arrivals(self, after, *, upto=None, **query):
            asked.append(None if upto is None else upto - after)
            if upto is None or upto - after > self.most:
                raise QueryTimeoutError(10)
            return await super().read_arrivals(after, upto=upto, **query)

    storage, tail = Limited(), Tail()
    await Ingest(storage, tail).take_batch(batch(*(line(str(n)) for n in range(250))))
    storage.most = 100
    follower = await follow(tail, storage, after=0)
    found = []
    while not (step := await asyncio.wait_for(follower.next(0), 5)).timed_out or len(found) < 250:
        found += [one.line.event.message for one in step.lines]
    assert found == [str(n) for n in range(250)]
    assert asked == [None, 2000, 100, 100, 100]
    follower.close()
    storage.most = 0
    hopeless = await follow(tail, storage, after=0)
    with pytest.raises(QueryTimeoutError):
        await hopeless.next(None)
    hopeless.close()
