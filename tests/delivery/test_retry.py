"""What an answer means, and how long to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.delivery.retry import MAX_RETRY_AFTER, Answer, Backoff, Verdict, judge


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(200, acked=9), Verdict.ACKED),
        (Answer(201, acked=12), Verdict.ACKED),
        (Answer(200, acked=8), Verdict.RETRY),
        (Answer(200), Verdict.RETRY),
        (Answer(302, acked=9), Verdict.RETRY),
        (Answer(400), Verdict.SPLIT),
        (Answer(413), Verdict.SPLIT),
        (Answer(413, is_verdict=False), Verdict.SPLIT),
        (Answer(400, is_verdict=False), Verdict.RETRY),
        (Answer(422, is_verdict=False), Verdict.RETRY),
        (Answer(422), Verdict.SPLIT),
        (Answer(409, expected=3), Verdict.RESUME),
        (Answer(409), Verdict.RETRY),
        (Answer(401), Verdict.RETRY),
        (Answer(403), Verdict.RETRY),
        (Answer(404), Verdict.RETRY),
        (Answer(429), Verdict.RETRY),
        (Answer(500), Verdict.RETRY),
        (Answer(507), Verdict.RETRY),
        (Answer(None), Verdict.RETRY),
    ],
)
def test_judge(answer, verdict):
    """Only an acknowledgement that names the batch's last seq is one; the rest is narrowed down or tried again."""
    assert judge(answer, last_seq=9) is verdict


@given(failures=st.integers(1, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_backoff_bounds(failures, random):
    """A delay doubles with each failure up to the maximum, and is drawn from the upper half of its step."""
    step = min(30.0, 0.1 * 2 ** min(failures - 1, 60))
    assert step / 2 <= Backoff().delay(failures, random=random) <= step


@given(asked=st.floats(0, MAX_RETRY_AFTER), random=st.floats(0, 1, exclude_max=True))
def test_retry_after_is_obeyed(asked, random):
    """What the server asks for is never undercut, and exceeded by a fifth at most."""
    assert asked <= Backoff().delay(1, random=random, retry_after=asked) <= asked * 1.2


@pytest.mark.parametrize("asked", [1e9, 1e300, float("inf")])
def test_a_wrong_retry_after_does_not_silence_a_program(asked):
    """A server that asks for years gets an hour."""
    assert Backoff().delay(1, random=0.0, retry_after=asked) == MAX_RETRY_AFTER
