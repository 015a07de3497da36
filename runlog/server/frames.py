"""
WebSocket messages as bytes, so that one line is framed once for all who get it.

A server's frames are not masked (:rfc:`6455`, section 5.1), and no extension is
used, so that a message is the same bytes on every socket. ASGI has no way to write
them: where the server offers the extension `FRAMES` in a socket's scope, an event
``{"type": FRAMES, "data": bytes}`` writes whole frames, and waits as
``websocket.send`` does until the client has read enough of what was written before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from starlette.types import Scope, Send

FRAMES = "runlog.websocket.frames"

MAX_WRITE_BYTES = 65_536
"""Frames are written together up to here: with what the transport holds, all that a stalled client costs."""

_TEXT = 0x81
"""One frame, and the last of its message; text."""


def text_frame(payload: bytes) -> bytes:
    """Return a text message as one frame."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65_536:
        return bytes((_TEXT, 126)) + size.to_bytes(2) + payload
    return bytes((_TEXT, 127)) + size.to_bytes(8) + payload


def chunks(parts: Iterable[bytes], most_bytes: int = MAX_WRITE_BYTES) -> Iterator[bytes]:
    """Join parts to pieces of about *most_bytes*; only one part alone makes a longer one."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        if waiting and size + len(part) > most_bytes:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(part)
        size += len(part)
    if waiting:
        yield b"".join(waiting)


class MessageWriter:
    """
    Writes text messages to a socket that was accepted.

    Args:
        scope: Says whether frames can be written.
        send: Of ASGI.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self.takes_frames = FRAMES in scope.get("extensions", {})

    @property
    def envelope(self) -> Callable[[bytes], bytes]:
        """What makes of a message in UTF-8 what `write` takes."""
        return text_frame if self.takes_frames else bytes

    async def write(self, messages: Iterable[bytes]) -> None:
        """
        Write messages, each from the envelope.

        Raises:
            OSError: If the client has left.
        """
        if self.takes_frames:
            for chunk in chunks(messages):
                await self._send({"type": FRAMES, "data": chunk})
        else:
            for message in messages:
                await self._send({"type": "websocket.send", "text": message.decode()})
