"""Tests of `runlog.client.subscriber` and its twin: real servers, and scripted ones where a server must misbehave."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime

import pytest
import trustme
from live_servers import (
    ANY_TIME,
    FLOW,
    LONG_AGO,
    OTHER_FLOW,
    TASK,
    Sender,
    finished,
    line,
    prefect_log,
    says,
    scripted_server,
    started,
)

import runlog.client
from runlog.client import (
    Gap,
    Heartbeat,
    LogLine,
    LogReader,
    LogsSubscriber,
    RunReceipt,
    get_logs_subscriber,
    get_sync_logs_subscriber,
    logs_out_socket_from_api_url,
)
from runlog.client.connecting import Door
from runlog.client.following import Wish
from runlog.client.sync_subscriber import SyncLogsSubscriber
from runlog.exceptions import APIError, QueryError, ServerUnreachableError
from runlog.server.app import TLS, BackgroundServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def server():
    with BackgroundServer() as server:
        yield server


@pytest.fixture
def sender(server):
    with Sender(server.url) as sender:
        yield sender


def subscriber(url, *, attempts=3, clean=False, heartbeat=5.0, pause=0.0, home=None, token=None, **wish):
    """One that does not wait long before it comes back."""
    return LogsSubscriber(
        Door(home, url, token),
        Wish(**wish),
        reconnection_attempts=attempts,
        reconnect_on_clean_close=clean,
        heartbeat=heartbeat,
        pause=lambda _attempt: pause,
    )


async def take(following, count):
    async with asyncio.timeout(ANY_TIME):
        return [await anext(following) for _ in range(count)]


async def messages(following, count):
    return [each.message for each in await take(following, count)]


# --- lines --------------------------------------------------------------------------------------------


async def test_what_is_stored_after_entering_comes(server, sender):
    """With its fields, extras and exception among them; what was stored before does not."""
    sender.send(line("before"))
    async with get_logs_subscriber(api_url=server.url) as following:
        assert following.protocol == "runlog"
        sender.send(
            line("after", level=40, flow_run_id=FLOW, task_run_id=TASK, attributes={"table": "orders"})
        )
        (found,) = await take(following, 1)
        assert following.cursor == found.cursor is not None
    assert isinstance(found, LogLine)
    assert isinstance(found.id, uuid.UUID)
    assert found.timestamp == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (found.message, found.level_name, found.name) == ("after", "ERROR", "runlog.flow_runs")
    assert (found.flow_run_id, found.task_run_id, found.attributes) == (FLOW, TASK, {"table": "orders"})
    assert (found.producer, found.seq) == (sender.producer, 1)


LINES = [
    line("plain", at=0),
    line("warned", at=1, level=30, flow_run_id=FLOW),
    line("a horse", at=2, level=40, flow_run_id=OTHER_FLOW),
    line("a dead horse", at=3, flow_run_id=FLOW, task_run_id=TASK, attributes={"table": "orders"}),
    line("critical", at=9, level=50),
]


class Model:
    """As Prefect's ``LogFilter`` is to be used."""

    def model_dump(self, *, mode):
        assert mode == "json"
        return {"operator": "and_", "level": {"ge_": 40, "le_": None}, "flow_run_id": None, "text": None}


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, ["plain", "warned", "a horse", "a dead horse", "critical"]),
        ({"filter": {"flow_run_id": {"any_": [uuid.UUID(FLOW)]}}}, ["warned", "a dead horse"]),
        ({"filter": Model()}, ["a horse", "critical"]),
        ({"query": "horse -dead"}, ["a horse"]),
        ({"query": "table=orders"}, ["a dead horse"]),
        ({"query": "level>=warning", "filter": {"text": {"query": "horse"}}}, ["a horse"]),
        ({"run": FLOW}, ["warned", "a dead horse"]),
        ({"since": datetime(2023, 11, 14, 22, 13, 25, tzinfo=UTC)}, ["critical"]),
        ({"since": "2023-11-14T22:13:23Z", "query": "level<critical"}, ["a dead horse"]),
    ],
)
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "live"])
async def test_conditions_choose_lines(server, sender, wish, expected, is_stored):
    """All that are given hold, for lines that are stored already and for those that come."""
    if is_stored:
        sender.send(*LINES, line("end", at=100, level=60, flow_run_id=FLOW))
        wish = {"since": LONG_AGO, **wish}
    async with get_logs_subscriber(api_url=server.url, **wish) as following:
        if not is_stored:
            sender.send(*LINES)
        assert await messages(following, len(expected)) == expected


