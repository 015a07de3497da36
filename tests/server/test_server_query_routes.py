"""Expressions, pages both ways, lines around one, counts and histograms over HTTP."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import (
    FLOW,
    OTHER_FLOW,
    OTHER_PRODUCER,
    PRODUCER,
    START,
    TASK,
    batch,
    finished,
    line,
    started,
)

from runlog._http import ASGITransport, AsyncClient
from runlog.records import event_id
from runlog.server.app import create_app
from runlog.server.counting import WIDTHS_NS, choose_width
from runlog.server.principal import Principal
from runlog.server.query import LogQuery, encode_cursor
from runlog.server.state import Limits
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.restricted import RestrictedStorage
from runlog.server.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request, tmp_path):
    storage = MemoryStorage() if request.param == "memory" else SQLiteStorage(tmp_path / "runlog.db")
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
async def filled(send):
    """Ten lines a second apart, "0" to "9", in two runs and of two levels."""
    await send(
        *(
            line(
                str(n),
                at=n,
                level=40 if n % 3 == 0 else 20,
                name="app.db" if n < 4 else "app",
                flow_run_id=FLOW if n % 2 else OTHER_FLOW,
                flow_name="odd" if n % 2 else "even",
                task_name="extract" if n == 5 else None,
                attributes={"n": n},
            )
            for n in range(10)
        )
    )


async def messages(client, **query):
    response = await client.get("/runlog/v1/logs", params=query)
    assert response.status_code == 200, response.text
    return "".join(log["message"] for log in response.json()["logs"])


# --- expressions --------------------------------------------------------------------------------------


async def test_an_expression_is_one_filter_among_others(client, filled):
    """``query`` and the other parameters must all hold."""
    assert await messages(client, query="n>3 n<=6") == "456"
    assert await messages(client, query="n>3 n<=6", level="error") == "6"
    assert await messages(client, query="flow:odd or level>=error", run=OTHER_FLOW, order="desc") == "60"
    assert await messages(client, query="-logger:app.* or task:extract") == "5"
    assert await messages(client, query="since:2023-11-14T23:13:28", timezone="Europe/Paris") == "89"
    assert await messages(client, query="run:1111") == "13579"
    assert await messages(client, query="") == "0123456789"


async def test_a_wrong_expression_is_a_422_with_the_place(client):
    """The answer says what is wrong in one line, and where as a number."""
    for route in ("logs", "logs/counts", "logs/histogram"):
        response = await client.get(f"/runlog/v1/{route}", params={"query": "a level>=wurst"})
        assert response.status_code == 422
        answer = response.json()
        assert answer["position"] == 9
        assert answer["detail"].startswith("expected a number or one of CRITICAL,")
    response = await client.get("/runlog/v1/logs", params={"query": "a", "timezone": "../../etc"})
    assert response.json() == {
        "detail": "timezone must be a name such as UTC or Europe/Paris, got '../../etc'"
    }


# --- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_lead_there_and_back(client, filled, order):
    """Following ``next`` to the end and ``previous`` to the beginning gives the same pages."""
    pages, cursor = [], None
    while True:
        query = {"order": order, "limit": 4} | ({"cursor": cursor} if cursor else {})
        answer = (await client.get("/runlog/v1/logs", params=query)).json()
        pages.append(answer)
        cursor = answer["next"]
        if cursor is None:
            break
    texts = ["".join(log["message"] for log in page["logs"]) for page in pages]
    assert texts == (["0123", "4567", "89"] if order == "asc" else ["9876", "5432", "10"])
    assert pages[0]["previous"] is None
    back, cursor = [], pages[-1]["previous"]
    while cursor is not None:
        query = {"order": order, "limit": 4, "cursor": cursor}
        answer = (await client.get("/runlog/v1/logs", params=query)).json()
        back.append("".join(log["message"] for log in answer["logs"]))
        cursor = answer["previous"]
        assert answer["next"] is not None
    assert back == texts[-2::-1]


async def test_a_cursor_of_another_direction_is_refused(client):
    """Only the word that this server writes into its tokens is one."""
    response = await client.get("/runlog/v1/logs", params={"cursor": encode_cursor((1, 1, 1, "next"))})
    assert response.status_code == 422


async def test_lines_around_one_are_found(client, filled):
    """A line comes with those before and behind it that meet the rest of the query."""
    five = str(event_id(PRODUCER, 5))
    assert await messages(client, around=five, before=2, after=1) == "3456"
    assert await messages(client, around=five, before=2, after=1, run=FLOW) == "1357"
    assert await messages(client, around=five, before=9, after=9, query="level>=error") == "03569"
    assert await messages(client, around=five) == "0123456789"
    answer = (await client.get("/runlog/v1/logs", params={"around": five, "before": 1, "after": 0})).json()
    assert await messages(client, cursor=answer["next"]) == "6789"
    assert await messages(client, cursor=answer["previous"]) == "0123"


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ({"around": str(event_id(OTHER_PRODUCER, 5))}, 404, "no line"),
        ({"around": "x"}, 422, "around must be the id of a line, got 'x'"),
        ({"around": FLOW}, 422, "around must be the id of a line"),
        ({"around": str(event_id(PRODUCER, 5)), "limit": "5"}, 422, "limit does not go with around"),
        ({"around": str(event_id(PRODUCER, 5)), "before": "1001"}, 422, "before must be a number from 0 to"),
        ({"before": "3"}, 422, "before goes with around"),
    ],
)
async def test_wrong_questions_about_neighbours_are_told(client, filled, query, status, detail):
    """What is unknown is 404, what makes no sense 422."""
    response = await client.get("/runlog/v1/logs", params=query)
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail)


# --- counts -------------------------------------------------------------------------------------------


async def counts(client, **query):
    response = await client.get("/runlog/v1/logs/counts", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def levels(**found):
    return {"DEBUG": 0, "INFO": 0, "WARNING": 0, "ERROR": 0, "CRITICAL": 0} | found


async def test_lines_are_counted_by_level(client, filled):
    """Counts are of all that match, whatever a page would hold."""
    assert await counts(client) == {"lines": 10, "counts": levels(INFO=6, ERROR=4)}
    assert await counts(client, query="n>=3", run=FLOW) == {"lines": 4, "counts": levels(INFO=2, ERROR=2)}
    assert await counts(client, query="nothing") == {"lines": 0, "counts": levels()}


async def test_lines_are_counted_by_group(client, filled):
    """Groups come with the most lines first; lines without a task are a group as well."""
    found = await counts(client, by="logger")
    assert found["groups"] == [
        {"logger": "app", "lines": 6, "counts": levels(INFO=4, ERROR=2)},
        {"logger": "app.db", "lines": 4, "counts": levels(INFO=2, ERROR=2)},
    ]
    assert found["groups_left_out"] == 0
    found = await counts(client, by="task")
    assert [(group["task"], group["lines"]) for group in found["groups"]] == [(None, 9), ("extract", 1)]
    found = await counts(client, by="flow", query="n<3")
    assert [(group["flow"], group["lines"]) for group in found["groups"]] == [("even", 2), ("odd", 1)]
    response = await client.get("/runlog/v1/logs/counts", params={"by": "colour"})
    assert response.json()["detail"] == "by must be one of logger, task, flow, got 'colour'"


async def histogram(client, **query):
    response = await client.get("/runlog/v1/logs/histogram", params=query)
    assert response.status_code == 200, response.text
    found = response.json()
    return found["width_s"], [(b["start"], b["lines"], b["counts"]["ERROR"]) for b in found["buckets"]]


async def test_lines_are_counted_by_time(client, filled):
    """Steps begin at whole multiples of their width, and those without lines are there as well."""
    assert await histogram(client, buckets=7) == (
        2.0,
        [
            ("2023-11-14T22:13:20.000000Z", 2, 1),
            ("2023-11-14T22:13:22.000000Z", 2, 1),
            ("2023-11-14T22:13:24.000000Z", 2, 0),
            ("2023-11-14T22:13:26.000000Z", 2, 1),
            ("2023-11-14T22:13:28.000000Z", 2, 1),
        ],
    )
    width, buckets = await histogram(client, query="n=1 or n=9", buckets=10)
    assert (width, [lines for _, lines, _ in buckets]) == (1.0, [1, 0, 0, 0, 0, 0, 0, 0, 1])
    width, buckets = await histogram(
        client, since="2023-11-14T22:13:00Z", until="2023-11-14T22:14:00Z", buckets=7
    )
    assert (width, [lines for _, lines, _ in buckets]) == (10.0, [0, 0, 10, 0, 0, 0, 0])
    assert await histogram(client, query="nothing") == (None, [])
    assert (await client.get("/runlog/v1/logs/histogram", params={"buckets": 6})).status_code == 422


async def test_times_before_the_epoch_are_counted_where_they_belong(client, send):
    """A step begins before its lines on both sides of 1970, and far from it."""
    await send(*(line(str(n), at=n - 1_700_000_000) for n in (-3, -2, -1, 0, 1)))
    width, buckets = await histogram(client, buckets=10)
    assert width == 0.5
    assert [(start[11:23], lines) for start, lines, _ in buckets if lines] == [
        ("23:59:57.000", 1),
        ("23:59:58.000", 1),
        ("23:59:59.000", 1),
        ("00:00:00.000", 1),
        ("00:00:01.000", 1),
    ]
    await send(line("far", at=-10_900_000_000), line("late", at=7_500_000_000))
    width, buckets = await histogram(client, buckets=7)
    assert sum(lines for _, lines, _ in buckets) == 7
    assert len(buckets) <= 7


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(7, 1000))
def test_a_width_makes_few_enough_steps(one, other, most):
    """The steps of the chosen width are at most as many as asked for, and of the next shorter one too many."""
    first, last = min(one, other), max(one, other)
    width = choose_width(first, last, most)
    assert last // width - first // width + 1 <= most
    shorter = [step for step in WIDTHS_NS if step < width]
    assert not shorter or last // shorter[-1] - first // shorter[-1] + 1 > most


async def test_a_bound_view_counts_what_it_sees(storage, filled):
    """Neither a count nor a histogram nor a line's neighbours tell of lines of another run."""
    view = RestrictedStorage(storage, Principal("k", frozenset({"read"}), flow_run_id=FLOW))
    everything = LogQuery()
    assert sum(count.lines for count in await view.count_lines(everything, "flow")) == 5
    assert {count.group for count in await view.count_lines(everything, "flow")} == {"odd"}
    found = await view.read_histogram(everything, max_buckets=60)
    assert sum(count.lines for count in found.counts) == 5
    assert (await view.read_line(PRODUCER, 5)).event.message == "5"
    assert await view.read_line(PRODUCER, 4) is None


