"""Prefect's routes answer as a Prefect 3.8.8 server was seen to: bodies are written out in full."""

from __future__ import annotations

import gzip
import json

import msgspec
import pytest
from server_lines import FLOW, OTHER_FLOW, TASK, batch, line

from runlog._http import ASGITransport, AsyncClient
from runlog.server.app import create_app
from runlog.server.query import LogQuery
from runlog.server.state import Limits

pytestmark = pytest.mark.anyio

LOG = {"name": "n", "level": 20, "message": "m", "timestamp": "2025-01-01T00:00:00Z"}


def log(**changes):
    return {**LOG, **changes}


def without(*names):
    return {name: value for name, value in LOG.items() if name not in names}


async def test_logs_are_stored(client, storage):
    """An array of logs is answered with 201 and null, and can be read with all its fields."""
    response = await client.post("/logs/", json=[log(flow_run_id=FLOW, task_run_id=TASK), log(message="two")])
    assert (response.status_code, response.text) == (201, "null")
    first, second = (await client.post("/logs/filter")).json()
    prefect = ("name", "level", "message", "timestamp", "flow_run_id", "task_run_id")
    assert {name: first[name] for name in prefect} == {
        "name": "n",
        "level": 20,
        "message": "m",
        "timestamp": "2025-01-01T00:00:00.000000Z",
        "flow_run_id": FLOW,
        "task_run_id": TASK,
    }
    assert (second["message"], second["flow_run_id"]) == ("two", None)
    assert first["created"] == first["updated"] == first["observed_timestamp"]
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"level": "20"}, "level", 20),
        ({"level": " 20 "}, "level", 20),
        ({"level": 20.0}, "level", 20),
        ({"level": "20.0"}, "level", 20),
        ({"level": True}, "level", 1),
        ({"level": 40000}, "level", 40000),
        ({"timestamp": "2025-01-01T10:00:00+02:00"}, "timestamp", "2025-01-01T08:00:00.000000Z"),
        ({"timestamp": "2025-01-01T10:00:00"}, "timestamp", "2025-01-01T10:00:00.000000Z"),
        ({"timestamp": 1732186417.5}, "timestamp", "2024-11-21T10:53:37.500000Z"),
        ({"timestamp": 1732186417500}, "timestamp", "2024-11-21T10:53:37.500000Z"),
        ({"timestamp": "1732186417.5"}, "timestamp", "2024-11-21T10:53:37.500000Z"),
        ({"timestamp": -5}, "timestamp", "1969-12-31T23:59:55.000000Z"),
        ({"flow_run_id": FLOW.replace("-", "")}, "flow_run_id", FLOW),
        ({"flow_run_id": f"{{{FLOW}}}"}, "flow_run_id", FLOW),
        ({"flow_run_id": f"urn:uuid:{FLOW}"}, "flow_run_id", FLOW),
        ({"task_run_id": None}, "task_run_id", None),
        ({"name": "a\0b"}, "name", "ab"),
        ({"message": "\0m\0"}, "message", "m"),
        ({"message": ""}, "message", ""),
    ],
)
async def test_values_are_converted_as_prefect_does(client, changes, field, expected):
    """What pydantic would accept is accepted, and means the same."""
    assert (await client.post("/logs/", json=[log(**changes)])).status_code == 201
    (found,) = (await client.post("/logs/filter", json={})).json()
    assert found[field] == expected


def fault(kind, loc, msg, value, **ctx):
    return {"type": kind, "loc": ["body", *loc], "msg": msg, "input": value, **({"ctx": ctx} if ctx else {})}