async def test_a_cursor_goes_on_behind_its_line(server, sender):
    """In another subscriber, with all that came in between."""
    sender.send(*(line(str(n)) for n in range(3)))
    async with get_logs_subscriber(api_url=server.url, since=LONG_AGO) as following:
        assert await messages(following, 2) == ["0", "1"]
    sender.send(line("3"))
    async with get_logs_subscriber(api_url=server.url, cursor=following.cursor) as other:
        assert await messages(other, 2) == ["2", "3"]


async def test_one_that_was_left_goes_on(server, sender):
    """Entered again, it begins behind its last line; it is not entered twice at a time."""
    following = get_logs_subscriber(api_url=server.url)
    async with following:
        sender.send(line("0"), line("1"))
        assert await messages(following, 1) == ["0"]
        with pytest.raises(RuntimeError, match="entered once at a time"):
            await following.__aenter__()
    with pytest.raises(RuntimeError, match="iterated where it is entered"):
        await anext(following)
    async with following:
        assert await messages(following, 1) == ["1"]


async def test_an_iteration_that_is_cancelled_loses_nothing(server, sender):
    """A program may wait for a line for a while only."""
    async with get_logs_subscriber(api_url=server.url) as following:
        for number in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(following), 0.001)
            sender.send(line(str(number)))
            assert await messages(following, 1) == [str(number)]


async def test_news_are_told(server, sender):
    """Heartbeats, the lines of a run, and its receipt."""
    async with subscriber(server.url, run=FLOW, heartbeat=0.1) as following:
        news = following.news()
        assert isinstance(await anext(news), Heartbeat)
        sender.send(started(), line("other", flow_run_id=OTHER_FLOW), finished())
        found = []
        async with asyncio.timeout(ANY_TIME):
            while following.receipt is None:
                found.append(await anext(news))
        lines = [each.message for each in found if isinstance(each, LogLine)]
        assert lines == ["started", "finished"]
        assert isinstance(found[-1], RunReceipt)
        assert (found[-1].run, following.receipt) == (FLOW, found[-1].receipt)
        assert following.receipt["complete"] in (True, False)
        await news.aclose()


async def test_a_gap_is_told(server, sender):
    """A cursor of another store: all lines follow, after a word."""
    with BackgroundServer() as other:
        async with get_logs_subscriber(api_url=other.url) as following:
            foreign = following.cursor
    sender.send(line("theirs"))
    following, gaps = get_logs_subscriber(api_url=server.url, cursor=foreign), []
    following.on_gap = gaps.append
    async with following:
        assert await messages(following, 1) == ["theirs"]
    assert [type(gap) for gap in gaps] == [Gap]
    assert "not of this store" in gaps[0].detail


async def test_one_that_is_slow_misses_nothing(server, sender):
    """More lines than the server keeps at hand pass meanwhile: it says so, and they come from the store."""
    following, gaps, lines = get_logs_subscriber(api_url=server.url), [], 30_000
    following.on_gap = gaps.append
    async with following:
        for first in range(0, lines, 2000):
            sender.send(*(line(str(number)) for number in range(first, first + 2000)))
        found = await messages(following, lines)
    assert found == [str(number) for number in range(lines)]
    assert gaps
    assert "nothing is lost" in gaps[0].detail


# --- the twin -----------------------------------------------------------------------------------------


def test_the_twin_gives_the_same(server, sender):
    """In a loop of the calling thread, news included."""
    with get_sync_logs_subscriber(api_url=server.url, run=FLOW) as following:
        sender.send(started(), *(line(str(n), flow_run_id=FLOW) for n in range(2000)), finished())
        found = []
        for news in following.news():
            found.append(news)
            if following.receipt is not None:
                break
    lines = [each.message for each in found if isinstance(each, LogLine)]
    assert lines == ["started", *map(str, range(2000)), "finished"]
    assert isinstance(found[-1], RunReceipt)
    assert following.cursor == next(each.cursor for each in reversed(found) if isinstance(each, LogLine))
    assert not [thread for thread in threading.enumerate() if thread.name == "runlog-subscriber"]


