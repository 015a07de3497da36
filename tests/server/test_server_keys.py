"""API keys: who gets in, what each scope allows, and what a bound key sees."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import sqlite3
import threading
import time

import pytest
from server_lines import FLOW, OTHER_FLOW, OTHER_PRODUCER, TASK, encoded, finished, line, started
from streaming import Events, Sender, Socket, socket_url
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from runlog._http import ASGITransport, AsyncClient, Client
from runlog.discovery import find_local_server, local_credentials
from runlog.exceptions import QueryError, SettingsError
from runlog.server.app import BackgroundServer, create_app
from runlog.server.authentication import Authenticator
from runlog.server.keys import digest_of, key_id, new_key
from runlog.server.middleware import permissions_for
from runlog.server.principal import ANYONE, SCOPE_KEY, Principal, principal_of
from runlog.server.query import AllOf, RunIn
from runlog.server.state import authorise, state_of
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.restricted import PermissionDeniedError, RestrictedStorage
from runlog.server.storage.sqlite import SQLiteStorage
from runlog.server.tickets import LIFETIME, MAX_TICKETS, Tickets

pytestmark = pytest.mark.anyio

AUTH = "user:password"
KEYS = "/runlog/v1/admin/keys"


def basic(auth=AUTH):
    return {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request, tmp_path):
    storage = MemoryStorage() if request.param == "memory" else SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
async def client(storage):
    """A client without credentials of a server with an auth string."""
    app = create_app(storage, auth_string=AUTH)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        yield client


@pytest.fixture
def make(client):
    """Make a key and return it."""

    async def make(*scopes, name="a key", **rest):
        response = await client.post(KEYS, json={"name": name, "scopes": scopes, **rest}, headers=basic())
        assert response.status_code == 201, response.text
        return response.json()["key"]

    return make


# --- a key and what is kept of it ---------------------------------------------------------------------


def test_a_key_is_random_and_only_its_digest_is_kept():
    """A key has 256 random bits; what is kept has its beginning and its SHA-256, and shows neither it nor that."""
    token, key = new_key("ci", ["read", "ingest"], now_ns=5)
    other, _ = new_key("ci", ["read", "ingest"], now_ns=5)
    assert token != other
    prefix, identity, secret = token.split("_", 2)
    assert (prefix, len(secret), key.id) == ("rl", 43, f"rl_{identity}")
    assert key.digest == hashlib.sha256(token.encode()).digest() == digest_of(token)
    assert secret not in repr(key)
    assert str(key.digest) not in repr(key)
    assert key.matches(token)
    assert not key.matches(other)
    assert not key.matches("\ud800")
    assert key_id(token) == key.id
    assert key_id(token + "x") is None
    assert (key.created_ns, key.expires_ns, key.last_used_ns) == (5, None, None)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"permissions": []}, "scopes must be some of ingest, read, admin"),
        ({"permissions": ["write"]}, "scopes must be some of"),
        ({"permissions": ["read", "write"]}, "scopes must be some of"),
        ({"name": " "}, "must have 1 to 200 characters, got 1"),
        ({"name": "x" * 201}, "got 201"),
        ({"expires_ns": 5}, "must expire in the future"),
        ({"expires_ns": 2**63}, "must expire in the future"),
        ({"permissions": ["admin"], "flow_name": "etl"}, "cannot be bound"),
        ({"permissions": ["admin"], "flow_run_id": FLOW}, "cannot be bound"),
    ],
)
def test_an_impossible_key_is_refused(arguments, problem):
    """The mistake is named."""
    with pytest.raises(QueryError, match=problem):
        new_key(**{"name": "n", "permissions": ["read"], "now_ns": 5, **arguments})


async def test_keys_survive_in_the_store(storage):
    """All of a key comes back; it can be replaced, used and removed."""
    _, key = new_key("ci", ["read"], now_ns=1, expires_ns=9, flow_run_id=FLOW, flow_name="etl")
    _, other = new_key("x", ["admin", "ingest"], now_ns=2)
    await storage.add_key(key)
    await storage.add_key(other)
    assert {found.id: found for found in await storage.read_keys()} == {key.id: key, other.id: other}
    await storage.mark_keys_used({key.id: 7, "rl_gone": 8})
    assert dataclasses.replace(key, last_used_ns=7) in await storage.read_keys()
    assert await storage.remove_key(other.id) is True
    assert await storage.remove_key(other.id) is False
    assert [found.id for found in await storage.read_keys()] == [key.id]


# --- who gets in --------------------------------------------------------------------------------------


async def test_key_and_auth_string_are_valid_side_by_side(client, make):
    """Prefect's client sends the one as Bearer, the other as Basic; neither passes for the other."""
    key = await make("read")
    assert (await client.get("/runlog/v1/logs", headers=bearer(key))).status_code == 200
    assert (await client.get("/runlog/v1/logs", headers=basic())).status_code == 200
    for wrong in (
        bearer(AUTH),
        basic(key),
        bearer(key[:-1] + ("A" if key[-1] != "A" else "B")),
        bearer(key.swapcase()),
        bearer(key[:11]),
        bearer(""),
        {"Authorization": key},
        {"Authorization": f"bearer {key}"},
        {},
    ):
        response = await client.get("/runlog/v1/logs", headers=wrong)
        assert (response.status_code, response.json()) == (401, {"exception_message": "Unauthorized"})


