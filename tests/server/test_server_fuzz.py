"""Whatever is sent, the answer is never a 5xx, and what the server keeps stays sound."""

from __future__ import annotations

import asyncio
import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, PRODUCER, encoded, finished, line, started

from runlog._http import ASGITransport, AsyncClient
from runlog.server.app import create_app
from runlog.server.state import Limits
from runlog.server.storage.sqlite import SQLiteStorage


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Send a request to a server over SQLite that lives as long as the module."""
    storage = SQLiteStorage(tmp_path_factory.mktemp("fuzz") / "runlog.db")
    app = create_app(storage, limits=Limits(max_body_bytes=100_000))
    with asyncio.Runner() as runner:
        runner.run(storage.open())
        client = AsyncClient(transport=ASGITransport(app), base_url="http://test/api")

        def ask(method, path, **request):
            return runner.run(client.request(method, path, **request))

        yield ask
        runner.run(client.aclose())
        runner.run(storage.close())


numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**42, 2**63, 2**64, 10**40])
words = st.text(max_size=20) | st.sampled_from(
    [FLOW, PRODUCER, "and_", "or_", "2025-01-01T00:00:00Z", "\0", "'--"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
BODIES = {
    "/logs/": [
        {"name": "n", "level": 20, "message": "m", "timestamp": 0, "flow_run_id": FLOW, "task_run_id": None}
    ],
    "/logs/filter": {
        "logs": {
            "operator": "or_",
            "level": {"ge_": 10, "le_": 20},
            "timestamp": {"after_": 0, "before_": "2030-01-01"},
            "flow_run_id": {"any_": [FLOW]},
            "task_run_id": {"any_": [FLOW], "is_null_": True},
            "text": {"query": 'a -"b c" +d'},
        },
        "limit": 10,
        "offset": 1,
        "sort": "TIMESTAMP_DESC",
    },
    "/flows/": {"name": "etl", "tags": [], "labels": {}},
    "/flow_runs/": {
        "flow_id": FLOW,
        "name": "blue-fox",
        "state": {"type": "PENDING", "state_details": {"transition_id": FLOW}, "message": "m", "data": None},
        "parameters": {"day": 1},
        "tags": ["nightly"],
        "parent_task_run_id": FLOW,
        "empirical_policy": {"retries": 1, "retry_delay": [1, 2]},
    },
    "/task_runs/": {"task_key": "k", "dynamic_key": "0", "name": "n", "flow_run_id": FLOW, "task_inputs": {}},
    f"/flow_runs/{FLOW}/set_state": {"state": {"type": "RUNNING", "message": "m"}, "force": False},
    f"/task_runs/{FLOW}/set_state": {"state": {"type": "FAILED", "state_details": {}}},
    "/flow_runs/filter": {
        "flow_runs": {
            "operator": "and_",
            "id": {"any_": [FLOW], "not_any_": ["x"]},
            "name": {"like_": "fox", "any_": ["a"]},
            "tags": {"all_": ["nightly"], "is_null_": False},
            "state": {"type": {"any_": ["RUNNING"]}, "name": {"not_any_": ["Late"]}},
            "start_time": {"before_": "2030-01-01", "after_": 0},
            "parent_task_run_id": {"any_": [FLOW]},
        },
        "flows": {"name": {"any_": ["etl"]}},
        "deployments": None,
        "sort": "NAME_ASC",
        "limit": 10,
        "offset": 1,
    },
    "/runlog/v1/batches": msgspec.json.decode(
        encoded(
            started(extra={"source": "s3"}),
            line(flow_run_id=FLOW, task_run_id="t", attempt=1),
            finished(),
            first_seq=0,
        )
    ),
}


def places(value, path=()):
    """Every place in a JSON value, itself first."""
    yield path
    for key in range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ():
        yield from places(value[key], (*path, key))


@st.composite
def damaged(draw):
    """A good body in which values were replaced, or that is anything at all."""
    path = draw(st.sampled_from(list(BODIES)))
    body = copy.deepcopy(BODIES[path])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(places(body))))
        new = draw(values)
        if not place:
            return path, new
        holder = body
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = new
    return path, body


def as_json(value):
    """JSON as careless programs write it: NaN, huge numbers and lone surrogates included."""
    import json

    return json.dumps(value).encode()


@given(damaged())
@settings(max_examples=300)
def test_damaged_json_is_never_our_fault(ask, sent):
    """A body with wrong types, ranges or shapes is stored, answered or refused, with JSON and one line."""
    path, body = sent
    response = ask("POST", path, content=as_json(body))
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        answer = response.json()
        assert answer.keys() in ({"detail"}, {"detail", "expected"}) or "exception_detail" in answer
        assert "\n" not in str(answer.get("detail"))


@given(st.sampled_from(list(BODIES)), st.binary(max_size=300), st.sampled_from(["identity", "gzip"]))
def test_random_bytes_are_never_our_fault(ask, path, body, encoding):
    """Bytes that mean nothing are refused."""
    response = ask("POST", path, content=body, headers={"Content-Encoding": encoding})
    assert response.status_code < 500, response.text


@given(st.sampled_from(list(BODIES)), st.data())
def test_cut_and_changed_bytes_are_never_our_fault(ask, path, data):
    """A good body of which bytes are missing or changed is refused or taken."""
    body = bytearray(as_json(BODIES[path]))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[position] = data.draw(st.integers(0, 255))
        else:
            del body[position:]
            break
        if not body:
            break
    response = ask("POST", path, content=bytes(body))
    assert response.status_code < 500, response.text


parameters = st.dictionaries(
    st.sampled_from(
        [
            "run",
            "flow_run_id",
            "task_run_id",
            "level",
            "search",
            "task",
            "logger",
            "since",
            "until",
            "order",
            "limit",
            "cursor",
            "kind",
            "state",
            "name",
            "parent",
            "else",
        ]
    ),
    words
    | numbers.map(str)
    | st.sampled_from(["asc", "desc", "flow", "RUNNING", "WzEsIDEsIDFd", "WzEsICJhIiwgImIiXQ"]),
    max_size=4,
)


@given(st.sampled_from(["logs", "runs", "status"]), parameters)
def test_odd_questions_are_never_our_fault(ask, path, query):
    """Any parameters get an answer or a 422."""
    response = ask("GET", f"/runlog/v1/{path}", params=query)
    assert response.status_code in {200, 422}, response.text


@given(st.text(max_size=30))
def test_odd_references_are_never_our_fault(ask, ref):
    """Any text in the place of a run's id gets an answer."""
    from urllib.parse import quote

    for path in (f"/runlog/v1/runs/{quote(ref, safe='')}", f"/runlog/v1/runs/{quote(ref, safe='')}/receipt"):
        assert ask("GET", path).status_code < 500


def test_what_was_stored_can_be_read(ask):
    """After all of that every line and run can still be read through both APIs."""
    lines = ask("GET", "/runlog/v1/logs", params={"limit": 10_000})
    assert lines.status_code == 200
    assert ask("GET", "/runlog/v1/runs", params={"limit": 1000}).status_code == 200
    assert ask("POST", "/logs/filter").status_code == 200
    for run in ask("GET", "/runlog/v1/runs", params={"limit": 20}).json()["runs"]:
        from urllib.parse import quote

        assert ask("GET", f"/runlog/v1/runs/{quote(run['id'], safe='')}").status_code in {200, 404, 409}