async def test_the_twin_works_inside_a_running_loop(server, sender):
    """It blocks the loop, and comes to no harm by it."""
    with get_sync_logs_subscriber(api_url=server.url, since=LONG_AGO) as following:
        sender.send(line("0"), line("1"))
        assert [each.message for each in itertools.islice(following, 2)] == ["0", "1"]


def test_the_twin_goes_on_behind_what_was_taken(server, sender):
    """What was received and not taken is not passed over."""
    sender.send(*(line(str(n)) for n in range(1000)))
    with get_sync_logs_subscriber(api_url=server.url, since=LONG_AGO) as following:
        assert next(following).message == "0"
    with get_sync_logs_subscriber(api_url=server.url, cursor=following.cursor) as other:
        assert [each.message for each in itertools.islice(other, 999)] == [str(n) for n in range(1, 1000)]


def test_the_twin_is_closed_by_another_thread(server):
    """That ends the iteration."""
    with get_sync_logs_subscriber(api_url=server.url) as following:
        timer = threading.Timer(0.01, following.close)
        timer.start()
        assert list(following) == []
        timer.join()
        following.close()
    with pytest.raises(RuntimeError, match="entered once"), following:
        pass


def test_the_twin_raises_what_went_wrong(server):
    """When it is entered, and when its attempts are used up."""
    with (
        pytest.raises(QueryError, match="level"),
        get_sync_logs_subscriber(api_url=server.url, query="level>>"),
    ):
        pass
    with pytest.raises(RuntimeError, match="iterated where it is entered"):
        next(get_sync_logs_subscriber(api_url=server.url))
    with (
        scripted_server(says(prefect_log(1), code="cut")) as (url, _),
        SyncLogsSubscriber(subscriber(url, attempts=0)) as following,
    ):
        assert next(following).message == "1"
        with pytest.raises(ServerUnreachableError, match="was lost"):
            next(following)
        assert list(following) == []


