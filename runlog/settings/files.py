"""
Read the places that settings come from: environment, ``.env``, TOML files and profiles.

Each becomes a `Layer` for `runlog.settings.sources`. A TOML file may name a
setting as the environment does, or by its path::

    PREFECT_LOGGING_LEVEL = "DEBUG"

    [logging.to_api]
    batch_size = 1000000

A name that no setting has is a warning at the top level of a file, where
another version of runlog may know more, and an error inside a known table.
"""

from __future__ import annotations

import os
import tomllib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_settings import BaseSettings, DotEnvSettingsSource

from runlog.exceptions import SettingsError
from runlog.settings.catalog import block_paths, by_name, by_path, nearest
from runlog.settings.sources import Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

PROFILES_FILE = "profiles.toml"
"""Name of the file of profiles in ``RUNLOG_HOME``."""

# The program's working directory at the time of the load.
_DOTENV_FILE = Path(".env")
_TOML_FILE = Path("runlog.toml")
_PYPROJECT_FILE = Path("pyproject.toml")


def read_layers(environ: Mapping[str, str]) -> tuple[Layer, ...]:
    """
    Read all places but the profile, strongest first. Files are looked for in the working directory.

    Args:
        environ: The environment.

    Raises:
        SettingsError: If a file cannot be read or parsed, or has an unknown key in a known table.
    """
    layers = [Layer("environment", _known(environ))]
    if is_file(_DOTENV_FILE):
        layers.append(Layer(".env", _known(_read_dotenv(_DOTENV_FILE)), file=".env"))
    if is_file(_TOML_FILE):
        values = _named(_parse(_TOML_FILE, _read(_TOML_FILE)), str(_TOML_FILE))
        layers.append(Layer(_TOML_FILE.name, values, file=_TOML_FILE.name))
    if is_file(_PYPROJECT_FILE):
        text = _read(_PYPROJECT_FILE)
        # Most have nothing for runlog, and a project's file is not ours to complain about.
        table = _parse(_PYPROJECT_FILE, text).get("tool", {}).get("runlog") if "runlog" in text else None
        if table is not None:
            file = f"{_PYPROJECT_FILE} [tool.runlog]"
            layers.append(
                Layer(_PYPROJECT_FILE.name, _named(_as_table(table, "tool.runlog", file), file), file=file)
            )
    return tuple(layers)


def read_profile(home: Path, name: str | None) -> tuple[Layer, Layer] | None:
    """
    Read a profile.

    Args:
        home: ``RUNLOG_HOME``.
        name: The profile; `None` for the one that the file names as ``active``, if any.

    Returns:
        The choice, if the file made it, and the profile; `None` if no profile is active.

    Raises:
        SettingsError: If the file is wrong, or has no such profile.
    """
    path = home / PROFILES_FILE
    document = _parse(path, _read(path)) if is_file(path) else {}
    profiles = _as_table(document.get("profiles", {}), "profiles", str(path))
    chosen = name if name is not None else document.get("active")
    if chosen is None:
        return None
    if not isinstance(chosen, str) or chosen not in profiles:
        key = "active" if name is None else "RUNLOG_PROFILE"
        known = ", ".join(profiles) or "none"
        raise SettingsError(
            f"{key} is {chosen!r}, expected a profile of this file, which has: {known}",
            key=key,
            file=str(path),
            expected=known,
            got=str(chosen),
            remedy=f"add a table [profiles.{chosen}], or choose another profile",
        )
    file = f"{path} [profiles.{chosen}]"
    values = _named(_as_table(profiles[chosen], f"profiles.{chosen}", str(path)), file)
    for forbidden in ("RUNLOG_HOME", "RUNLOG_PROFILE"):
        if forbidden in values:
            raise SettingsError(
                f"{forbidden} cannot be set by a profile, because it says where profiles are looked for",
                key=forbidden,
                file=file,
                remedy=f"set {forbidden} in the environment",
            )
    choice = Layer(
        PROFILES_FILE, {"RUNLOG_PROFILE": chosen} if name is None else {}, str(path), of_profile=True
    )
    return choice, Layer(f"profile {chosen!r}", values, file, of_profile=True)


def is_file(path: Path) -> bool:
    """Say whether there is a file that this program may know of: not in a directory that is closed to it."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file() raises PermissionError there


def _known(environ: Mapping[str, str | None]) -> dict[str, Any]:
    """Pick what is a setting, in any case; of two names that differ in case, the upper one counts."""
    names = by_name()
    return {
        name.upper(): environ[name]
        for name in sorted(environ, reverse=True)  # lower case first, so that upper case comes last
        if name.upper() in names
    }


def _read_dotenv(path: Path) -> Mapping[str, str | None]:
    try:
        return DotEnvSettingsSource(BaseSettings, env_file=path, env_file_encoding="utf-8").env_vars
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> SettingsError:
    why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    return SettingsError(
        f"settings cannot be read: {why}",
        file=str(path),
        remedy="make it a readable UTF-8 file, or remove it",
    )


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"this is not TOML: {error}", file=str(path), expected="TOML") from None


def _as_table(value: Any, key: str, file: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise SettingsError(
        f"{key} is {value!r}, expected a table",
        key=key,
        file=file,
        expected="a table",
        got=repr(value),
        remedy=f"write it as [{key}]",
    )


def _named(table: dict[str, Any], file: str) -> dict[str, Any]:
    """Return the values of a file by the names that they have in the environment."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key.upper() in by_name():
            _put(values, key.upper(), value, file)
        elif (key,) in by_path() or (key,) in block_paths():
            _take(values, (key,), value, file)
        else:
            known = [*by_name(), *(path[0] for path in (*by_path(), *block_paths()) if len(path) == 1)]
            near = nearest(key, known)
            hint = f"did you mean {near}?" if near else "`runlog config view` lists all settings"
            warnings.warn(
                f"{file}: there is no setting {key}, so it is ignored; {hint}", UserWarning, stacklevel=2
            )
    return values


def _take(values: dict[str, Any], path: tuple[str, ...], value: Any, file: str) -> None:
    """Take a value by its path; from a table, everything in it."""
    dotted = ".".join(path)
    if path in block_paths():
        for key, item in _as_table(value, dotted, file).items():
            _take(values, (*path, key), item, file)
    elif path in by_path():
        _put(values, by_path()[path].name, value, file)
    else:
        depth = len(path)
        siblings = [
            known[depth - 1]
            for known in (*by_path(), *block_paths())
            if len(known) == depth and known[:-1] == path[:-1]
        ]
        near = nearest(path[-1], siblings)
        raise SettingsError(
            f"there is no setting {dotted}",
            key=dotted,
            file=file,
            expected=", ".join(sorted(siblings)),
            got=path[-1],
            remedy=f"did you mean {near}?"
            if near
            else f"[{'.'.join(path[:-1])}] has: {', '.join(sorted(siblings))}",
        )


def _put(values: dict[str, Any], name: str, value: Any, file: str) -> None:
    info = by_name()[name]
    if info.name in values and name == info.name:
        raise SettingsError(
            f"{name} is given twice, by name and by its path {'.'.join(info.path)}",
            key=name,
            file=file,
            remedy="keep one of them",
        )
    values[name] = value
