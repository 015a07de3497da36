"""Addresses as they may be shown."""

from __future__ import annotations


def without_password(url: str) -> str:
    """Return *url* without the ``user:password@`` that somebody may have written into it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
