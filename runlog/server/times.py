"""
Read points in time from outside: text, or numbers since the epoch. No clock.

Used for Prefect's bodies, query parameters and query expressions; what comes out is
always an integer of nanoseconds since the epoch, UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

MILLISECONDS_FROM = 2e10
"""
A number above this counts milliseconds, one up to it seconds.

2e10 s is the year 2603, 2e10 ms is August 1970. Prefect's server draws the line here.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_SECONDS = 253_402_300_800
"""The year 10000: no number beyond it is a time."""

# A plus sign that was not escaped in a query string arrives as a space.
_LOST_PLUS = re.compile(r" (\d\d:?\d\d)$")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)

_UNITS_NS = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 604_800 * 10**9,
}
_AGO = re.compile(r"-?((?:\d{1,12}(?:\.\d{1,9})?(?:ms|[smhdw]))+)", re.ASCII)
_AGO_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_CLOCK = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?", re.ASCII)


def parse_time(value: object) -> int:
    """
    Return nanoseconds since the epoch, UTC.

    Args:
        value: ISO 8601 text, where a missing zone means UTC and digits past the
            microsecond are cut; or a number, or digits as text: seconds since
            the epoch, milliseconds from `MILLISECONDS_FROM` on.

    Returns:
        A time outside the years 1678 to 2261, which 64 bits of nanoseconds can
        hold, becomes the nearest in them: people write ``9999-12-31`` for "no end".

    Raises:
        ValueError: If it is none of these; one line that says so.
    """
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return _from_text(value, text)
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected ISO 8601 text or a number of seconds since the epoch")  # noqa: TRY004 - one kind of error for every wrong input
    scale = 1_000_000 if abs(value) > MILLISECONDS_FROM else 1_000_000_000
    if not abs(value) * scale < _MAX_SECONDS * 1_000_000_000:  # also refuses NaN
        raise ValueError(f"time {value!r} is out of range")
    # A double holds today's seconds to 0.2 µs, so microseconds are exact and what is below them is noise.
    return _within(value * scale if isinstance(value, int) else round(value * (scale // 1000)) * 1000)


def parse_moment(text: str, *, now_ns: int, zone: tzinfo | None = None) -> int:
    """
    Return nanoseconds since the epoch of a time as people type it.

    Args:
        text: What `parse_time` takes, or a while ago (``10m``, ``2h30m``, ``1.5d``),
            ``now``, ``today``, ``yesterday``, or a time of today (``14:05``).
        now_ns: The present.
        zone: Of days and times that name none; by default UTC.

    Raises:
        ValueError: If it is none of these.
    """
    lower = text.strip().lower()
    if lower == "now":
        return now_ns
    if _AGO.fullmatch(lower):
        parts = _AGO_PART.findall(lower)
        return _within(now_ns - sum(round(float(number) * _UNITS_NS[unit]) for number, unit in parts))
    zone = zone or UTC
    try:
        today = (_EPOCH + now_ns // 1000 * _MICROSECOND).astimezone(zone).date()
        if lower in {"today", "yesterday"}:
            lower = (today - timedelta(days=lower == "yesterday")).isoformat()
        elif _CLOCK.fullmatch(lower):
            lower = f"{today.isoformat()}T{lower}"
    except OverflowError:
        raise ValueError("the present is out of range") from None
    return _from_text(text, lower.upper(), zone) if not _NUMBER.fullmatch(lower) else parse_time(lower)


def _from_text(value: str, text: str, zone: tzinfo = UTC) -> int:
    try:
        moment = datetime.fromisoformat(_LOST_PLUS.sub(r"+\1", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return _within((moment - _EPOCH) // _MICROSECOND * 1000)
    except (ValueError, OverflowError):
        raise ValueError(f"unable to parse {value[:100]!r} as a time") from None


def _within(ns: int) -> int:
    return min(max(ns, -(2**63)), 2**63 - 1)
