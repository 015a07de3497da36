"""
Loggers that know their run, and what becomes of ``print`` inside a run.

A run logger is an ordinary `logging` logger, ``runlog.flow_runs`` or
``runlog.task_runs``, behind an adapter that puts the fields of a run
(`runlog.context`) on each record. Handlers, levels and propagation are those of
`logging`; records carry the run as plain attributes, ``record.flow_run_id`` and
so on, for any handler or formatter to use.

An adapter never raises for the names of extras, on any Python: what `logging`
would refuse is renamed.
"""

from __future__ import annotations

import builtins
import io
import logging
import os
import sys
import threading
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from runlog._fields import flow_run_fields, rename_reserved, task_run_fields
from runlog._routes import Route
from runlog.context import (
    NO_CONTEXT,
    FlowRunContext,
    RunContext,
    TaskRunContext,
    activate_from_environment,
    current_run_context,
)
from runlog.exceptions import MissingContextError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping
    from types import TracebackType
    from typing import Self

ROOT_NAME = "runlog"
"""Name of the logger above all of ours."""


class RunLogAdapter(logging.LoggerAdapter[logging.Logger]):
    """
    A logger that adds the fields of a run to each record.

    Like every `logging.LoggerAdapter` it has ``info``, ``exception``, ``log``
    and so on. The ``extra`` of a single call is merged with the run's and wins
    where both have a name. Thread-safe; can be pickled, by the name of its
    logger.

    Args:
        logger: Where records go.
        extra: Added to each record; copied. Names that `logging` keeps for
            itself get a trailing underscore and are warned of once.
    """

    def __init__(self, logger: logging.Logger, extra: Mapping[str, Any] | None = None) -> None:
        self._fields = dict(rename_reserved(extra or {}))
        self._route: Route | None = None
        # Read-only, since all loggers of one run share it.
        super().__init__(logger, MappingProxyType(self._fields))

    # Each of these is what it is for every `LoggerAdapter`, but for calls that nobody needs a record of.
    # The one frame more is the reason for the greater ``stacklevel``.

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at level DEBUG."""
        if self.logger.isEnabledFor(logging.DEBUG) and not self._direct(logging.DEBUG, msg, args, kwargs):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(logging.DEBUG, msg, *args, **kwargs)

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at level INFO."""
        if self.logger.isEnabledFor(logging.INFO) and not self._direct(logging.INFO, msg, args, kwargs):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(logging.INFO, msg, *args, **kwargs)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at level WARNING."""
        if self.logger.isEnabledFor(logging.WARNING) and not self._direct(logging.WARNING, msg, args, kwargs):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(logging.WARNING, msg, *args, **kwargs)

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at level ERROR."""
        if self.logger.isEnabledFor(logging.ERROR) and not self._direct(logging.ERROR, msg, args, kwargs):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(logging.ERROR, msg, *args, **kwargs)

    def _direct(self, level: int, msg: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Log without a record if nobody would see it; `False` if somebody would. For the methods above."""
        route = self._route
        if route is None or not route.holds():
            route = self._route = Route(self.logger, self._fields)
        send = route.send
        if send is None or not route.is_unwatched():
            return False
        if kwargs and (len(kwargs) > 1 or type(kwargs.get("extra")) is not dict):
            return False
        for other in route.others:
            if level >= other.level:
                return False
        if type(self) is not RunLogAdapter:  # `process` may be the program's own
            return False
        return send(level, msg, args, kwargs.get("extra"), sys._getframe(2))  # noqa: SLF001 - as `logging` does

    @property
    def disabled(self) -> bool:
        """Whether the logger behind it is disabled."""
        return self.logger.disabled

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the call's ``extra`` into the run's fields, on Pythons with and without ``merge_extra``."""
        extra = kwargs.get("extra")
        if not extra:
            kwargs["extra"] = self._fields
        elif isinstance(extra, dict):
            kwargs["extra"] = {**self._fields, **rename_reserved(extra)}
        else:
            kwargs["extra"] = {**self._fields, **_as_extra(extra)}
        return msg, kwargs

    def getChild(self, suffix: str, extra: Mapping[str, Any] | None = None) -> RunLogAdapter:  # noqa: N802 - logging's name
        """
        Return a logger of the same run that is a child of this one's.

        Args:
            suffix: Name below this logger's.
            extra: Added to each record as well; wins over this logger's.
        """
        return RunLogAdapter(self.logger.getChild(suffix), {**self._fields, **(extra or {})})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.logger, self._fields)


def _as_extra(extra: Any) -> Mapping[str, Any]:
    """Make a dictionary of an odd ``extra``; one that is none becomes an extra named so."""
    try:
        return rename_reserved(dict(extra))
    except Exception:  # a log call does not raise for what it is given
        return {"extra": extra}


def get_logger(name: str | None = None) -> logging.Logger:
    """
    Return the logger ``runlog``, or the one named *name* below it.

    Args:
        name: Relative to ``runlog``; a name that starts with ``runlog.`` is taken as it is.
    """
    if not name or name == ROOT_NAME:
        return logging.getLogger(ROOT_NAME)
    return logging.getLogger(name if name.startswith(f"{ROOT_NAME}.") else f"{ROOT_NAME}.{name}")


