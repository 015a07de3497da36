"""
Points in time as people type them. No I/O but a look at the clock and the zone database.

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


def _utc(moment: datetime) -> datetime:
    """As a plain `datetime`: pendulum's own class stays inside this module."""
    return datetime.fromtimestamp(moment.timestamp(), UTC)
