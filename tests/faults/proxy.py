"""
A log server's bad days: a proxy that gives each request the fault that a plan says.

`FaultProxy` listens on a real socket and forwards to a real server. Before each
request it asks its `Plan`, which is a list to repeat or a table of chances with
a seed, and does what the answer says. It counts what it gave, so that a test
can tell that the faults it is about took place.

A fault is a word, some with a number after a colon:

====================  ==================================================================================
``pass``              forward the request and its answer
``500``, any status   answer so in HTML, as something in front of the server would, without forwarding;
                      ``429:0.1`` also sends ``Retry-After: 0.1``
``cut_before``        reset the connection, without forwarding
``cut_after``         forward, then reset the connection in place of the answer
``hang``              neither forward nor answer, until the client gives up or `FaultProxy.release`
``late:300``          forward after so many milliseconds, whether or not the client still waits
``slow:100``          forward, then answer so many bytes a second
``garbage``           answer 200 with a body that is no JSON, without forwarding
``empty200``          answer 200 without a body, without forwarding
``truncated``         forward, then close in the middle of the answer's body
``redirect``          answer 307 to another listener, which answers everything as if it had stored it
====================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import random
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

UPSTREAM_TIMEOUT = 30.0
"""Seconds for the real server to answer; it is healthy, but the machine may be busy."""

_WORDS = frozenset(
    {
        "pass",
        "cut_before",
        "cut_after",
        "hang",
        "late",
        "slow",
        "garbage",
        "empty200",
        "truncated",
        "redirect",
    }
)
_NUMBERED = frozenset({"late", "slow"})
_HTML = ("Content-Type", "text/html")
_JSON = ("Content-Type", "application/json")
_RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` of zero seconds: closing sends a reset instead of a farewell."""


class Fault(NamedTuple):
    """One fault, as the module's table says."""

    kind: str
    number: float | None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """
        Return the fault of a word such as ``late:300``.

        Raises:
            ValueError: If there is no such fault.
        """
        kind, _, number = text.partition(":")
        known = kind in _WORDS or (kind.isdecimal() and 400 <= int(kind) <= 599)
        if not known or (bool(number) != (kind in _NUMBERED) and kind != "429"):
            raise ValueError(f"no such fault: {text!r}")
        return cls(kind, float(number) if number else None)


class Plan:
    """
    Say which fault comes next. Thread-safe.

    Args:
        faults: The faults of all requests, in order.
    """

    def __init__(self, faults: Iterator[Fault]) -> None:
        self._faults = faults
        self._lock = threading.Lock()

    @classmethod
    def repeating(cls, *faults: str) -> Self:
        """Give these in order, again and again; one in four is ``repeating("500", "pass", "pass", "pass")``."""
        return cls(itertools.cycle([Fault.parse(fault) for fault in faults]))

    @classmethod
    def first(cls, *faults: str) -> Self:
        """Give these once, in order, and then ``pass``."""
        return cls(itertools.chain(map(Fault.parse, faults), itertools.repeat(Fault("pass", None))))

    @classmethod
    def random(cls, chances: Mapping[str, float], *, seed: int) -> Self:
        """
        Draw each fault.

        Args:
            chances: A weight for each fault; they need not add up to 1.
            seed: The same seed draws the same faults.
        """
        faults = [Fault.parse(fault) for fault in chances]
        weights = list(chances.values())
        draw = random.Random(seed).choices
        return cls(draw(faults, weights)[0] for _ in itertools.repeat(None))

    def next(self) -> Fault:
        """Return the fault for the next request."""
        with self._lock:
            return next(self._faults)


