"""What strangers and other web sites try does nothing: no 5xx, no growth, no way in, no secret out."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, encoded, line

from runlog._http import ASGITransport, AsyncClient, Client
from runlog.discovery import find_local_server
from runlog.exceptions import SettingsError
from runlog.server.app import BackgroundServer, create_app
from runlog.server.body import MAX_JOINED
from runlog.server.middleware import DATA_POLICY, PAGE_POLICY, SecurityHeaders
from runlog.server.serving import TLS
from runlog.server.state import Limits
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

BATCHES = "/api/runlog/v1/batches"


def client_of(app):
    return AsyncClient(transport=ASGITransport(app), base_url="http://localhost:4210")


@pytest.fixture
async def loopback():
    """A client of a server that listens on this machine alone and asks for nothing."""
    app = create_app(MemoryStorage(), on_loopback=True, allowed_origins=["https://logs.example.org/"])
    async with client_of(app) as client:
        yield client


# --- other web sites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("localhost", True),
        ("localhost:4210", True),
        ("LOCALHOST", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9", True),
        ("[::1]:4210", True),
        ("logs.example.org", True),
        ("logs.example.org:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5", False),
        ("0.0.0.0", False),
        ("", False),
        ("[::1", False),
        ("localhost@evil.example", False),
    ],
)
async def test_an_open_server_answers_by_its_own_names(loopback, host, fine):
    """A site that gave its name this machine's address (DNS rebinding) is answered 403, whatever it asks."""
    for method, path in (("GET", "/api/runlog/v1/logs"), ("POST", BATCHES), ("GET", "/metrics")):
        response = await loopback.request(method, path, headers={"Host": host})
        assert (response.status_code == 403) == (not fine)


async def test_where_credentials_guard_the_name_does_not_matter():
    """A server that asks for credentials may have any name."""
    app = create_app(MemoryStorage(), on_loopback=True, auth_string="a:b")
    async with client_of(app) as client:
        response = await client.get("/api/runlog/v1/logs", headers={"Host": "any.example"}, auth=("a", "b"))
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("origin", "fine"),
    [
        (None, True),
        ("http://localhost:4210", True),
        ("HTTP://LocalHost:4210", True),
        ("https://localhost:4210", True),
        ("https://logs.example.org", True),
        ("http://logs.example.org", False),
        ("http://localhost", False),
        ("http://localhost:4211", False),
        ("http://127.0.0.1:4210", False),
        ("https://evil.example", False),
        ("http://localhost:4210.evil.example", False),
        ("null", False),
        ("file://", False),
        ("chrome-extension://abc", False),
        ("http://[", False),
        ("http://localhost:99999", False),
        ("", False),
    ],
)
async def test_a_page_of_another_site_changes_nothing(loopback, origin, fine):
    """A request that changes something is refused by its Origin; reading is left to the browser's own rules."""
    headers = {} if origin is None else {"Origin": origin}
    for method, path in (
        ("POST", "/api/logs/"),
        ("POST", "/api/runlog/v1/admin/keys"),
        ("DELETE", "/api/runlog/v1/admin/keys/x"),
        ("PUT", "/api/x"),
    ):
        response = await loopback.request(method, path, headers=headers)
        assert (response.status_code == 403) == (not fine), response.text
    response = await loopback.get("/api/runlog/v1/logs", headers=headers)
    assert response.status_code == 200
    assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({"host": "localhost:4210"}, True),
        ({"host": "localhost:4210", "origin": "http://localhost:4210"}, True),
        ({"host": "localhost:4210", "origin": "https://evil.example"}, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, False),
    ],
)
async def test_a_page_of_another_site_opens_no_socket(headers, fine):
    """A handshake is refused by its Origin or Host before anything is accepted."""
    app = create_app(MemoryStorage(), on_loopback=True)
    sent, waiting = [], [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}]

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket", "path": "/api/logs/out", "raw_path": b"/api/logs/out", "query_string": b"",
        "root_path": "", "subprotocols": ["prefect"], "scheme": "ws", "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    assert (sent[0]["type"] == "websocket.accept") == fine
    if not fine:
        assert sent == [{"type": "websocket.close", "code": 1008, "reason": sent[0]["reason"]}]
        assert len(sent[0]["reason"].encode()) <= 123