# --- runs ---------------------------------------------------------------------------------------------


async def test_runs_are_searched(client, send):
    """States, names, flows, tasks, times and attempts choose runs, and all must hold."""
    await send(
        started("aaaa-1", at=1, flow_run_name="Owl", flow_name="etl"),
        finished("aaaa-1", at=2, flow_run_name="Owl", flow_name="etl"),
        started("bbbb-2", at=3, flow_run_name="dog", flow_name="ETL weekly", attempt=2),
        finished("bbbb-2", at=4, state="FAILED", flow_run_name="dog", flow_name="ETL weekly"),
        started("cccc-3", at=5, kind="task", flow_run_id="bbbb-2", task_run_name="load-1", task_name="load"),
    )

    async def found(**query):
        response = await client.get("/runlog/v1/runs", params=query)
        assert response.status_code == 200, response.text
        return [run["id"][0] for run in response.json()["runs"]]

    assert await found() == ["c", "b", "a"]
    assert await found(state="RUNNING,FAILED") == ["c", "b"]
    assert await found(search="etl") == ["b", "a"]
    assert await found(search="OWL") == ["a"]
    assert await found(search="load", kind="task") == ["c"]
    assert await found(search="bbbb") == ["b"]
    assert await found(flow="etl") == ["a"]
    assert await found(task="load") == ["c"]
    assert await found(since="2023-11-14T22:13:23Z") == ["c", "b"]
    assert await found(until="2023-11-14T22:13:23Z") == ["b", "a"]
    assert await found(attempt=2) == ["b"]
    assert await found(top_level="true") == ["b", "a"]
    assert await found(state="FAILED", search="owl") == []
    response = await client.get("/runlog/v1/runs", params={"state": "FAILED,happy"})
    assert response.status_code == 422


