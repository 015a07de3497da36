"""Between API keys and the rows of their table."""

from __future__ import annotations

from typing import Any

from runlog.server.keys import ApiKey

_COLUMNS = "id, name, digest, permissions, created_ns, expires_ns, last_used_ns, flow_run_id, flow_name"
"""In the order of `ApiKey`'s fields."""

SELECT_KEYS = f"SELECT {_COLUMNS} FROM api_keys"  # noqa: S608 - constants

UPSERT_KEY = f"INSERT OR REPLACE INTO api_keys ({_COLUMNS}) VALUES ({', '.join('?' * 9)})"  # noqa: S608 - constants


def key_row(key: ApiKey) -> tuple[Any, ...]:
    """Return the row of a key, for `UPSERT_KEY`."""
    return (
        key.id,
        key.name,
        key.digest,
        " ".join(sorted(key.permissions)),
        key.created_ns,
        key.expires_ns,
        key.last_used_ns,
        key.flow_run_id,
        key.flow_name,
    )


def key_of_row(row: tuple[Any, ...]) -> ApiKey:
    """Return the key in a row of `SELECT_KEYS`."""
    identity, name, digest, permissions, *rest = row
    return ApiKey(identity, name, digest, frozenset(permissions.split()), *rest)
