"""Batches of runlog's own producers over HTTP."""

from __future__ import annotations

import gzip

import msgspec
import pytest
from server_lines import PRODUCER, batch, encoded, line

from runlog._http import ASGITransport, AsyncClient
from runlog.exceptions import StorageError, StorageFullError
from runlog.records import DropMarker
from runlog.server.app import create_app
from runlog.server.query import LogQuery
from runlog.server.state import Limits
from runlog.server.storage.memory import MemoryStorage

pytestmark = pytest.mark.anyio

PATH = "/runlog/v1/batches"


async def test_a_batch_is_acknowledged(client, storage):
    """A stored batch is answered with its last seq, and once more if it is sent again."""
    for _ in range(2):
        response = await client.post(PATH, content=encoded(line(), line()))
        assert (response.status_code, response.json()) == (200, {"acked": 1})
    assert len(await storage.read_lines(LogQuery())) == 2


async def test_a_gap_is_answered_with_the_expected_seq(client):
    """A batch above the mark is a 409 that names the seq to go on with."""
    response = await client.post(PATH, content=encoded(line(), first_seq=3))
    assert response.status_code == 409
    assert response.json() == {
        "detail": f"producer {PRODUCER} must go on with seq 0, got a batch that begins at 3",
        "expected": 0,
    }


async def test_a_compressed_batch_is_inflated(client):
    """A gzipped body is as good as a plain one, also if it consists of two gzip files."""
    body = encoded(line())
    headers = {"Content-Encoding": "gzip"}
    response = await client.post(PATH, content=gzip.compress(body), headers=headers)
    assert response.json() == {"acked": 0}
    body = encoded(line(), first_seq=1)
    halves = gzip.compress(body[:50]) + gzip.compress(body[50:])
    assert (await client.post(PATH, content=halves, headers=headers)).json() == {"acked": 1}


