"""Tests of ``runlog doctor``: each thing that can be wrong, and what to do about it."""

from __future__ import annotations

import json
import logging
import time

import pytest

import runlog
from runlog._http import Response
from runlog.cli.doctor import Finding, examine
from runlog.client.reader import LogReader, ServerHealth
from runlog.delivery.frames import EVENT
from runlog.delivery.segments import SegmentName, SegmentWriter
from runlog.delivery.spool import make_private_directory
from runlog.discovery import RUNTIME_FILE, publish_local_server
from runlog.settings import get_current_settings, reset_settings_cache, temporary_settings

STATUS = {"version": runlog.__version__, "runs": 2, "lines": 7, "database": "/data/runlog.db"}


@pytest.fixture
def healthy(answers):
    answers.by_path["/status"] = dict(STATUS)
    return answers


def about(subject, findings=None):
    return [finding for finding in (findings or list(examine())) if finding.subject == subject]


def wrong(findings):
    return [finding for finding in findings if finding.verdict == "wrong"]


def test_all_is_well(run_cli, healthy):
    """Every subject has its line, and the exit code is 0."""
    result = run_cli("doctor")
    assert result.exit_code == 0
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert {verdict for verdict, *_ in lines} == {"ok"}
    assert [*dict.fromkeys(subject for _, subject, _ in lines)] == [
        *("runlog", "settings", "logging", "loggers", "queue", "spool", "server")
    ]
    assert "http://server.test/api answers in " in lines[-1][2]
    assert f"runlog {runlog.__version__}, 2 runs, 7 lines, /data/runlog.db" in lines[-1][2]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_findings_as_json(run_cli, healthy, form):
    """The same as objects."""
    text = run_cli("doctor", "-o", form).stdout
    found = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert found[0] == {
        "verdict": "ok",
        "subject": "runlog",
        "text": f"version {runlog.__version__}",
        "remedy": None,
    }


def test_no_server(run_cli):
    """Without a server lines wait on disk: how many, how long, and how they are read, and nothing is wrong."""
    result = run_cli("doctor", "--color", "always", color=True)
    assert result.exit_code == 0, result.stdout
    last = result.stdout.splitlines()[-1]
    assert "\x1b[33mnote \x1b[0m" in last
    assert "now there are none; read them with: runlog logs latest" in last
    assert last.endswith("or start a server with: runlog server start")
    directory = get_current_settings().home / "spool" / "local"
    make_private_directory(directory)
    writer = SegmentWriter(directory, SegmentName("0" * 20, 0), {"pid": 1, "resource": {}})
    for age in (150, 100):
        event = {"timestamp_ns": time.time_ns() - age * 10**9, "level": 20, "name": "job", "message": "x"}
        writer.append(0 if age == 150 else 1, EVENT, json.dumps(event).encode())
    writer.close()
    (found,) = about("server")
    assert found.text.endswith(f"now 2 lines in {directory}, the oldest of 2 min 30 s ago")


def test_no_server_and_no_disk(monkeypatch):
    """With durability memory, lines would be lost without a server: that is wrong."""
    monkeypatch.setenv("RUNLOG_DURABILITY", "memory")
    reset_settings_cache()
    (found,) = about("server")
    assert (found.verdict, found.remedy) == ("wrong", "start one with: runlog server start")


def test_a_wrong_setting_ends_the_examination(monkeypatch):
    """Nothing else can be said until it is mended."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "LOUD")
    findings = list(examine())
    assert [finding.subject for finding in findings] == ["runlog", "settings"]
    assert "PREFECT_LOGGING_LEVEL is 'LOUD', expected" in findings[-1].text
    assert findings[-1].remedy


def test_changed_settings_are_listed_with_their_origin(healthy, monkeypatch):
    """Values are shown, secrets are not."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_0123456789")
    texts = [finding.text for finding in about("settings")]
    assert "PREFECT_LOGGING_LEVEL=DEBUG, from: environment" in texts
    assert "PREFECT_API_KEY=***, from: environment" in texts
    assert any(finding.text.startswith("runlog.flow_runs: DEBUG and above") for finding in about("loggers"))


