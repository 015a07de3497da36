"""A whole Prefect program without a Prefect server: its runs, their names and states are noted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from pathlib import Path

import pytest
from prefect_environment import needs_prefect, run_prefect
from server_lines import FLOW, OTHER_FLOW, SECOND, START, TASK, finished, line, started
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from runlog._http import ASGITransport, AsyncClient, Client
from runlog.exceptions import StorageFullError
from runlog.records import format_timestamp
from runlog.server import noted_runs
from runlog.server.app import BackgroundServer, create_app
from runlog.server.noted_runs import NotedRun, NotedRuns, task_name_of

pytestmark = pytest.mark.anyio

FLOW_PROGRAM = Path(__file__).with_name("prefect_flow.py")


def tree_of(run):
    """A run as its flow or task name, state, attempt and children."""
    name = run["task_name"] if run["kind"] == "task" else run["flow_name"]
    children = sorted((tree_of(child) for child in run.get("children", [])), key=str)
    return (name, run["state"], run["attempt"], *children)


AUTH_STRING = "somebody:secret"


@needs_prefect
def test_an_unmodified_program(tmp_path):
    """Flows, tasks, retries and nested flows of an unmodified program end as they should, and are found."""
    with BackgroundServer(f"sqlite:///{tmp_path}/runlog.db", auth_string=AUTH_STRING) as server:
        result = run_prefect(
            server.url, tmp_path / "prefect", FLOW_PROGRAM, PREFECT_API_AUTH_STRING=AUTH_STRING
        )
        with Client(base_url=server.url, auth=tuple(AUTH_STRING.split(":"))) as client:
            runs = client.get("/runlog/v1/runs", params={"kind": "flow"}).json()["runs"]
            by_flow = {run["flow_name"]: run for run in runs}
            outer, failing = by_flow["outer-flow"], by_flow["failing-flow"]
            tree = client.get(f"/runlog/v1/runs/{outer['id']}").json()
            logs = client.get("/runlog/v1/logs", params={"run": outer["id"], "limit": 1000}).json()["logs"]
            end = client.get("/runlog/v1/logs", params={"flow_run_id": failing["id"]}).json()["logs"][-2:]
    assert result.returncode == 1  # the second flow raises
    assert "RuntimeError: on purpose" in result.stderr
    assert "RESULT [3, 'weather', 7, 6, 'lucky', 3]" in result.stdout
    assert "PrefectHTTPStatusError" not in result.stderr
    assert "Unable to" not in result.stderr
    assert tree_of(tree) == (
        "outer-flow",
        "COMPLETED",
        None,
        ("add", "COMPLETED", None),
        ("add", "COMPLETED", None),
        ("adds_twice", "COMPLETED", None, ("add", "COMPLETED", None), ("add", "COMPLETED", None)),
        ("fails", "FAILED", None),
        ("inner", "COMPLETED", None, ("add", "COMPLETED", None)),
        ("second-time-lucky", "COMPLETED", 2),
        ("unsteady", "COMPLETED", 2),
    )
    assert by_flow["inner"]["name"] == "inner of 5"
    assert 0 < outer["duration_s"] < 60
    told = {(log["message"], log["flow_name"], log["task_name"], log["level"]) for log in logs}
    assert {
        (f"hello from {outer['name']}", "outer-flow", None, 20),
        ("adding 3 and 4", "outer-flow", "add", 20),
        ("inside 5", "inner", None, 20),
        ("adding 5 and 1", "inner", "add", 20),
        ("as expected", "outer-flow", None, 30),
    } <= told
    assert all(log["flow_run_name"] for log in logs)
    assert {log["task_run_name"] for log in logs if log["task_name"] == "unsteady"} == {"unsteady-weather"}
    assert failing["state"] == "FAILED"
    assert any("failed after" in log["message"] and "on purpose" in log["message"] for log in end)


# --- the routes ---------------------------------------------------------------------------------------


async def create_run(client, *, flow="etl", **fields):
    """A flow run as Prefect's client creates it."""
    flow_id = (await client.post("/flows/", json={"name": flow, "tags": [], "labels": {}})).json()["id"]
    pending = {"type": "PENDING", "name": "Pending", "state_details": {}}
    body = {"flow_id": flow_id, "state": pending, "parameters": {}, **fields}
    response = await client.post("/flow_runs/", json=body)
    assert response.status_code == 201, response.text
    return response.json()


