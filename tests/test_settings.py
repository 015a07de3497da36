"""Which settings exist, which are in force, and what is said about wrong ones."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import runlog.settings
from runlog.exceptions import SettingsError
from runlog.redaction import is_sensitive_key, redact_text
from runlog.settings import (
    Settings,
    SettingsContext,
    changed_settings,
    current,
    get_current_settings,
    iter_settings,
    load_settings,
    origin_of,
    reset_settings_cache,
    temporary_settings,
    use_profile,
)
from runlog.settings.catalog import find_setting, nearest, value_text


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch, tmp_path):
    """Each test loads settings of its own, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    reset_settings_cache()
    yield
    reset_settings_cache()


# --- defaults and values --------------------------------------------------------------------------


def test_defaults():
    """With nothing set, every setting has the documented default."""
    settings = load_settings({})
    assert {info.name: info.text(settings) for info in iter_settings()} == {
        "RUNLOG_HOME": str(Path("~/.runlog").expanduser()),
        "RUNLOG_PROFILE": None,
        "RUNLOG_DURABILITY": "spool",
        "RUNLOG_REDACT_KEYS": "",
        "PREFECT_API_URL": None,
        "PREFECT_API_KEY": None,
        "PREFECT_API_AUTH_STRING": None,
        "PREFECT_CLIENT_CUSTOM_HEADERS": "{}",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_CONFIG_PATH": None,
        "PREFECT_LOGGING_EXTRA_LOGGERS": "",
        "PREFECT_LOGGING_LOG_PRINTS": "false",
        "PREFECT_LOGGING_COLORS": "true",
        "PREFECT_LOGGING_MARKUP": "false",
        "RUNLOG_LOGGING_FORMAT": None,
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "2",
        "PREFECT_LOGGING_TO_API_BATCH_SIZE": "4000000",
        "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE": "1000000",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "warn",
        "RUNLOG_DELIVERY_MAX_QUEUE_BYTES": str(16 * 1024 * 1024),
        "RUNLOG_DELIVERY_MAX_SPOOL_BYTES": str(1024 * 1024 * 1024),
        "RUNLOG_DELIVERY_WHEN_FULL": "block",
        "RUNLOG_DELIVERY_BLOCK_TIMEOUT": "0.1",
        "RUNLOG_DELIVERY_SHUTDOWN_TIMEOUT": "5",
        "RUNLOG_SERVICE_NAME": None,
        "RUNLOG_SERVICE_VERSION": None,
        "RUNLOG_SERVICE_ENVIRONMENT": None,
        "RUNLOG_SERVER_HOST": "127.0.0.1",
        "RUNLOG_SERVER_PORT": "4210",
        "RUNLOG_SERVER_DATABASE": None,
        "RUNLOG_SERVER_LOG_LEVEL": "WARNING",
        "PREFECT_SERVER_API_AUTH_STRING": None,
        "RUNLOG_SERVER_ALLOWED_ORIGINS": "",
        "RUNLOG_SERVER_RETENTION": None,
        "RUNLOG_SERVER_MAX_BYTES": None,
    }


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("RUNLOG_REDACT_KEYS", " ssn , iban,", "redact_keys", ("ssn", "iban")),
        ("PREFECT_API_URL", " http://127.0.0.1:4200/api/\n", "api.url", "http://127.0.0.1:4200/api"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Team": "data"}', "client.custom_headers", {"X-Team": "data"}),
        ("PREFECT_LOGGING_LEVEL", "debug", "logging.level", "DEBUG"),
        ("PREFECT_LOGGING_LEVEL", "30", "logging.level", "WARNING"),
        ("PREFECT_LOGGING_EXTRA_LOGGERS", "a.b, c", "logging.extra_loggers", ("a.b", "c")),
        ("PREFECT_LOGGING_COLORS", "off", "logging.colors", False),
        ("PREFECT_LOGGING_TO_API_BATCH_SIZE", "5_000_000", "logging.to_api.batch_size", 5_000_000),
        ("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.25", "logging.to_api.batch_interval", 0.25),
        ("RUNLOG_DELIVERY_WHEN_FULL", "drop_oldest", "delivery.when_full", "drop_oldest"),
        ("RUNLOG_SERVER_PORT", "0", "server.port", 0),
    ],
)
def test_text_becomes_a_value(name, text, path, value):
    """Text from the environment gets the setting's type; blanks around it do not matter."""
    settings = load_settings({name: text})
    for attribute in path.split("."):
        settings = getattr(settings, attribute)
    assert settings == value
    assert type(settings) is type(value)


