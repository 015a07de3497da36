"""
List the settings that `runlog.settings.model` declares, for documentation, templates and commands.

Also turns the values of settings into text, as it would stand in the environment.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from runlog.exceptions import SettingsError
from runlog.settings.model import Block, Settings, redacted
from runlog.settings.sources import names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """
    One setting, as it is declared.

    Args:
        name: Its name in the environment.
        aliases: Other names that are read, strongest first.
        path: Attributes from the root: ``("logging", "level")``.
        type_text: What a value looks like: ``"a number of seconds, 0 or more"``.
        default: Text of the default, ``""`` if there is none.
        description: What it is for, in whole sentences.
        secret: Whether its value is never shown, substituted or handed on.
    """

    name: str
    aliases: tuple[str, ...]
    path: tuple[str, ...]
    type_text: str
    default: str
    description: str
    secret: bool

    def value(self, settings: Settings) -> Any:
        """Return the setting's value."""
        return functools.reduce(getattr, self.path, settings)

    def text(self, settings: Settings) -> str | None:
        """Return the value as it would stand in the environment, secret or not; `None` if it is not set."""
        return value_text(self.value(settings))

    def shown(self, settings: Settings) -> str | None:
        """Return the value as text that may be shown: without secrets. `None` if it is not set."""
        value = self.value(settings)
        return value_text(redacted(value)) if value or not self.secret else None

    def holds_credentials(self, settings: Settings) -> bool:
        """Say whether the value must not leave the program: it is a secret, or an address with a password."""
        value = self.value(settings)
        if self.secret or not isinstance(value, str):
            return self.secret
        try:
            return urlsplit(value).password is not None
        except ValueError:
            return False


def value_text(value: Any) -> str | None:
    """Return a value of a setting as it would stand in the environment; `None` if there is none."""
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def iter_settings() -> Iterable[SettingInfo]:
    """Return all settings, in the order of the reference: the root's own, then block by block."""
    return _catalog()


@functools.cache
def _catalog() -> tuple[SettingInfo, ...]:
    return tuple(_walk(Settings, ()))


def _walk(block: type[Block], path: tuple[str, ...]) -> Iterator[SettingInfo]:
    blocks = []
    for field_name, field in block.model_fields.items():
        extra = field.json_schema_extra
        if extra is None:
            assert isinstance(field.annotation, type)
            blocks.append((field_name, field.annotation))
            continue
        assert isinstance(extra, dict)
        name, *aliases = names_of(block, field_name)
        default_text = extra["default_text"]
        yield SettingInfo(
            name=name,
            aliases=tuple(aliases),
            path=(*path, field_name),
            type_text=str(extra["expected"]),
            default=str(default_text)
            if default_text
            else value_text(field.get_default(call_default_factory=True)) or "",
            description=field.description or "",
            secret=bool(extra["secret"]),
        )
    for field_name, kind in blocks:
        assert issubclass(kind, Block)
        yield from _walk(kind, (*path, field_name))


@functools.cache
def by_name() -> dict[str, SettingInfo]:
    """Return the settings by name, and by each alias. Not to be changed."""
    return {name: info for info in _catalog() for name in (info.name, *info.aliases)}


@functools.cache
def by_path() -> dict[tuple[str, ...], SettingInfo]:
    """Return the settings by path. Not to be changed."""
    return {info.path: info for info in _catalog()}


@functools.cache
def block_paths() -> frozenset[tuple[str, ...]]:
    """Return the paths of the blocks, without the root's."""
    return frozenset(info.path[:depth] for info in _catalog() for depth in range(1, len(info.path)))


def nearest(wanted: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """
    Return the name that *wanted* was probably meant to be, whatever its case; `None` if none is near.

    Args:
        wanted: What was written.
        known: What could be meant.
        cutoff: How near it must be: 0 returns one in any case, if there is one; 1 only the same.
    """
    folded = {name.upper(): name for name in known}
    found = difflib.get_close_matches(wanted.upper(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def find_setting(name: str) -> SettingInfo:
    """
    Return the setting of a name or alias.

    Raises:
        SettingsError: If there is none; it says which name is near.
    """
    try:
        return by_name()[name]
    except KeyError:
        near = nearest(name, by_name())
        raise SettingsError(
            f"there is no setting {name}",
            key=name,
            got=name,
            expected=near,
            remedy=f"did you mean {near}?" if near else "`runlog config view` lists all settings",
        ) from None
