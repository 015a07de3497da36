"""
Take a run along to other threads, processes and programs.

A new thread starts without a run, and so does a process that was not forked.
`carry` wraps a function so that it runs in the run that was active when it was
wrapped, wherever it is called; `capture` and `restore` do the same by hand, with
text. Within a process the run itself is handed on; to another one goes the text
(`runlog._handover`): ids, names, small extras and settings, under 1 kB and
without any credential, which the other side has in its own environment.

The other side needs no preparation: where logging is not set up, it is. What
goes wrong on the way is warned of, and the function runs all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from runlog._fields import RUN_FIELDS, warn_at_caller
from runlog._handover import ENVIRONMENT_VARIABLE, Handover, process_token
from runlog._stepping import (
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
    wrap_async_generator,
    wrap_generator,
)
from runlog.context import contexts_of, current_run_context, read_handover, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from runlog.context import RunContext
    from runlog.settings import Settings, SettingsContext

P = ParamSpec("P")
R = TypeVar("R")


# --- by hand ------------------------------------------------------------------------------------------


def capture() -> str:
    """
    Return the active run and the settings that differ from their defaults, as JSON under 1 kB.

    For `restore` in another process, or for a child program's environment, where
    ``setup_logging()`` and ``get_run_logger()`` find it by themselves::

        subprocess.run(command, env={**os.environ, "RUNLOG_CONTEXT": capture()})
    """
    run = current_run_context()
    fields: Mapping[str, Any] = {} if run is None else run.fields
    own = {name: fields[name] for name in RUN_FIELDS if name in fields}
    return Handover(
        run={
            name: value if value is None or isinstance(value, int) else str(value)
            for name, value in own.items()
        },
        extra={name: value for name, value in fields.items() if name not in own},
        log_prints=run is not None and run.log_prints,
        settings=_settings_that_travel(),
        process=process_token(),
    ).encode()


@contextmanager
def restore(text: str | None = None) -> Iterator[RunContext | None]:
    """
    Be in a captured run for the duration of the block.

    In another process than the one that captured it, its settings are in force
    as well, and logging is set up first if that has not been done.

    Args:
        text: What `capture` returned; by default the environment variable
            ``RUNLOG_CONTEXT``. Text that cannot be understood is warned of and
            changes nothing.

    Yields:
        The innermost context, or `None` if there is no run.
    """
    source = "text" if text is not None else ENVIRONMENT_VARIABLE
    text = os.environ.get(ENVIRONMENT_VARIABLE) if text is None else text
    handover = read_handover(text, source) if text else None
    with ExitStack() as stack:
        innermost = None
        if handover is not None:
            if not handover.is_own:
                _use_settings(handover.settings, stack)
                _set_up_logging()
            for context in contexts_of(handover):
                innermost = stack.enter_context(context)
        yield innermost


# --- functions ----------------------------------------------------------------------------------------


def carry(fn: Callable[P, R]) -> Carried[P, R]:
    """
    Return a callable that runs *fn* in the run that is active now.

    ::

        with flow_run("nightly-etl"), ThreadPoolExecutor() as pool:
            pool.map(carry(load), tables)

    It can be called from any thread, any number of times and at once, and can
    be pickled if *fn* can, for process pools and for Dask, Ray and the like.
    A generator's steps run in a context of their own, so that the run does not
    leak into whoever reads it.

    Args:
        fn: A function, ``async`` function, generator function, partial, or
            other callable.

    Raises:
        TypeError: If *fn* cannot be called.
    """
    if not callable(fn):
        raise TypeError(f"carry() takes a function, got {type(fn).__name__}")
    return _carried(fn, _Origin())


class _Origin:
    """The run and the settings that were active where it was made, as long as the process lasts."""

    def __init__(self) -> None:
        self.run = current_run_context()
        # Only `temporary_settings` and the like put settings into a context: the module is there if they did.
        module = sys.modules.get("runlog.settings")
        self._settings: SettingsContext | None = None if module is None else module.SettingsContext.get()
        self._process = process_token()
        # The text is made when it is needed; by then other settings may be in force, or none in that thread.
        self._context = contextvars.copy_context()

    @functools.cached_property
    def text(self) -> str:
        """What `capture` would have returned then."""
        return self._context.copy().run(capture)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Be in the run, with the settings that were active."""
        if self._process != process_token():
            # A forked process got here without pickling: it has the run and the settings, perhaps no logging.
            _set_up_logging()
        with ExitStack() as stack:
            settings = self._settings
            if settings is not None:
                stack.enter_context(type(settings)(settings.profile, settings.settings))
            if self.run is not None:
                stack.enter_context(within(self.run))
            yield


