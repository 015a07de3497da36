"""Flows and runs in the shapes of Prefect's API, with every field that its server answers."""

from __future__ import annotations

import time
from typing import Any

from runlog.records import format_timestamp
from runlog.server.noted_runs import NotedRun, flow_id_of


def flow_answer(name: str) -> dict[str, Any]:
    """Return a flow, which is its name."""
    now = format_timestamp(time.time_ns())
    return {"id": flow_id_of(name), "created": now, "updated": now, "name": name, "tags": [], "labels": {}}


def flow_run_answer(run: NotedRun) -> dict[str, Any]:
    """Return a flow run; what runlog knows nothing of, such as deployments, is null."""
    return {
        **_common(run),
        "flow_id": flow_id_of(run.flow_name),
        "deployment_id": None,
        "deployment_version": None,
        "work_queue_id": None,
        "work_queue_name": None,
        "flow_version": run.details.get("flow_version"),
        "parameters": run.details.get("parameters", {}),
        "idempotency_key": run.details.get("idempotency_key"),
        "context": run.details.get("context", {}),
        "parent_task_run_id": run.tracking_task_run_id,
        "auto_scheduled": False,
        "infrastructure_document_id": None,
        "infrastructure_pid": run.details.get("infrastructure_pid"),
        "created_by": None,
        "work_pool_id": None,
        "work_pool_name": None,
        "job_variables": {},
    }


def task_run_answer(run: NotedRun) -> dict[str, Any]:
    """Return a task run."""
    return {
        **_common(run),
        "flow_run_id": run.flow_run_id,
        "task_key": run.details.get("task_key") or run.task_name or "",
        "dynamic_key": run.details.get("dynamic_key") or run.id,
        "cache_key": None,
        "cache_expiration": None,
        "task_version": run.details.get("task_version"),
        "task_inputs": run.details.get("task_inputs", {}),
        "flow_run_run_count": 0,
    }


def _common(run: NotedRun) -> dict[str, Any]:
    state = run.state
    created = format_timestamp(run.created_ns)
    total = 0.0
    if run.started_ns is not None:
        until = run.ended_ns if run.ended_ns is not None else time.time_ns()
        total = max(0.0, (until - run.started_ns) / 1e9)
    return {
        "id": run.id,
        "created": created,
        "updated": state.timestamp if state is not None and state.timestamp else created,
        "name": run.name,
        "state_id": state.id if state is not None else None,
        "empirical_policy": {
            "max_retries": 0,
            "retry_delay_seconds": 0.0,
            "retries": run.policy.retries,
            "retry_delay": run.policy.retry_delay,
        },
        "tags": run.tags,
        "labels": run.details.get("labels", {}),
        "state_type": state.type if state is not None else None,
        "state_name": state.name if state is not None else None,
        "run_count": run.run_count,
        "expected_start_time": created,
        "next_scheduled_start_time": None,
        "start_time": format_timestamp(run.started_ns) if run.started_ns is not None else None,
        "end_time": format_timestamp(run.ended_ns) if run.ended_ns is not None else None,
        "total_run_time": total if run.ended_ns is not None else 0.0,
        "estimated_run_time": total,
        "estimated_start_time_delta": 0.0,
        "state": state,
    }
