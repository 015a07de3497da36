"""
Speak to the server of this machine's store for the commands that look after it.

If it runs, it is asked; if not, one is started for as long as the command takes,
on this machine alone and known to nobody, so that one process has the file at
any time. A store that another process has, and whose server is not known here,
is left alone.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from runlog.cli.server import import_server
from runlog.client.addresses import without_password
from runlog.credentials import auth_headers
from runlog.discovery import find_local_server, local_credentials
from runlog.exceptions import APIError, ServerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runlog._http import Client

TIMEOUT = 600.0
"""Seconds for one answer: giving space back to the disk takes a while."""


class ServerAPI:
    """
    Asks one server, with JSON both ways.

    Args:
        url: Its API address.
        client: Brings the credentials.
        is_temporary: Whether the server runs for this command alone.
    """

    def __init__(self, url: str, client: Client, *, is_temporary: bool) -> None:
        self.url = url
        self.is_temporary = is_temporary
        self._client = client

    def __repr__(self) -> str:
        return f"<ServerAPI at {without_password(self.url)}>"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """
        Return an answer, decoded.

        Raises:
            APIError: If it is an error.
            ServerUnreachableError: If there is none.
        """
        from runlog import _http  # noqa: PLC0415 - 100 ms

        try:
            response = self._client.request(method, self.url + path, json=body)
        except _http.HTTPError as error:
            shown, reason = without_password(self.url), str(error) or type(error).__name__
            raise ServerUnreachableError(f"no answer from {shown}: {reason}") from error
        if response.status_code < 400:
            return response.json()
        try:
            said = response.json()
            detail = str(said.get("detail") or said.get("exception_message"))
        except (ValueError, AttributeError):
            detail = response.text[:200]
        if response.status_code in {401, 403}:
            detail += "; set PREFECT_API_KEY to a key with scope admin, or PREFECT_API_AUTH_STRING"
        raise APIError(f"{without_password(self.url)} answered {response.status_code}: {detail}")


@contextlib.contextmanager
def open_server(url: str | None, database: str | None, feature: str) -> Iterator[ServerAPI]:
    """
    Find a server, or start one for a while.

    Args:
        url: API address of a server to ask; by default this machine's own, wherever
            ``PREFECT_API_URL`` leads.
        database: A store to open in place of the settings' one, if no server runs.
        feature: What needs it, for messages.

    Raises:
        StorageError: If another process has the store.
    """
    from runlog._http import Client  # noqa: PLC0415 - 100 ms
    from runlog.cli.local import database_of, local_headers  # noqa: PLC0415 - imports this package's others
    from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

    settings = get_current_settings()
    headers = local_headers(settings)
    with contextlib.ExitStack() as stack:
        local = find_local_server(settings.home) if url is None and database is None else None
        is_temporary = url is None and local is None
        if local is not None:
            url = local.url.rstrip("/")
            headers |= local_credentials(settings.home, url, {})
        elif url is None:
            app = import_server(feature)
            server = stack.enter_context(app.BackgroundServer(database or database_of(settings)))
            url, headers = server.url, auth_headers(api_key=server.own_token)
        client = stack.enter_context(Client(headers=headers, timeout=TIMEOUT))
        yield ServerAPI(url.rstrip("/"), client, is_temporary=is_temporary)
