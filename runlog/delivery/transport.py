"""
One batch out, one answer in.

`runlog.delivery.worker` gives a batch to a transport and gets an `Answer`;
what the answer means is decided in `runlog.delivery.retry`. A transport raises
nothing for trouble on the way: that is an answer without a status.
"""

from __future__ import annotations

import codecs
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from runlog.delivery import lifecycle
from runlog.delivery.prefect_dialect import PrefectDialect, Reply, is_csrf_refusal
from runlog.delivery.retry import Answer, retry_after_seconds
from runlog.discovery import find_local_server, local_credentials
from runlog.records import DropMarker, EventBatch, decode_batch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from runlog._http import Client
    from runlog.delivery.batching import Batch
    from runlog.delivery.prefect_dialect import Exchange
    from runlog.delivery.producer import Producer

CONNECT_TIMEOUT = 3.0
"""Seconds until a connection must stand: a host that drops packets is found out soon."""

TOTAL_TIMEOUT = 10.0
"""Seconds until an answer must be there."""

MAX_ANSWER_BYTES = 65_536
"""Most bytes that an answer may have: ours has thirty, and memory is not a stranger's to fill."""

BATCHES_PATH = "/runlog/v1/batches"
STATUS_PATH = "/runlog/v1/status"

NO_SERVER = "neither runlog nor Prefect answers there; the address of both ends in /api"

DIALECT_LIFETIME = 300.0
"""Seconds after which a Prefect server is asked again whether it is a runlog server by now."""

Dialect = Literal["runlog", "prefect"]


class Transport(Protocol):
    """
    What sends batches to one place.

    The worker calls one method at a time, from whichever thread sends.
    """

    @property
    def target(self) -> str | None:
        """Where batches go now, for people; `None` while there is nowhere to send them."""

    def send(self, producer: Producer, batch: Batch, *, timeout: float) -> Answer:
        """
        Send one batch and wait for the answer.

        Args:
            producer: Whose events they are.
            batch: What to send.
            timeout: Seconds after which to give up.
        """

    def close(self) -> None:
        """Release connections; the next `send` opens new ones."""

    def forget_connections(self) -> None:
        """Let go of connections that a fork inherited, without a word on them: they are the parent's."""


def encode_batch(producer: Producer, batch: Batch) -> bytes:
    """
    Return the body of ``POST /api/runlog/v1/batches``.

    The events are encoded already, so they are joined and not encoded again.

    Args:
        producer: Whose events they are.
        batch: What to send.
    """
    head = f'{{"producer":"{producer.id}","first_seq":{batch.first_seq},"resource":'
    parts = [head.encode(), producer.resource]
    if batch.dropped:
        parts += [b',"dropped":', msgspec.json.encode(batch.dropped)]
    if batch.closing:
        parts.append(b',"closing":true')
    parts += [b',"events":[', b",".join(batch.events), b"]}"]
    return b"".join(parts)


_inherited: list[Client] = []
"""Clients of parent processes, one a fork at most: kept, so that no finalizer closes or complains."""


