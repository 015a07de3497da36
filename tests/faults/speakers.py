"""
Programs of any kind, started by a test: they say lines by ``speaking.py``, and the test knows which calls returned.

Unlike `producers.Producer` they are whatever the test writes: servers with
workers, pools, programs that get signals. What they note comes through a named
pipe, which every process that imports `speaking` opens: nothing waits by
sleeping, and the pipe's end proves that none of them is left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from counting import stored_in

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT = 60.0
"""Seconds after which what takes a few has failed."""

NEXT = """
import runlog, speaking
from runlog.delivery import workers
speaking.say("next")
assert runlog.flush(30)
for worker in workers():
    worker.send_backlogs(30)
"""


class Speaker(NamedTuple):
    """One sequence of calls: a place in one thread of one process."""

    pid: int
    place: str
    thread: str


class Speakers:
    """
    Start programs, follow what they say, and compare it with what the server has.

    A context manager: leaving it kills what still runs.

    Args:
        directory: For the programs and the journal.
        database: Of the server.
        api_url: Where the programs send their lines.
    """

    def __init__(self, directory: Path, database: Path, api_url: str) -> None:
        self._directory = directory
        self._database = database
        self._journal = directory / "journal"
        os.mkfifo(self._journal)
        reading = os.open(self._journal, os.O_RDONLY | os.O_NONBLOCK)
        # Our own writing end, so that the pipe does not end before the first program opens it.
        self._writing: int | None = os.open(self._journal, os.O_WRONLY)
        os.set_blocking(reading, True)
        self._news = threading.Condition()
        self.returned: Counter[Speaker] = Counter()
        """How many calls have returned, of each speaker."""
        self.notes: list[str] = []
        """Everything else that was noted."""
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PREFECT_API_URL": api_url,
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.05",
            "RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT": "30",
            "JOURNAL": str(self._journal),
            "PYTHONPATH": os.pathsep.join(
                [str(directory), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ).rstrip(os.pathsep),
        }
        self._reader = threading.Thread(target=self._read, args=(reading,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            # The whole session: servers have workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(WAIT)
        self._hang_up()
        self._reader.join(WAIT)

    def _hang_up(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as journal:
            for line in journal:
                with self._news:
                    word, *words = line.split()
                    if word == "said":
                        pid, place, thread, number = words
                        speaker = Speaker(int(pid), place, thread)
                        self.returned[speaker] = max(self.returned[speaker], int(number) + 1)
                    else:
                        self.notes.append(line.strip())
                    self._news.notify_all()

    def write(self, name: str, code: str) -> Path:
        """Write a file that the programs can import."""
        path = self._directory / name
        path.write_text(code, encoding="utf-8")
        return path

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start ``python *arguments*``, in a session of its own; its stderr goes to a file, see `errors_of`."""
        path = self._directory / f"stderr-{len(self._started)}"
        with path.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment | changes,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=self._directory,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def program(self, code: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a program that imports what it needs itself."""
        path = self.write(f"program_{len(self._started)}.py", code)
        return self.start("-W", "error", str(path), **changes)

    def run(self, code: str, **changes: str) -> tuple[int, str]:
        """Run a program to its end; returns its exit code and what it wrote to stdout and stderr."""
        process = self.program(code, **changes)
        return self.code_of(process), self.errors_of(process)

    def code_of(self, process: subprocess.Popen[bytes]) -> int:
        """
        Wait for the end of a program; returns its exit code.

        Raises:
            AssertionError: If it hangs, with what it wrote and where its threads are.
        """
        try:
            return process.wait(WAIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            process.wait(WAIT)
            raise AssertionError(f"{process.args} hangs: {self.errors_of(process)}") from None

    def errors_of(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a program wrote to stdout and stderr so far."""
        number = self._started.index(process)
        return (self._directory / f"stderr-{number}").read_text(encoding="utf-8")

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Wait until what was said and noted fulfils *predicate*, which is asked after each line."""
        with self._news:
            assert self._news.wait_for(predicate, WAIT), (
                f"waited in vain; so far {dict(self.returned)}, {self.notes}; stderr:\n"
                + "\n".join(self.errors_of(process) for process in self._started)
            )

    def said_at(self, place: str) -> int:
        """How many calls at *place* have returned, in all processes."""
        return sum(number for speaker, number in self.returned.items() if speaker.place == place)

    def pids_at(self, place: str) -> set[int]:
        """The processes that have said something at *place*."""
        return {speaker.pid for speaker in self.returned if speaker.place == place}

    def finish(self) -> None:
        """A last program, which sends what others left."""
        code, errors = self.run(NEXT)
        assert code == 0, errors

    def check(self, *, most_producers: int = 1) -> int:
        """
        Count once all programs have ended; the server may still run.

        Every call that returned is stored once; what one speaker said is stored
        without a gap, and in order for each producer; a process is one producer.

        Args:
            most_producers: Of one process; a handler that logs after it was closed begins another.

        Returns:
            How many lines there were.

        Raises:
            AssertionError: If that is not so, or if a process still runs.
        """
        self._hang_up()
        self._reader.join(WAIT)
        assert not self._reader.is_alive(), "a process that was started has not ended"
        stored = stored_in(self._database)
        assert not stored.dropped
        assert max(Counter((line.producer, line.seq) for line in stored.lines).values()) == 1, "doubled"
        seqs = defaultdict(list)
        said = defaultdict(list)
        in_order = defaultdict(list)
        producers = defaultdict(set)
        for line in stored.lines:
            seqs[line.producer].append(line.seq)
            word, *words = line.message.split()
            if word == "said":
                pid, place, thread, number = words
                said[Speaker(int(pid), place, thread)].append(int(number))
                in_order[line.producer, pid, place, thread].append(int(number))
                producers[int(pid)].add(line.producer)
        for producer, numbers in seqs.items():
            assert numbers == list(range(len(numbers))), f"{producer} has a gap, or lines were reordered"
        for key, numbers in in_order.items():
            assert numbers == sorted(numbers), f"{key}: reordered"
        for speaker, calls in self.returned.items():
            assert sorted(said[speaker]) == list(range(len(said[speaker]))), f"{speaker}: lost or doubled"
            assert len(said[speaker]) >= calls, f"{speaker}: {calls} calls, {len(said[speaker])} stored"
        assert all(len(ids) <= most_producers for ids in producers.values()), f"two producers: {producers}"
        together = Counter(itertools.chain.from_iterable(producers.values()))
        assert max(together.values()) == 1, f"two processes, one producer: {producers}"
        return sum(self.returned.values())
