"""
One spool file: its name, how it is written, and who may open it.

`runlog.delivery.frames` says what its bytes mean; `runlog.delivery.spool_queue`
decides which segment is written and when one is removed. The file's name
repeats producer and first seq, so that a damaged header costs no identity.

Invariant: a frame that `SegmentWriter.append` returned for is in the kernel's
hands as a whole; nothing of a frame that it raised for is left in the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runlog._locks import lock_file
from runlog.delivery.frames import encode_frame, encode_header

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"([0-9a-f]{20})-([0-9]{13})\.seg")

OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""For every file of the spool: no link is followed, and no program that is started inherits it."""


@dataclass(frozen=True, slots=True)
class SegmentName:
    """What a segment's file name says."""

    producer: str
    first_seq: int

    def __str__(self) -> str:
        return f"{self.producer}-{self.first_seq:013d}.seg"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """Return what *name* says, `None` if it is not a segment's."""
        match = _NAME.fullmatch(name)
        return cls(match[1], int(match[2])) if match else None


class SegmentWriter:
    """
    Append frames to a new segment, which it owns until it is closed.

    Not thread-safe: the caller holds one lock around each call.

    Args:
        directory: Exists, and belongs to this user.
        name: Of the new file; must not exist.
        header: Facts for the header.

    Raises:
        OSError: If the file cannot be made or written.
    """

    def __init__(self, directory: Path, name: SegmentName, header: dict[str, Any]) -> None:
        path = directory / str(name)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        # Under a name that nobody adopts until it is locked: it would pass for a dead process's.
        self.path = path.with_suffix(".new")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
        self.size = 0
        try:
            if not lock_file(self._fd):
                raise BlockingIOError(  # noqa: TRY301 - the file must be closed for this, too
                    errno.EAGAIN, "taken over by another process", str(self.path)
                )
            self._write(encode_header(header))
            self.path = self.path.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            raise

    def append(self, seq: int, kind: int, payload: bytes) -> None:
        """
        Write one frame.

        Raises:
            OSError: If it could not be written whole; nothing of it is left.
        """
        self._write(encode_frame(seq, kind, payload))

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a nearly full disk takes a part without an error
                more = os.write(self._fd, data[written:])
                if more == 0:
                    raise OSError(  # noqa: TRY301 - what was written of it must be cut back for this, too
                        errno.ENOSPC, os.strerror(errno.ENOSPC)
                    )
                written += more
        except OSError:
            # Cut back to the record's start, so that what follows stays in step.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
                os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.size += len(data)

    def duplicate(self) -> int:
        """Return another descriptor of the file, the caller's to close."""
        return os.dup(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes from *offset*; does not move the place of writing."""
        return read_at(self._fd, offset, length)

    def close(self) -> None:
        """Close the file, which gives up its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the file, then close it: nobody can adopt it in between."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.close()


def sync_and_close(descriptor: int) -> None:
    """
    Wait until all that was written to a file survives a power cut.

    Raises:
        OSError: If the disk failed; what it has is then unknown.
    """
    try:
        getattr(os, "fdatasync", os.fsync)(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path) -> int:
    """
    Open an existing segment of this user for reading; the descriptor is the caller's to close.

    Raises:
        OSError: If it is a link, no regular file, or another user's.
    """
    descriptor = os.open(path, os.O_RDWR | OPEN_FLAGS)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or (hasattr(os, "getuid") and facts.st_uid != os.getuid()):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "not a file of this user", str(path))
    return descriptor


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Return up to *length* bytes from *offset*, less only at the end of the file."""
    parts = []
    while length > 0 and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)
