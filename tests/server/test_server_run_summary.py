"""Runs are the same whatever order their lines arrive in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_FLOW, START, TASK, finished, line, started

from runlog.server.run_summary import LEVELS, level_index, merge, summarise

SECOND = 1_000_000_000


def run_of(*events, kind="flow", run_id=FLOW):
    return summarise(events)[0][kind, run_id]


def test_a_run_that_started_is_running():
    """An opening event alone makes a run that is running, and is told by its attributes."""
    run = run_of(started(extra={"source": "s3", "runlog.x": 1, "thread.id": 5}))
    assert (run.state, run.ended_ns, run.duration_s) == ("RUNNING", None, None)
    assert run.attributes == {"source": "s3"}


def test_lines_without_events_make_an_unknown_run():
    """A run that only logs began with its first line, and its state is not known."""
    run = run_of(line(at=2, flow_run_id=FLOW), line(at=1, flow_run_id=FLOW))
    assert (run.state, run.started_ns, run.last_line_ns) == ("UNKNOWN", START + SECOND, START + 2 * SECOND)
    assert run.attributes == {}


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_run_that_ended_has_its_state(state):
    """The closing event gives state, time and duration; later lines change none of them."""
    run = run_of(started(), finished(at=3, state=state, duration=2.9), line(at=9, flow_run_id=FLOW))
    assert (run.state, run.ended_ns, run.duration_s) == (state, START + 3 * SECOND, 2.9)
    assert run.last_line_ns == START + 9 * SECOND


def test_a_run_that_starts_again_is_running_again():
    """A run whose last event is an opening one has not ended, and began with the first."""
    run = run_of(started(), finished(at=1), started(at=2, extra={"again": 1}))
    assert (run.state, run.ended_ns, run.started_ns) == ("RUNNING", None, START)
    assert run.attributes == {}


def test_an_end_in_the_microsecond_of_the_start_counts():
    """A run that is over at once has ended."""
    assert run_of(finished(at=0), started(at=0)).state == "COMPLETED"


def test_attempts_are_counted():
    """The highest attempt that any line or event tells is the run's."""
    run = run_of(
        started(TASK, kind="task", attempt=1),
        line(at=1, task_run_id=TASK, attempt=3),
        started(TASK, kind="task", at=2, attempt=2),
        kind="task",
        run_id=TASK,
    )
    assert run.attempt == 3


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"runlog.run.state": "PERPLEXED"},
        {"runlog.run.state": ["FAILED"]},
        {"runlog.run.state": None, "runlog.run.duration_s": 1.0},
    ],
)
def test_a_malformed_end_is_an_ordinary_line(attributes):
    """A closing event without a state that we know ends nothing."""
    run = run_of(
        started(), line(at=1, flow_run_id=FLOW, event_name="runlog.run.finished", attributes=attributes)
    )
    assert (run.state, run.lines) == ("RUNNING", 2)


@pytest.mark.parametrize("duration", [None, "long", -1, True, 1e300, [1]])
def test_a_malformed_duration_is_none(duration):
    """A duration that is no sensible number is not told; the end counts all the same."""
    run = run_of(finished(duration=duration))
    assert run.state == "COMPLETED"
    assert run.duration_s is None


@pytest.mark.parametrize("attempt", [0, -1, 2**40, "2", True])
def test_a_malformed_attempt_is_none(attempt):
    """An attempt that cannot be one is not counted."""
    event = line(
        flow_run_id=FLOW, event_name="runlog.run.started", attributes={"runlog.run.attempt": attempt}
    )
    assert run_of(event).attempt is None


def test_an_event_of_a_task_is_not_its_flows():
    """Opening a task run neither opens its flow run nor names that one's parent or attempt."""
    runs, _ = summarise(
        [started(TASK, kind="task", flow_run_id=FLOW, parent_task_run_id="outer", attempt=2, flow_name="etl")]
    )
    flow, task = runs["flow", FLOW], runs["task", TASK]
    assert (flow.state, flow.parent_id, flow.attempt, flow.text("flow_name")) == (
        "UNKNOWN",
        None,
        None,
        "etl",
    )
    assert (task.state, task.parent_id, task.attempt) == ("RUNNING", "outer", 2)


