"""
Decide which key of a logging configuration each ``PREFECT_LOGGING_...`` variable replaces, and by what.

Pure: `runlog.configuration` passes the parsed file and the environment in, and
turns what comes back into errors and warnings.

A variable is named after the path to the key, upper-cased, each run of other
characters one ``_``: ``PREFECT_LOGGING_LOGGERS_RUNLOG_SERVER_LEVEL`` is the
level of the logger ``runlog.server``. So written it names one key of the file,
or is ambiguous. With ``__`` between the levels (and, if need be, between the
parts of a dotted name) it says exactly which key is meant, and may also add one
that the file lacks: ``PREFECT_LOGGING_LOGGERS__SQLALCHEMY__ENGINE__LEVEL``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from runlog.settings.catalog import by_name, nearest
from runlog.settings.values import parse_level

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "PREFECT_LOGGING_"

SECTIONS = ("version", "formatters", "filters", "handlers", "loggers", "root", "disable_existing_loggers")
"""Keys at the top of a configuration, as `logging.config` has them."""

LOGGER_KEYS = ("level", "handlers", "filters", "propagate")
"""Keys of a logger."""

OTHER_SETTINGS = frozenset({"PREFECT_LOGGING_INTERNAL_LEVEL"})
"""Prefect's settings that begin like overrides, are none, and mean nothing to runlog."""

KeyPath = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """
    What became of one variable.

    Args:
        name: The variable.
        value: Its value.
        status: ``"applied"``; ``"unmatched"``, there is no such key;
            ``"ambiguous"``, it could mean several; ``"invalid"``, the key
            cannot have the value.
        targets: Paths of the keys that it means, as ``handlers > console > level``.
        nearest: If unmatched, the nearest variable that would mean something.
        problem: If not applied, why, as a sentence without a full stop.
        remedy: What to do about it.
    """

    name: str
    value: str
    status: Literal["applied", "unmatched", "ambiguous", "invalid"]
    targets: tuple[str, ...] = ()
    nearest: str | None = None
    problem: str | None = None
    remedy: str | None = None


def apply_overrides(config: dict[str, Any], environ: Mapping[str, str]) -> list[Override]:
    """
    Replace keys of *config*, in place, by what the environment says.

    Args:
        config: A parsed configuration.
        environ: The environment. Empty values and settings are left out.

    Returns:
        One for each variable, in the order in which they are applied: by name,
        those with ``__`` last, so that they win.
    """
    leaves = list(_leaves(config, ()))
    names = [
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and value.strip() and name not in by_name() and name not in OTHER_SETTINGS
    ]
    names.sort(key=lambda name: ("__" in name, name))
    return [_apply(config, leaves, name, environ[name]) for name in names]


def _apply(config: dict[str, Any], leaves: Sequence[KeyPath], name: str, value: str) -> Override:
    # A trailing "_" may belong to the key "()".
    if "__" in name:
        found = _find_exact(config, _segments(name))
    else:
        found = [path for path in leaves if _variable(path) == name]
    targets = tuple(show_path(path) for path in found)
    if not found:
        near = nearest(name.replace("__", "_"), [*map(_variable, leaves), *_settings()], cutoff=0)
        problem = (
            f"{name} matches no key of the logging configuration and is no setting, so it is ignored; "
            f"the nearest is {near}"
        )
        return Override(name, value, "unmatched", nearest=near, problem=problem)
    if len(found) > 1:
        problem = f"{name} could mean {' or '.join(targets)}"
        return Override(name, value, "ambiguous", targets, problem=problem, remedy=_how_to_tell(found))
    try:
        _put(config, found[0], value)
    except ValueError as error:
        problem = f"{name} is {value!r}, expected {error}, because it replaces {targets[0]}"
        return Override(name, value, "invalid", targets, problem=problem, remedy="correct it or unset it")
    return Override(name, value, "applied", targets)


def _settings() -> list[str]:
    return [name for name in by_name() if name.startswith(PREFIX)]


def _how_to_tell(paths: Sequence[KeyPath]) -> str:
    exact = [PREFIX + "__".join("__".join(map(_fold, str(key).split("."))) for key in path) for path in paths]
    if len(set(exact)) < len(exact):
        return "rename one of the two in the file"
    return f"write {' or '.join(exact)}"


# --- names and keys -------------------------------------------------------------------------------


def _fold(text: str) -> str:
    """Return how a key is written in the name of a variable."""
    return re.sub("[^A-Za-z0-9]+", "_", text).upper()


def _variable(path: KeyPath) -> str:
    return _fold(PREFIX + "_".join(map(str, path)))