class _Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def encoded(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body


class FaultProxy:
    """
    A listener on a free port of this machine that forwards to a server, as a plan says.

    A context manager: leaving it ends all connections and returns once its
    threads have ended. Each connection has a thread of its own.

    Args:
        upstream: API address of the real server.
        plan: What each request gets.
        refuse: Is given the body of each request that the plan would pass;
            returns the status to refuse it with, in the server's own words, or
            `None`. For rules about what a batch may contain.
    """

    def __init__(
        self, upstream: str, plan: Plan, *, refuse: Callable[[bytes], int | None] | None = None
    ) -> None:
        scheme, _, rest = upstream.partition("://")
        if scheme != "http":
            raise ValueError(f"upstream must be an http:// address, got {upstream!r}")
        self._upstream, _, path = rest.partition("/")
        self._plan = plan
        self._refuse = refuse
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.elsewhere = Elsewhere()
        """Where ``redirect`` points to."""
        self.given: Counter[str] = Counter()
        """How many requests got which fault, by its word without the number; ``refused`` by the rule."""
        self._listener = _Listener(self._serve)
        self.url = f"{self._listener.url}/{path}"
        """The address that stands for *upstream*."""

    def __repr__(self) -> str:
        return f"<FaultProxy at {self.url}: {dict(self.given)}>"

    @property
    def requests(self) -> int:
        """How many requests came."""
        return sum(self.given.values())

    def release(self) -> None:
        """Let go of what hangs or is late now, and of all that would later: it is cut or forwarded at once."""
        self._released.set()
        self._listener.end_held()

    def __enter__(self) -> Self:
        self.elsewhere.listener.start()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._listener.stop()
        self.elsewhere.listener.stop()

    def _serve(self, request: _Request) -> None:
        fault = self._plan.next()
        refused = self._refuse(request.body) if fault.kind == "pass" and self._refuse is not None else None
        with self._lock:
            self.given[fault.kind if refused is None else "refused"] += 1
        if refused is not None:
            request.answer(_Reply(refused, [_JSON], b'{"detail":"not acceptable"}'))
            return
        match fault:
            case Fault("pass"):
                request.answer(self._forward(request))
            case Fault("cut_before"):
                request.reset()
            case Fault("cut_after"):
                self._forward(request)
                request.reset()
            case Fault("hang"):
                request.hold(self._released)
                request.reset()
            case Fault("late", milliseconds):
                self._released.wait((milliseconds or 0) / 1000)
                request.answer(self._forward(request))
            case Fault("slow", bytes_per_second):
                reply = self._forward(request).encoded()
                for at in range(len(reply)):
                    request.write(reply[at : at + 1])
                    self._released.wait(1 / (bytes_per_second or 1))
            case Fault("garbage"):
                request.answer(_Reply(200, [_HTML], b"<html>\xff It works! \0</html>"))
            case Fault("empty200"):
                request.answer(_Reply(200, [], b""))
            case Fault("truncated"):
                reply = self._forward(request)
                request.write(reply.encoded()[: -(len(reply.body) // 2) or None])
                request.end()
            case Fault("redirect"):
                request.answer(_Reply(307, [("Location", self.elsewhere.listener.url + request.path)], b""))
            case Fault(status, retry_after):
                headers = [("Retry-After", f"{retry_after:g}")] if retry_after is not None else []
                request.answer(_Reply(int(status), [*headers, _HTML], f"<html>{status}</html>".encode()))

    def _forward(self, request: _Request) -> _Reply:
        """Return the real server's answer, or 502 where there is none."""
        connection = http.client.HTTPConnection(self._upstream, timeout=UPSTREAM_TIMEOUT)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        try:
            connection.request(request.command, request.path, request.body, headers)
            response = connection.getresponse()
            kept = [
                (name, value) for name, value in response.getheaders() if name.lower() not in _NOT_PASSED_ON
            ]
            return _Reply(response.status, kept, response.read())
        except (OSError, http.client.HTTPException) as error:
            return _Reply(
                502, [_JSON], f'{{"detail":"no answer from upstream: {type(error).__name__}"}}'.encode()
            )
        finally:
            connection.close()


_NOT_PASSED_ON = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})
"""Headers about the connection to the real server, not about its answer (:rfc:`9110`, 7.6.1)."""


class Elsewhere:
    """Another host: answers all batches as if it had stored them, and remembers who came."""

    def __init__(self) -> None:
        self.contacts = 0
        """How many requests came."""
        self.authorizations: list[str] = []
        """The credentials that they brought."""
        self.listener = _Listener(self._serve)

    def _serve(self, request: _Request) -> None:
        self.contacts += 1
        self.authorizations += request.headers.get_all("Authorization") or []
        request.answer(_Reply(200, [], b'{"acked":1000000000}'))


class _Request(http.server.BaseHTTPRequestHandler):
    """One connection, and the request on it that is being served."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # Who gave up, or was cut off by `stop`, needs no answer.
        with contextlib.suppress(OSError):
            self.server.serve(self)

    do_GET = do_POST  # noqa: N815 - the name that the base class looks for

    def answer(self, reply: _Reply) -> None:
        self.write(reply.encoded())

    def write(self, data: bytes) -> None:
        self.connection.sendall(data)

    def hold(self, released: threading.Event) -> None:
        """Wait until the client gives up, or *released* is set and then `_Listener.end_held` called."""
        self.server.held.add(self.connection)
        with contextlib.suppress(OSError):
            while not released.is_set() and self.connection.recv(4096):
                pass
        self.server.held.discard(self.connection)

    def end(self) -> None:
        self.close_connection = True

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.end()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


class _Listener(http.server.ThreadingHTTPServer):
    """Serves connections in threads that end with it."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, serve: Callable[[_Request], None]) -> None:
        self.serve = serve
        self.held: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, name="fault-proxy"
        )
        super().__init__(("127.0.0.1", 0), _Request)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        _hang_up(self._open)
        self.server_close()

    def end_held(self) -> None:
        _hang_up(self.held)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:
        # Without the farewell that the base class sends, which would come before a reset.
        self._open.discard(request)
        request.close()

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that reset connections are what this is for."""


def _hang_up(connections: set[socket.socket]) -> None:
    for connection in connections.copy():
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
