"""Headers that prove who sends."""

from __future__ import annotations

import pytest

from runlog import _http
from runlog.credentials import auth_headers


@pytest.mark.parametrize(
    ("arguments", "headers"),
    [
        ({}, {}),
        ({"api_key": "k"}, {"Authorization": "Bearer k"}),
        ({"auth_string": "user:pw"}, {"Authorization": "Basic dXNlcjpwdw=="}),
        ({"api_key": "k", "auth_string": "user:pw"}, {"Authorization": "Basic dXNlcjpwdw=="}),
        (
            {"api_key": "k", "custom_headers": {"X-Team": "data"}},
            {"Authorization": "Bearer k", "X-Team": "data"},
        ),
        ({"api_key": "k", "custom_headers": {"authorization": "Custom"}}, {"authorization": "Custom"}),
    ],
)
def test_auth_headers(arguments, headers):
    """The auth string wins over the key, and the user's own header over both."""
    assert auth_headers(**arguments) == headers


def test_one_module_names_the_client():
    """All that runlog needs of its HTTP client is here, so that another can take its place."""
    assert [name for name in _http.__all__ if not hasattr(_http, name)] == []
