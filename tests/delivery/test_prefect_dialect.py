"""Lines told to a Prefect server: found out by what it can do, valid to the letter, read back as they were."""

from __future__ import annotations

import json
import logging
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from httpx import ConnectError
from prefect_environment import needs_prefect, prefect_server, run_prefect

import runlog
from runlog import delivery
from runlog._http import Client, MockTransport, Response
from runlog.delivery.batching import Batch
from runlog.delivery.prefect_dialect import MAX_LINES, Reply, encode_logs, read_reply
from runlog.delivery.producer import Producer
from runlog.delivery.retry import Verdict, judge
from runlog.delivery.transport import HTTPTransport
from runlog.handlers import APILogHandler
from runlog.records import DropMarker, ExceptionInfo, LogEvent

READER = Path(__file__).with_name("prefect_reader.py")
PRODUCER = Producer("0123456789abcdef0123", 1, b"{}")
RUN, TASK_RUN = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
SECOND = 1_000_000_000


def encoded(message="m", *, at=0, level=20, **fields):
    event = LogEvent(timestamp_ns=at * SECOND, level=level, name="app", message=message, **fields)
    return msgspec.json.encode(event)


def logs_of(*events, dropped=(), first_seq=0):
    return json.loads(encode_logs(Batch(first_seq, events, dropped)))


# --- what is sent -------------------------------------------------------------------------------------


def test_a_log_has_six_fields():
    """Extras, names and all else that a Prefect server would refuse stays behind."""
    event = encoded(
        "hello",
        at=1_700_000_000,
        level=25,
        flow_run_id=RUN,
        task_run_id=TASK_RUN,
        flow_run_name="f",
        task_name="t",
        attempt=2,
        event_name="runlog.run.started",
        attributes={"table": "orders"},
        trace_id="0" * 32,
    )
    assert logs_of(event) == [
        {
            "name": "app",
            "level": 25,
            "message": "hello",
            "timestamp": "2023-11-14T22:13:20.000000Z",
            "flow_run_id": RUN,
            "task_run_id": TASK_RUN,
        }
    ]


def test_a_traceback_ends_its_message():
    """An exception is told as Prefect's own handler tells it: below the message."""
    trace = "Traceback (most recent call last):\n  ...\nValueError: no\n"
    (log,) = logs_of(encoded("failed", exception=ExceptionInfo("ValueError", "no", trace)))
    assert log["message"] == "failed\n" + trace.rstrip("\n")


@pytest.mark.parametrize(("level", "told"), [(0, 0), (50, 50), (40_000, 32_767), (-(2**40), -32_768)])
def test_levels_fit(level, told):
    """A level that Prefect's database cannot hold is told as the nearest that it can."""
    assert logs_of(encoded(level=level))[0]["level"] == told


def test_a_run_without_a_uuid():
    """A run id that is no UUID would refuse the whole request: such a line is told without a run."""
    (log,) = logs_of(encoded(flow_run_id="nightly", task_run_id=None))
    assert log["flow_run_id"] is None
    assert log["task_run_id"] is None


def test_dropped_lines_are_told():
    """Where lines are missing, a line says how many and why, in the run that goes on there."""
    marked = logs_of(
        encoded("a", at=1, flow_run_id=RUN),
        encoded("b", at=2, flow_run_id=RUN),
        dropped=(DropMarker(1, 3, "queue_full"), DropMarker(5, 1, "rejected")),
    )
    assert [log["message"] for log in marked] == [
        "a",
        "3 lines were dropped here: queue_full",
        "b",
        "1 line was dropped here: rejected",
    ]
    assert {log["flow_run_id"] for log in marked} == {RUN}
    assert [log["timestamp"][17:19] for log in marked] == ["01", "02", "02", "02"]
    assert logs_of(dropped=(DropMarker(0, 7, "acknowledged_elsewhere"),)) == []
    assert logs_of(dropped=(DropMarker(0, 7, "queue_full"),))[0]["flow_run_id"] is None


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (201, b"null", Verdict.ACKED),
        (201, b"", Verdict.RETRY),
        (200, b"null", Verdict.RETRY),
        (201, b"<html>", Verdict.RETRY),
        (
            422,
            b'{"exception_message":"x","exception_detail":[{"loc":["body",0],"msg":"bad"}]}',
            Verdict.SPLIT,
        ),
        (422, b"<html>", Verdict.RETRY),
        (413, b"", Verdict.SPLIT),
        (401, b'{"exception_message":"Unauthorized"}', Verdict.RETRY),
        (500, b'{"exception_message":"Internal Server Error"}', Verdict.RETRY),
        (503, b"", Verdict.RETRY),
    ],
)
def test_answers(status, body, verdict):
    """Only Prefect's own "created, and nothing to say" counts as stored."""
    answer = read_reply(Reply(status, {"retry-after": "7"}, body), 9)
    assert judge(answer, last_seq=9) is verdict
    if status == 422 and verdict is Verdict.SPLIT:
        assert answer.detail == "HTTP 422 body.0: bad"


