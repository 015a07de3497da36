"""Questions about lines and runs over HTTP."""

from __future__ import annotations

import pytest
from server_lines import FLOW, OTHER_FLOW, OTHER_PRODUCER, PRODUCER, TASK, finished, line, started

from runlog.records import DropMarker, ExceptionInfo, event_id
from runlog.server.routes.reading import MAX_TREE_DEPTH

pytestmark = pytest.mark.anyio


async def test_a_line_has_every_field(client, send):
    """A line is answered with all that it carried, times as RFC 3339 and an id made of producer and seq."""
    await send(
        line(
            "boom",
            at=0.000001,
            level=35,
            name="a.b",
            flow_run_id=FLOW,
            flow_run_name="owl",
            flow_name="etl",
            task_run_id=TASK,
            task_run_name="extract-1",
            task_name="extract",
            parent_flow_run_id="pf",
            parent_task_run_id="pt",
            attempt=2,
            event_name="e",
            attributes={"table": "orders"},
            exception=ExceptionInfo("ValueError", "no", "Traceback"),
            trace_id="t",
            span_id="s",
            truncated_bytes=7,
        )
    )
    (found,) = (await client.get("/runlog/v1/logs")).json()["logs"]
    observed = found["observed_timestamp"]
    assert found == {
        "id": str(event_id(PRODUCER, 0)),
        "created": observed,
        "updated": observed,
        "timestamp": "2023-11-14T22:13:20.000001Z",
        "observed_timestamp": observed,
        "level": 35,
        "level_name": "Level 35",
        "name": "a.b",
        "message": "boom",
        "flow_run_id": FLOW,
        "task_run_id": TASK,
        "flow_run_name": "owl",
        "flow_name": "etl",
        "task_run_name": "extract-1",
        "task_name": "extract",
        "parent_flow_run_id": "pf",
        "parent_task_run_id": "pt",
        "attempt": 2,
        "event_name": "e",
        "attributes": {"table": "orders"},
        "exception": {"type": "ValueError", "message": "no", "traceback": "Traceback"},
        "trace_id": "t",
        "span_id": "s",
        "truncated_bytes": 7,
        "producer": PRODUCER,
        "seq": 0,
    }


@pytest.fixture
async def filled(send):
    """A flow with a task and a sub-flow, and a line outside; messages are numbered by time."""
    await send(
        line("0", at=0, level=10, flow_run_id=FLOW, name="etl"),
        line("1", at=1, flow_run_id=FLOW, task_run_id=TASK, task_name="extract", task_run_name="extract-9"),
        line("2", at=2, level=40, flow_run_id=OTHER_FLOW, parent_task_run_id=TASK, name="etl.load"),
        line("3 disk", at=3, level=30, flow_run_id=FLOW, name="etl2"),
        line("4", at=4, level=50),
    )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "01234"),
        ({"run": FLOW}, "0123"),
        ({"run": OTHER_FLOW}, "2"),
        ({"run": TASK}, "12"),
        ({"run": "nobody"}, ""),
        ({"flow_run_id": FLOW}, "013"),
        ({"task_run_id": TASK}, "1"),
        ({"level": "WARNING"}, "234"),
        ({"level": "warn"}, "234"),
        ({"level": "40"}, "24"),
        ({"level": "-5"}, "01234"),
        ({"search": "DISK etl.load"}, "23"),
        ({"search": "-disk"}, "0124"),
        ({"task": "extract"}, "1"),
        ({"task": "extract-9"}, "1"),
        ({"task": TASK}, "1"),
        ({"task": "ext"}, ""),
        ({"logger": "etl"}, "0"),
        ({"logger": "etl.*"}, "02"),
        ({"since": "2023-11-14T22:13:22Z"}, "234"),
        ({"until": "2023-11-14T22:13:22Z"}, "012"),
        ({"since": "1700000001", "until": "1700000002.5"}, "12"),
        ({"order": "desc"}, "43210"),
        ({"limit": "2"}, "01"),
        ({"run": FLOW, "level": "INFO", "search": "disk", "order": "desc"}, "3"),
    ],
)
async def test_lines_are_found(client, filled, query, expected):
    """Each parameter chooses lines, and all of them must hold."""
    response = await client.get("/runlog/v1/logs", params=query)
    assert response.status_code == 200, response.text
    assert "".join(found["message"][0] for found in response.json()["logs"]) == expected


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("run", [None, FLOW])
async def test_pages_of_lines_join(client, filled, order, run):
    """The cursor of each page leads to the next, and the last page has none."""
    query = {"order": order, "limit": 2, **({"run": run} if run else {})}
    found, cursor = "", ""
    while cursor is not None:
        page = (
            await client.get("/runlog/v1/logs", params={**query, **({"cursor": cursor} if cursor else {})})
        ).json()
        assert len(page["logs"]) <= 2
        found += "".join(one["message"][0] for one in page["logs"])
        cursor = page["next"]
    expected = "0123" if run else "01234"
    assert found == (expected if order == "asc" else expected[::-1])