async def test_the_first_key_closes_an_open_server(storage):
    """Without auth string and key anyone may do anything; from the first key on, and without it, nobody may."""
    app = create_app(storage)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        assert (await client.get("/runlog/v1/logs", headers=bearer("x"))).status_code == 200
        made = (await client.post(KEYS, json={"name": "n", "scopes": ["admin"]})).json()
        assert (await client.get("/runlog/v1/logs")).status_code == 401
        assert (await client.get("/runlog/v1/logs", headers=bearer(made["key"]))).status_code == 200
        revoked = await client.delete(f"{KEYS}/{made['id']}", headers=bearer(made["key"]))
        assert revoked.json() == {"revoked": made["id"]}
        assert (await client.get("/runlog/v1/logs", headers=bearer(made["key"]))).status_code == 401
        assert (await client.get("/runlog/v1/logs")).status_code == 401


async def test_keys_are_known_after_a_restart(storage):
    """A new server over the same store knows the keys, and when they were used."""
    now = [10**18]
    token, key = new_key("n", ["read"], now_ns=now[0])
    await storage.add_key(key)
    first = Authenticator(storage, clock=lambda: now[0])
    await first.load()
    assert first.is_required
    assert first.by_header(f"Bearer {token}") == key.principal
    now[0] += 1
    assert first.by_token(token) == key.principal
    assert [known.last_used_ns for known in first.known_keys()] == [10**18]
    await first.store_uses()
    await first.store_uses()
    second = Authenticator(storage, clock=lambda: now[0])
    await second.load()
    assert [known.last_used_ns for known in second.known_keys()] == [10**18]
    now[0] += 60 * 10**9
    second.by_token(token)
    assert [known.last_used_ns for known in second.known_keys()] == [now[0]]
    assert "1 keys" in repr(second)


async def test_an_expired_key_is_worth_nothing_and_opens_nothing(storage):
    """After its time a key is refused, and the server still asks for one."""
    now = [1000]
    token, key = new_key("n", ["read"], now_ns=1, expires_ns=2000)
    await storage.add_key(key)
    authenticator = Authenticator(storage, clock=lambda: now[0])
    await authenticator.load()
    assert authenticator.by_token(token) == key.principal
    now[0] = 2000
    assert authenticator.by_token(token) is None
    assert authenticator.is_required


async def test_a_key_that_is_revoked_while_its_use_is_stored(storage):
    """A revocation in between is no trouble."""
    token, key = new_key("n", ["read"])
    await storage.add_key(key)
    authenticator = Authenticator(storage)
    await authenticator.load()
    authenticator.by_token(token)
    storing = asyncio.create_task(authenticator.store_uses())
    await asyncio.sleep(0)
    assert authenticator.dismiss(key.id)
    await storing
    assert authenticator.known_keys() == []


# --- what each scope allows ---------------------------------------------------------------------------

