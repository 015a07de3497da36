"""
Where in a run's lines some are missing, and how that is shown.

A producer's lines are numbered without a hole, so a loss lies between two of
them; it is shown above the later one. Which numbers are lost, and not just
another run's, is in the run's receipt. It is asked for only once a number was
left out, so that the lines of most runs cost no further question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from runlog.rendering import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runlog.cli.lines import Style

NEVER_CAME = "they never came"
"""What is said of lines whose loss nobody reported."""


class _Loss(NamedTuple):
    first_seq: int
    length: int
    reason: str


class LossMarks:
    """
    Tell, for lines that are shown in order, which of them come after a loss.

    Args:
        read_receipt: Returns the run's receipt, as `runlog.client.LogReader.receipt`
            does; called once at most.
        style: Puts a text in colour.
    """

    def __init__(self, read_receipt: Callable[[], dict[str, Any]], style: Style) -> None:
        self._read_receipt = read_receipt
        self._style = style
        self._losses: dict[str, list[_Loss]] | None = None
        self._reached: dict[str, int] = {}

    def before(self, log: dict[str, Any]) -> Iterator[str]:
        """
        Yield what is to be shown above a line: the losses between it and the line before of its producer.

        Args:
            log: The next line that is shown, as `runlog.client.LogReader.logs` yields it.
        """
        producer, seq = log.get("producer"), log.get("seq")
        if not isinstance(producer, str) or not isinstance(seq, int):
            return
        reached = self._reached.get(producer)
        self._reached[producer] = seq if reached is None else max(reached, seq)
        if reached is None or seq <= reached + 1:  # threads may overtake each other by a few numbers
            return
        if self._losses is None:
            self._losses = {
                str(share.get("producer")): _losses(share)
                for share in self._read_receipt().get("producers") or ()
            }
        for loss in self._losses.get(producer, ()):
            if reached < loss.first_seq < seq:
                yield self._style(_text(loss), fg="yellow")


def _losses(share: dict[str, Any]) -> list[_Loss]:
    """Return what one producer lost, in order; runs of one reason as one."""
    parts = [*(share.get("dropped_ranges") or ()), *(share.get("missing_ranges") or ())]
    found: list[_Loss] = []
    for part in sorted(parts, key=lambda part: part["first_seq"]):
        loss = _Loss(part["first_seq"], part["count"], str(part.get("reason", NEVER_CAME)))
        last = found[-1] if found else None
        if last and (last.first_seq + last.length, last.reason) == (loss.first_seq, loss.reason):
            found[-1] = last._replace(length=last.length + loss.length)
        else:
            found.append(loss)
    return found


def _text(loss: _Loss) -> str:
    one = loss.length == 1
    return f"--- {loss.length:,} line{' is' if one else 's are'} missing here: {visible(loss.reason)} ---"
