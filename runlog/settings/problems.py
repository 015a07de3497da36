"""
Turn what pydantic says about wrong settings into one `SettingsError` that a user can act on.

No I/O. The value of a secret is never part of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runlog.exceptions import SettingsError
from runlog.settings.catalog import by_path, value_text
from runlog.settings.sources import resolve

if TYPE_CHECKING:
    from pydantic import ValidationError

    from runlog.settings.catalog import SettingInfo
    from runlog.settings.sources import Layer


def settings_error(error: ValidationError, layers: tuple[Layer, ...]) -> SettingsError:
    """
    Return everything that validation found as one exception.

    Args:
        error: From building settings.
        layers: What they were built from, to say where a wrong value stands.

    Returns:
        The problem; if there are several, all in one message, with the
        attributes of the first.
    """
    first, *others = [_problem(item, layers) for item in error.errors(include_url=False)]
    if not others:
        return first
    return SettingsError(
        "; ".join(str(problem) for problem in (first, *others)),
        key=first.key,
        expected=first.expected,
        got=first.got,
    )


def _problem(item: Any, layers: tuple[Layer, ...]) -> SettingsError:
    reason = str(item.get("ctx", {}).get("error", ""))
    info = _info_at(tuple(part for part in item["loc"] if isinstance(part, str)))
    if info is None:  # several contradict each other: the reason says all
        return SettingsError(reason or item["msg"])
    found = resolve((info.name, *info.aliases), layers)
    name = found.name if found else info.name
    file = found.layer.file if found else None
    in_environment = found is not None and found.layer.origin == "environment"
    got = None if info.secret or found is None else repr(value_text(found.value))
    expected = reason or info.type_text
    return SettingsError(
        f"{name} is {got or 'wrong'}, expected {expected}",
        key=name,
        file=file,
        expected=expected,
        got=got,
        remedy="correct the environment variable or unset it"
        if in_environment
        else "correct it or leave it out",
    )


def _info_at(path: tuple[str, ...]) -> SettingInfo | None:
    """Return the setting that a location leads to; its last parts may lead into the value."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in by_path():
            return by_path()[path[:depth]]
    return None
