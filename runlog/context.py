"""
Which flow run and which task run the code at hand belongs to.

A context is entered with ``with`` and kept in `contextvars`: every thread and
every asyncio task has its own. `runlog.loggers` puts the `fields` of the
innermost context on each record, `runlog.runs` opens contexts that also name,
time and report their run, `runlog.propagation` takes them to other threads and
processes.

- The context entered last wins, whatever its kind.
- One object is entered once at a time, and left in the reverse order.
- Leaving never leaves a wrong run behind: in another `contextvars.Context` than
  the one entered, the value from before is put back there.

Plain `ContextVar` objects hold the truth; the registry `active` declares them in
one place. Of contextvars-extras nothing else is used: its binders lose call
arguments and leak out of ``async def``, and its deferred defaults fail in new
threads.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from abc import abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from contextvars_extras.context_var_descriptor import ContextVarDescriptor
from contextvars_extras.context_vars_registry import ContextVarsRegistry

from runlog._fields import RUN_FIELDS as RUN_FIELDS  # noqa: PLC0414 - named here too: it describes `fields`
from runlog._fields import (
    UNKNOWN,
    flow_run_fields,
    id_of,
    name_of,
    rename_reserved,
    task_run_fields,
    warn_at_caller,
)
from runlog._handover import ENVIRONMENT_VARIABLE, Handover
from runlog.exceptions import MissingContextError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

NO_CONTEXT = (
    'no flow or task run is active: log inside "with FlowRunContext(...)", '
    "or wrap the thread's function in runlog.carry()"
)

_RUN: ContextVar[RunContext | None] = ContextVar("runlog_run", default=None)
_FLOW: ContextVar[FlowRunContext | None] = ContextVar("runlog_flow_run", default=None)
_TASK: ContextVar[TaskRunContext | None] = ContextVar("runlog_task_run", default=None)


class _ActiveContexts(ContextVarsRegistry):  # type: ignore[misc] # the package has no types
    """Every context variable of runlog's, in one place."""

    # A misspelt assignment raises instead of making a new variable.
    _registry_allocate_on_setattr = False

    run = ContextVarDescriptor.from_existing_var(_RUN)
    flow_run = ContextVarDescriptor.from_existing_var(_FLOW)
    task_run = ContextVarDescriptor.from_existing_var(_TASK)


active = _ActiveContexts()
"""
The active contexts, to look at: ``active.run`` is the innermost, ``active.flow_run`` and ``active.task_run``
the innermost of each kind, or `None`. Contexts are changed by entering and leaving them.
"""


