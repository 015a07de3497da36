"""Reading a logging configuration: YAML in which ``$SETTING`` stands for a setting."""

from __future__ import annotations

import importlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runlog.configuration import reading
from runlog.configuration.reading import read_configuration
from runlog.exceptions import LoggingConfigError
from runlog.settings import load_settings

SETTINGS = load_settings(
    {
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_API_KEY": "pnu_read_me_not",
        "RUNLOG_SERVICE_NAME": "C:\\new 'shop': \"a\" # [b]",
        "RUNLOG_SERVER_DATABASE": "postgresql://me:password@db/x",
    }
)


@pytest.fixture(params=["libyaml", "pure"])
def read(request, tmp_path, monkeypatch):
    """Read text as a configuration, with either of PyYAML's loaders."""
    if request.param == "pure":
        monkeypatch.setattr(reading, "_Loader", yaml.SafeLoader)

    def read(text):
        path = tmp_path / "logging.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_configuration(path, SETTINGS)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$PREFECT_LOGGING_LEVEL", "DEBUG"),
        ("${PREFECT_LOGGING_LEVEL}", "DEBUG"),
        ('"${PREFECT_LOGGING_LEVEL}"', "DEBUG"),
        ("'x-${PREFECT_LOGGING_LEVEL}y'", "x-DEBUGy"),
        ("[${PREFECT_LOGGING_LEVEL}, b]", ["DEBUG", "b"]),
        ("{a: $PREFECT_LOGGING_LEVEL}", {"a": "DEBUG"}),
        ("$PREFECT__LOGGING__LEVEL", "DEBUG"),
        ("$PREFECT_LOGGING_SERVER_LEVEL", "WARNING"),
        # Without quotes, what a value is depends on what it says.
        ("$PREFECT_LOGGING_COLORS", False),
        ("'$PREFECT_LOGGING_COLORS'", "false"),
        ("$PREFECT_LOGGING_TO_API_BATCH_SIZE", 4_000_000),
        # What is not set is nothing.
        ("$PREFECT_API_URL", None),
        ("'<$PREFECT_API_URL>'", "<>"),
        # A value never changes the structure around it.
        ("$RUNLOG_SERVICE_NAME", "C:\\new 'shop': \"a\" # [b]"),
        ('"${RUNLOG_SERVICE_NAME}"', "C:\\new 'shop': \"a\" # [b]"),
        ("[${RUNLOG_SERVICE_NAME}]", ["C:\\new 'shop': \"a\" # [b]"]),
        # Dollar signs.
        ("'$$5 and $$PREFECT_LOGGING_LEVEL and $${x}'", "$5 and $PREFECT_LOGGING_LEVEL and ${x}"),
        ("|\n  $PREFECT_LOGGING_LEVEL\n  b", "DEBUG\nb"),
        ("1 # costs $5, $NOBODY", 1),
    ],
)
def test_settings_are_put_in(read, text, value):
    """A reference stands for the setting, wherever a value may stand."""
    assert read(f"a: {text}") == {"a": value}


def test_settings_are_put_into_keys(read):
    """A key may be, or have in it, a setting."""
    assert read("loggers:\n  x.${PREFECT_LOGGING_LEVEL}: {}") == {"loggers": {"x.DEBUG": {}}}