INTEGER = "Input should be a valid integer"
UNPARSABLE = f"{INTEGER}, unable to parse string as an integer"
FRACTION = f"{INTEGER}, got a number with a fractional part"
STRING = "Input should be a valid string"
DICTIONARY = "Input should be a valid dictionary or object to extract fields from"
EXTRA = "Extra inputs are not permitted"
NO_TIME = "value is not a valid datetime"
NO_UUID = "Input should be a valid UUID, "
FOUND_X = "invalid character: found `x` at 0"


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        (
            {},
            [
                fault(
                    "is_instance_of",
                    [],
                    "Input should be an instance of Sequence",
                    {},
                    **{"class": "Sequence"},
                )
            ],
        ),
        (
            3,
            [
                fault(
                    "is_instance_of",
                    [],
                    "Input should be an instance of Sequence",
                    3,
                    **{"class": "Sequence"},
                )
            ],
        ),
        (
            None,
            [
                fault(
                    "is_instance_of",
                    [],
                    "Input should be an instance of Sequence",
                    None,
                    **{"class": "Sequence"},
                )
            ],
        ),
        (
            "x",
            [
                fault(
                    "sequence_str",
                    [],
                    "'str' instances are not allowed as a Sequence value",
                    "x",
                    type_name="str",
                )
            ],
        ),
        ([5], [fault("model_attributes_type", [0], DICTIONARY, 5)]),
        ([LOG, "x"], [fault("model_attributes_type", [1], DICTIONARY, "x")]),
        ([without("name")], [fault("missing", [0, "name"], "Field required", without("name"))]),
        (
            [without("level", "message")],
            [
                fault("missing", [0, "level"], "Field required", without("level", "message")),
                fault("missing", [0, "message"], "Field required", without("level", "message")),
            ],
        ),
        ([log(level="INFO")], [fault("int_parsing", [0, "level"], UNPARSABLE, "INFO")]),
        ([log(level=20.5)], [fault("int_from_float", [0, "level"], FRACTION, 20.5)]),
        ([log(level=None)], [fault("int_type", [0, "level"], INTEGER, None)]),
        (
            [log(level=2**40)],
            [
                fault(
                    "less_than_equal", [0, "level"], "Input should be less than or equal to 2147483647", 2**40
                )
            ],
        ),
        (
            [log(level=-(2**40))],
            [
                fault(
                    "greater_than_equal",
                    [0, "level"],
                    "Input should be greater than or equal to -2147483648",
                    -(2**40),
                )
            ],
        ),
        ([log(name=3)], [fault("string_type", [0, "name"], STRING, 3)]),
        ([log(message=["a"])], [fault("string_type", [0, "message"], STRING, ["a"])]),
        ([log(extra=1)], [fault("extra_forbidden", [0, "extra"], EXTRA, 1)]),
        ([log(worker_id=None)], [fault("extra_forbidden", [0, "worker_id"], EXTRA, None)]),
        (
            [log(timestamp="nope")],
            [
                fault(
                    "value_error",
                    [0, "timestamp"],
                    "Value error, Unable to parse string [nope]",
                    "nope",
                    error={},
                )
            ],
        ),
        ([log(timestamp=None)], [fault("value_error", [0, "timestamp"], NO_TIME, None)]),
        ([log(timestamp=True)], [fault("value_error", [0, "timestamp"], NO_TIME, True)]),
        ([log(timestamp=1e300)], [fault("value_error", [0, "timestamp"], NO_TIME, 1e300)]),
        (
            [log(flow_run_id="x")],
            [fault("uuid_parsing", [0, "flow_run_id"], NO_UUID + FOUND_X, "x", error=FOUND_X)],
        ),
        (
            [log(task_run_id="")],
            [
                fault(
                    "uuid_parsing",
                    [0, "task_run_id"],
                    NO_UUID + "invalid length: found 0",
                    "",
                    error="invalid length: found 0",
                )
            ],
        ),
        (
            [log(flow_run_id=3)],
            [
                fault(
                    "uuid_type", [0, "flow_run_id"], "UUID input should be a string, bytes or UUID object", 3
                )
            ],
        ),
    ],
)
async def test_a_bad_log_refuses_all_of_them(client, storage, body, faults):
    """The answer tells each fault where it is, echoes the body, and nothing is stored."""
    response = await client.post("/logs/", content=json.dumps(body))
    assert response.status_code == 422
    assert response.json() == {
        "exception_message": "Invalid request received.",
        "exception_detail": faults,
        "request_body": body,
    }
    assert await storage.read_lines(LogQuery()) == []


async def test_a_body_that_is_missing_is_told(client):
    """No body at all is a fault of its own."""
    response = await client.post("/logs/")
    assert response.status_code == 422
    assert response.json() == {
        "exception_message": "Invalid request received.",
        "exception_detail": [fault("missing", [], "Field required", None)],
        "request_body": None,
    }


@pytest.mark.parametrize("path", ["/logs/", "/logs/filter"])
@pytest.mark.parametrize(
    ("body", "position", "problem"),
    [
        (b"{bad", 1, "Expecting property name enclosed in double quotes"),
        (b"[1 2]", 3, "Expecting ',' delimiter"),
        (b"\xff\xfe", 0, "Expecting value"),
        (b"[NaN]", 0, "JSON is malformed: invalid character (byte 1)"),
        (b"[" * 100_000, 0, None),
        (b"1" * 5000, 0, None),
    ],
    ids=["object", "comma", "utf-8", "nan", "deep", "long number"],
)
async def test_a_body_that_is_no_json_is_told(client, path, body, position, problem):
    """Where Python's decoder stops, and why, is told; so is the body as text."""
    response = await client.post(path, content=body)
    assert response.status_code == 422
    (found,) = response.json()["exception_detail"]
    assert (found["type"], found["loc"], found["msg"]) == (
        "json_invalid",
        ["body", position],
        "JSON decode error",
    )
    assert response.json()["request_body"] == body.decode(errors="replace")
    if problem is not None:
        assert found["ctx"] == {"error": problem}