def _segments(name: str) -> list[str]:
    """Split at ``__``; a third ``_`` belongs to what follows, as in ``LOGGERS___PRIVATE__LEVEL``."""
    rest = name.removeprefix(PREFIX)
    if rest.startswith("_") and not rest.startswith("__"):
        rest = rest[1:]  # PREFECT_LOGGING__ROOT__LEVEL
    return rest.split("__")


def show_path(path: KeyPath) -> str:
    """Return a path as messages show it; keys may have dots in them."""
    return " > ".join(map(str, path))


def _leaves(node: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Yield the paths of all values that are no mappings, or empty ones."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif path:
        yield path


# --- with "__" ------------------------------------------------------------------------------------


def _find_exact(config: dict[str, Any], segments: list[str]) -> list[KeyPath]:
    """Return the paths that segments mean: of keys that are there, else of the one to add. Empty: none."""
    ends = list(_descend(config, (), segments))
    there = [path for path, rest in ends if not rest]
    if there:
        return [path for path in there if not (isinstance(_at(config, path), dict) and _at(config, path))]
    if segments[0].lower() not in SECTIONS:
        return []
    lowered = [segment.lower() for segment in segments]
    section, *inner = lowered
    if section == "loggers":
        if len(inner) < 2 or inner[-1] not in LOGGER_KEYS:
            return []
        known = [(*path, inner[-1]) for path, rest in ends if len(path) == 2 and len(rest) == 1]
        return known or [("loggers", ".".join(inner[:-1]), inner[-1])]
    if section == "root":
        return [tuple(lowered)] if len(inner) == 1 and inner[0] in LOGGER_KEYS else []
    if section in ("formatters", "filters", "handlers"):
        if len(inner) < 2:
            return []
        depth = max((len(path) for path, _ in ends), default=0)
        if depth < 2:
            return [tuple(lowered)]
        deepest = [(path, rest) for path, rest in ends if len(path) == depth]
        return [(*path, *map(str.lower, rest)) for path, rest in deepest if _may_hold_keys(_at(config, path))]
    return [] if inner else [(section,)]


def _descend(node: Any, path: KeyPath, segments: list[str]) -> Iterator[tuple[KeyPath, list[str]]]:
    """Yield each path that leads along existing keys, as far as it goes, and the segments that are left."""
    deeper = False
    for key, value in node.items() if isinstance(node, dict) else ():
        for form in {(_fold(str(key)),), tuple(map(_fold, str(key).split(".")))}:
            if tuple(segments[: len(form)]) == form:
                deeper = True
                yield from _descend(value, (*path, key), segments[len(form) :])
    if path and not deeper:
        yield path, segments


def _may_hold_keys(value: Any) -> bool:
    """Say whether keys can be added below a value: not below a text, a number or a list."""
    return value is None or isinstance(value, dict)


def _at(config: Any, path: KeyPath) -> Any:
    for key in path:
        config = config[key]
    return config


# --- values ---------------------------------------------------------------------------------------


def _put(config: dict[str, Any], path: KeyPath, text: str) -> None:
    """
    Put a value where a path leads, with the type of what it replaces.

    Raises:
        ValueError: With what was expected.
    """
    *above, last = path
    node = config
    for key in above:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[last] = typed(text, node.get(last), path)


def typed(text: str, old: Any, path: KeyPath) -> Any:
    """
    Return text as a value of the type of *old*.

    Args:
        text: From the environment, not empty.
        old: What it replaces; `None` if there was nothing: then the key says
            what it must be, or else it is read as YAML would.
        path: Where it goes.

    Raises:
        ValueError: With what was expected.
    """
    key = path[-1]
    if is_level(path):
        return int(text) if text.strip().isdigit() else parse_level(text)
    if isinstance(old, bool) or (old is None and key in ("propagate", "disable_existing_loggers")):
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if text.strip().lower() not in words:
            raise ValueError("true or false")
        return words[text.strip().lower()]
    if isinstance(old, list) or (old is None and key in ("handlers", "filters")):
        return [item.strip() for item in text.split(",") if item.strip()]
    for kind, expected in ((int, "a whole number"), (float, "a number")):
        if isinstance(old, kind):
            try:
                return kind(text)
            except ValueError:
                raise ValueError(expected) from None
    if isinstance(old, dict):
        raise ValueError("nothing, as it is an empty mapping: add a key with __")  # noqa: TRY004
    if old is None:
        return _as_yaml(text)
    return text


def is_level(path: KeyPath) -> bool:
    """Say whether a path leads to the level of a logger or handler."""
    return path[-1] == "level" and (
        path[0] == "root" or (path[0] in ("loggers", "handlers") and len(path) == 3)
    )


def _as_yaml(text: str) -> Any:
    """Read a number, a truth value or a list as YAML would; everything else is text."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if isinstance(value, (bool, int, float, list)) else text
