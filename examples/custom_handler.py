"""
A handler of your own, put in place by a YAML file.

``custom_handler.yml`` beside this file configures logging as a whole; it adds
`JsonLinesHandler`, which keeps the lines of each run in a file of its own. Run it
with ``python examples/custom_handler.py``.

Any value of the YAML file can be overridden from the environment::

    PREFECT_LOGGING_HANDLERS_FILES_FOLDER=/tmp/lines python examples/custom_handler.py
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from runlog import flow_run, get_run_logger, setup_logging, task_run
from runlog.settings import temporary_settings


class JsonLinesHandler(logging.Handler):
    """
    Write each run's lines to ``<folder>/<flow run name>.jsonl``.

    Args:
        folder: Where the files go; made if it is missing.
        level: Least level of the records that are written.
    """

    def __init__(self, folder: str, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.folder = Path(folder)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a record of a run logger has the run's ids and names as attributes."""
        try:
            line = {
                "level": record.levelname,
                "task": getattr(record, "task_run_name", None),
                "message": record.getMessage(),
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            name = getattr(record, "flow_run_name", "no-run")
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except Exception:
            self.handleError(record)  # a log call never breaks the program


def main() -> None:
    configuration = Path(__file__).with_name("custom_handler.yml")
    # The same as PREFECT_LOGGING_CONFIG_PATH in the environment, which is where a program has it as a rule.
    with temporary_settings({"PREFECT_LOGGING_CONFIG_PATH": str(configuration)}):
        setup_logging()
    with flow_run("invoices", run_name="friday"):
        get_run_logger().info("starting")
        with task_run("send", run_name="send-all") as task:
            task.logger.info("sent %d invoices", 12)
            task.logger.debug("the server gets this line, console and file do not")


if __name__ == "__main__":
    main()
