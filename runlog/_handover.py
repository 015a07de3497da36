"""
What one process tells another about its run: versioned JSON under 1 kB, as a value.

`runlog.propagation` writes it for `carry` and for the environment variable
``RUNLOG_CONTEXT``; `runlog.context` and `runlog.propagation` read it. It holds
the fields of the innermost run, the run's small extras, and the settings that
differ from their defaults. It never holds a credential: it ends up in task
queues, process lists and crash reports.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runlog.redaction import is_sensitive_key, redact_text, redact_value

if TYPE_CHECKING:
    from collections.abc import Mapping

HANDOVER_VERSION = 1
"""Raised whenever an older reader would misunderstand the text."""

MAX_HANDOVER_BYTES = 1000
"""Longest text. Some carriers, such as message headers, allow little more than 1 kB."""

ENVIRONMENT_VARIABLE = "RUNLOG_CONTEXT"
"""Environment variable that hands a run to a child program."""

_process = (0, "")


def process_token() -> str:
    """Return random text that is this process's own; another one after a fork."""
    global _process  # noqa: PLW0603 - one value a process
    if _process[0] != os.getpid():
        _process = (os.getpid(), secrets.token_hex(4))
    return _process[1]


@dataclass(frozen=True, kw_only=True)
class Handover:
    """
    One run and its surroundings, ready to travel.

    Args:
        run: The run's own fields, such as ``flow_run_id``; empty if no run is active.
        extra: What the run adds to each of its lines. Values that are not JSON,
            or whose name says that they are secret, stay behind.
        log_prints: Whether the run logs what is printed.
        settings: Settings that differ from the default, by name in the environment.
        process: Token of the process that wrote it, see `process_token`.
    """

    run: Mapping[str, str | int | None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    log_prints: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    process: str = ""

    @property
    def is_own(self) -> bool:
        """Whether this very process wrote it."""
        return self.process == process_token()

    def encode(self) -> str:
        """
        Return the text, in ASCII and at most `MAX_HANDOVER_BYTES` long.

        To fit, it leaves out extras, the longest first, then names, then
        settings. The ids always travel.
        """
        run = dict(self.run)
        extra = {key: value for key, value in self.extra.items() if _may_travel(key, value)}
        settings = {key: text for key, text in self.settings.items() if redact_text(text) == text}
        text = self._text(run, extra, settings)
        for key in sorted(extra, key=lambda key: len(json.dumps(extra[key])), reverse=True):
            if len(text) <= MAX_HANDOVER_BYTES:
                return text
            del extra[key]
            text = self._text(run, extra, settings)
        if len(text) > MAX_HANDOVER_BYTES:
            run = {key: value for key, value in run.items() if not key.endswith("_name")}
            text = self._text(run, extra, settings)
        if len(text) > MAX_HANDOVER_BYTES:
            text = self._text(run, extra, {})
        return text

    def _text(self, run: Mapping[str, Any], extra: Mapping[str, Any], settings: Mapping[str, str]) -> str:
        value: dict[str, Any] = {"v": HANDOVER_VERSION, "process": self.process}
        parts = {"run": run, "extra": extra, "log_prints": self.log_prints, "settings": settings}
        value.update((key, part) for key, part in parts.items() if part)
        # ASCII, so that it survives as an environment variable in any locale.
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Handover:
        """
        Return what *text* says.

        Raises:
            ValueError: If it is not such a text, or one of another version; one
                line that does not repeat the text.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got {type(value).__name__}")  # noqa: TRY004 - one kind of error
        version = value.get("v")
        if version != HANDOVER_VERSION:
            raise ValueError(f"written in version {version!r}, this runlog reads version {HANDOVER_VERSION}")
        for name in ("run", "extra", "settings"):
            if not isinstance(value.get(name, {}), dict):
                raise ValueError(f"{name!r} must be a JSON object")  # noqa: TRY004 - the same
        run, settings = value.get("run", {}), value.get("settings", {})
        if any(not (item is None or isinstance(item, str | int)) for item in run.values()):
            raise ValueError("'run' must hold text and numbers only")
        if any(not isinstance(item, str) for item in settings.values()):
            raise ValueError("'settings' must hold text only")
        return cls(
            run=run,
            extra=value.get("extra", {}),
            log_prints=value.get("log_prints") is True,
            settings=settings,
            process=str(value.get("process", "")),
        )


def _may_travel(key: Any, value: Any) -> bool:
    if type(key) is not str or is_sensitive_key(key):
        return False
    try:
        # A value that only nearly survives, such as a tuple or NaN, would differ at the other end.
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value and redact_value(value) == value)
    except Exception:  # whatever a user's object does when it is looked at
        return False