def get_run_logger(context: Any = None, **extra: Any) -> RunLogAdapter:
    """
    Return the logger of a run.

    Args:
        context: A `FlowRunContext` or `TaskRunContext`, or an object of another
            library with a ``task_run`` or ``flow_run``; by default the innermost active one.
        extra: Added to each record; wins over the run's own fields.

    Raises:
        MissingContextError: If no run is active. While both run loggers are
            disabled, a disabled logger named ``null`` is returned instead.
        TypeError: If *context* is something else.
    """
    if context is None:
        run = current_run_context() or activate_from_environment()
        if run is None:
            return _without_run()
    elif isinstance(context, RunContext):
        run = context
    else:
        return _logger_of_foreign(context, extra)
    adapter = run.adapter
    if adapter is None:
        adapter = run.adapter = RunLogAdapter(get_logger(run.logger_name), run.fields)
    if extra:
        return RunLogAdapter(adapter.logger, {**run.fields, **extra})
    return adapter  # type: ignore[no-any-return] # see RunContext.adapter


def _without_run() -> RunLogAdapter:
    if get_logger(FlowRunContext.logger_name).disabled and get_logger(TaskRunContext.logger_name).disabled:
        null = logging.getLogger("null")
        null.disabled = True
        return RunLogAdapter(null)
    raise MissingContextError(NO_CONTEXT)


def _logger_of_foreign(context: Any, extra: Mapping[str, Any]) -> RunLogAdapter:
    if getattr(context, "task_run", None) is not None:
        return task_run_logger(context.task_run, getattr(context, "task", None), **extra)
    if getattr(context, "flow_run", None) is not None:
        return flow_run_logger(context.flow_run, getattr(context, "flow", None), **extra)
    raise TypeError(f"context must be a FlowRunContext or a TaskRunContext, got {type(context).__name__}")


def flow_run_logger(flow_run: Any, flow: Any = None, **extra: Any) -> RunLogAdapter:
    """
    Return a logger for a flow run, whether or not it is active.

    Args:
        flow_run: Any object with ``id`` and ``name``.
        flow: Any object with ``name``, or the name itself.
        extra: Added to each record.

    Raises:
        TypeError: If *flow_run* has no ``id``.
    """
    return RunLogAdapter(get_logger(FlowRunContext.logger_name), {**flow_run_fields(flow_run, flow), **extra})


def task_run_logger(
    task_run: Any, task: Any = None, flow_run: Any = None, flow: Any = None, **extra: Any
) -> RunLogAdapter:
    """
    Return a logger for a task run, whether or not it is active.

    Args:
        task_run: Any object with ``id`` and ``name``, and possibly ``flow_run_id``.
        task: Any object with ``name``, or the name itself.
        flow_run: Its flow run; by default the one that is active.
        flow: The flow of that.
        extra: Added to each record.

    Raises:
        TypeError: If *task_run* or *flow_run* has no ``id``.
    """
    active = FlowRunContext.get()
    fields = task_run_fields(task_run, task, flow_run, flow, around=None if active is None else active.fields)
    return RunLogAdapter(get_logger(TaskRunContext.logger_name), {**fields, **extra})


# --- Prefect 1: a logger named after the task ---------------------------------------------------------

_OWN_NAMES = frozenset(
    {
        "cli",
        "client",
        "configuration",
        "context",
        "delivery",
        "extra",
        "flow_runs",
        "handlers",
        "server",
        "task_runs",
    }
)
"""First parts of names below ``runlog`` that have a use of their own."""

_naming = threading.Lock()


def named_run_logger(run: RunContext) -> RunLogAdapter:
    """
    Return the run's logger, bound to the logger named after its task or flow.

    Handlers that were or will be attached with ``get_logger("Task B").addHandler(h)``
    receive the lines of Task B and no others. Each line then goes on to the
    handlers of the run loggers, once.

    For a task or flow with the name of one of runlog's own loggers, such as
    ``server``, it is a child of the run logger instead, for example
    ``runlog.task_runs.server``.
    """
    run_logger = get_logger(run.logger_name)
    name = run.fields["task_name" if isinstance(run, TaskRunContext) else "flow_name"]
    named = get_logger(name)
    if not name or named.name == ROOT_NAME or named.name.split(".")[1] in _OWN_NAMES:
        return RunLogAdapter(run_logger.getChild(name) if name else run_logger, run.fields)
    if named.parent is not run_logger:
        with _naming:
            # By its name the logger stands below `runlog`, so that its lines would pass by the run loggers,
            # and with them the API. Only its parent decides where lines go on to. That attribute is public
            # and `logging` itself changes it when loggers appear in between; other ways (forwarding handlers,
            # several adapters) send a line twice or lose levels set on the logger.
            named.parent = run_logger
            named.setLevel(
                named.level
            )  # forgets the levels that `logging` had worked out from the old parent
    return RunLogAdapter(named, run.fields)