GOOD = msgspec.json.decode(encoded(line()))


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not a batch of events: Input data was truncated"),
        (b"{", "not a batch of events: Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff", "not a batch of events"),
        (b"[" * 100_000, "not a batch of events"),
        ({"producer": PRODUCER, "first_seq": 0}, "missing required field `events`"),
        ({**GOOD, "producer": "x"}, "producer must be 20 lower-case hex digits, got 'x'"),
        ({**GOOD, "first_seq": -1}, "first_seq must be >= 0, got -1"),
        ({**GOOD, "first_seq": 2**42}, "seq must be below"),
        ({**GOOD, "first_seq": 10**30}, "not a batch of events|seq must be below"),
        ({**GOOD, "dropped": [{"seq": 0, "count": 0, "reason": ""}]}, "count must be >= 1, got 0"),
        ({**GOOD, "dropped": [{"seq": 7, "count": 1, "reason": ""}]}, "a drop marker reaches seq 7"),
        (
            {**GOOD, "events": [{**GOOD["events"][0], "level": "INFO"}]},
            r"Expected `int`, got `str` - at `\$.ev",
        ),
        (
            {**GOOD, "events": [{**GOOD["events"][0], "timestamp_ns": 2**64}]},
            "timestamp_ns of seq 0 needs more",
        ),
        (
            {**GOOD, "events": [{**GOOD["events"][0], "level": 2**40}]},
            "level of seq 0 needs more than 32 bits",
        ),
        ({**GOOD, "events": [{**GOOD["events"][0], "attempt": -(2**40)}]}, "attempt of seq 0 needs more"),
        (
            {**GOOD, "events": [{**GOOD["events"][0], "truncated_bytes": 2**70}]},
            "truncated_bytes of seq 0 needs",
        ),
    ],
)
async def test_a_bad_batch_is_refused_with_one_line(client, storage, body, detail):
    """What is no batch is a 422 that says where and why, and stores nothing."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = await client.post(PATH, content=content)
    assert response.status_code == 422
    (key,) = response.json()
    assert key == "detail"
    assert "\n" not in response.json()["detail"]
    with pytest.raises(AssertionError, match=detail):
        raise AssertionError(response.json()["detail"])
    assert await storage.read_lines(LogQuery()) == []


async def limited(storage, **limits):
    app = create_app(storage, limits=Limits(**limits))
    return AsyncClient(transport=ASGITransport(app), base_url="http://test/api")


async def test_a_long_body_is_refused_before_it_is_read(storage):
    """A body whose declared length is too much is a 413 without a byte of it being taken."""
    read = []

    async def body():
        read.append(1)
        yield b"x"

    async with await limited(storage, max_body_bytes=100) as client:
        response = await client.post(PATH, content=body(), headers={"Content-Length": "101"})
        assert response.status_code == 413
        assert response.json() == {"detail": "the body must have at most 100 bytes"}
    assert read == []


async def test_a_body_of_unknown_length_is_counted(storage):
    """A body without a declared length is refused once it is too long."""

    async def body():
        for _ in range(50):
            yield b"x" * 10

    async with await limited(storage, max_body_bytes=100) as client:
        assert (await client.post(PATH, content=body())).status_code == 413


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_bomb_is_refused(storage, parts):
    """A small body that inflates to too much is a 413, also if its parts are small each."""
    bomb = gzip.compress(b" " * (100_000 // parts)) * parts
    assert len(bomb) < 1000
    async with await limited(storage, max_body_bytes=99_000) as client:
        response = await client.post(PATH, content=bomb, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 413


@pytest.mark.parametrize(
    ("content", "encoding", "status", "detail"),
    [
        (b"no gzip", "gzip", 400, "the body is not valid gzip"),
        (gzip.compress(b"x" * 1000)[:-5], "gzip", 400, "the body is not valid gzip: it ends too early"),
        (gzip.compress(b"x") + b"junk", "gzip", 400, "the body is not valid gzip"),
        (b"x", "br", 415, "Content-Encoding must be gzip or identity, got 'br'"),
    ],
    ids=["no gzip", "cut", "junk behind", "other encoding"],
)
async def test_a_wrong_encoding_is_refused(client, content, encoding, status, detail):
    """A body that is not what its encoding says is refused with one line."""
    response = await client.post(PATH, content=content, headers={"Content-Encoding": encoding})
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail)


async def test_too_many_lines_are_refused(storage):
    """A batch with more lines, or markers, than allowed is a 413: its producer halves it."""
    async with await limited(storage, max_batch_lines=2) as client:
        response = await client.post(PATH, content=encoded(line(), line(), line()))
        assert (response.status_code, response.json()) == (
            413,
            {"detail": "a batch must have at most 2 lines"},
        )
        markers = [DropMarker(seq, 1, "closed") for seq in range(3)]
        assert (await client.post(PATH, content=encoded(dropped=markers))).status_code == 413
        assert (await client.post(PATH, content=encoded(line(), line()))).status_code == 200


class BrokenStorage(MemoryStorage):
    error: Exception = StorageError("/secret/path is broken")

    async def append(self, batch, *, observed_ns):
        raise self.error


@pytest.mark.parametrize("path", [PATH, "/logs/"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StorageFullError("/secret/path is full"), (507, "30", "no room for more lines")),
        (
            StorageError("/secret/path is broken"),
            (503, "5", "the store of lines cannot be used at the moment"),
        ),
    ],
)
async def test_a_store_in_trouble_asks_to_come_back(caplog, path, error, expected):
    """A full disk is 507, other trouble 503, both with Retry-After; the reason is in the server's log alone."""
    storage = BrokenStorage()
    storage.error = error
    app = create_app(storage)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test/api") as client:
        content = encoded(line()) if path == PATH else b'[{"name":"","level":1,"message":"","timestamp":0}]'
        response = await client.post(path, content=content)
    assert response.json().keys() == {"detail"}
    assert (response.status_code, response.headers["retry-after"], response.json()["detail"]) == expected
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("runlog.server", str(error))
    ]


async def test_an_unforeseen_error_tells_nothing(storage):
    """An error of our own is a 500 without any detail."""
    broken = BrokenStorage()
    broken.error = ZeroDivisionError("inner workings")
    transport = ASGITransport(create_app(broken), raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://test/api") as client:
        response = await client.post(PATH, content=encoded(line()))
    assert response.status_code == 500
    assert response.json() == {"exception_message": "Internal Server Error"}


def test_batches_of_the_tests_are_valid():
    """The helper makes what the wire schema says."""
    assert msgspec.json.decode(encoded(line()), type=type(batch())) == batch(line())
