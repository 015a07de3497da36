"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from runlog._version import __version__
from runlog.server.metrics import CONTENT_TYPE, render
from runlog.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request


async def metrics(request: Request) -> Response:
    """Answer what was counted since the start, and what there is now. Nothing in it names a run or a key."""
    server = state_of(request)
    size = await server.storage.read_size()  # refused to those who may not see everything
    statistics = await server.storage.read_statistics()
    writing = server.storage.writing()
    put_in, asked = server.ingest.counts, server.requests
    return Response(
        render(
            [
                ("runlog_info", "gauge", "Version of the server.", {f'version="{__version__}"': 1}),
                (
                    "runlog_requests_total",
                    "counter",
                    "Requests that were answered.",
                    {
                        f'method="{method}",status="{status}"': count
                        for (method, status), count in sorted(asked.by_status.items())
                    },
                ),
                ("runlog_sockets_total", "counter", "WebSocket handshakes.", {"": asked.sockets}),
                (
                    "runlog_received_bytes_total",
                    "counter",
                    "Bytes of request bodies.",
                    {"": asked.received_bytes},
                ),
                (
                    "runlog_refused_total",
                    "counter",
                    "Requests and sockets without a credential that allows them.",
                    {"": asked.refused},
                ),
                ("runlog_batches_total", "counter", "Batches that were acknowledged.", {"": put_in.batches}),
                ("runlog_lines_total", "counter", "Lines that were stored.", {"": put_in.lines}),
                (
                    "runlog_duplicate_lines_total",
                    "counter",
                    "Lines that came again and were not stored again.",
                    {"": put_in.duplicates},
                ),
                (
                    "runlog_dropped_lines_total",
                    "counter",
                    "Lines that programs gave up and told so.",
                    {"": put_in.dropped},
                ),
                ("runlog_followers", "gauge", "Streams that follow lines.", {"": server.tail.followers}),
                (
                    "runlog_writer_queue",
                    "gauge",
                    "Batches that wait for the writer.",
                    {"": writing.waiting if writing is not None else 0},
                ),
                *(
                    [("runlog_commit_seconds", "histogram", "Time that a transaction took.", writing.commits)]
                    if writing is not None
                    else []
                ),
                (
                    "runlog_database_bytes",
                    "gauge",
                    "Space that the database takes.",
                    {'part="used"': size.used_bytes, 'part="file"': size.file_bytes},
                ),
                ("runlog_stored_lines", "gauge", "Lines that are stored.", {"": statistics.lines}),
                ("runlog_stored_runs", "gauge", "Runs that are known.", {"": statistics.runs}),
            ]
        ),
        media_type=CONTENT_TYPE,
    )


ROUTES = [Route("/metrics", metrics)]
"""Not below ``/api``."""
