"""
Copy a database while it is written to.

The copy is what was committed when it began: a read transaction is held for as
long as it takes, so that it neither waits for the writer nor begins again when
something is written. A server goes on meanwhile; its WAL grows by what comes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from runlog.exceptions import StorageError
from runlog.server.storage.sqlite.file import FileLock, storage_errors
from runlog.server.storage.sqlite.schema import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGES_AT_ONCE = 500
"""Copied between two reports: 4 MB."""


def back_up(path: Path, target: Path, *, on_progress: Callable[[int, int], None] | None = None) -> int:
    """
    Copy a store to a new file, and check the copy; return its size in bytes. Blocks.

    The copy has the same lines, and an epoch of its own: a stream that is resumed
    on it, with a cursor of the original, begins anew and says so.

    Args:
        path: The database; a server may have it.
        target: Made with mode 0600. Appears when it is complete and sound.
        on_progress: Told how many pages of how many are done.

    Raises:
        StorageError: If there is no such store, the target exists, or either cannot be used.
    """
    if not path.is_file():
        raise StorageError(f"there is no database {path}")
    if target.exists():
        raise StorageError(f"{target} exists, and a backup replaces nothing; name a new file")
    part = target.with_name(f"{target.name}.part")
    with contextlib.ExitStack() as undo:
        try:
            lock = FileLock(path)
        except StorageError:
            # Only a connection that can write would empty the WAL when it is the last to close, which is the
            # server's business alone. A read-only one needs the index of the WAL, which a server keeps.
            mode = "ro"
        else:
            undo.callback(lock.release)
            mode = "rw"
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))
        except OSError as error:
            raise StorageError(f"cannot write {part}: {error.strerror or error}") from error
        undo.callback(part.unlink, missing_ok=True)
        with storage_errors(path), contextlib.ExitStack() as connections:
            address = f"{path.absolute().as_uri()}?mode={mode}"
            source = sqlite3.connect(address, uri=True, isolation_level=None)
            connections.callback(source.close)
            copy = sqlite3.connect(part, isolation_level=None)
            connections.callback(copy.close)
            source.execute("BEGIN")
            if source.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise StorageError(f"{path} is no database of runlog")
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on the view is held

            def report(_status: int, remaining: int, total: int) -> None:
                if on_progress is not None:
                    on_progress(total - remaining, total)

            source.backup(copy, pages=PAGES_AT_ONCE, progress=report)
            source.execute("COMMIT")
            (problem,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if problem != "ok":
                raise StorageError(f"the copy of {path} is damaged: {problem}")
            if copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'store'").fetchone():
                # What the copy stores from now on is its own: places in one are not the other's.
                copy.execute("UPDATE store SET epoch = lower(hex(randomblob(8)))")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(target)
    return target.stat().st_size
