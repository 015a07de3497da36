"""Tests of ``runlog demo``: the job, the count, and the two together against a real server."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys

import pytest

from runlog.cli import demo as demo_module
from runlog.cli.demo import program_name
from runlog.cli.demo_count import CountingHandler, Tally, counting, tally
from runlog.cli.demo_survey import Findings, make_plan, survey, survey_in_child
from runlog.runs import flow_run

MODULE = "class A:\n    def f(self): pass\n    async def g(self): pass\n\ndef h(): pass\n"


@pytest.fixture
def library(tmp_path):
    """A small standard library, with what a real one has: packages, modules, files that do not parse."""
    root = tmp_path / "library"
    files = {
        "module.py": MODULE,
        "other.py": "x = 1\n",
        "alpha/__init__.py": "",
        "alpha/core.py": MODULE,
        "alpha/one/__init__.py": MODULE,
        "alpha/two/__init__.py": "",
        "alpha/two/deep.py": MODULE,
        "beta/__init__.py": MODULE * 50,
        "beta/data/bad.py": "def broken(:\n",
        "beta/data/null.py": "x = 1\0\n",
        "gamma/__init__.py": MODULE,
        "folder/no_package.py": MODULE,
        "site-packages/__init__.py": "",
        "site-packages/foreign.py": MODULE,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_plan_gives_everyone_a_part(library):
    """The largest package goes to the child, the one with most sub-packages a sub-flow, others a thread."""
    plan = make_plan(library)
    assert plan.in_child == library / "beta"
    assert plan.with_sub_flow == library / "alpha"
    assert plan.in_threads == [library / "gamma"]
    assert [module.name for module in plan.modules] == ["module.py", "other.py"]
    assert plan.tasks == 4


def test_a_poor_library_makes_a_poor_plan(tmp_path):
    """Nothing is made up where there is nothing."""
    (tmp_path / "module.py").write_text(MODULE)
    plan = make_plan(tmp_path)
    assert (plan.in_child, plan.with_sub_flow, plan.in_threads, plan.tasks) == (None, None, [], 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(MODULE)
    plan = make_plan(tmp_path)
    assert (plan.in_child, plan.with_sub_flow, plan.tasks) == (tmp_path / "one", None, 3)


def test_the_real_library_has_a_part_for_everyone():
    """The interpreter that runs the tests has packages for threads, sub-flow and child process."""
    plan = make_plan()
    assert plan.in_child is not None
    assert plan.with_sub_flow is not None
    assert len(plan.in_threads) > 10
    assert len(plan.modules) > 50


def test_findings_add_up():
    """Field by field."""
    assert Findings(1, 2, 3, 4, 5, 6) + Findings(1, 1, 1, 1, 1, 1) == Findings(2, 3, 4, 5, 6, 7)


def test_the_counter_counts_run_lines_only_while_it_runs():
    """Both run loggers count, others do not, and nothing is left attached."""
    logger = logging.getLogger("runlog.task_runs")
    with counting() as lines:
        logger.error("one")
        logging.getLogger("runlog.flow_runs.child").error("two")
        logging.getLogger("runlog.other").error("not counted")
    logger.error("not counted")
    assert lines.count == 2
    assert not any(isinstance(handler, CountingHandler) for handler in logger.handlers)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([("p", 0), ("p", 1), ("q", 0)], (0, 0, True)),
        ([("p", 0), ("q", 0)], (1, 0, False)),
        ([("p", 0), ("p", 1), ("p", 1), ("q", 0)], (0, 1, False)),
        ([("p", 0), ("p", 0), ("p", 0)], (2, 2, False)),
        ([("p", 0), ("p", 1), ("q", 0), ("q", 1)], (-1, 0, False)),
    ],
)
def test_the_tally_tells_lost_from_doubled(stored, expected):
    """Three lines were sent; a doubled line does not make up for a lost one."""
    counts = tally(3, ({"producer": producer, "seq": seq} for producer, seq in stored))
    assert (counts.lost, counts.doubled, counts.is_exact) == expected


def test_a_child_counts_its_own_lines(library, monkeypatch):
    """What the child process returns, here without a process: findings, and lines that were logged."""
    monkeypatch.setattr("runlog.cli.demo_survey.flush", lambda timeout: True)
    logging.getLogger("runlog").setLevel(logging.DEBUG)
    with flow_run("parent"):
        found, count = survey_in_child(library / "beta", library)
    assert (found.files, found.unparsable, found.classes, found.functions) == (3, 2, 50, 150)
    assert count == 1 + 50 + 1 + 2 + 1 + 1, "start, classes, file, two that do not parse, sum, end"


def test_a_poor_library_is_surveyed_all_the_same(tmp_path):
    """Without packages there is neither child process nor sub-flow."""
    (tmp_path / "module.py").write_text(MODULE)
    progress = []
    found = survey(make_plan(tmp_path), tmp_path / "report" / "survey.json", progress.append)
    assert (found.total.files, found.sent_by_child, progress) == (1, 0, [1])
    assert survey(make_plan(tmp_path), tmp_path / "report" / "survey.json").total.files == 1


def test_an_interrupted_survey_ends(library, tmp_path):
    """Ctrl-C leaves the survey at once; no report is written."""

    def interrupt(done):
        if done > 1:
            raise KeyboardInterrupt

    plan = dataclasses.replace(make_plan(library), in_child=None)
    with pytest.raises(KeyboardInterrupt):
        survey(plan, tmp_path / "survey.json", interrupt)
    assert not (tmp_path / "survey.json").exists()


def test_progress_is_shown_on_a_terminal(monkeypatch):
    """A bar that fills on stderr; elsewhere nothing is written."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with demo_module._progress(4) as progress:
        for done in range(1, 5):
            progress(done)
    assert "surveying" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with demo_module._progress(4) as progress:
        progress(4)
    assert pipe.getvalue() == ""


