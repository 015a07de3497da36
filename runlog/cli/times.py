"""
Times as people type them, and as they read them. No I/O but a look at the clock and the zone database.

The grammar, in front of pendulum, which would read ``P3D`` as a duration, take
``now`` for a date and refuse ``-1h``::

    time     = "now" | "today" | "yesterday" | ago | date | date ("T" | " ") clock [zone] | clock
    ago      = ["-"] (number unit)+ ["ago"]        10m, 2h30m, 1.5d, 90s, 500ms
    unit     = "ms" | "s" | "m" | "h" | "d" | "w"
    date     = YYYY-MM-DD                           its first moment
    clock    = HH:MM[:SS[.ffffff]]                  alone: today
    zone     = "Z" | ("+" | "-") HH[:]MM            without one: the zone that times are shown in
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

EXPECTED = (
    "expected a time such as 10m, 2h30m, 14:05, 2026-11-21, 2026-11-21T10:00, 2026-11-21T10:00:00Z or now"
)

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"-?((?:\d+(?:\.\d+)?(?:ms|[smhdw])\s*)+)(?:\s*ago)?", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?"
_ABSOLUTE = re.compile(rf"\d{{4}}-\d{{2}}-\d{{2}}(?:[T ]{_CLOCK}(?:Z|[+-]\d{{2}}:?\d{{2}})?)?", re.ASCII)
_CLOCK_ALONE = re.compile(_CLOCK, re.ASCII)


def parse_time(text: str, *, zone: tzinfo, now: datetime | None = None) -> datetime:
    """
    Return the moment that *text* means, in UTC.

    Args:
        text: As the grammar in this module's docstring; case does not matter.
        zone: Zone of a time that names none.
        now: Aware; what durations and days count from. By default the present.

    Raises:
        ValueError: If it is none of these; the message names what is expected.
    """
    import pendulum  # noqa: PLC0415 - 50 ms, and most commands name no time

    wanted = text.strip()
    lower = wanted.lower()
    now = (now or datetime.now(UTC)).astimezone(UTC)
    if lower == "now":
        return now
    try:
        if _AGO.fullmatch(lower):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(lower))
            return now - timedelta(seconds=seconds)
        midnight = pendulum.instance(now.astimezone(zone)).start_of("day")
        if lower in {"today", "yesterday"}:
            return _utc(midnight if lower == "today" else midnight.subtract(days=1))
        if _CLOCK_ALONE.fullmatch(lower):
            wanted = f"{midnight.to_date_string()}T{lower}"
        if _ABSOLUTE.fullmatch(wanted.upper()):
            moment = pendulum.parse(wanted.upper().replace(" ", "T"), tz=zone)
            assert isinstance(moment, datetime)
            return _utc(moment)
    except (ValueError, OverflowError) as error:  # 2026-02-30, 25:00, the year 10000 and the like
        raise ValueError(f"{text!r} is no time: {error}; {EXPECTED}") from error
    raise ValueError(f"{text!r} is no time: {EXPECTED}")


def parse_zone(text: str) -> tzinfo:
    """
    Return a time zone.

    Args:
        text: ``local``, ``utc``, or a name of the IANA database such as ``Europe/Paris``.

    Raises:
        ValueError: If there is no such zone.
    """
    import pendulum  # noqa: PLC0415 - 50 ms, and not for --help

    lower = text.strip().lower()
    if lower == "utc":
        return pendulum.UTC
    try:
        return (lower == "local" and pendulum.now().tzinfo) or pendulum.Timezone(text.strip())
    except Exception as error:
        # pendulum passes on what zoneinfo raises, which for odd names is anything up to IsADirectoryError.
        if lower == "local":
            return pendulum.UTC  # a machine whose own zone cannot be told has none
        raise ValueError(
            f"{text!r} is no time zone: expected local, utc, or a name such as Europe/Paris"
        ) from error


def show_time(text: str | None, zone: tzinfo) -> str:
    """
    Return a time of the server as people read it, such as ``2026-11-21 10:53:37.123``.

    Args:
        text: :rfc:`3339`; `None` gives ``-``, and what is no time comes back as it is.
        zone: Zone to show it in.
    """
    if text is None:
        return "-"
    try:
        moment = datetime.fromisoformat(text).astimezone(zone)
    except (ValueError, OverflowError):
        return text
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def show_duration(seconds: float | None) -> str:
    """
    Return a duration as people read it: ``12 ms``, ``3.4 s``, ``2 min 05 s``, ``3 h 02 min``, ``2 d 7 h``.

    Args:
        seconds: At least 0; `None` gives ``-``.
    """
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def _utc(moment: datetime) -> datetime:
    """As a plain `datetime`: pendulum's own class stays inside this module."""
    return datetime.fromtimestamp(moment.timestamp(), UTC)
