r"""
Decide what in a log line is a secret, and put ``***`` in its place.

`runlog.records` and the formatters pass every text and every extra through
here before it is queued, written or printed. Four things count as secrets:

1. **Registered values** (`register_secret`), wherever they occur, also in the
   forms that ``repr``, JSON, URLs and Basic authentication give them. Loading
   the settings registers its own keys.
2. **Well-known token formats**: GitHub, GitLab, AWS key ids, Slack, OpenAI and
   Anthropic, Google, Stripe, Prefect, runlog, JSON web tokens, PEM private keys,
   ``Bearer`` and ``Basic`` credentials, passwords in URLs.
3. **Values of sensitive names in text**: ``password=...``, ``"api_key": "..."``,
   ``--token ...``. Which names are sensitive, `is_sensitive_key` decides. What
   follows a colon in prose (``invalid token: expected ')'``) is left alone
   unless it looks random; see `_pair_replacement`.
4. **Values of sensitive keys in extras** (`redact_value`).

Redaction is a safety net, not a proof: a secret that is split, encoded in other
ways, or shorter than `MIN_SECRET_CHARS` is not seen. It never adds a secret
and is idempotent.

All functions are thread-safe: what is registered is replaced as a whole, never
changed in place, so readers take no lock.
"""

from __future__ import annotations

import re
import threading
from typing import Any, Final

MASK: Final = "***"
"""What stands in place of a secret."""

MIN_SECRET_CHARS = 4
"""Shorter values are not registered: masking ``a`` everywhere would hide the log, not the secret."""

MAX_DEPTH = 16
"""Containers nested deeper than this are masked as a whole by `redact_value`."""

_CACHED_NAMES = 4096
"""Names remembered by `is_sensitive_key`; a program that invents more starts over, in bounded memory."""

# --- registered values --------------------------------------------------------------------------------

_registering = threading.Lock()
_values: tuple[str, ...] = ()
"""What to look for, longest first, so that a value inside another does not tear it apart."""


def register_secret(value: str) -> None:
    """
    Mask a value wherever it occurs from now on.

    Registering a value twice is harmless; there is no way to take one back.

    Args:
        value: The secret itself. Shorter than `MIN_SECRET_CHARS`: ignored.
    """
    global _values  # noqa: PLW0603 - replaced as a whole, so that readers need no lock
    if len(value) < MIN_SECRET_CHARS or not value.strip("*"):
        return
    with _registering:
        _values = tuple(sorted({*_values, *_forms(value)}, key=lambda form: (-len(form), form)))


def _forms(value: str) -> set[str]:
    """The ways in which a value gets into a text."""
    import base64  # noqa: PLC0415 - needed once a secret, not by `import runlog`
    import json  # noqa: PLC0415
    from urllib.parse import quote  # noqa: PLC0415

    data = value.encode("utf-8", "backslashreplace")
    forms = {
        value,
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(data, safe=""),
        base64.b64encode(data).decode(),
    }
    return {form for form in forms if len(form) >= MIN_SECRET_CHARS}


def registered_values() -> tuple[str, ...]:
    """Return what is masked wherever it occurs; another object once something was registered."""
    return _values


# --- sensitive names ----------------------------------------------------------------------------------

_SECRET_ENDINGS = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "secrets",
    "token",
    "credential",
    "credentials",
    "authorization",
    "cookie",
    "apikey",
    "secretkey",
    "privatekey",
    "pwd",
)
"""A name is sensitive if its last word ends so: ``db_password``, ``PGPASSWORD``, ``clientSecret``."""

_SECRET_LAST_TWO = frozenset(
    [f"{word}_key" for word in (
        "access", "account", "api", "auth", "client", "decryption", "encryption", "hmac", "master", "private",
        "secret", "service", "shared", "signing", "ssh", "storage",
    )]
    + [f"{word}_pass" for word in ("admin", "db", "ftp", "mail", "proxy", "redis", "root", "smtp", "user")]
    + ["auth_string", "basic_auth", "http_auth"]
)  # fmt: skip
"""Or if its last two words are these: a ``primary_key`` is none."""

