"""Fixtures of the server's tests: an application without a socket, and lines to put into it."""

from __future__ import annotations

import pytest
from server_lines import PRODUCER, encoded

from runlog._http import ASGITransport, AsyncClient
from runlog.server.app import create_app
from runlog.server.storage.memory import MemoryStorage

pytest.register_assert_rewrite("storage_contract")


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def app(storage):
    return create_app(storage)


@pytest.fixture
async def client(app):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        yield client


@pytest.fixture
def send(client):
    """Send lines as the next batch of a producer."""
    sent: dict[str, int] = {}

    async def send(*events, producer=PRODUCER, **batch):
        first = sent.setdefault(producer, 0)
        response = await client.post(
            "/runlog/v1/batches", content=encoded(*events, producer=producer, first_seq=first, **batch)
        )
        assert response.status_code == 200, response.text
        sent[producer] = response.json()["acked"] + 1

    return send
