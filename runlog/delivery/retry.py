"""
What an answer of the server means, and when to try again. Pure: no I/O, no randomness of its own.

`judge` is the one place that decides whether a failure is worth another try;
`Backoff` says how long to wait for it.
"""

from __future__ import annotations

import email.utils
import enum
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one batch, or what kept an answer from coming."""

    status: int | None
    """HTTP status; `None` if there was no answer."""
    acked: int | None = None
    """The seq that the body acknowledges; `None` if it names none."""
    expected: int | None = None
    """The seq that the server waits for, in a 409."""
    retry_after: float | None = None
    """Seconds that the server asked to be left alone."""
    detail: str = ""
    """One line for people, without secrets."""
    is_verdict: bool = True
    """Whether the log server itself speaks, and not a proxy before it, which knows nothing of the lines."""


def retry_after_seconds(value: str | None) -> float | None:
    """Return the seconds in a ``Retry-After`` header (:rfc:`9110`, 10.2.3), which may also be a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


MAX_RETRY_AFTER = 3600.0
"""Most seconds for which a server is left alone: a wrong header must not silence a program for good."""


class Verdict(enum.Enum):
    """What to do with a batch after an answer."""

    ACKED = "acked"
    """The server has it: forget it."""
    RETRY = "retry"
    """Send it again, later."""
    SPLIT = "split"
    """Send it again in halves, at once; a batch of one event is given up."""
    RESUME = "resume"
    """The server waits for another seq: continue from there."""


def judge(answer: Answer, *, last_seq: int) -> Verdict:
    """
    Decide what an answer means for the batch that ends at *last_seq*.

    Only a body that names the batch's last seq, or a later one, counts as
    success: an empty 200 from a proxy in between stored nothing. 413 means that
    the batch is too large, whoever says so; 400 and 422 of the log server itself
    that something in it is not acceptable; both are narrowed down by halving.
    Everything else may pass: refused keys (401, 403) get fixed, missing routes
    (404) get deployed, servers restart.
    """
    status = answer.status
    if status is not None and 200 <= status < 300 and answer.acked is not None and answer.acked >= last_seq:
        return Verdict.ACKED
    if status == 413 or (status in (400, 422) and answer.is_verdict):
        return Verdict.SPLIT
    if status == 409 and answer.expected is not None:
        return Verdict.RESUME
    return Verdict.RETRY


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    Waiting times between tries: exponential with full jitter above half.

    A delay is drawn from the upper half of its step, so that many clients of a
    server that comes back spread out, and none hammers it.
    """

    initial: float = 0.1
    """Seconds before the first retry, at most."""
    maximum: float = 30.0
    """Seconds that no delay exceeds, unless the server asks for more."""

    def delay(self, failures: int, *, random: float, retry_after: float | None = None) -> float:
        """
        Return the seconds to wait.

        Args:
            failures: Failures in a row, at least 1.
            random: From 0 up to 1.
            retry_after: What the server asked for, in seconds, up to
                `MAX_RETRY_AFTER`; never undercut, and exceeded by up to a fifth,
                so that not all come at once.
        """
        if retry_after is not None:
            return min(max(retry_after, 0.0), MAX_RETRY_AFTER) * (1 + 0.2 * random)
        step = min(self.maximum, self.initial * 2.0 ** min(failures - 1, 60))
        return step * (0.5 + 0.5 * random)