SCOPES = [
    ("GET", "/runlog/v1/logs", {"read", "admin"}),
    ("GET", "/runlog/v1/runs", {"read", "admin"}),
    ("GET", "/runlog/v1/runs/latest", {"read", "admin"}),
    ("GET", "/runlog/v1/status", {"read", "admin"}),
    ("POST", "/logs/filter", {"read", "admin"}),
    ("POST", "/runlog/v1/tickets", {"read", "admin"}),
    ("POST", "/logs/", {"ingest", "admin"}),
    ("POST", "/runlog/v1/batches", {"ingest", "admin"}),
    ("POST", "/flow_runs/", {"ingest", "admin"}),
    ("POST", f"/flow_runs/{FLOW}/set_state", {"ingest", "admin"}),
    ("PATCH", f"/flow_runs/{FLOW}", {"ingest", "admin"}),
    ("GET", f"/flow_runs/{FLOW}", {"ingest", "read", "admin"}),
    ("GET", "/admin/version", {"ingest", "read", "admin"}),
    ("GET", KEYS, {"admin"}),
    ("POST", KEYS, {"admin"}),
    ("DELETE", f"{KEYS}/rl_00000000", {"admin"}),
]


@pytest.mark.parametrize(("method", "path", "allowed"), SCOPES)
async def test_a_scope_allows_what_it_is_for(client, make, method, path, allowed):
    """Each scope lets through what it covers, and the rest is answered 403 with what it takes."""
    for scope in ("ingest", "read", "admin"):
        key = await make(scope)
        response = await client.request(method, path, headers=bearer(key))
        assert (response.status_code == 403) == (scope not in allowed), (scope, response.status_code)
        if response.status_code == 403:
            assert response.json()["detail"].startswith(f"{key_id(key)} has not the scope ")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/runlog/v1/new"),
        ("POST", "/api/new"),
        ("DELETE", "/api/x"),
        ("GET", "/api/runlog/v1/admin/x"),
    ],
)
def test_what_nobody_thought_of_is_not_for_readers(method, path):
    """A route that is not listed needs more than ``read`` if it may change something."""
    assert "read" not in permissions_for(method, path)


async def test_a_key_is_told_once_and_never_again(client, make, caplog):
    """The list has names, scopes, times and bounds, but no key; nor has the log, nor the store."""
    caplog.set_level(logging.DEBUG)
    key = await make("read", name="für CI", expires_s=60, flow_name="etl")
    await client.get("/runlog/v1/logs", headers=bearer(key))
    listed = await client.get(KEYS, headers=basic())
    (found,) = listed.json()["keys"]
    assert key.rpartition("_")[2] not in listed.text + caplog.text
    assert (found["id"], found["name"], found["scopes"]) == (key_id(key), "für CI", ["read"])
    assert (found["flow_name"], found["flow_run_id"], found["expired"]) == ("etl", None, False)
    assert found["created"] <= found["last_used"] < found["expires"]


async def test_no_key_is_in_the_database_file(tmp_path):
    """Nothing in the files of the store has the key."""
    path = tmp_path / "runlog.db"
    with BackgroundServer(str(path)) as server, Client(base_url=server.url) as client:
        made = client.post(KEYS, json={"name": "n", "scopes": ["read"]}).json()
        secret = made["key"].rpartition("_")[2].encode()
        assert not any(secret in file.read_bytes() for file in tmp_path.iterdir())
    with sqlite3.connect(path) as connection:
        ((digest,),) = connection.execute("SELECT digest FROM api_keys").fetchall()
    connection.close()
    assert digest == digest_of(made["key"])


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"name": "n"}', b'{"name": "n", "scopes": ["x"]}', b'{"name": "n", "scopes": []}',
     b'{"name": 1, "scopes": ["read"]}', b'{"name": "n", "scopes": ["read"], "more": 1}',
     b'{"name": "n", "scopes": ["read"], "expires_s": 0}', b'{"name": "n", "scopes": ["read"], "expires_s": 1e300}',
     b'{"name": "\xff", "scopes": ["read"]}', b"[" * 10_000],
)  # fmt: skip
async def test_a_wrong_request_for_a_key_is_refused(client, body):
    """It is answered 422 with one line."""
    response = await client.post(KEYS, content=body, headers=basic())
    assert response.status_code == 422, response.text
    assert "\n" not in response.json()["detail"]


async def test_a_key_that_is_not_there_cannot_be_revoked(client):
    """404."""
    response = await client.delete(f"{KEYS}/rl_nothing", headers=basic())
    assert (response.status_code, response.json()) == (404, {"detail": "no key 'rl_nothing'"})