@pytest.mark.parametrize("info", iter_settings(), ids=lambda info: info.name)
def test_every_alias_is_read(info):
    """A setting is read from each of its aliases, and its own name is stronger."""
    good = {"level": ("DEBUG", "ERROR"), "config_path": ("/a", "/b"), "format": ("a", "b")}
    numbers = {"enabled": ("false", "true"), "when_missing_flow": ("error", "ignore")}
    one, other = (good | numbers | {"log_level": ("DEBUG", "ERROR")}).get(
        info.path[-1], ("1000001", "1000002") if "size" in info.path[-1] else ("7", "8")
    )
    for alias in info.aliases:
        assert info.text(load_settings({alias: one})) == one
        assert info.text(load_settings({alias: one, info.name: other})) == other


def test_empty_values_count_as_unset():
    """An empty or blank variable is as good as none."""
    settings = load_settings(
        {"PREFECT_LOGGING_LEVEL": "", "PREFECT_API_URL": "  ", "RUNLOG_SERVER_PORT": "\t"}
    )
    assert (settings.logging.level, settings.api.url, settings.server.port) == ("INFO", None, 4210)


def test_names_are_read_in_any_case():
    """A lower-case variable counts as well, and the upper-case one more."""
    assert load_settings({"prefect_logging_level": "debug"}).logging.level == "DEBUG"
    both = {"prefect_logging_level": "debug", "PREFECT_LOGGING_LEVEL": "error"}
    assert load_settings(both).logging.level == "ERROR"


def test_custom_levels_are_known():
    """A level that the program registered is a level, in any case."""
    logging.addLevelName(5, "Trace")
    try:
        assert load_settings({"PREFECT_LOGGING_LEVEL": "TRACE"}).logging.level == "Trace"
        assert load_settings({"PREFECT_LOGGING_LEVEL": "5"}).logging.level == "Trace"
    finally:
        del logging._levelToName[5], logging._nameToLevel["Trace"]


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    """Relative paths and ``~`` are resolved once, when settings are loaded."""
    settings = load_settings({"RUNLOG_HOME": "here", "PREFECT_LOGGING_CONFIG_PATH": "~/logging.yml"})
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "here"
    assert settings.logging.config_path == Path("~/logging.yml").expanduser()


