"""How a request proves who sends it: headers from a key, an auth string, or the user's own."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def auth_headers(
    *,
    api_key: str | None = None,
    auth_string: str | None = None,
    custom_headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """
    Return the headers that authenticate a request, as Prefect's client sends them.

    Args:
        api_key: Sent as ``Bearer``.
        auth_string: ``user:password``, sent as ``Basic``; wins over *api_key*.
        custom_headers: Added last; an ``Authorization`` among them wins over both.
    """
    headers: dict[str, str] = {}
    if auth_string:
        headers["Authorization"] = "Basic " + base64.b64encode(auth_string.encode()).decode()
    elif api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    for name, value in (custom_headers or {}).items():
        for other in [known for known in headers if known.lower() == name.lower()]:
            del headers[other]
        headers[name] = value
    return headers