_SECRET_NAMES = frozenset({"auth"})
"""Or if it is one of these as a whole."""

_QUESTIONS = frozenset({"has", "is", "needs", "no", "requires", "use", "uses"})
"""A name that begins so asks whether there is a secret: ``has_password``."""

_WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_STEMS = ("pass", "pwd", "secret", "token", "key", "credential", "auth", "cookie")
"""Each sensitive name contains one of these: a text without them needs no closer look."""


class _Names:
    """The sensitive names that were registered, and what follows from them; replaced, never changed."""

    def __init__(self, registered: frozenset[str]) -> None:
        self.registered = registered
        self.cache: dict[str, bool] = {}
        own = {name.rpartition("_")[2] for name in registered}
        self.stems = (*_STEMS, *sorted(word for word in own if not any(stem in word for stem in _STEMS)))
        endings = {
            *_SECRET_ENDINGS, "key", "pass", "auth", "auth_string", "auth-string", "authstring", *own,
        }  # fmt: skip
        alternatives = "|".join(re.escape(ending) for ending in sorted(endings, key=lambda e: (-len(e), e)))
        # Runs over the lower-cased text: a pattern that ignores case takes ten times as long to search.
        self.pair = re.compile(
            rf"(?:{alternatives})[0-9]{{0,3}}"
            r"(?P<separator>(?P<quote>\\*[\"'])?"
            r"(?:[ \t]{0,3}(?::(?!:)|=(?!=))[ \t]{0,3}|[ \t]{1,3}|,[ \t]{0,3}))"
        )

    def decide(self, name: str) -> bool:
        words = [word for word in _WORD_BREAK.sub("_", name).lower().split("_") if word]
        while words and words[-1].isdigit():
            words.pop()
        if not words:
            return False
        words[-1] = words[-1].rstrip("0123456789")
        if self.registered:
            joined = "_" + "_".join(words)
            if any(joined.endswith("_" + own) for own in self.registered):
                return True
        if words[0] in _QUESTIONS:
            return False
        return (
            words[-1].endswith(_SECRET_ENDINGS)
            or "_".join(words[-2:]) in _SECRET_LAST_TWO
            or "_".join(words) in _SECRET_NAMES
        )


_names = _Names(frozenset())


def sensitive_names() -> object:
    """Return what stands for the sensitive names; another object once one was registered."""
    return _names


def register_sensitive_key(name: str) -> None:
    """
    Treat a name, and every name that ends with it, as sensitive from now on.

    Args:
        name: Such as ``ssn``, which covers ``SSN``, ``user_ssn`` and ``userSsn``
            as well. A name without a letter or digit is ignored.
    """
    global _names  # noqa: PLW0603 - replaced as a whole, so that readers need no lock
    words = [word for word in _WORD_BREAK.sub("_", name).lower().split("_") if word]
    if not words:
        return
    with _registering:
        _names = _Names(_names.registered | {"_".join(words)})


def is_sensitive_key(name: str) -> bool:
    """
    Say whether the values under a name are secrets.

    Case and the way words are joined do not matter (``api_key``, ``X-Api-Key``,
    ``apiKey``). The last words decide: ``access_token`` and ``password2`` are
    sensitive, ``token_count``, ``max_tokens``, ``password_length``,
    ``has_password`` and ``primary_key`` are not.
    """
    names = _names
    known = names.cache.get(name)
    if known is None:
        if len(names.cache) >= _CACHED_NAMES:
            names.cache.clear()
        known = names.cache[name] = names.decide(name)
    return known


# --- text ---------------------------------------------------------------------------------------------