# --- bounds -------------------------------------------------------------------------------------------

RUNS = [
    *(started(FLOW, flow_name="etl", flow_run_name="a"),),
    line("of a", flow_run_id=FLOW, flow_name="etl"),
    line("of a's task", flow_run_id=FLOW, flow_name="etl", task_run_id=TASK, task_name="t"),
    finished(FLOW, flow_name="etl"),
]
OTHERS = [
    started(OTHER_FLOW, at=5, flow_name="billing", flow_run_name="b"),
    line("of b", at=5, flow_run_id=OTHER_FLOW, flow_name="billing", task_run_id="other-task"),
    finished(OTHER_FLOW, at=6, flow_name="billing"),
    line("of nobody", at=7),
]


@pytest.fixture
async def filled(client):
    for producer, events in ((None, RUNS), (OTHER_PRODUCER, OTHERS)):
        body = encoded(*events, **({"producer": producer} if producer else {}))
        response = await client.post("/runlog/v1/batches", content=body, headers=basic())
        assert response.status_code == 200, response.text
    return client


@pytest.mark.parametrize("bounds", [{"flow_run_id": FLOW}, {"flow_name": "etl"}])
async def test_a_key_of_run_a_cannot_read_run_b(filled, make, bounds):
    """Whatever route is asked, in whatever way, no line, name or count of the other run is answered."""
    headers = bearer(await make("read", **bounds))
    logs = (await filled.get("/runlog/v1/logs", headers=headers)).json()["logs"]
    assert [log["message"] for log in logs] == ["started", "of a", "of a's task", "finished"]
    runs = (await filled.get("/runlog/v1/runs", headers=headers)).json()["runs"]
    assert {run["id"] for run in runs} == {FLOW, TASK}
    assert (await filled.get("/runlog/v1/runs/latest", headers=headers)).json()["id"] == FLOW
    receipt = (await filled.get(f"/runlog/v1/runs/{FLOW}/receipt", headers=headers)).json()
    assert (receipt["stored"], receipt["complete"]) == (4, True)
    queries = (
        {"run": OTHER_FLOW},
        {"flow_run_id": OTHER_FLOW},
        {"task_run_id": "other-task"},
        {"search": "of"},
        {"order": "desc"},
        {"since": "2000-01-01"},
    )
    answers = [await filled.get("/runlog/v1/logs", params=query, headers=headers) for query in queries]
    for ref in (OTHER_FLOW, OTHER_FLOW[:8], "b", "latest~1", "other-task"):
        for path in (f"/runlog/v1/runs/{ref}", f"/runlog/v1/runs/{ref}/receipt"):
            response = await filled.get(path, headers=headers)
            assert response.status_code == 404
    queries = ({"parent": OTHER_FLOW}, {"name": "b"}, {"kind": "task"}, {"state": "COMPLETED"})
    answers += [await filled.get("/runlog/v1/runs", params=query, headers=headers) for query in queries]
    bodies = (
        {"logs": {"flow_run_id": {"any_": [OTHER_FLOW]}}},
        {"logs": {"operator": "or_", "level": {"ge_": 0}, "flow_run_id": {"any_": [OTHER_FLOW]}}},
        {"logs": None},
    )
    answers += [await filled.post("/logs/filter", json=body, headers=headers) for body in bodies]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert not any(secret in answer.text for secret in ("billing", "of b", "of nobody", OTHER_FLOW))
    status = await filled.get("/runlog/v1/status", headers=headers)
    assert status.status_code == 403
    assert "is bound to flow" in status.json()["detail"]


@pytest.mark.parametrize("bounds", [{"flow_run_id": FLOW}, {"flow_name": "etl"}])
async def test_a_bound_key_writes_into_its_run_alone(client, make, bounds):
    """A batch, and lines of Prefect's client, are refused as a whole if one belongs to something else."""
    key = await make("ingest", **bounds)
    good = await client.post("/runlog/v1/batches", content=encoded(*RUNS), headers=bearer(key))
    assert good.json() == {"acked": 3}
    bad = encoded(RUNS[1], OTHERS[1], first_seq=4)
    response = await client.post("/runlog/v1/batches", content=bad, headers=bearer(key))
    assert response.status_code == 403
    assert response.json()["detail"].endswith("the line of seq 5 belongs to something else")
    log = {
        "name": "n",
        "level": 20,
        "message": "m",
        "timestamp": 0,
        "flow_run_id": OTHER_FLOW,
        "task_run_id": None,
    }
    response = await client.post("/logs/", json=[log], headers=bearer(key))
    assert response.status_code == 403
    own = await client.post("/logs/", json=[{**log, "flow_run_id": FLOW}], headers=bearer(key))
    assert own.status_code == (201 if "flow_run_id" in bounds else 403)  # Prefect's lines name no flow


