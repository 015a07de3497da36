"""
This machine's own store, with or without a server that runs.

A script without any setting leaves its lines in the spool. A command that reads
starts a server inside itself for as long as it reads, and takes the spool in;
``runlog server start`` does so again and again. One process has the database at
a time: whoever comes second uses the server of the first, and starts one itself
when the first has ended.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from runlog.cli.output import note
from runlog.cli.server import import_server
from runlog.client.reader import START_A_SERVER, LogReader
from runlog.credentials import auth_headers
from runlog.delivery.segments import SegmentName
from runlog.delivery.sending import send_spool
from runlog.delivery.spool import spool_directory
from runlog.delivery.transport import HTTPTransport
from runlog.discovery import find_local_server, local_credentials
from runlog.exceptions import ServerUnreachableError, StorageInUseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runlog._http import Response
    from runlog.settings import Settings

PATIENCE = 10.0
"""Seconds to wait for another process that has the database, and has not said yet where it answers."""

LOOK_AGAIN = 0.05
"""Seconds between two looks at whether it has."""

INTAKE_INTERVAL = 30.0
"""Seconds between two looks of a server into the spool."""


class LocalReader(LogReader):
    """
    Read this machine's store; a context manager that starts and stops a server if none runs.

    The spool is taken in before the first question. If the server is another
    process's and ends in the middle, reading goes on with the next one: what a
    cursor says holds for the store, whoever serves it.

    Args:
        settings: Say where the store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._own_headers = local_headers(settings)
        super().__init__("", headers=self._own_headers)
        self._settings = settings
        self._server: Any = None

    def close(self) -> None:
        """Close the connections, and stop the server if it is ours."""
        super().close()
        server, self._server = self._server, None
        self.api_url = ""
        if server is not None:
            server.stop()

    def _request(self, path: str, query: Mapping[str, Any]) -> Response:
        failed, deadline = "", 0.0
        while True:
            if not self.api_url:
                self._find_or_start()
            try:
                return super()._request(path, query)
            except ServerUnreachableError:
                if self.api_url != failed:
                    failed, deadline = self.api_url, time.monotonic() + PATIENCE
                if self._server is not None or time.monotonic() >= deadline:
                    raise
            self.close()
            time.sleep(LOOK_AGAIN)  # a server that ends is known a moment longer than it answers

    def _find_or_start(self) -> None:
        home, deadline = self._settings.home, time.monotonic() + PATIENCE
        while (found := find_local_server(home)) is None:
            self._require_something()
            try:
                self._start()
            except StorageInUseError:  # whoever has it publishes its server at once
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_AGAIN)
            else:
                break
        if found is not None:
            self.api_url = found.url.rstrip("/")
            credentials = local_credentials(home, self.api_url, self._own_headers)
            self._headers = {**self._own_headers, **credentials}
        # Another's server is looked up before each batch: if it ends, there is no use in trying on.
        own = self.api_url if self._server is not None else None
        transport = HTTPTransport(own, home=home, headers=self._headers)
        try:
            sent = send_spool(spool_directory(home, None), transport, live=True)
        finally:
            transport.close()
        if not sent.is_done and transport.target is not None:
            note(f"lines that wait in the spool are missing here: {sent.detail}")

    def _start(self) -> None:
        app = import_server("reading without a log server that runs")
        server = app.BackgroundServer(
            database_of(self._settings), home=self._settings.home, auth_string=_auth_string(self._settings)
        )
        server.start()
        self._server, self.api_url = server, server.url.rstrip("/")
        self._headers = auth_headers(api_key=server.own_token)

    def _require_something(self) -> None:
        """Do not make an empty store for a command that only reads."""
        home, database = self._settings.home, self._settings.server.database
        if database is None and not (home / "runlog.db").exists():
            spool = spool_directory(home, None)
            if not spool.is_dir() or not any(SegmentName.parse(path.name) for path in spool.iterdir()):
                raise ServerUnreachableError(
                    f"no log server: PREFECT_API_URL is not set and none runs on this machine "
                    f"with RUNLOG_HOME={home}, where no line waits either; {START_A_SERVER}"
                )


class SpoolIntake:
    """
    A thread that takes the local spool into the server that runs in this process.

    Args:
        settings: Say where the spool is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take in what is there at once, and what comes later every 30 s."""
        self._thread = threading.Thread(target=self._run, name="runlog-spool-intake", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch that it is sending."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        home = self._settings.home
        transport = HTTPTransport(None, home=home, headers=local_headers(self._settings))
        try:
            while not self._stop.is_set():
                send_spool(spool_directory(home, None), transport, stop=self._stop)
                self._stop.wait(INTAKE_INTERVAL)
        finally:
            transport.close()


def database_of(settings: Settings) -> str:
    """Return the database that a server without options would use."""
    return settings.server.database or str(settings.home / "runlog.db")


def local_headers(settings: Settings) -> dict[str, str]:
    """Return the headers for this machine's server: its own password is known here."""
    key, auth = settings.api.key, settings.api.auth_string
    return auth_headers(
        api_key=key.get_secret_value() if key else None,
        auth_string=auth.get_secret_value() if auth else _auth_string(settings),
        custom_headers=settings.client.custom_headers,
    )


def _auth_string(settings: Settings) -> str | None:
    secret = settings.server.auth_string
    return secret.get_secret_value() if secret else None