_TOKENS = re.compile(
    r"""
    -----BEGIN[A-Z0-9 ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----
        (?:(?!-----).)*+(?:-----END[A-Z0-9 ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----)?
  | (?<![A-Za-z0-9_-])(?:
        gh[pousr]_[A-Za-z0-9_]{20,}
      | github_pat_[A-Za-z0-9_]{20,}
      | [sr]k_(?:live|test)_[A-Za-z0-9]{10,}
      | pn[ub]_[A-Za-z0-9]{30,}
      | rl_[0-9a-f]{8}_[A-Za-z0-9_-]{40,}
      | glpat-[A-Za-z0-9_.-]{20,}
      | xox[abeoprs]-[A-Za-z0-9-]{10,}
      | sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}
      | A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])
      | AIza[A-Za-z0-9_-]{30,}
      | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?
    )
    """,
    re.VERBOSE | re.DOTALL,
)

_URL_PASSWORD = re.compile(r"(://[^\s/?#:@\"']{0,256}:)(?!\*\*\*@)[^\s/?#\"']+(?=@)")
_SCHEME_CREDENTIALS = re.compile(
    r"\b([Bb]earer)([ \t]+)(?![\w.~+/-]{0,11}(?![\w.~+/=-]))(?=[A-Za-z_.~+/-]*[0-9])[\w.~+/-]+=*"
    r"|\b([Bb]asic)([ \t]+)(?=[A-Za-z+/]*[0-9=])[A-Za-z0-9+/]{8,}={0,2}(?![\w+/])"
)


def redact_text(text: str) -> str:
    """
    Return *text* with ``***`` in place of secrets; the same object if there is none.

    Args:
        text: Any text; a traceback or a whole message.
    """
    for value in _values:
        if value in text:
            text = text.replace(value, MASK)
    # A few substring checks, each behind a rarer or shorter one, are four times faster than any one pattern.
    if (
        (
            "_" in text
            and (
                "gh" in text
                or "github_pat_" in text
                or "k_live_" in text
                or "k_test_" in text
                or "pnu_" in text
                or "pnb_" in text
                or "rl_" in text
            )
        )
        or ("-" in text and ("sk-" in text or "xox" in text or "glpat-" in text or "PRIVATE KEY" in text))
        or ("A" in text and ("AKIA" in text or "ASIA" in text or "AIza" in text))
        or "eyJ" in text
    ):
        text = _TOKENS.sub(MASK, text)
    if "=" in text or ":" in text or ("-" in text and "--" in text):
        if "@" in text and "://" in text:
            text = _URL_PASSWORD.sub(rf"\1{MASK}", text)
        lowered = text.lower()
        for stem in _names.stems:
            if stem in lowered:
                text = _redact_pairs(text)
                break
    if "earer" in text or "asic " in text:
        text = _SCHEME_CREDENTIALS.sub(rf"\1\3\2\4{MASK}", text)
    return text


_VALUE = re.compile(
    r"""
    b?(?P<quote>\\*["'])(?P<quoted>(?:(?!(?P=quote))(?:\\.|[^\n]))*+)
  | (?P<scheme>(?:[Bb]earer|[Bb]asic|[Tt]oken|[Dd]igest|[Nn]egotiate)[ \t]+)?
    (?P<bare>(?:[^\s"'\\`&,;)\]}>]|[,;)\]}>](?![\s"'`,;)\]}>]|$|[\w.-]{1,64}\s?[=:]))++)
    """,
    re.VERBOSE,
)
"""What follows a name: a quoted text, quotes possibly escaped, or all up to what cannot belong to it."""

_HEADERS = ("cookie", "authorization")
_HEADER_VALUE = re.compile(
    r"""b?(?P<quote>\\*["'])(?P<quoted>(?:(?!(?P=quote))(?:\\.|[^\n]))*+)"""
    r"""|(?P<scheme>\w+[ \t]+)?(?P<bare>[^\r\n"'\\]++)"""
)
"""A header's value has several parts: ``Cookie: a=b; c=d``."""

_LITERALS = frozenset({"", "none", "null", "true", "false", "str", "bytes", "int", "bool", MASK})
"""Not secrets: constants, and types in a line of source code that a traceback quotes."""

_LOOKS_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w.~+/=-]{12,}")

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_MAX_NAME_CHARS = 64


