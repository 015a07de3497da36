"""
Turn what stands in the environment or a file into values: the types of settings.

No I/O. What a value should have been is the text of the `ValueError`;
`runlog.settings.problems` makes a sentence of it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field


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


Level = Annotated[str, BeforeValidator(parse_level)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Headers = Annotated[dict[str, str], BeforeValidator(_headers)]
FilePath = Annotated[Path, AfterValidator(absolute_path)]
URL = Annotated[str, AfterValidator(_url)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
