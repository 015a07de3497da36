"""
Decide which settings are in force: those of the innermost `SettingsContext`, else the program's.

The program's settings are loaded once, when they are first asked for
(`runlog.settings.files` reads, `runlog.settings.model` validates), and shared by
all threads. A context lies over them for a while, in one thread or task:
`temporary_settings`, `use_profile`. Everything that is wrong with a value
becomes one `SettingsError` (`runlog.settings.problems`).
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar, Token
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from runlog.settings.catalog import find_setting, iter_settings
from runlog.settings.files import read_layers, read_profile
from runlog.settings.model import Settings
from runlog.settings.problems import settings_error
from runlog.settings.sources import UNSET, Layer, layers_of_load, resolve
from runlog.settings.values import absolute_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

_active: ContextVar[SettingsContext | None] = ContextVar("runlog_settings", default=None)
_loading = threading.Lock()
_of_program: Settings | None = None


class SettingsContext:
    """
    Settings that are in force while a ``with`` block runs, in this thread or task.

    Entered once at a time.

    Args:
        profile: Name of the profile the settings come from, `None` without one.
        settings: The settings.
    """

    def __init__(self, profile: str | None, settings: Settings) -> None:
        self.profile = profile
        self.settings = settings
        self._token: Token[SettingsContext | None] | None = None

    def __repr__(self) -> str:
        state = "entered" if self._token else "not entered"
        return f"<SettingsContext, profile {self.profile!r}, {state}>"

    @classmethod
    def get(cls) -> SettingsContext | None:
        """Return the innermost context; `None` outside of any."""
        return _active.get()

    def __enter__(self) -> Self:
        """
        Put the settings in force.

        Raises:
            RuntimeError: If the context is entered already.
        """
        if self._token is not None:
            raise RuntimeError("this SettingsContext is entered already: make another one")
        self._token = _active.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """
        Put the former settings in force again.

        Raises:
            RuntimeError: If the context is not entered.
        """
        token, self._token = self._token, None
        if token is None:
            raise RuntimeError("this SettingsContext is not entered")
        try:
            _active.reset(token)
        except ValueError:  # left in another contextvars.Context, as async generators may do
            former = token.old_value
            _active.set(None if former is Token.MISSING else former)


def get_current_settings() -> Settings:
    """
    Return the settings that are in force here.

    Loads them at the first call: from the environment and the files in the
    working directory, as they are then; later changes of either are not seen
    (`reset_settings_cache`). After that it costs two look-ups. Thread-safe.

    Raises:
        SettingsError: If a value is wrong, a file cannot be read, or settings
            contradict each other.
    """
    context = _active.get()
    if context is not None:
        return context.settings
    return _of_program or _load_for_program()


def _load_for_program() -> Settings:
    global _of_program  # noqa: PLW0603 - one for the program is the point
    with _loading:
        if _of_program is None:
            _of_program = load_settings()
        return _of_program


def reset_settings_cache() -> None:
    """Forget the program's settings, so that they are loaded anew when they are next asked for."""
    global _of_program  # noqa: PLW0603 - as above
    with _loading:
        _of_program = None


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """
    Read all sources and return settings; do not put them in force.

    Args:
        environ: The environment; by default the program's.

    Raises:
        SettingsError: As `get_current_settings`.
    """
    return _build(read_layers(os.environ if environ is None else environ))


@contextmanager
def temporary_settings(
    updates: Mapping[str, Any] | None = None, *, restore_defaults: Iterable[str] = ()
) -> Iterator[Settings]:
    """
    Change settings while a ``with`` block runs, in this thread or task.

    The other settings stay as they are here.

    Args:
        updates: Values by name in the environment, or alias. A value may be
            text, as it would be there, or of the setting's type. `None`
            restores the default.
        restore_defaults: Names of settings that have their default meanwhile.

    Yields:
        The settings in the block.

    Raises:
        SettingsError: If a name or a value is wrong.
    """
    changes = dict.fromkeys((find_setting(name).name for name in restore_defaults), UNSET)
    for name, value in (updates or {}).items():
        changes[find_setting(name).name] = UNSET if value is None else value
    # Text that is empty stands for nothing in an environment, and here for the default.
    changes = {
        name: UNSET if isinstance(value, str) and not value.strip() else value
        for name, value in changes.items()
    }
    layers = get_current_settings()._layers  # noqa: SLF001 - belongs to this package
    settings = _build((Layer("argument", changes), *(layer for layer in layers if not layer.of_profile)))
    with SettingsContext(settings.profile, settings):
        yield settings


def use_profile(name: str) -> AbstractContextManager[Settings]:
    """
    Use a profile while a ``with`` block runs, in this thread or task.

    As always, what the environment and files in the working directory set is
    stronger than the profile.

    Args:
        name: A profile of ``$RUNLOG_HOME/profiles.toml``.

    Raises:
        SettingsError: On entering, if there is no such profile, or a value in it is wrong.
    """
    return temporary_settings({"RUNLOG_PROFILE": name})


def origin_of(name: str) -> str:
    """
    Return where the value of a setting comes from.

    One of ``"argument"``, ``"environment"``, ``".env"``, ``"runlog.toml"``,
    ``"pyproject.toml"``, ``"profile 'NAME'"``, ``"profiles.toml"`` (the active
    profile's name), ``"default"``.

    Args:
        name: Name of the setting in the environment, or an alias.

    Raises:
        SettingsError: If there is no such setting, or as `get_current_settings`.
    """
    info = find_setting(name)
    found = resolve((info.name, *info.aliases), get_current_settings()._layers)  # noqa: SLF001 - as above
    return found.layer.origin if found else "default"


def changed_settings() -> dict[str, str]:
    """
    Return what must be set elsewhere for the same settings to be in force: name and text.

    Without the settings that have their default, without secrets and addresses
    that hold a password, and without the profile: its settings are in the
    result, and its file may not be where they go.
    """
    settings, default = get_current_settings(), Settings()
    changed: dict[str, str] = {}
    for info in iter_settings():
        text = info.text(settings)
        if text is None or text == info.text(default) or info.name == "RUNLOG_PROFILE":
            continue
        if not info.holds_credentials(settings):
            changed[info.name] = text
    return changed


def _build(layers: tuple[Layer, ...]) -> Settings:
    """
    Return the settings of some layers and of the profile that these choose.

    Args:
        layers: The strongest first, without those of a profile.
    """
    chosen = _read_chosen_profile(layers)
    if chosen is not None:
        choice, profile = chosen
        layers = (choice, *layers, profile)
    token = layers_of_load.set(layers)
    try:
        settings = Settings()
    except ValidationError as error:
        raise settings_error(error, layers) from None
    finally:
        layers_of_load.reset(token)
    settings._layers = layers  # noqa: SLF001 - belongs to this package
    return settings


def _read_chosen_profile(layers: tuple[Layer, ...]) -> tuple[Layer, Layer] | None:
    home, profile = resolve(("RUNLOG_HOME",), layers), resolve(("RUNLOG_PROFILE",), layers)
    try:
        directory = absolute_path(Path(home.value if home and home.value is not UNSET else "~/.runlog"))
    except (TypeError, ValueError):
        return None  # validation says what is wrong with it
    return read_profile(directory, profile.value if profile and profile.value is not UNSET else None)


def _after_fork_in_child() -> None:
    global _loading  # noqa: PLW0603 - a thread of the parent may have held it
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
