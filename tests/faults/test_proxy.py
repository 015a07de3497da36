"""The fault proxy does to each request what its plan says, and counts it."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from counting import stored_in
from proxy import Fault, FaultProxy, Plan

from runlog._http import Client, TimeoutException, TransportError
from runlog.records import new_producer_id
from runlog.server.app import BackgroundServer

PRODUCER = new_producer_id()

BODY = (
    b'{"producer":"%s","first_seq":0,"events":[{"timestamp_ns":0,"level":20,"name":"n","message":"x"}]}'
    % PRODUCER.encode()
)
"""A batch of one line."""

ACKED = b'{"acked":0}'


@pytest.fixture
def through(server):
    """Start a proxy with a plan in front of the server."""
    started = []

    def through(plan, **options):
        proxy = FaultProxy(server.url, plan, **options)
        started.append(proxy.__enter__())
        return proxy

    yield through
    for proxy in started:
        proxy.__exit__()


@pytest.fixture
def client():
    with Client(timeout=20.0) as client:
        yield client


def post(client, proxy, **options):
    return client.post(proxy.url + "/runlog/v1/batches", content=BODY, **options)


def lines(database):
    return len(stored_in(database).lines)


def test_pass(through, client, database):
    """A request that passes gets the server's answer; a query as well as a batch."""
    proxy = through(Plan.repeating("pass"))
    answer = post(client, proxy)
    assert (answer.status_code, answer.content) == (200, ACKED)
    assert client.get(proxy.url + "/health").json() is True
    assert lines(database) == 1
    assert repr(proxy) == f"<FaultProxy at {proxy.url}: {{'pass': 2}}>"


@pytest.mark.parametrize("status", ["500", "502", "503", "504", "429", "413", "400", "401"])
def test_statuses(through, client, database, status):
    """A status is answered without the server's knowledge."""
    answer = post(client, through(Plan.repeating(status)))
    assert answer.status_code == int(status)
    assert "Retry-After" not in answer.headers
    assert lines(database) == 0


def test_retry_after(through, client):
    """A number after 429 is what ``Retry-After`` says."""
    assert post(client, through(Plan.first("429:0.5"))).headers["Retry-After"] == "0.5"


@pytest.mark.parametrize(("fault", "stored"), [("cut_before", 0), ("cut_after", 1), ("truncated", 1)])
def test_cuts(through, client, database, fault, stored):
    """Before the server hears of it, after it stored, or in the middle of the answer: the client gets none."""
    with pytest.raises(TransportError):
        post(client, through(Plan.first(fault)))
    assert lines(database) == stored


def test_hang(through, client, database):
    """A request that hangs is not answered and not forwarded; the client gives up."""
    proxy = through(Plan.first("hang"))
    with pytest.raises(TimeoutException):
        post(client, proxy, timeout=0.1)
    assert lines(database) == 0
    assert post(client, proxy).content == ACKED


def test_release(through, client, database):
    """What hangs is cut when the proxy is told to let go, and so is what would hang later."""
    proxy = through(Plan.repeating("hang"))
    releasing = threading.Thread(target=proxy.release)
    releasing.start()
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            post(client, proxy)
        assert not isinstance(caught.value, TimeoutException)
    releasing.join()
    assert lines(database) == 0


def test_late(server, client, database):
    """A late request reaches the server even though the client has given up."""
    with FaultProxy(server.url, Plan.first("late:60000")) as proxy:
        with pytest.raises(TimeoutException):
            post(client, proxy, timeout=0.1)
        assert lines(database) == 0
    assert lines(database) == 1


def test_slow(through, client):
    """A slow answer comes whole, at the given pace."""
    before = time.monotonic()
    assert post(client, through(Plan.first("slow:500"))).content == ACKED
    assert time.monotonic() - before >= len(ACKED) / 500


