"""Tests of `runlog.cli.times`: times as people type and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.cli.times import parse_time, parse_zone, show_duration, show_time

PARIS = ZoneInfo("Europe/Paris")
NOW = datetime(2026, 11, 21, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-21T10:30:00"),
        (" NOW ", "2026-11-21T10:30:00"),
        ("10m", "2026-11-21T10:20:00"),
        ("-10m", "2026-11-21T10:20:00"),
        ("10m ago", "2026-11-21T10:20:00"),
        ("2h30m", "2026-11-21T08:00:00"),
        ("2H 30M", "2026-11-21T08:00:00"),
        ("1.5d", "2026-11-19T22:30:00"),
        ("1w", "2026-11-14T10:30:00"),
        ("90s", "2026-11-21T10:28:30"),
        ("500ms", "2026-11-21T10:29:59.500000"),
        ("today", "2026-11-20T23:00:00"),
        ("yesterday", "2026-11-19T23:00:00"),
        ("09:05", "2026-11-21T08:05:00"),
        ("09:05:30.25", "2026-11-21T08:05:30.250000"),
        ("2026-11-21", "2026-11-20T23:00:00"),
        ("2026-07-01", "2026-06-30T22:00:00"),
        ("2026-11-21T10:00", "2026-11-21T09:00:00"),
        ("2026-11-21 10:00:05", "2026-11-21T09:00:05"),
        ("2026-11-21t10:00z", "2026-11-21T10:00:00"),
        ("2026-11-21T10:00:00.123456Z", "2026-11-21T10:00:00.123456"),
        ("2026-11-21T10:00:00+02:00", "2026-11-21T08:00:00"),
        ("2026-11-21T10:00:00-0530", "2026-11-21T15:30:00"),
    ],
)
def test_times_are_understood(text, expected):
    """Each form of the grammar means the moment that a reader of the command line expects, here in Paris."""
    assert parse_time(text, zone=PARIS, now=NOW).replace(tzinfo=None).isoformat() == expected


def test_the_result_is_a_plain_time_in_utc():
    """No class of pendulum's leaves the module, and the present is asked for if none is given."""
    before = datetime.now(UTC)
    moment = parse_time("2026-11-21", zone=PARIS)
    assert type(moment) is datetime
    assert moment.tzinfo is UTC
    assert before <= parse_time("now", zone=UTC) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "10",
        "10x",
        "m10",
        "10m5",
        "P3D",
        "2026",
        "2026-13-01",
        "2026-02-30",
        "2026-11-21T25:00",
        "25:00",
        "2026-11-21T10",
        "2026-11-21T10:00 Europe/Paris",
        "1700000000",
        "99999999999w",
        "٣m",
        "0000-01-01",
    ],
)
def test_what_is_no_time_is_explained(text):
    """The message repeats what was typed and says what is expected."""
    with pytest.raises(ValueError, match="expected a time such as 10m") as caught:
        parse_time(text, zone=UTC, now=NOW)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_a_value_error(text):
    """Nothing else leaves the parser."""
    try:
        moment = parse_time(text, zone=PARIS, now=NOW)
    except ValueError:
        return
    assert moment.tzinfo is UTC


@given(st.integers(0, 5000), st.integers(0, 100))
def test_durations_add_up(minutes, hours):
    """A duration is the sum of its parts."""
    assert parse_time(f"{hours}h{minutes}m", zone=UTC, now=NOW) == NOW - timedelta(
        hours=hours, minutes=minutes
    )


def test_zones():
    """utc, local and names of the database; anything else is explained."""
    assert parse_zone("utc").utcoffset(NOW) == timedelta(0)
    assert parse_zone("Europe/Paris").utcoffset(NOW) == timedelta(hours=1)
    assert NOW.astimezone(parse_zone("LOCAL")).utcoffset() == NOW.astimezone().utcoffset()
    for wrong in ("Mars/Olympus", "", "/etc", "../..", "Europe"):
        with pytest.raises(ValueError, match="expected local, utc, or a name"):
            parse_zone(wrong)


def test_a_machine_without_zone_is_in_utc(monkeypatch):
    """If the machine's own zone cannot be told, local means UTC."""

    def no_zone():
        raise RuntimeError("no time zone")

    monkeypatch.setattr("pendulum.now", no_zone)
    assert parse_zone("local").utcoffset(NOW) == timedelta(0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-21T10:53:37.123456Z", "2026-11-21 11:53:37.123"),
        ("2026-11-21T10:53:37Z", "2026-11-21 11:53:37.000"),
        ("noon", "noon"),
        (None, "-"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_shown_in_the_zone(text, shown):
    """A time is shown to the millisecond; what is none is shown as it is."""
    assert show_time(text, PARIS) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9999, "1.0 s"),
        (3.44, "3.4 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (10_920, "3 h 02 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_short(seconds, shown):
    """Two units at most."""
    assert show_duration(seconds) == shown
