"""Tests of `runlog.client.reader` against a transport that answers what the test says."""

from __future__ import annotations

import base64
import email.utils
import json
import socket
import time
from datetime import UTC, datetime

import pytest

import runlog.client
from runlog._http import Client, MockTransport, Response, TransportError
from runlog.client.addresses import without_password
from runlog.client.reader import LogReader, ServerHealth
from runlog.discovery import publish_local_server
from runlog.exceptions import (
    AmbiguousRunError,
    APIError,
    QueryError,
    RunNotFoundError,
    ServerUnreachableError,
)
from runlog.settings import get_current_settings, temporary_settings

URL = "http://server.test/api"


class Server:
    """Answers requests with what ``answers`` holds, first in first out, and keeps the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def queries(self):
        return [dict(request.url.params) for request in self.requests]


@pytest.fixture
def reading():
    """A function that makes a reader of a server with these answers."""
    clients = []

    def make(*answers, **options):
        server = Server(*answers)
        client = Client(transport=MockTransport(server))
        clients.append(client)
        return LogReader(URL, client=client, **options), server

    yield make
    for client in clients:
        client.close()


def page(key, items, cursor=None):
    return Response(200, json={key: items, "next": cursor})


def test_lines_come_page_by_page(reading):
    """The cursor of one page asks for the next, and the filters stay."""
    reader, server = reading(
        page("logs", [{"seq": 0}, {"seq": 1}], "abc"), page("logs", [], "def"), page("logs", [{"seq": 2}])
    )
    assert [log["seq"] for log in reader.logs(run="r", level="ERROR")] == [0, 1, 2]
    assert server.queries == [
        {"run": "r", "level": "ERROR", "order": "asc", "limit": "1000"},
        {"run": "r", "level": "ERROR", "order": "asc", "limit": "1000", "cursor": "abc"},
        {"run": "r", "level": "ERROR", "order": "asc", "limit": "1000", "cursor": "def"},
    ]


def test_nothing_is_asked_before_it_is_needed(reading):
    """A page is asked for when the one before is used up, and not sooner."""
    reader, server = reading(page("logs", [{"seq": 0}, {"seq": 1}], "abc"), page("logs", [{"seq": 2}]))
    lines = reader.logs()
    assert server.requests == []
    next(lines)
    next(lines)
    assert len(server.requests) == 1
    next(lines)
    assert len(server.requests) == 2


def test_a_limit_is_spread_over_pages(reading):
    """No more is asked for than is still wanted, and nothing once it is there."""
    reader, server = reading(page("logs", [{}] * 1000, "abc"), page("logs", [{}] * 500, "def"))
    assert len(list(reader.logs(limit=1500))) == 1500
    assert [query["limit"] for query in server.queries] == ["1000", "500"]
    assert list(reader.logs(limit=0)) == []
    assert len(server.requests) == 2


def test_every_filter_has_its_parameter(reading):
    """All filters of lines and runs travel under the names that the server knows, times as RFC 3339."""
    reader, server = reading(page("logs", []), page("runs", []))
    moment = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
    list(
        reader.logs(
            run="r",
            flow_run_id="f",
            task_run_id="t",
            level=25,
            search="a -b",
            task="extract",
            logger="etl.*",
            since=moment,
            until=moment,
            order="desc",
        )
    )
    list(reader.runs(kind="task", state="FAILED", name="x", parent="p"))
    assert server.queries == [
        {
            "run": "r",
            "flow_run_id": "f",
            "task_run_id": "t",
            "level": "25",
            "search": "a -b",
            "task": "extract",
            "logger": "etl.*",
            "since": "2026-11-21T10:00:00+00:00",
            "until": "2026-11-21T10:00:00+00:00",
            "order": "desc",
            "limit": "1000",
        },
        {"kind": "task", "state": "FAILED", "name": "x", "parent": "p", "limit": "200"},
    ]


def test_a_time_without_zone_is_refused(reading):
    """A naive time would be read in the server's zone; the mistake is ours to tell."""
    reader, _ = reading()
    with pytest.raises(QueryError, match="with a zone"):
        reader.logs(since=datetime(2026, 11, 21))  # noqa: DTZ001 - the mistake


def test_a_run_is_asked_for_by_its_reference(reading):
    """What a reference holds cannot change the path."""
    reader, server = reading(Response(200, json={"id": "1"}))
    assert reader.run("latest~1?x=#é") == {"id": "1"}
    assert server.requests[0].url.raw_path == b"/api/runlog/v1/runs/latest~1%3Fx%3D%23%C3%A9"


