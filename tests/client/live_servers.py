"""Lines for a real server, and a scripted one that speaks as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import uuid

import msgspec
from websockets.asyncio.server import serve

from runlog._http import Client
from runlog.records import EventBatch, LogEvent

ANY_TIME = 20
"""Seconds after which a test that waits has failed."""

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
"""2023-11-14T22:13:20Z"""
LONG_AGO = "2000-01-01T00:00:00Z"

FLOW = "11111111-1111-4111-8111-111111111111"
OTHER_FLOW = "22222222-2222-4222-8222-222222222222"
TASK = "33333333-3333-4333-8333-333333333333"


def line(message="hello", *, at=0, level=20, name="runlog.flow_runs", **fields):
    return LogEvent(
        timestamp_ns=START + round(at * SECOND), level=level, name=name, message=message, **fields
    )


def started():
    attributes = {"runlog.run.state": "RUNNING"}
    return line("started", event_name="runlog.run.started", attributes=attributes, flow_run_id=FLOW)


def finished():
    attributes = {"runlog.run.state": "COMPLETED", "runlog.run.duration_s": 1.0}
    return line("finished", at=1, event_name="runlog.run.finished", attributes=attributes, flow_run_id=FLOW)


class Sender:
    """Sends batches of one producer, one after the other."""

    def __init__(self, url, producer="0123456789abcdef0123", **headers):
        self.client = Client(base_url=url, timeout=ANY_TIME, headers=headers)
        self.producer = producer
        self.next_seq = 0

    def send(self, *events):
        batch = EventBatch(producer=self.producer, first_seq=self.next_seq, events=list(events))
        response = self.client.post("/runlog/v1/batches", content=msgspec.json.encode(batch))
        assert response.status_code == 200, response.text
        self.next_seq = response.json()["acked"] + 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


def prefect_log(number, **fields):
    """A message as Prefect's socket has it."""
    log = {
        "id": str(uuid.UUID(int=number)),
        "created": None,
        "updated": None,
        "name": "prefect.flow_runs",
        "level": 20,
        "message": str(number),
        "timestamp": "2026-11-21T10:00:00.123456Z",
        "flow_run_id": FLOW,
        "task_run_id": None,
        **fields,
    }
    return json.dumps({"type": "log", "log": log})


@contextlib.contextmanager
def scripted_server(*connections, protocol="prefect", greets=True, **options):
    """
    Serve sockets, each as one of *connections* says, which get the socket; the last one also serves all later ones.

    Yields its API address, and the list of filter messages that came.
    """
    heard, ready, number = [], threading.Event(), 0
    told = {}

    async def handler(websocket):
        nonlocal number
        connection = connections[min(number, len(connections) - 1)]
        number += 1
        if greets:
            heard.append(json.loads(await websocket.recv()))
            await websocket.send('{"type":"auth_success"}')
            heard.append(json.loads(await websocket.recv()))
        await connection(websocket)

    async def main():
        options.setdefault("subprotocols", [protocol] if protocol else None)
        async with serve(handler, "127.0.0.1", 0, close_timeout=0.1, **options) as server:
            told["port"] = server.sockets[0].getsockname()[1]
            told["stop"], told["loop"] = asyncio.Event(), asyncio.get_running_loop()
            ready.set()
            await told["stop"].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="scripted-server")
    thread.start()
    try:
        assert ready.wait(ANY_TIME)
        yield f"http://127.0.0.1:{told['port']}/api", heard
    finally:
        told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join()


def says(*messages, code=None, reason=""):
    """A connection that sends messages, and is then closed with a code; `None` keeps it open, "cut" cuts it."""

    async def connection(websocket):
        for message in messages:
            await websocket.send(message)
        if code is None:
            await websocket.wait_closed()
        elif code == "cut":
            if messages:
                await (await websocket.ping())  # a reset would overtake them
            websocket.transport.abort()
        else:
            await websocket.close(code, reason)

    return connection
