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
import functools
import mmap
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlog._locks import lock_file
from runlog.delivery.frames import HEADER_BYTES, encode_frame, encode_header, put_frame

_NAME = re.compile(r"([0-9a-f]{20})-([0-9]{13})\.seg")

OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""For every file of the spool: no link is followed, and no program that is started inherits it."""


FIRST_ROOM = 64 * 1024
"""Bytes that a segment sets aside at first: a short script needs no more. It doubles as it fills."""

MOST_ROOM = 4 * 1024 * 1024
"""Most bytes that are set aside at once."""

MAPPABLE = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs", "overlay"})
"""File systems that keep the room that they set aside."""


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

    Where the file system keeps what it promises, room is set aside in advance
    and mapped into memory, so that an append is a copy: no system call, and no
    other thread gets to run in the middle of it. Elsewhere each append is a
    write. Either survives the process, whatever ends it.

    Not thread-safe: the caller holds one lock around each call.

    Args:
        directory: Exists, and belongs to this user.
        name: Of the new file; must not exist.
        header: Facts for the header.
        room: Bytes to set aside at first.

    Raises:
        OSError: If the file cannot be made or written.
    """

    def __init__(
        self, directory: Path, name: SegmentName, header: dict[str, Any], *, room: int = FIRST_ROOM
    ) -> None:
        path = directory / str(name)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        # Under a name that nobody adopts until it is locked: it would pass for a dead process's.
        self.path = path.with_suffix(".new")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
        self.size = 0
        """Bytes of what was written; the file may be longer."""
        self._map: mmap.mmap | None = None
        self._room = sys.maxsize
        try:
            if not lock_file(self._fd):
                raise BlockingIOError(  # noqa: TRY301 - the file must be closed for this, too
                    errno.EAGAIN, "taken over by another process", str(self.path)
                )
            self._write(encode_header(header))
            if self.size <= room and can_map(directory):
                self._map_room(room)
            self.path = self.path.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self.abandon()
            raise

    def append(self, seq: int, kind: int, payload: bytes) -> None:
        """
        Write one frame.

        Raises:
            OSError: If it could not be written whole; nothing of it is left.
        """
        end = self.size + HEADER_BYTES + len(payload)
        if end > self._room:
            self._add_room(end)
        if self._map is None:
            self._write(encode_frame(seq, kind, payload))
        else:
            put_frame(self._map, self.size, seq, kind, payload)
            self.size = end

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
                self._cut_back()
            raise
        self.size += len(data)

    def _map_room(self, room: int) -> None:
        """Set room aside and map it; where that cannot be, go on by writing, which says what is wrong."""
        try:
            os.posix_fallocate(self._fd, 0, room)
            self._map = mmap.mmap(self._fd, room)
            self._room = room
        except OSError:
            self._cut_back()

    def _add_room(self, end: int) -> None:
        """Make sure that there is room up to *end* and for about as much again; else go on by writing."""
        assert self._map is not None, "only what is mapped is bounded"
        least = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        room = max(least, self._room + min(self._room, MOST_ROOM))
        try:
            os.posix_fallocate(self._fd, self._room, room - self._room)
            self._map.resize(room)
            self._room = room
        except (OSError, SystemError):  # the latter where a mapping cannot grow
            self._unmap()

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
            self._room = sys.maxsize
            with contextlib.suppress(OSError):
                self._cut_back()

    def _cut_back(self) -> None:
        os.ftruncate(self._fd, self.size)
        os.lseek(self._fd, self.size, os.SEEK_SET)

    def finish(self) -> None:
        """Give back the room that was not used. What is appended later is written."""
        self._unmap()

    def duplicate(self) -> int:
        """Return another descriptor of the file, the caller's to close."""
        return os.dup(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes from *offset*; does not move the place of writing."""
        return read_at(self._fd, offset, length)

    def close(self) -> None:
        """Give back the room that was not used and close the file, which gives up its lock."""
        self.finish()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file and leave it as it is: after a fork it is the parent's."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the file, then close it: nobody can adopt it in between."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.abandon()


def can_map(directory: Path) -> bool:
    """
    Tell whether room that was set aside here is there when it is written to.

    Where it is not, touching mapped memory would end the program instead of
    raising an error: on file systems across a network, and on those that write
    elsewhere what was set aside here.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        return _file_system(directory.stat().st_dev) in MAPPABLE
    except OSError:
        return False


@functools.lru_cache(maxsize=16)
def _file_system(device: int) -> str:
    """Return the type of a mounted file system, empty if it is not known. Linux only."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        facts, _, source = line.partition(" - ")
        if facts.split()[2:3] == [number]:
            return source.split()[0]
    return ""


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
