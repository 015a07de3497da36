"""
Runs that name, time and report themselves: `flow_run` and `task_run`, as ``with`` blocks and decorators.

Each opens a context (`runlog.context`), logs a record when the run starts and
another when it ends, and says in these records what became of it. They are
ordinary records of the run's logger, with the event in their extras, so that
there is one way in for a server that wants to know about runs:

========================  ===============================================================
``event_name``            ``runlog.run.started`` or ``runlog.run.finished``
``runlog.run.state``      ``RUNNING``, ``COMPLETED``, ``FAILED`` or ``CANCELLED``
``runlog.run.duration_s``  seconds since the first start, on a clock that only goes forward
``runlog.run.attempt``    which attempt at the task it was, from 1, if that is counted
========================  ===============================================================

A run changes nothing for the code inside: what it raises goes on unchanged, and
what a generator yields, gets, and returns is the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from runlog._open_run import OpenRun, Run, RunT, Where, calling_line, definition_of, to_uuid
from runlog._run_names import RunNameTemplate
from runlog._stepping import (
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
    wrap_async_generator,
    wrap_generator,
)
from runlog.context import FlowRunContext, RunContext, TaskRunContext
from runlog.loggers import RunLogAdapter, flow_run_logger, task_run_logger

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")

sleep = time.sleep
"""Waits between the attempts of a function; replaced in tests."""
sleep_async = asyncio.sleep
"""Waits between the attempts of an ``async`` function; replaced in tests."""


# --- what a run is ------------------------------------------------------------------------------------


class Flow:
    """
    A flow, as far as its runs need to know: its name.

    Args:
        name: What its runs have in common.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Flow({self.name!r})"


class Task:
    """
    A task, as far as its runs need to know: its name.

    Args:
        name: What its runs have in common.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Task({self.name!r})"


class FlowRun(Run):
    """
    One run of a flow. `flow_run` makes them; so may you, for a `runlog.FlowRunContext`.

    Args:
        name: As for `Run`.
        id: As for `Run`.
        flow: The flow, if it is known.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        id: uuid.UUID | str | None = None,  # noqa: A002 - the attribute's name
        flow: Flow | None = None,
    ) -> None:
        super().__init__(name, id=id)
        self.flow = flow

    def _unopened_logger(self) -> RunLogAdapter:
        return flow_run_logger(self, self.flow)