async def test_pages_and_data_have_policies():
    """Data may do nothing at all, a page may use this server's own files; a route's own policy stands."""

    async def ask(content_type, **headers):
        async def app(scope, receive, send):
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            raw.append((b"content-type", content_type.encode()))
            await send({"type": "http.response.start", "status": 200, "headers": raw})

        sent = []

        async def send(message):
            sent.append({name.decode(): value.decode() for name, value in message["headers"]})

        await SecurityHeaders(app)({"type": "http"}, None, send)
        return sent[0]

    assert (await ask("application/json"))["content-security-policy"] == DATA_POLICY
    page = await ask("text/html; charset=utf-8")
    assert page["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert page["x-content-type-options"] == "nosniff"
    assert page["cross-origin-resource-policy"] == "same-origin"
    assert (await ask("text/html", **{"content-security-policy": "x"}))["content-security-policy"] == "x"


# --- bombs --------------------------------------------------------------------------------------------

MEBIBYTE = 1024 * 1024


@pytest.fixture
async def small():
    """A client of a server that takes 1 MiB at once, and its storage."""
    storage = MemoryStorage()
    app = create_app(storage, limits=Limits(max_body_bytes=MEBIBYTE, max_waiting_bytes=2 * MEBIBYTE))
    async with client_of(app) as client:
        client.requests = app.state.server.requests
        yield client


def joined_bomb():
    """Two gzip files, of which the first fills the limit to the byte and the second is a bomb."""
    return gzip.compress(bytes(MEBIBYTE + 1)) + gzip.compress(bytes(40 * MEBIBYTE))


BOMBS = {
    "one file": (gzip.compress(bytes(40 * MEBIBYTE)), 413),
    "two files": (joined_bomb(), 413),
    "many empty files": (gzip.compress(b"") * 20_000, 400),
    "many files": (gzip.compress(bytes(1000)) * (MAX_JOINED + 2), 400),
    "not gzip": (b"PK\3\4" + bytes(1000), 400),
    "raw deflate": (zlib.compress(bytes(MEBIBYTE * 20)), 400),
    "cut": (gzip.compress(b'{"a": 1}' * 100)[:-9], 400),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("path", [BATCHES, "/api/logs/", "/api/logs/filter"])
async def test_a_bomb_is_taken_apart_piece_by_piece(small, path, bomb):
    """A body that inflates beyond the limit is refused, and takes no more memory than the limit."""
    import tracemalloc

    body, status = BOMBS[bomb]

    async def pieces():
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    tracemalloc.start()
    try:
        response = await small.post(path, content=pieces(), headers={"Content-Encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code == status, response.text
    assert peak < 6 * MEBIBYTE
    assert small.requests.held_bytes == 0


@pytest.mark.parametrize(
    "encoding", ["deflate", "zstd", "br", "gzip, gzip", "gzip,gzip", "x-gzip", "x" * 10_000]
)
async def test_other_encodings_are_not_taken(small, encoding):
    """Only gzip is inflated, and once; the answer does not repeat all that was sent."""
    response = await small.post(BATCHES, content=b"x", headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    assert len(response.text) < 200


async def test_a_body_without_a_length_is_counted(small):
    """A chunked body is refused when it gets too long, however long it would go on."""
    sent = []

    async def endless():
        while True:
            sent.append(65_536)
            yield bytes(65_536)

    response = await small.post(BATCHES, content=endless())
    assert response.status_code == 413
    assert sum(sent) <= MEBIBYTE + 2 * 65_536


async def test_a_body_that_stops_is_given_up(small, monkeypatch):
    """Whoever begins a body and says no more is answered 408, and holds no memory."""
    monkeypatch.setattr("runlog.server.body.BODY_TIMEOUT", 0.05)

    async def stalled():
        yield bytes(1000)
        await asyncio.Event().wait()

    response = await small.post(BATCHES, content=stalled())
    assert (response.status_code, response.headers["connection"]) == (408, "close")
    assert small.requests.held_bytes == 0


async def test_a_declared_length_is_refused_before_it_is_read(small):
    """Nothing is read of a body that says it is too long, in whatever figures it says so."""
    for length in (str(MEBIBYTE + 1), "9" * 4000):
        response = await small.post(BATCHES, content=b"", headers={"Content-Length": length})
        assert response.status_code == 413


async def test_all_bodies_together_have_a_limit(small):
    """Past the memory for bodies further ones are answered 503, and taken once others are done."""
    release, begun = asyncio.Event(), asyncio.Event()
    holding = 0

    async def slow():
        nonlocal holding
        yield bytes(900_000)
        holding += 1
        if holding == 2:
            begun.set()
        await release.wait()
        yield b"x"

    waiting = [asyncio.create_task(small.post(BATCHES, content=slow())) for _ in range(2)]
    await asyncio.wait_for(begun.wait(), 10)
    while small.requests.held_bytes < 1_800_000:  # noqa: ASYNC110 - bytes are counted, not told
        await asyncio.sleep(0)
    response = await small.post(BATCHES, content=bytes(900_000))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    release.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [422, 422]
    assert small.requests.held_bytes == 0
    assert (await small.post(BATCHES, content=encoded(line()))).status_code == 200


def test_connections_have_a_limit():
    """Past it further requests are answered 503; when others leave, they are answered again."""
    with BackgroundServer(limits=Limits(max_connections=3)) as server:
        address = ("127.0.0.1", int(re.search(r":(\d+)/", server.url)[1]))
        with contextlib.ExitStack() as idle:
            for _ in range(3):
                connection = idle.enter_context(socket.create_connection(address))
                connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n")  # not finished
            statuses = set()
            while 503 not in statuses:
                with Client() as client:
                    statuses.add(client.get(server.url + "/health").status_code)
        while True:
            with Client() as client:
                if client.get(server.url + "/health").status_code == 200:
                    break


# --- corpora ------------------------------------------------------------------------------------------

INJECTIONS = [
    "' OR '1'='1", "'; DROP TABLE logs; --", '" OR ""="', "1; ATTACH DATABASE '/tmp/x' AS x", "') UNION SELECT 1 --",
    "\\'; SELECT load_extension('x')", "%' OR 1=1 --", "x' AND randomblob(1000000000) --", "${jndi:ldap://x}",
    "{{7*7}}", "$(id)", "`id`", "| cat /etc/passwd", "\x00", "\u202e", "a\r\nSet-Cookie: x=1", "*", "%", "_",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)", "</script><svg/onload=a>",
]  # fmt: skip


@pytest.fixture
async def sqlite_client(tmp_path):
    storage = SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    async with client_of(create_app(storage)) as client:
        await client.post(BATCHES, content=encoded(line("harmless", flow_run_id=FLOW, flow_name="f")))
        client.database = tmp_path / "runlog.db"
        yield client
    await storage.close()


@pytest.mark.parametrize("text", INJECTIONS)
async def test_what_is_asked_becomes_no_statement(sqlite_client, text):
    """Whatever stands in a parameter is compared and nothing else: an answer or a 4xx, and the table is whole."""
    names = (
        "run",
        "flow_run_id",
        "task_run_id",
        "level",
        "search",
        "task",
        "logger",
        "since",
        "cursor",
        "order",
        "q",
    )
    for name in names:
        response = await sqlite_client.get("/api/runlog/v1/logs", params={name: text})
        assert response.status_code in {200, 422}, response.text
        if response.status_code == 200 and name not in {"logger", "search", "q"}:
            assert response.json()["logs"] == []
    for name in ("name", "parent", "state", "kind", "cursor"):
        response = await sqlite_client.get("/api/runlog/v1/runs", params={name: text})
        assert response.status_code in {200, 422}
    for part in (
        {"text": {"query": text}},
        {"flow_run_id": {"any_": [text]}},
        {"operator": text},
        {text: {}},
    ):
        response = await sqlite_client.post("/api/logs/filter", json={"logs": part})
        assert response.status_code in {200, 422}
    with contextlib.closing(sqlite3.connect(sqlite_client.database)) as connection:
        assert connection.execute("SELECT count(*) FROM logs").fetchone() == (1,)


@pytest.mark.parametrize("text", INJECTIONS)
async def test_what_is_logged_is_data(sqlite_client, text):
    """Whatever is logged comes back as it was, as JSON that no browser takes for a page."""
    event = line(
        text, name=text or "n", flow_run_id=FLOW, flow_run_name=text, flow_name=text, attributes={text: text}
    )
    response = await sqlite_client.post(BATCHES, content=encoded(event, first_seq=1))
    assert response.status_code == 200, response.text
    response = await sqlite_client.get("/api/runlog/v1/logs", params={"order": "desc", "limit": 1})
    (found,) = response.json()["logs"]
    assert (found["message"], found["attributes"]) == (text, {text: text})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == DATA_POLICY


PATHS = [
    "/../../etc/passwd", "/api/../../etc/passwd", "/api/%2e%2e/%2e%2e/etc/passwd", "/api/..%2f..%2fetc/passwd",
    "/api/..\\..\\etc\\passwd", "/api/health/../runlog/v1/logs", "/api/health/%2e%2e/runlog/v1/logs",
    "/api/health%2f..%2frunlog/v1/logs", "/api/health;/runlog/v1/logs", "//api/health/runlog/v1/logs",
    "/api/health%00/runlog/v1/logs", "/API/RUNLOG/V1/LOGS", "/api//runlog/v1/logs", "/api/runlog/v1/logs%20",
    "/api/runlog/v1/runs/..%2f..%2fetc%2fpasswd", "/api/ready?/runlog/v1/logs", "/api/runlog/v1/logs?x=/api/health",
    "/api/runlog/v1/logs#/api/health", "/api/health/..;/runlog/v1/logs", "/%61pi/runlog/v1/logs", "/.git/config",
    "/api/runlog/v1/admin/keys/", "/api/runlog/v1//admin/keys", "/api/runlog/v1/%61dmin/keys", "*",
]  # fmt: skip


def raw_request(address, request):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
        return answer


@pytest.fixture(scope="module")
def guarded():
    """The address of a server with a real socket that asks for credentials."""
    with BackgroundServer(auth_string="user:password", limits=Limits(max_body_bytes=MEBIBYTE)) as server:
        with Client(base_url=server.url, auth=("user", "password")) as client:
            client.post("/runlog/v1/batches", content=encoded(line("top secret", flow_run_id=FLOW)))
        yield "127.0.0.1", int(re.search(r":(\d+)/", server.url)[1])


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_past_the_guard(guarded, path):
    """A path as it comes over the wire, in whatever spelling, gives a stranger a probe's answer or none."""
    for method in ("GET", "POST", "HEAD"):
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        answer = raw_request(guarded, request.encode())
        status = int(answer.split(b" ", 2)[1])
        assert status in {200, 400, 401, 404}, answer
        if status == 200:
            assert path.startswith("/api/ready?")
        assert b"top secret" not in answer
        assert b"root:" not in answer


@given(
    st.one_of(
        st.binary(max_size=400),
        st.tuples(
            st.sampled_from([b"GET", b"POST", b"PUT", b"X", b""]),
            st.sampled_from([b"/api/runlog/v1/batches", b"/api/logs/", b"/api/logs/out", b"/metrics", b"*"])
            | st.binary(max_size=30),
            st.lists(
                st.tuples(
                    st.sampled_from(
                        [b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"Authorization", b"Upgrade",
                         b"Connection", b"Host", b"Origin", b"X-PREFECT-API-VERSION", b"Sec-WebSocket-Key",
                         b"Sec-WebSocket-Version", b"Sec-WebSocket-Protocol"]
                    ),
                    st.sampled_from([b"chunked", b"gzip", b"-1", b"websocket", b"Upgrade", b"13", b"Basic dTpw", b"prefect"])
                    | st.binary(max_size=20),
                ),
                max_size=6,
            ),
            st.binary(max_size=100),
        ).map(
            lambda parts: parts[0] + b" " + parts[1] + b" HTTP/1.1\r\n"
            + b"".join(name + b": " + value + b"\r\n" for name, value in parts[2]) + b"\r\n" + parts[3]
        ),
    )
)  # fmt: skip
@settings(max_examples=150)
def test_rubbish_on_the_wire_is_never_our_fault(guarded, request_bytes):
    """Bytes that mean nothing, or half of something, are refused or dropped, and the server goes on."""
    try:
        answer = raw_request(guarded, request_bytes)
    except ConnectionError:
        answer = b""
    if answer:
        assert int(answer.split(b" ", 2)[1]) < 500, answer
    assert b"top secret" not in answer
    assert b" 200 " in raw_request(
        guarded, b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="reads the size of a process of Unix")
async def test_rubbish_makes_nothing_grow(small):
    """Thousands of refused requests leave nothing behind."""
    import gc
    import tracemalloc

    async def round_of_rubbish(number):
        for index in range(60):
            text = f"{number}-{index}-" + "x" * 500
            await asyncio.sleep(0)  # the loop forgets timers that are over only when it gets its turn
            await small.post(BATCHES, content=text)
            await small.post("/api/logs/", json=[{"name": text}])
            await small.get("/api/runlog/v1/logs", params={"cursor": text})
            await small.get(f"/api/{text}")
            await small.request(f"M{number}{index}", "/api/health")
            await small.get("/api/runlog/v1/logs", headers={"Authorization": f"Bearer rl_{text}"})

    await round_of_rubbish(0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 4):
            await round_of_rubbish(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 300_000


# --- secrets ------------------------------------------------------------------------------------------


async def test_no_secret_is_told(caplog):
    """Right or wrong, no credential is in a log, an answer or a representation."""
    caplog.set_level(logging.DEBUG)
    app = create_app(MemoryStorage(), auth_string="user:s3cret-pass", own_token="own-t0ken")
    secrets = ["s3cret-pass", "own-t0ken"]
    texts = []
    async with client_of(app) as client:
        auth = ("user", "s3cret-pass")
        made = await client.post(
            "/api/runlog/v1/admin/keys", json={"name": "n", "scopes": ["read"]}, auth=auth
        )
        key = made.json()["key"]
        secrets.append(key.rpartition("_")[2])
        ticket = (await client.post("/api/runlog/v1/tickets", auth=auth)).json()["ticket"]
        secrets.append(ticket)
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"Authorization": f"Basic {key}"},
            {"Authorization": key},
        ):
            for method, path in (("GET", "/api/runlog/v1/logs"), ("POST", BATCHES), ("GET", "/api/none")):
                response = await client.request(method, path, headers=headers)
                texts += [response.text, repr(response.headers)]
        texts.append((await client.get("/api/runlog/v1/logs", params={"ticket": ticket})).text)
        texts.append((await client.get("/metrics", auth=auth)).text)
        texts.append((await client.get("/api/runlog/v1/status", auth=auth)).text)
    server = app.state.server
    texts += [repr(server), repr(server.authenticator), repr(server.authenticator.tickets)]
    # The client of this test logs addresses; the server logs none.
    texts += [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    texts += [repr(key) for key in server.authenticator.known_keys()]
    assert not [secret for secret in secrets for text in texts if secret in text]


# --- the end ------------------------------------------------------------------------------------------


async def test_readiness_ends_first():
    """From the moment that a server is told to stop it is not ready, while it still lives and answers."""
    app = create_app(MemoryStorage())
    async with client_of(app) as client:
        assert (await client.get("/api/ready")).status_code == 200
        app.state.server.stop()
        ready = await client.get("/api/ready")
        assert (ready.status_code, ready.json()) == (503, {"message": "the server is stopping"})
        assert (await client.get("/api/health")).status_code == 200
        assert (await client.post(BATCHES, content=encoded(line()))).status_code == 200


def test_what_was_begun_is_finished_and_sockets_are_told():
    """A batch that is being stored is acknowledged, and a follower closed with 1012, before the server is gone."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    entered, release = threading.Event(), threading.Event()

    class SlowStorage(MemoryStorage):
        async def append(self, batch, *, observed_ns):
            entered.set()
            await asyncio.to_thread(release.wait, 10)
            return await super().append(batch, observed_ns=observed_ns)

    server = BackgroundServer(storage=SlowStorage()).start()
    with connect(server.url.replace("http", "ws") + "/logs/out", subprotocols=["prefect"]) as follower:
        follower.send(json.dumps({"type": "auth", "token": None}))
        assert json.loads(follower.recv(10)) == {"type": "auth_success"}
        follower.send(json.dumps({"type": "filter", "filter": {}}))
        answers = []
        sender = threading.Thread(target=lambda: answers.append(post(server.url)))
        sender.start()
        assert entered.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(ConnectionClosed) as closed:
            follower.recv(10)
        assert closed.value.rcvd.code == 1012
        release.set()
        stopping.join()
        sender.join()
    assert answers == [{"acked": 0}]


def post(url):
    with Client() as client:
        return client.post(url + "/runlog/v1/batches", content=encoded(line())).json()


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine for itself, with an encrypted key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-days",
        "1",
    ]
    command += [
        "-passout",
        "pass:k3y-password",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return TLS(str(directory / "cert.pem"), str(directory / "key.pem"), "k3y-password")


def test_a_server_speaks_tls(certificate, tmp_path):
    """With a certificate it speaks HTTPS alone, and publishes its address as such."""
    context = ssl.create_default_context(cafile=certificate.certfile)
    with BackgroundServer(tls=certificate, home=tmp_path) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert find_local_server(tmp_path).url == server.url
        with Client(verify=context) as client:
            assert client.get(server.url + "/health").json() is True
        address = ("127.0.0.1", int(re.search(r":(\d+)/", server.url)[1]))
        with contextlib.suppress(ConnectionError):
            assert b"200" not in raw_request(address, b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert "k3y-password" not in repr(certificate)
    certificate.check()


def test_a_wrong_certificate_is_told_at_once(certificate, tmp_path):
    """Missing files, wrong passwords and files that are none are mistakes of settings, without the password."""
    (tmp_path / "none.pem").write_text("nothing")
    for wrong in (
        TLS("/no/such.pem", certificate.keyfile),
        TLS(certificate.certfile, str(tmp_path / "none.pem")),
        TLS(certificate.certfile, certificate.keyfile, "wrong-passw0rd"),
        TLS(certificate.certfile, certificate.keyfile),
    ):
        with pytest.raises(SettingsError, match="cannot be used") as refusal:
            wrong.check()
        assert "passw0rd" not in str(refusal.value)
