"""What ``import runlog`` exposes, and what it does not do."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

import runlog


def run(program, **environment):
    """Run a program in a new interpreter; return what it printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return json.loads(done.stdout)


def test_all_is_what_is_exposed():
    """``__all__`` names what can be had, what `dir` lists and what is declared for type checkers, in order."""
    assert list(runlog.__all__) == sorted(runlog.__all__)
    assert dir(runlog) == sorted(runlog.__all__)
    assert set(runlog._HOME_OF) | {"__version__", "context"} == set(runlog.__all__)
    for name in runlog.__all__:
        assert getattr(runlog, name) is not None
    with open(runlog.__file__, encoding="utf-8") as file:
        declared = re.search(r"if TYPE_CHECKING:\n(.*?)\n\n", file.read(), re.DOTALL)[1]
    for name in runlog._HOME_OF:
        assert re.search(rf"\b{name}\b", declared), f"{name} is not declared for type checkers"


@pytest.mark.parametrize("name", sorted(runlog._HOME_OF))
def test_every_name_comes_from_its_module(name):
    """A name is the very object of its home, documented, and no module is missing."""
    home = importlib.import_module(runlog._HOME_OF[name])
    assert getattr(runlog, name) is getattr(home, name)
    assert getattr(home, name).__doc__


def test_a_star_import_gives_all():
    """``from runlog import *`` gives every public name."""
    names = run(
        "from runlog import *; import json, runlog; print(json.dumps([n for n in runlog.__all__ if n not in globals()]))"
    )
    assert names == []


def test_a_name_that_does_not_exist():
    """A wrong name is an AttributeError that says which."""
    with pytest.raises(AttributeError, match="module 'runlog' has no attribute 'get_loger'"):
        _ = runlog.get_loger


def test_the_import_starts_and_reads_nothing():
    """``import runlog`` opens no file but Python's, reads no environment, starts no thread, loads no dependency."""
    program = """
import __future__, importlib, json, os, sys, threading, typing
modules, opened, asked = set(sys.modules), [], []

class Environment(type(os.environ)):
    def __getitem__(self, key):
        asked.append(key)
        return super().__getitem__(key)

def audit(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))

sys.addaudithook(audit)
os.environ.__class__ = Environment
import runlog
found = sorted(set(sys.modules) - modules)
print(json.dumps({"modules": found, "opened": opened, "asked": asked, "threads": threading.active_count()}))
"""
    seen = run(program)
    assert seen["threads"] == 1
    assert seen["asked"] == []
    assert {module.partition(".")[0] for module in seen["modules"]} == {"runlog"}
    assert [
        name for name in seen["opened"] if not name.endswith((".py", ".pyc")) and ".pyc." not in name
    ] == []


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "from runlog import get_run_logger, flow_run, carry",
            ["pydantic", "httpx", "rich", "pendulum", "yaml", "msgspec"],
        ),
        ("import runlog.cli", ["pydantic", "httpx", "rich", "pendulum", "starlette", "uvicorn"]),
    ],
)
def test_what_stays_unloaded(statement, heavy):
    """Naming what a program uses first loads none of the slow packages."""
    program = f"import json, sys; {statement}; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    assert run(program) == []


def test_the_import_works_with_warnings_as_errors():
    """No module that the public names need warns when it is imported, contextvars-extras included."""
    program = "import runlog, json; [getattr(runlog, n) for n in runlog.__all__]; print(json.dumps(1))"
    assert run(program, PYTHONWARNINGS="error", PYTHONDEVMODE="1") == 1
