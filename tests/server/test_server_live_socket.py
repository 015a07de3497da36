"""The socket of live lines: greeting, filters, order, closings, and what clients do that nobody should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_FLOW, TASK, batch, finished, line, started
from streaming import ANY_TIME, Sender, Socket, closing_code, frame, raw_connection, socket_url
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from runlog.server.app import BackgroundServer, create_app
from runlog.server.live import MAX_TAIL_LINES
from runlog.server.routes import live_socket
from runlog.server.state import Limits
from runlog.server.storage.memory import MemoryStorage

AUTH = json.dumps({"type": "auth", "token": None})
FILTER = json.dumps({"type": "filter", "filter": {}})


@pytest.fixture(scope="module")
def server():
    with BackgroundServer() as server:
        yield server


@pytest.fixture(scope="module")
def guarded():
    with BackgroundServer(auth_string="user:secret") as server:
        yield server


@pytest.fixture
def fresh():
    """A server with nothing in it."""
    with BackgroundServer() as server:
        yield server


@pytest.fixture
def sender(fresh):
    with Sender(fresh.url) as sender:
        yield sender


def closing(connection):
    """Code and reason by which the server closes."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            connection.recv(ANY_TIME)
    return connection.close_code, connection.close_reason


def open_socket(server, protocol="prefect"):
    return connect(
        socket_url(server.url), subprotocols=[protocol] if protocol else None, open_timeout=ANY_TIME
    )


# --- greeting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["prefect"], "prefect"),
        (["runlog"], "runlog"),
        (["prefect", "runlog"], "runlog"),
        (None, None),
        (["x"], None),
    ],
)
def test_the_subprotocol_is_chosen(server, offered, chosen):
    """Ours before Prefect's; a client that offers neither is heard without one."""
    with connect(socket_url(server.url), subprotocols=offered) as connection:
        assert connection.subprotocol == chosen


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('{"type":"filter"}', (1008, "Expected 'auth' message")),
        ("no json", (1008, "Expected 'auth' message")),
        ("[]", (1008, "Expected 'auth' message")),
        (b"\xff\xfe", (1008, "Expected 'auth' message")),
        ('{"type":"auth","token":null}', (1008, "Auth required but no token provided")),
        ('{"type":"auth"}', (1008, "Auth required but no token provided")),
        ('{"type":"auth","token":"user:wrong"}', (1008, "Invalid token")),
        ('{"type":"auth","token":["user:secret"]}', (1008, "Invalid token")),
        (json.dumps({"type": "auth", "token": "x" * 65_536}), (1009, None)),
    ],
)
@pytest.mark.parametrize("protocol", ["prefect", "runlog"])
def test_a_wrong_greeting_is_refused(guarded, protocol, message, expected):
    """The socket is closed as Prefect's server does, with a reason."""
    with open_socket(guarded, protocol) as connection:
        connection.send(message)
        code, reason = closing(connection)
    assert code == expected[0]
    assert expected[1] in {None, reason}


def test_the_right_token_opens(guarded):
    """The auth string as the token is answered."""
    with open_socket(guarded) as connection:
        connection.send('{"type":"auth","token":"user:secret"}')
        assert json.loads(connection.recv(ANY_TIME)) == {"type": "auth_success"}


def test_old_clients_are_refused_where_credentials_are_asked_for(guarded):
    """Who offers no subprotocol cannot say who it is: 403, before the socket is open."""
    with pytest.raises(InvalidStatus) as refusal:
        open_socket(guarded, None)
    assert refusal.value.response.status_code == 403


def test_who_says_nothing_is_sent_away(server, monkeypatch):
    """A client has a limited time for its greeting, and again for its filter."""
    monkeypatch.setattr(live_socket, "GREETING_TIMEOUT", 0.05)
    with open_socket(server) as connection:
        assert closing(connection) == (1008, "Expected 'auth' message within 0.05 seconds")
    with open_socket(server) as connection:
        connection.send(AUTH)
        assert json.loads(connection.recv(ANY_TIME)) == {"type": "auth_success"}
        assert closing(connection) == (1008, "Expected 'filter' message within 0.05 seconds")