def test_parents_are_the_innermost_run_around():
    """A task's parent is its task, else its flow; a flow's the task it was opened in, else the flow."""
    runs, _ = summarise(
        [
            line(task_run_id="a", flow_run_id=FLOW),
            line(task_run_id="b", flow_run_id=FLOW, parent_task_run_id="a"),
            line(flow_run_id="c", parent_flow_run_id=FLOW),
            line(flow_run_id="d", parent_flow_run_id=FLOW, parent_task_run_id="a"),
            line(task_run_id="e"),
            line(flow_run_id="f", parent_flow_run_id="f"),
        ]
    )
    parents = {run_id: run.parent_id for (_, run_id), run in runs.items()}
    assert parents == {FLOW: None, "a": FLOW, "b": "a", "c": FLOW, "d": "a", "e": None, "f": None}


def test_a_known_name_beats_an_unknown_one():
    """A name counts for more than none or a placeholder, and of two names the later."""
    run = run_of(
        line(at=1, flow_run_id=FLOW, flow_run_name="first", flow_name="<unknown>"),
        line(at=2, flow_run_id=FLOW, flow_run_name="second", flow_name="etl"),
        line(at=3, flow_run_id=FLOW, flow_run_name="<unknown>", flow_name=None),
    )
    assert (run.name, run.text("flow_name")) == ("second", "etl")


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (-5, "DEBUG"),
        (0, "DEBUG"),
        (10, "DEBUG"),
        (19, "DEBUG"),
        (20, "INFO"),
        (25, "INFO"),
        (30, "WARNING"),
        (39, "WARNING"),
        (40, "ERROR"),
        (50, "CRITICAL"),
        (1000, "CRITICAL"),
    ],
)
def test_a_level_counts_as_the_one_below(level, name):
    """Custom levels are counted under the standard one below them."""
    assert LEVELS[level_index(level)] == name


def test_equal_scopes_are_one_object():
    """Lines of the same run share their scope, in the order of the lines."""
    events = [line(flow_run_id=run_id) for run_id in (FLOW, OTHER_FLOW, f"{FLOW[:4]}{FLOW[4:]}")]
    _, scopes = summarise(events)
    assert scopes[0] is scopes[2]
    assert [scope.flow_run_id for scope in scopes] == [FLOW, OTHER_FLOW, FLOW]


names = st.sampled_from([None, "<unknown>", "owl", "elk"])
ids = st.sampled_from([None, "a", "b", "c"])
events = st.builds(
    line,
    st.just("x"),
    at=st.integers(0, 5),
    level=st.sampled_from([5, 10, 20, 30, 40, 50]),
    flow_run_id=ids,
    flow_run_name=names,
    flow_name=names,
    task_run_id=ids,
    task_run_name=names,
    task_name=names,
    parent_flow_run_id=ids,
    parent_task_run_id=ids,
    attempt=st.none() | st.integers(1, 3),
    event_name=st.sampled_from([None, None, "runlog.run.started", "runlog.run.finished", "other"]),
    attributes=st.fixed_dictionaries(
        {"runlog.run.state": st.sampled_from(["RUNNING", "COMPLETED", "FAILED", "odd"])},
        optional={
            "runlog.run.duration_s": st.floats(0, 10),
            "runlog.run.attempt": st.integers(0, 4),
            "source": st.sampled_from(["s3", "disk"]),
        },
    ),
)


@given(st.lists(st.lists(events, max_size=5), max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_arrival_makes_no_difference(batches, random):
    """Whole or in batches, in any order, merged in any grouping: the runs are the same."""
    whole, _ = summarise([event for batch in batches for event in batch])
    shuffled = [random.sample(batch, len(batch)) for batch in random.sample(batches, len(batches))]
    merged = {}
    for batch in shuffled:
        for key, run in summarise(batch)[0].items():
            known = merged.get(key)
            if known is None:
                merged[key] = run
            else:
                merged[key] = merge(known, run) if random.random() < 0.5 else merge(run, known)
    assert merged == whole
