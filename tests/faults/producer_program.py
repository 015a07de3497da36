"""
The program that `producers.Producer` starts: it logs when it is told to, as any program of a user's would.

Commands are lines of JSON on standard input, answers the same on standard
output. Nothing of the library's behaviour is changed but how long it waits:
the waits of production would make each case take minutes.
"""

from __future__ import annotations

import array
import contextlib
import faulthandler
import json
import logging
import resource
import select
import sys
import time

import runlog
import runlog.delivery.worker
from runlog import delivery
from runlog.delivery.retry import Backoff
from runlog.handlers import APILogHandler


class Program:
    """The commands, each a method that returns the answer."""

    def __init__(self, name, *, send_timeout, most_pause):
        runlog.delivery.worker.TOTAL_TIMEOUT = send_timeout
        runlog.delivery.worker.Backoff = lambda: Backoff(initial=0.02, maximum=most_pause)
        self.name = name
        self.logger = logging.getLogger(name)
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(APILogHandler(service_name=name))
        self.logged = 0
        self.durations = array.array("d")

    def log(self, lines, bad=()):
        """Log so many lines; those whose numbers are in *bad* are marked as bad."""
        for number in range(self.logged, self.logged + lines):
            self._call(number, "bad record" if number in bad else "")
        return self.logged

    def chatter(self, pause):
        """Log, with pauses of so many seconds, until the next command comes."""
        while not select.select([0], [], [], pause)[0]:
            self._call(self.logged, "")
        return self.logged

    def flush(self, timeout):
        return runlog.flush(timeout)

    def report(self):
        durations = sorted(self.durations)
        (statistics,) = delivery.statistics()
        return {
            "logged": self.logged,
            "statistics": statistics,
            "peak_bytes": _peak_bytes(),
            "worst_call_s": durations[-1],
            "p99_call_s": durations[int(len(durations) * 0.99)],
        }

    def _call(self, number, mark):
        before = time.perf_counter()
        self.logger.info("%s line %d", self.name, number, extra={"mark": mark} if mark else None)
        duration = time.perf_counter() - before
        self.logged = number + 1
        if len(self.durations) < 100_000:
            self.durations.append(duration)


def _peak_bytes():
    """Most memory that this program has had, in bytes."""
    # Linux carries the other figure over from the process that started this one.
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    options = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(options.pop("deadline"), exit=True)
    program = Program(**options)
    commands = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - what is read ahead, `select` does not see
    for line in commands:
        command, arguments = json.loads(line)
        print(json.dumps(getattr(program, command)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
