"""
Prefect's routes for logs, as a Prefect 3 server answers them.

Its unmodified client sends lines to ``POST /logs/`` and reads them from
``POST /logs/filter``. A body is checked as a whole before any of it is stored:
one bad line refuses all of them, as the client expects.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route

from runlog.records import LogEvent
from runlog.server.answers import prefect_log_answer
from runlog.server.body import json_response, read_body
from runlog.server.errors import InvalidBodyError
from runlog.server.ingest import INT32
from runlog.server.prefect_filter import query_from_body
from runlog.server.state import state_of
from runlog.server.validation import Faults

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_FIELDS = ("name", "level", "message", "timestamp", "flow_run_id", "task_run_id")
_REQUIRED = _FIELDS[:4]


async def create_logs(request: Request) -> Response:
    """Store lines."""
    server = state_of(request)
    body = await read_body(request, server.limits.max_body_bytes)
    faults = Faults()
    if not body.strip():
        faults.missing(("body",), None)
        raise InvalidBodyError(faults.found, None, 0)
    logs = decode_json(body)
    events = events_from_logs(logs, faults)
    if faults.found:
        raise InvalidBodyError(faults.found, logs, len(body))
    if len(events) > server.limits.max_batch_lines:
        raise HTTPException(
            413, f"send at most {server.limits.max_batch_lines} logs at once, got {len(events)}"
        )
    await server.noted.name_lines(events)
    await server.ingest.take_events(events)
    return json_response(None, 201)


async def read_logs(request: Request) -> Response:
    """Answer the lines that a filter asks for."""
    server = state_of(request)
    body = await read_body(request, server.limits.max_body_bytes)
    asked = decode_json(body) if body.strip() else {}
    faults = Faults()
    query = query_from_body(asked, faults)
    if faults.found:
        raise InvalidBodyError(faults.found, asked, len(body))
    return json_response([prefect_log_answer(line) for line in await server.storage.read_lines(query)])


def decode_json(body: bytes) -> Any:
    """
    Return what a body says.

    Raises:
        InvalidBodyError: If it is not JSON; with place and words of Python's decoder.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        text = body.decode(errors="replace")
        position, problem = 0, str(error)
        try:
            json.loads(text)
        except json.JSONDecodeError as other:
            position, problem = other.pos, other.msg
        except (ValueError, RecursionError):  # numbers of thousands of digits, brackets nested as deep
            pass
        faults = Faults()
        faults.add("json_invalid", ("body", position), "JSON decode error", {}, error=problem)
        raise InvalidBodyError(faults.found, text, len(body)) from error


def events_from_logs(logs: Any, faults: Faults) -> list[LogEvent]:
    """
    Return the lines in the decoded body of ``POST /logs/``.

    Args:
        logs: What should be an array of logs.
        faults: Notes what is wrong; if something is, the answer means nothing.
    """
    if isinstance(logs, str):
        message = "'str' instances are not allowed as a Sequence value"
        faults.add("sequence_str", ("body",), message, logs, type_name="str")
        return []
    if not isinstance(logs, list):
        message = "Input should be an instance of Sequence"
        faults.add("is_instance_of", ("body",), message, logs, **{"class": "Sequence"})
        return []
    events: list[LogEvent] = []
    ids: dict[str, str | None] = {}
    for index, log in enumerate(logs):
        event = _event(log, faults, index, ids)
        if event is not None:
            events.append(event)
    return events


def _event(log: Any, faults: Faults, index: int, ids: dict[str, str | None]) -> LogEvent | None:
    at = ("body", index)
    fields = faults.mapping(log, at)
    if fields is None:
        return None
    before = len(faults.found)
    name = message = level = timestamp_ns = None
    for required in _REQUIRED:
        if required not in fields:
            faults.missing((*at, required), log)
        elif required == "name":
            name = faults.text(fields["name"], (*at, "name"))
        elif required == "message":
            message = faults.text(fields["message"], (*at, "message"))
        elif required == "level":
            level = _level(fields["level"], faults, (*at, "level"))
        else:
            timestamp_ns = faults.time(fields["timestamp"], (*at, "timestamp"))
    run_ids: list[str | None] = []
    for key in ("flow_run_id", "task_run_id"):
        value = fields.get(key)
        if isinstance(value, str) and value in ids:  # the same run as many lines before
            run_ids.append(ids[value])
            continue
        run_id = faults.uuid(value, (*at, key)) if value is not None else None
        if run_id is not None and isinstance(value, str):
            ids[value] = run_id
        run_ids.append(run_id)
    if len(fields) > len(_REQUIRED):
        faults.forbid_others(fields, at, _FIELDS)
    if len(faults.found) > before or name is None or message is None or level is None or timestamp_ns is None:
        return None
    flow_run_id, task_run_id = run_ids
    return LogEvent(
        timestamp_ns=timestamp_ns,
        level=level,
        name=name.replace("\0", ""),
        message=message.replace("\0", ""),
        flow_run_id=flow_run_id,
        task_run_id=task_run_id,
    )


def _level(value: Any, faults: Faults, at: tuple[str | int, ...]) -> int | None:
    level = faults.integer(value, at)
    if level is not None and level not in INT32:
        bound = (
            ("less_than_equal", "less", INT32[-1])
            if level > 0
            else ("greater_than_equal", "greater", INT32[0])
        )
        faults.add(bound[0], at, f"Input should be {bound[1]} than or equal to {bound[2]}", value)
        return None
    return level


ROUTES = [
    Route("/logs/", create_logs, methods=["POST"]),
    Route("/logs/filter", read_logs, methods=["POST"]),
]