async def set_state(client, run_id, kind, *, of="flow", **fields):
    response = await client.post(
        f"/{of}_runs/{run_id}/set_state",
        json={"state": {"type": kind, "name": kind.title(), **fields}, "force": False},
    )
    assert response.status_code in (200, 201), response.text
    return response.json()


async def runs_of(client, **parameters):
    return (await client.get("/runlog/v1/runs", params=parameters)).json()["runs"]


async def test_what_the_client_asks_for_around_its_work(client):
    """CSRF protection is off, in the form that switches it off in the client; versions match the client's."""
    assert (await client.get("/csrf-token", params={"client": FLOW})).status_code == 404
    version = await client.get("/admin/version", headers={"User-Agent": "prefect/3.9.1 (API 0.8.4)"})
    assert version.json() == "3.9.1"


async def test_a_run_in_prefects_words(client):
    """A run is answered with all the fields of Prefect's, and each state is accepted as it comes."""
    run = await create_run(client, name="blue-fox", parameters={"day": 3}, tags=["nightly"])
    assert (run["name"], run["parameters"], run["tags"]) == ("blue-fox", {"day": 3}, ["nightly"])
    assert (run["state_type"], run["run_count"], run["start_time"]) == ("PENDING", 0, None)
    accepted = await set_state(client, run["id"], "RUNNING", state_details={"transition_id": TASK})
    assert accepted["status"] == "ACCEPT"
    assert accepted["details"] == {"type": "accept_details"}
    assert accepted["state"]["state_details"] == {
        "transition_id": TASK,
        "flow_run_id": run["id"],
        "task_run_id": None,
    }
    found = (await client.get(f"/flow_runs/{run['id']}")).json()
    assert found.keys() == run.keys()
    assert (found["state"]["type"], found["run_count"]) == ("RUNNING", 1)
    assert (await client.get(f"/flows/{run['flow_id']}")).json()["name"] == "etl"
    await set_state(client, run["id"], "CRASHED", message="killed\nby hand")
    (known,) = await runs_of(client)
    assert (known["state"], known["name"], known["attributes"]) == (
        "FAILED",
        "blue-fox",
        {"prefect.tags": ["nightly"]},
    )
    logs = (await client.get("/runlog/v1/logs")).json()["logs"]
    assert logs[-1]["message"].startswith("Flow 'etl' crashed after")
    assert logs[-1]["message"].endswith(": killed")
    assert {log["level"] for log in logs} == {10}


@pytest.mark.parametrize("kind", ["SCHEDULED", "PENDING", "PAUSED", "CANCELLING"])
async def test_states_between(client, kind):
    """A state that neither starts nor ends a run is accepted, and is no line."""
    run = await create_run(client)
    await set_state(client, run["id"], kind)
    assert (await client.get(f"/flow_runs/{run['id']}")).json()["state_type"] == kind
    assert await runs_of(client) == []


async def test_retries_of_a_flow(client):
    """A flow that failed is told to run again until no retry is left, and to wait as long as it wants."""
    policy = {"retries": 1, "retry_delay": [30]}
    run = await create_run(client, empirical_policy=policy)
    await set_state(client, run["id"], "RUNNING")
    rejected = await set_state(client, run["id"], "FAILED", message="no")
    assert (rejected["status"], rejected["state"]["name"]) == ("REJECT", "AwaitingRetry")
    waiting = await set_state(client, run["id"], "RUNNING")
    assert waiting["status"] == "WAIT"
    assert 25 <= waiting["details"]["delay_seconds"] <= 30
    (known,) = await runs_of(client)
    assert known["state"] == "RUNNING"
    again = await create_run(client, empirical_policy={"retries": 1, "retry_delay": 0})
    for state in ("RUNNING", "FAILED", "RUNNING"):
        answer = await set_state(client, again["id"], state)
    assert answer["status"] == "ACCEPT"
    assert (await set_state(client, again["id"], "FAILED"))["status"] == "ACCEPT"
    known = next(one for one in await runs_of(client) if one["id"] == again["id"])
    assert (known["state"], known["attempt"]) == ("FAILED", 2)


