"""
Ask a runlog server for what it stores.

`LogReader` lives in `runlog.client.reader` and is loaded when it is first named
here, because it brings the HTTP client with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runlog.client.reader import LogReader, ServerHealth

__all__ = ["LogReader", "ServerHealth"]


def __getattr__(name: str) -> Any:
    """Load the reader on first use (:pep:`562`)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runlog.client import reader  # noqa: PLC0415 - loads the HTTP client, 100 ms

    return getattr(reader, name)
