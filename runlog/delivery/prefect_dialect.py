"""
How lines are told to a real Prefect server, which knows nothing of runlog's batches.

`runlog.delivery.transport` finds out that it talks to one: it has no route for
batches, and takes a list of no logs. From then on each batch goes as strict logs
of Prefect's: six fields and no other, because its server refuses a whole request
for one that it does not know.

What that costs: extras and names of runs stay behind, and so does exactly-once.
A Prefect server gives each log an id of its own as it comes, so that a batch whose
answer is lost is stored twice when it is sent again.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from runlog.delivery.retry import Answer, retry_after_seconds
from runlog.records import ExceptionInfo, format_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runlog.delivery.batching import Batch
    from runlog.records import DropMarker

LOGS_PATH = "/logs/"

MAX_LINES = 500
"""Most lines in one request: a Prefect server stores 3,000 at once more slowly than 300 ten times."""

INT16 = range(-(2**15), 2**15)
"""Levels that a Prefect server can store: on PostgreSQL, another one would fail with its whole request."""

MARKER_LEVEL = 30


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange(Protocol):
    """What sends one request to a server and reads the response."""

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """
        Send a request.

        Args:
            method: Of HTTP.
            path: Below the API address.
            body: JSON.
            headers: Besides those that every request has.
        """


class _Line(msgspec.Struct):
    """What of an encoded event a Prefect server takes."""

    timestamp_ns: int
    level: int
    name: str
    message: str
    flow_run_id: str | None = None
    task_run_id: str | None = None
    exception: ExceptionInfo | None = None


class PrefectLog(msgspec.Struct):
    """A log as ``POST /logs/`` of Prefect 3 takes it, with the fields in the order of its ``LogCreate``."""

    name: str
    level: int
    message: str
    timestamp: str
    flow_run_id: uuid.UUID | None
    task_run_id: uuid.UUID | None


def encode_logs(batch: Batch) -> bytes:
    """
    Return the body of ``POST /logs/`` for a batch.

    A traceback goes at the end of its message, as Prefect's own handler writes it,
    and a run whose id is no UUID is none. Where lines were dropped, a line says so,
    in the run of the line after it, or before it at the batch's end.
    """
    lines: list[_Line | DropMarker] = []
    for _, event, marker in batch.in_order():
        if event is not None:
            lines.append(msgspec.json.decode(event, type=_Line))
        elif marker is not None and marker.reason != "acknowledged_elsewhere":
            lines.append(marker)
    return msgspec.json.encode(list(_logs(lines)))


def _logs(lines: list[_Line | DropMarker]) -> Iterator[PrefectLog]:
    near = next((line for line in lines if isinstance(line, _Line)), None)
    for index, line in enumerate(lines):
        if isinstance(line, _Line):
            near = line
            trace = line.exception.traceback.rstrip("\n") if line.exception is not None else ""
            yield PrefectLog(
                name=line.name,
                level=min(max(line.level, INT16[0]), INT16[-1]),
                message=f"{line.message}\n{trace}" if trace else line.message,
                timestamp=format_timestamp(line.timestamp_ns),
                flow_run_id=_uuid(line.flow_run_id),
                task_run_id=_uuid(line.task_run_id),
            )
            continue
        after = next((other for other in lines[index:] if isinstance(other, _Line)), near)
        yield PrefectLog(
            name="runlog.delivery",
            level=MARKER_LEVEL,
            message=f"{line.count} line{'s were' if line.count > 1 else ' was'} dropped here: {line.reason}",
            timestamp=format_timestamp(after.timestamp_ns if after is not None else time.time_ns()),
            flow_run_id=_uuid(after.flow_run_id) if after is not None else None,
            task_run_id=None,
        )


def _uuid(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if text is not None else None
    except ValueError:
        return None


class PrefectDialect:
    """
    Sends batches to one Prefect server.

    Not thread-safe: a transport is used by one thread at a time.
    """

    def __init__(self) -> None:
        self._client_id = str(uuid.uuid4())
        self._csrf: dict[str, str] = {}

    def is_spoken(self, exchange: Exchange) -> bool:
        """Ask the server to store no logs, and return whether it did, as Prefect's does."""
        reply = self._post(exchange, b"[]")
        return reply.status == 201 and reply.body.strip() == b"null"

    def send(self, exchange: Exchange, batch: Batch) -> Answer:
        """
        Post a batch, and return what became of it.

        More than `MAX_LINES` are answered as if the server found them too large, so
        that the sender halves them.
        """
        if len(batch.events) > MAX_LINES:
            return Answer(413, detail=f"more than {MAX_LINES} lines for a Prefect server at once")
        body = encode_logs(batch)
        if body == b"[]":
            return Answer(201, acked=batch.last_seq)
        return read_reply(self._post(exchange, body), batch.last_seq)

    def _post(self, exchange: Exchange, body: bytes) -> Reply:
        reply = exchange("POST", LOGS_PATH, body, self._csrf)
        if is_csrf_refusal(reply):
            token = _decode(exchange("GET", f"/csrf-token?client={self._client_id}").body)
            if isinstance(token, dict) and isinstance(token.get("token"), str):
                self._csrf = {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": self._client_id}
                reply = exchange("POST", LOGS_PATH, body, self._csrf)
        return reply


def is_csrf_refusal(reply: Reply) -> bool:
    """Return whether a Prefect server wants a token against forged requests, or another one."""
    return reply.status == 403 and b"CSRF token" in reply.body


def read_reply(reply: Reply, last_seq: int) -> Answer:
    """
    Return what a Prefect server's response says about a batch.

    Args:
        reply: To ``POST /logs/``.
        last_seq: The batch's; acknowledged if the server stored the logs.
    """
    facts = _decode(reply.body)
    if reply.status == 201 and facts is None:
        return Answer(201, acked=last_seq, detail="HTTP 201")
    is_verdict = isinstance(facts, dict) and ("exception_detail" in facts or "detail" in facts)
    return Answer(
        reply.status,
        retry_after=retry_after_seconds(reply.headers.get("retry-after")),
        detail=f"HTTP {reply.status} {_first_fault(facts)[:500]}".rstrip(),
        is_verdict=is_verdict,
    )


def _first_fault(facts: Any) -> str:
    if not isinstance(facts, dict):
        return "from a Prefect server"
    faults = facts.get("exception_detail")
    if isinstance(faults, list) and faults and isinstance(faults[0], dict):
        place = ".".join(map(str, faults[0].get("loc", ())))
        return f"{place}: {faults[0].get('msg')}"
    return str(facts.get("detail") or facts.get("exception_message") or "")


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body  # no JSON, and above all not null
