"""
The fields that say which run a log record belongs to, made from objects that describe runs.

`runlog.context` and `runlog.loggers` make them, every record of a run has them,
and `runlog.records` puts them on the wire. What describes a run is anything with
an ``id`` and a ``name``: our own objects, Prefect's, or a user's.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_FIELDS = (
    "flow_run_id",
    "flow_run_name",
    "flow_name",
    "task_run_id",
    "task_run_name",
    "task_name",
    "parent_flow_run_id",
    "parent_task_run_id",
    "attempt",
)
"""Names of the fields that say which run a record belongs to."""

RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""
Attributes that `logging` sets itself: `logging.Logger.makeRecord` refuses extras of these names.

The same on every Python, so that an extra has one name on all of them.
"""

UNKNOWN = "<unknown>"
"""Name of a flow or run whose name is not known."""


def flow_run_fields(
    flow_run: Any, flow: Any = None, *, around: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Return the fields of a flow run.

    Args:
        flow_run: Any object with ``id`` and ``name``.
        flow: Any object with ``name``, or the name itself.
        around: Fields of the run that it was started in.

    Raises:
        TypeError: If *flow_run* has no ``id``.
    """
    fields: dict[str, Any] = {
        "flow_run_id": id_of(flow_run, "flow_run"),
        "flow_run_name": name_of(flow_run),
        "flow_name": name_of(flow),
    }
    if around is not None:
        if around.get("flow_run_id") is not None:
            fields["parent_flow_run_id"] = around["flow_run_id"]
        if "task_run_id" in around:
            fields["parent_task_run_id"] = around["task_run_id"]
    return fields


def task_run_fields(
    task_run: Any,
    task: Any = None,
    flow_run: Any = None,
    flow: Any = None,
    *,
    around: Mapping[str, Any] | None = None,
    attempt: int | None = None,
) -> dict[str, Any]:
    """
    Return the fields of a task run.

    Args:
        task_run: Any object with ``id`` and ``name``, and possibly ``flow_run_id``.
        task: Any object with ``name``, or the name itself.
        flow_run: Its flow run, if that is at hand.
        flow: The flow of that.
        around: Fields of the run that it was started in; they give the flow run if *flow_run* does not.
        attempt: Which attempt it is, from 1.

    Raises:
        TypeError: If *task_run* or *flow_run* has no ``id``.
    """
    around = around or {}
    if flow_run is not None:
        of_flow = flow_run_fields(flow_run, flow)
    else:
        flow_run_id = getattr(task_run, "flow_run_id", None)
        flow_run_id = around.get("flow_run_id") if flow_run_id is None else str(flow_run_id)
        of_flow = {"flow_run_id": flow_run_id, "flow_run_name": UNKNOWN, "flow_name": name_of(flow)}
        if flow_run_id is not None and flow_run_id == around.get("flow_run_id"):
            of_flow.update((name, around[name]) for name in ("flow_run_name", "flow_name") if name in around)
    fields = {
        "task_run_id": id_of(task_run, "task_run"),
        "task_run_name": name_of(task_run),
        "task_name": name_of(task),
        **of_flow,
    }
    if attempt is not None:
        fields["attempt"] = attempt
    if "task_run_id" in around:
        fields["parent_task_run_id"] = around["task_run_id"]
    return fields


def id_of(run: Any, argument: str) -> str:
    """
    Return the id of a run as text.

    Raises:
        TypeError: If it has none, naming *argument*.
    """
    run_id = getattr(run, "id", None)
    if run_id is None:
        raise TypeError(f"{argument} must have an id (a UUID or text) and a name, got {type(run).__name__}")
    return str(run_id)


def name_of(named: Any) -> str:
    """Return the name of a flow, task or run, or of a text that is one; ``<unknown>`` if there is none."""
    name = named if isinstance(named, str) else getattr(named, "name", None)
    return UNKNOWN if name is None else str(name)


_warned_of: set[str] = set()


def rename_reserved(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return *extra* with a trailing underscore on the names that `logging` would refuse.

    Each name is warned of once in a process. Never raises for a name.
    """
    if RESERVED.isdisjoint(extra):
        return extra
    renamed = {}
    for key, value in extra.items():
        name = key
        if key in RESERVED:
            name = f"{key}_"
            while name in extra:
                name += "_"
            if key not in _warned_of:
                _warned_of.add(key)
                warn_at_caller(
                    f"extra {key!r} is an attribute of every log record, so it is logged as {name!r}"
                )
        renamed[name] = value
    return renamed


def warn_at_caller(text: str) -> None:
    """Issue a `RuntimeWarning` for the innermost line outside of runlog and `logging`; never raise."""
    ours = (os.path.dirname(__file__), os.path.dirname(logging.__file__))  # noqa: PTH120 - compared as text
    frame = sys._getframe(1)  # noqa: SLF001 - as `logging` and `warnings` do
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    # With -W error a warning is an exception, and a log call may not raise.
    with suppress(Exception):
        warnings.warn_explicit(text, RuntimeWarning, frame.f_code.co_filename, frame.f_lineno)
