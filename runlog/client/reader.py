"""
Read lines and runs from a runlog server, page by page.

The command line, and programs that want their own lines back, ask a `LogReader`;
it speaks ``/api/runlog/v1`` and turns every answer that is not a success into
one of `runlog.exceptions`, with the address and what to do about it.

What comes back are dictionaries as the server sends them: times as :rfc:`3339`
text in UTC, ids as text. Nothing in them is made safe to print; that is the
business of whoever prints.
"""

from __future__ import annotations

import email.utils
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from runlog._http import Client, HTTPError, InvalidURL, Timeout
from runlog.client.addresses import without_password
from runlog.credentials import auth_headers
from runlog.exceptions import (
    AmbiguousRunError,
    APIError,
    QueryError,
    RunNotFoundError,
    ServerUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from runlog._http import Response

DEFAULT_TIMEOUT = 30.0
"""Seconds until an answer must be there: a search over a large store takes its time."""

CONNECT_TIMEOUT = 3.0
"""Seconds until a connection must stand."""

PAGE_SIZE = 1000
"""Lines asked for at once: some 500 kB, a few milliseconds of the server's time."""

RUN_PAGE_SIZE = 200
"""Runs asked for at once."""

START_A_SERVER = "start one with: runlog server start"


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """What a server says about itself, and how it says it."""

    version: str
    """Its version of runlog."""
    round_trip_s: float
    """Seconds from the question to the answer."""
    clock_skew_s: float | None
    """
    How far the server's clock is ahead of ours, in seconds.

    The server tells its time in whole seconds, so anything within 1 s is
    nothing; `None` if it does not tell.
    """


class LogReader:
    """
    Read from one server.

    A context manager: leaving it closes the connections. Not thread-safe, as one
    page is asked for after the other; make one reader a thread.

    Args:
        api_url: API address, such as ``http://127.0.0.1:4210/api``.
        headers: Sent with each request, ``Authorization`` among them.
        timeout: Seconds until an answer must be there.
        client: A client to use instead of one of our own; it is not closed.
    """

    def __init__(
        self,
        api_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        client: Client | None = None,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self._headers = dict(headers or {})
        self._timeout = Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
        self._given_client = client
        self._client: Client | None = None

    @classmethod
    def from_settings(cls, api_url: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """
        Return a reader of the server that the settings name.

        Args:
            api_url: Address to read instead; by default ``PREFECT_API_URL``, else
                the server that runs on this machine with the same ``RUNLOG_HOME``.
            timeout: Seconds until an answer must be there.

        Raises:
            ServerUnreachableError: If nothing says where a server is.
            SettingsError: If a setting is wrong.
        """
        from runlog.discovery import (  # noqa: PLC0415 - beside their only use
            find_local_server,
            local_credentials,
        )
        from runlog.settings import get_current_settings  # noqa: PLC0415 - pydantic, 290 ms

        settings = get_current_settings()
        api_url = api_url or settings.api.url
        if api_url is None:
            local = find_local_server(settings.home)
            if local is None:
                raise ServerUnreachableError(
                    f"no log server: PREFECT_API_URL is not set and none runs on this machine "
                    f"with RUNLOG_HOME={settings.home}; {START_A_SERVER}"
                )
            api_url = local.url
        key, auth_string = settings.api.key, settings.api.auth_string
        headers = auth_headers(
            api_key=key.get_secret_value() if key else None,
            auth_string=auth_string.get_secret_value() if auth_string else None,
            custom_headers=settings.client.custom_headers,
        )
        headers |= local_credentials(settings.home, api_url, headers)
        return cls(api_url, headers=headers, timeout=timeout)

    def __repr__(self) -> str:
        return f"<LogReader of {self._shown_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close our own connections; the next question opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- questions ----------------------------------------------------------------------------------

    def logs(
        self,
        *,
        run: str | None = None,
        flow_run_id: str | None = None,
        task_run_id: str | None = None,
        query: str | None = None,
        timezone: str | None = None,
        level: int | str | None = None,
        search: str | None = None,
        task: str | None = None,
        logger: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        Yield lines, asking for a page when the one before is used up.

        A line that is committed between two pages is neither skipped nor
        repeated, if it belongs behind the last line that was yielded.

        Args:
            run: Id of a flow or task run. A flow run's lines include those of its
                tasks and sub-flows. Use `run` to turn a name into an id.
            flow_run_id: Lines whose own flow run this is.
            task_run_id: Lines whose own task run this is.
            query: An expression, such as ``level>=warning table=orders -retry``.
            timezone: Zone of times in *query* that name none, such as
                ``Europe/Paris``; by default UTC.
            level: Lowest level, as a number or a name.
            search: Words, ``"phrases"``, ``-without`` and ``+with``, in message
                and logger name.
            task: A task's name or a task run's name or id, exactly.
            logger: A logger's name; ``etl.*`` takes its children as well.
            since: Earliest time, aware.
            until: Latest time, aware.
            order: Oldest first (``asc``) or newest first.
            limit: Most lines to yield; `None` for all.

        Raises:
            QueryError: If the server cannot make sense of a filter. Of a wrong
                expression it has the ``position``.
            APIError: If the server cannot be reached, or answers with an error.
        """
        asked = {
            "run": run,
            "flow_run_id": flow_run_id,
            "task_run_id": task_run_id,
            "query": query,
            "timezone": timezone if query is not None else None,
            "level": level,
            "search": search,
            "task": task,
            "logger": logger,
            "since": _rfc3339(since),
            "until": _rfc3339(until),
            "order": order,
        }
        return self._pages("/logs", "logs", asked, PAGE_SIZE, limit)

    def runs(
        self,
        *,
        kind: Literal["flow", "task"] | None = None,
        state: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        Yield runs, newest first, asking for a page when the one before is used up.

        Args:
            kind: Flow runs or task runs; `None` for both.
            state: ``RUNNING``, ``COMPLETED``, ``FAILED``, ``CANCELLED`` or
                ``UNKNOWN`` (lines came, but neither start nor end).
            name: Part of the run's name.
            parent: Id of the run in which they were opened.
            limit: Most runs to yield; `None` for all.

        Raises:
            APIError: As `logs`.
        """
        query = {"kind": kind, "state": state, "name": name, "parent": parent}
        return self._pages("/runs", "runs", query, RUN_PAGE_SIZE, limit)

    def run(self, ref: str) -> dict[str, Any]:
        """
        Return one run with the tree of runs below it, in ``children``.

        Args:
            ref: A run's id, the beginning of one (at least 4 characters), a run's
                name, ``latest``, or ``latest~N`` for the flow run N before it.

        Raises:
            RunNotFoundError: If no run is meant.
            AmbiguousRunError: If several are; it names them.
            APIError: As `logs`.
        """
        if "/" in ref or ref in {"", ".", ".."}:
            # Such a name has no place in a path: proxies and servers decode %2F, and drop dots.
            ref = self._id_of_name(ref)
        found = self._get(f"/runs/{urllib.parse.quote(ref, safe='')}", looked_for=ref)
        if not isinstance(found, dict):
            raise self._not_ours("/runs")
        return found

    def receipt(self, run_id: str) -> dict[str, Any]:
        """
        Return whether all lines of a run are stored, and what is known of each producer of them.

        Among its keys are ``complete``, ``reasons`` (why it is not), and
        ``producers``, each with the ranges of what it dropped and what is missing.

        Args:
            run_id: Id of a flow or task run, as `run` returns it.

        Raises:
            RunNotFoundError: If there is no such run.
            APIError: As `logs`.
        """
        found = self._get(f"/runs/{urllib.parse.quote(run_id, safe='')}/receipt", looked_for=run_id)
        if not isinstance(found, dict):
            raise self._not_ours("/runs/.../receipt")
        return found

    def status(self) -> dict[str, Any]:
        """
        Return the server's version, schema version, counts of runs and lines, and where its database is.

        Raises:
            APIError: As `logs`.
        """
        found = self._get("/status")
        if not isinstance(found, dict):
            raise self._not_ours("/status")
        return found

    def health(self) -> ServerHealth:
        """
        Ask the server who it is, and how its clock stands to ours.

        Raises:
            APIError: If it cannot be reached, wants other credentials, or is no
                runlog server.
        """
        asked_at, asked = time.time(), time.perf_counter()
        response = self._request("/runlog/v1/status", {})
        round_trip = time.perf_counter() - asked
        facts = self._decode(response, "/status")
        if not isinstance(facts, dict) or "version" not in facts:
            raise self._not_ours("/status")
        skew = None
        try:
            told = email.utils.parsedate_to_datetime(response.headers["date"]).timestamp()
            # The header is cut to the second: half of one is its error on average.
            skew = told + 0.5 - (asked_at + round_trip / 2)
        except (KeyError, ValueError):
            pass
        return ServerHealth(str(facts["version"]), round_trip, skew)

    # --- one request --------------------------------------------------------------------------------

    def _id_of_name(self, name: str) -> str:
        found = [run for run in self.runs(name=name) if run.get("name") == name] if name else []
        if not found:
            raise RunNotFoundError(f"no run is called {name!r}", status=404)
        if len(found) > 1:
            raise _ambiguous(name, found)
        return str(found[0]["id"])

    def _pages(
        self, path: str, key: str, query: Mapping[str, Any], page_size: int, limit: int | None
    ) -> Iterator[dict[str, Any]]:
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            size = page_size if left is None else min(page_size, left)
            page = self._get(path, {**query, "limit": size, "cursor": cursor})
            try:
                items, cursor = page[key], page["next"]
            except (KeyError, TypeError):
                raise self._not_ours(path) from None
            yield from items
            if cursor is None:
                return
            if left is not None:
                left -= len(items)

    def _get(
        self, path: str, query: Mapping[str, Any] | None = None, *, looked_for: str | None = None
    ) -> Any:
        response = self._request(f"/runlog/v1{path}", query or {})
        return self._decode(response, path, looked_for=looked_for)

    def _request(self, path: str, query: Mapping[str, Any]) -> Response:
        try:
            return self._open().get(
                self.api_url + path,
                params={name: value for name, value in query.items() if value is not None},
                headers=self._headers,
                timeout=self._timeout,
            )
        except (InvalidURL, UnicodeError, ValueError) as error:
            raise ServerUnreachableError(
                f"{self._shown_url!r} is no address of a log server ({error}); "
                "expected something like http://127.0.0.1:4210/api"
            ) from error
        except (HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachableError(
                f"the log server at {self._shown_url} does not answer ({reason}); {START_A_SERVER}, "
                "or set PREFECT_API_URL to one that runs"
            ) from error

    def _open(self) -> Client:
        if self._given_client is not None:
            return self._given_client
        if self._client is None:
            # Redirects are not followed: the key must not go to a host that nobody named.
            self._client = Client(follow_redirects=False)
        return self._client

    def _decode(self, response: Response, path: str, *, looked_for: str | None = None) -> Any:
        status = response.status_code
        try:
            facts = msgspec.json.decode(response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            facts = None
        if status == 200:
            if facts is None:
                raise self._not_ours(path)
            return facts
        detail = ""
        if isinstance(facts, dict):
            detail = str(facts.get("detail") or facts.get("exception_message") or "")[:500]
        if status in {401, 403}:
            raise APIError(
                f"the log server at {self._shown_url} refuses the credentials (HTTP {status} {detail}); "
                "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to what it expects",
                status=status,
            )
        if status == 404 and looked_for is not None and isinstance(facts, dict) and detail != "Not Found":
            raise RunNotFoundError(detail or f"no run {looked_for!r}", status=status)
        if status == 404 or 300 <= status < 400:
            raise self._not_ours(path, status)
        if status == 409 and looked_for is not None and isinstance(facts, dict):
            raise _ambiguous(looked_for, facts.get("candidates") or [])
        if status in {400, 422}:
            place = facts.get("position") if isinstance(facts, dict) else None
            raise QueryError(
                detail or f"the log server cannot make sense of the query (HTTP {status})",
                position=place if type(place) is int and place >= 0 else None,
            )
        raise APIError(
            f"the log server at {self._shown_url} answered GET {path} with HTTP {status} {detail}".rstrip(),
            status=status,
        )

    def _not_ours(self, path: str, status: int | None = None) -> APIError:
        if status == 404 and self._is_prefect():
            return APIError(
                f"{self._shown_url} is a Prefect server: runlog sends lines to it and follows them, but it "
                "answers no queries of runlog's and keeps no receipts; use: prefect flow-run logs",
                status=status,
            )
        got = "something else" if status is None else f"HTTP {status}"
        return APIError(
            f"{self._shown_url} is not the API of a runlog server: expected JSON from /runlog/v1{path}, "
            f"got {got}; its address usually ends in /api",
            status=status,
        )

    def _is_prefect(self) -> bool:
        try:
            answer = self._request("/admin/version", {})
            return answer.status_code == 200 and type(msgspec.json.decode(answer.content)) is str
        except (APIError, msgspec.MsgspecError, UnicodeDecodeError):
            return False

    @property
    def _shown_url(self) -> str:
        """The address without a password that somebody may have written into it."""
        return without_password(self.api_url)


def _rfc3339(moment: datetime | None) -> str | None:
    """Text of an aware time; a naive one would be read in the server's zone, which is nobody's."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise QueryError(f"expected a time with a zone, got {moment.isoformat()}")
    return moment.isoformat()


def _ambiguous(ref: str, candidates: list[Any]) -> AmbiguousRunError:
    found = [run for run in candidates if isinstance(run, dict)]
    shown = ", ".join(f"{run.get('id')} ({run.get('name')}, {run.get('started')})" for run in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return AmbiguousRunError(
        f"{ref!r} may mean any of several runs: {shown}{more}; give more of the id",
        candidates=[str(run.get("id")) for run in found],
        status=409,
    )