async def test_what_a_bound_view_has_no_rule_for_it_refuses(storage):
    """Keys, statistics and the life of the store are not for a bound key."""
    view = RestrictedStorage(storage, Principal("k", frozenset({"read"}), flow_run_id=FLOW, flow_name="etl"))
    _, key = new_key("n", ["read"])
    for refused in (
        view.open(),
        view.close(),
        view.read_statistics(),
        view.read_keys(),
        view.add_key(key),
        view.read_size(),
        view.prune([None] * 5),
        view.forget_producers(1),
        view.vacuum(),
        view.remove_key("x"),
        view.mark_keys_used({}),
    ):
        with pytest.raises(PermissionDeniedError, match=f"bound to flow run {FLOW} and flow 'etl'"):
            await refused
    assert "as k sees it" in repr(view)


def test_a_condition_is_what_a_key_sees():
    """Streams join it with their own filter: without bounds it is every line."""
    assert ANYONE.condition() == AllOf()
    assert Principal("k", flow_run_id=FLOW).condition() == AllOf((RunIn("flow", (FLOW,)),))
    mine = Principal("k", flow_run_id=FLOW, flow_name="etl").condition()
    assert mine.matches(RUNS[1])
    assert not mine.matches(OTHERS[1])
    assert not mine.matches(line(flow_run_id=FLOW, flow_name="other"))


# --- sockets ------------------------------------------------------------------------------------------


def handshake(app, **scope):
    from starlette.requests import HTTPConnection

    return HTTPConnection({"type": "websocket", "app": app, "headers": [], "path": "/", **scope})


async def test_a_socket_is_authorised_by_handshake_or_token(storage):
    """The principal of the handshake counts; else the token of the first message, key or auth string."""
    app = create_app(storage, auth_string=AUTH)
    token, key = new_key("n", ["read"], flow_run_id=FLOW)
    await storage.add_key(key)
    await app.state.server.authenticator.load()
    assert authorise(handshake(app), None, "read") is None
    assert authorise(handshake(app), "wrong", "read") is None
    assert authorise(handshake(app), token, "ingest") is None
    assert authorise(handshake(app), AUTH, "read") == Principal("auth string")
    socket = handshake(app)
    assert authorise(socket, token, "read", "ingest") == key.principal
    assert principal_of(socket) == key.principal
    assert isinstance(state_of(socket).storage, RestrictedStorage)
    assert authorise(handshake(app, **{SCOPE_KEY: ANYONE}), "wrong", "admin") == ANYONE
    assert authorise(handshake(create_app(MemoryStorage())), None, "read") == ANYONE


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ({}, None),
        ({"headers": [(b"authorization", basic()["Authorization"].encode())]}, "auth string"),
        ({"headers": [(b"authorization", b"Bearer x")]}, None),
        ({"query_string": b"ticket=x"}, None),
    ],
)
async def test_a_handshake_may_bring_its_credential(storage, scope, name):
    """A socket with a header has its principal from the start; one without has none, and is not refused yet."""
    app = create_app(storage, auth_string=AUTH)
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope[SCOPE_KEY])

    from runlog.server.middleware import Authentication

    guard = Authentication(inner, app.state.server.authenticator, app.state.server.requests)
    await guard(
        {"type": "websocket", "path": "/api/logs/out", "headers": [], "query_string": b"", **scope},
        None,
        None,
    )
    assert [found and found.name for found in seen] == [name]