async def test_tags_without_limits(client):
    """A task with tags asks for room before it runs; nothing here limits it."""
    path = "/v2/concurrency_limits"
    asked = {"names": ["tag:nightly"], "slots": 1, "mode": "concurrency"}
    lease = (await client.post(f"{path}/increment-with-lease", json=asked)).json()
    assert lease["limits"] == []
    assert uuid.UUID(lease["lease_id"])
    released = await client.post(f"{path}/decrement-with-lease", json={"lease_id": lease["lease_id"]})
    assert released.status_code == 204
    assert (await client.post(f"{path}/increment", json=asked)).json() == []
    assert (await client.post(f"{path}/decrement", json=asked)).json() == []


async def test_a_name_that_changes(client):
    """The name that a program gives its run is the one that is kept."""
    run = await create_run(client)
    response = await client.patch(f"/flow_runs/{run['id']}", json={"name": "orders of today"})
    assert (response.status_code, response.content) == (204, b"")
    await client.patch(f"/flow_runs/{run['id']}/labels", json={"a": 1})
    await set_state(client, run["id"], "RUNNING")
    assert [one["name"] for one in await runs_of(client)] == ["orders of today"]
    found = (await client.get(f"/flow_runs/{run['id']}")).json()
    assert (found["name"], found["labels"]) == ("orders of today", {"a": 1})


async def test_a_server_in_between(app, client, storage):
    """A run goes on with a server that has its lines and no memory of it, and with one that has neither."""
    run = await create_run(client, name="blue-fox")
    await set_state(client, run["id"], "RUNNING")
    other = create_app(storage)
    async with AsyncClient(transport=ASGITransport(other), base_url="http://test/api") as later:
        assert (await later.get(f"/flow_runs/{run['id']}")).json()["name"] == "blue-fox"
        assert (await later.get(f"/flows/{run['flow_id']}")).json()["name"] == "etl"
        await set_state(later, run["id"], "COMPLETED")
        (known,) = await runs_of(later)
        assert (known["name"], known["flow_name"], known["state"]) == ("blue-fox", "etl", "COMPLETED")
        assert known["duration_s"] is not None
        await set_state(later, OTHER_FLOW, "RUNNING")
        assert {one["state"] for one in await runs_of(later)} == {"COMPLETED", "RUNNING"}


async def test_memory_is_bounded(app, client, monkeypatch):
    """Runs that are told leave room for newer ones, and large values are not kept."""
    monkeypatch.setattr(noted_runs, "MAX_RUNS", 3)
    first = await create_run(client, parameters={"big": "x" * 100_000, "small": 1})
    assert first["parameters"] == {}
    for number in range(5):
        await create_run(client, flow=f"flow {number}")
    assert (await client.get(f"/flow_runs/{first['id']}")).status_code == 404
    monkeypatch.setattr(noted_runs, "MAX_TOTAL_BYTES", 10)
    last = await create_run(client)
    noted = app.state.server.noted
    assert [run.id for run in noted.flow_runs()] == [last["id"]]
    assert "1 runs of 3 flows" in repr(noted)


async def test_runs_of_other_programs(client, send):
    """A run that runlog's own programs logged is answered in Prefect's words; an unknown one is not found."""
    await send(started(flow_run_name="swift-otter", flow_name="etl"), finished(state="CANCELLED", at=2))
    await send(line(flow_run_id=OTHER_FLOW), line(flow_run_id="no-uuid"))
    found = (await client.get(f"/flow_runs/{FLOW}")).json()
    assert (found["name"], found["state"]["type"], found["total_run_time"]) == (
        "swift-otter",
        "CANCELLED",
        2.0,
    )
    assert found["start_time"] == "2023-11-14T22:13:20.000000Z"
    nameless = (await client.get(f"/flow_runs/{OTHER_FLOW}")).json()
    assert nameless["name"]
    assert nameless["state"] is None
    for path in (f"/flow_runs/{TASK}", f"/flow_runs/{TASK}/logs/download"):
        unknown = await client.get(path)
        assert (unknown.status_code, unknown.json()) == (404, {"detail": "Flow run not found"})
    assert (await client.get("/flow_runs/no-uuid")).status_code == 404


