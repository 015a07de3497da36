"""
Where a subscriber connects to, as whom, and what it means if that fails.

The address and the credentials come from the settings, or from the caller. A
server that is found on this machine is looked for anew each time, because it has
another address and another token once it was restarted. What is raised is one of
`runlog.exceptions`, with the address and what to do; never with a credential.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from websockets.asyncio.client import connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
)

from runlog.client.addresses import without_password
from runlog.client.following import refusal
from runlog.discovery import find_local_server, local_credentials
from runlog.exceptions import APIError, QueryError, RunlogError, ServerUnreachableError

if TYPE_CHECKING:
    from pathlib import Path

CLEAN_CLOSINGS = frozenset({1000, 1001})
"""Codes by which an end is as it should be, :rfc:`6455` section 7.4.1; ours says 1012 when it stops."""

PROTOCOL_ERROR, POLICY_VIOLATION, TOO_BIG = 1002, 1008, 1009

_START_A_SERVER = "start one with: runlog server start"


def logs_out_socket_from_api_url(url: str) -> str:
    """
    Return the address of the socket that streams lines.

    Args:
        url: API address, such as ``http://127.0.0.1:4210/api``.
    """
    for scheme, of_socket in (("https://", "wss://"), ("http://", "ws://")):
        if url.startswith(scheme):
            url = of_socket + url.removeprefix(scheme)
    return url.rstrip("/") + "/logs/out"


class Connect(connect):
    """Connects, and follows no redirect: a key must not go to a host that nobody configured."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the answer as what it is, an error."""
        return exc


class Address(NamedTuple):
    """Where to connect to, for one connection."""

    api_url: str
    token: str | None

    @property
    def socket_url(self) -> str:
        """See `logs_out_socket_from_api_url`."""
        return logs_out_socket_from_api_url(self.api_url)

    @property
    def shown(self) -> str:
        """As it may be shown."""
        return without_password(self.api_url)