def test_without_a_home_directory(monkeypatch):
    """A user without a home directory is told to set ``RUNLOG_HOME``, and is fine with it."""

    def fail(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    with pytest.raises(SettingsError, match="set RUNLOG_HOME to a directory that this program may write to"):
        load_settings({})


# --- wrong values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"PREFECT_LOGGING_LEVEL": "LOUD"},
            "PREFECT_LOGGING_LEVEL is 'LOUD', expected one of NOTSET, DEBUG, INFO, WARN, WARNING, ERROR, ",
        ),
        (
            {"PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "fast"},
            "is 'fast', expected a number of seconds, 0 or more; correct the environment variable or unset it",
        ),
        ({"PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "-1"}, "is '-1', expected a number of seconds, 0 or more"),
        (
            {"PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "nan"},
            "is 'nan', expected a number of seconds, 0 or more",
        ),
        (
            {"PREFECT_LOGGING_ORION_BATCH_SIZE": "x"},
            "PREFECT_LOGGING_ORION_BATCH_SIZE is 'x', expected a whole number",
        ),
        (
            {"PREFECT_LOGGING_TO_API_MAX_LOG_SIZE": "5000001"},
            "is 5000001 bytes, expected at most PREFECT_LOGGING_TO_API_BATCH_SIZE, which is 4000000 bytes; lower",
        ),
        ({"PREFECT_LOGGING_COLORS": "maybe"}, "PREFECT_LOGGING_COLORS is 'maybe', expected true or false"),
        ({"PREFECT_API_URL": "127.0.0.1:4200"}, "expected an address such as http://127.0.0.1:4210/api"),
        ({"PREFECT_API_URL": "http://[::1"}, "expected an address such as http://127.0.0.1:4210/api"),
        ({"PREFECT_API_URL": "http://a:99999"}, "expected an address such as http://127.0.0.1:4210/api"),
        ({"RUNLOG_DELIVERY_WHEN_FULL": "wait"}, "is 'wait', expected one of block, drop_oldest, drop_newest"),
        (
            {"RUNLOG_DELIVERY_MAX_QUEUE_BYTES": "1000"},
            "is '1000', expected a whole number of bytes, 65536 or more",
        ),
        ({"RUNLOG_SERVER_PORT": "70000"}, "is '70000', expected a whole number from 0 to 65535"),
        (
            {"RUNLOG_HOME": "~nobody-of-this-name/x"},
            "is '~nobody-of-this-name/x', expected a path that can be found",
        ),
        (
            {"PREFECT_CLIENT_CUSTOM_HEADERS": "{"},
            "PREFECT_CLIENT_CUSTOM_HEADERS is wrong, expected a JSON object",
        ),
        (
            {"PREFECT_CLIENT_CUSTOM_HEADERS": "[1]"},
            "PREFECT_CLIENT_CUSTOM_HEADERS is wrong, expected a JSON object",
        ),
        ({"PREFECT_CLIENT_CUSTOM_HEADERS": '{"a": 1}'}, "expected a JSON object of texts"),
    ],
)
def test_a_wrong_value_is_named(environ, message):
    """A wrong value is one error that says which setting, what it is, what was expected, and what to do."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert message in str(caught.value)


def test_facts_of_an_error_are_attributes():
    """What the message says can be had as attributes."""
    with pytest.raises(SettingsError) as caught:
        load_settings({"RUNLOG_SERVER_PORT": "x"})
    error = caught.value
    assert (error.key, error.got, error.file) == ("RUNLOG_SERVER_PORT", "'x'", None)
    assert error.expected == "a whole number from 0 to 65535"


def test_all_wrong_values_are_told_at_once():
    """Several mistakes, in several blocks, are one error."""
    environ = {"RUNLOG_SERVER_PORT": "x", "PREFECT_LOGGING_LEVEL": "LOUD", "PREFECT_LOGGING_COLORS": "?"}
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    for name in environ:
        assert f"{name} is " in str(caught.value)


def test_a_wrong_secret_is_not_told():
    """The message about a wrong secret does not have it."""
    with pytest.raises(SettingsError) as caught, temporary_settings({"PREFECT_API_KEY": 8_675_309}):
        pass
    assert "PREFECT_API_KEY is wrong, expected text" in str(caught.value)
    assert "8675309" not in repr(caught.value.__dict__)


def test_the_first_mistake_is_told_once_more_at_the_next_call(monkeypatch):
    """A failed load is not remembered: once the environment is right, so are the settings."""
    monkeypatch.setenv("RUNLOG_SERVER_PORT", "x")
    with pytest.raises(SettingsError):
        get_current_settings()
    monkeypatch.setenv("RUNLOG_SERVER_PORT", "1")
    assert get_current_settings().server.port == 1


# --- secrets --------------------------------------------------------------------------------------

SECRETS = {
    "PREFECT_API_KEY": "pnx-key-hunter2",
    "PREFECT_API_AUTH_STRING": "admin:hunter3secret",
    "PREFECT_SERVER_API_AUTH_STRING": "root:hunter4secret",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"Authorization": "Bearer hunter5secret", "X-Api-Key": "hunter6secret"}',
    "PREFECT_API_URL": "https://me:hunter7secret@example.com/api",
    "RUNLOG_SERVER_DATABASE": "postgresql://me:hunter8secret@db/runlog",
}


def test_secrets_are_not_shown():
    """Neither ``repr`` nor ``str`` of settings, nor what a command shows, has a secret in it."""
    settings = load_settings(SECRETS)
    shown = [info.shown(settings) or "" for info in iter_settings()]
    for text in (repr(settings), str(settings), repr(settings.api), repr(settings._layers), *shown):
        assert "hunter" not in text
    assert find_setting("PREFECT_API_KEY").shown(settings) == "***"
    assert (
        find_setting("PREFECT_CLIENT_CUSTOM_HEADERS").shown(settings)
        == '{"Authorization": "***", "X-Api-Key": "***"}'
    )
    assert find_setting("PREFECT_API_AUTH_STRING").shown(load_settings({})) is None


def test_loading_registers_secrets_with_redaction():
    """From the load on, secrets are masked in every log line, and so are values of the names that were given."""
    load_settings(SECRETS | {"RUNLOG_REDACT_KEYS": "shoe_size"})
    for number in range(3, 7):
        assert f"hunter{number}" not in redact_text(f"pnx-key-hunter2 hunter{number}secret")
    assert is_sensitive_key("shoe_size")


def test_short_passwords_do_not_mask_words():
    """The password of ``admin:pass`` is masked with its user only: "passed" stays a word."""
    load_settings({"PREFECT_API_AUTH_STRING": "admin:pass"})
    assert redact_text("test passed") == "test passed"
    assert "pass" not in redact_text("sent admin:pass")


def test_changed_settings_have_no_secrets():
    """What differs from the default can be handed on: no secret is in it, and no address with a password."""
    with temporary_settings(
        SECRETS
        | {
            "PREFECT_LOGGING_LEVEL": "debug",
            "PREFECT_LOGGING_EXTRA_LOGGERS": ["a", "b"],
            "RUNLOG_SERVICE_NAME": "x",
        }
    ):
        changed = changed_settings()
    changed.pop("RUNLOG_HOME")
    assert changed == {
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "a,b",
        "RUNLOG_SERVICE_NAME": "x",
    }


def test_changed_settings_make_the_same_settings():
    """Loading what differs from the default gives the settings back."""
    environ = {
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.123456789",
        "PREFECT_LOGGING_COLORS": "no",
        "RUNLOG_HOME": "/h",
    }
    with SettingsContext(None, load_settings(environ)) as context:
        assert load_settings(changed_settings()).model_dump() == context.settings.model_dump()


def test_an_address_that_is_none_has_no_credentials():
    """A database that only looks like an address is text."""
    settings = load_settings({"RUNLOG_SERVER_DATABASE": "http://[nonsense"})
    assert not find_setting("RUNLOG_SERVER_DATABASE").holds_credentials(settings)


# --- which are in force ---------------------------------------------------------------------------


def test_loaded_once(monkeypatch):
    """The program's settings are loaded at the first call and stay; later changes of the environment do not matter."""
    first = get_current_settings()
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    assert get_current_settings() is first
    reset_settings_cache()
    assert get_current_settings().logging.level == "DEBUG"


def test_threads_that_load_at_once_get_the_same_settings(monkeypatch):
    """Of many threads that ask first, one loads, and all get what it loaded."""
    loads = []
    real = current.load_settings
    monkeypatch.setattr(current, "load_settings", lambda: loads.append(1) or real())
    barrier = threading.Barrier(8)

    def ask(_):
        barrier.wait(10)
        return get_current_settings()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(settings) for settings in pool.map(ask, range(8))}) == 1
    assert len(loads) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_in_the_middle_of_a_load_is_survived():
    """A child that was forked while another thread was loading can load."""
    with current._loading:
        pid = os.fork()
        if not pid:
            os._exit(0 if get_current_settings() else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_settings_cannot_be_changed():
    """A settings object is immutable, in all its blocks."""
    settings = get_current_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.profile = "x"
    with pytest.raises(ValueError, match="frozen"):
        settings.logging.to_api.enabled = False


def test_settings_without_a_load_are_arguments_and_defaults(monkeypatch):
    """``Settings(...)`` reads nothing; blocks can be given as objects or mappings."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    assert Settings().logging.level == "INFO"
    assert Settings(logging={"level": "ERROR"}).logging.level == "ERROR"
    with pytest.raises(ValueError, match="Extra inputs"):
        Settings(lgging={})


def test_settings_can_be_pickled():
    """Settings reach a worker process whole."""
    settings = get_current_settings()
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_temporary_settings():
    """Settings are changed for the block, the others stay, and all is as before afterwards, also after an exception."""
    before = get_current_settings()
    with contextlib.suppress(KeyError), temporary_settings({"PREFECT_LOGGING_LEVEL": "debug"}) as settings:
        assert get_current_settings() is settings
        assert settings.logging.level == "DEBUG"
        with temporary_settings({"PREFECT_LOGGING_ORION_ENABLED": False}) as inner:
            assert (inner.logging.level, inner.logging.to_api.enabled) == ("DEBUG", False)
        raise KeyError
    assert get_current_settings() is before
    assert SettingsContext.get() is None


@pytest.mark.parametrize("change", [{"updates": {"PREFECT_LOGGING_LEVEL": None}}, {"updates": {"PREFECT_LOGGING_LEVEL": " "}}, {"restore_defaults": ["PREFECT__LOGGING__LEVEL"]}])  # fmt: skip
def test_defaults_can_be_restored(monkeypatch, change):
    """`None`, empty text and ``restore_defaults`` give a setting its default, whatever the environment says."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    assert get_current_settings().logging.level == "DEBUG"
    with temporary_settings(**change) as settings:
        assert settings.logging.level == "INFO"
        assert origin_of("PREFECT_LOGGING_LEVEL") == "argument"


def test_unknown_names_are_refused_with_the_nearest():
    """A name that no setting has is an error that says which one is near."""
    with (
        pytest.raises(
            SettingsError,
            match="there is no setting PREFECT_LOGGING_LEVLE; did you mean PREFECT_LOGGING_LEVEL",
        ),
        temporary_settings({"PREFECT_LOGGING_LEVLE": "DEBUG"}),
    ):
        pass
    with pytest.raises(
        SettingsError, match="there is no setting QQQ; `runlog config view` lists all settings"
    ):
        origin_of("QQQ")


def test_temporary_settings_stay_in_their_thread():
    """Another thread does not see them; a copied context and tasks do."""
    seen = {}

    async def main():
        with temporary_settings({"PREFECT_LOGGING_LEVEL": "DEBUG"}):
            task = asyncio.create_task(level())
        return await task

    async def level():
        return get_current_settings().logging.level

    with temporary_settings({"PREFECT_LOGGING_LEVEL": "ERROR"}):
        context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: seen.update(
            plain=get_current_settings().logging.level,
            copied=context.run(lambda: get_current_settings().logging.level),
        )
    )
    with temporary_settings({"PREFECT_LOGGING_LEVEL": "CRITICAL"}):
        contextvars.Context().run(thread.start)
        thread.join(10)
    assert seen == {"plain": "INFO", "copied": "ERROR"}
    assert asyncio.run(main()) == "DEBUG"