PROGRAMS = {
    "left open": """
subscriber = get_sync_logs_subscriber(api_url=sys.argv[1])
subscriber.__enter__()
print("ready")
""",
    "a loop": """
with get_sync_logs_subscriber(api_url=sys.argv[1]) as subscriber:
    print("ready", flush=True)
    for line in subscriber:
        pass
""",
    "an event loop": """
async def main():
    async with get_logs_subscriber(api_url=sys.argv[1]) as subscriber:
        print("ready", flush=True)
        async for line in subscriber:
            pass
asyncio.run(main())
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_end(server, program):
    """At their end, or by Ctrl-C while they wait for a line; at once and without a word of ours."""
    head = (
        "import asyncio, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test runner in the background has it ignored
        "from runlog.client import get_logs_subscriber, get_sync_logs_subscriber\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + PROGRAMS[program], server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        if program != "left open":
            if sys.platform == "win32":
                process.kill()
                pytest.skip("no other process can press Ctrl-C here")
            process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=ANY_TIME)
        finally:
            process.kill()  # one that has ended does not mind
    if program == "left open":
        assert (process.returncode, errors) == (0, "")
    else:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"


# --- lost connections ---------------------------------------------------------------------------------


async def test_a_restarted_server_is_come_back_to(tmp_path):
    """At its new address; what was stored while nobody followed comes as well, also before the first line."""
    database, home, found, sent = str(tmp_path / "lines.db"), tmp_path / "home", [], []
    following = subscriber(None, home=home, attempts=1000, pause=0.02)
    with BackgroundServer(database, home=home):
        await following.__aenter__()
    with BackgroundServer(database) as server, Sender(server.url, "a" * 20) as sender:
        sent.append("unseen")
        sender.send(line("unseen"))
    for number in range(3):
        with BackgroundServer(database, home=home) as server, Sender(server.url, f"{number:020x}") as sender:
            for letter in "abc":
                sent.append(f"{number} {letter}")
                sender.send(line(sent[-1]))
            found += await messages(following, 3)
    with BackgroundServer(database, home=home):
        found += await messages(following, len(sent) - len(found))
        await following.__aexit__(None, None, None)
    assert found == sent


async def test_attempts_end(server):
    """What was wrong with the last one is raised, and the iteration is over."""
    async with subscriber(server.url, attempts=2) as following:
        server.stop()
        with pytest.raises(ServerUnreachableError, match="does not answer"):
            await take(following, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(following)


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_clean_close_ends_the_iteration(code):
    """Unless coming back is asked for."""
    connections = [says(prefect_log(1), code=code), says(prefect_log(1), prefect_log(2))]
    with scripted_server(*connections) as (url, _):
        async with subscriber(url) as following:
            assert [each.message async for each in following] == ["1"]
    with scripted_server(*connections) as (url, _):
        async with subscriber(url, clean=True) as following:
            assert await messages(following, 2) == ["1", "2"]


@pytest.mark.parametrize("code", ["cut", 1011, 1012, 4000])
async def test_other_ends_do_not(code):
    """Each line of a Prefect server comes once, whatever is repeated."""
    connections = [says(prefect_log(1), code=code), says(prefect_log(1), prefect_log(2), prefect_log(3))]
    with scripted_server(*connections) as (url, heard):
        async with subscriber(url, token="k") as following:
            assert following.protocol == "prefect"
            assert await messages(following, 3) == ["1", "2", "3"]
    assert heard == [{"type": "auth", "token": "k"}, {"type": "filter", "filter": {}}] * 2


async def test_a_connection_without_heartbeats_is_dead(server, sender):
    """It is given up after three of them are missing, and the next one goes on."""
    silent = says('{"type":"heartbeat","cursor":"x"}')
    talks = says('{"type":"heartbeat","cursor":"y"}', prefect_log(1))
    with scripted_server(silent, talks, protocol="runlog") as (url, heard):
        async with subscriber(url, heartbeat=0.1) as following:
            assert await messages(following, 1) == ["1"]
    assert [message["cursor"] for message in heard if message["type"] == "filter"] == [None, "x"]


async def test_a_prefect_server_is_asked_whether_it_is_there():
    """One that answers pings is alive for as long as it takes; one that does not is given up."""

    async def deaf(websocket):
        websocket.transport.pause_reading()
        await asyncio.sleep(ANY_TIME)

    async def slow(websocket):
        await asyncio.sleep(0.8)
        await websocket.send(prefect_log(1))
        await websocket.wait_closed()

    with scripted_server(slow) as (url, heard):
        async with subscriber(url, heartbeat=0.1, attempts=0) as following:
            assert await messages(following, 1) == ["1"]
    with scripted_server(deaf, slow) as (url, heard):
        async with subscriber(url, heartbeat=0.1) as following:
            assert await messages(following, 1) == ["1"]
    assert len(heard) == 4


# --- what is wrong from the beginning -----------------------------------------------------------------


async def error_of(following):
    with pytest.raises((APIError, QueryError)) as caught:
        async with following, asyncio.timeout(ANY_TIME):
            await anext(following)
    assert "secret" not in "".join(map(str, chain_of(caught.value)))
    return caught.value


def chain_of(error):
    while error is not None:
        yield repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"query": "level>>"}, "after level>"),
        ({"filter": {"colour": "red"}}, "filter.colour: Extra inputs are not permitted"),
        ({"filter": {"level": {"ge_": "high"}}}, "filter.level.ge_"),
        ({"cursor": "nonsense"}, "cursor 'nonsense' is not one that this server gave out"),
    ],
)
async def test_a_wrong_condition_is_raised_with_the_servers_reason(server, wish, said):
    """When it is entered."""
    error = await error_of(get_logs_subscriber(api_url=server.url, **wish))
    assert isinstance(error, QueryError)
    assert said in str(error)


async def test_a_prefect_servers_reason_is_raised():
    """With the first line, as it does not say that it has understood."""
    with scripted_server(says(code=1002, reason="Invalid filter: no such level")) as (url, heard):
        error = await error_of(subscriber(url))
    assert (type(error), str(error)) == (QueryError, "Invalid filter: no such level")
    assert len(heard) == 2
    with scripted_server(says()) as (url, _):
        assert "query needs a runlog server" in str(await error_of(subscriber(url, query="a")))


async def test_a_prefect_server_without_a_word():
    """One that cuts each connection as soon as it has the filter cannot make sense of it."""
    with scripted_server(says(code="cut")) as (url, heard):
        error = await error_of(subscriber(url, attempts=100, filter={"level": "high"}))
        assert isinstance(error, QueryError)
        assert "cannot make sense of it" in str(error)
        assert len(heard) == 6
    # One that has been heard is restarted, and without a filter there is nothing to blame.
    cut = [says(prefect_log(1), code="cut"), *[says(code="cut")] * 2, says(prefect_log(2))]
    with scripted_server(*cut) as (url, _):
        async with subscriber(url, attempts=5, filter={}) as following:
            assert await messages(following, 2) == ["1", "2"]
    with scripted_server(*[says(code="cut")] * 4, says(prefect_log(1))) as (url, _):
        async with subscriber(url, attempts=5) as following:
            assert await messages(following, 1) == ["1"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/api", "does not answer"),
        ("nonsense", "is no address of a log server"),
        ("http://somebody:secret@127.0.0.1:99999/api", "'http://127.0.0.1:99999/api' is no address"),
        ("http://somebody:secret@/api", "is no address"),
        ("http://somebody:secret@127.0.0.1:1/api", "http://127.0.0.1:1/api does not answer"),
    ],
)
async def test_an_address_where_nobody_is(url, said):
    """It is named without the password in it."""
    error = await error_of(get_logs_subscriber(api_url=url))
    assert isinstance(error, ServerUnreachableError)
    assert said in str(error)


async def test_an_address_of_something_else(server):
    """The address is probably wrong; redirects are not followed."""
    assert "it usually ends in /api" in str(await error_of(get_logs_subscriber(api_url=server.url + "/x")))
    with scripted_server(says(), process_request=redirect_to(server.url)) as (url, _):
        error = await error_of(get_logs_subscriber(api_url=url, api_key="secret"))
    assert (error.status, "got HTTP 307" in str(error)) == (307, True)
    with scripted_server(says(), protocol=None, greets=False) as (url, _):
        assert "neither runlog's protocol nor" in str(await error_of(get_logs_subscriber(api_url=url)))
    with scripted_server(says("nonsense"), greets=False) as (url, _):
        error = await error_of(get_logs_subscriber(api_url=url))
        assert "answers the greeting with something else" in str(error)


def redirect_to(url):
    def answer(connection, _request):
        response = connection.respond(307, "elsewhere")
        response.headers["Location"] = logs_out_socket_from_api_url(url)
        return response

    return answer


async def test_a_server_that_is_full(server):
    """Its status is an attribute; it is worth another try."""
    with scripted_server(
        says(), process_request=lambda connection, _: connection.respond(503, "too many streams")
    ) as (url, _):
        error = await error_of(get_logs_subscriber(api_url=url))
    assert (error.status, str(error).endswith("answers HTTP 503 (too many streams)")) == (503, True)


async def test_wrong_credentials():
    """They are refused with the server's reason, and not repeated."""
    with BackgroundServer(auth_string="somebody:secret") as server:
        for options, said in [
            ({"auth_string": "somebody:secret2"}, "Invalid token"),
            ({}, "no token provided"),
        ]:
            error = await error_of(get_logs_subscriber(api_url=server.url, **options))
            assert error.status == 401
            assert said in str(error)
            assert "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY" in str(error)


async def test_right_credentials(monkeypatch):
    """As an argument, from the settings, and in headers."""
    with BackgroundServer(auth_string="somebody:secret") as server, Sender(server.url) as sender:
        sender.client.auth = ("somebody", "secret")
        sender.send(line("0"))
        wish = {"api_url": server.url, "since": LONG_AGO}
        async with get_logs_subscriber(**wish, auth_string="somebody:secret") as following:
            assert await messages(following, 1) == ["0"]
        async with get_logs_subscriber(**wish, api_key=server.own_token) as following:
            assert await messages(following, 1) == ["0"]
        monkeypatch.setenv("PREFECT_API_URL", server.url)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:secret")
        runlog.settings.reset_settings_cache()
        async with get_logs_subscriber(since=LONG_AGO) as following:
            assert await messages(following, 1) == ["0"]
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"Authorization": "Basic c29tZWJvZHk6c2VjcmV0"}')
        runlog.settings.reset_settings_cache()
        async with get_logs_subscriber(since=LONG_AGO) as following:
            assert await messages(following, 1) == ["0"]
        assert "secret" not in repr(following._door) + repr(following)


