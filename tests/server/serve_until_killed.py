"""Serve a database on a free port; print the API address; run as a program, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from runlog.server.app import run_server

if __name__ == "__main__":
    run_server("127.0.0.1", 0, sys.argv[1], Path(sys.argv[2]), on_ready=lambda url: print(url, flush=True))
