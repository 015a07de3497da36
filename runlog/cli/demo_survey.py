"""
The job that ``runlog demo`` runs: a survey of the Python standard library.

It reads every source file that the running interpreter brings, parses it, and
logs what is in it. Nothing is staged: the files are real, those that do not
parse really do not (CPython keeps some for its own tests), and how long it
takes is how long it takes. What it shows of runlog::

    flow run "stdlib-survey"
    ├─ task "survey <package>"          one a package, in a pool of threads
    │  └─ flow run "survey <package>"   for the package with the most sub-packages
    │     └─ task "survey <sub-package>"
    ├─ task "survey <package>"          the largest package, in a child process
    ├─ task "survey modules"            the modules that are one file
    └─ task "write report"              fails once, for want of a folder; what it prints is logged

This module uses runlog as any program does, by its public names. It knows
nothing of servers: where the lines go is a matter of settings.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import sys
import sysconfig
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runlog import carry, flow_run, flush, get_run_logger, task_run
from runlog.cli.demo_count import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FLOW_NAME = "stdlib-survey"
THREADS = 4
CHILD_FLUSH_TIMEOUT = 60.0
"""Seconds that the child process waits for its lines to be stored: far more than it takes."""

NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
"""Folders that stand among the packages of the standard library and are none."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in some source files."""

    files: int = 0
    unparsable: int = 0
    lines: int = 0
    bytes: int = 0
    classes: int = 0
    functions: int = 0

    def __add__(self, other: Findings) -> Findings:
        """Return both together."""
        return Findings(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Survey:
    """What a survey came to."""

    total: Findings
    packages: dict[str, Findings]
    sent_by_child: int
    """How many lines the child process logged, by its own count."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who surveys what."""

    root: Path
    """Folder of the standard library."""
    in_threads: list[Path]
    with_sub_flow: Path | None
    """The package with the most sub-packages, in a thread as well; `None` if no package has any."""
    in_child: Path | None
    """The largest package; `None` if there is none at all."""
    modules: list[Path]
    """Files that are a module each."""

    @property
    def tasks(self) -> int:
        """How many parts the survey has, besides the report."""
        return len(self.in_threads) + (self.with_sub_flow is not None) + (self.in_child is not None) + 1


def make_plan(root: Path | None = None) -> Plan:
    """
    Look at the standard library and decide who surveys what.

    Args:
        root: Its folder; by default that of the running interpreter.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    packages = _packages_in(root)
    sizes = {package: sum(file.stat().st_size for file in _sources(package)) for package in packages}
    in_child = max(packages, key=sizes.__getitem__, default=None)
    others = [package for package in packages if package != in_child]
    nested = max(others, key=lambda package: len(_packages_in(package)), default=None)
    if nested is not None and not _packages_in(nested):
        nested = None
    return Plan(
        root=root,
        in_threads=[package for package in others if package != nested],
        with_sub_flow=nested,
        in_child=in_child,
        modules=sorted(root.glob("*.py")),
    )


def survey(plan: Plan, report: Path, progress: Callable[[int], None] = lambda _: None) -> Survey:
    """
    Survey the standard library.

    Args:
        plan: Who surveys what.
        report: File to write what was found to, as JSON; its folder is made if it is missing.
        progress: Called in this thread with the number of parts that are done, each time one is.
    """
    with (
        # Parsing warns of what tomorrow's Python will refuse: news to the authors of those files only.
        warnings.catch_warnings(action="ignore"),
        flow_run(FLOW_NAME, python=sys.version.split()[0]),
        # A spawned child starts from nothing, on every system: what it knows of this run, carry told it.
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        get_run_logger().info(
            "surveying %s: %d packages, %d modules",
            plan.root,
            plan.tasks - 1,
            len(plan.modules),
            extra={"threads": THREADS},
        )
        parts: dict[Future[Any], str] = {}
        if plan.in_child is not None:
            future: Future[Any] = processes.submit(carry(survey_in_child), plan.in_child, plan.root)
            parts[future] = plan.in_child.name
        if plan.with_sub_flow is not None:
            future = threads.submit(carry(survey_with_sub_flow), plan.with_sub_flow, plan.root)
            parts[future] = plan.with_sub_flow.name
        for package in plan.in_threads:
            parts[threads.submit(carry(survey_package), package, plan.root)] = package.name
        packages = {"(modules)": survey_files("modules", plan.modules, plan.root)}
        progress(1)
        sent_by_child = 0
        try:
            for done, part in enumerate(as_completed(parts), start=2):
                result = part.result()
                if isinstance(result, tuple):
                    result, sent_by_child = result
                packages[parts[part]] = result
                progress(done)
        except BaseException:  # Ctrl-C: what has not begun is not begun
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        total = sum(packages.values(), Findings())
        found = Survey(total, dict(sorted(packages.items())), sent_by_child)
        write_report(found, report)
        get_run_logger().info("surveyed %d files", total.files, extra=asdict(total))
    return found


def survey_package(package: Path, root: Path) -> Findings:
    """Survey one package, as one task."""
    return survey_files(package.name, _sources(package), root)


def survey_files(name: str, files: Iterable[Path], root: Path) -> Findings:
    """Survey some files, as one task."""
    with task_run(f"survey {name}"):
        found = sum((survey_file(file, root) for file in files), Findings())
        get_run_logger().info(
            "%s: %d files, %d classes", name, found.files, found.classes, extra=asdict(found)
        )
    return found


def survey_with_sub_flow(package: Path, root: Path) -> Findings:
    """Survey one package as a task that opens a flow of its own, with a task for each sub-package."""
    children = _packages_in(package)
    with task_run(f"survey {package.name}"):
        found = sum(
            (survey_file(file, root) for file in _sources(package) if not _is_below(file, children)),
            Findings(),
        )
        with flow_run(f"survey {package.name}", packages=len(children)):
            for child in children:
                found += survey_files(f"{package.name}.{child.name}", _sources(child), root)
    return found


def survey_in_child(package: Path, root: Path) -> tuple[Findings, int]:
    """
    Survey one package in a child process, and wait until its lines are stored.

    Returns:
        What was found, and how many lines this process logged by its own count.
    """
    with warnings.catch_warnings(action="ignore"), counting() as lines:
        found = survey_package(package, root)
    flush(CHILD_FLUSH_TIMEOUT)
    return found, lines.count


def survey_file(file: Path, root: Path) -> Findings:
    """Read and parse one file, and log what is in it: a line for it and one for each of its classes."""
    logger = get_run_logger()
    name = file.relative_to(root).as_posix()
    size = lines = 0
    try:
        source = file.read_bytes()
        size, lines = len(source), source.count(b"\n")
        tree = ast.parse(source, filename=name)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        # An unreadable file is a finding, not the end of a survey.
        logger.warning("%s does not parse", name, exc_info=True, extra={"file": name, "bytes": size})
        return Findings(files=1, unparsable=1, lines=lines, bytes=size)
    classes, functions = _count_definitions(tree)
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in statement.body)
            logger.debug(
                "class %s",
                statement.name,
                extra={
                    "file": name,
                    "line": statement.lineno,
                    "methods": methods,
                    "bases": len(statement.bases),
                },
            )
    found = Findings(files=1, lines=lines, bytes=size, classes=classes, functions=functions)
    logger.info(
        "%s: %d classes, %d functions in %d lines",
        name,
        classes,
        functions,
        lines,
        extra={"file": name, "classes": classes, "functions": functions, "lines": lines, "bytes": size},
    )
    return found


def _count_definitions(tree: ast.Module) -> tuple[int, int]:
    """Count classes and functions at any depth: statements, so that no expression needs to be entered."""
    classes = functions = 0
    waiting: list[ast.AST] = [tree]
    for node in waiting:  # which grows meanwhile
        if isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
        waiting += [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        ]
    return classes, functions


@task_run("write report", retries=1, log_prints=True)
def write_report(found: Survey, report: Path) -> None:
    """Write what was found to a file; the first try fails if its folder is missing, and makes it."""
    try:
        report.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    except FileNotFoundError:
        report.parent.mkdir(parents=True)
        raise
    largest = max(found.packages, key=lambda name: found.packages[name].lines)
    print(f"The largest package is {largest}: {found.packages[largest].lines:,} lines.")  # noqa: T201 - to be captured


def _packages_in(folder: Path) -> list[Path]:
    return sorted(
        child
        for child in folder.iterdir()
        if child.name not in NOT_LIBRARY and (child / "__init__.py").is_file()
    )


def _sources(package: Path) -> Iterator[Path]:
    """Yield the source files of a package, also those in folders that are no packages."""
    return iter(
        sorted(
            file
            for file in package.rglob("*.py")
            if not NOT_LIBRARY.intersection(file.relative_to(package).parts)
        )
    )


def _is_below(file: Path, folders: Iterable[Path]) -> bool:
    return any(folder in file.parents for folder in folders)