async def test_a_local_server_lets_its_user_in(tmp_path):
    """Found by ``RUNLOG_HOME``, with the token that it published."""
    home = tmp_path / "runlog-home"
    with pytest.raises(ServerUnreachableError, match="no log server: PREFECT_API_URL is not set"):
        async with get_logs_subscriber():
            pass
    with BackgroundServer(home=home, auth_string="somebody:secret") as server:
        async with get_logs_subscriber() as following:
            with Sender(server.url, Authorization=f"Bearer {server.own_token}") as sender:
                sender.send(line("0"))
            assert await messages(following, 1) == ["0"]


async def test_encryption(tmp_path, monkeypatch):
    """Whom the sending client trusts is trusted; others are named as what is wrong."""
    authority = trustme.CA()
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(files[0])
    leaf.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    with BackgroundServer(tls=TLS(str(files[0]), str(files[1]))) as server:
        error = await error_of(get_logs_subscriber(api_url=server.url))
        assert "is not to be trusted" in str(error)
        assert "SSL_CERT_FILE" in str(error)
        error = await error_of(get_logs_subscriber(api_url=server.url.replace("https", "http")))
        assert isinstance(error, APIError)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[2]))
        async with get_logs_subscriber(api_url=server.url) as following:
            assert following.protocol == "runlog"
    with BackgroundServer() as plain:
        error = await error_of(get_logs_subscriber(api_url=plain.url.replace("http", "https")))
        assert "does it speak https?" in str(error)


