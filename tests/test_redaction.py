"""What is a secret, and what is not."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import redaction
from runlog.redaction import (
    is_sensitive_key,
    redact_text,
    redact_value,
    register_secret,
    register_sensitive_key,
)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(redaction, "_values", ())
    monkeypatch.setattr(redaction, "_names", redaction._Names(frozenset()))


# --- registered values ---


def test_a_registered_value_is_masked_wherever_it_occurs():
    """A registered value is masked in the middle of words and several times."""
    register_secret("hunter2")
    assert redact_text("a hunter2, xhunter2x") == "a ***, x***x"


def test_the_longest_value_wins():
    """A value inside another does not tear it apart, in whichever order they came."""
    register_secret("horse")
    register_secret("correct horse battery")
    register_secret("correct")
    assert redact_text("correct horse battery staple, horse") == "*** staple, ***"


@pytest.mark.parametrize("value", ["", "abc", "****", "*****"])
def test_values_that_would_hide_the_log(value):
    """Values below 4 characters, and stars, are not registered."""
    register_secret(value)
    assert redact_text(f"abc {value} cab") == f"abc {value} cab"


def test_other_forms_of_a_value():
    """A value is found as `repr`, JSON, an URL and Basic authentication write it."""
    value = 'bob:p"ss\\wörd/1\n'
    register_secret(value)
    for text in (
        value,
        repr(value),
        json.dumps({"x": value}),
        json.dumps({"x": value}, ensure_ascii=False),
        "https://x/?q=bob%3Ap%22ss%5Cw%C3%B6rd%2F1%0A",
        "Basic " + base64.b64encode(value.encode()).decode(),
    ):
        masked = redact_text(text)
        assert "***" in masked
        assert "rd" not in masked


def test_a_lone_surrogate_can_be_a_secret():
    """Registering text that has no UTF-8 form does not fail."""
    register_secret("pass\udcffword")
    assert redact_text("x pass\udcffword") == "x ***"


def test_registration_from_many_threads():
    """No value is lost when threads register at once, while others redact."""
    values = [f"secret-value-{i:03d}" for i in range(64)]
    threads = [
        threading.Thread(target=lambda part: [register_secret(v) for v in part], args=(values[i::8],))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
        redact_text("secret-value-001")
    for thread in threads:
        thread.join()
    assert redact_text(" ".join(values)) == " ".join(["***"] * 64)


# --- token formats ---

TOKENS = [
    "ghp_" + "a1B2" * 9,
    "gho_" + "a1B2" * 9,
    "ghs_" + "a1B2" * 9,
    "github_pat_" + "11ABC" * 5 + "_" + "x9" * 20,
    "glpat-" + "x1-_" * 5,
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdefGHIJ",
    "xoxp-123456789012-abcdefGHIJ",
    "sk-" + "a1" * 24,
    "sk-ant-api03-" + "A_b-1" * 10,
    "sk-proj-" + "A_b-1" * 10,
    "AIza" + "Sy-_1" * 7,
    "sk_live_" + "4eC39HqLyjWDarjtT1zd",
    "rk_test_" + "4eC39HqLyjWDarjtT1zd",
    "pnu_" + "a1B2" * 9,
    "rl_0123abcd_" + "a-1_B" * 8 + "xyz",
    "pnb_" + "a1B2" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEow==\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nabc\n-----END PGP PRIVATE KEY BLOCK-----",
    r"-----BEGIN PRIVATE KEY-----\nMIIEow==\n-----END PRIVATE KEY-----",
]


@pytest.mark.parametrize("token", TOKENS)
def test_well_known_tokens(token):
    """A token of a well-known format is masked where it stands alone, quoted, or in an URL."""
    assert redact_text(token) == "***"
    assert redact_text(f"got '{token}' from") == "got '***' from"
    assert redact_text(f"https://x.org/{token}?a=1") == "https://x.org/***?a=1"


@pytest.mark.parametrize(
    "text",
    [
        "task-runner-extract-something-2-quite-long",
        "risk-assessment-of-disk-0123456789-volumes",
        "the ghp_ prefix, xox, sk-learn, AKIA and AIza, eyJ",
        "sk-learn-pipelines-with-many-steps",
        "flow_run_id 0b5a1c7e-8d7e-4a5b-9d3c-1f2e3d4c5b6a",
        "MAKIAIOSFODNN7EXAMPLES",
        "a PRIVATE KEY-less design",
    ],
)
def test_what_resembles_a_token(text):
    """Ordinary words that begin like a token, or contain its prefix, are left alone."""
    assert redact_text(text) is text


def test_an_unfinished_private_key():
    """A private key that was cut is masked to the end of the text."""
    assert redact_text("key -----BEGIN PRIVATE KEY-----\nMIIEow") == "key ***"


# --- names in text ---


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=hunter2 user=bob", "password=*** user=bob"),
        ("DB_PASSWORD = hunter2", "DB_PASSWORD = ***"),
        ("connect(password='hun\"ter', x=1)", "connect(password='***', x=1)"),
        ("connect(password=b'hunter', x=1)", "connect(password=b'***', x=1)"),
        (r'{"password": "hun\"ter2", "n": 1}', '{"password": "***", "n": 1}'),
        (r"{\"password\": \"hunter2\", \"n\": 1}", r"{\"password\": \"***\", \"n\": 1}"),
        ('{"api_key": 12345}', '{"api_key": "***"}'),
        (r"{\"pin_token\": 12345}", r"{\"pin_token\": ***}"),
        ("{'apiKey': 'abc'}", "{'apiKey': '***'}"),
        ("password: hunter2", "password: ***"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("Server=x;Password=ab,c;Database=y", "Server=x;Password=***;Database=y"),
        ("https://x/?access_token=abc&x=1", "https://x/?access_token=***&x=1"),
        ("aws_secret_access_key=wJalrXUt/K7", "aws_secret_access_key=***"),
        ("f(token=abc).run()", "f(token=***)"),
        ("f(token=abc)", "f(token=***)"),
        ("token: abc123def456ghi", "token: ***"),
        ("Schlüssel: password=hunter2 für İ", "Schlüssel: password=*** für İ"),
        ("curl --password hunter2 -v", "curl --password *** -v"),
        ('curl --token "abc" -v', 'curl --token "***" -v'),
        ("curl --token=abc -v", "curl --token=*** -v"),
        ("['curl', '--password', 'hunter2', 'x']", "['curl', '--password', '***', 'x']"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ("Authorization: abc", "Authorization: ***"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': '***'}"),
        ("Cookie: a=b; c=d\nnext: 1", "Cookie: ***\nnext: 1"),
        ("sent Bearer abcdef1234567890 on", "sent Bearer *** on"),
        ("sent bearer abcdef1234567890==", "sent bearer ***"),
        ("sent Basic dXNlcjpwYXNzMQ==", "sent Basic ***"),
        ("postgres://bob:p@ss@host:5432/db", "postgres://bob:***@host:5432/db"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("password=abc password=def", "password=*** password=***"),
    ],
)
def test_values_of_sensitive_names(text, masked):
    """The value after a sensitive name is masked, what stands around it is kept."""
    assert redact_text(text) == masked
    assert redact_text(masked) is masked


@pytest.mark.parametrize(
    "text",
    [
        "token count=5",
        "max_tokens=5 token_count: 12",
        "invalid token: expected ')'",
        "secret: none found",
        "primary_key=7 key=8 sort_key: x",
        "if token == expected:",
        "password = None",
        "def f(password: str, token: str | None)",
        "pass=3 fail=2",
        "password={'a': 1}",
        "password:",
        "has_password=yes",
        '["user", "password", "email"]',
        "the password is wrong",
        "--password --verbose",
        "'--password' hunter",
        "basic understanding of bearer certificates",
        "http://host:80/a@b http://h:80 me@x.org",
        "std::token::next",
        "authority=x author: bob",
    ],
)
def test_what_resembles_a_secret(text):
    """Counts, prose, constants and types are left alone, and the same object comes back."""
    assert redact_text(text) is text


@pytest.mark.parametrize(
    "text",
    [
        "password=," + "a," * 20_000,
        "key" * 20_000,
        "password='" + "\\" * 20_000,
        "://" + "a:" * 20_000,
        "eyJ" * 20_000,
        "-----BEGIN PRIVATE KEY-----" * 1000,
        "sk-a" * 10_000,
        "bearer " * 10_000,
        "password=;" * 10_000,
        "token: aaaaaaaaaaaaa1" * 2000,
        "cookie:" * 10_000,
    ],
)
def test_time_grows_with_the_length_only(text):
    """No text makes a pattern explode: tens of thousands of characters take a fraction of a second."""
    begin = time.process_time()
    redact_text(text)
    assert time.process_time() - begin < 0.5


@given(st.text(st.sampled_from("pasword=:_-\"'\\, ;&()[]{}1aA\nké")), st.text())
def test_redaction_is_idempotent(text, other):
    """Redacting twice gives what redacting once gives, for any text."""
    for candidate in (f"password{text}", f"{text}token={text}", text + other):
        once = redact_text(candidate)
        assert redact_text(once) == once


# --- keys ---


@pytest.mark.parametrize(
    "name",
    [
        *(
            "password",
            "PASSWORD",
            "password2",
            "db_password",
            "PGPASSWORD",
            "userPassword",
            "passwd",
            "MYSQL_PWD",
        ),
        *(
            "secret",
            "client_secret",
            "clientSecret",
            "token",
            "access-token",
            "authToken",
            "X-Auth-Token",
            "csrftoken",
        ),
        *(
            "api_key",
            "apikey",
            "X-API-Key",
            "APIKey",
            "aws_secret_access_key",
            "private_key",
            "api_key_2",
            "smtp_pass",
        ),
        *(
            "authorization",
            "Proxy-Authorization",
            "auth",
            "Set-Cookie",
            "PREFECT_API_AUTH_STRING",
        ),
    ],
)
def test_sensitive_keys(name):
    """Case, joints and numbers do not matter; the last words decide."""
    assert is_sensitive_key(name)
    assert is_sensitive_key(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "_",
            "12",
            "table",
            "key",
            "keys",
            "primary_key",
            "public_key",
            "token_count",
            "max_tokens",
            "tokens",
        ),
        *(
            "author",
            "password_length",
            "has_password",
            "is_secret",
            "secret_name",
            "auth_url",
            "first_pass",
            "access_key_id",
        ),
    ],
)
def test_other_keys(name):
    """What counts, names or asks about a secret is none."""
    assert not is_sensitive_key(name)


def test_a_registered_key():
    """A registered key covers names that end with it, in extras and in text."""
    assert redact_text("user_ssn=123-45") == "user_ssn=123-45"
    assert not is_sensitive_key("SSN")
    register_sensitive_key("ssn")
    register_sensitive_key("Shoe-Size")
    register_sensitive_key("...")
    for name in ("ssn", "SSN", "user_ssn", "userSsn", "shoe_size", "shoeSize"):
        assert is_sensitive_key(name)
    assert not is_sensitive_key("assn")
    assert not is_sensitive_key("size")
    assert redact_text("user_ssn=123-45 shoe_size: 43 size=3") == "user_ssn=*** shoe_size: *** size=3"


def test_remembered_names_are_bounded(monkeypatch):
    """A program that invents names for ever does not fill the memory."""
    monkeypatch.setattr(redaction, "_CACHED_NAMES", 10)
    for i in range(100):
        assert not is_sensitive_key(f"column{i}x")
    assert len(redaction._names.cache) <= 10


# --- values ---


def test_values_are_redacted_at_every_depth():
    """Texts and sensitive keys are masked in nested dicts, lists and tuples; the rest is kept."""
    value = {
        "a": [1, ("x", "password=abc")],
        "token": {"deep": 1},
        "n": None,
        "secret": None,
        5: "AKIAIOSFODNN7EXAMPLE",
    }
    kept = {
        "a": [1, ("x", "password=abc")],
        "token": {"deep": 1},
        "n": None,
        "secret": None,
        5: "AKIAIOSFODNN7EXAMPLE",
    }
    assert redact_value(value) == {
        "a": [1, ("x", "password=***")],
        "token": "***",
        "n": None,
        "secret": None,
        5: "***",
    }
    assert value == kept


@pytest.mark.parametrize("value", [{"a": [1, ("x", {"b": 2.0})]}, [], (), "text", 5, None, {1, 2}, object()])
def test_the_same_object_comes_back(value):
    """What holds no secret is not copied."""
    assert redact_value(value) is value


def test_circular_values_end():
    """A circular list or dict ends in a mask instead of an exception."""
    circular = [1]
    circular.append(circular)
    assert "***" in repr(redact_value(circular))
    mapping = {}
    mapping["self"] = mapping
    assert "***" in repr(redact_value(mapping))
