"""
The database file: made for its owner alone, locked against a second server.

Two connections that write to a database in WAL mode can corrupt it before SQLite
3.51.3, and two servers on one file would give answers that contradict each
other, so a lock file beside the database keeps the second one out. It is held by
the descriptor: a killed server leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from runlog._locks import lock_file, unlock_file
from runlog.exceptions import StorageError, StorageFullError, StorageInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC = b"SQLite format 3\0"
_FULL = frozenset({sqlite3.SQLITE_FULL})


class FileLock:
    """
    Keep other processes, and other stores in this one, away from a database.

    Args:
        database: The file; the lock is beside it, with ``.lock`` after its name.

    Raises:
        StorageInUseError: If another server has it.
        StorageError: If the lock's file cannot be made.
    """

    def __init__(self, database: Path) -> None:
        path = database.with_name(f"{database.name}.lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise StorageError(f"cannot lock the database {database}: {error.strerror or error}") from error
        if not lock_file(self._descriptor):
            os.close(self._descriptor)
            raise StorageInUseError(
                f"{database} is in use by another runlog server; stop that one, "
                "or give this one a file of its own with --database"
            )

    def release(self) -> None:
        """Let others have it. Explicitly, because a forked child has the descriptor as well."""
        unlock_file(self._descriptor)
        os.close(self._descriptor)


def prepare_file(path: Path) -> None:
    """
    Make the file and its directory, readable by nobody else, if they are missing.

    SQLite gives its companion files (``-wal``, ``-shm``) the rights of the database.

    Raises:
        StorageError: If there can be none.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise StorageError(f"cannot open the database {path}: {error.strerror or error}") from error
    # SQLite takes a file of a few bytes for an empty database, and writes over it.
    if head and head != _MAGIC:
        raise StorageError(f"the database {path} cannot be used: file is not a database")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """
    Turn SQLite's errors into ours.

    Raises:
        StorageFullError: If the disk has no room.
        StorageError: If the file is no database, damaged, or cannot be read or written.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        kind = StorageFullError if code in _FULL else StorageError
        raise kind(f"the database {path} cannot be used: {error}") from error
