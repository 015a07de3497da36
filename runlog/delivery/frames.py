"""
What the bytes of a spool file mean, and how they are read after any damage. Pure.

A segment holds consecutive seqs of one producer, as frames::

    header:  magic, length, crc, JSON object
    frame:   0xFF 0xF5, kind, seq, length, crc, payload

The two bytes that open a frame cannot occur in UTF-8, so that a reader finds
the next frame behind a damaged one. Each frame carries its own seq and a CRC32
over all of it: damage costs the frames it hits and no other. Zeros behind the
last frame are room that was never used.
"""

from __future__ import annotations

import contextlib
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from mmap import mmap

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
_pack_into = _FRAME_HEADER.pack_into

HEADER_BYTES = _FRAME_HEADER.size
"""What a frame has in front of its payload."""

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""No frame is longer: a length beyond it is damage, and is not believed."""


class Frame(NamedTuple):
    """One record of a segment."""

    seq: int
    kind: int
    payload: bytes


def encode_frame(seq: int, kind: int, payload: bytes) -> bytes:
    """Return the bytes of one frame."""
    length = len(payload)
    return _pack(FRAME_MAGIC, kind, seq, length, _checksum(kind, seq, length, payload)) + payload


def put_frame(buffer: mmap, offset: int, seq: int, kind: int, payload: bytes) -> None:
    """Write what `encode_frame` returns into a buffer that has the room, without making it first."""
    length = len(payload)
    _pack_into(buffer, offset, FRAME_MAGIC, kind, seq, length, _checksum(kind, seq, length, payload))
    offset += HEADER_BYTES
    buffer[offset : offset + length] = payload


def _checksum(kind: int, seq: int, length: int, payload: bytes) -> int:
    """CRC32 of the payload, mixed with the other fields so that it differs if one of them does."""
    return crc32(payload) ^ ((seq ^ (seq >> 32) ^ (length << 7) ^ (kind << 29)) & 0xFFFFFFFF)


def encode_header(facts: dict[str, Any]) -> bytes:
    """Return the bytes that open a segment."""
    text = json.dumps({"version": FORMAT_VERSION, **facts}, separators=(",", ":")).encode()
    return FILE_MAGIC + _FILE_HEADER.pack(len(text), crc32(text)) + text


def decode_header(data: bytes) -> tuple[dict[str, Any], int]:
    """
    Return what a segment's header says, and where its frames begin.

    A damaged header says nothing, and its frames are looked for from the start.
    """
    offset = len(FILE_MAGIC) + _FILE_HEADER.size
    if data.startswith(FILE_MAGIC) and len(data) >= offset:
        length, crc = _FILE_HEADER.unpack_from(data, len(FILE_MAGIC))
        text = data[offset : offset + length]
        if len(text) == length and crc32(text) == crc:
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
        elif not data.strip(b"\0") and data:
            offset += len(data)  # room that was never used
        elif offset + len(data) >= end or not data:
            return  # damage up to the end, or a frame whose writing was cut off
        elif length > MAX_PAYLOAD_BYTES:
            offset += len(data) - _FRAME_HEADER.size  # damage longer than any frame: go on behind it
        else:
            length *= 2