async def test_a_deep_body_is_refused(client):
    """Nesting that can be decoded and hardly be encoded again is a 422 like any other."""
    for depth in (50, 500, 900, 960, 990):
        response = await client.post("/logs/", content=b"[" * depth + b"]" * depth)
        assert response.status_code == 422, depth


async def test_faults_of_a_large_body_are_cut(client):
    """A hundred faults are told, and a body over a quarter of a megabyte is not sent back."""
    response = await client.post("/logs/", json=[log(level="x")] * 5000)
    body = response.json()
    assert response.status_code == 422
    assert len(body["exception_detail"]) == 100
    assert body["request_body"] is None
    assert body["exception_detail"][0]["input"] is None
    assert len(response.content) < 50_000


async def test_the_path_without_a_slash_redirects(client):
    """``/logs`` answers 307 to ``/logs/``, as Prefect's clients follow it."""
    response = await client.post("/logs", json=[])
    assert response.status_code == 307
    assert response.headers["location"] == "http://test/api/logs/"


async def test_an_empty_array_is_stored(client):
    """No logs are stored like many."""
    response = await client.post("/logs/", json=[])
    assert (response.status_code, response.text) == (201, "null")


async def test_a_client_may_leave_out_the_content_type(client):
    """Older clients send JSON without saying so."""
    assert (await client.post("/logs/", content=json.dumps([LOG]))).status_code == 201


async def test_a_body_may_be_compressed(client):
    """A gzipped body is inflated on both routes."""
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps([LOG]).encode())
    assert (await client.post("/logs/", content=body, headers=headers)).status_code == 201
    found = await client.post("/logs/filter", content=gzip.compress(b'{"limit": 1}'), headers=headers)
    assert len(found.json()) == 1


async def test_too_many_logs_are_refused(storage):
    """A body with more logs than allowed is a 413 and stores nothing."""
    app = create_app(storage, limits=Limits(max_batch_lines=3))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        response = await client.post("/logs/", json=[LOG] * 4)
        assert response.status_code == 413
        assert response.json() == {"detail": "send at most 3 logs at once, got 4"}
        assert (await client.post("/logs/", json=[LOG] * 3)).status_code == 201
    assert len(await storage.read_lines(LogQuery())) == 3


# --- filter -------------------------------------------------------------------------------------------


@pytest.fixture
async def filled(storage):
    """Six lines, their messages numbered in the order of time."""
    await storage.append(
        batch(
            line("0 start", at=0, level=10, flow_run_id=FLOW),
            line("1 loaded orders", at=1, level=20, flow_run_id=FLOW, task_run_id=TASK, name="etl.load"),
            line("2 disk full", at=2, level=40, flow_run_id=OTHER_FLOW, name="etl.load"),
            line("3 end", at=3, level=30, flow_run_id=FLOW),
            line("4 outside", at=4, level=50),
            line("5 odd id", at=5, level=20, flow_run_id="not a uuid", task_run_id="neither"),
        ),
        observed_ns=1,
    )


async def numbers(client, **body):
    response = await client.post("/logs/filter", json=body)
    assert response.status_code == 200, response.text
    return "".join(found["message"][0] for found in response.json())


