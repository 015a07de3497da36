"""Probes, versions, credentials, headers and the shape of errors."""

from __future__ import annotations

import base64
import functools
import json

import pytest
from server_lines import FLOW, encoded, line

import runlog
from runlog._http import ASGITransport, AsyncClient
from runlog.server.app import create_app
from runlog.server.errors import InvalidBodyError, invalid_body
from runlog.server.middleware import PrefectVersion, SecurityHeaders
from runlog.server.storage.memory import MemoryStorage

pytestmark = pytest.mark.anyio

ROUTES = [
    ("POST", "/logs/"),
    ("POST", "/logs/filter"),
    ("POST", "/runlog/v1/batches"),
    ("GET", "/runlog/v1/logs"),
    ("GET", "/runlog/v1/runs"),
    ("GET", "/runlog/v1/runs/latest"),
    ("GET", f"/runlog/v1/runs/{FLOW}/receipt"),
    ("GET", "/runlog/v1/status"),
    ("GET", "/admin/version"),
    ("POST", "/health"),
    ("GET", "/nothing"),
]


async def test_probes_are_answered(client):
    """Health and readiness are told in Prefect's words."""
    assert (await client.get("/health")).json() is True
    assert (await client.get("/ready")).json() == {"message": "OK"}


@pytest.mark.parametrize(
    ("agent", "version"),
    [
        ("prefect/3.9.1 (API 0.8.4)", "3.9.1"),
        ("prefect/3.8.8.dev1+5.gabc (API 0.8.4)", "3.8.8.dev1+5.gabc"),
        ("prefect/2.20.0 (API 0.8.4)", "2.20.0"),
        ("python-httpx/0.28", "3.8.8"),
        ("prefect/<script>", "3.8.8"),
    ],
)
async def test_a_client_of_prefect_is_told_its_own_version(client, agent, version):
    """A client that hears its own version neither warns nor refuses; others hear whose API this is."""
    response = await client.get("/admin/version", headers={"User-Agent": agent})
    assert response.json() == version


async def test_status_tells_what_is_kept(client, send):
    """Version, schema, counts and place of the store are told."""
    await send(line(flow_run_id=FLOW), line())
    assert (await client.get("/runlog/v1/status")).json() == {
        "version": runlog.__version__,
        "schema_version": 0,
        "runs": 1,
        "lines": 2,
        "database": "memory",
    }


# --- errors and headers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/csrf-token?client=x", 404, "Not Found"),
        ("GET", "/logs/", 405, "Method Not Allowed"),
        ("DELETE", "/runlog/v1/logs", 405, "Method Not Allowed"),
        ("GET", "/runlog/v1/runs/a/b/c", 404, "Not Found"),
    ],
)
async def test_what_is_not_there_is_told_as_json(client, method, path, status, detail):
    """Unknown paths and methods have the shape of every other error."""
    response = await client.request(method, path)
    assert (response.status_code, response.json()) == (status, {"detail": detail})


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_browsers_are_kept_from_mischief(client, method, path):
    """Every answer, errors included, says not to sniff, frame, cache or run it."""
    response = await client.request(method, path)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [
        ("0.8.4", 201, None),
        ("0.8.0", 201, None),
        ("1.0.0", 201, None),
        ("", 201, None),
        (
            "x",
            400,
            "Invalid X-PREFECT-API-VERSION header format.Expected header in format 'x.y.z' but received x",
        ),
        (
            "0.8",
            400,
            "Invalid X-PREFECT-API-VERSION header format.Expected header in format 'x.y.z' but received 0.8",
        ),
        (
            "0.7.9",
            400,
            "The request specified API version 0.7.9 but this server requires version 0.8.0 or higher.",
        ),
    ],
)
async def test_old_clients_of_prefect_are_refused(client, version, status, detail):
    """The header of Prefect's clients is judged as Prefect's server does."""
    response = await client.post("/logs/", json=[], headers={"X-PREFECT-API-VERSION": version})
    assert response.status_code == status
    if detail is not None:
        assert response.json() == {"detail": detail}


async def test_a_client_that_leaves_is_no_error(app):
    """A request whose client goes away while it sends is over without a word in the log."""
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    path = "/api/runlog/v1/batches"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": [], "root_path": "", "http_version": "1.1"}, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize("middleware", [SecurityHeaders, PrefectVersion])
async def test_what_is_no_http_passes(middleware):
    """A socket authenticates by its first message, so what guards requests lets it through."""
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope)
        await send({"type": "websocket.close"})

    async def send(message):
        seen.append(message)

    await middleware(inner)({"type": "websocket"}, None, send)
    assert seen == [{"type": "websocket"}, {"type": "websocket.close"}]


def test_a_body_that_cannot_be_sent_back_is_left_out():
    """Faults of a body that is nested too deeply to be encoded are told without it."""
    deep = functools.reduce(lambda inner, _: [inner], range(100_000), [])
    faults = [{"type": "t", "loc": ["body"], "msg": "m", "input": deep}]
    response = invalid_body(InvalidBodyError(faults, deep, 10))
    assert json.loads(response.body) == {
        "exception_message": "Invalid request received.",
        "exception_detail": [{"type": "t", "loc": ["body"], "msg": "m", "input": None}],
        "request_body": None,
    }
    while deep:  # taken apart from outside: the interpreter would recurse
        deep = deep[0]


# --- credentials --------------------------------------------------------------------------------------

AUTH = "user:pässword"


@pytest.fixture
async def guarded():
    app = create_app(MemoryStorage(), auth_string=AUTH)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        yield client


def basic(auth):
    return "Basic " + base64.b64encode(auth.encode()).decode()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_everything_asks_for_credentials(guarded, method, path):
    """Without them every route answers 401 in Prefect's shape, those that do not exist too."""
    response = await guarded.request(method, path)
    assert (response.status_code, response.json()) == (401, {"exception_message": "Unauthorized"})


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_need_no_credentials(guarded, path):
    """A probe is answered without, by its exact path only."""
    assert (await guarded.get(path)).status_code == 200
    assert (await guarded.get(f"/runlog/v1/runs{path}")).status_code == 401
    assert (await guarded.get(f"{path}/")).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic é",
        basic("user:wrong"),
        basic(AUTH).replace("Basic", "Bearer"),
        basic(AUTH).replace("Basic", "basic"),
        f"Bearer {AUTH}".encode(),
        basic(AUTH) + "x",
    ],
)
async def test_wrong_credentials_are_refused(guarded, header):
    """Another scheme, what is no base64, and another string are all the same 401."""
    headers = (
        {} if header is None else {b"Authorization": header if isinstance(header, bytes) else header.encode()}
    )
    response = await guarded.post("/runlog/v1/batches", content=encoded(line()), headers=headers)
    assert (response.status_code, response.json()) == (401, {"exception_message": "Unauthorized"})


async def test_the_auth_string_lets_in(guarded):
    """With the auth string, requests are answered as without one set."""
    response = await guarded.post(
        "/runlog/v1/batches", content=encoded(line()), headers={"Authorization": basic(AUTH)}
    )
    assert response.json() == {"acked": 0}


async def test_a_body_is_not_read_for_strangers(guarded):
    """Credentials are asked for before a byte of the body is taken."""
    read = []

    async def body():
        read.append(1)
        yield b"x"

    request = guarded.build_request("POST", "/runlog/v1/batches", content=body())
    assert (await guarded.send(request)).status_code == 401
    assert read == []