class TaskRun(Run):
    """
    One run of a task. `task_run` makes them; so may you, for a `runlog.TaskRunContext`.

    Args:
        name: As for `Run`.
        id: As for `Run`.
        task: The task, if it is known.
        flow_run_id: Id of the flow run it belongs to, as text; by default the
            flow run around the context.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        id: uuid.UUID | str | None = None,  # noqa: A002 - the attribute's name
        task: Task | None = None,
        flow_run_id: uuid.UUID | str | None = None,
    ) -> None:
        super().__init__(name, id=id)
        self.task = task
        self.flow_run_id = None if flow_run_id is None else str(flow_run_id)

    def _unopened_logger(self) -> RunLogAdapter:
        return task_run_logger(self, self.task)


# --- what is opened -----------------------------------------------------------------------------------


class _RunOpener(Generic[RunT]):
    """
    Opens runs of one definition: one at a time with ``with``, one a call as a decorator.

    Not entered by two threads at once; functions that it decorated may be
    called by any number.
    """

    def __init__(
        self,
        name: str,
        *,
        id: uuid.UUID | str | None,  # noqa: A002 - the attribute's name
        run_name: str | None,
        log_prints: bool | None,
        extra: Mapping[str, Any],
    ) -> None:
        if not isinstance(name, str):
            kind = type(self).__name__
            raise TypeError(f'{kind} needs a name, got {type(name).__name__}; write @{kind}("...")')
        self.name = name
        self._id = None if id is None else to_uuid(id)
        self._run_name = run_name
        self._log_prints = log_prints
        self._extra = dict(extra)
        self._open: OpenRun[RunT] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def _new(self, run_name: str | None, where: Where) -> OpenRun[RunT]:
        """Return a run that is yet to start."""

    def __enter__(self) -> RunT:
        if self._open is not None:
            raise RuntimeError(
                f"{self!r} is open already; make another {type(self).__name__} to open a run inside"
            )
        opened = self._new(self._run_name, calling_line())
        opened.start()
        self._open = opened
        return opened.run

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is None:
            raise RuntimeError(f"{self!r} was left without having been entered")
        self._open.finish(exc)
        self._open = None

    async def __aenter__(self) -> RunT:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """
        Return *fn* such that each call of it, or each generator it makes, is a run of its own.

        Args:
            fn: A function, ``async`` function, generator function or ``async`` generator function.

        Raises:
            TypeError: If *fn* cannot be called.
            ValueError: If this has an id, which can name one run only, or a
                run name with a placeholder that is no parameter of *fn*.
        """
        if not callable(fn):
            raise TypeError(f"{self!r} decorates functions, got {type(fn).__name__}")
        if self._id is not None:
            raise ValueError(
                f"{self!r} has the id {self._id}: use it in a with statement, each call is a new run"
            )
        open_for_call = _CallOpener(self, fn)
        call: Callable[..., Any]
        if is_generator_function(fn):
            call = wrap_generator(fn, open_for_call.in_own_context)  # type: ignore[arg-type] # it is one
        elif is_async_generator_function(fn):
            call = wrap_async_generator(fn, open_for_call.in_own_context)  # type: ignore[arg-type] # it is one
        elif is_coroutine_function(fn):

            @functools.wraps(fn)
            async def call(*args: Any, **kwargs: Any) -> Any:
                opened = open_for_call(args, kwargs)
                while True:
                    opened.start()
                    try:
                        result = await fn(*args, **kwargs)  # type: ignore[misc] # it is a coroutine function
                    except BaseException as error:
                        delay = opened.finish_or_retry(error)
                        if delay is None:
                            raise
                    else:
                        opened.finish(None)
                        return result
                    await sleep_async(delay)

        else:

            @functools.wraps(fn)
            def call(*args: Any, **kwargs: Any) -> Any:
                opened = open_for_call(args, kwargs)
                while True:
                    opened.start()
                    try:
                        result = fn(*args, **kwargs)
                    except BaseException as error:
                        delay = opened.finish_or_retry(error)
                        if delay is None:
                            raise
                    else:
                        opened.finish(None)
                        return result
                    sleep(delay)

        return call


class flow_run(_RunOpener[FlowRun]):  # noqa: N801 - used like a function, as contextlib's are
    """
    Open a run of a flow, as a context manager or a decorator.

    ::

        with flow_run("nightly-etl", source="s3") as run:
            run.logger.info("...")


        @flow_run("nightly-etl", run_name="etl-{day}")
        async def etl(day: str) -> None: ...

    ``async with`` works too. Inside another run it is that run's child.

    Args:
        name: Name of the flow.
        id: Id of the run, a `uuid.UUID` or its text; a random one by default.
            Not for decorators: each call is a run of its own.
        run_name: Name of the run; by default a readable one such as
            ``swift-otter``. A decorator fills in ``{placeholders}`` with the
            arguments of the call.
        log_prints: Whether ``print`` inside writes to the run's log. By default
            as the run around it, and for the outermost ``PREFECT_LOGGING_LOG_PRINTS``.
        extra: Added to every line of the run.
    """

    def __init__(
        self,
        name: str,
        *,
        id: uuid.UUID | str | None = None,  # noqa: A002 - the attribute's name
        run_name: str | None = None,
        log_prints: bool | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(name, id=id, run_name=run_name, log_prints=log_prints, extra=extra)

    def _new(self, run_name: str | None, where: Where) -> OpenRun[FlowRun]:
        flow = Flow(self.name)
        run = FlowRun(run_name, id=self._id, flow=flow)

        def context_of(attempt: int | None) -> RunContext:  # noqa: ARG001 - a flow run has no attempts
            return FlowRunContext(run, flow, log_prints=self._log_prints, extra=self._extra)

        return OpenRun(run, f"Flow {self.name!r}", context_of, where)


class task_run(_RunOpener[TaskRun]):  # noqa: N801 - used like a function, as contextlib's are
    """
    Open a run of a task, as a context manager or a decorator.

    Works as `flow_run` does. A decorated function may be tried again: all
    attempts are one run with one id, and each line carries its ``attempt``.

    Args:
        name: Name of the task.
        id: As for `flow_run`.
        run_name: As for `flow_run`.
        attempt: Number of the attempt, or of the first, from 1; for programs
            that are started again themselves. By default 1 if there may be
            others, and not counted if not.
        retries: How many more times a decorated function is called after it
            raised an `Exception`.
        retry_delay: Seconds to wait before each of them.
        log_prints: As for `flow_run`.
        extra: Added to every line of the run.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        id: uuid.UUID | str | None = None,  # noqa: A002 - the attribute's name
        run_name: str | None = None,
        attempt: int | None = None,
        retries: int = 0,
        retry_delay: float = 0.0,
        log_prints: bool | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(name, id=id, run_name=run_name, log_prints=log_prints, extra=extra)
        if attempt is not None and attempt < 1:
            raise ValueError(f"attempt must be >= 1, got {attempt}")
        if retries < 0:
            raise ValueError(f"retries must be >= 0, got {retries}")
        if retry_delay < 0:
            raise ValueError(f"retry_delay must be >= 0 s, got {retry_delay}")
        self._attempt = attempt
        self._retries = retries
        self._retry_delay = retry_delay

    def __enter__(self) -> TaskRun:
        if self._retries:
            raise TypeError(f"{self!r} has retries: a with block cannot run again, decorate a function")
        return super().__enter__()

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """
        Return *fn* such that each call of it is a run of its own; see `flow_run`.

        Raises:
            TypeError: If there are retries and *fn* is a generator function:
                what it has yielded cannot be taken back.
            ValueError: As for `flow_run`.
        """
        if self._retries and (is_generator_function(fn) or is_async_generator_function(fn)):
            raise TypeError(
                f"{self!r} has retries, and {fn!r} is a generator function, which cannot run again"
            )
        return super().__call__(fn)

    def _new(self, run_name: str | None, where: Where) -> OpenRun[TaskRun]:
        task = Task(self.name)
        run = TaskRun(run_name, id=self._id, task=task)

        def context_of(attempt: int | None) -> RunContext:
            return TaskRunContext(run, task, log_prints=self._log_prints, attempt=attempt, extra=self._extra)

        return OpenRun(
            run,
            f"Task {self.name!r}",
            context_of,
            where,
            first_attempt=self._attempt or (1 if self._retries else None),
            retries=self._retries,
            retry_delay=self._retry_delay,
        )


class _CallOpener(Generic[RunT]):
    """Makes the run of one call of a decorated function."""

    def __init__(self, opener: _RunOpener[RunT], fn: Callable[..., Any]) -> None:
        self._opener = opener
        self._where = definition_of(fn)
        template = opener._run_name  # noqa: SLF001 - same module
        self._template = None if template is None else RunNameTemplate(template, fn)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OpenRun[RunT]:
        run_name = None if self._template is None else self._template.fill(args, kwargs)
        return self._opener._new(run_name, self._where)  # noqa: SLF001 - same module

    def in_own_context(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[contextvars.Context, Callable[[BaseException | None], object]]:
        """Start the run in a copy of the current context; return that, and what ends it."""
        opened = self(args, kwargs)
        context = contextvars.copy_context()
        context.run(opened.start)
        return context, opened.finish