def _redact_pairs(text: str) -> str:
    """Mask the values of sensitive names in *text*."""
    names = _names
    # Only letters of ASCII, so that positions stay what they are: "İ".lower() has two characters.
    lowered = text.lower() if text.isascii() else _lower_ascii(text)
    parts: list[str] = []
    done = 0
    for match in names.pair.finditer(lowered):
        start = match.start()
        if start < done:
            continue
        while (
            start > done and text[start - 1] in _NAME_CHARACTERS and match.start() - start < _MAX_NAME_CHARS
        ):
            start -= 1
        name = text[start : match.start("separator")]
        if not is_sensitive_key(name):
            continue
        is_header = ":" in match["separator"] and name.lower().endswith(_HEADERS)
        value = (_HEADER_VALUE if is_header else _VALUE).match(text, match.end())
        if value is None:
            continue
        masked = _pair_replacement(name, match["separator"], value)
        if masked is not None:
            parts += [text[done : match.end()], masked]
            done = value.end()
    if not parts:
        return text
    return "".join(parts) + text[done:]


def _pair_replacement(name: str, separator: str, value: re.Match[str]) -> str | None:
    """
    Return what stands in place of a sensitive name's value; `None` to leave it.

    ``name=value``, ``"name": value`` and ``--name value`` are always masked.
    In ``name: value`` without quotes a lone word such as ``token`` or
    ``secret`` may be prose, so that its value has to look random: at least 12
    characters with letters and digits. After ``password`` or a compound such as
    ``api_key`` it is masked, at the cost of a word of prose.
    """
    bare = value["bare"]
    found = value["quoted"] if bare is None else bare
    if found.lower() in _LITERALS or found.startswith(("{", "[", "(", MASK)):
        return None
    quoted_name = separator[0] in "\\\"'"
    if ":" not in separator and "=" not in separator:
        # As in a command line: `--token abc`, `--token "abc"`, or in its parts: `'--token', 'abc'`.
        is_part = "," in separator
        if (
            not name.startswith("--")
            or found.startswith("--")
            or is_part != quoted_name
            or (is_part and bare)
        ):
            return None
    elif (
        ":" in separator
        and not quoted_name
        and name.lower() in _PROSE_WORDS
        and not _LOOKS_RANDOM.fullmatch(found.rstrip(".,;"))
    ):
        return None
    if bare is None:
        return f"{value.group()[: value.start('quoted') - value.start()]}{MASK}"
    if quoted_name and "\\" not in separator:
        return f"{separator[0]}{MASK}{separator[0]}"  # was a number: what was JSON stays JSON
    return f"{value['scheme'] or ''}{MASK}"


_PROSE_WORDS = frozenset({"token", "secret", "secrets", "credential", "credentials", "auth"})

_ASCII_UPPER = re.compile(r"[A-Z]+")


def _lower_ascii(text: str) -> str:
    return _ASCII_UPPER.sub(lambda match: match.group().lower(), text)


# --- values -------------------------------------------------------------------------------------------


def redact_value(value: Any) -> Any:
    """
    Return *value* with secrets masked, in texts and under sensitive keys.

    Looks into plain ``dict``, ``list`` and ``tuple``; everything else is
    returned as it is, so that values should be made plain before
    (`runlog.rendering.normalise`). Never raises; containers deeper than
    `MAX_DEPTH`, and so circular ones, are masked. A `None` under a sensitive key
    stays: that a secret is missing is what one looks for.

    Returns:
        The same object if nothing had to be masked, else a copy.
    """
    return _redact(value, MAX_DEPTH)


def _redact(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return redact_text(value)
    if kind is dict:
        if not depth:
            return MASK
        changed = {}
        for key, item in value.items():
            sensitive = type(key) is str and item is not None and is_sensitive_key(key)
            new = MASK if sensitive else _redact(item, depth - 1)
            if new is not item:
                changed[key] = new
        return value | changed if changed else value
    if kind is list or kind is tuple:
        if not depth:
            return MASK
        items = [_redact(item, depth - 1) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return kind(items)
    return value
