"""
Locks on open files, which the kernel gives back when their process is gone.

On POSIX systems ``flock``: the lock belongs to the open file and not to the
process, so that a descriptor which a fork inherits holds it, too, until both
are closed.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":  # pragma: no cover - the lock of another system
    import msvcrt

    def lock_file(descriptor: int) -> bool:
        """Take the lock of a file, which closing it gives back; `False` if another process has it."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock_file(descriptor: int) -> None:
        """Give the lock of a file back while the descriptor, or a fork's copy of it, stays open."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock_file(descriptor: int) -> bool:
        """Take the lock of a file, which closing it gives back; `False` if another process has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def unlock_file(descriptor: int) -> None:
        """Give the lock of a file back while the descriptor, or a fork's copy of it, stays open."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
