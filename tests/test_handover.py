"""The text that one process gives another: what fits, what stays behind, and what is refused."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog._handover import MAX_HANDOVER_BYTES, Handover, process_token
from runlog.redaction import is_sensitive_key, redact_value

RUN = {"flow_run_id": "f-1", "flow_run_name": "swift-otter", "task_run_id": "t-1", "attempt": 2}


def test_the_text_in_full():
    """The wire form, written out; what is empty is left out."""
    handover = Handover(
        run={"flow_run_id": "f-1", "flow_run_name": "grün"},
        extra={"a": [1, None, {"b": 2.5}]},
        log_prints=True,
        settings={"PREFECT_LOGGING_LEVEL": "DEBUG"},
        process="0123abcd",
    )
    assert handover.encode() == (
        '{"v":1,"process":"0123abcd","run":{"flow_run_id":"f-1","flow_run_name":"gr\\u00fcn"},'
        '"extra":{"a":[1,null,{"b":2.5}]},"log_prints":true,"settings":{"PREFECT_LOGGING_LEVEL":"DEBUG"}}'
    )
    assert Handover.decode(handover.encode()) == handover
    assert Handover().encode() == '{"v":1,"process":""}'
    assert Handover.decode('{"v":1}') == Handover()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    names=st.dictionaries(
        st.sampled_from(["flow_run_name", "flow_name", "task_name"]), st.text(max_size=400)
    ),
    extra=st.dictionaries(st.text(max_size=20), json_values, max_size=20),
    settings=st.dictionaries(st.sampled_from(["A", "B", "C"]), st.text(max_size=500)),
    log_prints=st.booleans(),
)
def test_what_arrives(names, extra, settings, log_prints):
    """Text is short ASCII; ids always arrive, and everything that arrives is as it was sent."""
    sent = Handover(run={"flow_run_id": "f-1"} | names, extra=extra, settings=settings, log_prints=log_prints)
    text = sent.encode()
    assert text.isascii()
    assert len(text) <= MAX_HANDOVER_BYTES
    got = Handover.decode(text)
    assert got.run["flow_run_id"] == "f-1"
    assert got.log_prints is log_prints
    assert got.run.items() <= sent.run.items()
    assert got.settings.items() <= settings.items()
    for key, value in got.extra.items():
        assert value == extra[key]
        assert not is_sensitive_key(key)
        assert redact_value(value) == value


def test_the_longest_extra_stays_behind_first():
    """Short extras travel although a long one does not fit."""
    got = Handover.decode(Handover(run=RUN, extra={"long": "x" * 2000, "short": 1}).encode())
    assert got.extra == {"short": 1}
    assert got.run == RUN


def test_names_stay_behind_before_settings():
    """Without settings lines might go nowhere; without names they are still found by id."""
    sent = Handover(run=RUN | {"flow_name": "x" * 900}, settings={"A": "y" * 500})
    got = Handover.decode(sent.encode())
    assert got.run == {"flow_run_id": "f-1", "task_run_id": "t-1", "attempt": 2}
    assert got.settings == {"A": "y" * 500}
    got = Handover.decode(Handover(run=RUN, settings={"A": "y" * 5000}).encode())
    assert got.run["flow_run_id"] == "f-1"
    assert got.settings == {}


class FaultyComparisonError(Exception):
    """Cannot be compared."""

    def __eq__(self, other):
        raise ValueError

    __hash__ = None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("object", object()),
        ("faulty", FaultyComparisonError()),
        ("tuple", (1, 2)),
        ("nan", math.nan),
        ("bytes", b"x"),
        (3, "key is no text"),
        ("password", "x"),
        ("api_key", "x"),
        ("nested", {"token": "x"}),
        ("header", "Bearer dG9rZW4tNzI5MTc0MzY1"),
        ("github", "ghp_" + "a" * 36),
    ],
)
def test_extras_that_do_not_travel(key, value):
    """What is not JSON, or looks secret, stays behind, and the rest travels."""
    assert Handover.decode(Handover(extra={key: value, "a": 1}).encode()).extra == {"a": 1}


def test_settings_with_a_secret_inside_do_not_travel():
    """A setting that redaction would change is not sent: half of it would be wrong."""
    settings = {"PREFECT_API_URL": "http://user:hunter22@host/api", "B": "1"}
    assert Handover.decode(Handover(settings=settings).encode()).settings == {"B": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "expected a JSON object, got int"),
        ("{}", "written in version None, this runlog reads version 1"),
        ('{"v":2}', "written in version 2"),
        ('{"v":1,"run":[]}', "'run' must be a JSON object"),
        ('{"v":1,"extra":null}', "'extra' must be a JSON object"),
        ('{"v":1,"settings":"x"}', "'settings' must be a JSON object"),
        ('{"v":1,"run":{"flow_run_id":[]}}', "'run' must hold text and numbers only"),
        ('{"v":1,"settings":{"A":1}}', "'settings' must hold text only"),
    ],
)
def test_text_that_is_refused(text, message):
    """Every other text is a ValueError of one line."""
    with pytest.raises(ValueError, match=message) as caught:
        Handover.decode(text)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        json_values, lambda inner: st.fixed_dictionaries({"v": st.just(1), "run": inner, "settings": inner})
    )
)
def test_no_text_raises_anything_else(value):
    """Any JSON is either understood or a ValueError."""
    try:
        Handover.decode(json.dumps(value))
    except ValueError:
        return


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_knows_its_own_text():
    """The token is the same in one process and another one in its fork."""
    assert Handover(process=process_token()).is_own
    assert not Handover(process="another").is_own
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, process_token().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    token = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(token) == len(process_token())
    assert token != process_token()
