"""
Find out who sends a request, by an API key, by the auth string, or by a ticket.

Prefect's clients send ``PREFECT_API_KEY`` as ``Bearer`` and
``PREFECT_API_AUTH_STRING`` as ``Basic``; on their socket, the token of the first
message is one or the other. Both are valid side by side.

Only one process has a store at a time, so that the keys are read from it once and
then known. A key that is revoked is worth nothing from that moment on.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from runlog.server.keys import key_id
from runlog.server.principal import ANYONE, Principal
from runlog.server.tickets import Tickets

if TYPE_CHECKING:
    from collections.abc import Callable

    from runlog.server.keys import ApiKey
    from runlog.server.storage.base import LogStorage

USE_RESOLUTION_NS = 60_000_000_000
"""How exactly it is known when a key was last used."""


class Authenticator:
    """
    Knows what is a valid credential. For one event loop.

    Args:
        storage: Has the keys; open before `load`.
        auth_string: ``user:password``, good for everything; `None` for none.
        own_token: What this process and its user know; good for everything.
        always: Ask for credentials even if there is neither auth string nor key.
        clock: The time in nanoseconds since the epoch.
    """

    def __init__(
        self,
        storage: LogStorage,
        *,
        auth_string: str | None = None,
        own_token: str | None = None,
        always: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._storage = storage
        self._auth = auth_string.encode() if auth_string else None
        self._own_token = own_token.encode() if own_token else None
        self._always = always or auth_string is not None
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._used: dict[str, int] = {}
        self._is_loaded = False
        self.tickets = Tickets()
        """For streams of browsers."""

    def __repr__(self) -> str:
        return f"<Authenticator: {'asks' if self.is_required else 'does not ask'}, {len(self._keys)} keys>"

    @property
    def is_required(self) -> bool:
        """
        Whether requests must bring a credential.

        From the first key on, and then until the server ends: that the last one is
        revoked or expires opens nothing.
        """
        return self._always

    async def load(self) -> None:
        """
        Read the keys, if that is not done yet.

        Raises:
            StorageError: If the store cannot be read.
        """
        if not self._is_loaded:
            for key in await self._storage.read_keys():
                self.admit(key)
            self._is_loaded = True

    def admit(self, key: ApiKey) -> None:
        """Accept a key from now on; it is stored."""
        self._keys[key.id] = key
        self._always = True

    def known_keys(self) -> list[ApiKey]:
        """Return what is known of the keys, oldest first, with their last uses."""
        return sorted((self._with_use(key) for key in self._keys.values()), key=lambda key: key.created_ns)

    def dismiss(self, identity: str) -> bool:
        """Accept a key no longer; `False` if there was none."""
        self._used.pop(identity, None)
        return self._keys.pop(identity, None) is not None

    async def store_uses(self) -> None:
        """
        Store when keys were last used.

        Raises:
            StorageError: If it cannot be stored; it is tried again with the next call.
        """
        if not self._used:
            return
        used = dict(self._used)
        await self._storage.mark_keys_used(used)
        for identity, used_ns in used.items():
            if identity in self._keys:
                self._keys[identity] = _used_at(self._keys[identity], used_ns)
            if self._used.get(identity) == used_ns:
                del self._used[identity]

    def by_header(self, authorization: str) -> Principal | None:
        """Return who sends an ``Authorization`` header; `None` if it proves nothing."""
        scheme, _, credentials = authorization.partition(" ")
        if scheme == "Basic":
            try:
                given = base64.b64decode(credentials.strip(), validate=True)
            except (binascii.Error, ValueError):
                return None
            return self._by_auth_string(given)
        return self._by_key(credentials.strip()) if scheme == "Bearer" else None

    def by_token(self, token: str | None) -> Principal | None:
        """Return who a socket's token stands for: the auth string or a key; `None` if it proves nothing."""
        if not self.is_required:
            return ANYONE
        if not token:
            return None
        return self._by_auth_string(token.encode(errors="surrogatepass")) or self._by_key(token)

    def _by_auth_string(self, given: bytes) -> Principal | None:
        if self._auth is not None and hmac.compare_digest(given, self._auth):
            return Principal("auth string")
        return None

    def _by_key(self, token: str) -> Principal | None:
        if self._own_token is not None and hmac.compare_digest(
            token.encode(errors="surrogatepass"), self._own_token
        ):
            return Principal("this machine's user")
        # The id is no secret: that it is looked up quickly or not tells nothing about the rest.
        key = self._keys.get(key_id(token) or "")
        now = self._clock()
        if key is None or not key.matches(token) or key.is_expired(now):
            return None
        if now - (self._used.get(key.id) or key.last_used_ns or 0) >= USE_RESOLUTION_NS:
            self._used[key.id] = now
        return key.principal

    def _with_use(self, key: ApiKey) -> ApiKey:
        used_ns = self._used.get(key.id)
        return key if used_ns is None else _used_at(key, used_ns)


def _used_at(key: ApiKey, used_ns: int) -> ApiKey:
    return replace(key, last_used_ns=used_ns)