# --- filters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("{}", "Expected 'filter' message"),
        ("nonsense", "Expected 'filter' message"),
        ('{"type":"auth"}', "Expected 'filter' message"),
        ('{"type":"filter"}', "Invalid filter: Input should be a valid dictionary"),
        ('{"type":"filter","filter":null}', "Invalid filter: Input should be a valid dictionary"),
        (
            '{"type":"filter","filter":[]}',
            "Invalid filter: filter: Input should be a valid dictionary or object",
        ),
        (
            '{"type":"filter","filter":{"level":{"ge_":"INFO"}}}',
            "Invalid filter: filter.level.ge_: Input should be a valid integer",
        ),
        (
            '{"type":"filter","filter":{"nonsense":1}}',
            "Invalid filter: filter.nonsense: Extra inputs are not permitted",
        ),
        (
            json.dumps({"type": "filter", "filter": {"ä" * 2000: 1}}, ensure_ascii=False),
            "Invalid filter: filter.ä",
        ),
    ],
)
def test_a_wrong_filter_is_refused_by_prefects_protocol(server, message, reason):
    """1002 with a reason, however long it would be."""
    with open_socket(server) as connection:
        connection.send(AUTH)
        connection.recv(ANY_TIME)
        connection.send(message)
        code, got = closing(connection)
    assert (code, got[: len(reason)]) == (1002, reason)
    assert len(got.encode()) <= 123


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"filter": {"level": {"ge_": "x"}}}, "filter.level.ge_: Input should be a valid integer"),
        ({"nonsense": 1}, "unknown key 'nonsense'; expected one of filter, query, run"),
        ({"cursor": "nonsense"}, "cursor 'nonsense' is not one that this server gave out"),
        ({"cursor": 5}, "cursor must be text"),
        ({"run": ["x"]}, "run must be text"),
        ({"since": "yesterday-ish"}, "unable to parse 'yesterday-ish'"),
        ({"heartbeat": "often"}, "heartbeat must be a number of seconds"),
        ({"heartbeat": True}, "heartbeat must be a number of seconds"),
        ({"heartbeat": 0}, "heartbeat must be from 0.1 to 3600 seconds, got 0"),
    ],
)
def test_a_wrong_wish_is_refused_by_our_protocol(server, wish, reason):
    """1002 with a reason that names what is wrong."""
    with Socket(server.url, **wish) as client:
        code, got = closing(client.connection)
    assert code == 1002
    assert got.startswith(f"Invalid filter: {reason}"[:123])


def test_prefects_filters_hold_in_the_stream(fresh, sender):
    """Level, run, task run, time, text, and their operator choose lines as in a query."""
    filters = {
        "level": {"level": {"ge_": 30, "le_": 40}},
        "run": {"flow_run_id": {"any_": [FLOW]}},
        "task": {"task_run_id": {"is_null_": False}},
        "time": {"timestamp": {"after_": "2023-11-14T22:13:25Z"}},
        "text": {"text": {"query": "horse -dead"}},
        "or": {"operator": "or_", "level": {"ge_": 50}, "text": {"query": "horse"}},
        "nothing": {"flow_run_id": {"any_": []}},
    }
    sockets = {name: Socket(fresh.url, filter=asked) for name, asked in filters.items()}
    for client in sockets.values():
        client.until("heartbeat")
    sender.send(
        line("plain", at=0),
        line("warned", at=1, level=30, flow_run_id=FLOW),
        line("a horse", at=2, level=40, flow_run_id=OTHER_FLOW),
        line("a dead horse", at=3, flow_run_id=FLOW, task_run_id=TASK),
        line("critical", at=9, level=50),
    )
    expected = {
        "level": ["warned", "a horse"],
        "run": ["warned", "a dead horse"],
        "task": ["a dead horse"],
        "time": ["critical"],
        "text": ["a horse"],
        "or": ["a horse", "a dead horse", "critical"],
        "nothing": [],
    }
    for name, client in sockets.items():
        with client:
            assert client.logs(len(expected[name])) == expected[name]


