"""
Put the server together and run it.

`create_app` makes the ASGI application around a storage; `run_server` is what
``runlog server start`` runs, in the foreground until a signal; `BackgroundServer`
runs the same in a thread, for tests, demonstrations and notebooks. The storage
is opened before the first request and closed after the last, whoever runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from runlog.discovery import publish_local_server
from runlog.server.addresses import listen, require_auth, url_of
from runlog.server.authentication import Authenticator
from runlog.server.errors import EXCEPTION_HANDLERS
from runlog.server.ingest import Ingest
from runlog.server.middleware import Authentication, PrefectVersion, SecurityHeaders
from runlog.server.routes import admin, batches, logs, reading
from runlog.server.serving import Server
from runlog.server.state import Limits, ServerState
from runlog.server.storage import DATABASE_FILE, storage_from_url

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from runlog.server.storage.base import LogStorage

logger = logging.getLogger("runlog.server")


def create_app(
    storage: LogStorage,
    *,
    auth_string: str | None = None,
    own_token: str | None = None,
    limits: Limits | None = None,
    always_ask: bool = False,
) -> Starlette:
    """
    Return the application around an open storage.

    Args:
        storage: The caller opens and closes it.
        auth_string: ``user:password`` that requests must bring, or an API key; `None`
            for none, then they must bring a key as soon as there is one.
        own_token: Good for everything, as ``Bearer``; for this process and its user.
        limits: What one request may cost.
        always_ask: Let nobody in without a credential, even if there is none.
    """
    authenticator = Authenticator(storage, auth_string=auth_string, own_token=own_token, always=always_ask)
    middleware = [
        Middleware(SecurityHeaders),
        Middleware(Authentication, authenticator=authenticator),
        Middleware(PrefectVersion),
        # Level 4 takes a third of the time of level 9, for a few per cent more bytes.
        Middleware(GZipMiddleware, minimum_size=1024, compresslevel=4),
    ]
    app = Starlette(
        routes=[Mount("/api", routes=[*logs.ROUTES, *batches.ROUTES, *reading.ROUTES, *admin.ROUTES])],
        middleware=middleware,
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.server = ServerState(storage, Ingest(storage), limits or Limits(), authenticator)
    return app


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a server needs to know besides its socket. Picklable."""

    database_url: str
    """See `runlog.server.storage.storage_from_url`."""
    home: Path | None = None
    """Programs with this ``RUNLOG_HOME`` find the server; `None` publishes it to nobody."""
    auth_string: str | None = field(default=None, repr=False)
    """``user:password`` that requests must bring; `None` for none."""
    limits: Limits = field(default_factory=Limits)


