"""
What the programs of `speakers.Speakers` log with.

`say` logs a line and, once that call has returned, notes it in the journal, a
named pipe that the test reads. Lines are numbered for each process, place and
thread, so that the test can tell which are missing and whether any changed places.
"""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import threading

from runlog.handlers import APILogHandler

# On SIGABRT, which a test sends to what hangs. Not after a time: a forked child would wait for that timer's thread.
faulthandler.enable()

log = logging.getLogger("runlog.app")
_journal = os.open(os.environ["JOURNAL"], os.O_WRONLY)
_numbers = {}


def configure():
    """Send what is logged, lines and events of runs among it; nothing goes to the console."""
    logger = logging.getLogger("runlog")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(APILogHandler(service_name="s"))


def say(place, logger=log):
    """Log one line, which says where; the place names one sequence of calls in each thread."""
    who = f"{os.getpid()} {place} {threading.get_ident()}"
    number = next(_numbers.setdefault(who, itertools.count()))
    logger.info("said %s %d", who, number)
    note(f"said {who} {number}")


def note(text):
    """Tell the test something. A write of this size to a pipe is one piece, whoever else writes."""
    os.write(_journal, f"{text}\n".encode())


configure()
