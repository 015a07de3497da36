"""
From a log call to an encoded event, without a record in between.

`runlog.handlers` uses it for calls that nobody else sees (`runlog._routes`). The
event is the one that `runlog.records.event_from_record` would make: what is the
same for all lines of a run, of a place in the code, or of a thread is rendered
once, by that very function, and kept as JSON; a call adds its time, its level,
its message and its extras. What is not ordinary is declined, and takes the
ordinary way: odd messages and arguments, extras that are more than extras,
event loops, active OpenTelemetry.

Thread-safe: what is kept is replaced or added to, never changed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

import msgspec

from runlog import redaction
from runlog.records import attribute_value, event_from_record, is_plain_extra
from runlog.rendering import clean_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, FrameType

MAX_PLACES = 10_000
"""Places in the code that are remembered, some 300 bytes each; a program with more starts over."""

_PLAIN = frozenset({str, int, float, bool, type(None)})
_LOGGING_FILE = os.path.normcase(logging.addLevelName.__code__.co_filename)

_encode = msgspec.json.Encoder().encode

_places: dict[tuple[int, int], tuple[CodeType, bytes | None]] = {}
_threads = threading.local()


class DirectEncoder:
    """
    Encodes the events of one run logger.

    Args:
        logger_name: As records would have it.
        fields: What the logger's adapter puts on each record.

    Raises:
        ValueError: If a field has the name of what differs from call to call.
    """

    def __init__(self, logger_name: str, fields: Mapping[str, Any]) -> None:
        self._logger_name = logger_name
        self._fields = dict(fields)
        self._secrets: tuple[Any, ...] = ()
        self._render()

    def _render(self) -> None:
        """Render what all events of the run share, under the secrets that are known now."""
        self._secrets = (redaction.registered_values(), redaction.sensitive_names())
        record = logging.LogRecord(self._logger_name, 0, "", 0, "", (), None)
        common = frozenset(event_from_record(record, {}).attributes)
        if not common.isdisjoint(self._fields):
            raise ValueError(f"fields of a run logger have names of its calls: {common & set(self._fields)}")
        record.__dict__.update(self._fields)
        event: dict[str, Any] = msgspec.json.decode(_encode(event_from_record(record, {})))
        attributes = {key: value for key, value in event.pop("attributes").items() if key not in common}
        for name in ("timestamp_ns", "level", "message"):
            event.pop(name, None)
        self._head = _members(event)
        self._own_attributes = b"," + _members(attributes) if attributes else b""
        self._taken_names = common.union(attributes)

    def encode(
        self, level: int, msg: Any, args: tuple[Any, ...], extra: dict[str, Any] | None, frame: FrameType
    ) -> bytes | None:
        """
        Return the event of one call as JSON; `None` if it is to take the ordinary way.

        Args:
            level: As for `logging.Logger.log`.
            msg: The same.
            args: The same.
            extra: Of the call alone.
            frame: Of the caller.
        """
        if type(msg) is not str or "opentelemetry.trace" in sys.modules or _get_running_loop() is not None:
            return None
        if not (logging.logThreads and logging.logProcesses):
            return None
        code = frame.f_code
        place = _places.get((id(code), frame.f_lasti))
        if place is None or place[0] is not code:
            place = _remember_place(frame)
        if place[1] is None:
            return None
        if args:
            if len(args) == 1 and type(args[0]) not in _PLAIN:
                return None  # a mapping's values may be meant
            try:
                text = msg % args
            except Exception:
                return None
        else:
            text = msg
        if not text.isascii():
            text = clean_text(text)
        if (
            redaction.registered_values() is not self._secrets[0]
            or redaction.sensitive_names() is not self._secrets[1]
        ):
            self._render()
        extras = b""
        if extra:
            found = self._extras(extra)
            if found is None:
                return None
            extras = found
        thread = threading.current_thread()
        pid = os.getpid()
        try:
            known = _threads.known
        except AttributeError:
            known = None
        if known is None or known[0] is not thread.name or known[1] != pid:
            name = thread.name
            ident = threading.get_ident()
            known = (name, pid, _members({"thread.name": name, "thread.id": ident, "process.pid": pid}))
            _threads.known = known
        return b'{"timestamp_ns":%d,"level":%d,"message":%b,%b,"attributes":{%b,%b%b%b}}' % (
            round(time.time() * 1_000_000) * 1000,
            level,
            _encode(redaction.redact_text(text)),
            self._head,
            place[1],
            known[2],
            self._own_attributes,
            extras,
        )

    def _extras(self, extra: dict[str, Any]) -> bytes | None:
        found = {}
        for key, value in extra.items():
            if type(key) is not str or key in self._taken_names or not is_plain_extra(key):
                return None
            found[key] = attribute_value(key, value)
        return b"," + _members(found)


def _remember_place(frame: FrameType) -> tuple[CodeType, bytes | None]:
    """Remember a place in the code; `None` for one inside `logging`, which is nobody's."""
    code = frame.f_code
    attributes: bytes | None = None
    if os.path.normcase(code.co_filename) != _LOGGING_FILE:
        attributes = _members(
            {
                "code.file.path": code.co_filename,
                "code.function.name": code.co_name,
                "code.line.number": frame.f_lineno,
            }
        )
    if len(_places) >= MAX_PLACES:
        _places.clear()
    place = _places[id(code), frame.f_lasti] = (code, attributes)
    return place


def _members(facts: dict[str, Any]) -> bytes:
    """Return the members of a JSON object without its braces."""
    return _encode(facts)[1:-1]