def test_a_line_is_told_in_prefects_form_and_in_ours(fresh, sender):
    """Prefect's has its nine fields and no message of another kind; ours is that of the query, with a cursor."""
    with Socket(fresh.url, "prefect", filter={}) as theirs, Socket(fresh.url) as ours:
        ours.until("heartbeat")
        event = line("hello", flow_run_id=FLOW, task_run_id="not a uuid", attributes={"table": "orders"})
        sender.send(event, event)
        found = [theirs.receive(), theirs.receive()]
        own = ours.until("log")[0]
    (stored, _) = sender.client.get("/runlog/v1/logs").json()["logs"]
    names = (
        "id",
        "created",
        "updated",
        "name",
        "level",
        "message",
        "timestamp",
        "flow_run_id",
        "task_run_id",
    )
    assert [list(message) for message in found] == [["type", "log"]] * 2
    assert found[0]["log"] == {**{name: stored[name] for name in names}, "task_run_id": None}
    assert own == {"type": "log", "log": stored, "cursor": own["cursor"]}


def test_old_clients_get_lines_without_greeting(fresh, sender):
    """Without a subprotocol, the filter comes first."""
    with Socket(fresh.url, None) as old, Socket(fresh.url) as ours:
        ours.until("heartbeat")
        sender.send(line("one"))
        ours.until("log")
        sender.send(line("two"))
        assert old.logs(1) in (["one"], ["two"])


def test_a_server_without_our_frames_is_enough():
    """Under another ASGI server than ours, lines are sent as messages one by one."""

    async def play():
        storage = MemoryStorage()
        app = create_app(storage)
        received, sent = asyncio.Queue(), asyncio.Queue()
        scope = {
            "type": "websocket",
            "path": "/api/logs/out",
            "headers": [],
            "query_string": b"",
            "subprotocols": ["runlog"],
        }
        serving = asyncio.create_task(app(scope, received.get, sent.put))
        received.put_nowait({"type": "websocket.connect"})
        received.put_nowait({"type": "websocket.receive", "text": AUTH})
        received.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": "filter"})})
        events = [await sent.get() for _ in range(3)]
        await app.state.server.ingest.take_batch(batch(line("one"), line("two")))
        events += [await sent.get() for _ in range(2)]
        received.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await serving
        return events

    accepted, *events = asyncio.run(asyncio.wait_for(play(), ANY_TIME))
    assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "runlog")
    messages = [json.loads(event["text"]) for event in events]
    assert [message["type"] for message in messages] == ["auth_success", "heartbeat", "log", "log"]


# --- places -------------------------------------------------------------------------------------------


def test_a_cursor_goes_on_behind_its_line(fresh, sender):
    """What is stored behind it comes first, then what is new; a heartbeat has a cursor as well."""
    sender.send(*(line(str(n), at=-n) for n in range(10)))
    with Socket(fresh.url, since="2000-01-01T00:00:00Z") as client:
        beat = client.receive()
        messages = [client.until("log")[0] for _ in range(10)]
    assert [message["log"]["message"] for message in messages] == [str(n) for n in range(10)]
    assert beat["type"] == "heartbeat"
    for cursor, expected in [(beat["cursor"], 0), (messages[3]["cursor"], 4), (messages[9]["cursor"], 10)]:
        with Socket(fresh.url, cursor=cursor) as client:
            client.until("heartbeat")
            sender.send(line("new"))
            found = client.logs(11 - expected)
        assert found[: 10 - expected] == [str(n) for n in range(expected, 10)]
        assert found[10 - expected] == "new"


def test_since_chooses_lines_by_their_time(fresh, sender):
    """Older lines are left out, whenever they were stored."""
    sender.send(line("old", at=0), line("new", at=10), line("older", at=-5), line("newer", at=11))
    with Socket(fresh.url, since="2023-11-14T22:13:30Z") as client:
        assert client.logs(2) == ["new", "newer"]
        sender.send(line("late and old", at=1), line("late", at=12))
        assert client.logs(1) == ["late"]