@pytest.mark.parametrize(("fault", "empty"), [("garbage", False), ("empty200", True)])
def test_success_that_is_none(through, client, database, fault, empty):
    """A 200 that the server knows nothing of, with nonsense in it or nothing."""
    answer = post(client, through(Plan.first(fault)))
    assert answer.status_code == 200
    assert (answer.content == b"") == empty
    assert b"acked" not in answer.content
    assert lines(database) == 0


def test_redirect(through, client, database):
    """A redirect leads to another listener, which remembers who came and with what credentials."""
    proxy = through(Plan.repeating("redirect"))
    headers = {"Authorization": "Bearer x"}
    answer = post(client, proxy, headers=headers)
    assert answer.status_code == 307
    assert (proxy.elsewhere.contacts, proxy.elsewhere.authorizations) == (0, [])
    followed = client.post(answer.headers["Location"], content=BODY, headers=headers)
    assert followed.json()["acked"] > 0
    assert (proxy.elsewhere.contacts, proxy.elsewhere.authorizations) == (1, ["Bearer x"])
    assert lines(database) == 0


def test_a_rule_of_the_server(through, client, database):
    """A rule sees the body of each request that would pass, and refuses it in the server's words."""
    proxy = through(
        Plan.repeating("pass", "500"), refuse=lambda body: 422 if b'"message":"x"' in body else None
    )
    assert post(client, proxy).json() == {"detail": "not acceptable"}
    assert post(client, proxy).status_code == 500
    assert client.get(proxy.url + "/health").json() is True
    assert proxy.given == {"refused": 1, "500": 1, "pass": 1}
    assert lines(database) == 0


def test_no_server(client, tmp_path):
    """A proxy whose server is gone answers 502, and goes on when it is back."""
    with BackgroundServer(str(tmp_path / "x.db")) as server:
        url = server.url
    with FaultProxy(url, Plan.repeating("pass")) as proxy:
        assert post(client, proxy).status_code == 502


def test_requests_of_one_connection(through, client):
    """The plan counts requests, whether or not they share a connection."""
    proxy = through(Plan.repeating("500", "pass", "503"))
    assert [post(client, proxy).status_code for _ in range(6)] == [500, 200, 503, 500, 200, 503]
    assert proxy.given == {"500": 2, "pass": 2, "503": 2}
    assert proxy.requests == 6


def test_nothing_is_left(server, client):
    """Leaving the proxy ends its threads, also those of idle and of hanging connections."""
    before = threading.active_count()
    with FaultProxy(server.url, Plan.first("pass", "hang")) as proxy:
        post(client, proxy)
        with pytest.raises(TimeoutException):
            post(client, proxy, timeout=0.1)
    assert threading.active_count() == before


def test_random_plans():
    """The same seed gives the same faults, in about the given proportion."""
    draws = [
        [plan.next().kind for _ in range(1000)]
        for plan in (Plan.random({"pass": 0.7, "hang": 0.3}, seed=1) for _ in range(2))
    ]
    assert draws[0] == draws[1]
    assert 250 < draws[0].count("hang") < 350


def test_plans_in_order():
    """A repeating plan begins anew, one of first faults goes on without."""
    repeating, first = Plan.repeating("500", "late:3"), Plan.first("500", "late:3")
    late, passed = Fault("late", 3.0), Fault("pass", None)
    assert [repeating.next() for _ in range(3)] == [Fault("500", None), late, Fault("500", None)]
    assert [first.next() for _ in range(4)] == [Fault("500", None), late, passed, passed]


@pytest.mark.parametrize(
    "text", ["", "200", "600", "explode", "late", "slow", "pass:1", "hang:2", "500:1", "late:soon"]
)
def test_faults_that_do_not_exist(text):
    """A misspelt plan is refused at once."""
    with pytest.raises(ValueError, match=r"no such fault|could not convert"):
        Plan(itertools.repeat(Fault.parse(text)))


def test_other_schemes():
    """Only plain HTTP is forwarded."""
    with pytest.raises(ValueError, match="http://"):
        FaultProxy("https://example.org/api", Plan.repeating("pass"))