# --- limits -------------------------------------------------------------------------------------------


async def test_a_question_that_takes_too_long_is_given_up(tmp_path, client, storage, send):
    """The answer is 503 with the reason, soon, and the next question is answered."""
    await send(*(line(f"{n} " + "ab" * 500, at=n) for n in range(3000)))
    storage.max_query_s = 0.0001
    response = await client.get("/runlog/v1/logs", params={"query": r"/(a|b)+c/ or /[ab]{9}c/ or x~y"})
    assert response.status_code == 503
    assert response.json()["detail"].startswith("the query took longer than 0.0001 s and was given up")
    assert "retry-after" not in response.headers
    storage.max_query_s = 10
    assert await messages(client, limit=1) == "0 " + "ab" * 500


async def test_the_limit_of_a_question_is_a_setting(tmp_path):
    """`Limits` says how long a question may take."""
    storage = MemoryStorage()
    create_app(storage, limits=Limits(max_query_s=3.5))
    assert storage.max_query_s == 3.5


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """Ask a server over SQLite that lives as long as the module."""
    storage = SQLiteStorage(tmp_path_factory.mktemp("fuzz") / "runlog.db")
    app = create_app(storage)
    with asyncio.Runner() as runner:
        runner.run(storage.open())
        events = [
            started(extra={"source": "s3"}),
            *(line(f"line {n}", at=n, task_run_id=TASK, attributes={"a": {"b": n}}) for n in range(50)),
            finished(at=60),
        ]
        runner.run(storage.append(batch(*events), observed_ns=START))
        client = AsyncClient(transport=ASGITransport(app), base_url="http://test/api")
        yield lambda path, **query: runner.run(client.get(f"/runlog/v1/{path}", params=query))
        runner.run(client.aclose())
        runner.run(storage.close())


