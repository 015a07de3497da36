"""
Stores of lines, chosen by a URL.

`base` says what a store does; `sqlite` and `memory` do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runlog.exceptions import SettingsError
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

if TYPE_CHECKING:
    from runlog.server.storage.base import LogStorage

DATABASE_FILE = "runlog.db"
"""The file in ``RUNLOG_HOME`` that is used where no database is named."""


def storage_from_url(url: str) -> LogStorage:
    """
    Return the store that a URL names, not yet open.

    Args:
        url: ``sqlite:///`` and a path (a fourth slash makes it absolute), a path
            alone, or ``memory://``.

    Raises:
        SettingsError: If there is no such kind of store.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return SQLiteStorage(Path(url).expanduser())
    if scheme == "memory" or (scheme == "sqlite" and rest in {"", "/", "/:memory:"}):
        return MemoryStorage()
    if scheme != "sqlite" or not rest.startswith("/"):
        raise SettingsError(
            f"RUNLOG_SERVER_DATABASE is {scheme}://..., expected sqlite:///path/to/file or memory://",
            key="RUNLOG_SERVER_DATABASE",
            expected="sqlite:///path/to/file or memory://",
            got=f"{scheme}://...",  # what follows may hold a password
        )
    return SQLiteStorage(Path(rest[1:]).expanduser())