def test_default_settings_are_not_listed(healthy, monkeypatch, tmp_path):
    """If nothing is set, one line says so."""
    monkeypatch.delenv("RUNLOG_HOME")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert about("settings") == [Finding("ok", "settings", "all as by default")]


def test_the_configuration_in_force_is_named(healthy, tmp_path, monkeypatch):
    """The packaged one, the one in the home, or the one that the setting names."""
    assert about("logging")[-1].text == "set up from the file that comes with runlog"
    text = "version: 1\nhandlers: {api: {class: runlog.handlers.APILogHandler}}\nloggers: {runlog: {handlers: [api]}}\n"
    home = get_current_settings().home
    home.mkdir()
    (home / "logging.yml").write_text(text)
    assert about("logging")[-1].text == f"set up from {home / 'logging.yml'}"
    (tmp_path / "mine.yml").write_text(text)
    with temporary_settings({"PREFECT_LOGGING_CONFIG_PATH": str(tmp_path / "mine.yml")}):
        assert about("logging")[-1].text == f"set up from {tmp_path / 'mine.yml'}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]\n", "mapping"),
        ("version: 2\n", "version is 2, expected 1"),
        ("version: 1\nhandlers: {a: {class: nowhere.Nothing}}\n", "handlers > a cannot be made"),
    ],
)
def test_a_broken_configuration(healthy, tmp_path, text, problem):
    """The file and what is wrong with it are named, and the loggers are not looked at."""
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with temporary_settings({"PREFECT_LOGGING_CONFIG_PATH": str(file)}):
        findings = list(examine())
    (found,) = wrong(about("logging", findings))
    assert str(file) in found.text
    assert problem in found.text
    assert found.remedy
    assert about("loggers", findings) == []


def test_overrides_are_explained(healthy, monkeypatch):
    """One that applies, one that matches nothing, one with a wrong value: each says so."""
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVL", "ERROR")
    findings = about("logging")
    applied = Finding(
        "ok", "logging", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL sets handlers > console > level"
    )
    assert applied in findings
    (unmatched,) = wrong(findings)
    assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVL matches no key" in unmatched.text
    monkeypatch.setenv("PREFECT_LOGGING_LOGGERS_UVICORN_PROPAGATE", "perhaps")
    findings = list(examine())
    assert any(
        "PREFECT_LOGGING_LOGGERS_UVICORN_PROPAGATE is 'perhaps'" in found.text for found in wrong(findings)
    )
    assert about("loggers", findings) == []


def test_disabled_loggers_are_found(healthy, monkeypatch):
    """One that another library's set-up disabled, and all of them at once."""
    logging.getLogger("runlog.mine").disabled = True
    (found,) = wrong(about("loggers"))
    assert found.text == "runlog.mine is disabled: its lines go nowhere"
    logging.getLogger("runlog.mine").disabled = False
    logging.disable(logging.ERROR)
    (found,) = wrong(about("loggers"))
    assert found.text == "logging.disable(ERROR) is in force"


def test_loggers_that_do_not_send(healthy, tmp_path):
    """A configuration without the API handler is wrong in the place where it matters."""
    file = tmp_path / "mine.yml"
    file.write_text("version: 1\nloggers: {runlog.task_runs: {propagate: false}}\n")
    with temporary_settings({"PREFECT_LOGGING_CONFIG_PATH": str(file)}):
        findings = about("loggers")
    texts = [finding.text for finding in findings]
    assert "runlog.task_runs: WARNING and above to nowhere" in [
        text.replace(
            logging.getLevelName(logging.getLogger("runlog.task_runs").getEffectiveLevel()), "WARNING"
        )
        for text in texts
    ]
    assert "runlog.task_runs has no handler that sends to the log server" in texts


def test_sending_can_be_switched_off(healthy):
    """Which is no fault, but worth knowing."""
    with temporary_settings({"PREFECT_LOGGING_TO_API_ENABLED": "false"}):
        first, *_ = about("queue")
    assert first.verdict == "note"
    assert first.remedy == "set PREFECT_LOGGING_TO_API_ENABLED=true to send them"


