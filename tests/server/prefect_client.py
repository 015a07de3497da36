"""
What an unmodified Prefect client does with a runlog server; run by an interpreter that has Prefect.

Ships lines with Prefect's own ``APILogHandler``, reads them back with Prefect's
own client through several filters, and prints what it got as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import uuid
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTaskRunId,
    LogFilterTextSearch,
    LogFilterTimestamp,
)
from prefect.client.schemas.sorting import LogSort
from prefect.logging.handlers import APILogHandler

RUN, OTHER_RUN, TASK_RUN = (uuid.UUID(int=number) for number in (1, 2, 3))
LINES = [
    (logging.DEBUG, "starting up", RUN, None),
    (logging.INFO, "loaded 42 orders", RUN, TASK_RUN),
    (logging.WARNING, "disk is nearly full", RUN, TASK_RUN),
    (logging.ERROR, "time out, retrying", RUN, None),
    (logging.ERROR, "disk full", OTHER_RUN, None),
    (logging.CRITICAL, "grüße, 'quoted' and \"double\"\nsecond line", OTHER_RUN, None),
]


def ship() -> list[datetime]:
    """Log the lines; return when."""
    logger = logging.getLogger("prefect.flow_runs.probe")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler = APILogHandler()
    logger.addHandler(handler)
    times = []
    for level, message, run, task_run in LINES:
        extra = {"flow_run_id": str(run)}
        if task_run is not None:
            extra["task_run_id"] = str(task_run)
        times.append(datetime.now(UTC))
        logger.log(level, message, extra=extra)
    handler.flush()
    return times


async def read(times: list[datetime]) -> dict[str, list]:
    run = LogFilterFlowRunId(any_=[RUN])
    filters = {
        "all": None,
        "run": LogFilter(flow_run_id=run),
        "both runs": LogFilter(flow_run_id=LogFilterFlowRunId(any_=[RUN, OTHER_RUN])),
        "no run": LogFilter(flow_run_id=LogFilterFlowRunId(any_=[])),
        "task run": LogFilter(task_run_id=LogFilterTaskRunId(any_=[TASK_RUN])),
        "level from": LogFilter(level=LogFilterLevel(ge_=logging.ERROR)),
        "level to": LogFilter(level=LogFilterLevel(le_=logging.INFO)),
        "run and level": LogFilter(flow_run_id=run, level=LogFilterLevel(ge_=logging.WARNING)),
        "long ago": LogFilter(timestamp=LogFilterTimestamp(before_=times[0] - timedelta(hours=1))),
        "since the start": LogFilter(
            timestamp=LogFilterTimestamp(
                after_=times[0] - timedelta(seconds=1), before_=times[-1] + timedelta(days=365)
            )
        ),
        "text": LogFilter(text=LogFilterTextSearch(query="disk -nearly")),
        "phrase": LogFilter(text=LogFilterTextSearch(query='"time out"')),
        "logger": LogFilter(text=LogFilterTextSearch(query="+flow_runs.probe +GRÜSSE grüße")),
        "either": LogFilter(
            operator="or_",
            level=LogFilterLevel(ge_=logging.CRITICAL),
            text=LogFilterTextSearch(query="orders"),
        ),
    }
    found: dict[str, list] = {}
    async with get_client() as client:
        for name, log_filter in filters.items():
            logs = await client.read_logs(log_filter=log_filter)
            found[name] = [LINES.index(as_line(log)) for log in logs]
        logs = await client.read_logs(limit=2, offset=1, sort=LogSort.TIMESTAMP_DESC)
        found["page"] = [LINES.index(as_line(log)) for log in logs]
        logs = await client.read_logs()
        found["names"] = sorted({log.name for log in logs})
        found["late"] = [
            # The record is made just after the time was taken.
            index
            for index, log in enumerate(logs)
            if not timedelta(0) <= log.timestamp - times[index] < timedelta(seconds=5)
        ]
        found["ids"] = sorted({str(log.id) for log in logs})
        try:
            await client.read_logs(limit=201)
        except Exception as error:
            found["too many"] = [type(error).__name__, "Invalid limit" in error.response.text]
        found["api"] = [(await client.api_healthcheck()) is None, await client.api_version()]
    return found


def as_line(log) -> tuple:
    return (log.level, log.message, log.flow_run_id, log.task_run_id)


if __name__ == "__main__":
    json.dump(asyncio.run(read(ship())), sys.stdout)
