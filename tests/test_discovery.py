"""A running server is found by programs with the same home, and only while it lives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from runlog.discovery import LOCK_FILE, RUNTIME_FILE, find_local_server, publish_local_server

URL = "http://127.0.0.1:4210/api"


def test_found_while_it_runs(tmp_path):
    """The server is found inside the block and gone after it."""
    home = tmp_path / "home"
    assert find_local_server(home) is None
    with publish_local_server(home, URL) as published:
        assert published
        assert find_local_server(home) == (URL, os.getpid())
    assert find_local_server(home) is None


def test_files_are_private(tmp_path):
    """Nobody else may read, or redirect, where the logs go."""
    home = tmp_path / "home"
    with publish_local_server(home, URL):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / RUNTIME_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE((home / LOCK_FILE).stat().st_mode) == 0o600


def test_the_second_server_is_not_published(tmp_path):
    """The first server stays the one that is found."""
    with (
        publish_local_server(tmp_path, URL),
        publish_local_server(tmp_path, "http://127.0.0.1:1/api") as published,
    ):
        assert not published
        assert find_local_server(tmp_path).url == URL


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": "x", "pid": "?"}', '{"url": "x"}', "\x00"])
def test_a_damaged_file_is_no_server(tmp_path, content):
    """Whatever stands in the file, looking for a server raises nothing."""
    with publish_local_server(tmp_path, URL):
        (tmp_path / RUNTIME_FILE).write_text(content)
        assert find_local_server(tmp_path) is None


def test_what_a_killed_server_left_is_no_server(tmp_path):
    """A file without a process that holds the lock leads nobody to an address which somebody else may have."""
    code = (
        "import os, sys, pathlib\n"
        "from runlog.discovery import publish_local_server\n"
        "with publish_local_server(pathlib.Path(sys.argv[1]), 'http://127.0.0.1:4210/api'):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout.readline() == b"ready\n"
        assert find_local_server(tmp_path) == (URL, server.pid)
    finally:
        server.kill()
        server.communicate()
    assert json.loads((tmp_path / RUNTIME_FILE).read_text())["pid"] == server.pid
    assert find_local_server(tmp_path) is None
    with publish_local_server(tmp_path, URL) as published:
        assert published
