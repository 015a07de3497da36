"""Where settings come from: environment, .env, TOML files and profiles, in this order."""

from __future__ import annotations

import os
import warnings

import pytest

from runlog.exceptions import SettingsError
from runlog.settings import (
    SettingsContext,
    get_current_settings,
    origin_of,
    reset_settings_cache,
    temporary_settings,
    use_profile,
)


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch, tmp_path):
    """Each test loads settings of its own, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    reset_settings_cache()
    yield
    reset_settings_cache()


@pytest.fixture
def write(tmp_path):
    """Write a file in the working directory; ``home/...`` is in ``RUNLOG_HOME``."""

    def write(name, text):
        path = tmp_path / name.replace("home/", "runlog-home/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_order(write, monkeypatch):
    """Each place is weaker than the one before it, and each setting says where it comes from."""
    name = "PREFECT_LOGGING_TO_API_BATCH_SIZE"
    places = {
        "profile 'dev'": lambda: write(
            "home/profiles.toml", f'active = "dev"\n[profiles.dev]\n{name} = 1000006'
        ),
        "pyproject.toml": lambda: write("pyproject.toml", f"[tool.runlog]\n{name} = 1000005"),
        "runlog.toml": lambda: write("runlog.toml", "[logging.to_api]\nbatch_size = 1000004"),
        ".env": lambda: write(".env", f"{name}=1000003\nOTHER=1"),
        "environment": lambda: monkeypatch.setenv(name, "1000002"),
    }
    assert origin_of(name) == "default"
    for number, (origin, put) in enumerate(places.items()):
        put()
        reset_settings_cache()
        assert get_current_settings().logging.to_api.batch_size == 1_000_006 - number
        assert origin_of(name) == origin
        assert origin_of("PREFECT_LOGGING_ORION_BATCH_SIZE") == origin
    with temporary_settings({name: 1_000_001}) as settings:
        assert settings.logging.to_api.batch_size == 1_000_001
        assert origin_of(name) == "argument"
    assert origin_of("RUNLOG_PROFILE") == "profiles.toml"


def test_names_and_paths_in_toml(write):
    """A file names settings as the environment does, in any case, by alias, or by path; values have types."""
    write(
        "runlog.toml",
        """
        prefect_api_url = "http://a/api"
        PREFECT_LOGGING_SETTINGS_PATH = "/x.yml"
        redact_keys = ["ssn"]
        [logging]
        level = "debug"
        format = "%(message)s"
        extra_loggers = ["a", " b"]
        colors = false
        [logging.to_api]
        batch_interval = 1
        [client]
        custom_headers = {X-Team = "data"}
        """,
    )
    settings = get_current_settings()
    assert settings.api.url == "http://a/api"
    assert str(settings.logging.config_path) == "/x.yml"
    assert settings.redact_keys == ("ssn",)
    assert (settings.logging.level, settings.logging.format) == ("DEBUG", "%(message)s")
    assert settings.logging.extra_loggers == ("a", "b")
    assert settings.logging.colors is False
    assert settings.logging.to_api.batch_interval == 1.0
    assert settings.client.custom_headers == {"X-Team": "data"}


def test_an_alias_above_beats_the_name_below(write, monkeypatch):
    """Within a place the name is stronger than an alias; a stronger place wins in any case."""
    write("runlog.toml", '[logging]\nlevel = "ERROR"')
    monkeypatch.setenv("PREFECT__LOGGING__LEVEL", "DEBUG")
    assert get_current_settings().logging.level == "DEBUG"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[logging]\nlevle = 1", r"runlog.toml: there is no setting logging.levle; did you mean level\?"),
        (
            "[logging.to_api]\nzzz = 1",
            r"there is no setting logging.to_api.zzz; \[logging.to_api\] has: batch_interval, ",
        ),
        ('logging = "DEBUG"', r"runlog.toml: logging is 'DEBUG', expected a table; write it as \[logging\]"),
        ("[logging]\nto_api = 1", r"logging.to_api is 1, expected a table"),
        ('PREFECT_LOGGING_LEVEL = "INFO"\n[logging]\nlevel = "INFO"', "PREFECT_LOGGING_LEVEL is given twice"),
        (
            '[logging]\nlevel = "INFO"\n[logging.to_api]\nbatch_size = "x"',
            "runlog.toml: .*BATCH_SIZE is 'x', expected a",
        ),
        (
            "[logging]\nextra_loggers = 5",
            "EXTRA_LOGGERS is '5', expected names, separated by commas; correct it or",
        ),
        ("[logging", "runlog.toml: this is not TOML: "),
        (b"a = '\xff'", "runlog.toml: settings cannot be read: it is not UTF-8"),
        ("RUNLOG_HOME = 5", "runlog.toml: RUNLOG_HOME is '5', expected the path of a directory"),
    ],
)
def test_mistakes_in_a_file(write, monkeypatch, text, message):
    """What is wrong in a file is one error that names the file."""
    monkeypatch.delenv("RUNLOG_HOME")
    write("runlog.toml", text)
    with pytest.raises(SettingsError, match=message):
        get_current_settings()


def test_unknown_names_at_the_top_are_warned_of(write):
    """A name or table that no setting has may be of another version: it is a warning with the nearest name."""
    write("runlog.toml", '[loging]\nlevel = "DEBUG"')
    with pytest.warns(
        UserWarning,
        match=r"runlog.toml: there is no setting loging, so it is ignored; did you mean logging\?",
    ):
        assert get_current_settings().logging.level == "INFO"
    reset_settings_cache()
    write("runlog.toml", "zzz = 1")
    with pytest.warns(UserWarning, match="`runlog config view` lists all settings"):
        get_current_settings()


def test_dotenv(write):
    """``.env`` may have quotes, comments, ``export`` and other programs' variables; a directory of this name is none."""
    write(".env", "# comment\nexport PREFECT_LOGGING_LEVEL='debug'\nDATABASE_URL=x\nRUNLOG_SERVICE_NAME=\n")
    assert get_current_settings().logging.level == "DEBUG"
    assert get_current_settings().service.name is None


