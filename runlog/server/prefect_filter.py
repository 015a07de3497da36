"""
Prefect's filter of logs, as JSON, made into a `LogQuery`.

The rules are those of Prefect 3's server: unknown keys are faults at every level
of the filter, and not beside it; a part that is there and empty holds for every
line; an empty list of ids holds for none. A limit or offset of null is the
default: Prefect's client sends it where its own server refuses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from runlog.server.query import (
    AllOf,
    AnyOf,
    Condition,
    LevelBetween,
    LogQuery,
    RunIn,
    TaskRunIsNull,
    TextMatches,
    TimeBetween,
)
from runlog.server.text_search import MAX_QUERY_LENGTH

if TYPE_CHECKING:
    from typing import Literal

    from runlog.server.validation import Faults, Location

PAGE_SIZE = 200
"""Lines in an answer, by default and at most."""

_INT64_MAX = 2**63 - 1


def query_from_body(body: Any, faults: Faults) -> LogQuery:
    """
    Return what the body of ``POST /logs/filter`` asks for.

    Args:
        body: Decoded JSON.
        faults: Notes what is wrong; if something is, the answer means nothing.

    Raises:
        HTTPException: 422 for a limit out of range, in the words by which
            Prefect's command line finds out the page size.
    """
    if not isinstance(body, dict):
        for name in ("limit", "offset", "logs", "sort"):
            faults.missing(("body", name), None)
        return LogQuery()
    limit: int | None = PAGE_SIZE
    if body.get("limit") is not None:
        limit = faults.integer(body["limit"], ("body", "limit"))
    offset: int | None = 0
    if body.get("offset") is not None:
        offset = faults.integer(body["offset"], ("body", "offset"))
        if offset is not None and offset < 0:
            message = "Input should be greater than or equal to 0"
            faults.add("greater_than_equal", ("body", "offset"), message, body["offset"], ge=0)
    where = parse_filter(body.get("logs"), faults, ("body", "logs"))
    sort: str | None = "TIMESTAMP_ASC"
    if "sort" in body:
        sort = faults.choice(body["sort"], ("body", "sort"), ("TIMESTAMP_ASC", "TIMESTAMP_DESC"))
    if faults.found or limit is None or offset is None:
        return LogQuery()
    if limit < 0:
        raise HTTPException(422, "Invalid limit: must be greater than or equal to 0.")
    if limit > PAGE_SIZE:
        raise HTTPException(422, f"Invalid limit: must be less than or equal to {PAGE_SIZE}.")
    order: Literal["asc", "desc"] = "asc" if sort == "TIMESTAMP_ASC" else "desc"
    return LogQuery(where=where, order=order, limit=limit, offset=min(offset, _INT64_MAX - PAGE_SIZE))


def parse_filter(value: Any, faults: Faults, at: Location) -> Condition:
    """
    Return the condition that a filter object stands for.

    Args:
        value: Decoded JSON; `None` filters nothing.
        faults: Notes what is wrong.
        at: Where *value* was found.
    """
    if value is None:
        return AllOf()
    fields = faults.mapping(value, at)
    if fields is None:
        return AllOf()
    operator: str | None = "and_"
    if "operator" in fields:
        operator = faults.choice(fields["operator"], (*at, "operator"), ("and_", "or_"))
    parts: list[Condition] = []
    for name, parse in _PARTS.items():
        if fields.get(name) is None:
            continue
        part = faults.mapping(fields[name], (*at, name))
        if part is not None:
            parts += parse(part, faults, (*at, name))
    faults.forbid_others(fields, at, ("operator", *_PARTS))
    if operator == "or_" and parts:
        return AnyOf(tuple(parts))
    return AllOf(tuple(parts))


def _level(part: dict[str, Any], faults: Faults, at: Location) -> list[Condition]:
    lowest, highest = (
        _clamped(faults.integer(part[name], (*at, name))) if part.get(name) is not None else None
        for name in ("ge_", "le_")
    )
    faults.forbid_others(part, at, ("ge_", "le_"))
    return [LevelBetween(lowest, highest)]


def _timestamp(part: dict[str, Any], faults: Faults, at: Location) -> list[Condition]:
    latest, earliest = (
        faults.time(part[name], (*at, name)) if part.get(name) is not None else None
        for name in ("before_", "after_")
    )
    faults.forbid_others(part, at, ("before_", "after_"))
    return [TimeBetween(earliest, latest)]


def _flow_run_id(part: dict[str, Any], faults: Faults, at: Location) -> list[Condition]:
    conditions = _run_ids("flow", part, faults, at)
    faults.forbid_others(part, at, ("any_",))
    return [AllOf(tuple(conditions))]


def _task_run_id(part: dict[str, Any], faults: Faults, at: Location) -> list[Condition]:
    conditions = _run_ids("task", part, faults, at)
    if part.get("is_null_") is not None:
        is_null = faults.boolean(part["is_null_"], (*at, "is_null_"))
        conditions.append(TaskRunIsNull(bool(is_null)))
    faults.forbid_others(part, at, ("any_", "is_null_"))
    return [AllOf(tuple(conditions))]


def _run_ids(
    kind: Literal["flow", "task"], part: dict[str, Any], faults: Faults, at: Location
) -> list[Condition]:
    if part.get("any_") is None:
        return []
    values = faults.array(part["any_"], (*at, "any_")) or []
    ids = [faults.uuid(value, (*at, "any_", index)) for index, value in enumerate(values)]
    return [RunIn(kind, tuple(dict.fromkeys(run_id for run_id in ids if run_id is not None)))]


def _text(part: dict[str, Any], faults: Faults, at: Location) -> list[Condition]:
    query: str | None = None
    if "query" in part:
        query = faults.text(part["query"], (*at, "query"), max_length=MAX_QUERY_LENGTH)
    else:
        faults.missing((*at, "query"), part)
    faults.forbid_others(part, at, ("query",))
    # A blank search is no part at all: with or_ it must not let every line pass.
    return [TextMatches(query)] if query is not None and query.strip() else []


def _clamped(number: int | None) -> int | None:
    """Return a bound that the database can compare with; levels themselves have 32 bits."""
    return None if number is None else min(max(number, -_INT64_MAX), _INT64_MAX)


_PARTS = {
    "level": _level,
    "timestamp": _timestamp,
    "flow_run_id": _flow_run_id,
    "task_run_id": _task_run_id,
    "text": _text,
}