@pytest.mark.parametrize("name", ["s3/orders", ".."])
def test_a_name_that_no_path_can_hold_is_looked_up(reading, name):
    """Such a name becomes an id by way of the list of runs, where others that contain it do not count."""
    listed = page("runs", [{"id": "1", "name": f"x{name}"}, {"id": "2", "name": name}])
    reader, server = reading(listed, Response(200, json={"id": "2"}))
    assert reader.run(name) == {"id": "2"}
    assert server.queries[0]["name"] == name
    assert server.requests[1].url.path == "/api/runlog/v1/runs/2"


def test_such_a_name_may_be_missing_or_repeated(reading):
    """It ends as any other name does: not found, or ambiguous."""
    reader, server = reading(
        page("runs", []), page("runs", [{"id": "1", "name": "a/b"}, {"id": "2", "name": "a/b"}])
    )
    with pytest.raises(RunNotFoundError, match="'a/b'"):
        reader.run("a/b")
    with pytest.raises(AmbiguousRunError) as caught:
        reader.run("a/b")
    assert caught.value.candidates == ("1", "2")
    with pytest.raises(RunNotFoundError):
        reader.run("")
    assert len(server.requests) == 2, "the empty name costs no request"


def test_receipt_and_status_are_what_the_server_says(reading):
    """Both come back unchanged."""
    reader, server = reading(Response(200, json={"stored": 3}), Response(200, json={"version": "1"}))
    assert reader.receipt("r/1") == {"stored": 3}
    assert reader.status() == {"version": "1"}
    assert server.requests[0].url.raw_path == b"/api/runlog/v1/runs/r%2F1/receipt"


def test_health_tells_version_and_clock(reading):
    """The clock's skew comes from the Date header; without one it is not known."""
    ahead = email.utils.formatdate(time.time() + 90, usegmt=True)
    body = {"version": "1.2"}
    reader, _ = reading(
        Response(200, json=body, headers={"date": ahead}),
        Response(200, json=body),
        Response(200, json=body, headers={"date": "noon"}),
    )
    health = reader.health()
    assert isinstance(health, ServerHealth)
    assert health.version == "1.2"
    assert health.round_trip_s >= 0
    assert health.clock_skew_s == pytest.approx(90, abs=2)
    assert reader.health().clock_skew_s is None
    assert reader.health().clock_skew_s is None


def test_not_found_is_an_error_of_its_own(reading):
    """404 with an explanation means that there is no such run."""
    reader, _ = reading(Response(404, json={"detail": "no run 'x'"}), Response(404, json={"other": 1}))
    with pytest.raises(RunNotFoundError, match="no run 'x'") as caught:
        reader.run("x")
    assert caught.value.status == 404
    with pytest.raises(RunNotFoundError, match="no run 'x'"):
        reader.receipt("x")


def test_ambiguity_names_the_candidates(reading):
    """409 for a run lists who may be meant, and keeps the list short."""
    candidates = [{"id": f"aaaa{n}", "name": "etl", "started": "2026"} for n in range(7)]
    reader, _ = reading(
        Response(409, json={"detail": "several", "candidates": candidates}), Response(409, json={})
    )
    with pytest.raises(AmbiguousRunError, match=r"aaaa0 \(etl, 2026\).* and 2 more") as caught:
        reader.run("aaaa")
    assert caught.value.candidates[6] == "aaaa6"
    with pytest.raises(AmbiguousRunError):
        reader.run("aaaa")


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_query_is_the_askers_mistake(reading, status):
    """400 and 422 carry the server's explanation."""
    reader, _ = reading(Response(status, json={"detail": "level: expected ..."}), Response(status))
    with pytest.raises(QueryError, match="level: expected"):
        list(reader.logs())
    with pytest.raises(QueryError, match=f"HTTP {status}"):
        list(reader.logs())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_name_the_settings(reading, status):
    """The remedy is in the message, the credentials are not."""
    reader, server = reading(
        Response(status, json={"exception_message": "Unauthorized"}),
        headers={"Authorization": "Bearer s3cret"},
    )
    with pytest.raises(APIError, match="PREFECT_API_AUTH_STRING") as caught:
        reader.status()
    assert caught.value.status == status
    assert "s3cret" not in str(caught.value)
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "answer",
    [
        Response(404, json={"detail": "Not Found"}),
        Response(404, text="<html>no such page</html>"),
        Response(302, headers={"location": "http://elsewhere.test"}),
        Response(200, text="<html>welcome</html>"),
        Response(200, json=[1]),
        Response(200, json={"hello": "world"}),
    ],
)
@pytest.mark.parametrize("question", ["logs", "run", "receipt", "status", "health"])
def test_something_else_than_a_runlog_server(reading, answer, question):
    """Another server's answer is told from an answer of ours, and no redirection is followed."""
    answers = [Response(answer.status_code, content=answer.content, headers=answer.headers)]
    if answer.status_code == 404:  # then it is asked whether it is Prefect's
        answers.append(Response(404, json={"detail": "Not Found"}))
    reader, server = reading(*answers)
    ask = {
        "logs": lambda: list(reader.logs()),
        "run": lambda: reader.run("abcd"),
        "receipt": lambda: reader.receipt("abcd"),
        "status": reader.status,
        "health": reader.health,
    }[question]
    if answer.content == b'{"hello":"world"}' and question in {"run", "receipt", "status"}:
        ask()  # an object is all that these can tell
        return
    with pytest.raises(APIError, match="not the API of a runlog server"):
        ask()
    assert server.answers == []