async def test_a_page_that_is_just_full_has_no_next(client, filled):
    """No empty page follows the last line."""
    page = (await client.get("/runlog/v1/logs", params={"limit": 5})).json()
    assert (len(page["logs"]), page["next"]) == (5, None)


@pytest.mark.parametrize(
    ("path", "query", "detail"),
    [
        (
            "logs",
            "colour=red",
            "unknown parameter 'colour'; expected one of after, around, before, cursor, ",
        ),
        ("logs", "run=a&run=b", "parameter 'run' is given twice"),
        ("logs", "limit=0", "limit must be a number from 1 to 10000, got '0'"),
        ("logs", "limit=10001", "limit must be a number from 1 to 10000, got '10001'"),
        ("logs", "limit=x", "limit must be a number from 1 to 10000, got 'x'"),
        ("logs", "limit=%D9%A3", "limit must be a number"),
        ("logs", "order=up", "order must be one of asc, desc, got 'up'"),
        ("logs", "level=loud", "level must be a number or one of CRITICAL, "),
        ("logs", "level=99999999999", "level must be a number or one of CRITICAL, "),
        (
            "logs",
            "since=yesterday",
            "since: unable to parse 'yesterday' as a time; expected RFC 3339, or seconds",
        ),
        ("logs", "until=1e400", "until: unable to parse"),
        ("logs", "cursor=x", "cursor 'x' is not one that this server gave out"),
        ("logs", "search=" + "x" * 201, "search must have at most 200 characters, got 201"),
        ("runs", "kind=dag", "kind must be one of flow, task, got 'dag'"),
        ("runs", "state=happy", "state must be one of RUNNING, COMPLETED, FAILED, CANCELLED, UNKNOWN, got"),
        ("runs", "cursor=x", "cursor 'x' is not one that this server gave out"),
        ("runs", "limit=1001", "limit must be a number from 1 to 1000, got '1001'"),
        ("runs", "run=x", "unknown parameter 'run'"),
    ],
)
async def test_a_wrong_question_is_told(client, path, query, detail):
    """A parameter that is unknown, repeated or wrong is a 422 with one line that says what was expected."""
    response = await client.get(f"/runlog/v1/{path}?{query}")
    assert response.status_code == 422
    assert response.json()["detail"].startswith(detail)


# --- runs ---------------------------------------------------------------------------------------------


async def test_a_run_has_every_field(client, send):
    """A run is answered with all that its lines told."""
    await send(
        started(at=0, extra={"source": "s3"}, flow_run_name="owl", flow_name="etl", parent_flow_run_id="pf"),
        line(at=1, level=40, flow_run_id=FLOW),
        finished(at=2, state="FAILED", duration=1.5),
        line(at=3, flow_run_id=FLOW),
    )
    assert (await client.get("/runlog/v1/runs")).json() == {
        "runs": [
            {
                "id": FLOW,
                "kind": "flow",
                "name": "owl",
                "flow_name": "etl",
                "task_name": None,
                "flow_run_id": FLOW,
                "parent_flow_run_id": "pf",
                "parent_task_run_id": None,
                "state": "FAILED",
                "started": "2023-11-14T22:13:20.000000Z",
                "ended": "2023-11-14T22:13:22.000000Z",
                "duration_s": 1.5,
                "attempt": None,
                "lines": 4,
                "counts": {"DEBUG": 0, "INFO": 3, "WARNING": 0, "ERROR": 1, "CRITICAL": 0},
                "last_line": "2023-11-14T22:13:23.000000Z",
                "attributes": {"source": "s3"},
            }
        ],
        "next": None,
    }


