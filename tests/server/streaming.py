"""Small clients for the live streams, and a way to put lines into a server from another thread."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.parse

import msgspec
from server_lines import PRODUCER, batch
from websockets.sync.client import connect

from runlog._http import Client

ANY_TIME = 10
"""Seconds after which a test that waits has failed."""


def socket_url(url):
    return url.replace("http", "ws", 1) + "/logs/out"


class Socket:
    """A client of the socket, past its greeting."""

    def __init__(self, url, protocol="runlog", *, token=None, headers=None, **wish):
        self._stack = contextlib.ExitStack()
        self.connection = self._stack.enter_context(
            connect(
                socket_url(url),
                subprotocols=[protocol] if protocol else None,
                additional_headers=headers,
                max_size=None,
                compression=None,
                open_timeout=ANY_TIME,
            )
        )
        if protocol:
            self.send({"type": "auth", "token": token})
            assert self.receive() == {"type": "auth_success"}
        self.send({"type": "filter", "filter": None if protocol == "runlog" else {}, **wish})

    def send(self, message):
        self.connection.send(json.dumps(message))

    def receive(self, timeout=ANY_TIME):
        return json.loads(self.connection.recv(timeout))

    def until(self, kind):
        """The next message of a kind, and those before it."""
        passed = []
        while (message := self.receive())["type"] != kind:
            passed.append(message)
        return message, passed

    def logs(self, count):
        """The next lines' messages."""
        found = []
        while len(found) < count:
            message = self.receive()
            if message["type"] == "log":
                found.append(message["log"]["message"])
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


class Events:
    """A client of the server-sent events."""

    def __init__(self, url, *, last_event_id=None, headers=None, **parameters):
        query = urllib.parse.urlencode(parameters)
        self._client = Client(timeout=ANY_TIME)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._client)
        headers = {**(headers or {})}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        self.response = self._stack.enter_context(
            self._client.stream("GET", f"{url}/runlog/v1/logs/stream?{query}", headers=headers)
        )
        self._blocks = self._parse()

    def _parse(self):
        block, last_id = {}, None
        for text in self.response.iter_lines():
            if text:
                name, _, value = text.partition(":")
                block[name or "comment"] = value.removeprefix(" ")
                continue
            last_id = block.get("id", last_id)
            yield {**block, "id": last_id}
            block = {}

    def next(self):
        """The next block as a mapping of its fields; comments are ``comment``. Raises `StopIteration` at the end."""
        return next(self._blocks)

    def rest(self):
        """All blocks up to the end of the answer."""
        return list(self._blocks)

    def until(self, kind):
        while (block := self.next()).get("event") != kind:
            pass
        return block

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


class Sender:
    """Sends batches of one producer after the other."""

    def __init__(self, url, producer=PRODUCER, *, headers=None):
        self.client = Client(base_url=url, timeout=ANY_TIME, headers=headers)
        self.producer = producer
        self.next_seq = 0

    def send(self, *events, **rest):
        content = msgspec.json.encode(batch(*events, producer=self.producer, first_seq=self.next_seq, **rest))
        response = self.client.post("/runlog/v1/batches", content=content)
        assert response.status_code == 200, response.text
        self.next_seq = response.json()["acked"] + 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


def raw_connection(url, protocol="runlog"):
    """A TCP connection after the handshake of a WebSocket, for frames as no client would send them."""
    parts = urllib.parse.urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port), ANY_TIME)
    offer = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    sock.sendall(
        f"GET {parts.path}/logs/out HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        received = sock.recv(1)
        assert received, head
        head += received
    assert head.startswith(b"HTTP/1.1 101"), head
    return sock


def frame(payload, *, opcode=1, fin=True):
    """A client's frame, masked with zeros."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += bytes([0x80 | 126]) + size.to_bytes(2)
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8)
    return head + bytes(4) + payload


def closing_code(sock):
    """Read until the server closes; return the code of its close frame, `None` if there was none."""
    try:
        with sock.makefile("rb") as stream:
            while head := stream.read(2):
                size = head[1]
                if size >= 126:
                    size = int.from_bytes(stream.read(2 if size == 126 else 8))
                payload = stream.read(size)
                if head[0] & 0x0F == 8:
                    return int.from_bytes(payload[:2]) if payload else 1005
    except ConnectionResetError:
        pass
    return None
