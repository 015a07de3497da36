"""
Prefect's filter of flow runs, as JSON, made into a function over runs.

Its parts are told by the fields that they look at, and its tests by their names,
which mean the same in every part. What filters something that runlog has not,
such as deployments, holds for runs without; an unknown part or test is a fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from starlette.exceptions import HTTPException

from runlog.server.prefect_filter import PAGE_SIZE
from runlog.server.routes.prefect_answers import flow_run_answer
from runlog.server.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.server.noted_runs import NotedRun
    from runlog.server.validation import Faults, Location

Sort = Literal[
    "ID_DESC",
    "START_TIME_ASC",
    "START_TIME_DESC",
    "EXPECTED_START_TIME_ASC",
    "EXPECTED_START_TIME_DESC",
    "NAME_ASC",
    "NAME_DESC",
    "NEXT_SCHEDULED_START_TIME_ASC",
    "END_TIME_DESC",
]

_FIELDS = {
    **{
        name: name
        for name in (
            "id",
            "name",
            "tags",
            "deployment_id",
            "work_queue_name",
            "flow_version",
            "start_time",
            "end_time",
            "expected_start_time",
            "next_scheduled_start_time",
            "parent_task_run_id",
            "idempotency_key",
            "created_by",
        )
    },
    "state.type": "state_type",
    "state.name": "state_name",
    "parent_flow_run_id": "parent_flow_run_id",
}
"""The answer's field that each part of the filter looks at."""

Facts = dict[str, Any]
"""A run as it is answered, and what else a filter may ask for."""


def _is_in(value: Any, operand: Any) -> bool:
    return any(one in operand for one in value) if isinstance(value, list) else value in operand


_LISTS: dict[str, Callable[[Any, Any], bool]] = {
    "any_": _is_in,
    "not_any_": lambda value, operand: not _is_in(value, operand),
    "all_": lambda value, operand: isinstance(value, list) and all(one in value for one in operand),
    "id_": _is_in,
    "type_": _is_in,
}
"""Tests against a list."""

_TIMES: dict[str, Callable[[int, int], bool]] = {
    "before_": lambda value, operand: value <= operand,
    "after_": lambda value, operand: value >= operand,
}


def run_filter(asked: Any, faults: Faults) -> Callable[[list[NotedRun]], list[Facts]]:
    """
    Return what picks, sorts and pages runs as the body of ``POST /flow_runs/filter`` asks.

    Args:
        asked: Decoded JSON.
        faults: Notes what is wrong; if something is, the answer means nothing.

    Raises:
        HTTPException: 422 for a limit out of range.
    """
    fields = faults.mapping(asked, ("body",)) or {}
    page = _page(fields, faults)
    sort = fields.get("sort") or "ID_DESC"
    if sort not in get_args(Sort):
        faults.add("enum", ("body", "sort"), f"Input should be one of {', '.join(get_args(Sort))}", sort)
    tests = [
        *_tests(fields.get("flow_runs"), faults, ("body", "flow_runs"), _FIELDS),
        *_tests(fields.get("flows"), faults, ("body", "flows"), {"id": "flow_id", "name": "flow_name"}),
    ]
    # No run here has a deployment, a pool or a queue; and tasks are not looked through.
    never = any(
        isinstance(fields.get(name), dict) and any(fields[name].get(part) for part in fields[name])
        for name in ("task_runs", "deployments", "work_pools", "work_pool_queues")
    )

    def pick(runs: list[NotedRun]) -> list[Facts]:
        found = [] if never else [facts for facts in map(_facts, runs) if all(test(facts) for test in tests)]
        key, _, direction = sort.rpartition("_")
        found.sort(key=lambda facts: str(facts.get(key.lower()) or ""), reverse=direction == "DESC")
        return [{name: value for name, value in facts.items() if name not in _ASIDE} for facts in found[page]]

    return pick


