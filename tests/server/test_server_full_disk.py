"""A disk without room: senders are told to wait, readers notice nothing, and room is all that it takes to go on."""

from __future__ import annotations

import contextlib

import pytest
from server_lines import encoded, line

from runlog._http import Client
from runlog.server.app import BackgroundServer

BATCHES = "/runlog/v1/batches"


@pytest.fixture
def small_disk(mount_disk):
    """A file system of four MiB, on a machine that lets us make one."""
    return mount_disk("4m")


def fill(path):
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_is_told_and_survived(small_disk):
    """A batch is answered 507 with Retry-After, lines are read meanwhile, and with room it is stored once."""
    filler = small_disk / "filler"
    with BackgroundServer(str(small_disk / "runlog.db")) as server, Client(base_url=server.url) as client:
        assert client.post(BATCHES, content=encoded(line("first"))).json() == {"acked": 0}
        fill(filler)
        stored, refused = 1, None
        while refused is None:
            body = encoded(*(line("x" * 1000) for _ in range(50)), first_seq=stored)
            response = client.post(BATCHES, content=body)
            if response.status_code == 200:
                stored += 50
            else:
                refused = response
        for _ in range(3):
            response = client.post(BATCHES, content=body)
            assert (response.status_code, response.headers["retry-after"]) == (507, "30")
            assert response.json() == {"detail": "no room for more lines"}
            log = {"name": "n", "level": 20, "message": "m" * 100_000, "timestamp": 0}
            assert client.post("/logs/", json=[log] * 10).status_code == 507
            assert client.post("/runlog/v1/admin/vacuum").status_code == 507
            assert client.get("/runlog/v1/logs", params={"limit": 1}).json()["logs"][0]["message"] == "first"
            assert client.get("/runlog/v1/status").json()["lines"] == stored
            assert client.get("/ready").status_code == 200
        filler.unlink()
        assert client.post(BATCHES, content=body).json() == {"acked": stored + 49}
        assert client.post(BATCHES, content=body).json() == {"acked": stored + 49}
        assert client.get("/runlog/v1/status").json()["lines"] == stored + 50
