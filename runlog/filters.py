"""
Filters for handlers and loggers of the program's own, by run, by logger and by level.

Each takes plain arguments, so that `logging.config.dictConfig` can build it::

    filters:
      run: {"()": runlog.filters.RunFieldsFilter, missing: "-"}
      quiet: {"()": runlog.filters.ExcludeLoggersFilter, names: [httpx, urllib3]}

runlog's own formatters and handlers need none of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runlog.context import RUN_FIELDS, current_run_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

_IDS = frozenset(name for name in RUN_FIELDS if name.endswith("_id")) | {"attempt"}


class RunFieldsFilter(logging.Filter):
    """
    Put the active run's fields on every record that lacks them; let every record pass.

    So a format of the program's own may say ``%(flow_run_name)s`` for any
    logger. On a `logging.handlers.QueueHandler` it also preserves the run for
    the thread that listens. A record that has run fields keeps them.

    Args:
        missing: Value of names that a record has no run for; ids are `None` then,
            so that nothing takes the record for one of a run.
    """

    def __init__(self, missing: str | None = None) -> None:
        super().__init__()
        self._missing = missing

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete the record and let it pass."""
        own = record.__dict__
        if own.get("flow_run_id") is None and own.get("task_run_id") is None:
            for name, value in current_run_fields().items():
                if own.get(name) is None:
                    own[name] = value
        for name in RUN_FIELDS:
            if name not in own:
                own[name] = None if name in _IDS else self._missing
        return True


class ExcludeLoggersFilter(logging.Filter):
    """
    Drop the records of some loggers and of those below them.

    Args:
        names: Names of loggers, or one text with commas between them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        if isinstance(names, str):
            names = names.split(",")
        self._names = tuple(name.strip() for name in names if name.strip())
        self._prefixes = tuple(f"{name}." for name in self._names)

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record may pass."""
        return record.name not in self._names and not record.name.startswith(self._prefixes)


class MaxLevelFilter(logging.Filter):
    """
    Drop records above a level, to send what is left to standard output and the rest to standard error.

    Args:
        level: The highest level that passes, as number or name.

    Raises:
        ValueError: If there is no level of this name.
    """

    def __init__(self, level: int | str) -> None:
        super().__init__()
        if isinstance(level, str):
            known = logging.getLevelNamesMapping()
            if level.upper() not in known:
                raise ValueError(f"level must be one of {', '.join(known)} or a number, got {level!r}")
            level = known[level.upper()]
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record may pass."""
        return record.levelno <= self._level
