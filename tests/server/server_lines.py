"""Lines and batches for the server's tests, and a way to wait for asynchronous answers."""

from __future__ import annotations

import msgspec

from runlog.records import EventBatch, LogEvent

FLOW = "11111111-1111-4111-8111-111111111111"
OTHER_FLOW = "22222222-2222-4222-8222-222222222222"
TASK = "33333333-3333-4333-8333-333333333333"

PRODUCER = "0123456789abcdef0123"
OTHER_PRODUCER = "fedcba9876543210fedc"

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
"""2023-11-14T22:13:20Z"""


def line(message="hello", *, at=0, level=20, name="runlog.flow_runs", **fields):
    """A line *at* seconds after `START`."""
    return LogEvent(
        timestamp_ns=START + round(at * SECOND), level=level, name=name, message=message, **fields
    )


def started(run_id=FLOW, *, at=0, kind="flow", attempt=None, extra=None, **fields):
    """The line that opens a run."""
    attributes = {"runlog.run.state": "RUNNING", "code.line.number": 1, **(extra or {})}
    if attempt is not None:
        attributes["runlog.run.attempt"] = attempt
    return line(
        "started",
        at=at,
        event_name="runlog.run.started",
        attributes=attributes,
        attempt=attempt,
        **{f"{kind}_run_id": run_id, **fields},
    )


def finished(run_id=FLOW, *, at=1, kind="flow", state="COMPLETED", duration=1.0, **fields):
    """The line that ends a run."""
    return line(
        "finished",
        at=at,
        event_name="runlog.run.finished",
        attributes={"runlog.run.state": state, "runlog.run.duration_s": duration},
        **{f"{kind}_run_id": run_id, **fields},
    )


def batch(*events, producer=PRODUCER, first_seq=0, **rest):
    return EventBatch(producer=producer, first_seq=first_seq, events=list(events), **rest)


def encoded(*events, **rest):
    return msgspec.json.encode(batch(*events, **rest))
