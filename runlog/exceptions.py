"""
Every exception that runlog raises on purpose.

::

    RunlogError
    ├── MissingContextError        (RuntimeError) no flow or task run is active
    ├── ConfigurationError         (ValueError) a setting or a logging configuration is wrong
    │   ├── SettingsError
    │   └── LoggingConfigError
    ├── QueryError                 (ValueError) a query or filter cannot be understood
    ├── QueryTimeoutError          (TimeoutError) a query takes longer than a server may spend on it
    ├── RecordTooLargeError        (ValueError) one record exceeds a batch
    ├── MissingDependencyError     (ImportError) an optional package is not installed
    ├── APIError                   the log server answered with an error
    │   ├── ServerUnreachableError (ConnectionError) it did not answer at all
    │   ├── RunNotFoundError       (LookupError)
    │   └── AmbiguousRunError      (LookupError) several runs match
    └── StorageError               the server's store cannot be used
        ├── StorageInUseError      another server has it
        ├── SchemaVersionError     written by another version of runlog
        └── StorageFullError       no room for more lines

A log call raises none of them, with one exception that the user asks for:
``PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW=error``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RunlogError(Exception):
    """Base class of all exceptions that runlog raises on purpose."""


class MissingContextError(RunlogError, RuntimeError):
    """No flow or task run is active where one is needed."""


class ConfigurationError(RunlogError, ValueError):
    """
    A setting or a logging configuration is wrong.

    The message names what is wrong, what was expected, what was found and what
    to do; the same facts are attributes.

    Args:
        problem: One sentence that names the setting or key, expected and got.
        key: Name of the setting, or dotted path of the key; `None` if the
            whole file is meant.
        file: Path of the file, with ``:line`` if known; `None` if there is none.
        expected: What would have been right.
        got: What was found, as text; a secret is never passed here.
        remedy: What to do, as a sentence without a full stop.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        file: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.key = key
        self.file = file
        self.expected = expected
        self.got = got
        self.remedy = remedy
        text = f"{file}: {problem}" if file else problem
        super().__init__(f"{text}; {remedy}" if remedy else text)


class SettingsError(ConfigurationError):
    """A setting has a value that it cannot have, or settings contradict each other."""


class LoggingConfigError(ConfigurationError):
    """A logging configuration file, or an override of it, is wrong."""


class QueryError(RunlogError, ValueError):
    """
    A query or filter cannot be understood.

    Args:
        message: What was expected and what came.
        position: Offset of the offending character in the expression, from 0;
            `None` if the query is not text.
    """

    def __init__(self, message: str, *, position: int | None = None) -> None:
        self.position = position
        super().__init__(message)


class QueryTimeoutError(RunlogError, TimeoutError):
    """
    A query takes longer than a server may spend on it.

    Args:
        seconds: What it was given.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"the query took longer than {seconds:g} s and was given up; narrow it by run, time or level"
        )


class RecordTooLargeError(RunlogError, ValueError):
    """
    One encoded record alone exceeds the largest batch.

    Args:
        size_bytes: Encoded size of the record.
        limit_bytes: Most bytes that a batch may have.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"a record of {size_bytes} bytes exceeds the largest batch, {limit_bytes} bytes")


class MissingDependencyError(RunlogError, ImportError):
    """
    An optional package is needed and not installed.

    Args:
        feature: What needs it, as a dotted name or a command.
        package: The package that is missing.
        extra: The extra of runlog that installs it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.feature = feature
        self.package = package
        self.extra = extra
        super().__init__(f"{feature} needs {package}; install it with: pip install 'runlog[{extra}]'")


class APIError(RunlogError):
    """
    The log server answered with an error.

    Args:
        message: What was asked and what came back, without any secret.
        status: HTTP status code; `None` if no answer came.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class ServerUnreachableError(APIError, ConnectionError):
    """The log server did not answer."""


class RunNotFoundError(APIError, LookupError):
    """No run has this id, id prefix or name."""


class AmbiguousRunError(APIError, LookupError):
    """
    Several runs match a name or an id prefix.

    Args:
        message: What was asked.
        candidates: The ids of the runs that match, newest first; possibly cut.
    """

    def __init__(self, message: str, *, candidates: Sequence[str] = (), status: int | None = None) -> None:
        self.candidates = tuple(candidates)
        super().__init__(message, status=status)


class StorageError(RunlogError):
    """The server's store cannot be used."""


class StorageInUseError(StorageError):
    """Another server has the store."""


class SchemaVersionError(StorageError):
    """
    The store was written by another version of runlog.

    Args:
        found: Schema version in the store.
        supported: Newest schema version that this runlog knows.
    """

    def __init__(self, found: int, supported: int) -> None:
        self.found = found
        self.supported = supported
        super().__init__(
            f"the database has schema version {found}, this runlog knows up to {supported}; "
            "use the runlog that wrote it, or a newer one"
        )


class StorageFullError(StorageError):
    """The disk under the store has no room for more lines."""
