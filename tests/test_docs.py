"""
The README and the documentation say what is true.

A page is run from top to bottom, as a reader would do it, in a home directory of
its own, with a log server where it needs one. Comments above
a code block, which no reader sees, say what it is:

- nothing above a ``python`` block: a part of the page's program;
- ``<!-- new program -->``: the next program starts here;
- ``<!-- file: NAME -->``: a whole program (or another file) that the reader saves under this name;
- ``<!-- prints -->`` above a ``text`` block: what the program printed, but for times, durations, ids;
- ``<!-- run -->`` above a ``console`` block: commands after ``$``, each followed by what it prints;
- ``<!-- start: runlog server -->``, on its own: from here on a log server is running;
- ``<!-- not run: REASON -->``: shown, not run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import runlog
from runlog._run_names import ADJECTIVES, ANIMALS
from runlog.discovery import find_local_server
from runlog.records import LogEvent, decode_batch
from runlog.server.answers import LogAnswer, RunAnswer
from runlog.server.routes import (
    admin,
    batches,
    counting,
    keys,
    logs,
    maintenance,
    metrics,
    prefect_reading,
    prefect_runs,
    reading,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

START_SERVER = "<!-- start: runlog server -->"
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "


@dataclass(frozen=True)
class Block:
    """A fenced code block, with the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    found, comment, fence = [], "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        stripped = line.strip()
        if fence is None and stripped.startswith("```"):
            fence = (number, stripped[3:].split(" ")[0], [], len(line) - len(line.lstrip()))
        elif fence is not None and stripped == "```":
            start, language, lines, _ = fence
            found.append(Block(page, start, language, "\n".join(lines) + "\n", comment))
            comment, fence = "", None
        elif fence is not None:
            fence[2].append(line[fence[3] :])
        elif stripped == START_SERVER:
            found.append(Block(page, number, "", "", "start: runlog server"))
        elif match := re.fullmatch(r"<!-- (.*) -->", stripped):
            comment = match[1]
        elif stripped:
            comment = ""
    assert fence is None, f"{page}: a code block is not closed"
    return found


def all_blocks(*languages):
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- examples ------------------------------------------------------------------------------------


class Reader:
    """Follows one page: saves files, runs programs and commands, compares what they print."""

    def __init__(self, directory, start_server):
        self._start_server = start_server
        self._directory = directory
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(directory),
            "PYTHONUNBUFFERED": "1",
            "TZ": "UTC",
            "COLUMNS": "200",
        }
        self._program = []
        self._printed = ""

    def follow(self, page):
        for block in blocks(page):
            self._step(block)
        self._finish()

    def _step(self, block):
        kind, _, rest = block.comment.partition(": ")
        if kind == "start":
            self._finish()
            self._start_server()
        elif kind == "not run":
            assert rest, f"{block} must say why it is not run"
        elif kind == "file":
            self._finish()
            (self._directory / rest).write_text(block.text, encoding="utf-8")
        elif kind == "prints":
            self._finish()
            check(block, block.text, self._printed)
        elif kind == "run":
            self._finish()
            said = "".join(
                f"$ {command}\n{self._run(command, shell=True)}" for command in commands(block.text)
            )
            check(block, block.text, said)
        elif block.language == "python":
            if kind == "new program":
                self._finish()
            # Blank lines in front, so that tracebacks show the line of the page.
            program = "".join(self._program)
            self._program.append("\n" * (block.line - program.count("\n")) + block.text)

    def _finish(self):
        if self._program:
            file = self._directory / "page.py"
            file.write_text("".join(self._program), encoding="utf-8")
            self._program = []
            self._printed = self._run([sys.executable, "page.py"])

    def _run(self, command, **options):
        done = subprocess.run(
            command,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
            **options,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout


def commands(text):
    """Return the commands after ``$``."""
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)


def check(block, shown, printed):
    """Compare what a page shows with what is printed; with ``UPDATE_DOCS=1``, write the latter into the page."""
    if masked(shown) == masked(printed):
        return
    if os.environ.get("UPDATE_DOCS"):
        text = block.page.read_text(encoding="utf-8")
        assert text.count(shown) == 1, f"{block} must be changed by hand: its text is there twice"
        block.page.write_text(text.replace(shown, printed), encoding="utf-8")
    else:
        pytest.fail(
            f"{block} is not what is printed; renew it with UPDATE_DOCS=1 if this is right:\n{printed}"
        )