def test_anchors_aliases_and_merges(read):
    """YAML's ways to say a thing once work, and a value is put into a shared node once."""
    text = "a: &x {level: $PREFECT_LOGGING_LEVEL, s: &y '$$$$'}\nb: *x\nc: {<<: *x, s: *y, level: INFO}"
    shared = {"level": "DEBUG", "s": "$$"}
    assert read(text) == {"a": shared, "b": shared, "c": {"level": "INFO", "s": "$$"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: $PREFECT_LOGGING_LEVLE", r"logging.yml:2: \$PREFECT_LOGGING_LEVLE is no setting; did you mean \$PREFECT_LOGGING_LEVEL\? If not, write \$\$PREFECT_LOGGING_LEVLE for"),
        ("a: ${QQQ}", r"logging.yml:1: \$QQQ is no setting; write \$\$QQQ for the text itself"),
        ("a: 1\n\nb: costs $5", r"logging.yml:3: a lone \$, expected the name of a setting after it; write \$\$ for"),
        ("a: '^x$'", r"logging.yml:1: a lone \$"),
        ("a: ${not a name}", r"logging.yml:1: a lone \$"),
        ("a: |\n  one\n  $QQQ", r"logging.yml:3: \$QQQ is no setting"),
        ("a: $PREFECT_API_KEY", r"logging.yml:1: \$PREFECT_API_KEY is a secret, which is never put into a logging"),
        ("a: $PREFECT_API_AUTH_STRING", r"is a secret"),
        ("a: $PREFECT_CLIENT_CUSTOM_HEADERS", r"is a secret"),
        ("a: $RUNLOG_SERVER_DATABASE", r"\$RUNLOG_SERVER_DATABASE is a secret"),
        ("a: 1\nb: 2\na: 3", r"logging.yml:3: the key 'a' is given twice, here and on line 1; remove one of the two"),
        ("x: {a: 1, a: 2}", r"logging.yml:1: the key 'a' is given twice, here and on line 1"),
        ("DEBUG: 1\n$PREFECT_LOGGING_LEVEL: 2", r"the key 'DEBUG' is given twice"),
        ("", r"logging.yml: the logging configuration is empty, expected a mapping; it begins with: version: 1"),
        ("- 1", r"the logging configuration is a sequence, expected a mapping"),
        ("x", r"the logging configuration is a scalar, expected a mapping"),
        ("a: 1\nb: c: d", r"logging.yml:2: this is not YAML: mapping values are not allowed (in this context|here); put quotes around"),
        ("a: [1", r"logging.yml:\d: this is not YAML: .*expected"),
        ("a:\n\t- b", r"logging.yml:2: this is not YAML: found character"),
        ("a: 1\n---\nb: 2", r"this is not YAML: but found another document"),
        ("a: !!python/object:x.Y {}", r"logging.yml:1: this is not YAML: could not determine a constructor"),
        ("a: 2024-13-45", r"logging.yml: this is not YAML: month must be in 1\.\.12"),
        ("? [a, b]\n: 1", r"logging.yml:1: this is not YAML: found unhashable key"),
        ("a: [*b]", r"this is not YAML: found undefined alias"),
        ("a: \x00", r"logging.yml.*: this is not YAML: .*special|control characters are not allowed"),
        (b"a: \xff", r"logging.yml: the logging configuration cannot be read: byte 3 is not UTF-8; save it as UTF-8"),
    ],
)  # fmt: skip
def test_mistakes(read, text, message):
    """What is wrong with a file is one error that names the file, the line if there is one, and what to do."""
    with pytest.raises(LoggingConfigError, match=message) as caught:
        read(text)
    assert "password" not in str(caught.value)
    assert "read_me_not" not in str(caught.value)


def test_a_directory(tmp_path):
    """A directory is no file."""
    with pytest.raises(LoggingConfigError, match="cannot be read: it is a directory; name the file in it"):
        read_configuration(tmp_path, SETTINGS)


def test_a_missing_file(tmp_path):
    """A file that is not there is named, with the setting to correct."""
    path = tmp_path / "no.yml"
    with pytest.raises(
        LoggingConfigError, match="No such file or directory; correct PREFECT_LOGGING_CONFIG_PATH"
    ) as caught:
        read_configuration(path, SETTINGS)
    assert caught.value.file == str(path)


def test_a_byte_order_mark_is_ignored(read):
    """Editors on Windows begin UTF-8 with a mark."""
    assert read(b"\xef\xbb\xbfversion: 1") == {"version": 1}


def test_without_libyaml(monkeypatch):
    """Where PyYAML was built without libyaml, its own loader reads."""
    with monkeypatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader", raising=False)
        assert importlib.reload(reading)._Loader is yaml.SafeLoader
    importlib.reload(reading)


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P", "Z"]), max_size=8), st.text(max_size=20), max_size=4
    )
)
def test_any_text_survives(tmp_path_factory, mapping):
    """Text without references, its dollars doubled, is read back as it was written."""
    path = tmp_path_factory.mktemp("any") / "logging.yml"
    doubled = {key.replace("$", "$$"): value.replace("$", "$$") for key, value in mapping.items()}
    path.write_text(yaml.safe_dump(doubled) if doubled else "{}", encoding="utf-8")
    assert read_configuration(path, SETTINGS) == mapping
