"""One batch over real HTTP, and what each kind of answer or failure says."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from runlog._http import Client, MockTransport, Response
from runlog.delivery.batching import Batch
from runlog.delivery.producer import Producer
from runlog.delivery.retry import Answer
from runlog.delivery.transport import HTTPTransport, InMemoryTransport, encode_batch, read_answer
from runlog.discovery import publish_local_server
from runlog.records import DropMarker, decode_batch

UNACKED = "HTTP 200 without an acknowledgement"
PRODUCER = Producer("0123456789abcdef0123", 1, b'{"service.name":"s"}')
EVENT = b'{"timestamp_ns":1,"level":20,"name":"n","message":"m"}'


@pytest.fixture
def server():
    """A real HTTP server that answers what it is told and remembers what it got."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append((self.path, dict(self.headers), body))
            status, headers, answer = self.server.answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.requests = []
    found.answer = (200, {}, b'{"acked": 0}')
    found.url = f"http://127.0.0.1:{found.server_port}/api"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def send():
    """Send one event and close the connection."""

    def send(url, **kwargs):
        transport = HTTPTransport(url, **kwargs)
        try:
            return transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10)
        finally:
            transport.close()

    return send


def test_the_request(server, send):
    """The body is a batch that decodes, under the address that users configure, with their headers."""
    answer = send(server.url + "/", headers={"Authorization": "Bearer k"})
    assert answer == Answer(200, acked=0, detail="HTTP 200", is_verdict=False)
    path, headers, body = server.requests[0]
    assert path == "/api/runlog/v1/batches"
    assert headers["Authorization"] == "Bearer k"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "producer": PRODUCER.id,
        "first_seq": 0,
        "resource": {"service.name": "s"},
        "events": [json.loads(EVENT)],
    }


def test_the_connection_is_kept(server):
    """One transport sends over one connection until it is closed; closing again does no harm."""
    transport = HTTPTransport(server.url)
    for _ in range(3):
        assert transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10).acked == 0
    transport.close()
    transport.close()
    assert len(server.requests) == 3


def test_markers_are_encoded():
    """The places of dropped events go with the batch."""
    body = encode_batch(PRODUCER, Batch(4, (EVENT,), (DropMarker(4, 2, "queue_full"),)))
    batch = decode_batch(body)
    assert batch.dropped == [DropMarker(4, 2, "queue_full")]
    assert [seq for seq, _ in batch.numbered()] == [6]


@pytest.mark.parametrize(
    ("status", "headers", "body", "answer"),
    [
        (200, {}, b"", Answer(200, detail=UNACKED)),
        (200, {}, b"<html>", Answer(200, detail=UNACKED)),
        (200, {}, b"[1]", Answer(200, detail=UNACKED)),
        (200, {}, b'{"acked": "0"}', Answer(200, detail=UNACKED)),
        (200, {}, b"\xff", Answer(200, detail=UNACKED)),
        (422, {}, b'{"detail": "bad"}', Answer(422, detail="HTTP 422 bad")),
        (
            307,
            {"location": "http://x/"},
            b"",
            Answer(307, detail="HTTP 307 redirects to http://x/, which is not followed"),
        ),
        (409, {}, b'{"detail": "gap", "expected": 3}', Answer(409, expected=3, detail="HTTP 409 gap")),
        (429, {"retry-after": "7"}, b"", Answer(429, retry_after=7.0, detail="HTTP 429")),
        (503, {"retry-after": "-7"}, b"", Answer(503, retry_after=0.0, detail="HTTP 503")),
        (503, {"retry-after": "soon"}, b"", Answer(503, detail="HTTP 503")),
        (
            503,
            {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"},
            b"",
            Answer(503, retry_after=0.0, detail="HTTP 503"),
        ),
    ],
)
def test_answers(status, headers, body, answer):
    """Only what a body of ours says counts; anything else is told by its status, and is no verdict."""
    expected = replace(answer, is_verdict=b"detail" in body)
    assert read_answer(status, headers, body) == expected


def test_redirects_are_not_followed(server, send):
    """The key must not go to a host that nobody configured."""
    server.answer = (307, {"Location": server.url + "/elsewhere"}, b"")
    assert send(server.url).status == 307
    assert len(server.requests) == 1


def test_nobody_listens(send):
    """A refused connection is an answer without a status, which says why."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = send(f"http://127.0.0.1:{port}/api")
    assert answer.status is None
    assert answer.detail.startswith("ConnectError")


@pytest.mark.parametrize("url", ["nonsense", "http://[::1", "ftp://host/api", "http://host:99999999/api"])
def test_an_address_that_is_none(send, url):
    """A wrong address is told like any failure; delivery raises nothing."""
    answer = send(url)
    assert answer.status is None
    assert answer.detail


def test_a_server_that_hangs(send):
    """A server that accepts and says nothing is given up after the time allowed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = HTTPTransport(f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        before = time.monotonic()
        answer = transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=0.05)
        transport.close()
    assert answer.status is None
    assert "Timeout" in answer.detail
    assert time.monotonic() - before < 5


def test_the_local_server_is_found(server, tmp_path):
    """Without an address the server that runs on this machine is used, while one does."""
    transport = HTTPTransport(None, home=tmp_path)
    assert transport.target is None
    assert "no server" in repr(transport)
    assert (
        transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10).detail
        == "no log server is running on this machine"
    )
    with publish_local_server(tmp_path, server.url):
        assert transport.target == server.url
        assert transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10).acked == 0
    transport.close()
    assert HTTPTransport(None).target is None