def masked(text):
    """Leave out what differs from one run to the next, and blank space at line ends."""
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "<time>", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d(\.\d+)?\b", "<time>", text)
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "<id>", text)
    text = re.sub(r"(?<![\w.])\d+(\.\d+)? ?(ms|s|seconds)\b", "<duration>", text)
    text = re.sub(rf"\b({'|'.join(ADJECTIVES)})-({'|'.join(ANIMALS)})\b", "<name>", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@contextlib.contextmanager
def running_server(home):
    """Run a log server on a free port, where programs with this home find it."""
    server = subprocess.Popen(
        [Path(sys.executable).parent / "runlog", "server", "start", "--port", "0"],
        env=os.environ | {"RUNLOG_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if find_local_server(home):
                break
        assert find_local_server(home), "".join(said)
        yield
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.fixture
def reader(tmp_path):
    """A reader who starts without a server and may start one."""
    with contextlib.ExitStack() as stack:
        yield Reader(tmp_path, lambda: stack.enter_context(running_server(tmp_path / ".runlog")))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_examples_run(page, reader):
    """The examples of a page run in order, and print what the page says."""
    reader.follow(page)


def test_each_language_is_known():
    """No code block escapes its check by a misspelt language or comment."""
    kinds = {"", "new program", "file", "prints", "run", "not run", "start"}
    languages = {"", "python", "yaml", "toml", "console", "bash", "text", "json", "sql"}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in languages, f"{block}: {block.language!r}"
            assert block.comment.partition(": ")[0] in kinds, f"{block}: {block.comment!r}"


def test_commands_exist():
    """Each ``runlog`` command that is shown exists and takes the options shown."""
    from runlog.cli.app import cli

    shown = [
        (str(block), command)
        for block in all_blocks("console", "bash")
        for line in block.text.splitlines()
        for command in re.findall(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(runlog .*?)(?: [|>#&].*)?$", line)
    ]
    assert shown
    for where, line in shown:
        command, name, words = cli, "runlog", shlex.split(line)[1:]
        try:
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                name = words.pop(0)
                command = command.get_command(click.Context(command), name)
                assert command, f"{where}: {line}: there is no command {name}"
            command.make_context(name, words)
        except click.exceptions.Exit:
            pass  # --help, --version
        except click.ClickException as error:
            pytest.fail(f"{where}: {line}: {error.format_message()}")


def test_configurations_are_read(tmp_path, monkeypatch):
    """Each YAML block is YAML, and each whole logging configuration in one is taken by `setup_logging`."""
    whole = 0
    for number, block in enumerate(all_blocks("yaml")):
        if yaml.safe_load(block.text).get("version") and not block.comment.startswith("not run"):
            whole += 1
            file = tmp_path / f"{number}.yml"
            file.write_text(block.text, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-c", "import runlog; runlog.setup_logging()"],
                env=os.environ | {"PREFECT_LOGGING_CONFIG_PATH": str(file)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"
            assert not done.stderr, f"{block}: {done.stderr}"
    assert whole


def test_batches_are_batches():
    """Each batch that is shown is one that the server takes."""
    batches = [block for block in all_blocks("json") if '"first_seq"' in block.text]
    assert batches
    for block in batches:
        assert decode_batch(block.text.encode()).events, str(block)


def test_toml_is_read():
    """Each TOML block is TOML."""
    for block in all_blocks("toml"):
        tomllib.loads(block.text)


# --- completeness --------------------------------------------------------------------------------


def test_every_setting_is_documented(hooks):
    """The settings page has each setting with its default, its path and the old names it is read from."""
    from runlog.settings import iter_settings

    page = hooks.on_page_markdown((ROOT / "docs/reference/settings.md").read_text(encoding="utf-8"))
    infos = list(iter_settings())
    assert len(infos) > 20
    for info in infos:
        assert f"### `{info.name}`" in page
        assert f"settings.{'.'.join(info.path)}" in page
        assert info.description
        for alias in info.aliases:
            assert f"`{alias}`" in page


def test_every_command_is_documented(hooks):
    """The command page has each command with its options."""
    page = hooks.on_page_markdown((ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8"))
    names = []
    for name, command in hooks.iter_commands():
        names.append(name)
        assert f"## `{name}`" in page
        assert command.help, f"{name} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"
                assert parameter.opts[-1] in page
    assert {"runlog demo", "runlog logs", "runlog server start"} <= set(names)


def test_every_public_name_is_documented():
    """The API page has each public name of the package."""
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for name in set(runlog.__all__) - {"__version__", "context"}:
        assert re.search(rf"^::: runlog\.(\w+\.)*{name}$", page, re.MULTILINE), name


def test_every_route_is_documented():
    """The HTTP page has each route of the server with its method, and each field of its answers."""
    routes = [
        (min(route.methods - {"HEAD"}), route.path)
        for module in (
            *(admin, batches, counting, keys, logs, maintenance, metrics),
            *(prefect_reading, prefect_runs, reading),
        )
        for route in module.ROUTES
    ]
    page = (ROOT / "docs/reference/http-api.md").read_text(encoding="utf-8")
    for method, path in routes:
        assert f"`{method} {path}`" in page, f"{method} {path}"
    event = (ROOT / "docs/reference/log-event.md").read_text(encoding="utf-8")
    for field in (*RunAnswer.__struct_fields__, *LogAnswer.__struct_fields__):
        assert f"`{field}`" in page + event, field


def test_every_field_of_an_event_is_documented():
    """The page on the log event has each of its fields."""
    page = (ROOT / "docs/reference/log-event.md").read_text(encoding="utf-8")
    for field in LogEvent.__struct_fields__:
        assert f"| `{field}`" in page or f", `{field}`" in page, field


@pytest.mark.parametrize("name", NAMES)
def test_named_settings_exist(name):
    """A page names no setting that does not exist."""
    from runlog.settings import iter_settings

    known = {"PREFECT_LOGGING_TO_API", "RUNLOG_CONTEXT", "RUNLOG_TEST_PREFECT_PYTHON"}
    for info in iter_settings():
        known |= {info.name, *info.aliases}
    # What overrides the logging configuration is named after keys of that file.
    override = re.compile(r"PREFECT_LOGGING_(LOGGERS|HANDLERS|FORMATTERS|FILTERS|ROOT)_\w+")
    for found in re.findall(r"(?:PREFECT|RUNLOG)_[A-Z_]+[A-Z]", (ROOT / name).read_text(encoding="utf-8")):
        assert found in known or override.fullmatch(found) or any(k.startswith(found + "_") for k in known), (
            found
        )


def test_markers_are_known(hooks):
    """What a page has generated can be generated, and each generator is used once."""
    used = [
        what
        for page in PAGES
        for what in re.findall(r"<!-- generated: (.*?) -->", page.read_text(encoding="utf-8"))
    ]
    assert sorted(used) == sorted(hooks.GENERATORS)
    for what in used:
        assert hooks.on_page_markdown(f"<!-- generated: {what} -->").strip()


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    """A link to a file of the project names one that exists."""
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# --- packaging -----------------------------------------------------------------------------------


def test_readme_begins_with_the_two_commands():
    """The first screen of the README has the command that shows the library and the one that tests it."""
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    assert f"{INSTALL}'.[server]' && .venv/bin/runlog demo" in first_screen
    assert f"{INSTALL}'.[dev]' && .venv/bin/pytest" in first_screen


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in requirements)
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in requirements}


def test_constraints_fit_the_requirements():
    """The pinned versions are within what pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins()
    for text in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != "runlog":
            assert requirement.specifier.contains(pinned[name]), text


def test_constraints_cover_every_dependency():
    """What an installation with the dev extra draws in, directly or not, is pinned."""
    pinned, seen, waiting = pins(), set(), [("runlog", frozenset({"dev", "server", "docs"}))]
    while waiting:
        name, extras = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            marker = requirement.marker
            wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})
            key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if wanted and key not in seen:
                seen.add(key)
                waiting.append(key)
    missing = {name for name, _ in seen} - set(pinned) - {"runlog"}
    assert not missing
    assert len(seen) > 40


def test_no_path_or_host_of_a_machine():
    """What is published names no machine: no home directory, no package mirror."""
    for path in [
        *PAGES,
        ROOT / "constraints.txt",
        ROOT / "pyproject.toml",
        ROOT / "mkdocs.yml",
        ROOT / ".ci" / "run",
    ]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/root/|/work/|/home/\w+/|index-url|find-links", text), path
