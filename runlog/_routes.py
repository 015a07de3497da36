"""
Which handlers see a logger's lines, and whether one that needs no `LogRecord` is alone with them.

Making a record, and carrying it from handler to handler, is most of what a log
call costs. `runlog.loggers` asks here whether anybody would look at it. Every
way in which `logging` lets a program look is asked for at every call, so that a
handler or filter that is added, a record factory that is set, or a method of
`logging.Logger` that is replaced, counts from the next call on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    DirectSend = Callable[[int, Any, tuple[Any, ...], dict[str, Any] | None, FrameType], bool]
    """
    Takes level, message, arguments, extras and the caller's frame of one call.

    `False` if it cannot be taken without a record: nothing has happened then.
    """


class DirectHandler(Protocol):
    """A handler that can do without records."""

    def direct(self, logger_name: str, fields: Mapping[str, Any]) -> DirectSend | None:
        """Return what takes the calls of a run logger with these fields; `None` if it needs records."""


_Logger = logging.Logger
_LOG, _MAKE_RECORD, _HANDLE, _CALL_HANDLERS = (
    _Logger._log,  # noqa: SLF001 - what others replace
    _Logger.makeRecord,
    _Logger.handle,
    _Logger.callHandlers,
)


class Route:
    """
    The way of a logger's lines, as it was when this was made. Not changed afterwards.

    Args:
        logger: Where they begin.
        fields: What its adapter puts on each of them.
    """

    __slots__ = ("_logger", "_steps", "others", "send")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, Any]) -> None:
        self._logger = logger
        steps = []
        handlers: list[logging.Handler] = []
        step: logging.Logger | None = logger
        while step is not None:
            steps.append((step, list(step.handlers), step.propagate, step.parent))
            handlers += steps[-1][1]
            step = step.parent if step.propagate else None
        self._steps = tuple(steps)
        direct = [handler for handler in handlers if hasattr(handler, "direct")]
        self.others = tuple(handler for handler in handlers if handler not in direct)
        """Handlers that need records."""
        self.send: DirectSend | None = None
        """Takes a call that no other handler is for, while the route is unwatched; `None` if nothing can."""
        if len(direct) == 1 and type(logger) is _Logger:
            self.send = direct[0].direct(logger.name, fields)

    def holds(self) -> bool:
        """Return whether it is still the way that a record would go."""
        for logger, handlers, propagates, parent in self._steps:
            if (
                logger.handlers != handlers
                or logger.propagate is not propagates
                or logger.parent is not parent
            ):
                return False
        return True

    def is_unwatched(self) -> bool:
        """Return whether nobody but handlers would see a record on its way."""
        return (
            not self._logger.filters
            and logging._logRecordFactory is logging.LogRecord  # type: ignore[attr-defined]  # noqa: SLF001 - at a tenth of the price of asking
            and _Logger.callHandlers is _CALL_HANDLERS
            and _Logger.handle is _HANDLE
            and _Logger._log is _LOG  # noqa: SLF001 - as above
            and _Logger.makeRecord is _MAKE_RECORD
        )
