"""
What starting costs: milliseconds beyond Python's own start, for what a user types first.

Every line is a new interpreter, alternated with one that does nothing, so that
a busy machine slows both; the figure is the median of the differences.

    python benchmarks/import_time.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STATEMENTS = (
    "import runlog",
    "from runlog import get_run_logger",
    "from runlog import flow_run, task_run, get_run_logger",
    "from runlog import setup_logging; setup_logging()",
    "from runlog.cli import main; main(['--help'])",
)
"""What is measured, each in an interpreter of its own."""


def start_ms(statement: str, home: str) -> float:
    """Run *statement* in a new interpreter; return the wall time in milliseconds."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", statement],
        check=True,
        stdout=subprocess.DEVNULL,
        env={"RUNLOG_HOME": home, "PATH": "/usr/bin:/bin"},
        cwd=home,
    )
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--rounds", type=int, default=15, help="interpreters for each line (default 15)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        home = str(Path(directory))
        bare = [start_ms("pass", home) for _ in range(rounds)]
        print(f"{statistics.median(bare):7.1f} ms  python alone (median of {rounds})")
        for statement in STATEMENTS:
            start_ms(statement, home)  # compiles what is not compiled yet
            extra = [start_ms(statement, home) - start_ms("pass", home) for _ in range(rounds)]
            print(f"{statistics.median(extra):+7.1f} ms  {statement}")


if __name__ == "__main__":
    main()
