"""A real Prefect server with streaming switched on: runlog's subscriber gets what runlog's handler ships there."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import uuid

import pytest
from prefect_environment import needs_prefect, prefect_server

import runlog
from runlog.client import LogLine, get_logs_subscriber, get_sync_logs_subscriber
from runlog.exceptions import APIError, QueryError
from runlog.handlers import APILogHandler

AUTH = "somebody:secret"
STREAMING = {
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
    "PREFECT_SERVER_API_AUTH_STRING": AUTH,
    "PREFECT_API_AUTH_STRING": AUTH,
}
TIME_LIMIT = 60
RUN, TASK_RUN = str(uuid.uuid4()), str(uuid.uuid4())
LINES = 200
"""Fewer than the server keeps for a subscriber; what exceeds that, it drops."""


class Signal(threading.Thread):
    """Logs a line again and again: the server does not say when it begins to listen."""

    def __init__(self, logger):
        super().__init__()
        self.logger, self.is_heard = logger, threading.Event()

    def run(self):
        for number in itertools.count():
            self.logger.critical("signal %d", number, extra={"flow_run_id": RUN})
            runlog.flush(TIME_LIMIT)
            if self.is_heard.wait(0.1):
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.is_heard.set()
        self.join()


async def collect(url, logger, say, **wish):
    """Return the lines of a subscriber that come between two signals."""
    found = []
    async with get_logs_subscriber(api_url=url, auth_string=AUTH, **wish) as following:
        assert following.protocol == "prefect"
        async with asyncio.timeout(TIME_LIMIT):
            with Signal(logger):
                assert (await anext(following)).message.startswith("signal")
            await asyncio.to_thread(say)
            async for line in following:
                if line.message == "end":
                    return found
                if not line.message.startswith("signal"):
                    found.append(line)
    raise AssertionError("the stream has ended")


@needs_prefect
def test_a_real_prefect_server(tmp_path):
    """Lines come once and in order, with level, message, run and time; a filter chooses; what is wrong is told."""
    logger = logging.getLogger("runlog.flow_runs.shipped")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False

    def say():
        logger.warning("grüße\nsecond line", extra={"flow_run_id": RUN, "task_run_id": TASK_RUN})
        for number in range(LINES):
            logger.info("line %d", number, extra={"flow_run_id": RUN})
        logger.critical("end", extra={"flow_run_id": RUN})
        assert runlog.flush(TIME_LIMIT)

    with prefect_server(tmp_path / "prefect", **STREAMING) as url:
        handler = APILogHandler(api_url=url, auth_string=AUTH, shutdown_timeout=TIME_LIMIT)
        logger.addHandler(handler)
        everything = asyncio.run(collect(url, logger, say))
        warnings = asyncio.run(collect(url, logger, say, filter={"level": {"ge_": logging.WARNING}}))

        for auth, reason in [("somebody:else", "Invalid token"), (None, "no token provided")]:
            with (
                pytest.raises(APIError, match=reason) as refused,
                get_sync_logs_subscriber(api_url=url, auth_string=auth),
            ):
                pass
            assert refused.value.status == 401
        with (
            pytest.raises(QueryError, match="since needs a runlog server"),
            get_sync_logs_subscriber(api_url=url, auth_string=AUTH, since="10m"),
        ):
            pass
        with (
            get_sync_logs_subscriber({"level": "high"}, api_url=url, auth_string=AUTH) as following,
            pytest.raises(QueryError, match="cannot make sense of it"),
        ):
            next(following)
        handler.close()

    assert [line.message for line in everything] == [
        "grüße\nsecond line",
        *(f"line {number}" for number in range(LINES)),
    ]
    first = everything[0]
    assert isinstance(first, LogLine)
    assert (first.level_name, first.name) == ("WARNING", logger.name)
    assert (first.flow_run_id, first.task_run_id) == (RUN, TASK_RUN)
    assert first.timestamp.tzinfo is not None
    assert (first.attributes, first.cursor) == ({}, None)
    assert len({line.id for line in everything}) == len(everything)
    assert [line.message for line in warnings] == ["grüße\nsecond line"]
