"""
Settings: what can be set, where values come from, and which are in force.

A value is looked for in arguments (`temporary_settings`), the environment,
``.env``, ``runlog.toml``, ``[tool.runlog]`` in ``pyproject.toml``, the active
profile; the first one found counts, else the default. Files are looked for in
the working directory, profiles in ``$RUNLOG_HOME/profiles.toml``.

Importing this package imports pydantic, which takes some 0.3 s: modules that
``import runlog`` loads import it inside functions.
"""

from __future__ import annotations

from runlog.settings.catalog import SettingInfo, iter_settings
from runlog.settings.current import (
    SettingsContext,
    changed_settings,
    get_current_settings,
    load_settings,
    origin_of,
    reset_settings_cache,
    temporary_settings,
    use_profile,
)
from runlog.settings.model import Settings

__all__ = [
    "SettingInfo",
    "Settings",
    "SettingsContext",
    "changed_settings",
    "get_current_settings",
    "iter_settings",
    "load_settings",
    "origin_of",
    "reset_settings_cache",
    "temporary_settings",
    "use_profile",
]