class _Arrived:
    """What arrived of an `_Origin` in another process, or in the same by a detour."""

    def __init__(self, text: str) -> None:
        self.text = text

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Be in the run."""
        with restore(self.text):
            yield


class Carried(Generic[P, R]):
    """
    A callable bound to a run; `carry` makes them.

    Thread-safe. Has the name, documentation and signature of its function, and
    the function itself as ``__wrapped__``.
    """

    def __init__(self, fn: Callable[P, R], origin: _Origin | _Arrived) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._origin = origin
        self._call: Callable[..., Any] = self._call_function
        if is_generator_function(fn):
            self._call = wrap_generator(fn, self._open)  # type: ignore[arg-type] # it is one
        elif is_async_generator_function(fn):
            self._call = wrap_async_generator(fn, self._open)  # type: ignore[arg-type] # it is one

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in the run."""
        return self._call(*args, **kwargs)  # type: ignore[no-any-return] # what the function returns

    def __repr__(self) -> str:
        return f"carry({self._fn!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_text, (self._fn, self._origin.text)

    def _call_function(self, *args: Any, **kwargs: Any) -> Any:
        with self._origin.restored():
            return self._fn(*args, **kwargs)

    def _open(
        self,
        args: tuple[Any, ...],  # noqa: ARG002 - as wrap_generator calls it
        kwargs: dict[str, Any],  # noqa: ARG002 - the same
    ) -> tuple[contextvars.Context, Callable[[BaseException | None], object]]:
        context = contextvars.copy_context()
        stack = ExitStack()
        context.run(stack.enter_context, self._origin.restored())
        return context, lambda _: stack.close()


class _CarriedCoroutineFunction(Carried[P, R]):
    """The same for ``async`` functions, and recognised as one by those who ask."""

    def __init__(self, fn: Callable[P, R], origin: _Origin | _Arrived) -> None:
        super().__init__(fn, origin)
        if hasattr(inspect, "markcoroutinefunction"):
            inspect.markcoroutinefunction(self)
        else:  # Python 3.11, where only asyncio lets an object say so
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined] # noqa: SLF001

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override] # R is awaitable
        """Await the function in the run."""
        with self._origin.restored():
            return await self._fn(*args, **kwargs)  # type: ignore[misc] # the same


def _carried(fn: Callable[P, R], origin: _Origin | _Arrived) -> Carried[P, R]:
    return (_CarriedCoroutineFunction if is_coroutine_function(fn) else Carried)(fn, origin)


def _from_text(fn: Callable[P, R], text: str) -> Carried[P, R]:
    return _carried(fn, _Arrived(text))


# --- settings and logging on the other side -----------------------------------------------------------

_arriving = threading.Lock()
_is_set_up_in = ""
"""Token of the process in which logging was set up, or found to be."""
MAX_KNOWN_SETTINGS = 8
"""How many different settings a worker process remembers."""
_known_settings: list[tuple[Settings, dict[str, str], Settings]] = []
"""Settings in force, changes that arrived, and what both make; the latest last."""
_travelling: tuple[Settings, dict[str, str]] | None = None
"""Settings, and how they differ from the default; kept because it takes a millisecond to find out."""


def _settings_that_travel() -> dict[str, str]:
    global _travelling  # noqa: PLW0603 - a cache
    from runlog.settings import changed_settings, get_current_settings  # noqa: PLC0415 - 300 ms

    settings, known = get_current_settings(), _travelling
    if known is None or known[0] is not settings:
        known = _travelling = (settings, changed_settings())
    return known[1]


def _use_settings(arrived: Mapping[str, str], stack: ExitStack) -> None:
    """Put settings in force until *stack* closes."""
    from runlog.exceptions import SettingsError  # noqa: PLC0415 - beside its only use
    from runlog.settings import SettingsContext, get_current_settings  # noqa: PLC0415 - 300 ms, and

    try:
        here = _settings_that_travel()
        changes = {name: text for name, text in arrived.items() if here.get(name) != text}
        if changes:
            settings = _changed(get_current_settings(), changes)
            stack.enter_context(SettingsContext(settings.profile, settings))
    except SettingsError as error:
        warn_at_caller(f"the settings that came with a run are not used: {error}")


def _changed(current: Settings, changes: dict[str, str]) -> Settings:
    from runlog.settings import temporary_settings  # noqa: PLC0415 - as above

    for before, known_changes, settings in _known_settings:
        if before is current and known_changes == changes:
            return settings
    # The same object every time, so that handlers see that nothing has changed since the last call.
    with temporary_settings(changes) as settings:
        _known_settings.append((current, changes, settings))
    del _known_settings[:-MAX_KNOWN_SETTINGS]
    return settings


def _set_up_logging() -> None:
    """Set up logging in a process where nobody did; once a process."""
    global _is_set_up_in  # noqa: PLW0603 - once a process
    with _arriving:
        if _is_set_up_in == process_token():
            return
        _is_set_up_in = process_token()
        names = ("runlog", "runlog.flow_runs", "runlog.task_runs")
        if any(logging.getLogger(name).handlers for name in names):
            return
        try:
            from runlog.configuration import setup_logging  # noqa: PLC0415 - only where a run arrives

            setup_logging()
        except Exception as error:  # a function that was carried here runs, with or without its log
            warn_at_caller(f"logging could not be set up for a run that came from another process: {error}")


def _after_fork_in_child() -> None:
    global _arriving  # noqa: PLW0603 - a thread of the parent may have held it
    _arriving = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