def test_a_cursor_of_another_store_begins_anew_and_says_so(fresh, server, sender):
    """A store that was made anew, or set back, is read from its beginning."""
    sender.send(line("one"))
    with Socket(fresh.url) as client:
        cursor = client.until("heartbeat")[0]["cursor"]
    with Sender(server.url, producer="a" * 20) as other, Socket(server.url, cursor=cursor) as client:
        gap = client.receive()
        assert (gap["type"], sorted(gap)) == ("gap", ["cursor", "detail", "type"])
        assert "not of this store" in gap["detail"]
        other.send(line("theirs"))
        assert client.logs(1) == ["theirs"]


def test_heartbeats_come_while_nothing_passes(fresh):
    """At the pace that was asked for, with a place to come back to."""
    with Socket(fresh.url, heartbeat=0.1) as client:
        beats = [client.receive() for _ in range(3)]
    assert [sorted(beat) for beat in beats] == [["cursor", "type"]] * 3


def test_a_run_is_followed_to_its_receipt(fresh, sender):
    """Lines of the run and of what is opened in it come, then, once, its receipt."""
    with Socket(fresh.url, run=FLOW, heartbeat=0.1) as client:
        client.until("heartbeat")
        sender.send(
            started(), line("other", flow_run_id=OTHER_FLOW), line("task", flow_run_id=FLOW, task_run_id=TASK)
        )
        sender.send(finished())
        receipt, passed = client.until("receipt")
        found = [message["log"]["message"] for message in passed if message["type"] == "log"]
        assert found == ["started", "task", "finished"]
        assert (receipt["run"], receipt["receipt"]["state"], receipt["receipt"]["stored"]) == (
            FLOW,
            "COMPLETED",
            3,
        )
        sender.send(finished(at=2))
        assert [message["type"] for message in client.until("heartbeat")[1]] == ["log"]


def test_a_run_that_has_ended_has_its_receipt_at_once(fresh, sender):
    """Also without a line of it."""
    sender.send(started(), finished())
    with Socket(fresh.url, run=FLOW) as client:
        assert client.until("receipt")[0]["receipt"]["run_id"] == FLOW
    with Socket(fresh.url, run=FLOW, since=0) as client:
        _, passed = client.until("receipt")
        assert [message["type"] for message in passed] == ["heartbeat", "log", "log"]


def test_a_slow_reader_is_told_and_misses_nothing(tmp_path):
    """Past what is kept for all it gets a gap, then every line from the store, once and in order."""
    count = MAX_TAIL_LINES + 5000
    with (
        BackgroundServer(str(tmp_path / "runlog.db")) as server,
        Sender(server.url) as sender,
        Socket(server.url, "prefect", filter={}) as theirs,
        Socket(server.url) as slow,
    ):
        tail = server._server.config.app.state.server.tail
        while tail.followers < 2:  # Prefect's protocol has no way to say so
            time.sleep(0.01)
        for first in range(0, count, 1000):
            sender.send(*(line(f"{n} " + "x" * 200) for n in range(first, first + 1000)))
        found, kinds = [], set()
        while len(found) < count:
            message = slow.receive()
            kinds.add(message["type"])
            if message["type"] == "log":
                found.append(int(message["log"]["message"].split()[0]))
        assert found == list(range(count))
        assert "gap" in kinds
        assert [int(text.split()[0]) for text in theirs.logs(count)] == list(range(count))


# --- the end ------------------------------------------------------------------------------------------


def test_a_server_that_stops_says_so():
    """Sockets of every kind are closed with 1012, and the server does not wait for its time-out."""
    with contextlib.ExitStack() as stack, BackgroundServer() as server:
        clients = [Socket(server.url, "prefect", filter={}), Socket(server.url), Socket(server.url, None)]
        waiting = stack.enter_context(open_socket(server))  # has not said who it is
        for client in clients:
            stack.enter_context(client)
        clients[1].until("heartbeat")
        server.stop()
        assert [closing(client.connection)[0] for client in clients] == [1012] * 3
        assert closing(waiting)[0] == 1012