class RunContext:
    """
    Base of `FlowRunContext` and `TaskRunContext`.

    Not entered by two threads at once: the second gets a `RuntimeError`. While
    it is entered, any thread may read it.
    """

    logger_name: ClassVar[str]
    """Logger of runs of this kind, below ``runlog``."""
    kind: ClassVar[str]

    run_id: str
    """Id of the run, as text."""
    run_name: str
    outer: RunContext | None
    """The context around this one, since it was last entered; `None` for the outermost."""
    log_prints: bool
    """Whether ``print`` writes to the log of this run."""
    adapter: Any
    """The run's logger, which `runlog.loggers` keeps here: a run has one, and it is asked for often."""

    def __init__(self, *, log_prints: bool | None, extra: Mapping[str, Any] | None) -> None:
        self._asked_log_prints = log_prints
        self._extra = dict(extra or {})
        self._given_fields: Mapping[str, Any] | None = None
        self._fields: Mapping[str, Any] | None = None
        self._entered = threading.Lock()
        self._tokens: tuple[Token[Any], Token[Any]] | None = None
        self._printing: AbstractContextManager[None] | None = None
        self.outer = None
        self.log_prints = bool(log_prints)
        self.adapter = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """What the run's logger puts on each record: the run's ids and names, and its extras. Read-only."""
        if self._fields is None:
            self._prepare(None)
        assert self._fields is not None
        return self._fields

    @property
    def is_entered(self) -> bool:
        """Whether the context has been entered and not left yet, by any thread."""
        return self._tokens is not None

    @classmethod
    def get(cls) -> RunContext | None:
        """Return the innermost active context of this kind, or `None`."""
        return current_run_context()

    @abstractmethod
    def copy(self) -> RunContext:
        """Return a new context for the same run, which can be entered while this one is."""

    def __enter__(self) -> Self:
        if not self._entered.acquire(blocking=False):
            raise RuntimeError(
                f"{self!r} is entered already; one object is entered once at a time, enter its .copy()"
            )
        try:
            self._prepare(self._find_outer())
            if self._asked_log_prints is None and self.outer in (None, _inherited):
                self.log_prints = _default_log_prints()
            if self.log_prints and not (self.outer is not None and self.outer.log_prints):
                self._printing = _loggers().patch_print()
                self._printing.__enter__()
            self._tokens = (_RUN.set(self), self._variable().set(self))
        except BaseException:
            self._entered.release()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tokens is None:
            raise RuntimeError(f"{self!r} was left without having been entered")
        run_token, own_token = self._tokens
        # Contexts that were left in another `contextvars.Context` linger in this one and are not in the way.
        current = innermost = _RUN.get()
        while innermost is not None and innermost is not self and not innermost.is_entered:
            innermost = innermost.outer
        if innermost is self:
            _restore(run_token)
            _restore(own_token)
        elif _is_of_this_context(run_token):
            # The question reset the variable and used the token up: do it again.
            self._tokens = (_RUN.set(current), own_token)
            raise RuntimeError(
                f"{self!r} cannot be left before {current!r}, which was entered later and is active"
            )
        self._tokens = None
        printing, self._printing = self._printing, None
        self._entered.release()
        if printing is not None:
            printing.__exit__(None, None, None)

    def __repr__(self) -> str:
        state = "entered" if self.is_entered else "not entered"
        return f"<{type(self).__name__} {self.run_name!r} ({self.run_id}), {state}>"

    def _find_outer(self) -> RunContext | None:
        """Return the run around this one, once the way is clear."""
        outer = current_run_context() or activate_from_environment()
        if outer is self:
            # It was left in another `contextvars.Context`, and lingers in this one.
            outer = self.outer
            _RUN.set(outer)
            self._variable().set(_innermost_of(type(self), outer))
        around = outer
        while around is not None:
            if around is self:
                # Left elsewhere while what was entered in it lives on here: it cannot be around itself.
                raise RuntimeError(f"{self!r} is around {outer!r}, which is active; enter its .copy()")
            around = around.outer
        return outer

    def _prepare(self, outer: RunContext | None) -> None:
        """Settle what depends on the run around this one."""
        self.outer = outer
        self.log_prints = (
            (outer is not None and outer.log_prints)
            if self._asked_log_prints is None
            else self._asked_log_prints
        )
        given = self._given_fields
        fields = {**self._own_fields(outer), **rename_reserved(self._extra)} if given is None else dict(given)
        self._fields = MappingProxyType(fields)
        self.adapter = None

    @abstractmethod
    def _own_fields(self, outer: RunContext | None) -> dict[str, Any]:
        """Return the fields of the run, without its extras."""

    @classmethod
    @abstractmethod
    def _variable(cls) -> ContextVar[Any]:
        """Return the variable that holds the innermost context of this kind."""


