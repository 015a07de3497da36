"""Tests of ``runlog config view``."""

from __future__ import annotations

import json

import pytest

from runlog.settings import iter_settings


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "debug")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_0123456789")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:s3cret@server.test/api")
    monkeypatch.setenv(
        "PREFECT_CLIENT_CUSTOM_HEADERS", '{"Authorization": "Bearer s3cret", "X-Team": "data"}'
    )


def values(result):
    return {row.split()[0]: " ".join(row.split()[1:]) for row in result.stdout.splitlines()[1:]}


def test_every_setting_is_listed(run_cli):
    """Name and value of each, a dash for what is not set."""
    shown = values(run_cli("config", "view"))
    assert list(shown) == [info.name for info in iter_settings()]
    assert shown["PREFECT_LOGGING_LEVEL"] == "INFO"
    assert shown["PREFECT_API_URL"] == "-"


def test_the_origin_is_told(run_cli, environment):
    """Each value's source, and on demand only those that something sets."""
    result = run_cli("config", "view", "--origin", "--changed")
    shown = values(result)
    assert shown["PREFECT_LOGGING_LEVEL"] == "DEBUG environment"
    assert shown["RUNLOG_HOME"].endswith("runlog-home environment")
    assert "PREFECT_LOGGING_LOG_PRINTS" not in shown
    assert values(run_cli("config", "view", "--origin"))["PREFECT_LOGGING_LOG_PRINTS"] == "false default"


@pytest.mark.parametrize("form", ["default", "json", "jsonl"])
def test_secrets_are_masked(run_cli, environment, form):
    """Neither keys nor passwords in addresses or headers are printed; that they are set is."""
    text = run_cli("config", "view", "--origin", "-o", form).stdout
    assert "pnu_0123456789" not in text
    assert "s3cret" not in text
    assert "***" in text
    assert "server.test/api" in text


def test_json(run_cli, environment):
    """One object a setting, with its origin if that is asked for."""
    found = json.loads(run_cli("config", "view", "-o", "json").stdout)
    assert {"name": "PREFECT_LOGGING_LEVEL", "value": "DEBUG"} in found
    lines = run_cli("config", "view", "--origin", "-o", "jsonl").stdout.splitlines()
    assert {"name": "RUNLOG_PROFILE", "value": None, "origin": "default"} in [
        json.loads(line) for line in lines
    ]


def test_what_is_set_stands_out(run_cli, environment):
    """In colour, values that are not the default are."""
    text = run_cli("config", "view", "--color", "always", color=True).stdout
    assert "\x1b[32mDEBUG\x1b[0m" in text
    assert "\x1b[32mfalse" not in text


def test_a_wrong_setting_is_one_line(run_cli, monkeypatch):
    """The message names the setting, what it is and what is expected."""
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "fast")
    result = run_cli("config", "view")
    assert result.exit_code == 1
    assert result.stderr.startswith("runlog: ")
    assert "PREFECT_LOGGING_TO_API_BATCH_INTERVAL is 'fast', expected" in result.stderr
    assert result.stderr.count("\n") == 1