# --- arguments and names ------------------------------------------------------------------------------


def test_since():
    """An aware time, or text; a time without a zone is nobody's."""
    for since in (datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None), "noon", "10 parsecs"):
        with pytest.raises(QueryError, match="since"):
            get_logs_subscriber(api_url="http://x/api", since=since)
    before = datetime.now(UTC)
    following = get_logs_subscriber(api_url="http://x/api", since="10m")
    wanted = following._following._wish.since
    assert 590 < (before - wanted).total_seconds() <= 600


def test_wrong_arguments():
    """They are told before anything is connected to."""
    with pytest.raises(ValueError, match="reconnection_attempts must be >= 0"):
        get_logs_subscriber(api_url="http://x/api", reconnection_attempts=-1)
    with pytest.raises(TypeError, match="filter must be a dictionary"):
        get_logs_subscriber("level", api_url="http://x/api")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:4210/api", "ws://127.0.0.1:4210/api/logs/out"),
        ("https://x/api/", "wss://x/api/logs/out"),
        ("https://x/http://y", "wss://x/http://y/logs/out"),
        ("ws://x/api", "ws://x/api/logs/out"),
    ],
)
def test_the_sockets_address(url, expected):
    """It is that of the API, with another scheme."""
    assert logs_out_socket_from_api_url(url) == expected


def test_frames_are_not_logged(server, sender, caplog):
    """What the WebSocket library says about each frame would be sent to the server, which would send it back."""
    caplog.set_level(logging.DEBUG)
    with get_sync_logs_subscriber(api_url=server.url, since=LONG_AGO) as following:
        sender.send(line("0"))
        next(following)
    assert not [record for record in caplog.records if record.name.startswith("websockets.client")]


def test_names_are_loaded_when_they_are_used():
    """Importing the package of clients brings no client with it."""
    program = (
        "import sys, runlog, runlog.client; names = set(sys.modules);"
        "print(sorted(names & {'websockets', 'httpx', 'pydantic', 'runlog.client.subscriber', 'asyncio'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    for name in runlog.client.__all__:
        assert getattr(runlog.client, name).__doc__
    assert runlog.client.LogReader is LogReader