@dataclass
class Door:
    """
    How to get to the server.

    Its text shows no credential.
    """

    home: Path | None
    """``RUNLOG_HOME``, where a server on this machine is looked for."""
    api_url: str | None
    """`None` for the server on this machine."""
    token: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Of each handshake."""
    _tls: ssl.SSLContext | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_settings(
        cls, api_url: str | None = None, *, api_key: str | None = None, auth_string: str | None = None
    ) -> Door:
        """
        Return the way to the server that the settings name.

        Args:
            api_url: Address to use instead of ``PREFECT_API_URL``.
            api_key: Key to use instead of those in the settings.
            auth_string: ``user:password``, the same; wins over *api_key*.

        Raises:
            SettingsError: If a setting is wrong.
        """
        from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

        settings = get_current_settings()
        token = auth_string or api_key
        if token is None:
            secret = settings.api.auth_string or settings.api.key
            token = secret.get_secret_value() if secret is not None else None
        url = api_url or settings.api.url
        headers = dict(settings.client.custom_headers)
        return cls(settings.home, url.rstrip("/") if url else None, token, headers)

    def address(self) -> Address:
        """
        Return where to connect to now.

        Raises:
            ServerUnreachableError: If nothing says where a server is.
        """
        url = self.api_url
        if url is None:
            local = find_local_server(self.home) if self.home is not None else None
            if local is None:
                raise ServerUnreachableError(
                    "no log server: PREFECT_API_URL is not set and none runs on this machine with "
                    f"RUNLOG_HOME={self.home}; {_START_A_SERVER}"
                )
            url = local.url
        token = self.token
        if token is None:
            found = local_credentials(self.home, url, self.headers).get("Authorization")
            token = found.removeprefix("Bearer ") if found is not None else None
        return Address(url, token)

    @property
    def has_own_credentials(self) -> bool:
        """Whether it says who one is by what was configured; otherwise by what a local server published."""
        return self.token is not None or any(name.lower() == "authorization" for name in self.headers)

    def tls(self, address: Address) -> ssl.SSLContext | None:
        """Return whom to trust; `None` for an address without encryption."""
        if not address.socket_url.startswith("wss://"):
            return None
        if self._tls is None:
            from runlog._http import create_ssl_context  # noqa: PLC0415 - httpx, 100 ms

            # Those whom the client that sends lines trusts, SSL_CERT_FILE included.
            self._tls = create_ssl_context()
        return self._tls


class Failure(NamedTuple):
    """What went wrong, in the words of this library, and what it means."""

    error: RunlogError
    is_final: bool
    """Trying again would not help."""


def is_clean(error: Exception) -> bool:
    """Whether the server closed the connection as one is to be closed that has come to its end."""
    return (
        isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in CLEAN_CLOSINGS
    )


def is_cut(error: Exception) -> bool:
    """Whether the connection ended without a word."""
    return isinstance(error, ConnectionClosed) and error.rcvd is None


def cut_by_filter(address: Address) -> Failure:
    """Return what it means that a Prefect server ends each connection as soon as it has the filter."""
    return Failure(
        QueryError(
            f"the Prefect server at {address.shown} cuts each connection as soon as it has the filter; "
            "it probably cannot make sense of it"
        ),
        is_final=True,
    )


def failure_of(error: Exception, address: Address) -> Failure:
    """Return what an exception of a connection means."""
    shown = address.shown
    match error:
        case ConnectionClosed():
            return _closed(error, shown)
        case InvalidStatus():
            return _refused(error.response.status_code, bytes(error.response.body or b""), shown)
        case ssl.SSLCertVerificationError():
            return Failure(
                ServerUnreachableError(
                    f"the certificate of the log server at {shown} is not to be trusted: "
                    f"{error.verify_message}; if it is yours, name its authority in SSL_CERT_FILE"
                ),
                is_final=False,
            )
        case ssl.SSLError():
            return Failure(
                ServerUnreachableError(
                    f"no encrypted connection to the log server at {shown}: {error.reason or error}; "
                    "does it speak https?"
                ),
                is_final=False,
            )
        case InvalidURI():
            return _no_address(shown)
        case InvalidHandshake():
            return Failure(
                APIError(f"{shown} does not answer as a log server does; its address usually ends in /api"),
                is_final=False,
            )
        case APIError() | QueryError():
            # From what was said on the connection.
            is_final = isinstance(error, QueryError) or error.status is not None
            if isinstance(error, QueryError | ServerUnreachableError):
                return Failure(error, is_final)
            return Failure(APIError(f"the log server at {shown}: {error}", status=error.status), is_final)
        case ValueError():  # a port or a name that there cannot be
            return _no_address(shown)
        case _:
            reason = str(error) or type(error).__name__
            return Failure(
                ServerUnreachableError(
                    f"the log server at {shown} does not answer ({reason}); {_START_A_SERVER}, "
                    "or set PREFECT_API_URL to one that runs"
                ),
                is_final=False,
            )


def _no_address(shown: str) -> Failure:
    return Failure(
        ServerUnreachableError(
            f"{shown!r} is no address of a log server; expected something like http://127.0.0.1:4210/api"
        ),
        is_final=True,
    )


def _closed(error: ConnectionClosed, shown: str) -> Failure:
    close = error.rcvd
    if close is None:
        if error.sent is not None and error.sent.code == TOO_BIG:
            return Failure(APIError(f"the log server at {shown} sent a line that is too long"), is_final=True)
        return Failure(ServerUnreachableError(f"the connection to the log server at {shown} was lost"), False)
    if close.code in {PROTOCOL_ERROR, TOO_BIG}:
        return Failure(QueryError(close.reason or "the log server cannot make sense of the filter"), True)
    if close.code == POLICY_VIOLATION:
        return Failure(APIError(f"the log server at {shown}: {refusal(close.reason)}", status=401), True)
    reason = f" {close.reason}" if close.reason else ""
    return Failure(
        ServerUnreachableError(f"the log server at {shown} ended the connection ({close.code}{reason})"),
        is_final=False,
    )


def _refused(status: int, body: bytes, shown: str) -> Failure:
    if status in {401, 403}:
        # 403 is also what many servers answer to a socket at an address where there is none.
        hint = ", or the address is wrong: it usually ends in /api" if status == 403 else ""
        return Failure(
            APIError(f"the log server at {shown}: {refusal(f'HTTP {status}')}{hint}", status=status),
            is_final=True,
        )
    if status in {429, 500, 502, 503, 504}:
        said = body[:200].decode(errors="replace").strip()
        said = f" ({said})" if said.isprintable() and not said.startswith("<") and said else ""
        return Failure(
            APIError(f"the log server at {shown} answers HTTP {status}{said}", status=status), is_final=False
        )
    return Failure(
        APIError(
            f"{shown} is not the API of a log server: expected a WebSocket at /logs/out, got HTTP {status}; "
            "its address usually ends in /api",
            status=status,
        ),
        is_final=True,
    )
