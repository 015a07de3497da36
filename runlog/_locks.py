"""
Locks on open files, which the kernel gives back when their process is gone.

On POSIX systems ``flock``: the lock belongs to the open file and not to the
process, so that a descriptor which a fork inherits holds it, too, until both
are closed.
"""

from __future__ import annotations

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

else:
    import fcntl

    def lock_file(descriptor: int) -> bool:
        """Take the lock of a file, which closing it gives back; `False` if another process has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
