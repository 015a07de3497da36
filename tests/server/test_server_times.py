from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.server.times import parse_time

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1970-01-01T00:00:01Z", SECOND),
        ("1970-01-01T00:00:01", SECOND),
        ("1970-01-01 00:00:01", SECOND),
        ("1970-01-01T01:00:01+01:00", SECOND),
        ("1970-01-01T01:00:01 01:00", SECOND),
        ("19700101T000001Z", SECOND),
        ("1970-01-02", 86_400 * SECOND),
        (" 1970-01-01T00:00:00.123456789Z ", 123_456_000),
        ("1969-12-31T23:59:59.999999Z", -1000),
        (1, SECOND),
        (1.5, 1_500_000_000),
        ("1.5", 1_500_000_000),
        ("-5", -5 * SECOND),
        (1_732_186_417_500, 1_732_186_417_500_000_000),
        (1_732_186_417.5, 1_732_186_417_500_000_000),
        ("1732186417500", 1_732_186_417_500_000_000),
        (1_732_186_417.123456, 1_732_186_417_123_456_000),
        ("9999-12-31T23:59:59Z", 2**63 - 1),
        ("0001-01-01T00:00:00Z", -(2**63)),
        ("0001-01-01T00:00:00+14:00", -(2**63)),
        (253_402_300_799_000, 2**63 - 1),
    ],
)
def test_times_are_read(value, expected):
    """ISO 8601 in its spellings, seconds and milliseconds lead to nanoseconds; far times to the ends."""
    assert parse_time(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nope",
        "2025-13-01T00:00:00Z",
        "2025-01-01T00:00:00+99:00",
        None,
        True,
        [],
        {},
        1e300,
        float("nan"),
        float("inf"),
        10**400,
        "9" * 5000,
        "1.5.5",
        "1e5",
        "٣",
        b"2025-01-01",
    ],
)
def test_what_is_no_time_is_refused(value):
    """Anything else is a ValueError of one line."""
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_time(value)
    assert "\n" not in str(refusal.value)


@given(st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001 - naive is UTC
def test_microseconds_are_kept(moment):
    """Text of a time within 64 bits of nanoseconds keeps every microsecond, with and without a zone."""
    aware = moment.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    expected = ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1000
    assert parse_time(moment.isoformat()) == parse_time(aware.isoformat()) == expected
