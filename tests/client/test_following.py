"""Tests of `runlog.client.following` and `runlog.client.lines`: what is said, and what answers mean."""

from __future__ import annotations

import json
import logging
import uuid
from datetime import UTC, datetime

import pytest
from live_servers import FLOW, prefect_log

from runlog.client import following as module
from runlog.client.following import Following, Wish, filter_of, pause_before
from runlog.client.lines import Gap, Heartbeat, LogLine, RunReceipt, decode_news
from runlog.exceptions import APIError, QueryError

BEAT = '{"type":"heartbeat","cursor":"b"}'
GREETED = '{"type":"auth_success"}'


def following(wish=None, attempts=2):
    return Following(wish or Wish(), reconnection_attempts=attempts, heartbeat_s=5, pause=float)


def test_a_line_has_prefects_fields_and_ours():
    """What a server does not know has its default; the level has its name."""
    news = decode_news(prefect_log(7, level=logging.WARNING))
    assert isinstance(news, LogLine)
    assert (news.id, news.level, news.level_name, news.message) == (uuid.UUID(int=7), 30, "WARNING", "7")
    assert news.timestamp == datetime(2026, 11, 21, 10, 0, 0, 123456, UTC)
    assert (news.flow_run_id, news.task_run_id, news.attributes, news.seq, news.cursor) == (
        FLOW,
        None,
        {},
        None,
        None,
    )
    with pytest.raises(AttributeError):
        news.message = "other"


def test_other_news():
    """Each has a type of its own; kinds that a newer server may have are passed over."""
    assert decode_news('{"type":"gap","cursor":"c","detail":"d"}') == Gap("c", "d")
    assert decode_news('{"type":"receipt","run":"r","receipt":{"complete":true}}') == RunReceipt(
        "r", {"complete": True}
    )
    assert decode_news(BEAT) == Heartbeat("b")
    assert decode_news('{"type":"weather","is":"fine"}') is None


@pytest.mark.parametrize(
    "message", ["", "1", "{}", "nonsense", '{"type":"log"}', '{"type":3}', b"\xff", "[" * 100_000]
)
def test_nonsense_is_an_error(message):
    """It is that of a server that is none."""
    with pytest.raises(APIError, match="cannot be understood"):
        following().take(message)


def test_the_filter_message_of_a_runlog_server():
    """It has all that is wanted, and from the first line on the place of the last one."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    one = following(Wish({"level": {"ge_": 30}}, "a", "r", since))
    expected = {
        "type": "filter",
        "filter": {"level": {"ge_": 30}},
        "query": "a",
        "run": "r",
        "cursor": None,
        "since": "2026-01-01T00:00:00+00:00",
        "heartbeat": 5,
    }
    assert json.loads(one.filter_message("runlog")) == expected
    one.take(BEAT)
    assert json.loads(one.filter_message("runlog")) == {**expected, "cursor": "b"}


def test_a_prefect_server_gets_a_filter():
    """An empty one if there is none: null is refused."""
    assert json.loads(following().filter_message("prefect")) == {"type": "filter", "filter": {}}
    asked = following(Wish({"level": {"ge_": 30}})).filter_message("prefect")
    assert json.loads(asked) == {"type": "filter", "filter": {"level": {"ge_": 30}}}


@pytest.mark.parametrize(
    "wish", [Wish(query="a"), Wish(run="r"), Wish(cursor="c"), Wish(since=datetime.now(UTC))]
)
def test_what_a_prefect_server_cannot_do_is_an_error(wish):
    """A condition is honoured or refused, and not left out."""
    with pytest.raises(QueryError, match="needs a runlog server"):
        following(wish).filter_message("prefect")


def test_no_line_comes_twice(monkeypatch):
    """By id, among as many as are remembered."""
    monkeypatch.setattr(module, "SEEN_LINES", 2)
    one = following()
    assert [one.take(prefect_log(n)) is not None for n in (1, 2, 1, 2, 3, 2, 1)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_receipt_is_told_once():
    """A server repeats it on each connection; another one is told."""
    one = following()
    told = [one.take(f'{{"type":"receipt","run":"r","receipt":{{"stored":{n}}}}}') for n in (1, 1, 2)]
    assert [news is not None for news in told] == [True, False, True]


def test_attempts_are_counted_in_a_row():
    """Until a line comes, or a heartbeat beyond the one that answers the filter."""
    one = following(attempts=2)
    assert [one.failed(), one.failed(), one.failed()] == [1.0, 2.0, None]
    one.check_auth(GREETED)
    one.take(BEAT)
    assert one.failed() is None
    one.take(BEAT)
    assert one.failed() == 1.0
    one.take(prefect_log(1))
    assert one.failed() == 1.0
    assert following(attempts=0).failed() is None


def test_pauses_grow_with_jitter():
    """From 1 s to 30 s, each drawn from the upper half of its step."""
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (6, 30), (1000, 30)]:
        drawn = {pause_before(attempt) for _ in range(50)}
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ('{"type":"auth_failure","reason":"expired"}', 401, "refuses the credentials (expired)"),
        ('{"type":"auth_failure"}', 401, "refuses the credentials;"),
        ('{"type":"log"}', None, "something else"),
        ("nonsense", None, "something else"),
    ],
)
def test_a_greeting_that_fails(answer, status, said):
    """A reason is passed on."""
    with pytest.raises(APIError) as caught:
        following().check_auth(answer)
    assert (caught.value.status, said in str(caught.value)) == (status, True)


class Model:
    def model_dump(self, *, mode):
        return {"level": {"ge_": 30}, "mode": mode}


def test_filters_are_dictionaries_or_models():
    """With what JSON has no form for as text."""
    assert filter_of(None) is None
    assert filter_of(Model()) == {"level": {"ge_": 30}, "mode": "json"}
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    found = filter_of({"flow_run_id": {"any_": [uuid.UUID(int=1)]}, "timestamp": {"after_": moment}})
    assert found == {
        "flow_run_id": {"any_": ["00000000-0000-0000-0000-000000000001"]},
        "timestamp": {"after_": "2026-01-01T00:00:00Z"},
    }
    for wrong in ("level", [1], {"a": object()}):
        with pytest.raises(TypeError, match="filter must be a dictionary"):
            filter_of(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reconnection_attempts": -1, "heartbeat_s": 5}, "reconnection_attempts must be >= 0, got -1"),
        ({"reconnection_attempts": 1, "heartbeat_s": 0}, "heartbeat must be from 0.1 to 3600 s, got 0"),
    ],
)
def test_numbers_out_of_range(options, said):
    """They are told at once."""
    with pytest.raises(ValueError, match=said):
        Following(Wish(), **options)
