"""
One spool file: what its bytes mean, how it is written, and how it is read after any damage.

`runlog.delivery.spool` decides which segment is written and when one is
removed. A segment holds consecutive seqs of one producer, as frames::

    header:  magic, length, crc, JSON object
    frame:   0xFF 0xF5, kind, seq, length, crc, payload

The two bytes that open a frame cannot occur in UTF-8, so that a reader finds
the next frame behind a damaged one. Each frame carries its own seq and a CRC32
over all of it: damage costs the frames it hits and no other. The file's name
repeats producer and first seq, so that a damaged header costs no identity.

Invariant: a frame that `SegmentWriter.append` returned for is in the kernel's
hands as a whole; nothing of a frame that it raised for is left in the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from runlog._locks import lock_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMAT_VERSION = 1
FILE_MAGIC = b"runlog-spool\xff\n"
FRAME_MAGIC = b"\xff\xf5"

EVENT = 1
"""Kind of a frame whose payload is an encoded event."""
DROPPED = 2
"""Kind of a frame whose payload is a JSON object with ``count`` and ``reason``."""

_FILE_HEADER = struct.Struct("<II")  # length and crc of the JSON that follows
_FRAME_HEADER = struct.Struct("<2sBQII")  # magic, kind, seq, length of the payload, crc

READ_BYTES = 1024 * 1024
"""How much of a segment is read at once."""

_pack = _FRAME_HEADER.pack

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""No frame is longer: a length beyond it is damage, and is not believed."""

_NAME = re.compile(r"([0-9a-f]{20})-([0-9]{13})\.seg")

OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""For every file of the spool: no link is followed, and no program that is started inherits it."""


class Frame(NamedTuple):
    """One record of a segment."""

    seq: int
    kind: int
    payload: bytes


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


def encode_frame(seq: int, kind: int, payload: bytes) -> bytes:
    """Return the bytes of one frame."""
    length = len(payload)
    return _pack(FRAME_MAGIC, kind, seq, length, _checksum(kind, seq, length, payload)) + payload


def _checksum(kind: int, seq: int, length: int, payload: bytes) -> int:
    """CRC32 of the payload, started from the other fields, so that it differs if one of them does."""
    return zlib.crc32(payload, (seq ^ (seq >> 32) ^ (length << 7) ^ (kind << 29)) & 0xFFFFFFFF)


def encode_header(facts: dict[str, Any]) -> bytes:
    """Return the bytes that open a segment."""
    text = json.dumps({"version": FORMAT_VERSION, **facts}, separators=(",", ":")).encode()
    return FILE_MAGIC + _FILE_HEADER.pack(len(text), zlib.crc32(text)) + text


def decode_header(data: bytes) -> tuple[dict[str, Any], int]:
    """
    Return what a segment's header says, and where its frames begin.

    A damaged header says nothing, and its frames are looked for from the start.
    """
    offset = len(FILE_MAGIC) + _FILE_HEADER.size
    if data.startswith(FILE_MAGIC) and len(data) >= offset:
        length, crc = _FILE_HEADER.unpack_from(data, len(FILE_MAGIC))
        text = data[offset : offset + length]
        if len(text) == length and zlib.crc32(text) == crc:
            with contextlib.suppress(ValueError):
                facts = json.loads(text)
                if isinstance(facts, dict):
                    return facts, offset + length
    return {}, 0


def scan(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[Frame, int]]:
    """
    Yield each undamaged frame with the offset behind it, in file order, from *offset* on.

    Never raises. Damage is skipped: what follows it is found by its opening bytes.
    """
    data = bytes(data)
    size = _FRAME_HEADER.size
    while (offset := data.find(FRAME_MAGIC, offset)) >= 0:
        if offset + size > len(data):
            return
        _, kind, seq, length, crc = _FRAME_HEADER.unpack_from(data, offset)
        end = offset + size + length
        if length <= MAX_PAYLOAD_BYTES and end <= len(data):
            payload = data[offset + size : end]
            if _checksum(kind, seq, length, payload) == crc:
                yield Frame(seq, kind, payload), end
                offset = end
                continue
        offset += 1


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


def read_frames(
    read: Callable[[int, int], bytes], offset: int, end: int, chunk_bytes: int = READ_BYTES
) -> Iterator[tuple[Frame, int]]:
    """
    Yield frames as `scan` does, from a file that is read piece by piece.

    Args:
        read: Returns up to so many bytes from an offset.
        offset: Where to begin.
        end: Where to stop; what is appended later is not looked at.
        chunk_bytes: How much to read at once; more where a frame is longer.
    """
    length = chunk_bytes
    while offset < end:
        data = read(offset, min(length, end - offset))
        behind = 0
        for frame, behind in scan(data):
            yield frame, offset + behind
        if behind:
            offset += behind
            length = chunk_bytes
        elif offset + len(data) >= end or not data:
            return  # damage up to the end, or a frame whose writing was cut off
        elif length > MAX_PAYLOAD_BYTES:
            offset += len(data) - _FRAME_HEADER.size  # damage longer than any frame: go on behind it
        else:
            length *= 2


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
