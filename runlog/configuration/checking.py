"""
Say what is wrong with a logging configuration, before anything is built from it. Pure.

`logging.config` finds most mistakes late, and some never: a ``propagate`` of
``"no"`` is true to it, and a misspelt key of a logger is ignored. Takes what
`runlog.configuration.overrides` left and returns what
`runlog.configuration.installing` puts in force.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from runlog.configuration.overrides import LOGGER_KEYS, show_path
from runlog.exceptions import LoggingConfigError
from runlog.settings.values import parse_level

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = ""
"""Name of the root logger, here and in `runlog.configuration.installing`."""


def sections_of_loggers(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and section of each logger, the root last."""
    yield from config.get("loggers", {}).items()
    if "root" in config:
        yield ROOT, config["root"]


def checked(config: dict[str, Any], file: str) -> dict[str, Any]:
    """
    Return a copy of a configuration whose sections have the right form.

    Levels are upper-cased, and what is left out or empty becomes an empty mapping.

    Args:
        config: As it was read.
        file: Where it was read, for messages.

    Raises:
        LoggingConfigError: If a section, a level or a reference is wrong.
    """
    config = copy.deepcopy(config)
    if config.get("version") != 1:
        got = repr(config["version"]) if "version" in config else "missing"
        raise LoggingConfigError(
            f"version is {got}, expected 1",
            key="version",
            file=file,
            expected="1",
            got=got,
            remedy="write version: 1",
        )
    for key in ("disable_existing_loggers", "incremental"):
        _check_switch(config, (key,), file)
    for group in ("formatters", "filters", "handlers", "loggers"):
        sections = config[group] = _mapping(config.get(group), (group,), file)
        for name in sections:
            if not isinstance(name, str):
                raise _wrong((group,), name, "names that are text: put quotes around it", file)
            sections[name] = _mapping(sections[name], (group, name), file)
    if "root" in config:
        config["root"] = _mapping(config["root"], ("root",), file)
    for name, section in config["handlers"].items():
        _check_level(section, ("handlers", name), file)
        if not {"class", "()"} & section.keys():
            raise _wrong(("handlers", name, "class"), None, "the dotted name of a class", file)
        _check_reference(section, ("handlers", name), "formatter", config["formatters"], file)
        _check_list(section, ("handlers", name, "filters"), config["filters"], file)
    for name, section in sections_of_loggers(config):
        path = ("loggers", name) if name else ("root",)
        _check_level(section, path, file)
        for key in ("handlers", "filters"):
            _check_list(section, (*path, key), config[key], file)
        _check_switch(section, (*path, "propagate"), file)
        for key in section.keys() - set(LOGGER_KEYS):
            raise _wrong(path, key, f"keys out of {', '.join(LOGGER_KEYS)}", file)
    return config


def _mapping(value: Any, path: tuple[Any, ...], file: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(path, value, "a mapping", file)
    return value


def _wrong(path: tuple[Any, ...], got: Any, expected: str, file: str) -> LoggingConfigError:
    where = show_path(path)
    return LoggingConfigError(
        f"{where} is {got!r}, expected {expected}", key=where, file=file, expected=expected, got=repr(got)
    )


def _check_level(section: dict[str, Any], path: tuple[Any, ...], file: str) -> None:
    level = section.get("level")
    if level is None:
        section.pop("level", None)
    elif isinstance(level, bool) or not isinstance(level, int):
        try:
            section["level"] = parse_level(level)
        except ValueError as error:
            raise _wrong((*path, "level"), level, f"{error}, or a number", file) from None


def _check_switch(section: dict[str, Any], path: tuple[Any, ...], file: str) -> None:
    if not isinstance(section.get(path[-1], True), bool):
        raise _wrong(path, section[path[-1]], "true or false", file)


def _check_list(section: dict[str, Any], path: tuple[Any, ...], known: dict[str, Any], file: str) -> None:
    names = section.get(path[-1])
    if names is None:
        section.pop(path[-1], None)
        return
    if not isinstance(names, list):
        raise _wrong(path, names, f"a list, such as [{names}]", file)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise _unknown(path, name, known, file)


def _check_reference(
    section: dict[str, Any], path: tuple[Any, ...], key: str, known: dict[str, Any], file: str
) -> None:
    name = section.get(key)
    if name and (not isinstance(name, str) or name not in known):
        raise _unknown((*path, key), name, known, file)


def _unknown(path: tuple[Any, ...], name: Any, known: dict[str, Any], file: str) -> LoggingConfigError:
    names = ", ".join(map(str, known)) or "none"
    return _wrong(path, name, f"one that the file defines, which are: {names}", file)