def test_a_directory_named_dotenv_is_ignored(tmp_path):
    """A virtual environment is often named ``.env``."""
    (tmp_path / ".env").mkdir()
    assert origin_of("PREFECT_LOGGING_LEVEL") == "default"


def test_dotenv_that_is_not_text(write):
    """A file that cannot be read is one error that names it."""
    write(".env", b"A=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: settings cannot be read: it is not UTF-8"):
        get_current_settings()


def test_an_unreadable_file(write, monkeypatch):
    """What the operating system says is in the message."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    path = write("runlog.toml", "")
    monkeypatch.setattr(type(path), "read_text", refuse)
    with pytest.raises(SettingsError, match=r"runlog\.toml: settings cannot be read: Permission denied"):
        get_current_settings()


def test_pyproject_of_others(write):
    """A ``pyproject.toml`` without our table is not looked at any closer, not even if it is broken."""
    write("pyproject.toml", "[tool.other")
    get_current_settings()
    reset_settings_cache()
    write("pyproject.toml", '[project]\ndependencies = ["runlog"]')
    get_current_settings()
    reset_settings_cache()
    write("pyproject.toml", "[tool]\nrunlog = 5")
    with pytest.raises(SettingsError, match=r"pyproject\.toml.*tool\.runlog is 5, expected a table"):
        get_current_settings()


# --- profiles -------------------------------------------------------------------------------------

PROFILES = """
active = "dev"
[profiles.dev]
PREFECT_LOGGING_LEVEL = "DEBUG"
[profiles.prod.logging]
level = "ERROR"
"""


def test_the_active_profile(write):
    """The profile that the file names as active is used."""
    write("home/profiles.toml", PROFILES)
    settings = get_current_settings()
    assert (settings.profile, settings.logging.level) == ("dev", "DEBUG")
    assert origin_of("PREFECT_LOGGING_LEVEL") == "profile 'dev'"


def test_the_environment_chooses_the_profile(write, monkeypatch):
    """``RUNLOG_PROFILE`` is stronger than the file's choice."""
    write("home/profiles.toml", PROFILES)
    monkeypatch.setenv("RUNLOG_PROFILE", "prod")
    settings = get_current_settings()
    assert (settings.profile, settings.logging.level) == ("prod", "ERROR")
    assert origin_of("RUNLOG_PROFILE") == "environment"


