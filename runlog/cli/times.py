"""
Times as people read them, and the zones they are shown in.

How people type them is the business of `runlog._times`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from runlog._times import EXPECTED, parse_time

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["EXPECTED", "parse_time", "parse_zone", "show_duration", "show_time"]


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
