"""
Reads a Prefect server's logs by Prefect's own client; run by an interpreter that has Prefect.

Prints all that match the flow run ids given as arguments (``none`` for lines of no
run), as one JSON array, oldest first.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId


async def read(run_ids: list[str]) -> list[dict]:
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[uuid.UUID(text) for text in run_ids]))
    found = []
    async with get_client() as client:
        while True:
            page = await client.read_logs(wanted if run_ids else None, limit=200, offset=len(found))
            found += page
            if len(page) < 200:
                return [log.model_dump(mode="json") for log in found]


if __name__ == "__main__":
    json.dump(asyncio.run(read(sys.argv[1:])), sys.stdout)