async def test_the_filter_of_runs(client, send):
    """Runs are found by what Prefect's filter asks of them, whoever told of them."""
    await send(
        started(flow_run_name="swift-otter", flow_name="etl"),
        finished(),
        line(flow_run_id=OTHER_FLOW, flow_run_name="calm-crow", flow_name="report", at=9),
    )
    tracking = (
        await client.post(
            "/task_runs/",
            json={"name": "inner-0", "flow_run_id": FLOW, "task_key": "inner-1234", "dynamic_key": "0"},
        )
    ).json()
    inner = await create_run(client, flow="inner", parent_task_run_id=tracking["id"])
    await set_state(client, inner["id"], "RUNNING")

    async def found(flow_runs=None, **rest):
        response = await client.post("/flow_runs/filter", json={"flow_runs": flow_runs, **rest})
        assert response.status_code == 200, response.text
        assert all("parent_flow_run_id" not in run for run in response.json())
        return [run["id"] for run in response.json()]

    assert set(await found()) == {FLOW, OTHER_FLOW, inner["id"]}
    assert await found({"parent_task_run_id": {"any_": [tracking["id"]]}}, limit=1) == [inner["id"]]
    assert await found({"parent_task_run_id": {"any_": [TASK]}}) == []
    assert await found({"id": {"any_": [FLOW, TASK]}}) == [FLOW]
    assert await found({"name": {"like_": "CROW"}}) == [OTHER_FLOW]
    assert await found({"name": {"any_": ["swift-otter"]}}) == [FLOW]
    assert await found({"state": {"type": {"any_": ["COMPLETED"]}}}) == [FLOW]
    assert await found({"state": {"type": {"not_any_": ["COMPLETED"]}, "name": {"any_": ["Running"]}}}) == [
        inner["id"]
    ]
    assert await found({"parent_flow_run_id": {"any_": [FLOW]}}) == [inner["id"]]
    assert await found({"start_time": {"before_": "2023-11-14T22:13:25Z"}}) == [FLOW]
    assert await found({"deployment_id": {"is_null_": False}}) == []
    either = {"operator": "or_", "name": {"like_": "crow"}, "id": {"any_": [FLOW]}}
    assert set(await found(either)) == {OTHER_FLOW, FLOW}
    assert await found(flows={"name": {"any_": ["report"]}}) == [OTHER_FLOW]
    assert await found(deployments={"name": {"any_": ["x"]}}) == []
    by_start = await found(sort="START_TIME_ASC")
    assert by_start[:2] == [FLOW, OTHER_FLOW]
    assert (await client.get(f"/task_runs/{tracking['id']}")).json()["flow_run_id"] == FLOW
    tree = (await client.get(f"/runlog/v1/runs/{FLOW}")).json()
    assert [child["id"] for child in tree["children"]] == [inner["id"]]


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"flow_runs": {"color": {}}}',
        b'{"flow_runs": {"name": {"below_": 1}}}',
        b'{"flow_runs": {"name": {"any_": 1}}}',
        b'{"flow_runs": {"start_time": {"before_": "soon"}}}',
        b'{"sort": "SIZE"}',
        b'{"offset": -1}',
        b'{"limit": 201}',
        b'{"limit": -1}',
    ],
)
async def test_filters_that_are_wrong(client, body):
    """A filter that means nothing is refused; a limit beyond the page in the words that the client knows."""
    response = await client.post("/flow_runs/filter", content=body)
    assert response.status_code == 422
    if b"limit" in body:
        assert "Invalid limit" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/flows/", b"{}"),
        ("/flows/", b"\xff"),
        ("/flow_runs/", b'{"flow_id": "x"}'),
        ("/task_runs/", b"[]"),
        (f"/flow_runs/{FLOW}/set_state", b'{"state": {"type": "HAPPY"}}'),
        (f"/flow_runs/{FLOW}/set_state", b"null"),
        (f"/task_runs/{FLOW}/set_state", b'{"state": 1}'),
        ("/flow_runs/", b"[" * 100_000),
    ],
)
async def test_bodies_that_are_wrong(client, path, body):
    """What is not what it should be is refused in Prefect's shape, and changes nothing."""
    response = await client.post(path, content=body)
    assert response.status_code == 422
    assert response.json()["exception_message"] == "Invalid request received."
    assert await runs_of(client) == []


