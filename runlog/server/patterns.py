"""
Regular expressions from outside, and the time that a question may take.

A pattern such as ``(a|aa)+$`` takes other engines longer than the universe will
last. RE2 goes over a text once, whatever the pattern, within bounded memory, and
lets other threads run meanwhile: no single search can hang a thread, and the time
limit of a question is looked at between them. Its price: no look-around and no
references back, which it says when it is given one.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from runlog.exceptions import MissingDependencyError, QueryError, QueryTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PATTERN_LENGTH = 1000
"""Characters in a pattern."""

MAX_SEARCHED_BYTES = 100_000
"""Bytes of a text that are searched, from its beginning: at most 0.1 s of work for the worst of patterns."""

_MAX_PATTERN_BYTES = 4 * 1024 * 1024
"""Memory for one compiled pattern and its states."""


class TimeLimit:
    """
    When a question has to be given up. Used by one thread.

    Args:
        seconds: How long it may take from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() >= self._end

    def error(self) -> QueryTimeoutError:
        """Return what to raise then."""
        return QueryTimeoutError(self.seconds)

    def check(self) -> None:
        """
        Give up if it is time.

        Raises:
            QueryTimeoutError: If it is.
        """
        if self.is_over():
            raise self.error()


@functools.lru_cache(maxsize=128)
def searcher(pattern: str, *, ignore_case: bool = False) -> Callable[[bytes], bool]:
    """
    Return a function that tells whether a pattern occurs in a text, given as UTF-8.

    Cached: storages ask for it at each row.

    Raises:
        QueryError: If it is no pattern, or one that RE2 does not have.
        MissingDependencyError: If RE2 is not installed.
    """
    try:
        import re2  # noqa: PLC0415 - for queries with patterns only
    except ImportError as error:
        raise MissingDependencyError("a regular expression", "google-re2", "server") from error

    if len(pattern) > MAX_PATTERN_LENGTH:
        raise QueryError(
            f"a regular expression has at most {MAX_PATTERN_LENGTH} characters, got {len(pattern)}"
        )
    options = re2.Options()
    options.max_mem = _MAX_PATTERN_BYTES
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        search = re2.compile(pattern.encode(), options).search
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise QueryError(f"not a regular expression (RE2 syntax): {text[:200]}") from error
    return lambda text: search(text[:MAX_SEARCHED_BYTES]) is not None