def flow_filter(asked: Any, faults: Faults) -> Callable[[list[Facts]], list[Facts]]:
    """Return what picks and pages flows as the body of ``POST /flows/filter`` asks; see `run_filter`."""
    fields = faults.mapping(asked, ("body",)) or {}
    page = _page(fields, faults)
    tests = _tests(
        fields.get("flows"), faults, ("body", "flows"), {"id": "id", "name": "name", "tags": "tags"}
    )
    return lambda flows: [flow for flow in flows if all(test(flow) for test in tests)][page]


def _page(fields: Facts, faults: Faults) -> slice:
    limit = PAGE_SIZE if fields.get("limit") is None else faults.integer(fields["limit"], ("body", "limit"))
    offset = 0 if fields.get("offset") is None else faults.integer(fields["offset"], ("body", "offset"))
    if offset is not None and offset < 0:
        message = "Input should be greater than or equal to 0"
        faults.add("greater_than_equal", ("body", "offset"), message, offset, ge=0)
    if limit is None or offset is None or faults.found:
        return slice(0)
    if not 0 <= limit <= PAGE_SIZE:
        bound = f"less than or equal to {PAGE_SIZE}" if limit > 0 else "greater than or equal to 0"
        raise HTTPException(422, f"Invalid limit: must be {bound}.")
    return slice(offset, offset + limit)


def asked_ids(asked: Any) -> tuple[list[str] | None, list[str] | None]:
    """Return the ids of flow runs, and of parent task runs, that a valid filter names; `None` for any."""
    parts = asked.get("flow_runs") or {}
    if parts.get("operator") == "or_":
        return None, None
    ids, parents = ((parts.get(name) or {}).get("any_") for name in ("id", "parent_task_run_id"))
    return ids, parents


_ASIDE = ("flow_name", "parent_flow_run_id")


def _facts(run: NotedRun) -> Facts:
    return {
        **flow_run_answer(run),
        "flow_name": run.flow_name,
        "parent_flow_run_id": run.parent_flow_run_id,
    }


def _tests(
    value: Any, faults: Faults, at: Location, known: dict[str, str], prefix: str = ""
) -> list[Callable[[Facts], bool]]:
    """Return the tests of a filter, all of which must pass, or one of them where it says so."""
    if value is None:
        return []
    parts = faults.mapping(value, at) or {}
    tests: list[Callable[[Facts], bool]] = []
    for name, part in parts.items():
        if name == "operator" or part is None:
            continue
        field = known.get(prefix + name)
        if prefix + name == "state":
            tests += _tests(part, faults, (*at, name), known, "state.")
        elif field is None:
            faults.add("extra_forbidden", (*at, name), "Extra inputs are not permitted", part)
        else:
            tests += _part(part, faults, (*at, name), field)
    if parts.get("operator") == "or_" and tests:
        every = tests
        return [lambda facts: any(test(facts) for test in every)]
    return tests


def _part(part: Any, faults: Faults, at: Location, field: str) -> list[Callable[[Facts], bool]]:
    tests = []
    for name, operand in (faults.mapping(part, at) or {}).items():
        if operand is None or name == "operator":
            continue
        test = _test(name, operand, faults, (*at, name), field)
        if test is not None:
            tests.append(test)
    return tests


def _test(
    name: str, operand: Any, faults: Faults, at: Location, field: str
) -> Callable[[Facts], bool] | None:
    if name in _LISTS:
        found = faults.array(operand, at) or []
        items = [faults.text(item, (*at, index)) for index, item in enumerate(found)]
        return lambda facts: _LISTS[name](facts[field], items)
    if name in _TIMES:
        bound, order = faults.time(operand, at), _TIMES[name]
        return lambda facts: facts[field] is not None and order(parse_time(facts[field]), bound or 0)
    if name == "is_null_":
        wanted = faults.boolean(operand, at)
        return lambda facts: (facts[field] is None or facts[field] == []) == wanted
    if name == "like_":
        text = (faults.text(operand, at) or "").lower()
        return lambda facts: text in str(facts[field] or "").lower()
    faults.add("extra_forbidden", at, "Extra inputs are not permitted", operand)
    return None
