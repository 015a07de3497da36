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
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from runlog.discovery import publish_local_server
from runlog.server.addresses import is_loopback, listen, require_auth, url_of
from runlog.server.authentication import Authenticator
from runlog.server.errors import EXCEPTION_HANDLERS
from runlog.server.ingest import Ingest
from runlog.server.keeping import Keeper, Keeping
from runlog.server.live import Tail
from runlog.server.metrics import RequestCounts
from runlog.server.middleware import Authentication, Meter, PrefectVersion, SecurityHeaders
from runlog.server.origins import SameOrigin
from runlog.server.routes import (
    admin,
    batches,
    counting,
    keys,
    live_events,
    live_socket,
    logs,
    maintenance,
    metrics,
    prefect_events,
    prefect_reading,
    prefect_runs,
    reading,
)
from runlog.server.serving import TLS, Server
from runlog.server.state import Limits, ServerState
from runlog.server.storage import DATABASE_FILE, storage_from_url

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
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
    allowed_origins: Sequence[str] = (),
    on_loopback: bool | None = None,
) -> Starlette:
    """
    Return the application around an open storage.

    Args:
        storage: The caller opens and closes it.
        auth_string: ``user:password`` that requests must bring, or an API key; `None`
            for none, then they must bring a key as soon as there is one.
        own_token: Good for everything, as ``Bearer``; for this process and its user.
        limits: What one request may cost.
        allowed_origins: Of pages from elsewhere that may use it.
        on_loopback: Whether it listens where only this machine reaches it. If so, it
            answers by this machine's names alone; if not, it lets nobody in without a
            credential. `None`: it listens nowhere, as in tests.
    """
    limits = limits or Limits()
    storage.max_query_s = limits.max_query_s
    authenticator = Authenticator(
        storage, auth_string=auth_string, own_token=own_token, always=on_loopback is False
    )
    counts = RequestCounts()
    middleware = [
        Middleware(SecurityHeaders),
        Middleware(Meter, counts=counts, max_held_bytes=limits.max_waiting_bytes),
        Middleware(
            SameOrigin,
            authenticator=authenticator,
            allowed=allowed_origins,
            on_loopback=bool(on_loopback),
        ),
        Middleware(Authentication, authenticator=authenticator, counts=counts),
        Middleware(PrefectVersion),
        # Level 4 takes a third of the time of level 9, for a few per cent more bytes.
        Middleware(GZipMiddleware, minimum_size=1024, compresslevel=4),
    ]
    app = Starlette(
        routes=[
            Mount(
                "/api",
                routes=[
                    *logs.ROUTES,
                    *batches.ROUTES,
                    *live_socket.ROUTES,
                    *live_events.ROUTES,
                    *prefect_runs.ROUTES,
                    *prefect_reading.ROUTES,
                    *prefect_events.ROUTES,
                    *reading.ROUTES,
                    *counting.ROUTES,
                    *admin.ROUTES,
                    *keys.ROUTES,
                    *maintenance.ROUTES,
                ],
            ),
            *metrics.ROUTES,
        ],
        middleware=middleware,
        exception_handlers=EXCEPTION_HANDLERS,
    )
    tail = Tail()
    app.state.server = ServerState(
        storage, Ingest(storage, tail), limits, authenticator, asyncio.Event(), tail, requests=counts
    )
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
    host: str = "127.0.0.1"
    """What the socket is bound to."""
    own_token: str | None = field(default=None, repr=False)
    """Good for everything; published beside the address. By default a new one at each start."""
    allowed_origins: tuple[str, ...] = ()
    tls: TLS | None = None
    keeping: Keeping = field(default_factory=Keeping)
    """How long lines are kept; by default for ever."""


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
    tls: TLS | None = None,
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
        tls: Serve HTTPS; `None` for HTTP.

    Raises:
        SettingsError: If the address cannot be listened on, or is open to other
            machines and nothing guards it.
        StorageError: If the store cannot be used.
    """
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms
    from runlog.settings.values import parse_retention  # noqa: PLC0415 - the same

    settings = get_current_settings().server
    if auth_string is None and settings.auth_string is not None:
        auth_string = settings.auth_string.get_secret_value()
    options = ServeOptions(
        database_url or str(home / DATABASE_FILE),
        home,
        auth_string,
        limits or Limits(),
        host,
        allowed_origins=settings.allowed_origins,
        tls=tls,
        keeping=Keeping(tuple(parse_retention(settings.retention or "forever").values()), settings.max_bytes),
    )
    # What is wrong is told before the address is taken: a URL, credentials, certificates.
    storage = storage_from_url(options.database_url)
    require_auth(host, auth_string, has_keys=storage.may_have_keys())
    if tls is not None:
        tls.check()
    with contextlib.closing(listen(host, port)) as listener:
        if not reload:
            serve(options, listener, on_ready)
            return
        from runlog.server.reload import watch  # noqa: PLC0415 - for developers only

        listener.listen()  # connections wait from here on, for the first process and for the next ones
        if on_ready is not None:
            on_ready(url_of(listener, "https" if tls is not None else "http"))
        watch(options, listener)


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

    Raises:
        StorageError: If the store cannot be used.
        SettingsError: If others can reach it, and there is neither auth string nor key.
    """
    token = options.own_token or secrets.token_urlsafe(32)
    store = storage or storage_from_url(options.database_url)

    def ready(url: str) -> None:
        if options.home is not None and not published.enter_context(
            publish_local_server(options.home, url, token)
        ):
            logger.warning(
                "programs with RUNLOG_HOME=%s know another server already and do not find this one",
                options.home,
            )
        if on_ready is not None:
            on_ready(url)

    async def run() -> None:
        await store.open()
        try:
            require_auth(options.host, options.auth_string, has_keys=bool(await store.read_keys()))
            app = create_app(
                store,
                auth_string=options.auth_string,
                own_token=token,
                limits=options.limits,
                allowed_origins=options.allowed_origins,
                on_loopback=is_loopback(options.host),
            )
            state: ServerState = app.state.server
            await state.authenticator.load()
            server = Server(
                app,
                listener,
                ready,
                tls=options.tls,
                max_connections=options.limits.max_connections,
                on_stop=state.stop,
            )
            if on_server is not None:
                on_server(server)
            keeper = Keeper(store, state.authenticator, options.keeping)
            keeper.start()
            try:
                await server.serve_until_stopped()
                await state.ingest.close()
                await state.authenticator.store_uses()
            finally:
                await keeper.close()
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
        allowed_origins: Of pages from elsewhere that may use it.
        tls: Serve HTTPS; `None` for HTTP.
        keeping: How long lines are kept; by default for ever.

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
        allowed_origins: Sequence[str] = (),
        tls: TLS | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self.storage = storage or storage_from_url(database)
        """Where the lines are. For its own event loop alone: read through the API."""
        require_auth(host, auth_string, has_keys=self.storage.may_have_keys())
        self.own_token = secrets.token_urlsafe(32)
        """As ``Bearer`` good for everything, for as long as this server runs."""
        self.url = ""
        """The API address, such as ``http://127.0.0.1:40123/api``, once it is started."""
        self._host, self._port = host, port
        self._options = ServeOptions(
            database,
            home,
            auth_string,
            limits or Limits(),
            host,
            self.own_token,
            tuple(allowed_origins),
            tls,
            keeping or Keeping(),
        )
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
