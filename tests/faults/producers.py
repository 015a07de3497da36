"""
Programs that log to a server, started and told what to do by a test.

Each `Producer` is a process of its own that runs ``producer_program.py``. A
command is posted and its answer is fetched in two steps, so that several
programs work at the same time; nothing waits by sleeping.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from counting import count, total

if TYPE_CHECKING:
    from collections.abc import Iterable

    from counting import Count, Stored

PROGRAM = Path(__file__).with_name("producer_program.py")

DEADLINE = 60.0
"""Seconds after which a program prints where each of its threads is, and ends: it hangs."""


class Producer:
    """
    A program that logs, with its own process, handler and producer id.

    A context manager: leaving it ends the program, if `end` has not.

    Args:
        name: Name of its logger and its service, and the first word of its lines.
        api_url: Where it sends its lines.
        batch_bytes: Most bytes of one request; a line has some 300.
        batch_interval: Longest time a line waits, in seconds.
        send_timeout: Seconds for one request, in place of the library's 10.
        most_pause: Longest pause between two tries, in seconds, in place of 30.
        deadline: Seconds after which it is taken to hang.
        stderr: A descriptor for what it writes there, in place of a file that is read at its end.
        environment: More settings.
    """

    def __init__(
        self,
        name: str,
        api_url: str,
        *,
        batch_bytes: int = 8192,
        batch_interval: float = 0.02,
        send_timeout: float = 5.0,
        most_pause: float = 0.2,
        deadline: float = DEADLINE,
        stderr: int | None = None,
        **environment: str,
    ) -> None:
        self.name = name
        self._deadline = deadline
        self.report: dict[str, Any] = {}
        """What the program said of itself at its `end`."""
        self.errors = ""
        """What it wrote to stderr, once it has ended."""
        # A file, because a pipe that nobody reads fills up, and stops even the deadline's traceback.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        options = {
            "name": name,
            "send_timeout": send_timeout,
            "most_pause": most_pause,
            "deadline": deadline,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(PROGRAM), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr if stderr is None else stderr,
            text=True,
            env={
                **os.environ,
                "PREFECT_API_URL": api_url,
                "PREFECT_LOGGING_TO_API_BATCH_SIZE": str(batch_bytes),
                "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE": str(min(batch_bytes, 1_000_000)),
                "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": str(batch_interval),
                **environment,
            },
        )

    def __repr__(self) -> str:
        return f"<Producer {self.name}, pid {self._process.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stderr, contextlib.suppress(BrokenPipeError), self._process:
            self._process.kill()

    def post(self, command: str, **arguments: Any) -> None:
        """Give a command to the program, and do not wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer will tell
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Any:
        """
        Wait for the answer to the oldest command that has none yet.

        Raises:
            AssertionError: If the program ended instead, with what it wrote to stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(self._deadline)
            raise AssertionError(f"{self.name} ended with {self._process.returncode}: {self._read_errors()}")
        return json.loads(line)

    def end(self) -> None:
        """Let the program end by itself; its exit delivers what is left, within the shutdown timeout."""
        self.begin_end()
        self._process.wait(self._deadline)
        self.errors = self._read_errors()
        assert self._process.returncode == 0, self.errors
        strange = [line for line in self.errors.splitlines() if not line.startswith("runlog: ")]
        assert not strange, f"{self.name} wrote to stderr: {self.errors}"

    def begin_end(self) -> None:
        """Tell the program to end, and do not wait for it; `end` does. A second call does nothing."""
        assert self._process.stdin is not None
        if not self.report:
            self.post("report")
            self.report = self.answer()
            self._process.stdin.close()

    def _read_errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    @property
    def id(self) -> str:
        """Its producer id, once it has ended."""
        return str(self.report["statistics"]["producer"])

    @property
    def sent(self) -> list[str]:
        """The texts of its lines, once it has ended."""
        return [f"{self.name} line {number}" for number in range(self.report["logged"])]

    @property
    def dropped(self) -> int:
        """How many lines it says it has dropped, once it has ended."""
        return sum(self.report["statistics"]["dropped"].values())


class Group:
    """
    Several producers that are told the same at the same time.

    Args:
        producers: Started; the group ends them.
    """

    def __init__(self, producers: Iterable[Producer]) -> None:
        self.producers = list(producers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for producer in self.producers:
            producer.__exit__(*error)

    def post(self, command: str, **arguments: Any) -> None:
        """Give a command to all."""
        for producer in self.producers:
            producer.post(command, **arguments)

    def answers(self) -> list[Any]:
        """Return the answers of all."""
        return [producer.answer() for producer in self.producers]

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        """Give a command to all and return their answers."""
        self.post(command, **arguments)
        return self.answers()

    def flush(self, timeout: float) -> None:
        """Have all deliver what they hold; fails if one cannot within *timeout* seconds."""
        assert all(self.ask("flush", timeout=timeout)), "not all lines were acknowledged in time"

    def end(self) -> None:
        """Let all end by themselves, at the same time."""
        for producer in self.producers:
            producer.begin_end()
        for producer in self.producers:
            producer.end()

    def count(self, stored: Stored) -> Count:
        """Return what became of their lines, together. All have ended."""
        return total(count({producer.id: producer.sent for producer in self.producers}, stored).values())

    @property
    def dropped(self) -> int:
        """How many lines they say they have dropped. All have ended."""
        return sum(producer.dropped for producer in self.producers)

    @property
    def timing(self) -> str:
        """What their log calls took, for people. All have ended."""
        worst = max(producer.report["worst_call_s"] for producer in self.producers)
        slow = max(producer.report["p99_call_s"] for producer in self.producers)
        return f"a call took {slow * 1e6:.0f} us (99 %), {worst * 1e3:.1f} ms at worst"
