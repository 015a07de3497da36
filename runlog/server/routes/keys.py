"""API keys, for those who may give them out, and tickets for streams of browsers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route

from runlog.exceptions import QueryError
from runlog.records import format_timestamp
from runlog.server.body import json_response, read_body
from runlog.server.keys import new_key
from runlog.server.principal import principal_of
from runlog.server.state import state_of
from runlog.server.tickets import LIFETIME

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from runlog.server.keys import ApiKey

MAX_KEYS = 10_000
"""Keys at a time: each is in memory."""

MAX_KEY_BODY_BYTES = 16_384


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What key is wanted."""

    name: str
    scopes: list[str]
    expires_s: float | None = None
    """Seconds from now; `None` for never."""
    flow_run_id: str | None = None
    flow_name: str | None = None


class KeyAnswer(msgspec.Struct):
    """What is known of a key; never the key itself. Times are :rfc:`3339` text in UTC."""

    id: str
    name: str
    scopes: list[str]
    created: str
    expires: str | None
    expired: bool
    last_used: str | None
    flow_run_id: str | None
    flow_name: str | None


async def create_key(request: Request) -> Response:
    """Make a key, and tell it: the only time that it is told."""
    server = state_of(request)
    body = await read_body(request, MAX_KEY_BODY_BYTES)
    try:
        wanted = msgspec.json.decode(body, type=KeyRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise QueryError(f"not a request for a key: {error}") from error
    if len(server.authenticator.known_keys()) >= MAX_KEYS:
        raise QueryError(f"there are {MAX_KEYS} keys, and no more are possible; revoke some")
    now_ns = time.time_ns()
    expires_ns = None
    if wanted.expires_s is not None:
        if not 0 < wanted.expires_s < 1e10:
            raise QueryError("expires_s must be more than 0 and less than 10000000000 seconds")
        expires_ns = now_ns + int(wanted.expires_s * 1e9)
    token, key = new_key(
        wanted.name,
        wanted.scopes,
        expires_ns=expires_ns,
        flow_run_id=wanted.flow_run_id,
        flow_name=wanted.flow_name,
        now_ns=now_ns,
    )
    await server.storage.add_key(key)
    server.authenticator.admit(key)
    return json_response({"key": token, **msgspec.to_builtins(key_answer(key))}, 201)


async def list_keys(request: Request) -> Response:
    """Answer what keys there are."""
    return json_response({"keys": [key_answer(key) for key in state_of(request).authenticator.known_keys()]})


async def revoke_key(request: Request) -> Response:
    """Make a key worthless, now and after a restart."""
    server = state_of(request)
    identity = request.path_params["key_id"]
    known = server.authenticator.dismiss(identity)  # first: a store that fails keeps nobody in until then
    if not (await server.storage.remove_key(identity) or known):
        raise HTTPException(404, f"no key {identity[:100]!r}")
    return json_response({"revoked": identity})


async def create_ticket(request: Request) -> Response:
    """Answer a ticket that opens one stream as the sender of this request, soon."""
    ticket = state_of(request).authenticator.tickets.give(principal_of(request))
    return json_response({"ticket": ticket, "expires_s": LIFETIME}, 201)


def key_answer(key: ApiKey) -> KeyAnswer:
    """Return what is told of a key."""

    def moment(at_ns: int | None) -> str | None:
        return format_timestamp(at_ns) if at_ns is not None else None

    return KeyAnswer(
        id=key.id,
        name=key.name,
        scopes=sorted(key.permissions),
        created=format_timestamp(key.created_ns),
        expires=moment(key.expires_ns),
        expired=key.is_expired(time.time_ns()),
        last_used=moment(key.last_used_ns),
        flow_run_id=key.flow_run_id,
        flow_name=key.flow_name,
    )


ROUTES = [
    Route("/runlog/v1/admin/keys", list_keys),
    Route("/runlog/v1/admin/keys", create_key, methods=["POST"]),
    Route("/runlog/v1/admin/keys/{key_id}", revoke_key, methods=["DELETE"]),
    Route("/runlog/v1/tickets", create_ticket, methods=["POST"]),
]
