"""
One run from its start to its end: its context, its state, its two records.

`runlog.runs` makes an `OpenRun` for each ``with`` block and each call, and tells
it what happens. What became of a run is decided here alone, and so is which of
several runs logs the traceback of an exception that passes through them: the
innermost does, the others name it in one line.

The two records are ordinary ones of the run's logger; see `runlog.runs` for what
they hold. Handlers with a true ``accepts_run_events`` get them even if the level
of the logger is too high, so that a server knows the state of every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import sys
import time
import uuid
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from runlog._run_names import readable_name
from runlog.loggers import RunLogAdapter, get_run_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from runlog.context import RunContext

RunT = TypeVar("RunT", bound="Run")

State: TypeAlias = Literal["RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
"""What a run is, or became."""


class Run:
    """
    Base of `FlowRun` and `TaskRun`.

    Args:
        name: Name of this one run; a readable one is made of the id if there is none.
        id: A `uuid.UUID`, or its text; a random one by default.

    Raises:
        ValueError: If *id* is not a UUID.
    """

    def __init__(self, name: str | None = None, *, id: uuid.UUID | str | None = None) -> None:  # noqa: A002
        self.id = to_uuid(id)
        self.name = name or readable_name(self.id)
        self.state: State | None = None
        """`None` until the run has started."""
        self.attempt: int | None = None
        """Which attempt it is, from 1; `None` if that is not counted."""
        self.flow_run_id: str | None = None
        """Id of the flow run that it is or belongs to, as text; `None` if that is not known."""
        self._context: RunContext | None = None

    @property
    def logger(self) -> RunLogAdapter:
        """The run's logger, also outside of the run."""
        return self._unopened_logger() if self._context is None else get_run_logger(self._context)

    @abstractmethod
    def _unopened_logger(self) -> RunLogAdapter:
        """Return the logger of a run that no context is known of."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} ({self.id}), {self.state or 'not started'}>"


def to_uuid(value: uuid.UUID | str | None) -> uuid.UUID:
    if value is None:
        return uuid.uuid4()
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"id must be a UUID or its text, got {value!r}") from None


class Where(NamedTuple):
    """A place in the program: what the two records of a run point at."""

    path: str
    line: int
    function: str


class OpenRun(Generic[RunT]):
    """
    One run from its start to its end, over all attempts.

    Args:
        run: Kept up to date.
        title: What messages call the run. Not by its name, which every line shows anyway.
        context_of: Makes the context of an attempt.
        where: Place in the program that opened the run.
        first_attempt: Number of the first attempt; `None` if they are not counted.
        retries: How many attempts may follow the first.
        retry_delay: Seconds between attempts.
    """

    def __init__(
        self,
        run: RunT,
        title: str,
        context_of: Callable[[int | None], RunContext],
        where: Where,
        *,
        first_attempt: int | None = None,
        retries: int = 0,
        retry_delay: float = 0.0,
    ) -> None:
        self.run = run
        self._title = title
        self._context_of = context_of
        self._where = where
        self._attempt = first_attempt
        self._last_attempt = None if first_attempt is None else first_attempt + retries
        self._retry_delay = retry_delay
        self._started_at: float | None = None
        self._context: RunContext

    def start(self) -> None:
        """Enter the run, and say so."""
        run = self.run
        self._context = self._context_of(self._attempt)
        self._context.__enter__()
        run._context = self._context  # noqa: SLF001 - ours
        run.attempt = self._attempt
        run.state = "RUNNING"
        run.flow_run_id = self._context.fields["flow_run_id"]
        if self._started_at is None:
            self._started_at = time.monotonic()
        try:
            self._report("runlog.run.started", logging.INFO, f"started{self._attempt_text()}")
        except BaseException:
            self._context.__exit__(None, None, None)
            raise

    def finish(self, error: BaseException | None) -> None:
        """
        Leave the run, and say what became of it.

        Raises:
            RuntimeError: If a run that was entered later is active; then nothing has changed.
        """
        # First, since it may refuse. The record has its fields whatever is active.
        self._context.__exit__(None, None, None)
        assert self._started_at is not None
        seconds = time.monotonic() - self._started_at
        state = self.run.state = _state_after(error)
        text = {"COMPLETED": "completed in", "FAILED": "failed after", "CANCELLED": "cancelled after"}[state]
        level = {"COMPLETED": logging.INFO, "FAILED": logging.ERROR, "CANCELLED": logging.WARNING}[state]
        text = f"{text} {_duration(seconds)}"
        if state == "FAILED":
            assert error is not None
            text += f": {_describe(error)}"
        failure = error if state == "FAILED" else None
        self._report("runlog.run.finished", level, text, failure, {"runlog.run.duration_s": seconds})

    def finish_or_retry(self, error: BaseException) -> float | None:
        """
        Leave the run, or only this attempt at it, and say which.

        Returns:
            Seconds until the next attempt may `start`; `None` if the run is over.
        """
        attempt = self._attempt
        if attempt is None or attempt == self._last_attempt or not isinstance(error, Exception):
            self.finish(error)
            return None
        self._context.__exit__(None, None, None)
        text = f"failed{self._attempt_text()}, retrying in {self._retry_delay:g} s: {_describe(error)}"
        self._report(None, logging.WARNING, text, error)
        self._attempt = attempt + 1
        return self._retry_delay

    def _attempt_text(self) -> str:
        if self._attempt is None:
            return ""
        of = f" of {self._last_attempt}" if self._last_attempt != self._attempt or self._attempt > 1 else ""
        return f", attempt {self._attempt}{of}"

    def _report(
        self,
        event_name: str | None,
        level: int,
        text: str,
        error: BaseException | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        adapter = get_run_logger(self._context)
        logger = adapter.logger
        if logger.disabled:
            return
        extra = {**self._context.fields, **(facts or {})}
        if event_name is not None:
            extra |= {"event_name": event_name, "runlog.run.state": self.run.state}
        if self._attempt is not None:
            extra["runlog.run.attempt"] = self._attempt
        exc_info = None
        if error is not None and not _is_reported(error, self._context):
            exc_info = (type(error), error, error.__traceback__)
            _mark_reported(error, self._context)
        # Not through `adapter.log`: the place is where the run was opened, not a line in this file.
        record = logger.makeRecord(
            logger.name,
            level,
            *self._where[:2],
            "%s %s",
            (self._title, text),
            exc_info,
            self._where.function,
            extra,
        )
        is_enabled = logger.isEnabledFor(level)
        if is_enabled:
            logger.handle(record)
        if event_name is not None:
            for handler in _handlers_above(logger):
                if not (is_enabled and level >= handler.level) and getattr(
                    handler, "accepts_run_events", False
                ):
                    handler.handle(record)


def _handlers_above(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Yield the handlers that a record of the logger reaches."""
    above: logging.Logger | None = logger
    while above is not None:
        yield from above.handlers
        above = above.parent if above.propagate else None


