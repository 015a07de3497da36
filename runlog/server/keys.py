"""
API keys: what they look like, and what is kept of them.

A key is shown once, when it is made. The store keeps its digest, from which it
cannot be had again, and its first characters, by which people recognise it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runlog.exceptions import QueryError
from runlog.server.principal import PERMISSIONS, Permission, Principal

if TYPE_CHECKING:
    from collections.abc import Collection

KEY_BYTES = 32
"""256 bits, drawn by the operating system."""

MAX_NAME_LENGTH = 200

_KEY = re.compile(r"(rl_[0-9a-f]{8})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. Times are in nanoseconds since the epoch."""

    id: str
    """The first characters of the key: ``rl_`` and eight digits. No secret."""
    name: str
    """What it is for, in its owner's words."""
    digest: bytes = field(repr=False)
    permissions: frozenset[Permission]
    created_ns: int
    expires_ns: int | None = None
    """`None`: never."""
    last_used_ns: int | None = None
    """To the minute or so; `None`: not yet."""
    flow_run_id: str | None = None
    """See `Principal`."""
    flow_name: str | None = None

    def is_expired(self, now_ns: int) -> bool:
        """Return whether its time is over."""
        return self.expires_ns is not None and now_ns >= self.expires_ns

    def matches(self, token: str) -> bool:
        """Return whether a token is this key, in a time that does not depend on where they differ."""
        return hmac.compare_digest(digest_of(token), self.digest)

    @property
    def principal(self) -> Principal:
        """Who has it."""
        return Principal(self.id, self.permissions, self.flow_run_id, self.flow_name)


def digest_of(token: str) -> bytes:
    """
    Return what is stored of a key.

    One round of SHA-256: slow hashes such as Argon2 are for what people make up
    and others can guess. Nobody tries out 2^256 keys, however fast, and a slow
    hash for each request would be a way to stop the server.
    """
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def key_id(token: str) -> str | None:
    """Return the id in a token; `None` if it has not the form of a key."""
    found = _KEY.fullmatch(token)
    return found[1] if found else None


def new_key(
    name: str,
    permissions: Collection[str],
    *,
    expires_ns: int | None = None,
    flow_run_id: str | None = None,
    flow_name: str | None = None,
    now_ns: int | None = None,
) -> tuple[str, ApiKey]:
    """
    Make a key.

    Args:
        name: What it is for; at most `MAX_NAME_LENGTH` characters.
        permissions: At least one of ``ingest``, ``read`` and ``admin``.
        expires_ns: In the future; `None` for never.
        flow_run_id: See `Principal`; not together with ``admin``.
        flow_name: The same.
        now_ns: The time; by default now.

    Returns:
        The key itself, to be shown once, and what is kept of it.

    Raises:
        QueryError: If an argument is not what it should be.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    granted = frozenset(one for one in PERMISSIONS if one in permissions)
    if not granted or len(granted) != len(set(permissions)):
        raise QueryError(f"scopes must be some of {', '.join(PERMISSIONS)}, got {sorted(permissions)!r:.100}")
    if not name.strip() or len(name) > MAX_NAME_LENGTH:
        raise QueryError(f"a key's name must have 1 to {MAX_NAME_LENGTH} characters, got {len(name)}")
    if expires_ns is not None and not now_ns < expires_ns < 2**63:
        raise QueryError("a key must expire in the future")
    if "admin" in granted and (flow_run_id is not None or flow_name is not None):
        raise QueryError("a key with scope admin sees everything and cannot be bound to a run or a flow")
    identity = f"rl_{secrets.token_hex(4)}"
    token = f"{identity}_{secrets.token_urlsafe(KEY_BYTES)}"
    return token, ApiKey(
        id=identity,
        name=name,
        digest=digest_of(token),
        permissions=granted,
        created_ns=now_ns,
        expires_ns=expires_ns,
        flow_run_id=flow_run_id,
        flow_name=flow_name,
    )
