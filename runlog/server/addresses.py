"""Where a server listens, who can reach it there, and how it is called."""

from __future__ import annotations

import ipaddress
import socket
import sys

from runlog.exceptions import SettingsError


def require_auth(host: str, auth_string: str | None, *, has_keys: bool = False) -> None:
    """
    Refuse to serve other machines without asking for credentials.

    Args:
        host: Where it listens.
        auth_string: ``user:password``; `None` for none.
        has_keys: Whether there are API keys.

    Raises:
        SettingsError: If *host* is not this machine's own and nobody could be asked for anything.
    """
    if not auth_string and not has_keys and not is_loopback(host):
        raise SettingsError(
            f"RUNLOG_SERVER_HOST is {host!r}, which other machines can reach, and no auth string is set",
            key="RUNLOG_SERVER_HOST",
            expected="a loopback address such as 127.0.0.1",
            got=repr(host),
            remedy="set PREFECT_SERVER_API_AUTH_STRING=user:password, make a key with "
            "`runlog server keys create`, or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, by itself: no name is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """
    Return a socket that is bound, so that a taken port is found before anything else is done.

    Raises:
        SettingsError: If it cannot be.
    """
    host = host.strip("[]")
    if port not in range(65_536):  # getaddrinfo would take what is left over
        raise _cannot_listen(host, port, "a port is a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if (
                sys.platform != "win32"
            ):  # pragma: no branch - there the option would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, getattr(error, "strerror", None) or str(error)) from error
    return listener


def _cannot_listen(host: str, port: int, reason: str) -> SettingsError:
    return SettingsError(
        f"cannot listen on {host}, port {port}: {reason}",
        key="RUNLOG_SERVER_PORT",
        got=str(port),
        remedy="choose another with --port, or --port 0 for a free one",
    )


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the API address of a listening socket, for programs on this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/api"