pieces = st.sampled_from(
    (
        *(
            "level",
            "a.b",
            "task",
            "run",
            "since",
            "has",
            "message",
            '"x y"',
            "10m",
            "line",
            "5",
            "é",
            "🦉",
            "%",
        ),
        *(":", "=", "!=", ">", "~", " ", "or", "not", "(", ")", "-", '"', "\\", "\0", "'--", "*"),
        *("/a+/", "^(a|b)*$", "1e999"),
    )
)
texts = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=40)


@given(
    path=st.sampled_from(["logs", "logs/counts", "logs/histogram"]),
    query=st.fixed_dictionaries(
        {"query": texts},
        optional={
            "timezone": st.sampled_from(["UTC", "Europe/Paris"]) | st.text(max_size=10),
            "around": st.sampled_from([str(event_id(PRODUCER, 3)), FLOW]) | st.text(max_size=10),
            "before": st.integers(-1, 5).map(str),
            "by": st.sampled_from(["logger", "task", "x"]),
            "buckets": st.integers(5, 20).map(str),
            "run": st.sampled_from([FLOW, "x"]),
        },
    ),
)
@settings(max_examples=300, deadline=None)
def test_odd_expressions_are_never_our_fault(fuzzed, path, query):
    """Whatever is asked is answered, or refused with one line and, of an expression, a place."""
    response = fuzzed(path, **query)
    assert response.status_code in {200, 404, 422}, response.text
    if response.status_code == 422:
        answer = response.json()
        assert "\n" not in answer["detail"]
        assert 0 <= answer.get("position", 0) <= len(query["query"])