def test_a_settings_context_is_entered_once_at_a_time():
    """A second entry and an unbalanced exit are errors; after its exit a context may be entered again."""
    context = SettingsContext("dev", get_current_settings())
    with pytest.raises(RuntimeError, match="not entered"):
        context.__exit__(None, None, None)
    for _ in range(2):
        with context:
            assert SettingsContext.get() is context
            assert "profile 'dev', entered" in repr(context)
            with pytest.raises(RuntimeError, match="entered already"):
                context.__enter__()
        assert "not entered" in repr(context)


def test_a_settings_context_may_be_left_in_another_context():
    """Leaving where it was not entered restores what was in force before, and does not raise."""
    outer = SettingsContext(None, Settings())
    for before in (None, outer):
        context = SettingsContext(None, Settings())
        copied = contextvars.copy_context()
        if before:
            copied.run(before.__enter__)
        copied.run(context.__enter__)
        context.__exit__(None, None, None)
        assert SettingsContext.get() is before
        current._active.set(None)


# --- catalog --------------------------------------------------------------------------------------


def test_every_setting_is_described():
    """Each setting says what it is for and what a value looks like, and no name is used twice."""
    infos = list(iter_settings())
    names = [name for info in infos for name in (info.name, *info.aliases)]
    assert len(set(names)) == len(names)
    for info in infos:
        assert info.description.endswith(".")
        assert info.type_text