AT_1, AT_3 = "2023-11-14T22:13:21Z", "2023-11-14T23:13:23+01:00"


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        (None, "012345"),
        ({}, "012345"),
        ({"level": {}}, "012345"),
        (
            {"level": None, "timestamp": None, "flow_run_id": None, "task_run_id": None, "text": None},
            "012345",
        ),
        ({"level": {"ge_": 30}}, "234"),
        ({"level": {"le_": 20}}, "015"),
        ({"level": {"ge_": 20, "le_": 30}}, "135"),
        ({"level": {"ge_": "30"}}, "234"),
        ({"level": {"ge_": 10**30}}, ""),
        ({"level": {"le_": 10**30, "ge_": -(10**30)}}, "012345"),
        ({"timestamp": {"after_": AT_1}}, "12345"),
        ({"timestamp": {"before_": AT_3}}, "0123"),
        ({"timestamp": {"after_": AT_1, "before_": AT_3}}, "123"),
        ({"timestamp": {"after_": "0001-01-01T00:00:00Z", "before_": "9999-12-31T00:00:00Z"}}, "012345"),
        ({"flow_run_id": {"any_": [FLOW]}}, "013"),
        ({"flow_run_id": {"any_": [FLOW.upper(), OTHER_FLOW]}}, "0123"),
        ({"flow_run_id": {"any_": []}}, ""),
        ({"flow_run_id": {"any_": None}}, "012345"),
        ({"flow_run_id": {}}, "012345"),
        ({"task_run_id": {"any_": [TASK]}}, "1"),
        ({"task_run_id": {"is_null_": True}}, "0234"),
        ({"task_run_id": {"is_null_": "false"}}, "15"),
        ({"task_run_id": {"is_null_": 1}}, "0234"),
        ({"task_run_id": {"any_": [TASK], "is_null_": True}}, ""),
        ({"text": {"query": "DISK orders"}}, "12"),
        ({"text": {"query": "etl.load -disk"}}, "1"),
        ({"text": {"query": '"disk full"'}}, "2"),
        ({"text": {"query": "   "}}, "012345"),
        ({"level": {"ge_": 30}, "flow_run_id": {"any_": [FLOW]}}, "3"),
        ({"operator": "and_", "level": {"ge_": 30}, "text": {"query": "disk"}}, "2"),
        ({"operator": "or_", "level": {"ge_": 50}, "text": {"query": "disk"}}, "24"),
        ({"operator": "or_", "level": {"ge_": 50}, "task_run_id": {"any_": [TASK]}}, "14"),
        ({"operator": "or_", "level": {"ge_": 50}, "text": {"query": " "}}, "4"),
        ({"operator": "or_"}, "012345"),
        ({"operator": "or_", "flow_run_id": {"any_": []}, "level": {"ge_": 50}}, "4"),
        ({"operator": "or_", "flow_run_id": {}, "level": {"ge_": 50}}, "012345"),
    ],
)
async def test_a_filter_chooses_lines(client, filled, logs, expected):
    """Each part, and both operators, choose what Prefect's server would."""
    assert await numbers(client, logs=logs) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"limit": 2}, "01"),
        ({"limit": "2"}, "01"),
        ({"limit": 0}, ""),
        ({"limit": None}, "012345"),
        ({"limit": 200}, "012345"),
        ({"offset": 4}, "45"),
        ({"offset": None}, "012345"),
        ({"offset": 10**30}, ""),
        ({"offset": 1, "limit": 2, "sort": "TIMESTAMP_DESC"}, "43"),
        ({"sort": "TIMESTAMP_ASC"}, "012345"),
        ({"something": "else"}, "012345"),
    ],
)
async def test_a_page_is_cut(client, filled, body, expected):
    """Limit, offset and sort work as in Prefect; unknown keys beside the filter are ignored."""
    assert await numbers(client, **body) == expected


async def test_ids_that_are_no_uuids_are_left_out(client, filled):
    """Prefect's client would refuse the whole answer for them; our own route has them."""
    found = (await client.post("/logs/filter", json={"logs": {"text": {"query": "odd"}}})).json()
    assert [(one["flow_run_id"], one["task_run_id"]) for one in found] == [(None, None)]
    (ours,) = (await client.get("/runlog/v1/logs", params={"search": "odd"})).json()["logs"]
    assert (ours["flow_run_id"], ours["task_run_id"]) == ("not a uuid", "neither")


