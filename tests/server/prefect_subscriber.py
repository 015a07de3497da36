"""
What an unmodified Prefect client gets from runlog's socket; run by an interpreter that has Prefect.

Subscribes with several filters at once, ships lines with Prefect's own client, and
prints for each filter which lines arrived, in their order, as one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import uuid
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTaskRunId,
    LogFilterTextSearch,
)
from prefect.logging.clients import get_logs_subscriber

RUN, OTHER_RUN, TASK_RUN = (uuid.UUID(int=number) for number in (1, 2, 3))
BURST, BATCH = 5000, 500

FILTERS = {
    "all": None,
    "run": LogFilter(flow_run_id=LogFilterFlowRunId(any_=[RUN])),
    "task run": LogFilter(task_run_id=LogFilterTaskRunId(any_=[TASK_RUN])),
    "level": LogFilter(level=LogFilterLevel(ge_=40)),
    "levels": LogFilter(level=LogFilterLevel(ge_=30, le_=30)),
    "text": LogFilter(text=LogFilterTextSearch(query='zebra -striped "in the dark"')),
    "either": LogFilter(
        operator="or_", level=LogFilterLevel(ge_=50), text=LogFilterTextSearch(query="zebra")
    ),
}


def log(message, *, level=20, run=RUN, task_run=None, ago=timedelta(0)):
    return LogCreate(
        name="prefect.flow_runs",
        level=level,
        message=message,
        timestamp=datetime.now(UTC) - ago,
        flow_run_id=run,
        task_run_id=task_run,
    )


LINES = [
    {"message": "plain"},
    {"message": "other run", "run": OTHER_RUN},
    {"message": "task", "task_run": TASK_RUN, "level": 30},
    {"message": "Zebra", "level": 40},
    {"message": "striped zebra in the dark", "level": 50, "run": OTHER_RUN},
    {"message": "something in the dark", "level": 10},
    {"message": "too old: the client asks for the last minute", "level": 50, "ago": timedelta(minutes=5)},
    {"message": "last"},
]
"""What each subscriber is to choose from."""

SIGNAL = {"level": 50, "task_run": TASK_RUN, "message": "signal in the dark"}
"""Passes every filter but the one of levels."""


async def collect(name, log_filter, seen, got):
    async with get_logs_subscriber(log_filter) as subscriber:
        async for line in subscriber:
            if line.message.startswith("signal"):
                seen.setdefault(line.message, set()).add(name)
            else:
                got.append([line.message, line.level, str(line.flow_run_id), str(line.id)])


async def signal(client, word, seen, names):
    """Send a line that all get until all have got it: the socket does not say when it begins to listen."""
    message = f"signal {word} in the dark"
    while seen.get(message, set()) < names:
        await client.create_logs([log(**{**SIGNAL, "message": message})])
        await client.create_logs([log(**{**SIGNAL, "message": message, "level": 30})])
        await asyncio.sleep(0.05)


async def main():
    async with get_logs_subscriber():  # what is wrong with the credentials is raised here
        pass
    got = {name: [] for name in FILTERS}
    seen: dict[str, set[str]] = {}
    tasks = [asyncio.create_task(collect(name, FILTERS[name], seen, got[name])) for name in FILTERS]
    async with get_client() as client:
        await signal(client, "begin", seen, set(FILTERS))
        await client.create_logs([log(**line) for line in LINES])
        for first in range(0, BURST, BATCH):
            await client.create_logs([log(f"burst {n}", run=OTHER_RUN) for n in range(first, first + BATCH)])
        await signal(client, "end", seen, set(FILTERS))
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    burst = [line for line in got["all"] if line[0].startswith("burst")]
    return {
        "burst": len(burst),
        "in order": [line[0] for line in burst] == [f"burst {n}" for n in range(BURST)],
        "ids": len({line[3] for line in burst}),
        "lines": {
            name: [line[0] for line in lines if not line[0].startswith("burst")]
            for name, lines in got.items()
        },
    }


if __name__ == "__main__":
    json.dump(asyncio.run(asyncio.wait_for(main(), 100)), sys.stdout)