def test_defaults_as_they_are_documented():
    """A default that depends on the machine is described; one that is nothing is empty."""
    assert find_setting("RUNLOG_HOME").default == "~/.runlog"
    assert find_setting("PREFECT_API_URL").default == ""
    assert find_setting("PREFECT_LOGGING_COLORS").default == "true"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (True, "true"),
        (2.0, "2"),
        (0.123456789, "0.123456789"),
        (("a", "b"), "a,b"),
        (Path("/x"), "/x"),
    ],
)
def test_values_as_text(value, text):
    """A value's text is what would stand in the environment."""
    assert value_text(value) == text


def test_the_nearest_name():
    """What is near is found in any case, and nothing is better than something far."""
    assert nearest("levle", ["level", "handlers"]) == "level"
    assert nearest("LEVLE", ["level"]) == "level"
    assert nearest("zzz", ["level"]) is None
    assert nearest("zzz", ["level"], cutoff=0) == "level"
    assert nearest("zzz", [], cutoff=0) is None


def test_everything_named_is_there():
    """``__all__`` is what the package exposes."""
    assert sorted(runlog.settings.__all__) == sorted(set(runlog.settings.__all__))
    for name in runlog.settings.__all__:
        assert hasattr(runlog.settings, name)


def test_use_profile_needs_a_profile():
    """A profile that does not exist is an error on entering that names the file."""
    with (
        pytest.raises(SettingsError, match=r"profiles.toml: RUNLOG_PROFILE is 'dev', expected a profile"),
        use_profile("dev"),
    ):
        pass


def test_what_was_unset_says_so():
    """The marker of a default that was restored is recognised in a debugger."""
    with temporary_settings({"PREFECT_LOGGING_LEVEL": None}) as settings:
        assert repr(settings._layers[0].values["PREFECT_LOGGING_LEVEL"]) == "UNSET"
