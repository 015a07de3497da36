"""
Turn what stands in the environment or a file into values: the types of settings.

No I/O. What a value should have been is the text of the `ValueError`;
`runlog.settings.problems` makes a sentence of it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

RETENTION = "an age such as 30d (s, m, h, d, w, y), perhaps with others by level: 30d,DEBUG=2d,ERROR=1y"


def parse_level(value: Any) -> str:
    """Take a level's name in any case, or the number of a level that has a name."""
    known = logging.getLevelNamesMapping()
    text = str(value).strip()
    if text.isdigit() and logging.getLevelName(int(text)) in known:
        return logging.getLevelName(int(text))
    for name in (text.upper(), *known):
        if name in known and name.upper() == text.upper():
            return name
    raise ValueError(f"one of {', '.join(sorted(known, key=lambda name: (known[name], name)))}")


def _names(value: Any) -> Any:
    """Take a list, or text with commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("names, separated by commas")
    return tuple(item.strip() for item in items if item.strip())


def _headers(value: Any) -> Any:
    """Take a mapping, or text that is a JSON object."""
    expected = 'a JSON object of texts, such as {"X-Team": "data"}'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(expected) from None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(expected)
    return value


def _url(value: str) -> str:
    """Take an address of HTTP; a slash at its end is cut."""
    try:
        parts = urlsplit(value)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ValueError("an address such as http://127.0.0.1:4210/api")
    return value.rstrip("/")


def absolute_path(path: Path) -> Path:
    """Return *path* with ``~`` replaced, and independent of later changes of the working directory."""
    try:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow links
    except (OSError, RuntimeError) as error:  # the working directory is gone, or there is no such user
        raise ValueError(f"a path that can be found ({error})") from None


_AGE = re.compile(r"(\d{1,9})([smhdwy])")

_SECONDS_PER = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}

BANDS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""Levels that may be kept for different times; a custom level is kept as the one below it."""


def parse_retention(text: str) -> dict[str, float | None]:
    """
    Return for how many seconds lines of each of `BANDS` are kept; `None`: for ever.

    Args:
        text: An age for all levels, or ages of some after their names, or both:
            ``30d``, ``30d,DEBUG=2d,ERROR=1y``. ``forever`` is an age.

    Raises:
        ValueError: Says what it should have been.
    """
    ages: dict[str, float | None] = {}
    for part in text.split(","):
        name, separator, age = part.strip().rpartition("=")
        name = name.strip().upper()
        found = _AGE.fullmatch(age.strip())
        is_new = name not in ages and (name in BANDS if separator else True)
        if not is_new or (found is None and age.strip() != "forever") or (found and not int(found[1])):
            raise ValueError(RETENTION)
        ages[name] = int(found[1]) * _SECONDS_PER[found[2]] if found else None
    return {band: ages.get(band, ages.get("")) for band in BANDS}


def _retention(value: str) -> str:
    parse_retention(value)
    return value


Level = Annotated[str, BeforeValidator(parse_level)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Headers = Annotated[dict[str, str], BeforeValidator(_headers)]
FilePath = Annotated[Path, AfterValidator(absolute_path)]
URL = Annotated[str, AfterValidator(_url)]
Retention = Annotated[str, AfterValidator(_retention)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
