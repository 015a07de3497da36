"""Encryption that fails: nothing goes out in the clear, and once it is mended all lines are stored, once each."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from counting import stored_in
from tls_door import Door, context_for

LINES = 200

FLUSH = 30.0
"""Seconds for what takes one or two, on a machine that is busy."""

SEND_TIMEOUT = 0.3
"""Seconds that a producer waits for an answer, a handshake included."""

KEY = "a-secret-key-7f3a"

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    """A file with the authority that clients believe."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def good(authority):
    return context_for(authority.issue_cert(HOST))


@pytest.fixture
def make_door(server):
    """Doors before the server."""

    def make(manner):
        port = urlsplit(server.url).port
        assert port is not None
        return Door(port, manner)

    return make


@pytest.fixture
def start(start_producers, trusted):
    def start(door):
        return start_producers(
            door.url,
            number=1,
            send_timeout=SEND_TIMEOUT,
            SSL_CERT_FILE=str(trusted),
            PREFECT_API_KEY=KEY,
            RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT="20",
        )

    return start


def manners(authority):
    """What can be wrong with a door."""
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    return {
        "unknown authority": lambda: context_for(trustme.CA().issue_cert(HOST)),
        "expired": lambda: context_for(
            authority.issue_cert(HOST, not_before=now - 3 * day, not_after=now - day)
        ),
        "wrong host": lambda: context_for(authority.issue_cert("other.example")),
        "no TLS": lambda: "plain",
        "hangs": lambda: "hang",
        "cut": lambda: "cut",
    }


def check(producers, database, expected):
    """All lines are stored once and in order, and the key is in nothing that was written."""
    result = producers.count(stored_in(database))
    assert (result.sent, result.stored) == (expected, expected)
    assert (result.lost, result.dropped, result.doubled, result.reordered) == (0, 0, 0, 0)
    written = [producer.errors.encode() for producer in producers.producers]
    written += [path.read_bytes() for path in Path(os.environ["RUNLOG_HOME"]).rglob("*") if path.is_file()]
    assert not [text for text in written if KEY.encode() in text]


def test_a_certificate_of_a_trusted_authority(make_door, good, database, start):
    """With the authority's file in ``SSL_CERT_FILE`` lines are delivered, and there is nothing to say."""
    with make_door(good) as door:
        producers = start(door)
        producers.ask("log", lines=LINES)
        producers.flush(FLUSH)
        producers.end()
    check(producers, database, LINES)
    assert producers.producers[0].errors == ""


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "wrong host", "no TLS", "hangs", "cut"])
def test_a_door_that_is_mended(fault, make_door, authority, good, database, start):  # noqa: PLR0917 - fixtures
    """While the encryption is wrong no line and no key goes out; then all lines do, and it was said once."""
    with make_door(manners(authority)[fault]()) as door:
        producers = start(door)
        producers.ask("log", lines=LINES)
        assert door.wait_for_connections(3, FLUSH)  # two tries have failed by then
        producers.ask("log", lines=LINES)
        assert door.passed == 0
        assert KEY.encode() not in door.heard
        door.manner = good
        producers.flush(FLUSH)
        producers.end()
    check(producers, database, 2 * LINES)
    (producer,) = producers.producers
    assert producer.errors.count("lines cannot be sent") == 1
    assert producer.errors.count("\n") == 1, producer.errors


def test_an_authority_that_the_system_does_not_know(make_door, good, database, start_producers, trusted):
    """Without a setting a private authority is refused; the next program, which has the setting, sends the lines."""
    with make_door(good) as door:
        first = start_producers(
            door.url, number=1, send_timeout=SEND_TIMEOUT, RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT="0.3"
        )
        first.ask("log", lines=LINES)
        assert door.wait_for_connections(3, FLUSH)
        first.end()
        assert door.passed == 0
        assert "CERTIFICATE_VERIFY_FAILED" in first.producers[0].errors
        finish = (
            "import logging, runlog\n"
            "from runlog.delivery import workers\n"
            "from runlog.handlers import APILogHandler\n"
            "log = logging.getLogger('app')\n"
            "log.addHandler(APILogHandler(service_name='s'))\n"
            "log.warning('finish')\n"
            "assert runlog.flush(30)\n"
            "workers()[0].send_backlogs(30)\n"
        )
        environment = {**os.environ, "PREFECT_API_URL": door.url, "SSL_CERT_FILE": str(trusted)}
        subprocess.run([sys.executable, "-c", finish], env=environment, check=True, timeout=60)
    stored = stored_in(database)
    of_first = [line.message for line in stored.lines if line.producer == first.producers[0].id]
    assert of_first == first.producers[0].sent
    assert len(stored.lines) == LINES + 1