def test_a_given_client_is_used_and_not_closed():
    """A ready client brings its own settings and stays open."""
    with Client(transport=MockTransport(lambda request: Response(200, json={"acked": 5}))) as client:
        transport = HTTPTransport("http://log.example/api", client=client)
        assert transport.send(PRODUCER, Batch(5, (EVENT,)), timeout=10).acked == 5
        transport.close()
        assert not client.is_closed


def test_a_fork_forgets_connections(server):
    """After a fork the parent's connection is neither used nor closed."""
    transport = HTTPTransport(server.url)
    transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10)
    parents = transport._client
    transport.forget_connections()
    transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=10)
    assert not parents.is_closed
    parents.close()
    transport.close()


def test_in_memory_is_exactly_once():
    """The in-memory end deduplicates, stores tails and refuses gaps, as the server does."""
    memory = InMemoryTransport()
    assert memory.send(PRODUCER, Batch(0, (EVENT, EVENT)), timeout=1) == Answer(200, acked=1)
    assert memory.send(PRODUCER, Batch(0, (EVENT, EVENT)), timeout=1) == Answer(200, acked=1)
    assert len(memory.messages) == 2
    assert memory.send(PRODUCER, Batch(5, (EVENT,)), timeout=1).expected == 2
    overlapping = Batch(1, (EVENT, EVENT), (DropMarker(2, 2, "queue_full"),))
    assert memory.send(PRODUCER, overlapping, timeout=1).acked == 4
    assert [seq for batch in memory.batches for seq, _ in batch.numbered()] == [0, 1, 4]
    assert memory.batches[-1].dropped == [DropMarker(2, 2, "queue_full")]
    memory.close()
    memory.forget_connections()


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_dribbles(part):
    """A server that sends a byte now and then is given up when the time for the whole answer is over."""
    stop = threading.Event()

    def dribble(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if part == "body":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.02):
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble, args=(listener,))
        thread.start()
        transport = HTTPTransport(f"http://127.0.0.1:{listener.getsockname()[1]}/api")
        answer = transport.send(PRODUCER, Batch(0, (EVENT,)), timeout=0.3)
        transport.close()
        stop.set()
        thread.join(20)
    assert answer.status is None
    assert "Timeout" in answer.detail


def test_an_endless_answer_is_not_read(server, send):
    """An answer that is far too long is not taken into memory."""
    server.answer = (200, {}, b" " * 1_000_000)
    answer = send(server.url)
    assert answer.status is None
    assert "more than 65536 bytes" in answer.detail
