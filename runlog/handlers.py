"""
The `logging` handler that sends records to the log server.

`APILogHandler.emit` renders a record in the calling thread (`runlog.records`),
and hands the encoded event to the worker of its target (`runlog.delivery`),
which sends it in the background. It raises nothing into the program, with the
one exception that ``PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW=error`` asks for.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from runlog import delivery
from runlog.context import current_run_fields
from runlog.credentials import auth_headers
from runlog.delivery import DeliveryWorker, HTTPTransport, Limits, Target, WhenFull, lifecycle
from runlog.direct import DirectEncoder
from runlog.exceptions import MissingContextError
from runlog.records import encode_event, event_from_record, process_resource
from runlog.settings import get_current_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FrameType

    from runlog._http import Client
    from runlog._routes import DirectSend
    from runlog.delivery import Transport
    from runlog.records import LogEvent
    from runlog.settings import Settings

EXCLUDED_LOGGERS = ("httpx", "httpcore", "hpack", "runlog.delivery", "runlog.server")
"""Loggers, with their children, whose records sending itself would make: they would breed without end."""

LEAST_QUEUE_BYTES = 65_536
"""Least size of the queue, in bytes. Anything smaller was meant as a number of records."""

LINGER = 0.1
"""Seconds between two batches that are not full, where no batch interval is set: live enough to follow."""

# Re-entrant, so that a thread can be asked whether it holds it.
_resolving = threading.RLock()

_interrupting: deque[tuple[logging.Handler, logging.LogRecord]] = deque()
"""What was logged by whoever interrupted a thread that held the lock; it emits that when it has let go."""
"""Held while a handler looks for its worker: seldom, so that one lock for all is enough."""


class APILogHandler(logging.Handler):
    """
    Send log records to a runlog server, in the background, each of them once.

    A record belongs to the run that its adapter put on it, or else to the run
    that is active where it was logged. A record of no run is sent if the
    handler has a service name; without one,
    ``PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW`` decides.

    A single record is kept from the server by ``extra={"send_to_api": False}``.

    Thread-safe and fork-safe; starts its thread with the first record. All
    arguments are plain values, so that `logging.config.dictConfig` can give them.

    Args:
        level: Least level of the records that are sent.
        api_url: Address of the server's API, such as ``http://127.0.0.1:4210/api``.
            By default the setting ``PREFECT_API_URL``, and without it the server
            that runs on this machine, whenever one does.
        api_key: Sent as a Bearer token; by default ``PREFECT_API_KEY``.
        auth_string: ``user:password``; by default ``PREFECT_API_AUTH_STRING``. Wins over the key.
        service_name: OpenTelemetry's ``service.name``; by default ``RUNLOG_SERVICE_NAME``.
        service_version: ``service.version``; by default ``RUNLOG_SERVICE_VERSION``.
        environment: ``deployment.environment.name``; by default ``RUNLOG_SERVICE_ENVIRONMENT``.
        exclude_loggers: Names of loggers whose records, and those of their
            children, are not sent, besides `EXCLUDED_LOGGERS`.
        queue_size: Most bytes (not records) that wait to be sent, at least 65,536;
            by default ``RUNLOG_DELIVERY_MAX_QUEUE_BYTES``, 16 MiB.
        when_full: What happens to a record for which there is no room:
            ``"block"`` waits a moment, see ``RUNLOG_DELIVERY_BLOCK_TIMEOUT``,
            then drops it; ``"drop_oldest"`` and ``"drop_newest"`` do not wait.
            Whatever is dropped is counted, and the server is told.
        shutdown_timeout: Most seconds that `close` and the end of the program
            wait for delivery; by default ``RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT``, 5 s.
        mode: ``"background"``, or ``"sync"``: each call sends its record itself
            and waits for the answer. For places where threads do not run on.
        client: An `httpx.Client` to send with, instead of one of our own; it
            brings its own credentials and is not closed.
        transport: What sends, instead of HTTP; see `runlog.delivery.Transport`.

    Raises:
        ValueError: If an argument is out of range, or arguments exclude each other.
    """

    accepts_run_events = True
    """Start and end of a run are handed to this handler whatever the level of its logger."""

    def __init__(
        self,
        level: int | str = logging.NOTSET,
        *,
        api_url: str | None = None,
        api_key: str | None = None,
        auth_string: str | None = None,
        service_name: str | None = None,
        service_version: str | None = None,
        environment: str | None = None,
        exclude_loggers: Iterable[str] = (),
        queue_size: int | None = None,
        when_full: WhenFull | None = None,
        shutdown_timeout: float | None = None,
        mode: Literal["background", "sync"] = "background",
        client: Client | None = None,
        transport: Transport | None = None,
    ) -> None:
        _check(queue_size=queue_size, when_full=when_full, shutdown_timeout=shutdown_timeout, mode=mode)
        if client is not None and (api_key or auth_string):
            raise ValueError(
                "give either a client, which brings its credentials, or api_key or auth_string; got both"
            )
        if transport is not None and (client is not None or api_url or api_key or auth_string):
            raise ValueError("give either a transport or an address, credentials and a client; got both")
        if isinstance(exclude_loggers, str):
            exclude_loggers = exclude_loggers.split(",")
        super().__init__(level)
        self._api_url = api_url
        self._api_key = api_key
        self._auth_string = auth_string
        self._service = (service_name, service_version, environment)
        self._excluded_names = (*EXCLUDED_LOGGERS, *(name.strip() for name in exclude_loggers))
        self._is_excluded: dict[str, bool] = {}
        self._queue_size = queue_size
        self._when_full = when_full
        self._shutdown_timeout = shutdown_timeout
        self._mode = mode
        self._client = client
        self._transport = transport
        self._worker: DeliveryWorker | None = None
        self._settings: Settings | None = None
        self._has_service = bool(service_name)
        self._max_bytes = 1_000_000
        self._shared: dict[tuple[Target, Limits], DeliveryWorker] = {}
        self._own: list[DeliveryWorker] = []

    def __repr__(self) -> str:
        target = self._api_url or "the server in the settings"
        return f"<APILogHandler ({logging.getLevelName(self.level)}) to {target}>"

    # --- what logging calls ---

    def createLock(self) -> None:  # noqa: N802 - the name that logging gives it
        """Have no lock: what `emit` does is thread-safe, and threads need not wait for each other."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]
        """Emit the record if the filters let it pass."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed  # type: ignore[no-any-return]

    def emit(self, record: logging.LogRecord) -> None:
        """
        Render the record and hand it over.

        Raises:
            MissingContextError: If the record belongs to no run, the handler has
                no service name, and the settings ask for an error.
        """
        try:
            own = record.__dict__
            if not own.get("send_to_api", True) or not own.get("send_to_orion", True):
                return
            excluded = self._is_excluded.get(record.name)
            if excluded is None:
                excluded = self._decide_excluded(record.name)
            if excluded:
                return
            settings = get_current_settings()
            if not settings.logging.to_api.enabled:
                return
            worker = self._worker
            if worker is None or settings is not self._settings:
                if _resolving._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as threading.Condition does
                    # This thread was interrupted, by a signal handler or a finalizer that logs.
                    _interrupting.append((self, record))
                    return
                try:
                    worker = self._resolve(settings)
                finally:
                    _emit_interrupting()
            if (
                not self._has_service
                and own.get("flow_run_id") is None
                and own.get("task_run_id") is None
                and not current_run_fields()
            ):
                self._on_missing_run(record, settings.logging.to_api.when_missing_flow)
                return
            event = self.prepare(record)
            run = event.flow_run_id
            background = self._mode != "sync"
            name = event.event_name if event.task_run_id is None else None
            if worker.is_own_thread:  # a finalizer of the program's, or a library that sending uses
                worker.put_aside(encode_event(event, self._max_bytes), run=run)
                return
            if name == "runlog.run.finished" and run is not None:
                worker.put_last(event, run, self._max_bytes, background=background)
            elif name == "runlog.run.started" and run is not None:
                worker.put_first(encode_event(event, self._max_bytes), run, background=background)
            else:
                worker.put(encode_event(event, self._max_bytes), run=run, background=background)
            if not background:
                worker.send_now()
        except MissingContextError:
            raise
        except Exception:
            self.handleError(record)

    def direct(self, logger_name: str, fields: Mapping[str, Any]) -> DirectSend | None:
        """
        Return what takes the calls of a run logger, where nobody else needs a record; see `runlog.direct`.

        Args:
            logger_name: Name of the logger.
            fields: What its adapter puts on each record.
        """
        run, kind = fields.get("flow_run_id"), type(self)
        if (
            (kind.emit, kind.handle, kind.prepare, kind.filter) != (_EMIT, _HANDLE, _PREPARE, _FILTER)
            or self._mode == "sync"
            or (run is None and fields.get("task_run_id") is None)
            or not {"send_to_api", "send_to_orion", "event_name"}.isdisjoint(fields)
            or self._decide_excluded(logger_name)
        ):
            return None
        try:
            encode = DirectEncoder(logger_name, fields).encode
        except Exception:  # fields that only the ordinary way makes something of
            return None
        own = self.__dict__
        size = len(own)

        def send(
            level: int, msg: Any, args: tuple[Any, ...], extra: dict[str, Any] | None, frame: FrameType
        ) -> bool:
            if level < self.level:
                return True
            settings = get_current_settings()
            worker = self._worker
            if (
                worker is None
                or settings is not self._settings
                or not settings.logging.to_api.enabled
                or self.filters
                or len(own) != size  # something was put in the place of a method
                or kind.emit is not _EMIT
                or kind.handle is not _HANDLE
                or kind.prepare is not _PREPARE
                or worker.is_own_thread
            ):
                return False
            try:
                event = encode(level, msg, args, extra, frame)
            except Exception:  # the ordinary way makes something of everything
                return False
            if event is None or len(event) > self._max_bytes:
                return False
            try:
                worker.put(event, run=run)
            except Exception:
                self.handleError(logging.makeLogRecord({"name": logger_name, "levelno": level, "msg": msg}))
            return True

        return send

    def prepare(self, record: logging.LogRecord) -> LogEvent:
        """
        Return the event for a record. Subclasses may override it, to add attributes or change a text.

        Called in the thread that logs; an exception costs the record and is
        reported by `logging.Handler.handleError`.
        """
        own = record.__dict__
        has_own_run = own.get("flow_run_id") is not None or own.get("task_run_id") is not None
        return event_from_record(record, {} if has_own_run else current_run_fields())

    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """
        Send what was logged before the call, at once, and wait for the acknowledgement.

        Args:
            timeout: Most seconds to wait; by default the shutdown timeout.

        Returns:
            Whether all of it is acknowledged.
        """
        done = [worker.flush(self._budget(worker, timeout)) for worker in self._workers()]
        return all(done)

    def close(self) -> None:
        """Flush within the shutdown timeout and let go of the worker; a later record starts anew."""
        with _resolving:
            shared, self._shared = self._shared, {}
            own, self._own = self._own, []
            self._worker = self._settings = None
        _emit_interrupting()
        for worker in shared.values():
            if not delivery.release_worker(worker, self._budget(worker, None)):
                worker.report_undelivered()
        for worker in own:
            if not delivery.close_worker(worker, self._budget(worker, None)):
                worker.report_undelivered()
        super().close()

    # --- where records go ---

    def _workers(self) -> list[DeliveryWorker]:
        return [*self._shared.values(), *self._own]

    @staticmethod
    def _budget(worker: DeliveryWorker, timeout: float | None) -> float | None:
        """At the end of the program all handlers share one deadline."""
        if not lifecycle.is_ending():
            return timeout
        left = lifecycle.remaining_time(worker.limits.shutdown_timeout)
        return left if timeout is None else min(timeout, left)

    def _resolve(self, settings: Settings) -> DeliveryWorker:
        """Find the worker for these settings; called when they are others than at the last record."""
        with _resolving:
            if self._worker is not None and settings is self._settings:
                return self._worker
            limits = self._limits(settings)
            name = self._service[0] or settings.service.name
            if self._transport is None and self._client is None:
                key = (self._target(settings), limits)
                if key not in self._shared:
                    self._shared[key] = delivery.acquire_worker(*key)
                worker = self._shared[key]
            elif self._own:
                worker = self._own[0]
            else:
                transport = self._transport or self._client_transport(settings)
                resource = msgspec.json.encode(self._resource(settings))
                # Nobody else could send what such a transport leaves, so it leaves nothing.
                limits = replace(limits, durability="memory")
                worker = DeliveryWorker(transport, limits, resource=resource)
                lifecycle.watch(worker)
                self._own.append(worker)
            self._has_service = bool(name)
            self._max_bytes = settings.logging.to_api.max_log_size
            self._worker, self._settings = worker, settings
            return worker

    def _limits(self, settings: Settings) -> Limits:
        to_api, bounds = settings.logging.to_api, settings.delivery
        return Limits(
            max_batch_bytes=to_api.batch_size,
            batch_interval=to_api.batch_interval,
            # Whoever gives an interval means it.
            linger=None if "batch_interval" in to_api.model_fields_set else LINGER,
            max_queue_bytes=self._queue_size or bounds.max_queue_bytes,
            when_full=self._when_full or bounds.when_full,
            block_timeout=bounds.block_timeout,
            shutdown_timeout=bounds.shutdown_timeout
            if self._shutdown_timeout is None
            else self._shutdown_timeout,
            durability=settings.durability,
            max_spool_bytes=bounds.max_spool_bytes,
        )

    def _target(self, settings: Settings) -> Target:
        if self._api_key or self._auth_string:
            key, auth = self._api_key, self._auth_string
        else:
            key = settings.api.key.get_secret_value() if settings.api.key else None
            auth = settings.api.auth_string.get_secret_value() if settings.api.auth_string else None
        headers = auth_headers(api_key=key, auth_string=auth, custom_headers=settings.client.custom_headers)
        return Target(
            api_url=self._api_url or settings.api.url,
            home=settings.home,
            headers=tuple(sorted(headers.items())),
            resource=tuple(sorted(self._resource(settings).items())),
        )

    def _resource(self, settings: Settings) -> Mapping[str, str]:
        name, version, environment = self._service
        service = {
            "service.name": name or settings.service.name,
            "service.version": version or settings.service.version,
            "deployment.environment.name": environment or settings.service.environment,
        }
        return process_resource() | {key: value for key, value in service.items() if value}

    def _client_transport(self, settings: Settings) -> HTTPTransport:
        return HTTPTransport(
            self._api_url or settings.api.url,
            home=settings.home,
            headers=settings.client.custom_headers,
            client=self._client,
        )

    # --- which records go ---

    def _decide_excluded(self, name: str) -> bool:
        excluded = any(name == other or name.startswith(other + ".") for other in self._excluded_names)
        self._is_excluded[name] = excluded
        return excluded

    @staticmethod
    def _on_missing_run(record: logging.LogRecord, policy: str) -> None:
        if policy == "ignore":
            return
        text = (
            f"logger {record.name!r} was used outside of any flow or task run, "
            "so its line was not sent to the server: "
            'log inside "with FlowRunContext(...)", or wrap the thread\'s function in runlog.carry(); '
            'to keep such lines off the server, log them with extra={"send_to_api": False} '
            "or set PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW=ignore"
        )
        if policy == "error":
            raise MissingContextError(text)
        # At the line that logged, not at this one: that is where it can be mended.
        warnings.warn_explicit(text, UserWarning, record.pathname, record.lineno)


_EMIT, _HANDLE, _PREPARE = APILogHandler.emit, APILogHandler.handle, APILogHandler.prepare
_FILTER = APILogHandler.filter


def _check(
    *, queue_size: int | None, when_full: str | None, shutdown_timeout: float | None, mode: str
) -> None:
    if queue_size is not None and queue_size < LEAST_QUEUE_BYTES:
        raise ValueError(
            f"queue_size must be >= {LEAST_QUEUE_BYTES} bytes, "
            f"got {queue_size} (it counts bytes, not records)"
        )
    if when_full is not None and when_full not in get_args(WhenFull):
        raise ValueError(f"when_full must be one of {', '.join(get_args(WhenFull))}, got {when_full!r}")
    if shutdown_timeout is not None and shutdown_timeout < 0:
        raise ValueError(f"shutdown_timeout must be >= 0 s, got {shutdown_timeout}")
    if mode not in ("background", "sync"):
        raise ValueError(f"mode must be 'background' or 'sync', got {mode!r}")


def _emit_interrupting() -> None:
    while _interrupting:
        handler, record = _interrupting.popleft()
        handler.emit(record)


def _after_fork_in_child() -> None:
    global _resolving  # noqa: PLW0603 - a thread of the parent may have held it
    _resolving = threading.RLock()
    _interrupting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