@pytest.mark.parametrize(
    ("limit", "detail"),
    [
        (201, "Invalid limit: must be less than or equal to 200."),
        (-1, "Invalid limit: must be greater than or equal to 0."),
    ],
)
async def test_a_limit_out_of_range_is_told_in_prefects_words(client, limit, detail):
    """Prefect's command line finds the page size by these words."""
    response = await client.post("/logs/filter", json={"limit": limit})
    assert (response.status_code, response.json()) == (422, {"detail": detail})


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        (
            [],
            [
                fault("missing", [name], "Field required", None)
                for name in ("limit", "offset", "logs", "sort")
            ],
        ),
        ({"limit": "x"}, [fault("int_parsing", ["limit"], UNPARSABLE, "x")]),
        ({"limit": 1.5}, [fault("int_from_float", ["limit"], FRACTION, 1.5)]),
        (
            {"offset": -1},
            [fault("greater_than_equal", ["offset"], "Input should be greater than or equal to 0", -1, ge=0)],
        ),
        ({"offset": []}, [fault("int_type", ["offset"], INTEGER, [])]),
        (
            {"sort": "X"},
            [
                fault(
                    "enum",
                    ["sort"],
                    "Input should be 'TIMESTAMP_ASC' or 'TIMESTAMP_DESC'",
                    "X",
                    expected="'TIMESTAMP_ASC' or 'TIMESTAMP_DESC'",
                )
            ],
        ),
        ({"logs": 3}, [fault("model_attributes_type", ["logs"], DICTIONARY, 3)]),
        (
            {"logs": {"name": {"any_": ["x"]}}},
            [fault("extra_forbidden", ["logs", "name"], EXTRA, {"any_": ["x"]})],
        ),
        ({"logs": {"level": {"eq_": 3}}}, [fault("extra_forbidden", ["logs", "level", "eq_"], EXTRA, 3)]),
        ({"logs": {"level": 3}}, [fault("model_attributes_type", ["logs", "level"], DICTIONARY, 3)]),
        (
            {"logs": {"level": {"ge_": "x"}}},
            [fault("int_parsing", ["logs", "level", "ge_"], UNPARSABLE, "x")],
        ),
        (
            {"logs": {"operator": None}},
            [
                fault(
                    "enum",
                    ["logs", "operator"],
                    "Input should be 'and_' or 'or_'",
                    None,
                    expected="'and_' or 'or_'",
                )
            ],
        ),
        (
            {"logs": {"timestamp": {"after_": "x", "x": 1}}},
            [
                fault(
                    "value_error",
                    ["logs", "timestamp", "after_"],
                    "Value error, Unable to parse string [x]",
                    "x",
                    error={},
                ),
                fault("extra_forbidden", ["logs", "timestamp", "x"], EXTRA, 1),
            ],
        ),
        (
            {"logs": {"flow_run_id": {"any_": "x", "all_": 1}}},
            [
                fault("list_type", ["logs", "flow_run_id", "any_"], "Input should be a valid list", "x"),
                fault("extra_forbidden", ["logs", "flow_run_id", "all_"], EXTRA, 1),
            ],
        ),
        (
            {"logs": {"flow_run_id": {"any_": [FLOW, "x"]}}},
            [
                fault(
                    "uuid_parsing", ["logs", "flow_run_id", "any_", 1], NO_UUID + FOUND_X, "x", error=FOUND_X
                )
            ],
        ),
        (
            {"logs": {"task_run_id": {"is_null_": "x"}}},
            [
                fault(
                    "bool_parsing",
                    ["logs", "task_run_id", "is_null_"],
                    "Input should be a valid boolean, unable to interpret input",
                    "x",
                )
            ],
        ),
        (
            {"logs": {"task_run_id": {"is_null_": [], "x": 1}}},
            [
                fault(
                    "bool_type", ["logs", "task_run_id", "is_null_"], "Input should be a valid boolean", []
                ),
                fault("extra_forbidden", ["logs", "task_run_id", "x"], EXTRA, 1),
            ],
        ),
        ({"logs": {"text": {}}}, [fault("missing", ["logs", "text", "query"], "Field required", {})]),
        (
            {"logs": {"text": {"query": None}}},
            [fault("string_type", ["logs", "text", "query"], STRING, None)],
        ),
        (
            {"logs": {"text": {"query": "x" * 201}}},
            [
                fault(
                    "string_too_long",
                    ["logs", "text", "query"],
                    "String should have at most 200 characters",
                    "x" * 201,
                    max_length=200,
                )
            ],
        ),
        (
            {"logs": {"text": {"query": "x", "y": 1}, "zz": 1}},
            [
                fault("extra_forbidden", ["logs", "text", "y"], EXTRA, 1),
                fault("extra_forbidden", ["logs", "zz"], EXTRA, 1),
            ],
        ),
    ],
)
async def test_a_wrong_filter_is_told(client, body, faults):
    """Every unknown key and wrong value in the filter is named with its place."""
    response = await client.post("/logs/filter", json=body)
    assert response.status_code == 422
    assert response.json() == {
        "exception_message": "Invalid request received.",
        "exception_detail": faults,
        "request_body": body,
    }


async def test_answers_are_compressed_when_asked(client, filled):
    """A client that accepts gzip gets it, one that does not gets plain JSON."""
    plain = await client.post("/logs/filter", headers={"Accept-Encoding": "identity"})
    zipped = await client.post("/logs/filter", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert msgspec.json.decode(zipped.content) == msgspec.json.decode(plain.content)