# --- who is spoken to ---------------------------------------------------------------------------------


class PrefectDouble:
    """Answers as a Prefect server does, as far as it is asked here, with CSRF protection if wanted."""

    def __init__(self, *, csrf=False):
        self.csrf = csrf
        self.asked = []
        self.logs = []
        self.is_runlog = False

    def __call__(self, request):
        path = request.url.path.removeprefix("/api")
        self.asked.append((request.method, path))
        if self.is_runlog and path == "/runlog/v1/batches":
            return Response(200, json={"acked": 10**9})
        if path == "/csrf-token":
            client = request.url.params["client"]
            return Response(200, json={"token": f"token of {client}", "client": client})
        if self.csrf and request.method == "POST":
            client = request.headers.get("Prefect-Csrf-Client")
            if request.headers.get("Prefect-Csrf-Token") != f"token of {client}":
                return Response(403, json={"detail": "Missing CSRF token."})
        if (request.method, path) == ("POST", "/logs/"):
            self.logs += json.loads(request.content)
            return Response(201, content=b"null")
        return Response(404, json={"detail": "Not Found"})


@pytest.fixture
def send_to():
    """Send a batch to a double."""
    with_clients = []

    def transport(double):
        client = Client(transport=MockTransport(double))
        with_clients.append(client)
        return HTTPTransport("http://prefect.example/api", client=client)

    yield transport
    for client in with_clients:
        client.close()


@pytest.mark.parametrize("csrf", [False, True])
def test_a_prefect_server_is_found_out(send_to, csrf):
    """It has no route for batches, and stores a list of no logs; after that it is asked no more."""
    double = PrefectDouble(csrf=csrf)
    transport = send_to(double)
    assert transport.dialect == "runlog"
    assert transport.send(PRODUCER, Batch(0, (encoded("one"),)), timeout=10).acked == 0
    assert transport.dialect == "prefect"
    found_out = len(double.asked)
    assert transport.send(PRODUCER, Batch(1, (encoded("two"), encoded("three"))), timeout=10).acked == 2
    assert double.asked[found_out:] == [("POST", "/logs/")]
    assert double.asked[:2] == [("POST", "/runlog/v1/batches"), ("GET", "/runlog/v1/status")]
    assert [log["message"] for log in double.logs] == ["one", "two", "three"]


def test_a_server_that_is_replaced(send_to, monkeypatch):
    """Once in a while a Prefect server is asked again, and a runlog server in its place gets batches."""
    double = PrefectDouble()
    transport = send_to(double)
    transport.send(PRODUCER, Batch(0, (encoded(),)), timeout=10)
    double.is_runlog = True
    monkeypatch.setattr(transport, "_prefect_until", 0.0)
    assert transport.send(PRODUCER, Batch(1, (encoded(),)), timeout=10).acked == 10**9
    assert transport.dialect == "runlog"
    assert len(double.logs) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Response(404, json={"detail": "Not Found"}),
        Response(404, text="<html>nothing here"),
        Response(405, text=""),
    ],
)
def test_a_server_that_is_neither(send_to, answer):
    """A wrong address keeps the lines and says what may be wrong with it."""
    transport = send_to(lambda request: answer)
    found = transport.send(PRODUCER, Batch(0, (encoded(),)), timeout=10)
    assert judge(found, last_seq=0) is Verdict.RETRY
    assert "ends in /api" in found.detail
    assert transport.dialect == "runlog"


@pytest.mark.parametrize("status", [401, 403])
def test_a_runlog_server_behind_a_wrong_route(send_to, status):
    """A server that knows our own routes is not taken for Prefect's because one of them fails."""

    def answer(request):
        return Response(404 if request.method == "POST" else status, json={"detail": "no"})

    transport = send_to(answer)
    assert transport.send(PRODUCER, Batch(0, (encoded(),)), timeout=10).status == 404
    assert transport.dialect == "runlog"


@pytest.fixture
def log_lines():
    """Log so many lines through a transport, and return what the handler's worker counted."""

    def log(transport, lines):
        handler = APILogHandler(service_name="test", transport=transport, shutdown_timeout=20.0)
        logger = logging.getLogger("test.prefect")
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        for line in lines:
            logger.info(line)
        handler.flush()
        (counted,) = [one for one in delivery.statistics() if one["target"] == transport.target]
        handler.close()
        return counted

    return log