class FlowRunContext(RunContext):
    """
    The flow run that the code in a ``with`` block belongs to.

    ::

        with FlowRunContext(flow_run=run, flow=flow):
            get_run_logger().info("loaded %d rows", 42)

    Args:
        flow_run: Any object with ``id`` (a `uuid.UUID` or text) and ``name``: ours or Prefect's.
        flow: Any object with ``name``, or the name itself; `None` if it is not known.
        log_prints: Whether ``print`` inside writes to the run's log. By default
            as the run around it, and for the outermost ``PREFECT_LOGGING_LOG_PRINTS``.
        extra: Added to every line of the run. Names that `logging` keeps for
            itself get a trailing underscore.

    Raises:
        TypeError: If *flow_run* has no ``id``.
        RuntimeError: From entering and leaving, see `RunContext`.
    """

    logger_name = "flow_runs"
    kind = "flow"

    def __init__(
        self,
        flow_run: Any,
        flow: Any = None,
        *,
        log_prints: bool | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(log_prints=log_prints, extra=extra)
        self.flow_run = flow_run
        self.flow = flow
        self.run_id = id_of(flow_run, "flow_run")
        self.run_name = name_of(flow_run)

    @classmethod
    def get(cls) -> FlowRunContext | None:
        """Return the innermost active flow run context, or `None`."""
        return _FLOW.get() or _inherited_of(FlowRunContext)

    def copy(self) -> FlowRunContext:
        """Return a new context for the same run, which can be entered while this one is."""
        return FlowRunContext(self.flow_run, self.flow, log_prints=self._asked_log_prints, extra=self._extra)

    def _own_fields(self, outer: RunContext | None) -> dict[str, Any]:
        return flow_run_fields(self.flow_run, self.flow, around=None if outer is None else outer.fields)

    @classmethod
    def _variable(cls) -> ContextVar[Any]:
        return _FLOW


class TaskRunContext(RunContext):
    """
    The task run that the code in a ``with`` block belongs to.

    A task run without a flow is fine.

    Args:
        task_run: Any object with ``id`` (a `uuid.UUID` or text) and ``name``. If
            it has a ``flow_run_id``, that counts; else the flow run around it.
        task: Any object with ``name``, or the name itself; `None` if it is not known.
        log_prints: As for `FlowRunContext`.
        attempt: Which attempt at the task this is, from 1; `None` if that is not known.
        extra: As for `FlowRunContext`.

    Raises:
        TypeError: If *task_run* has no ``id``.
        RuntimeError: From entering and leaving, see `RunContext`.
    """

    logger_name = "task_runs"
    kind = "task"

    def __init__(
        self,
        task_run: Any,
        task: Any = None,
        *,
        log_prints: bool | None = None,
        attempt: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(log_prints=log_prints, extra=extra)
        self.task_run = task_run
        self.task = task
        self.attempt = attempt
        self.run_id = id_of(task_run, "task_run")
        self.run_name = name_of(task_run)

    @classmethod
    def get(cls) -> TaskRunContext | None:
        """Return the innermost active task run context, or `None`."""
        return _TASK.get() or _inherited_of(TaskRunContext)

    def copy(self) -> TaskRunContext:
        """Return a new context for the same run, which can be entered while this one is."""
        return TaskRunContext(
            self.task_run,
            self.task,
            log_prints=self._asked_log_prints,
            attempt=self.attempt,
            extra=self._extra,
        )

    def _own_fields(self, outer: RunContext | None) -> dict[str, Any]:
        around = None if outer is None else outer.fields
        return task_run_fields(self.task_run, self.task, around=around, attempt=self.attempt)

    @classmethod
    def _variable(cls) -> ContextVar[Any]:
        return _TASK


# --- asking -------------------------------------------------------------------------------------------


def current_run_context() -> RunContext | None:
    """Return the innermost active context, or `None`. About as fast as `ContextVar.get`."""
    run = _RUN.get()
    return _inherited if run is None else run


def get_run_context() -> FlowRunContext | TaskRunContext:
    """
    Return the innermost active context.

    Raises:
        MissingContextError: If there is none.
    """
    run = current_run_context() or activate_from_environment()
    if run is None:
        raise MissingContextError(NO_CONTEXT)
    assert isinstance(run, FlowRunContext | TaskRunContext)
    return run


_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def current_run_fields() -> Mapping[str, Any]:
    """Return the fields of the innermost active run; empty outside of any. Cannot be changed."""
    run = current_run_context()
    return _NO_FIELDS if run is None else run.fields


def get(key: str, default: Any = None) -> Any:
    """
    Look up one value of the active run, in the style of Prefect 1's ``prefect.context.get``.

    Args:
        key: ``"logger"``, a name in `RUN_FIELDS`, or the name of one of the run's extras.
        default: Returned if there is no such value.

    Returns:
        For ``"logger"`` inside a run, a logger bound to the logger named after
        the task or flow, see `runlog.loggers.named_run_logger`; outside,
        *default*, or the logger ``runlog`` if none is given.
    """
    run = current_run_context()
    if key == "logger":
        loggers = _loggers()
        if run is not None:
            return loggers.named_run_logger(run)
        return loggers.get_logger() if default is None else default
    return default if run is None else run.fields.get(key, default)


# --- other threads, processes and programs ------------------------------------------------------------


@contextmanager
def within(run: RunContext) -> Iterator[None]:
    """
    Make *run*, which was entered elsewhere in this process, the innermost here.

    Any number of threads may do so at once, also after the run was left. The
    inner end of it may come in another `contextvars.Context` than the start.
    """
    tokens: list[Token[Any]] = [_RUN.set(run)]
    for variable, kind in ((_FLOW, FlowRunContext), (_TASK, TaskRunContext)):
        innermost = _innermost_of(kind, run)
        if innermost is not None:
            tokens.append(variable.set(innermost))
    try:
        yield
    finally:
        for token in reversed(tokens):
            _restore(token)


def contexts_of(handover: Handover) -> list[RunContext]:
    """Return new contexts for a run of another process, outermost first; empty if it had none."""
    run = handover.run
    known = {name: run[name] for name in RUN_FIELDS if name in run}
    fields = {**known, **rename_reserved(handover.extra)}
    contexts: list[RunContext] = []
    if known.get("flow_run_id") is not None:
        flow_run = SimpleNamespace(id=run["flow_run_id"], name=run.get("flow_run_name"))
        contexts.append(FlowRunContext(flow_run, run.get("flow_name"), log_prints=handover.log_prints))
        contexts[-1]._given_fields = flow_run_fields(flow_run, run.get("flow_name"))  # noqa: SLF001 - made here
    if known.get("task_run_id") is not None:
        task_run = SimpleNamespace(id=run["task_run_id"], name=run.get("task_run_name"))
        attempt = run.get("attempt")
        contexts.append(
            TaskRunContext(
                task_run,
                run.get("task_name"),
                log_prints=handover.log_prints,
                attempt=attempt if isinstance(attempt, int) else None,
            )
        )
    if contexts:
        # Exactly what the run has at home, whatever happens to be active where it is entered.
        innermost = contexts[-1]
        names = (
            "flow_run_name",
            "flow_name",
            *(("task_run_name", "task_name") if innermost.kind == "task" else ()),
        )
        innermost._given_fields = {name: UNKNOWN for name in names if name not in fields} | fields  # noqa: SLF001
    return contexts


_inherited: RunContext | None = None
"""The run that `RUNLOG_CONTEXT` hands to this whole process."""
_environment_is_read = False
_environment_lock = threading.Lock()


def activate_from_environment() -> RunContext | None:
    """
    Take over the run that the environment variable ``RUNLOG_CONTEXT`` names, for the whole process.

    It is then the outermost run in every thread. Its settings become
    environment variables, unless the environment has those already. Done once a
    process: by ``setup_logging()``, or when a run is first asked for where none
    is active. Text that cannot be understood is warned of and left alone.

    Returns:
        The innermost run taken over, or `None`.
    """
    global _inherited, _environment_is_read  # noqa: PLW0603 - one environment, one process
    with _environment_lock:
        if not _environment_is_read:
            text = os.environ.get(ENVIRONMENT_VARIABLE)
            handover = read_handover(text, ENVIRONMENT_VARIABLE) if text else None
            # A process that prepares its environment for a child program does not inherit from itself.
            if handover is not None and not handover.is_own:
                outer = None
                for context in contexts_of(handover):
                    # A program's output belongs to whoever reads it: print is left alone.
                    context._asked_log_prints = False  # noqa: SLF001 - made here
                    context._prepare(outer)  # noqa: SLF001 - never entered: it has no end
                    outer = context
                _inherited = outer
                _export(handover.settings)
            _environment_is_read = True
    return _inherited


def read_handover(text: str, source: str) -> Handover | None:
    """Return what *text* says, or warn, naming *source*, and return `None`."""
    try:
        return Handover.decode(text)
    except ValueError as error:
        warn_at_caller(f"{source} is not a run's context and is ignored: {error}")
        return None


def _export(settings: Mapping[str, str]) -> None:
    missing = {name: text for name, text in settings.items() if name not in os.environ}
    os.environ.update(missing)
    if missing and "runlog.settings" in sys.modules:
        from runlog.settings import reset_settings_cache  # noqa: PLC0415 - 300 ms, and loaded already here

        reset_settings_cache()


def _inherited_of(kind: type[Any]) -> Any:
    return None if _inherited is None else _innermost_of(kind, _inherited)


def _innermost_of(kind: type[Any], run: RunContext | None) -> Any:
    while run is not None and not isinstance(run, kind):
        run = run.outer
    return run


def _restore(token: Token[Any]) -> None:
    """Put a variable back, by value if the token belongs to another `contextvars.Context`."""
    try:
        token.var.reset(token)
    except ValueError:
        token.var.set(None if token.old_value is Token.MISSING else token.old_value)


def _is_of_this_context(token: Token[Any]) -> bool:
    """Whether the token was made in the current `contextvars.Context`; it is used up if so."""
    # There is no way to ask for the identity of the current Context but to try.
    try:
        token.var.reset(token)
    except ValueError:
        return False
    return True


def _after_fork_in_child() -> None:
    global _environment_lock  # noqa: PLW0603 - a thread of the parent may have held it
    _environment_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _default_log_prints() -> bool:
    from runlog.settings import get_current_settings  # noqa: PLC0415 - 300 ms, for runs that are opened only

    return bool(get_current_settings().logging.log_prints)


def _loggers() -> Any:
    # By name: loggers are made from contexts, and only what Prefect 1's users call goes the other way.
    return importlib.import_module("runlog.loggers")