# --- tickets ------------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_stream_once(client, make):
    """A ticket stands for its key, as a reader, where streams are, and is then worth nothing."""
    key = await make("read", flow_run_id=FLOW)
    response = await client.post("/runlog/v1/tickets", headers=bearer(key))
    assert response.status_code == 201
    ticket = response.json()["ticket"]
    assert response.json() == {"ticket": ticket, "expires_s": 30.0}
    assert (await client.get("/runlog/v1/logs", params={"ticket": ticket})).status_code == 401
    first = await client.post("/runlog/v1/logs/stream", params={"ticket": ticket})
    assert first.status_code != 401
    second = await client.post("/runlog/v1/logs/stream", params={"ticket": ticket})
    assert second.status_code == 401
    assert (await client.post("/runlog/v1/logs/stream", params={"ticket": ["a", "b"]})).status_code == 401


def test_tickets_end():
    """After 30 s a ticket is worth nothing, and unused ones are forgotten before they are many."""
    now = [0.0]
    tickets = Tickets(lambda: now[0])
    ticket, other = tickets.give(ANYONE), tickets.give(ANYONE)
    assert tickets.take(ticket) == Principal("anyone", frozenset({"read"}))
    assert tickets.take(ticket) is None
    now[0] = LIFETIME
    assert tickets.take(other) is None
    given = [tickets.give(ANYONE) for _ in range(MAX_TICKETS + 1)]
    assert tickets.take(given[0]) is None
    assert tickets.take(given[1]) is not None
    assert given[2] not in repr(tickets)
    now[0] += LIFETIME
    tickets.give(ANYONE)
    assert repr(tickets) == "<Tickets: 1 not used>"


# --- servers ------------------------------------------------------------------------------------------


def test_keys_let_a_server_be_open_to_others(tmp_path):
    """A server for other machines starts with a key and without an auth string, and asks for the key."""
    database = str(tmp_path / "runlog.db")
    with pytest.raises(SettingsError, match="make a key"):
        BackgroundServer(database, host="0.0.0.0")
    with BackgroundServer(database) as server, Client(base_url=server.url) as client:
        key = client.post(KEYS, json={"name": "n", "scopes": ["admin"]}).json()
    with BackgroundServer(database, host="0.0.0.0") as server, Client(base_url=server.url) as client:
        assert client.get("/runlog/v1/logs").status_code == 401
        assert client.delete(f"{KEYS}/{key['id']}", headers=bearer(key["key"])).status_code == 200
        assert client.get("/runlog/v1/logs").status_code == 401
    with pytest.raises(SettingsError, match="which other machines can reach"):
        BackgroundServer(database, host="0.0.0.0").start()


def test_programs_of_a_home_need_no_key(tmp_path):
    """Whoever may read a home may use its server; the token is in no other place, and new at each start."""
    with BackgroundServer(home=tmp_path, auth_string=AUTH) as server, Client(base_url=server.url) as client:
        assert find_local_server(tmp_path).url == server.url
        headers = local_credentials(tmp_path, server.url, {})
        assert headers == bearer(server.own_token)
        assert client.get(KEYS, headers=headers).status_code == 200
        assert local_credentials(tmp_path, "http://127.0.0.1:9/api", {}) == {}
        assert local_credentials(tmp_path, server.url, {"authorization": "x"}) == {}
        assert server.own_token not in repr(server) + repr(server._options)
        assert (tmp_path / "server.json").stat().st_mode & 0o077 == 0
        with BackgroundServer() as other:
            assert other.own_token != server.own_token
    assert local_credentials(tmp_path, server.url, {}) == {}
    assert local_credentials(None, server.url, {}) == {}
    (tmp_path / "server.json").write_text(json.dumps([]))
    assert local_credentials(tmp_path, server.url, {}) == {}


# --- every route --------------------------------------------------------------------------------------


def routes_of(routes, prefix=""):
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "methods"):
            yield from ((method, path) for method in sorted(route.methods or {"GET"}))
        else:
            yield from routes_of(getattr(route, "routes", None) or [], path)


ALL_ROUTES = sorted(
    (method, path)
    for method, path in routes_of(create_app(MemoryStorage()).routes)
    if method != "HEAD" and not path.endswith("/stream")
)