def _state_after(error: BaseException | None) -> State:
    """Return the state of a run that ended with *error*; this function alone decides."""
    if error is None:
        return "COMPLETED"
    if isinstance(error, GeneratorExit):
        # The generator around the run was closed: whoever read it had enough. `break` is no failure.
        return "COMPLETED"
    if isinstance(error, SystemExit):
        return (
            "COMPLETED"
            if error.code is None or (isinstance(error.code, int) and error.code == 0)
            else "FAILED"
        )
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return "CANCELLED"
    return "FAILED"


_REPORTED = "_runlog_reported_in"
"""
Attribute of an exception whose traceback was logged: ids of the run that did, and of those around it.

On the exception, because it must not be kept alive by us, and because it goes
with the exception from a worker process to its parent.
"""


def _is_reported(error: BaseException, context: RunContext) -> bool:
    """Whether a run inside this one has logged the traceback."""
    by = getattr(error, _REPORTED, ())
    # An exception object can be raised again and again: what another run or attempt logged does not count.
    return context.run_id in by[1:]


def _mark_reported(error: BaseException, context: RunContext) -> None:
    ids = []
    around: RunContext | None = context
    while around is not None:
        ids.append(around.run_id)
        around = around.outer
    with contextlib.suppress(Exception):  # an exception class may refuse attributes
        setattr(error, _REPORTED, tuple(ids))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _describe(error: BaseException) -> str:
    """Return type and first line of an exception, whatever its ``__str__`` does."""
    try:
        lines = str(error).splitlines()
    except Exception as fault:
        lines = [f"<unprintable: {type(fault).__name__}>"]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


_PASSED_OVER = (
    __file__,
    contextlib.__file__,
    *(str(Path(__file__).with_name(name)) for name in ("runs.py", "_stepping.py")),
)
"""Files whose lines say nothing about where a run was opened."""


def definition_of(fn: Any) -> Where:
    """Return where a function is defined, or where it is decorated if that is not known."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return calling_line() if code is None else Where(code.co_filename, code.co_firstlineno, code.co_name)


def calling_line() -> Where:
    """Return the innermost line outside of the modules that open runs, and of contextlib."""
    frame = sys._getframe(1)  # noqa: SLF001 - as `logging` does
    while frame.f_back is not None and frame.f_code.co_filename in _PASSED_OVER:
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
