"""
What users write must pass a strict type checker, and infer the types they expect.

Checked by ``mypy --strict tests/typing``; never run.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor  # noqa: TC003 - imported as users do
from typing import Any, assert_type

import runlog
from runlog import (
    Flow,
    FlowRun,
    FlowRunContext,
    LogEavesdropper,
    MissingContextError,
    Task,
    TaskRun,
    TaskRunContext,
    carry,
    disable_logger,
    disable_run_logger,
    flow_run,
    flow_run_logger,
    get_logger,
    get_logs_subscriber,
    get_run_context,
    get_run_logger,
    patch_print,
    setup_logging,
    task_run,
    task_run_logger,
)
from runlog.client import Gap, Heartbeat, LogLine, RunReceipt, get_sync_logs_subscriber
from runlog.loggers import RunLogAdapter

assert_type(setup_logging(), dict[str, Any])
assert_type(runlog.__version__, str)


class MyRun:
    """A run of somebody else's."""

    id = uuid.uuid4()
    name = "my-run"


# --- decorators keep signatures ---


@task_run("plain", retries=2, retry_delay=0.5, table="orders")
def plain(number: int, *, text: str = "") -> list[str]:
    """Return something."""
    return [text] * number


assert_type(plain(1, text="x"), list[str])
plain("1")  # type: ignore[arg-type]
plain(1, txt="x")  # type: ignore[call-arg]


@flow_run("async", run_name="async-{number}", log_prints=True)
async def coroutine(number: int) -> bytes:
    """Return something later."""
    return bytes(number)


coroutine_type: Callable[[int], Coroutine[Any, Any, bytes]] = coroutine


@task_run("generator")
def generator(number: int) -> Iterator[int]:
    """Yield something."""
    yield number


assert_type(generator(1), Iterator[int])


@task_run("async generator")
async def async_generator(number: int) -> AsyncIterator[int]:
    """Yield something later."""
    yield number


assert_type(async_generator(1), AsyncIterator[int])


class Worker:
    """A class with a task."""

    @task_run("method")
    def method(self, number: int) -> float:
        """Return something."""
        return number / 2


assert_type(Worker().method(1), float)


# --- with ---


async def contexts() -> None:
    """Open runs by hand."""
    with flow_run("etl", id=uuid.uuid4(), source="s3") as run, task_run("load", attempt=2) as task:
        assert_type(run, FlowRun)
        assert_type(task, TaskRun)
        assert_type(run.id, uuid.UUID)
        assert_type(run.name, str)
        assert_type(task.attempt, int | None)
        assert_type(task.logger, RunLogAdapter)
    async with flow_run("etl") as later:
        assert_type(later, FlowRun)
    with FlowRunContext(flow_run=MyRun(), flow=Flow("etl"), extra={"a": 1}) as flow_context:
        assert_type(flow_context, FlowRunContext)
    with TaskRunContext(task_run=TaskRun("load-1"), task=Task("load"), log_prints=True) as task_context:
        assert_type(task_context, TaskRunContext)
    assert_type(FlowRunContext.get(), FlowRunContext | None)
    assert_type(TaskRunContext.get(), TaskRunContext | None)
    assert_type(get_run_context(), FlowRunContext | TaskRunContext)


# --- loggers ---


def loggers() -> None:
    """Get loggers and use them."""
    assert_type(get_logger("x"), logging.Logger)
    try:
        logger = get_run_logger(table="orders")
    except MissingContextError:
        logger = flow_run_logger(MyRun(), None, table="orders")
    assert_type(logger, RunLogAdapter)
    logger.info("loaded %d rows", 42, extra={"table": "orders"})
    assert_type(logger.getChild("sql", extra={"a": 1}), RunLogAdapter)
    assert_type(task_run_logger(MyRun()), RunLogAdapter)
    runlog.context.get("logger").info("x")
    with disable_logger("x"), disable_run_logger(), patch_print():
        pass
    with LogEavesdropper("x", level="INFO") as eavesdropper:
        assert_type(eavesdropper.text(), str)
        assert_type(eavesdropper.get_logged(), list[logging.LogRecord])


# --- carry ---


def carried(pool: ThreadPoolExecutor) -> None:
    """Take functions elsewhere."""
    assert_type(carry(plain)(1, text="x"), list[str])
    carry(plain)("1")  # type: ignore[arg-type]
    future: Future[list[str]] = pool.submit(carry(plain), 1)
    assert_type(future.result(), list[str])
    as_function: Callable[[int], Coroutine[Any, Any, bytes]] = carry(coroutine)
    assert_type(as_function(1), Coroutine[Any, Any, bytes]).close()
    carry(3)  # type: ignore[arg-type]


# --- following ---


class MyFilter:
    """As Prefect's ``LogFilter``."""

    def model_dump(self, *, mode: str = "python", by_alias: bool | None = None) -> dict[str, Any]:
        """Return it as a dictionary."""
        return {"mode": mode, "by_alias": by_alias}


async def follow() -> None:
    """Follow lines."""
    async with get_logs_subscriber(MyFilter(), 3, since="10m", query="level>=warning") as subscriber:
        subscriber.on_gap = print
        async for line in subscriber:
            assert_type(line, LogLine)
            assert_type(line.attributes, dict[str, Any])
        async for news in subscriber.news():
            assert_type(news, LogLine | Gap | RunReceipt | Heartbeat)
    with get_sync_logs_subscriber({"level": {"ge_": 30}}, run="r", api_key="k") as twin:
        for line in twin:
            assert_type(line.cursor, str | None)
        assert_type(twin.receipt, dict[str, Any] | None)
    get_sync_logs_subscriber(level=3)  # type: ignore[call-arg]
    get_logs_subscriber(3)  # type: ignore[arg-type]