async def test_a_task_run_has_every_field(client, send):
    """A task run names its flow run, its task and its attempt; one that is not over has no end."""
    await send(
        started(
            TASK,
            kind="task",
            flow_run_id=FLOW,
            flow_name="etl",
            task_name="extract",
            task_run_name="extract-1",
            attempt=2,
            parent_task_run_id="pt",
        )
    )
    (run,) = (await client.get("/runlog/v1/runs", params={"kind": "task"})).json()["runs"]
    assert run == {
        "id": TASK,
        "kind": "task",
        "name": "extract-1",
        "flow_name": "etl",
        "task_name": "extract",
        "flow_run_id": FLOW,
        "parent_flow_run_id": None,
        "parent_task_run_id": "pt",
        "state": "RUNNING",
        "started": "2023-11-14T22:13:20.000000Z",
        "ended": None,
        "duration_s": None,
        "attempt": 2,
        "lines": 1,
        "counts": {"DEBUG": 0, "INFO": 1, "WARNING": 0, "ERROR": 0, "CRITICAL": 0},
        "last_line": "2023-11-14T22:13:20.000000Z",
        "attributes": {},
    }


async def ids(client, **query):
    return [run["id"] for run in (await client.get("/runlog/v1/runs", params=query)).json()["runs"]]


async def test_runs_are_found(client, filled):
    """Kind, state, name and parent choose runs, newest first."""
    assert await ids(client) == [OTHER_FLOW, TASK, FLOW]
    assert await ids(client, kind="flow") == [OTHER_FLOW, FLOW]
    assert await ids(client, state="UNKNOWN", name="TRACT-9") == [TASK]
    assert await ids(client, parent=TASK) == [OTHER_FLOW]
    assert await ids(client, state="FAILED") == []


async def test_pages_of_runs_join(client, filled):
    """The cursor of each page leads to the next."""
    first = (await client.get("/runlog/v1/runs", params={"limit": 2})).json()
    second = (await client.get("/runlog/v1/runs", params={"limit": 2, "cursor": first["next"]})).json()
    assert [run["id"] for run in first["runs"] + second["runs"]] == [OTHER_FLOW, TASK, FLOW]
    assert second["next"] is None


async def test_a_run_comes_with_its_tree(client, filled):
    """What was opened in a run is in its children, and in theirs."""
    run = (await client.get(f"/runlog/v1/runs/{FLOW}")).json()
    (task,) = run["children"]
    (sub,) = task["children"]
    assert (run["id"], task["id"], sub["id"], sub["children"]) == (FLOW, TASK, OTHER_FLOW, [])
    assert list(run)[-1] == "children"


async def test_a_deep_tree_is_flattened_at_its_end(client, send):
    """A chain of a thousand flows has them all; from the hundredth level on they hang on one parent."""
    await send(
        *(
            line(at=n, flow_run_id=f"flow-{n:04}", parent_flow_run_id=f"flow-{n - 1:04}" if n else None)
            for n in range(1000)
        )
    )
    run = (await client.get("/runlog/v1/runs/flow-0000")).json()
    depth = 0
    while len(run["children"]) == 1:
        run = run["children"][0]
        depth += 1
    assert depth == MAX_TREE_DEPTH - 1
    assert [child["id"] for child in run["children"]] == [f"flow-{n:04}" for n in range(depth + 1, 1000)]


@pytest.fixture
async def named(send):
    """Three top-level flows, the newest with a sub-flow, two of one name."""
    await send(
        started("abcd1111-0000-4000-8000-000000000000", at=1, flow_run_name="owl"),
        started("abcd2222-0000-4000-8000-000000000000", at=2, flow_run_name="elk"),
        started("ffff3333-0000-4000-8000-000000000000", at=3, flow_run_name="owl"),
        started("eeee", at=4, flow_run_name="sub", parent_flow_run_id="ffff3333-0000-4000-8000-000000000000"),
        started("loose task", at=5, kind="task", task_run_name="with space"),
    )


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("latest", "ffff3333"),
        ("latest~0", "ffff3333"),
        ("latest~1", "abcd2222"),
        ("latest~2", "abcd1111"),
        ("abcd2222-0000-4000-8000-000000000000", "abcd2222"),
        ("ABCD2222", "abcd2222"),
        ("abcd1", "abcd1111"),
        ("elk", "abcd2222"),
        ("sub", "eeee"),
        ("eeee", "eeee"),
        ("with space", "loose task"),
        ("loose task", "loose task"),
    ],
)
async def test_a_run_is_meant_by_many_names(client, named, ref, expected):
    """An id, its beginning, a name and ``latest`` mean a run; ``latest`` counts flows that nothing opened."""
    response = await client.get(f"/runlog/v1/runs/{ref}")
    assert response.status_code == 200, response.text
    assert response.json()["id"].startswith(expected)