async def test_download(client, send):
    """All lines of a run come as a file, in pages, with Prefect's columns; packed if the client can unpack."""
    events = [line(f"line {number}", at=number / 1000, flow_run_id=FLOW) for number in range(2500)]
    await send(
        *events, line('with "quotes", and\na break', at=3, flow_run_id=FLOW, task_run_id=TASK, level=40)
    )
    await send(
        line(flow_run_id=FLOW, flow_run_name="söder 1", at=4), line("of another", flow_run_id=OTHER_FLOW)
    )
    response = await client.get(f"/flow_runs/{FLOW}/logs/download")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == (
        "attachment; filename=\"flow-run-logs.csv\"; filename*=UTF-8''s%C3%B6der%201-logs.csv"
    )
    assert response.headers["content-encoding"] == "gzip"
    rows = response.text.split("\r\n")
    assert rows[0] == "timestamp,level,flow_run_id,task_run_id,message"
    assert rows[1] == f"2023-11-14 22:13:20+00:00,20,{FLOW},,line 0"
    assert rows[2501] == (f'2023-11-14 22:13:23+00:00,40,{FLOW},{TASK},"with ""quotes"", and\na break"')
    assert len(rows) == 2504
    plain = await client.get(f"/flow_runs/{FLOW}/logs/download", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == response.text


# --- events of tasks ----------------------------------------------------------------------------------


def task_event(kind, at, *, event_id=None, run_id=TASK, flow_run_id=FLOW, **facts):
    """An event of a task run, as Prefect 3.8's client sends it, *at* seconds after `START`."""
    occurred = format_timestamp(START + round(at * SECOND))
    task_run = {
        "name": "load-1a2",
        "task_key": "load-8f1a436d",
        "dynamic_key": "1a2b",
        "run_count": 1,
        "tags": [],
    }
    return {
        "occurred": occurred,
        "event": f"prefect.task-run.{kind.title()}",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{run_id}",
            "prefect.resource.name": "load-1a2",
            "prefect.state-type": kind,
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": "blue-fox",
            },
            {
                "prefect.resource.id": "prefect.flow.x",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "etl",
            },
        ],
        "payload": {
            "validated_state": {"type": kind, "name": kind.title(), "message": "", "state_details": {}},
            "task_run": {**task_run, **facts},
        },
        "id": event_id or str(uuid.uuid4()),
        "follows": None,
    }


@contextlib.contextmanager
def events_socket(url, *, token=None, subprotocol="prefect", **headers):
    """An open socket of a client that has said who it is."""
    address = url.replace("http", "ws", 1) + "/events/in"
    with connect(
        address, subprotocols=[subprotocol] if subprotocol else None, additional_headers=headers
    ) as socket:
        if subprotocol:
            socket.send(json.dumps({"type": "auth", "token": token}))
            assert json.loads(socket.recv(timeout=10)) == {"type": "auth_success"}
        yield socket


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path}/runlog.db"


def task_runs(database):
    """The task runs that a server has kept once it has ended, so that nothing is under way."""
    with BackgroundServer(database) as server, Client(base_url=server.url) as client:
        return client.get("/runlog/v1/runs", params={"kind": "task"}).json()["runs"]