class HTTPTransport:
    """
    Send batches to a runlog server, or lines to a Prefect server.

    Which of them it is shows in what it can do: a server that has no route for
    batches, and stores a list of no logs, is Prefect's, see
    `runlog.delivery.prefect_dialect`.

    Args:
        api_url: API address, such as ``http://127.0.0.1:4210/api``; `None`
            looks for the server that runs on this machine, before each batch.
        home: ``RUNLOG_HOME``, where such a server is looked for.
        headers: Sent with each request; ``Authorization`` among them.
        client: A client to use instead of one of our own; it is not closed.
    """

    def __init__(
        self,
        api_url: str | None,
        *,
        home: Path | None = None,
        headers: Mapping[str, str] | None = None,
        client: Client | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/") if api_url else None
        self._home = home
        self._headers = dict(headers or {})
        self._given_client = client
        self._client: Client | None = None
        self._prefect: PrefectDialect | None = None
        self._prefect_until = float("-inf")

    def __repr__(self) -> str:
        return f"<HTTPTransport to {self.target or 'no server'}>"

    @property
    def target(self) -> str | None:
        """The API address, or `None` while no server runs on this machine."""
        if self._api_url is not None:
            return self._api_url
        if self._home is None:
            return None
        server = find_local_server(self._home)
        return server.url.rstrip("/") if server else None

    @property
    def dialect(self) -> Dialect:
        """How the server is spoken to: ``prefect`` cannot store exactly once, and keeps no extras."""
        return "prefect" if self._prefect is not None else "runlog"

    def _credentials(self, target: str) -> dict[str, str]:
        """Return the given headers; for this machine's own server, with what it takes from its own user."""
        if self._api_url is not None:
            return self._headers
        return {**self._headers, **local_credentials(self._home, target, self._headers)}

    def send(self, producer: Producer, batch: Batch, *, timeout: float) -> Answer:
        """Post one batch and read the answer."""
        target = self.target
        if target is None:
            return Answer(None, detail="no log server is running on this machine")
        http, client = self._open()
        self._deadline.at = time.monotonic() + timeout
        timeouts = http.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
        fixed = {"Content-Type": "application/json", **self._credentials(target)}

        def exchange(
            method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
        ) -> Reply:
            with client.stream(
                method,
                target + path,
                content=body,
                headers={**fixed, **(headers or {})},
                timeout=timeouts,
                follow_redirects=False,
            ) as response:
                found = b""
                for part in response.iter_bytes():
                    found += part
                    if len(found) > MAX_ANSWER_BYTES:
                        raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                return Reply(response.status_code, response.headers, found)

        try:
            return self._send(exchange, producer, batch)
        except (http.HTTPError, http.InvalidURL, OSError, ValueError) as error:
            return Answer(None, detail=f"{type(error).__name__}: {error}".rstrip(": "))

    def _send(self, exchange: Exchange, producer: Producer, batch: Batch) -> Answer:
        if self._prefect is not None and time.monotonic() < self._prefect_until:
            answer = self._prefect.send(exchange, batch)
            if answer.status in (404, 405):
                self._prefect = None  # it is something else by now
            return answer
        reply = exchange("POST", BATCHES_PATH, encode_batch(producer, batch))
        if reply.status not in (404, 405) and not is_csrf_refusal(reply):
            self._prefect = None
            return read_answer(*reply)
        # No route for batches. Not ours, or ours behind something that does not let them through?
        if exchange("GET", STATUS_PATH).status == 404:
            prefect = self._prefect or PrefectDialect()
            if prefect.is_spoken(exchange):
                self._prefect, self._prefect_until = prefect, time.monotonic() + DIALECT_LIFETIME
                return prefect.send(exchange, batch)
        answer = read_answer(*reply)
        return replace(answer, detail=f"{answer.detail}; {NO_SERVER}")

    def prepare(self) -> None:
        """Load and build at once what the first batch would."""
        self._open()

    def _open(self) -> tuple[ModuleType, Client]:
        """Return the HTTP module and a client, loading and building them for the first batch."""
        if self._client is None:
            # Some 150 ms, in the background; a fork in the middle would leave the child unable to import.
            with lifecycle.no_fork():
                from runlog import _http  # noqa: PLC0415 - as said above

                codecs.lookup("idna")  # resolving a host's name would import it

                self._http = _http
                if self._given_client is None:
                    self._client, self._deadline = _http.client_with_deadline()
                else:
                    self._client, self._deadline = self._given_client, _http.Deadline()
        return self._http, self._client

    def close(self) -> None:
        """Close our own connections."""
        client, self._client = self._client, None
        if client is not None and client is not self._given_client:
            client.close()

    def forget_connections(self) -> None:
        """Put the client aside, unclosed: a farewell of the child's would end the parent's connection."""
        if self._client is not None:
            _inherited.append(self._client)
            self._client = None


def read_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Return what an HTTP response says about a batch; a body that is not ours says nothing."""
    facts: Any = None
    try:
        facts = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        detail = ""
    else:
        detail = str(facts["detail"]) if isinstance(facts, dict) and "detail" in facts else ""
    if not isinstance(facts, dict):
        facts = {}
    acked = _integer(facts.get("acked"))
    if 300 <= status < 400:
        detail = f"redirects to {headers.get('location', 'nowhere')[:200]}, which is not followed"
    elif 200 <= status < 300 and acked is None:
        detail = "without an acknowledgement"
    return Answer(
        status,
        acked=acked,
        expected=_integer(facts.get("expected")),
        retry_after=retry_after_seconds(headers.get("retry-after")),
        detail=f"HTTP {status} {detail[:500]}".rstrip(),
        is_verdict="detail" in facts,
    )


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None


def _tail(batch: EventBatch, seq: int) -> EventBatch:
    """Return what a batch has from *seq* on."""
    if batch.first_seq == seq:
        return batch
    markers = [
        DropMarker(max(marker.seq, seq), marker.count - max(0, seq - marker.seq), marker.reason)
        for marker in batch.dropped
        if marker.seq + marker.count > seq
    ]
    events = [event for number, event in batch.numbered() if number >= seq]
    return EventBatch(
        producer=batch.producer, first_seq=seq, events=events, dropped=markers, resource=batch.resource
    )


@dataclass
class InMemoryTransport:
    """
    A server's end in this process: keeps what it is sent, exactly once and in order, as the real one does.

    Thread-safe for the one sender that a worker is. For tests, ours and users'.
    """

    target: str | None = "memory"
    batches: list[EventBatch] = field(default_factory=list)
    """What was stored, a batch each, without what had been stored before."""
    answers: list[Answer | BaseException] = field(default_factory=list)
    """Answers to give instead of storing, first in first out; an exception is raised."""
    next_seqs: dict[str, int] = field(default_factory=dict)
    """The seq that each producer must send next."""
    sends: int = 0
    """How many batches were sent, stored or not."""

    def send(self, producer: Producer, batch: Batch, *, timeout: float) -> Answer:  # noqa: ARG002 - nothing to wait for
        """Store the batch, or give the next answer of `answers`."""
        self.sends += 1
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer
        decoded = decode_batch(encode_batch(producer, batch))
        expected = self.next_seqs.get(producer.id, 0)
        if decoded.first_seq > expected:
            return Answer(409, expected=expected, detail=f"HTTP 409 expected seq {expected}")
        if decoded.last_seq >= expected:
            self.batches.append(_tail(decoded, expected))
            self.next_seqs[producer.id] = decoded.last_seq + 1
        return Answer(200, acked=self.next_seqs.get(producer.id, 0) - 1)

    @property
    def messages(self) -> list[str]:
        """The messages of all stored events, in order."""
        return [event.message for batch in self.batches for event in batch.events]

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def forget_connections(self) -> None:
        """Do nothing: there are no connections."""