@pytest.mark.parametrize(
    ("queue", "verdict", "text"),
    [
        ({"queued": 3, "last_error": ""}, "ok", "http://x/api: 10 lines taken in, 3 wait, 0 dropped"),
        ({"queued": 0, "dropped": {"queue_full": 2}}, "wrong", "10 lines taken in, 0 wait, 2 dropped"),
        (
            {"queued": 9, "last_error": "HTTP 503", "target": None},
            "wrong",
            "no server: 10 lines taken in, 9 wait",
        ),
    ],
)
def test_queues_of_this_process(healthy, monkeypatch, queue, verdict, text):
    """What waits, what was dropped, and the last error of each worker."""
    facts = {"target": "http://x/api", "accepted": 10, "dropped": {}, "last_error": "", **queue}
    monkeypatch.setattr("runlog.delivery.statistics", lambda: [facts])
    (found,) = about("queue")
    assert found.verdict == verdict
    assert text in found.text
    assert not facts["last_error"] or found.text.endswith(f"last error: {facts['last_error']}")


def test_a_server_that_refuses(answers):
    """Its answer is a finding with a remedy, not an error of the doctor."""
    answers.by_path["/status"] = Response(401, json={"exception_message": "Unauthorized"})
    (found,) = wrong(about("server"))
    assert "refuses the credentials" in found.text
    assert "PREFECT_API_AUTH_STRING" in found.remedy


def test_another_version_and_another_clock(healthy, monkeypatch):
    """Both are told."""
    monkeypatch.setattr(LogReader, "health", lambda self: ServerHealth("0.0.1", 0.01, -90.0))
    findings = list(examine())
    assert any(finding.verdict == "note" and "it has runlog 0.0.1" in finding.text for finding in findings)
    (clock,) = about("clock", findings)
    assert clock.text == "the server's clock is 1 min 30 s behind this machine's"
    monkeypatch.setattr(LogReader, "health", lambda self: ServerHealth(runlog.__version__, 0.01, 90.0))
    assert "ahead of" in about("clock")[0].text
    monkeypatch.setattr(LogReader, "health", lambda self: ServerHealth(runlog.__version__, 0.01, None))
    assert about("clock") == []


def test_the_server_of_this_machine(healthy):
    """It is named, and so is that lines go to another, or that its file was left by a killed one."""
    home = get_current_settings().home
    with publish_local_server(home, "http://127.0.0.1:4999/api"):
        texts = [finding.text for finding in about("server")]
        assert texts[0].startswith("one runs on this machine: http://127.0.0.1:4999/api, pid ")
        assert texts[1] == "lines do not go to it, as PREFECT_API_URL names another"
    with publish_local_server(home, "http://server.test/api/"):
        assert len(about("server")) == 2
    (home / RUNTIME_FILE).write_text('{"url": "http://127.0.0.1:4999/api", "pid": 1}')
    first, *_ = about("server")
    assert first.verdict == "note"
    assert "is left from a server that was killed" in first.text


def test_a_real_server_is_found_well(run_cli, real_server, monkeypatch):
    """The whole against a real server."""
    monkeypatch.setenv("PREFECT_API_URL", real_server)
    result = run_cli("doctor")
    assert result.exit_code == 0, result.stdout
    assert f"{real_server} answers in " in result.stdout


def test_what_waits_on_disk(healthy):
    """Lines that programs left on disk, and lines that a server refused, are worth knowing."""
    (found,) = about("spool")
    assert found.verdict == "ok"
    home = get_current_settings().home
    target = home / "spool" / "local"
    target.mkdir(parents=True)
    (target / ("0" * 20 + "-0000000000000.seg")).write_bytes(bytes(1234))
    (target / "dead-letters.jsonl").write_text("{}\n")
    waiting, refused = about("spool")
    assert (waiting.verdict, refused.verdict) == ("note", "note")
    assert "1,234 bytes of lines in" in waiting.text
    assert "dead-letters.jsonl" in refused.text
