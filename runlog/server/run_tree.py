"""The runs that belong to one run, kept up to date by the lines that pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runlog.records import LogEvent
    from runlog.server.run_summary import RunSummary


class RunTree:
    """
    A run and all that was opened in it, at any depth.

    Args:
        run_id: The run; it may be unknown yet.
        known: Runs of the tree so far.
    """

    def __init__(self, run_id: str, known: Iterable[RunSummary] = ()) -> None:
        self._ids = {run_id, *(run.id for run in known)}

    def __repr__(self) -> str:
        return f"<RunTree of {len(self._ids)} runs>"

    def takes(self, event: LogEvent) -> bool:
        """
        Return whether a line belongs to the tree, and learn from it which runs do.

        A run belongs to it from the first line on that says so, which its opening
        line does. What that line tells is about the innermost of the line's runs.
        """
        ids = self._ids
        task = event.task_run_id
        if event.flow_run_id in ids:
            if task is not None:
                ids.add(task)
            return True
        if task is not None:
            if task not in ids:
                if event.parent_task_run_id not in ids:
                    return False
                ids.add(task)
            return True
        if event.flow_run_id is None:
            return False
        if event.parent_task_run_id in ids or event.parent_flow_run_id in ids:
            ids.add(event.flow_run_id)
            return True
        return False