@pytest.mark.parametrize("subprotocol", ["prefect", None])
def test_events_become_runs(database, subprotocol):
    """Task runs are told in events: each counts once, in whatever order, and nonsense stops nothing."""
    running, completed = task_event("RUNNING", 1), task_event("COMPLETED", 3.5)
    others = [{"event": "prefect.flow-run.heartbeat", "resource": {}}, {"id": 1}, [], "rubbish"]
    with (
        BackgroundServer(database) as server,
        events_socket(server.url, subprotocol=subprotocol) as socket,
    ):
        for event in (completed, *others, running, completed, task_event("PENDING", 0)):
            socket.send(json.dumps(event))
    (run,) = task_runs(database)
    assert (run["id"], run["kind"], run["name"], run["task_name"]) == (TASK, "task", "load-1a2", "load")
    assert (run["flow_run_id"], run["flow_name"]) == (FLOW, "etl")
    assert (run["state"], run["lines"]) == ("COMPLETED", 2)
    assert run["started"] == "2023-11-14T22:13:21.000000Z"


def test_tasks_inside_tasks(database):
    """A task that another one called is found below it."""
    parents = [{"input_type": "task_run", "id": TASK}]
    inner = task_event("RUNNING", 2, run_id=OTHER_FLOW, task_inputs={"x": [], "__parents__": parents})
    with BackgroundServer(database) as server, events_socket(server.url) as socket:
        socket.send(json.dumps(task_event("RUNNING", 1)))
        socket.send(json.dumps(inner))
    runs = task_runs(database)
    assert {run["id"]: run["parent_task_run_id"] for run in runs} == {TASK: None, OTHER_FLOW: TASK}


@pytest.mark.parametrize(
    ("first", "code", "reason"),
    [
        ("nonsense", 1008, "Expected 'auth' message"),
        ('{"type": "filter"}', 1008, "Expected 'auth' message"),
        ('{"type": "auth", "token": null}', 1008, "Auth required but no token provided"),
        ('{"type": "auth", "token": "somebody:else"}', 1008, "Invalid token"),
        ('{"type": "auth", "token": 5}', 1008, "Invalid token"),
    ],
)
def test_sockets_without_leave(database, first, code, reason):
    """Who does not say who it is, or is nobody known, is told so in Prefect's words and may send nothing."""
    with BackgroundServer(database, auth_string=AUTH_STRING) as server:
        address = server.url.replace("http", "ws", 1) + "/events/in"
        with connect(address, subprotocols=["prefect"]) as socket:
            socket.send(first)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
        with pytest.raises(InvalidStatus) as refused, connect(address):
            pass
        assert refused.value.response.status_code == 403
        with events_socket(server.url, token=AUTH_STRING) as socket:
            socket.send(json.dumps(task_event("RUNNING", 1)))
    assert len(task_runs(database)) == 1


def test_an_event_that_is_too_long(database):
    """A client that sends without end is closed, and what it sent before is kept."""
    with BackgroundServer(database) as server:
        with events_socket(server.url) as socket:
            socket.send(json.dumps(task_event("RUNNING", 1)))
            socket.send("x" * 1_100_000)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
    assert len(task_runs(database)) == 1


# --- who may --------------------------------------------------------------------------------------------


async def test_what_keys_may_do(app, client):
    """A key that may send needs no other for a program's runs; one of another flow may neither tell nor see."""
    run = await create_run(client, name="blue-fox")

    admin: dict[str, str] = {}

    async def key(*scopes, **bounds):
        body = {"name": "k", "scopes": scopes, **bounds}
        made = await client.post("/runlog/v1/admin/keys", json=body, headers=admin)
        return {"Authorization": f"Bearer {made.json()['key']}"}

    admin = await key("admin")
    sends, other, reads = await key("ingest"), await key("ingest", flow_name="other"), await key("read")
    path = f"/flow_runs/{run['id']}"
    running = {"state": {"type": "RUNNING"}}
    assert (await client.post(f"{path}/set_state", json=running, headers=reads)).status_code == 403
    assert (await client.post(f"{path}/set_state", json=running, headers=other)).status_code == 403
    assert (await client.get(path, headers=other)).status_code == 404
    assert (await client.post(f"{path}/set_state", json=running, headers=sends)).status_code == 201
    assert (await client.get(path, headers=sends)).json()["name"] == "blue-fox"
    by_parent = {"flow_runs": {"parent_task_run_id": {"any_": [TASK]}}}
    for headers, body, status in (
        (sends, by_parent, 200),
        (sends, {}, 403),
        (reads, {}, 200),
        (other, by_parent, 200),
    ):
        assert (await client.post("/flow_runs/filter", json=body, headers=headers)).status_code == status
    assert (await client.get(f"{path}/logs/download", headers=sends)).status_code == 403
    assert (await client.get(f"{path}/logs/download", headers=reads)).status_code == 200
    created = await client.post("/flows/", json={"name": "etl"}, headers=other)
    refused = await client.post("/flow_runs/", json={"flow_id": created.json()["id"]}, headers=other)
    assert refused.status_code == 403