def test_too_many_streams_are_refused():
    """Past the limit, 503 and when to come again; a place that is given back can be taken."""
    with BackgroundServer(limits=Limits(max_followers=2)) as server:
        with Socket(server.url), Socket(server.url):
            with pytest.raises(InvalidStatus) as refusal:
                Socket(server.url)
            assert refusal.value.response.status_code == 503
            assert refusal.value.response.headers["Retry-After"]
        with Socket(server.url) as client:
            client.until("heartbeat")


# --- rubbish ------------------------------------------------------------------------------------------

GREETING = frame(AUTH.encode())
WISH = frame(FILTER.encode())


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(b"\xff\xff")], 1007),
        ([GREETING, frame(b"\xc3", fin=False), frame(b"\x28", opcode=0)], 1007),
        ([frame(b"x" * 65_537)], 1009),
        ([frame(b"x" * 60_000, fin=False), frame(b"x" * 60_000, opcode=0)], 1009),
        ([b"\xff\xff\xff\xff\xff\xff"], 1002),
        ([frame(b"", opcode=3)], 1002),
        ([b"\x81\x05hello"], 1002),
        ([frame(b"x" * 126, opcode=9)], 1002),
        ([frame(b"\x00\x01\x02", opcode=2)], 1008),
        ([GREETING, frame(b"\x00\x01\x02", opcode=2)], 1002),
        ([GREETING, WISH, frame(b"", opcode=8)], None),
        ([GREETING, WISH, *[frame(b"and more")] * 1001], 1008),
        ([frame(b"[" * 60_000)], 1008),
        (
            [
                frame(b'{"type":"auth","token":"\\ud800"}'),
                frame(b'{"type":"filter","filter":{"x":"\\ud800"}}'),
            ],
            1008,
        ),
    ],
)
def test_rubbish_is_refused_and_nothing_else_happens(server, caplog, frames, code):
    """Whatever bytes come, the socket is closed by the right code, and nothing is logged as a defect."""
    caplog.set_level(logging.WARNING)
    with raw_connection(server.url) as sock:
        try:
            for data in frames:
                sock.sendall(data)
        except OSError:
            pass  # refused before all was sent
        assert closing_code(sock) in ({code} if code else {None, 1000, 1005})
    assert [record.getMessage() for record in caplog.records] == []


PIECES = st.one_of(
    st.builds(frame, st.binary(max_size=200), opcode=st.integers(0, 15), fin=st.booleans()),
    st.sampled_from([GREETING, WISH]),
    st.builds(
        lambda value: frame(json.dumps(value).encode()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["type", "filter", "cursor", "since", "level", "ge_", "any_", "text", "query"]
                    ),
                    inner | st.sampled_from(["auth", "filter"]),
                    max_size=4,
                )
            ),
            max_leaves=12,
        ),
    ),
    st.binary(max_size=64),
)


@settings(max_examples=100)
@given(st.lists(PIECES, max_size=6), st.sampled_from(["runlog", "prefect", None]), st.booleans())
def test_no_bytes_are_a_defect(server, pieces, protocol, greets):
    """Frames at random, then the end: the server closes or the client does, and no error is logged."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        with raw_connection(server.url, protocol) as sock:
            try:
                for data in [GREETING, *pieces] if greets and protocol else pieces:
                    sock.sendall(data)
                sock.shutdown(1)
            except OSError:
                pass
            assert closing_code(sock) in {None, 1000, 1002, 1005, 1007, 1008, 1009}
        assert [record.getMessage() for record in records] == []
    finally:
        logging.getLogger().removeHandler(handler)


def test_the_server_is_as_before(server):
    """After all that, nobody follows any more, and lines still come."""
    with Sender(server.url, producer="b" * 20) as sender, Socket(server.url, heartbeat=0.1) as client:
        client.until("heartbeat")
        sender.send(line("alive"))
        assert client.logs(1) == ["alive"]
