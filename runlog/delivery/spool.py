"""
The directory in which events wait for one target: where it is, whom it is for, and what it keeps.

Segments in it are `runlog.delivery.spool_queue`'s and `runlog.delivery.backlog`'s.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from typing import TYPE_CHECKING

from runlog.delivery.segments import OPEN_FLAGS, SegmentName

if TYPE_CHECKING:
    from pathlib import Path


def spool_directory(home: Path, api_url: str | None) -> Path:
    """
    Return where events wait for a target.

    Args:
        home: ``RUNLOG_HOME``.
        api_url: API address; `None` for the server that runs on this machine.
    """
    if api_url is None:
        return home / "spool" / "local"
    name = re.sub(r"[^a-z0-9.]+", "-", api_url.lower().partition("://")[2].rpartition("@")[2]).strip("-.")
    # The digest tells apart what the readable part does not; passwords in an address are in neither.
    digest = hashlib.sha256(without_credentials(api_url).encode()).hexdigest()[:8]
    return home / "spool" / f"{name[:60]}-{digest}"


def without_credentials(url: str) -> str:
    """Return an address without the user and the password that it may hold."""
    scheme, separator, rest = url.rstrip("/").partition("://")
    return scheme + separator + rest.rpartition("@")[2]


TARGET_FILE = "target.json"
"""File beside the segments that keeps the address, which the directory's name does not give back."""


def remember_target(directory: Path, api_url: str | None) -> None:
    """
    Write down, for ``runlog spool send``, which address a spool is for; raises nothing.

    Args:
        directory: What `spool_directory` returned for *api_url*; made if it is missing.
        api_url: Written without user and password; `None` needs no file.
    """
    path = directory / TARGET_FILE
    if api_url is None or path.exists():
        return
    fresh = directory / f"{TARGET_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        make_private_directory(directory)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN_FLAGS, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"api_url": without_credentials(api_url)}, file)
        fresh.replace(path)


def remembered_target(directory: Path) -> str | None:
    """Return the address that a spool is for, `None` if it is not known, or not that directory's."""
    try:
        api_url = str(json.loads((directory / TARGET_FILE).read_bytes())["api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return api_url if spool_directory(directory.parent.parent, api_url).name == directory.name else None


DEAD_LETTERS = "dead-letters.jsonl"
"""File beside the segments that keeps what a server refused."""


def write_dead_letter(directory: Path, producer: str, seq: int, event: bytes, detail: str) -> Path:
    """
    Append a refused event, with its identity and the reason, as one line of JSON.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    make_private_directory(directory)
    path = directory / DEAD_LETTERS
    head = json.dumps({"producer": producer, "seq": seq, "detail": detail})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OPEN_FLAGS, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(head[:-1].encode() + b', "event": ' + event + b"}\n")
    return path


def make_private_directory(directory: Path) -> None:
    """
    Make sure that a directory exists, is ours, and is closed to others.

    Raises:
        OSError: If it is a link, no directory, or another user's.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or (hasattr(os, "getuid") and facts.st_uid != os.getuid()):
        raise PermissionError(errno.EPERM, "not a directory of this user", str(directory))
    if facts.st_mode & 0o077:
        directory.chmod(0o700)


def directory_bytes(directory: Path, *, besides: str | None = None) -> int:
    """Return the bytes of all segments in a directory, without those of one producer."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            name = SegmentName.parse(entry.name)
            if name is not None and name.producer != besides:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
