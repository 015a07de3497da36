"""
``runlog server start --reload``: a server that starts anew when its code changes.

The socket is opened once, by the process that watches; the one that serves
inherits it, so that the address stays and no request is refused in between.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import ChangeReload

import runlog
from runlog.server.app import ServeOptions, serve

if TYPE_CHECKING:
    import socket


def watch(options: ServeOptions, listener: socket.socket) -> None:
    """
    Serve in a process of its own, in a new one after each change to the package, until a signal.

    Args:
        options: What to serve.
        listener: Bound; each process inherits it.
    """
    config = uvicorn.Config(
        "runlog.server.app:create_app",  # uvicorn reloads only what it has a name for
        log_config=None,
        reload=True,
        reload_dirs=[str(Path(runlog.__file__).parent)],
    )
    ChangeReload(config, target=functools.partial(_serve, options), sockets=[listener]).run()


def _serve(options: ServeOptions, sockets: list[socket.socket] | None) -> None:
    """Serve on the inherited socket; called by its name in the new process."""
    assert sockets, "uvicorn hands on what watch() gave it"
    serve(options, sockets[0])
