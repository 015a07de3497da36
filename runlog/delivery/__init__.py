"""
From an encoded event to the server's acknowledgement.

`runlog.handlers` asks `acquire_worker` for the worker of a target and hands it
events. One target has one worker in a process, however many handlers send
there, so that the order of lines is that of the calls.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from runlog.delivery import lifecycle
from runlog.delivery.limits import Durability, Limits, WhenFull
from runlog.delivery.spool import remember_target, spool_directory
from runlog.delivery.transport import HTTPTransport, InMemoryTransport, Transport
from runlog.delivery.worker import DeliveryWorker

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DeliveryWorker",
    "Durability",
    "HTTPTransport",
    "InMemoryTransport",
    "Limits",
    "Target",
    "Transport",
    "WhenFull",
    "acquire_worker",
    "close_worker",
    "flush",
    "release_worker",
    "statistics",
    "workers",
]


@dataclass(frozen=True, slots=True)
class Target:
    """
    Where events go, and as what they introduce themselves; the key under which handlers share a worker.

    Its text does not show the headers, which hold the key.
    """

    api_url: str | None
    """API address; `None` for the server that runs on this machine."""
    home: Path | None = None
    """``RUNLOG_HOME``, where such a server is looked for."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    resource: tuple[tuple[str, str], ...] = ()
    """OpenTelemetry resource attributes, sorted by name."""

    @property
    def spool(self) -> Path | None:
        """The directory in which events wait for this target; `None` without a home."""
        return None if self.home is None else spool_directory(self.home, self.api_url)


@dataclass(slots=True)
class _Shared:
    worker: DeliveryWorker
    users: int = 0


_by_target: dict[tuple[Target, Limits], _Shared] = {}
_lock = threading.RLock()  # a signal handler may log while this thread holds it


def acquire_worker(target: Target, limits: Limits) -> DeliveryWorker:
    """
    Return the worker of this process that sends to *target* within *limits*.

    Handlers that agree in both share it; each gives it back by
    `release_worker`. Thread-safe; starts no thread.
    """
    with _lock:
        shared = _by_target.get((target, limits))
        if shared is None:
            transport = HTTPTransport(
                target.api_url,
                home=target.home,
                headers=dict(target.headers),
            )
            resource = msgspec.json.encode(dict(target.resource))
            if target.spool is not None and limits.durability != "memory":
                remember_target(target.spool, target.api_url)
            worker = DeliveryWorker(transport, limits, spool=target.spool, resource=resource)
            shared = _by_target[target, limits] = _Shared(worker)
            lifecycle.watch(shared.worker)
        shared.users += 1
        return shared.worker


def release_worker(worker: DeliveryWorker, timeout: float | None = None) -> bool:
    """
    Give back a worker of `acquire_worker`: flush it, and close it if nobody else uses it.

    Args:
        worker: Not to be used by the caller any more.
        timeout: As for `flush`.

    Returns:
        Whether all that it took is acknowledged.
    """
    with _lock:
        last = True
        for key, shared in list(_by_target.items()):
            if shared.worker is worker:
                shared.users -= 1
                last = shared.users < 1
                if last:
                    del _by_target[key]
    return close_worker(worker, timeout) if last else worker.flush(timeout)


def close_worker(worker: DeliveryWorker, timeout: float | None = None) -> bool:
    """
    Close a worker and forget it, unless it holds events still: then the end of the program tries again.

    Arguments and answer are those of `release_worker`.
    """
    closed = worker.close(timeout)
    if closed:
        lifecycle.unwatch(worker)
    return closed


def workers() -> list[DeliveryWorker]:
    """Return the workers of this process, those of handlers with a transport of their own included."""
    return lifecycle.workers()


def flush(timeout: float | None = None) -> bool:
    """
    Send all that was logged before the call, at once, and wait for the acknowledgement.

    Stops nothing. Blocks the calling thread, so an event loop should call it by
    ``await asyncio.to_thread(runlog.flush)``.

    Args:
        timeout: Most seconds to wait, for all targets together; by default the
            setting ``RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT`` (5 s) for each.

    Returns:
        `True` once all of it is acknowledged, also if there was nothing; `False`
        if time ran out or there is no server to send to.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    done = True
    for worker in workers():
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done = worker.flush(left) and done
    return done


def statistics() -> list[dict[str, Any]]:
    """Return what each worker of this process took in and dropped; see `DeliveryWorker.statistics`."""
    return [worker.statistics() for worker in workers()]


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