def test_use_profile(write, monkeypatch):
    """A profile can be used for a block; what the environment sets stays stronger."""
    write("home/profiles.toml", PROFILES)
    with use_profile("prod") as settings:
        assert settings.logging.level == "ERROR"
        assert SettingsContext.get().profile == "prod"
        with temporary_settings({"PREFECT_LOGGING_COLORS": False}) as inner:
            assert (inner.profile, inner.logging.level) == ("prod", "ERROR")
        with temporary_settings({"RUNLOG_PROFILE": None}) as inner:
            assert inner.profile == "dev"
    assert get_current_settings().logging.level == "DEBUG"
    reset_settings_cache()
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    with use_profile("prod") as settings:
        assert settings.logging.level == "CRITICAL"


def test_home_moves_the_profiles(write, tmp_path):
    """Profiles are looked for in the home that is in force."""
    write("other/profiles.toml", '[profiles.there]\nPREFECT_LOGGING_LEVEL = "ERROR"')
    with temporary_settings({"RUNLOG_HOME": tmp_path / "other", "RUNLOG_PROFILE": "there"}) as settings:
        assert settings.logging.level == "ERROR"


def test_no_profile(write):
    """A file without an active profile, and no file, are fine."""
    assert get_current_settings().profile is None
    reset_settings_cache()
    write("home/profiles.toml", "[profiles.dev]\n")
    assert get_current_settings().profile is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'active = "nope"\n[profiles.dev]',
            r"active is 'nope', expected a profile of this file, which has: dev; add a",
        ),
        ("active = 5", "active is 5, expected a profile of this file, which has: none"),
        ("profiles = 5", "profiles is 5, expected a table"),
        ('active = "a"\n[profiles]\na = 5', "profiles.a is 5, expected a table"),
        ('active = "a"\n[profiles.a]\nRUNLOG_HOME = "/"', "RUNLOG_HOME cannot be set by a profile"),
        ('active = "a"\n[profiles.a]\nprofile = "b"', "RUNLOG_PROFILE cannot be set by a profile"),
        (
            'active = "a"\n[profiles.a.logging]\nx = 1',
            r"profiles.toml \[profiles.a\]: there is no setting logging.x",
        ),
        (
            'active = "a"\n[profiles.a]\nRUNLOG_SERVER_PORT = "x"',
            r"profiles.toml \[profiles.a\]: RUNLOG_SERVER_PORT is",
        ),
    ],
)
def test_mistakes_in_profiles(write, text, message):
    """What is wrong with profiles is one error that names the file."""
    write("home/profiles.toml", text)
    with pytest.raises(SettingsError, match=message):
        get_current_settings()


def test_no_warning_for_what_is_right(write):
    """A file with known names only is silent."""
    write("home/profiles.toml", PROFILES)
    write("runlog.toml", "[server]\nport = 1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_current_settings().server.port == 1


def test_a_home_that_is_closed_to_us(write, monkeypatch):
    """A home directory of another user has no profile for us, and is no error."""
    closed = str(write("home/profiles.toml", PROFILES))
    stat = os.stat

    def refuse(path, **kwargs):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied")
        return stat(path, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    assert get_current_settings().profile is None
