"""
Logging for workflow runs.

A program opens a flow run and task runs; every line it logs knows its run; the
lines go to the console and, in the background, to a log server that stores
each of them once, answers queries and streams them live::

    from runlog import flow_run, get_run_logger, setup_logging, task_run

    setup_logging()
    with flow_run("nightly-etl"), task_run("extract"):
        get_run_logger().info("loaded %d rows", 42, extra={"table": "orders"})

The names below are loaded when they are first used: ``import runlog`` reads no
file and no environment variable, and starts no thread.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from runlog._version import __version__

if TYPE_CHECKING:
    from runlog import context
    from runlog.client import get_logs_subscriber, logs_out_socket_from_api_url
    from runlog.configuration import setup_logging
    from runlog.context import FlowRunContext, TaskRunContext, get_run_context
    from runlog.delivery import flush
    from runlog.delivery.sigterm import flush_on_sigterm
    from runlog.exceptions import MissingContextError
    from runlog.loggers import (
        LogEavesdropper,
        disable_logger,
        disable_run_logger,
        flow_run_logger,
        get_logger,
        get_run_logger,
        patch_print,
        task_run_logger,
    )
    from runlog.propagation import carry
    from runlog.runs import Flow, FlowRun, Task, TaskRun, flow_run, task_run

_HOME_OF = {
    "get_logs_subscriber": "runlog.client",
    "logs_out_socket_from_api_url": "runlog.client",
    "setup_logging": "runlog.configuration",
    "FlowRunContext": "runlog.context",
    "TaskRunContext": "runlog.context",
    "get_run_context": "runlog.context",
    "flush": "runlog.delivery",
    "flush_on_sigterm": "runlog.delivery.sigterm",
    "MissingContextError": "runlog.exceptions",
    "LogEavesdropper": "runlog.loggers",
    "disable_logger": "runlog.loggers",
    "disable_run_logger": "runlog.loggers",
    "flow_run_logger": "runlog.loggers",
    "get_logger": "runlog.loggers",
    "get_run_logger": "runlog.loggers",
    "patch_print": "runlog.loggers",
    "task_run_logger": "runlog.loggers",
    "carry": "runlog.propagation",
    "Flow": "runlog.runs",
    "FlowRun": "runlog.runs",
    "Task": "runlog.runs",
    "TaskRun": "runlog.runs",
    "flow_run": "runlog.runs",
    "task_run": "runlog.runs",
}
"""Module of each public name."""

__all__ = [
    "Flow",
    "FlowRun",
    "FlowRunContext",
    "LogEavesdropper",
    "MissingContextError",
    "Task",
    "TaskRun",
    "TaskRunContext",
    "__version__",
    "carry",
    "context",
    "disable_logger",
    "disable_run_logger",
    "flow_run",
    "flow_run_logger",
    "flush",
    "flush_on_sigterm",
    "get_logger",
    "get_logs_subscriber",
    "get_run_context",
    "get_run_logger",
    "logs_out_socket_from_api_url",
    "patch_print",
    "setup_logging",
    "task_run",
    "task_run_logger",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (:pep:`562`)."""
    if name == "context":  # `runlog.context.get("logger")` after a bare `import runlog`, as in Prefect 1
        return importlib.import_module("runlog.context")
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