@pytest.fixture
def small_demo(library, monkeypatch):
    pytest.importorskip("runlog.server.app")
    monkeypatch.setattr("runlog.cli.demo_survey.make_plan", lambda: make_plan(library))


def test_the_demo_shows_that_every_line_arrived(run_cli, small_demo, tmp_path):
    """Tree, sample lines, counts and next commands; exit code 0; data where it says."""
    result = run_cli("demo", "--directory", str(tmp_path / "demo"))
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "stored, 0 lost, 0 doubled." in text
    tree = [" ".join(line.split()) for line in text.partition("sub-flows\n")[2].splitlines() if line]
    assert tree[1].startswith("flow stdlib-survey (")
    rows = {line.partition(" COMPLETED")[0] for line in tree if " COMPLETED" in line}
    assert {"survey modules", "survey gamma", "survey beta", "survey alpha", "survey alpha.one"} <= rows
    assert {"survey alpha.two", "write report"} <= rows
    assert any(row.startswith("flow survey alpha (") for row in rows)
    assert "2 files do not parse" in text
    assert "The largest package is beta: " in text, "the print is a line of the run"
    assert "SyntaxError" in text, "a traceback is shown"
    report = json.loads((tmp_path / "demo" / "report" / "survey.json").read_text())
    assert report["total"]["files"] == 11
    assert report["sent_by_child"] > 50
    assert (tmp_path / "demo" / "runlog.db").exists()
    assert f"server start --database {tmp_path / 'demo' / 'runlog.db'}" in text


def test_the_demo_fails_if_a_line_is_missing(run_cli, small_demo, tmp_path, monkeypatch):
    """What is not read back is counted as lost, and the exit code tells."""
    monkeypatch.setattr("runlog.cli.demo_count.tally", lambda sent, logs: Tally(sent, sent - 1, sent - 1))
    result = run_cli("demo", "--directory", str(tmp_path / "demo"), "--color", "always", color=True)
    assert result.exit_code == 1
    assert "1 lost" in result.stdout


def test_the_demo_needs_the_server(run_cli, monkeypatch, tmp_path):
    """Without the extra, one line says how to install it."""
    monkeypatch.setitem(sys.modules, "starlette", None)
    result = run_cli("demo", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert (
        result.stderr
        == "runlog: runlog demo needs starlette; install it with: pip install 'runlog[server]'\n"
    )


def test_the_demo_keeps_its_data_in_the_home(run_cli, small_demo, tmp_path):
    """By default each demo has a directory of its own below RUNLOG_HOME."""
    result = run_cli("demo")
    assert result.exit_code == 0, result.output
    (database,) = (tmp_path / "runlog-home" / "demo").glob("*/runlog.db")
    assert str(database) in result.stdout


@pytest.mark.parametrize(
    ("called", "on_path", "expected"),
    [
        ("/x/runlog/__main__.py", None, f"{sys.executable} -m runlog"),
        (".venv/bin/runlog", None, ".venv/bin/runlog"),
        ("/opt/my tools/runlog", "/usr/bin/runlog", "'/opt/my tools/runlog'"),
        ("/usr/bin/runlog", "/usr/bin/runlog", "runlog"),
    ],
)
def test_the_next_commands_can_be_pasted(called, on_path, expected, monkeypatch):
    """The program is called as it was called now, which need not be on the PATH."""
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(demo_module.shutil, "which", lambda name: on_path)
    assert program_name() == expected


@pytest.mark.soak
def test_the_whole_demo(tmp_path):
    """On the real library, as a newcomer runs it: exit code 0, nothing lost, thousands of lines."""
    pytest.importorskip("runlog.server.app")
    result = subprocess.run(
        [sys.executable, "-m", "runlog", "demo"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert result.returncode == 0, result.stderr
    assert "0 lost, 0 doubled" in result.stdout
    assert len(result.stdout.splitlines()) < 150
