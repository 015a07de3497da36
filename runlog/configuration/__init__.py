"""
Set logging up: from a YAML file, the settings and the environment to loggers and handlers.

`setup_logging` reads the file that the settings choose
(`runlog.configuration.reading`), applies ``PREFECT_LOGGING_...`` variables to
it (`runlog.configuration.overrides`), checks it (`runlog.configuration.checking`)
and puts it in force (`runlog.configuration.installing`). What a user got wrong is one
`LoggingConfigError`, and then nothing has changed.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runlog.configuration.checking import ROOT, checked
from runlog.configuration.installing import Installation, adjust, install, is_ours
from runlog.configuration.overrides import Override, apply_overrides
from runlog.configuration.reading import read_configuration
from runlog.context import activate_from_environment
from runlog.exceptions import LoggingConfigError
from runlog.settings import get_current_settings
from runlog.settings.files import is_file

if TYPE_CHECKING:
    from runlog.settings import Settings

__all__ = ["Override", "describe_overrides", "load_logging_config", "setup_logging"]

PACKAGED_FILE = Path(__file__).parent.parent / "logging.yml"
"""The configuration that comes with runlog."""

_setting_up = threading.RLock()
_installation: Installation | None = None


def setup_logging(incremental: bool | None = None, *, attach_only: bool = False) -> dict[str, Any]:
    """
    Set logging up from the settings and the logging configuration.

    Also takes over the run that ``RUNLOG_CONTEXT`` names, if there is one.

    Call it once, at start-up. A further call changes levels in place if nothing
    else differs, and installs the configuration anew if something does, or if
    somebody removed a handler meanwhile. Handlers that are replaced are flushed
    and closed, which takes up to ``RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT`` if the log
    server does not answer.

    What is not runlog's is left alone: a root logger that has a handler of
    somebody else's (pytest's included), loggers that the configuration does not
    name, and handlers that the program added to ``runlog`` loggers.

    Thread-safe. If it raises, nothing has changed.

    Args:
        incremental: `True` changes levels and propagation only, unless the
            configuration has handlers that are not installed; `False` installs
            all of it anew; `None` decides as said above.
        attach_only: Touch only the loggers ``runlog`` and ``runlog.*``.

    Returns:
        The configuration that was applied, in the form of
        `logging.config.dictConfig`; ``incremental`` in it is true if only
        levels were changed. A copy.

    Raises:
        SettingsError: If a setting is wrong.
        LoggingConfigError: If the configuration or an override of it is wrong.
    """
    global _installation  # noqa: PLW0603 - logging is one for the program, and so is what is installed in it
    activate_from_environment()  # first, because settings may come with the run
    settings = get_current_settings()
    path = _chosen_path(settings)
    config = checked(_load(path, settings), str(path))
    in_file = config.pop("incremental", None)
    with _setting_up:
        former = _installation
        if attach_only:
            config["loggers"] = {
                name: section for name, section in config["loggers"].items() if is_ours(name)
            }
        if attach_only or _is_somebody_elses(logging.root, former):
            config.pop("root", None)
        extra = () if attach_only else settings.logging.extra_loggers
        adjusted = _adjusted(config, extra, former, in_file if incremental is None else incremental)
        if not adjusted:
            _installation = install(config, str(path), former, extra_loggers=extra, ours_only=attach_only)
    return copy.deepcopy(config) | {"incremental": adjusted}


def load_logging_config(path: Path | str | None = None) -> dict[str, Any]:
    """
    Read a logging configuration, put settings in, and apply overrides.

    Args:
        path: The file; by default the one that `setup_logging` would use.

    Returns:
        A mapping in the form of `logging.config.dictConfig`, not checked any further.

    Raises:
        SettingsError: If a setting is wrong.
        LoggingConfigError: If the file cannot be read, is no YAML, is no
            mapping, has a key twice, or names what is no setting or a secret;
            or if an override is ambiguous or has a wrong value.

    Warns:
        UserWarning: If an override matches nothing.
    """
    settings = get_current_settings()
    return _load(_chosen_path(settings) if path is None else Path(path), settings)


def describe_overrides() -> list[Override]:
    """
    Return what becomes of each ``PREFECT_LOGGING_...`` variable that is no setting.

    Raises:
        SettingsError: If a setting is wrong.
        LoggingConfigError: If the configuration cannot be read.
    """
    settings = get_current_settings()
    return apply_overrides(_read(_chosen_path(settings), settings), os.environ)


def _chosen_path(settings: Settings) -> Path:
    if settings.logging.config_path is not None:
        return settings.logging.config_path
    own = settings.home / "logging.yml"
    return own if is_file(own) else PACKAGED_FILE


def _read(path: Path, settings: Settings) -> dict[str, Any]:
    config = read_configuration(path, settings)
    if path == PACKAGED_FILE and settings.logging.format is not None:
        for key in ("format", "flow_run_fmt", "task_run_fmt"):
            config["formatters"]["standard"][key] = settings.logging.format
    return config


def _load(path: Path, settings: Settings) -> dict[str, Any]:
    config = _read(path, settings)
    config.setdefault("disable_existing_loggers", False)
    overrides = apply_overrides(config, os.environ)
    for override in overrides:
        if override.status in ("ambiguous", "invalid"):
            raise LoggingConfigError(
                override.problem or "",
                key=override.name,
                expected=" or ".join(override.targets),
                got=override.value,
                remedy=override.remedy,
            )
    for override in overrides:
        if override.status == "unmatched":
            warnings.warn(override.problem or "", UserWarning, stacklevel=3)
    return config


def _is_somebody_elses(root: logging.Logger, former: Installation | None) -> bool:
    """Say whether the root logger has handlers that are not ours, and is not ours to begin with."""
    ours = former.attached.get(ROOT) if former is not None and former.is_intact(ROOT) else None
    return not ours and bool(root.handlers)


def _adjusted(
    config: dict[str, Any], extra: tuple[str, ...], former: Installation | None, incremental: bool | None
) -> bool:
    """Change levels in place if that is asked for, or enough, and possible; say whether it was done."""
    if former is None or incremental is False:
        return False
    if incremental is None and not (former.is_intact() and former.differs_in_levels_only(config, extra)):
        return False
    try:
        adjust(config, former)
    except ValueError:  # handlers that are not there: install all of it
        return False
    return True


def _after_fork_in_child() -> None:
    global _setting_up  # noqa: PLW0603 - a thread of the parent may have held it
    _setting_up = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