def run_server(
    host: str,
    port: int,
    database_url: str | None,
    home: Path,
    *,
    reload: bool = False,
    on_ready: Callable[[str], None] | None = None,
    auth_string: str | None = None,
    limits: Limits | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM, then finish what was begun and return.

    Programs with the same home find the server by themselves. Blocks; call it in
    the main thread.

    Args:
        host: Name or address to listen on.
        port: 0 takes a free one.
        database_url: See `storage_from_url`; `None` for ``runlog.db`` in *home*.
        home: ``RUNLOG_HOME``.
        reload: Start anew whenever a file of the package changes. For developers.
        on_ready: Is told the API address once requests are answered.
        auth_string: ``user:password`` that requests must bring; by default
            ``PREFECT_SERVER_API_AUTH_STRING``.
        limits: What one request may cost.

    Raises:
        SettingsError: If the address cannot be listened on, or is open to other
            machines and nothing guards it.
        StorageError: If the store cannot be used.
    """
    if auth_string is None:
        auth_string = _auth_string_of_settings()
    require_auth(host, auth_string)
    options = ServeOptions(database_url or str(home / DATABASE_FILE), home, auth_string, limits or Limits())
    storage_from_url(options.database_url)  # a wrong URL is told before the address is taken
    with contextlib.closing(listen(host, port)) as listener:
        if not reload:
            serve(options, listener, on_ready)
            return
        from runlog.server.reload import watch  # noqa: PLC0415 - for developers only

        listener.listen()  # connections wait from here on, for the first process and for the next ones
        if on_ready is not None:
            on_ready(url_of(listener))
        watch(options, listener)


def _auth_string_of_settings() -> str | None:
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    secret = get_current_settings().server.auth_string
    return secret.get_secret_value() if secret else None


def serve(
    options: ServeOptions,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None = None,
    *,
    storage: LogStorage | None = None,
    on_server: Callable[[Server], None] | None = None,
) -> None:
    """
    Open the store, serve until told to stop, and close the store.

    Args:
        options: What to serve.
        listener: Bound.
        on_ready: Is told the API address once requests are answered.
        storage: Not open; by default the one that *options* names.
        on_server: Is given the server before it starts, to stop it with.
    """
    store = storage or storage_from_url(options.database_url)

    def ready(url: str) -> None:
        if options.home is not None and not published.enter_context(publish_local_server(options.home, url)):
            logger.warning(
                "programs with RUNLOG_HOME=%s know another server already and do not find this one",
                options.home,
            )
        if on_ready is not None:
            on_ready(url)

    async def run() -> None:
        await store.open()
        try:
            app = create_app(store, auth_string=options.auth_string, limits=options.limits)
            server = Server(app, listener, ready)
            if on_server is not None:
                on_server(server)
            await server.serve_until_stopped()
            await app.state.server.ingest.close()
        finally:
            await store.close()

    with contextlib.ExitStack() as published:
        asyncio.run(run())


class BackgroundServer:
    """
    A server in a thread of this process.

    A context manager: leaving it stops the server and waits until its thread,
    its socket and its database are closed. ::

        with BackgroundServer() as server:
            httpx.get(server.url + "/health")

    Args:
        database: See `storage_from_url`; by default lines are kept in memory.
        host: Name or address to listen on.
        port: 0 takes a free one.
        home: Publish the server to programs with this ``RUNLOG_HOME``; `None`
            publishes it to nobody.
        auth_string: ``user:password`` that requests must bring; `None` for none.
        limits: What one request may cost.
        storage: A storage to use in place of *database*; opened and closed here.

    Raises:
        SettingsError: As `run_server`.
    """

    def __init__(
        self,
        database: str = "memory://",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        home: Path | None = None,
        auth_string: str | None = None,
        limits: Limits | None = None,
        storage: LogStorage | None = None,
    ) -> None:
        require_auth(host, auth_string)
        self.storage = storage or storage_from_url(database)
        """Where the lines are. For its own event loop alone: read through the API."""
        self.url = ""
        """The API address, such as ``http://127.0.0.1:40123/api``, once it is started."""
        self._host, self._port = host, port
        self._options = ServeOptions(database, home, auth_string, limits or Limits())
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<BackgroundServer {f'at {self.url}' if self._thread else 'stopped'}>"

    def start(self) -> Self:
        """
        Start, and return once requests are answered.

        Raises:
            StorageError: If the store cannot be used.
            SettingsError: If the address is taken.
        """
        listener = listen(self._host, self._port)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="runlog-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self.stop()
            raise self._error
        return self

    def stop(self) -> None:
        """Finish what was begun, and return once all is closed. A second call does nothing."""
        thread, self._thread = self._thread, None
        if self._server is not None:
            self._server.should_exit = True
        if thread is not None:
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, listener: socket.socket) -> None:
        try:
            with contextlib.closing(listener):
                serve(
                    self._options, listener, self._on_ready, storage=self.storage, on_server=self._on_server
                )
        except BaseException as error:  # raised in the thread that waits in start()
            self._error = error
        finally:
            self._started.set()

    def _on_server(self, server: Server) -> None:
        self._server = server

    def _on_ready(self, url: str) -> None:
        self.url = url
        self._started.set()
