"""What the server counts, and who is told."""

from __future__ import annotations

import re

import pytest
from server_lines import FLOW, PRODUCER, encoded, line

from runlog._http import ASGITransport, AsyncClient, Client
from runlog.records import DropMarker
from runlog.server.app import BackgroundServer, create_app
from runlog.server.metrics import COMMIT_BOUNDS_S, Durations, render
from runlog.server.storage.memory import MemoryStorage

pytestmark = pytest.mark.anyio

AUTH = ("user", "password")


@pytest.fixture
async def client():
    app = create_app(MemoryStorage(), auth_string="user:password")
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", auth=AUTH) as client:
        yield client


async def values(client):
    """The metrics, by name and labels."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    assert all(
        re.fullmatch(r'runlog_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', one)
        for one in lines
    )
    return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines)}


async def test_lines_are_counted(client):
    """Stored lines, those that came again, and those that were given up, are told apart."""
    url = "/api/runlog/v1/batches"
    first = encoded(line(), line(), dropped=[DropMarker(2, 5, "queue_full")])
    for _ in range(2):
        await client.post(url, content=first)
    await client.post(
        url, content=encoded(line(), line(), line(), first_seq=6, dropped=[DropMarker(6, 1, "x")])
    )
    assert (await client.post(url, content=encoded(first_seq=99))).status_code == 409
    log = {"name": "n", "level": 20, "message": "m", "timestamp": 0, "flow_run_id": FLOW, "task_run_id": None}
    await client.post("/api/logs/", json=[log, log])
    found = await values(client)
    assert found["runlog_lines_total"] == 7
    assert found["runlog_duplicate_lines_total"] == 2
    assert found["runlog_dropped_lines_total"] == 5
    assert found["runlog_batches_total"] == 4
    assert found["runlog_stored_lines"] == 7
    assert found["runlog_stored_runs"] == 1
    assert found['runlog_requests_total{method="POST",status="200"}'] == 3
    assert found['runlog_requests_total{method="POST",status="409"}'] == 1
    assert found["runlog_received_bytes_total"] > 2 * len(first)


async def test_the_refused_are_counted(client):
    """Requests without a valid credential, or with one that allows too little, are told; others are not."""
    key = (await client.post("/api/runlog/v1/admin/keys", json={"name": "n", "scopes": ["ingest"]})).json()[
        "key"
    ]
    for headers in ({"Authorization": "Bearer x"}, {"Authorization": f"Bearer {key}"}):
        await client.get("/api/runlog/v1/logs", headers=headers, auth=None)
    await client.request("BREW", "/api/runlog/v1/logs")
    found = await values(client)
    assert found["runlog_refused_total"] == 2
    assert found['runlog_requests_total{method="GET",status="401"}'] == 1
    assert found['runlog_requests_total{method="GET",status="403"}'] == 1
    assert found['runlog_requests_total{method="other",status="405"}'] == 1


async def test_metrics_are_for_readers_of_everything(client):
    """They need a credential, and none that is bound to a run; no secret and no run is in them."""
    made = []
    for scopes, bounds in ((["read"], {}), (["read"], {"flow_run_id": FLOW}), (["ingest"], {})):
        body = {"name": "secret-name", "scopes": scopes, **bounds}
        made.append((await client.post("/api/runlog/v1/admin/keys", json=body)).json()["key"])
    await client.post("/api/runlog/v1/batches", content=encoded(line("text", flow_run_id=FLOW)))
    statuses = []
    for key in made:
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {key}"}, auth=None)
        statuses.append(answer.status_code)
    assert statuses == [200, 403, 403]
    assert (await client.get("/metrics", auth=None, headers={"Authorization": "x"})).status_code == 401
    text = (await client.get("/metrics")).text
    for secret in ("secret-name", "password", FLOW, PRODUCER, "text ", *(key[:11] for key in made)):
        assert secret not in text.replace("text/plain", "")


def test_writing_is_measured(tmp_path):
    """Of a database, commits, the queue and the size are told."""
    with BackgroundServer(str(tmp_path / "runlog.db")) as server, Client() as client:
        for seq in range(3):
            client.post(server.url + "/runlog/v1/batches", content=encoded(line(), first_seq=seq))
        text = client.get(server.url.removesuffix("/api") + "/metrics").text
    assert "\nrunlog_commit_seconds_count 3\n" in text
    assert '\nrunlog_commit_seconds_bucket{le="+Inf"} 3\n' in text
    assert "\nrunlog_writer_queue 0\n" in text
    assert int(re.search(r'runlog_database_bytes\{part="used"\} (\d+)', text)[1]) > 8192


def test_durations_fall_into_steps():
    """A duration counts in the first step whose end it does not exceed, and steps add up."""
    durations = Durations((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        durations.observe(seconds)
    assert durations.counts == [2, 1, 1]
    assert repr(durations) == "<Durations of 4, 12.000 s in all>"
    assert render(
        [("x", "histogram", "Help.", durations), ("y", "counter", "More.", {"": 1, 'a="b"': 2})]
    ) == (
        "# HELP x Help.\n"
        "# TYPE x histogram\n"
        'x_bucket{le="1.0"} 2\n'
        'x_bucket{le="2.0"} 3\n'
        'x_bucket{le="+Inf"} 4\n'
        "x_sum 12.0\n"
        "x_count 4\n"
        "# HELP y More.\n"
        "# TYPE y counter\n"
        "y 1\n"
        'y{a="b"} 2\n'
    )
    assert list(COMMIT_BOUNDS_S) == sorted(COMMIT_BOUNDS_S)