def test_many_lines_go_in_parts(send_to, log_lines):
    """More lines than a Prefect server likes are halved, at once and in order, none of them twice."""
    double = PrefectDouble()
    lines = [f"line {number}" for number in range(5 * MAX_LINES)]
    counted = log_lines(send_to(double), lines)
    assert [log["message"] for log in double.logs] == lines
    assert sum(asked == ("POST", "/logs/") for asked in double.asked) > 5
    assert (counted["acked"], counted["exactly_once"]) == (len(lines) - 1, False)


def test_a_line_that_is_refused(send_to, log_lines):
    """The one line that a Prefect server refuses is counted and told; the others are stored, each once."""

    class Picky(PrefectDouble):
        def __call__(self, request):
            if request.url.path == "/api/logs/" and b"bad" in request.content:
                fault = {"loc": ["body", 0, "message"], "msg": "not that", "type": "x"}
                return Response(422, json={"exception_message": "Invalid", "exception_detail": [fault]})
            return super().__call__(request)

    double = Picky()
    lines = [f"line {number}" for number in range(20)]
    counted = log_lines(send_to(double), [*lines[:7], "bad", *lines[7:]])
    told = [log["message"] for log in double.logs]
    assert told == [*lines[:7], "1 line was dropped here: rejected", *lines[7:]]
    assert counted["dropped"] == {"rejected": 1}


def test_a_lost_answer(send_to, log_lines):
    """A batch whose answer is lost is sent again: a Prefect server then has it twice, and nothing is missing."""

    class Forgetful(PrefectDouble):
        def __call__(self, request):
            answer = super().__call__(request)
            is_first = self.logs and not getattr(self, "has_forgotten", False)
            if is_first:
                self.has_forgotten = True
                raise ConnectError("cut off")
            return answer

    double = Forgetful()
    log_lines(send_to(double), ["one"])
    assert [log["message"] for log in double.logs] == ["one", "one"]


# --- a real one ---------------------------------------------------------------------------------------


@needs_prefect
def test_a_real_prefect_server(tmp_path):
    """What runlog's handler tells a real server is read back by Prefect's own client as it was logged."""
    logger = logging.getLogger("runlog")
    logger.setLevel(logging.DEBUG)
    before = datetime.now(UTC)
    with prefect_server(tmp_path / "prefect") as url:
        handler = APILogHandler(api_url=url, shutdown_timeout=60.0)
        logger.addHandler(handler)
        with runlog.flow_run("nightly", source="s3") as run:
            run.logger.debug("starting", extra={"table": "orders", "deep": {"a": [1]}})
            with runlog.task_run("load") as load:
                load.logger.warning("grüße\nsecond line")
                try:
                    raise ValueError("no")
                except ValueError:
                    load.logger.exception("failed")
            run.logger.log(40_000, "louder than Prefect's database allows")
            run.logger.info("x" * 1_200_000)
            for number in range(1200):
                run.logger.info("line %d", number)
        logging.getLogger("runlog.flow_runs").info(
            "of a run with a name for an id", extra={"flow_run_id": "no-uuid"}
        )
        assert runlog.flush(60)
        (statistics,) = [one for one in delivery.statistics() if one["target"] == url]
        handler.close()
        result = run_prefect(url, tmp_path / "client", READER, run.id)
        assert result.returncode == 0, result.stderr
        everything = run_prefect(url, tmp_path / "client", READER)
    logs = json.loads(result.stdout)
    assert statistics["queued"] == 0
    assert statistics["dropped"] == {}
    assert statistics["exactly_once"] is False
    told = [(log["level"], log["message"], log["task_run_id"]) for log in logs]
    assert [one for one in told if one[1].startswith("line ")] == [
        (20, f"line {number}", None) for number in range(1200)
    ]
    assert (10, "starting", None) in told
    assert (30, "grüße\nsecond line", str(load.id)) in told
    assert (32_767, "louder than Prefect's database allows", None) in told
    failed = next(message for _, message, task in told if message.startswith("failed") and task)
    assert failed.endswith("ValueError: no")
    cut = next(message for _, message, _ in told if message.startswith("xxx"))
    assert cut.endswith("... [truncated]")
    assert len(cut) <= 1_000_000
    assert {log["name"] for log in logs} == {"runlog.flow_runs", "runlog.task_runs"}
    times = [datetime.fromisoformat(log["timestamp"]) for log in logs]
    assert all(before <= at <= datetime.now(UTC) + timedelta(seconds=1) for at in times)
    unknown = [log for log in json.loads(everything.stdout) if "name for an id" in log["message"]]
    assert [log["flow_run_id"] for log in unknown] == [None]