@pytest.mark.parametrize("ref", ["latest~3", "nobody", "abc", "9999", "latest~x", "%E2%98%83", "a" * 300])
async def test_a_run_that_nobody_knows_is_not_found(client, named, ref):
    """A reference that means no run is a 404 that repeats it."""
    response = await client.get(f"/runlog/v1/runs/{ref}")
    assert response.status_code == 404
    assert response.json()["detail"].startswith("no run '")
    assert len(response.json()["detail"]) < 250


@pytest.mark.parametrize(("ref", "expected"), [("owl", ["ffff", "abcd"]), ("abcd", ["abcd", "abcd"])])
async def test_an_ambiguous_reference_names_the_candidates(client, named, ref, expected):
    """A name or beginning that means several runs is a 409 that lists them, newest first."""
    response = await client.get(f"/runlog/v1/runs/{ref}")
    assert response.status_code == 409
    body = response.json()
    assert body["detail"] == f"'{ref}' may mean any of several runs"
    assert [candidate["id"][:4] for candidate in body["candidates"]] == expected
    assert body["candidates"][0].keys() == {"id", "name", "started"}


async def test_latest_is_a_name_where_no_flow_ran(client, send):
    """Without any flow run, ``latest`` can still be the name of a task run."""
    assert (await client.get("/runlog/v1/runs/latest")).status_code == 404
    await send(line(task_run_id="t", task_run_name="latest"))
    assert (await client.get("/runlog/v1/runs/latest")).json()["id"] == "t"


# --- receipts -----------------------------------------------------------------------------------------


async def test_a_receipt_counts_for_each_producer(client, send):
    """Stored, dropped and truncated lines of a run and what it opened are told; a loss is not complete."""
    await send(
        started(),
        line(flow_run_id=FLOW, task_run_id=TASK, truncated_bytes=1),
        finished(),
        dropped=[DropMarker(1, 2, "queue_full")],
    )
    await send(line(flow_run_id=OTHER_FLOW, parent_task_run_id=TASK), producer=OTHER_PRODUCER)
    receipt = (await client.get(f"/runlog/v1/runs/{FLOW}/receipt")).json()
    first, second = receipt.pop("producers")
    assert receipt == {
        "run_id": FLOW,
        "complete": False,
        "verdict": "not complete",
        "reasons": [
            f"2 lines dropped by producer {PRODUCER}: queue_full",
            f"producer {OTHER_PRODUCER} said neither goodbye nor how many lines there were: more may be on the way",
        ],
        "state": "COMPLETED",
        "stored": 4,
        "dropped": 2,
        "dropped_at_most": 2,
        "truncated": 1,
        "missing": 0,
        "removed": 0,
        "dropped_by_reason": {"queue_full": 2},
    }
    assert first == {
        "producer": PRODUCER,
        "first_seq": 0,
        "last_seq": 4,
        "stored": 3,
        "dropped": 2,
        "dropped_at_most": 2,
        "truncated": 1,
        "dropped_by_reason": {"queue_full": 2},
        "dropped_ranges": [{"first_seq": 1, "last_seq": 2, "count": 2, "reason": "queue_full"}],
        "possibly_dropped": 0,
        "possibly_dropped_ranges": [],
        "missing": 0,
        "missing_ranges": [],
        "goodbye": False,
        "expected": None,
        "arrived": None,
    }
    assert (second["producer"], second["stored"], second["dropped"]) == (OTHER_PRODUCER, 1, 0)


@pytest.mark.parametrize(("events", "complete"), [([], False), ([finished()], True)])
async def test_a_run_is_complete_once_it_ended(client, send, events, complete):
    """A run without losses is complete when its end has arrived."""
    await send(started(), *events)
    assert (await client.get(f"/runlog/v1/runs/{FLOW}/receipt")).json()["complete"] is complete


async def test_a_receipt_of_nobody_is_not_found(client):
    """A run that is not known has no receipt."""
    response = await client.get("/runlog/v1/runs/nobody/receipt")
    assert (response.status_code, response.json()) == (404, {"detail": "no run 'nobody'"})