def test_a_prefect_server_is_told_as_such(reading):
    """Who reads from a Prefect server learns what reads there."""
    reader, _ = reading(Response(404, json={"detail": "Not Found"}), Response(200, json="3.8.8"))
    with pytest.raises(APIError, match=r"is a Prefect server.* prefect flow-run logs"):
        reader.receipt("abcd")


def test_other_errors_carry_status_and_detail(reading):
    """Whatever else the server answers comes with its status."""
    reader, _ = reading(Response(503, json={"detail": "the database is locked"}))
    with pytest.raises(APIError, match="HTTP 503 the database is locked") as caught:
        reader.status()
    assert caught.value.status == 503


def test_no_answer_names_address_and_remedy(reading):
    """A server that does not answer is unreachable, whatever the transport's reason."""
    reader, _ = reading(TransportError("connection reset"), TransportError(""))
    with pytest.raises(ServerUnreachableError, match=r"server\.test.*connection reset.*runlog server start"):
        reader.status()
    with pytest.raises(ServerUnreachableError, match="TransportError"):
        reader.status()


def test_a_closed_port_is_unreachable():
    """The same with a real connection; a password in the address is not shown."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        port = closed.getsockname()[1]
        with (
            LogReader(f"http://me:s3cret@127.0.0.1:{port}/api", timeout=5) as reader,
            pytest.raises(ServerUnreachableError, match=f"http://127.0.0.1:{port}/api") as caught,
        ):
            reader.status()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(reader)
    reader.close()


@pytest.mark.parametrize(
    "url", ["nonsense", "http://[bad/api", "ftp://host/api", "http://host:port/api", "http://\ud800/"]
)
def test_an_address_that_is_none(url):
    """A mistyped address is told as such."""
    with LogReader(url, timeout=5) as reader, pytest.raises(ServerUnreachableError) as caught:
        reader.status()
    assert "log server" in str(caught.value)


def test_the_settings_name_the_server(tmp_path):
    """PREFECT_API_URL comes first, an argument before it, and the credentials go with it."""
    with temporary_settings(
        {
            "PREFECT_API_URL": "http://configured.test/api/",
            "PREFECT_API_KEY": "key-1234",
            "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Team": "data"}',
        }
    ):
        reader = LogReader.from_settings()
        assert reader.api_url == "http://configured.test/api"
        assert reader._headers == {"Authorization": "Bearer key-1234", "X-Team": "data"}
        assert LogReader.from_settings("http://given.test/api").api_url == "http://given.test/api"
    with temporary_settings({"PREFECT_API_URL": URL, "PREFECT_API_AUTH_STRING": "me:pass"}):
        expected = "Basic " + base64.b64encode(b"me:pass").decode()
        assert LogReader.from_settings()._headers == {"Authorization": expected}


def test_without_settings_the_local_server_is_found():
    """With no address set, the server that runs on this machine is read; without one, the remedy is named."""
    with pytest.raises(ServerUnreachableError, match="runlog server start"):
        LogReader.from_settings()
    with publish_local_server(get_current_settings().home, "http://127.0.0.1:4999/api"):
        assert LogReader.from_settings().api_url == "http://127.0.0.1:4999/api"


def test_the_package_loads_its_names_when_asked():
    """`runlog.client.LogReader` is the reader; a wrong name is an AttributeError."""
    assert runlog.client.LogReader is LogReader
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runlog.client.nonsense


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a:b@host:1/api", "http://host:1/api"),
        ("http://host/api@x", "http://host/api@x"),
        ("http://host", "http://host"),
        ("nonsense@here", "nonsense@here"),
    ],
)
def test_passwords_are_cut_from_addresses(url, shown):
    """Only what stands before the host is cut."""
    assert without_password(url) == shown


def test_json_is_kept_as_it_is(reading):
    """Numbers, nulls and texts of an answer come through unchanged."""
    line = {"level": 20, "attempt": None, "attributes": {"x": 1.5, "y": ["é", True]}}
    reader, _ = reading(Response(200, content=json.dumps({"logs": [line], "next": None})))
    assert list(reader.logs()) == [line]
