r"""
Prefect's text search: which messages match a few words. Pure.

Words are separated by spaces and looked for without regard to case, as
substrings of the message and the logger's name. One of the plain words must
occur (``time out`` finds either); ``-word`` and ``!word`` must not occur,
``+word`` must. Double quotes make a phrase, in which ``\"`` and ``\\`` stand
for the character itself; a quote left open closes at the end. A prefix before
a space is nothing, and so is an empty query: it matches everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_QUERY_LENGTH = 200
"""Characters in a query, as in Prefect."""

_ESCAPED = re.compile(r"\\([\"\\])")


@dataclass(frozen=True, slots=True)
class TextSearch:
    """Words to look for, all in lower case. Make one with `parse_text_search`."""

    include: tuple[str, ...] = ()
    """One of these must occur, if there are any."""
    exclude: tuple[str, ...] = ()
    """None of these may occur."""
    require: tuple[str, ...] = ()
    """All of these must occur."""

    def matches(self, message: str, name: str) -> bool:
        """
        Return whether a line matches.

        Args:
            message: The line's message.
            name: The name of its logger.
        """
        text = f"{message} {name}".lower()
        if self.include and not any(term in text for term in self.include):
            return False
        if any(term in text for term in self.exclude):
            return False
        return all(term in text for term in self.require)


@lru_cache(maxsize=128)
def parse_text_search(query: str) -> TextSearch:
    """Return what a query asks for; every text is a valid query. Cached: storages call it for each row."""
    found: dict[str, list[str]] = {"": [], "-": [], "+": []}
    position, end = 0, len(query)
    while position < end:
        if query[position].isspace():
            position += 1
            continue
        prefix = ""
        if query[position] in "-!+":
            prefix = "+" if query[position] == "+" else "-"
            position += 1
            if position == end or query[position].isspace():
                continue
        if query[position] == '"':
            term, position = _phrase(query, position + 1)
        else:
            start = position
            while position < end and not query[position].isspace() and query[position] != '"':
                position += 1
            term = query[start:position]
        if term.strip():
            found[prefix].append(term.lower())
    return TextSearch(tuple(found[""]), tuple(found["-"]), tuple(found["+"]))


def _phrase(query: str, start: int) -> tuple[str, int]:
    """Return the phrase that begins at *start*, and where the rest of the query begins."""
    position, end = start, len(query)
    while position < end and query[position] != '"':
        position += 2 if query[position] == "\\" and position + 1 < end else 1
    return _ESCAPED.sub(r"\1", query[start:position]), position + 1