@pytest.mark.parametrize(("method", "path"), ALL_ROUTES, ids=[" ".join(route) for route in ALL_ROUTES])
@pytest.mark.parametrize("bounds", [{"flow_run_id": FLOW}, {"flow_name": "etl"}], ids=["run", "flow"])
async def test_no_route_tells_of_another_run(filled, make, method, path, bounds):
    """Whatever route there is, asked for the other run or for nothing in particular, tells nothing of it."""
    headers = bearer(await make("read", **bounds))
    for asked in (OTHER_FLOW, "other-task"):
        filled_in = re.sub(r"\{[^}]*\}", asked, path)
        for body in (b"", b"{}", json.dumps({"logs": None, "flow_runs": None}).encode()):
            content = body if method in {"POST", "PUT", "PATCH"} else None
            response = await filled.request(
                method, f"http://test{filled_in}", headers=headers, content=content
            )
            assert response.status_code < 500, response.text
            told = response.text.replace(asked, "")
            assert not any(secret in told for secret in ("billing", "of b", "of nobody", OTHER_FLOW)), told


@pytest.mark.parametrize("bounds", [{"flow_run_id": FLOW}, {"flow_name": "etl"}], ids=["run", "flow"])
async def test_another_flow_cannot_be_guessed(filled, make, bounds):
    """A flow's id is made from its name; asked for, that of another flow is not there for a bound key."""
    headers = bearer(await make("read", **bounds))
    statuses = []
    for name in ("etl", "billing"):
        flow = (await filled.post("/flows/", json={"name": name}, headers=basic())).json()
        statuses.append((await filled.get(f"/flows/{flow['id']}", headers=headers)).status_code)
    assert statuses == [200, 404]


def test_no_stream_tells_of_another_run(tmp_path):
    """Sockets of both kinds, events, with a key or a ticket, bring the key's own lines, stored and live, alone."""
    with (
        BackgroundServer(str(tmp_path / "runlog.db"), auth_string=AUTH) as server,
        contextlib.ExitStack() as open_,
    ):
        client = open_.enter_context(Client(base_url=server.url, headers=basic()))
        key = client.post(KEYS, json={"name": "n", "scopes": ["read"], "flow_run_id": FLOW}).json()["key"]
        sender = open_.enter_context(Sender(server.url, headers=basic()))
        sender.send(*RUNS, *OTHERS)
        ticket = client.post("/runlog/v1/tickets", headers=bearer(key)).json()["ticket"]
        events = [
            open_.enter_context(Events(server.url, since="2000-01-01T00:00:00Z", headers=bearer(key))),
            open_.enter_context(Events(server.url, since="2000-01-01T00:00:00Z", ticket=ticket)),
            open_.enter_context(
                Events(server.url, since="2000-01-01T00:00:00Z", run=OTHER_FLOW, headers=bearer(key))
            ),
        ]
        assert [found.response.status_code for found in events] == [200] * 3
        own = open_.enter_context(Socket(server.url, token=key, since="2000-01-01T00:00:00Z"))
        theirs = open_.enter_context(Socket(server.url, "prefect", headers=bearer(key)))
        assert own.logs(4) == ["started", "of a", "of a's task", "finished"]
        sender.send(OTHERS[1], line("more of a", flow_run_id=FLOW), OTHERS[3])
        assert own.logs(1) == ["more of a"]
        deadline = time.monotonic() + 10
        got = []
        while "more of a" not in got:  # Prefect's protocol begins with what comes, at some moment
            sender.send(OTHERS[1], line("more of a", flow_run_id=FLOW))
            got += theirs.logs(1)
            assert time.monotonic() < deadline
        assert set(got) == {"more of a"}
        for found in events[:2]:
            texts = [json.loads(found.until("log")["data"])["message"] for _ in range(5)]
            assert texts == ["started", "of a", "of a's task", "finished", "more of a"]
        rest = threading.Thread(target=server.stop)
        rest.start()
        assert not [block for block in events[2].rest() if block.get("event") == "log"]
        rest.join()


def test_a_socket_with_a_wrong_key_is_closed(tmp_path):
    """No token, a wrong one, or one that may only send, is closed with 1008."""
    with BackgroundServer(auth_string=AUTH) as server, Client(base_url=server.url, headers=basic()) as client:
        ingest = client.post(KEYS, json={"name": "n", "scopes": ["ingest"]}).json()["key"]
        for token in (None, "wrong", ingest, "user:passwore"):
            with connect(socket_url(server.url), subprotocols=["prefect"]) as connection:
                connection.send(json.dumps({"type": "auth", "token": token}))
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv(10)
                assert closed.value.rcvd.code == 1008
        with Socket(server.url, "prefect", token=AUTH):
            pass
