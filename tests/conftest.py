"""Fixtures that keep each test to itself: environment, home directory, root logging and contexts."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys

import hypothesis
import pytest

from runlog import redaction

# The same examples in every run, and no time limit for one: the machine may be busy.
hypothesis.settings.register_profile("runlog", deadline=None, derandomize=True)
hypothesis.settings.load_profile("runlog")

LEVELS = frozenset({0, 10, 20, 30, 40, 50})


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch, tmp_path):
    """No setting of the machine reaches a test, and ``RUNLOG_HOME`` is the test's own."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "RUNLOG_", "OTEL_")) or name in {"NO_COLOR", "FORCE_COLOR"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNLOG_HOME", str(tmp_path / "runlog-home"))
    _forget_settings()
    yield
    _forget_settings()


def _forget_settings():
    """Settings are loaded once a process; each test has an environment of its own."""
    settings = sys.modules.get("runlog.settings")
    if settings is not None:
        settings.reset_settings_cache()


@pytest.fixture(autouse=True)
def restored_registries(monkeypatch):
    """Secrets and level names that a test registers are forgotten with it."""
    monkeypatch.setattr(redaction, "_values", redaction._values)
    monkeypatch.setattr(redaction, "_names", redaction._names)
    # Without those of other libraries, which add theirs when they are imported.
    own = {number: name for number, name in logging._levelToName.items() if number in LEVELS}
    monkeypatch.setattr(logging, "_levelToName", own)
    known = {name: number for name, number in logging._nameToLevel.items() if number in LEVELS}
    monkeypatch.setattr(logging, "_nameToLevel", known)


@pytest.fixture(autouse=True)
def restored_logging():
    """Loggers, their handlers and levels are as before once the test is over."""
    root = logging.getLogger()
    root_before = (root.level, root.handlers[:], root.filters[:])
    before = {
        name: (logger.level, logger.handlers[:], logger.filters[:], logger.propagate, logger.disabled)
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    disabled_below = root.manager.disable
    yield
    root.manager.disable = disabled_below
    for handler in {id(h): h for logger in [root, *_loggers()] for h in logger.handlers}.values():
        if handler not in root_before[1] and not any(handler in state[1] for state in before.values()):
            handler.close()
    root.setLevel(root_before[0])
    root.handlers[:], root.filters[:] = root_before[1], root_before[2]
    for logger in _loggers():
        level, handlers, filters, propagate, disabled = before.get(
            logger.name, (logging.NOTSET, [], [], True, False)
        )
        logger.setLevel(level)
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.propagate, logger.disabled = propagate, disabled


def _loggers():
    return [
        item for item in logging.getLogger().manager.loggerDict.values() if isinstance(item, logging.Logger)
    ]


@pytest.fixture
def mount_disk(tmp_path):
    """Mounts one file system of a size such as ``4m``, and returns its directory, where the machine lets us."""
    mounted = []

    def mount(size):
        if sys.platform != "linux" or os.getuid() != 0 or shutil.which("mount") is None:
            pytest.skip("needs root on Linux, to mount a small file system")
        directory = tmp_path / "disk"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)