# --- silence ------------------------------------------------------------------------------------------

_disabling = threading.Lock()
_disabled_by: dict[str, tuple[int, bool]] = {}
"""Per logger name: how many want it disabled, and whether it was before the first of them."""


@contextmanager
def disable_logger(name: str) -> Iterator[None]:
    """
    Disable a logger for the duration of the block.

    Blocks may be nested and may overlap in several threads: the last one to end
    restores what was before the first. As always in `logging`, children of the
    logger are not disabled with it.
    """
    logger = logging.getLogger(name)
    with _disabling:
        count, before = _disabled_by.get(name, (0, logger.disabled))
        _disabled_by[name] = (count + 1, before)
        logger.disabled = True
    try:
        yield
    finally:
        with _disabling:
            count, before = _disabled_by.pop(name)
            if count > 1:
                _disabled_by[name] = (count - 1, before)
            else:
                logger.disabled = before


@contextmanager
def disable_run_logger() -> Iterator[None]:
    """
    Disable both run loggers for the duration of the block.

    Inside, `get_run_logger` works without a run too, so that the function of a
    task can be called by itself in a test.
    """
    with (
        disable_logger(f"{ROOT_NAME}.{FlowRunContext.logger_name}"),
        disable_logger(f"{ROOT_NAME}.{TaskRunContext.logger_name}"),
    ):
        yield


# --- print --------------------------------------------------------------------------------------------

_patching = threading.Lock()
_patches = 0
_real_print = builtins.print
_here = threading.local()


@contextmanager
def patch_print() -> Iterator[None]:
    """
    Let ``print`` write to the log of runs that ask for it, for the duration of the block.

    A run asks with ``log_prints=True``, or by ``PREFECT_LOGGING_LOG_PRINTS``;
    entering such a run does this by itself. Prints of other runs, of no run, and
    to any other file than standard output are left alone. What is printed
    becomes a record of level ``INFO`` with the place of the call.

    Blocks may be nested and may overlap in several threads: the last one to end
    puts ``print`` back.
    """
    global _patches, _real_print  # noqa: PLW0603 - there is one builtins.print
    with _patching:
        _patches += 1
        if _patches == 1 and builtins.print is not _print_to_log:
            _real_print = builtins.print
            builtins.print = _print_to_log
    try:
        yield
    finally:
        with _patching:
            _patches -= 1
            # Somebody who patched it later will put ours back; it then does what the real one does.
            if _patches == 0 and builtins.print is _print_to_log:
                builtins.print = _real_print


def _print_to_log(*values: Any, file: Any = None, **options: Any) -> None:
    run = current_run_context()
    if (
        run is None
        or not run.log_prints
        or (file is not None and file is not sys.stdout)
        # A handler that prints what it was given would go round for ever.
        or getattr(_here, "is_logging_a_print", False)
    ):
        _real_print(*values, file=file, **options)
        return
    text = io.StringIO()
    _real_print(*values, file=text, **options)
    _here.is_logging_a_print = True
    try:
        get_run_logger(run).info(text.getvalue().rstrip("\r\n"), stacklevel=2)
    finally:
        _here.is_logging_a_print = False


# --- listening ----------------------------------------------------------------------------------------


class LogEavesdropper(logging.Handler):
    """
    Collect what a logger and its children log during a ``with`` block.

    ::

        with LogEavesdropper("my_library", level=logging.INFO) as eavesdropper:
            my_library.work()
        print(eavesdropper.text())

    Args:
        eavesdrop_on: Name of the logger; ``""`` is the root logger.
        level: Least level collected. The logger is set to it for the duration if
            it would let less through; by default it stays as it is.
    """

    def __init__(self, eavesdrop_on: str, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.eavesdrop_on = eavesdrop_on
        # No file names and no time: the text may be shown to others, or compared.
        self.setFormatter(logging.Formatter("[%(levelname)s]: %(message)s"))
        self._records: list[logging.LogRecord] = []
        self._lines: list[str] = []
        self._level_before: int | None = None

    def __enter__(self) -> Self:
        logger = logging.getLogger(self.eavesdrop_on)
        self._records, self._lines = [], []
        self._level_before = logger.level
        if self.level and self.level < logger.getEffectiveLevel():
            logger.setLevel(self.level)
        logger.addHandler(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logger = logging.getLogger(self.eavesdrop_on)
        logger.removeHandler(self)
        if self._level_before is not None:
            logger.setLevel(self._level_before)
            self._level_before = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record and its line."""
        try:
            line = self.format(record)
        except Exception:  # as for every handler: a record that cannot be formatted is reported, not raised
            self.handleError(record)
            return
        self._records.append(record)
        self._lines.append(line)

    def get_logged(self) -> list[logging.LogRecord]:
        """Return the records collected since the block was entered, in order; a new list."""
        return list(self._records)

    def text(self) -> str:
        """Return the lines collected since the block was entered, joined by newlines."""
        return "\n".join(self._lines)


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held a lock."""
    global _naming, _disabling, _patching
    _naming, _disabling, _patching = threading.Lock(), threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
