"""
How a program finds the log server that runs on this machine.

A server publishes its address in ``$RUNLOG_HOME/server.json`` and holds a lock
for as long as it lives; a program that has no ``PREFECT_API_URL`` reads the
file and believes it only while the lock is held, so that a file which a killed
server left behind sends nobody to an address that somebody else may have now.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from runlog._locks import lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RUNTIME_FILE = "server.json"
LOCK_FILE = "server.lock"


class LocalServer(NamedTuple):
    """A log server that runs on this machine now."""

    url: str
    """Its API address, such as ``http://127.0.0.1:4210/api``."""
    pid: int


@contextlib.contextmanager
def publish_local_server(home: Path, url: str, token: str | None = None) -> Iterator[bool]:
    """
    Let programs with the same home find the server at *url* while the block runs.

    Yields `False`, and publishes nothing, if another server is published already.

    Args:
        home: ``RUNLOG_HOME``; created with mode 0700 if it is missing.
        url: API address.
        token: What the server takes as ``Bearer`` from whoever may read the file.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    # 0600: the file tells where the logs go, which nobody else may redirect, and how to get in.
    lock = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if not _lock_soon(lock):
            yield False
            return
        runtime_file = home / RUNTIME_FILE
        fresh = home / f"{RUNTIME_FILE}.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"url": url, "pid": os.getpid(), "token": token}, file)
        fresh.replace(runtime_file)  # readers see the old file or the new one, never half of one
        try:
            yield True
        finally:
            runtime_file.unlink(missing_ok=True)
    finally:
        os.close(lock)


def find_local_server(home: Path) -> LocalServer | None:
    """
    Return the server that is published and alive, else `None`.

    Costs a few system calls; creates nothing and raises nothing.
    """
    try:
        facts = json.loads((home / RUNTIME_FILE).read_bytes())
        found = LocalServer(str(facts["url"]), int(facts["pid"]))
        lock = os.open(home / LOCK_FILE, os.O_RDWR)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    try:
        return None if lock_file(lock) else found
    finally:
        os.close(lock)


def local_credentials(home: Path | None, url: str, given: Mapping[str, str]) -> dict[str, str]:
    """
    Return the headers that let programs with the same home into the server at *url*.

    Costs as little as `find_local_server`, and raises nothing.

    Args:
        home: ``RUNLOG_HOME``.
        url: API address; the answer is empty if it is not the published one.
        given: Headers of the request; the answer is empty if they have credentials.
    """
    if any(name.lower() == "authorization" for name in given):
        return {}
    try:
        facts = json.loads((home / RUNTIME_FILE).read_bytes()) if home is not None else {}
        token = facts.get("token") if str(facts.get("url", "")).rstrip("/") == url.rstrip("/") else None
    except (OSError, ValueError, AttributeError):
        return {}
    # The address may be another's by now if the server was killed; then the token is worth nothing either.
    return {"Authorization": f"Bearer {token}"} if isinstance(token, str) else {}


def _lock_soon(descriptor: int) -> bool:
    """Take the lock, past the moment for which a reader that looks whether it is free may hold it."""
    deadline = time.monotonic() + 0.5
    while not lock_file(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