@pytest.mark.parametrize("path", ["/flows/", "/flow_runs/", "/task_runs/"])
async def test_names_that_are_too_long(app, client, path):
    """A name without end is cut, and so is everything that is kept of a run."""
    long = "n" * 1_000_000
    flow_id = (await client.post("/flows/", json={"name": "etl"})).json()["id"]
    body = {
        "name": long,
        "flow_id": flow_id,
        "task_key": long[:99],
        "dynamic_key": "0",
        "tags": [long, *"abc" * 99],
    }
    response = await client.post(path, json=body)
    assert response.status_code == 201
    assert len(response.json()["name"]) == 1000
    assert len(response.content) < 120_000
    await client.patch(f"/flow_runs/{FLOW}", json={"name": long, "parameters": {"big": long}})
    assert len((await client.get(f"/flow_runs/{FLOW}")).content) < 10_000


async def test_a_full_disk(client, storage, monkeypatch):
    """A state that cannot be stored is to be told again, in the way that Prefect's client waits for."""
    run = await create_run(client)

    async def full(*_args, **_kwargs):
        raise StorageFullError("no room")

    monkeypatch.setattr(storage, "append", full)
    response = await client.post(f"/flow_runs/{run['id']}/set_state", json={"state": {"type": "RUNNING"}})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


# --- names on lines -----------------------------------------------------------------------------------


async def test_lines_wait_for_their_names():
    """Lines of Prefect's client get the names of runs; those of a task wait for them, and once only."""
    runs = NotedRuns()
    runs.put(NotedRun(FLOW, "flow", name="blue-fox", flow_name="etl"))
    events = [line(flow_run_id=FLOW), line(flow_run_id=FLOW, task_run_id=TASK), line(flow_run_id=OTHER_FLOW)]
    waiting = asyncio.create_task(runs.name_lines(events, patience=60))
    await asyncio.sleep(0)
    runs.put(NotedRun(OTHER_FLOW, "flow", name="other"))
    await asyncio.sleep(0)
    assert not waiting.done()
    runs.put(NotedRun(TASK, "task", name="load-1", task_name="load"))
    await waiting
    assert [(event.flow_run_name, event.task_name) for event in events] == [
        ("blue-fox", None),
        ("blue-fox", "load"),
        ("other", None),
    ]
    unheard = [line(flow_run_id=FLOW, task_run_id="never")]
    await runs.name_lines(unheard, patience=0)
    await asyncio.wait_for(runs.name_lines(unheard, patience=60), 10)
    assert (unheard[0].flow_run_name, unheard[0].task_run_name) == ("blue-fox", None)


@pytest.mark.parametrize(
    ("run_name", "task_key", "dynamic_key", "task_name"),
    [
        ("load orders-1a2", "load-8f1a436d", "1a2b3c", "load orders"),
        ("inner-0", "inner-1234", "0", "inner"),
        ("orders of today", "load-8f1a436d", "1a2b3c", "load"),
        ("orders of today", "__main__.load-8f1a436d", "", "load"),
        ("orders of today", "", "", "orders of today"),
    ],
)
def test_names_of_tasks(run_name, task_key, dynamic_key, task_name):
    """A task's name is found in its run's name, or else in its key."""
    assert task_name_of(run_name, task_key, dynamic_key) == task_name
