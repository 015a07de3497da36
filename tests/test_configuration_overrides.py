"""Which key of a configuration a ``PREFECT_LOGGING_...`` variable replaces, and by what."""

from __future__ import annotations

import copy
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runlog.configuration import PACKAGED_FILE
from runlog.configuration.overrides import PREFIX, apply_overrides

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"standard": {"()": "a.Formatter", "format": "%(message)s", "options": {}}},
    "handlers": {
        "console": {"level": 0, "class": "a.Handler", "styles": {"log.info_level": "cyan"}},
        "api": {"class": "b.Handler", "number": 3, "share": 1.5, "nothing": None},
        "mail": {"level": "ERROR", "zip": {"level": 9}},
    },
    "loggers": {
        "a.b_c": {"level": "INFO"},
        "a_b.c": {"level": "INFO"},
        "runlog.extra": {"propagate": False, "handlers": ["api"]},
        "prefect._internal": {"level": "INFO"},
        "Upper": None,
    },
    "root": {"level": "WARNING", "handlers": ["console"]},
}


def override(name, value):
    """Apply one variable; return what became of it and what changed, as ``{path: new}``."""
    config = copy.deepcopy(CONFIG)
    found = apply_overrides(config, {PREFIX + name: value, "PATH": "/bin"})
    return (found[0] if found else None), dict(changes(CONFIG, config))


def changes(old, new, path=()):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            yield from changes(old.get(key), new[key], (*path, key))
    elif old != new or type(old) is not type(new):
        yield " > ".join(path), new


@pytest.mark.parametrize(
    ("name", "value", "target", "new"),
    [
        ("ROOT_LEVEL", "debug", "root > level", "DEBUG"),
        ("HANDLERS_CONSOLE_LEVEL", "15", "handlers > console > level", 15),
        ("HANDLERS_CONSOLE_LEVEL", "ERROR", "handlers > console > level", "ERROR"),
        ("LOGGERS_PREFECT_INTERNAL_LEVEL", "DEBUG", "loggers > prefect._internal > level", "DEBUG"),
        ("FORMATTERS_STANDARD_", "b.Formatter", "formatters > standard > ()", "b.Formatter"),
        ("FORMATTERS_STANDARD_FORMAT", " %(msg)s ", "formatters > standard > format", " %(msg)s "),
        (
            "HANDLERS_CONSOLE_STYLES_LOG_INFO_LEVEL",
            "red",
            "handlers > console > styles > log.info_level",
            "red",
        ),
        # A value has the type of what it replaces.
        ("LOGGERS_RUNLOG_EXTRA_PROPAGATE", "true", "loggers > runlog.extra > propagate", True),
        ("DISABLE_EXISTING_LOGGERS", "Yes", "disable_existing_loggers", True),
        ("HANDLERS_API_NUMBER", "4", "handlers > api > number", 4),
        ("HANDLERS_API_SHARE", "4", "handlers > api > share", 4.0),
        ("HANDLERS_MAIL_ZIP_LEVEL", "6", "handlers > mail > zip > level", 6),
        ("ROOT_HANDLERS", "api, console,", "root > handlers", ["api", "console"]),
        ("HANDLERS_API_NOTHING", "[1, a]", "handlers > api > nothing", [1, "a"]),
        ("HANDLERS_API_NOTHING", "a: b", "handlers > api > nothing", "a: b"),
        ("HANDLERS_API_NOTHING", "[", "handlers > api > nothing", "["),
    ],
)
def test_a_key_is_replaced(name, value, target, new):
    """A variable replaces the one key that it is named after."""
    found, changed = override(name, value)
    assert (found.status, found.targets, found.name, found.value) == (
        "applied",
        (target,),
        PREFIX + name,
        value,
    )
    assert changed == {target: new}
    assert type(changed[target]) is type(new)


@pytest.mark.parametrize(
    ("name", "value", "target", "new"),
    [
        ("LOGGERS__A__B_C__LEVEL", "DEBUG", "loggers > a.b_c > level", "DEBUG"),
        ("LOGGERS__A_B__C__LEVEL", "DEBUG", "loggers > a_b.c > level", "DEBUG"),
        ("LOGGERS__RUNLOG_EXTRA__PROPAGATE", "yes", "loggers > runlog.extra > propagate", True),
        ("_ROOT__LEVEL", "ERROR", "root > level", "ERROR"),
        ("_DISABLE_EXISTING_LOGGERS", "1", "disable_existing_loggers", True),
        ("FORMATTERS__STANDARD___", "b.Formatter", "formatters > standard > ()", "b.Formatter"),
        (
            "HANDLERS__CONSOLE__STYLES__LOG__INFO_LEVEL",
            "red",
            "handlers > console > styles > log.info_level",
            "red",
        ),
    ],
)
def test_a_key_is_named_exactly(name, value, target, new):
    """With ``__`` between the levels, a variable means one key where it could mean two."""
    found, changed = override(name, value)
    assert (found.status, found.targets) == ("applied", (target,))
    assert changed == {target: new}


@pytest.mark.parametrize(
    ("name", "value", "added"),
    [
        ("LOGGERS__SQLALCHEMY__ENGINE__LEVEL", "info", {"loggers > sqlalchemy.engine": {"level": "INFO"}}),
        ("LOGGERS__UPPER__LEVEL", "DEBUG", {"loggers > Upper": {"level": "DEBUG"}}),
        ("LOGGERS__RUNLOG__EXTRA__FILTERS", "a,b", {"loggers > runlog.extra > filters": ["a", "b"]}),
        ("LOGGERS__RUNLOG_EXTRA__LEVEL", "DEBUG", {"loggers > runlog.extra > level": "DEBUG"}),
        ("LOGGERS__RUNLOG__EXTRA__SUB__LEVEL", "DEBUG", {"loggers > runlog.extra.sub": {"level": "DEBUG"}}),
        ("LOGGERS___PRIVATE__LEVEL", "DEBUG", {"loggers > _private": {"level": "DEBUG"}}),
        ("ROOT__PROPAGATE", "no", {"root > propagate": False}),
        ("HANDLERS__API__QUEUE_SIZE", "70000", {"handlers > api > queue_size": 70000}),
        ("HANDLERS__API__API_URL", "http://x/api", {"handlers > api > api_url": "http://x/api"}),
        ("HANDLERS__NEW__CLASS", "a.B", {"handlers > new": {"class": "a.B"}}),
        ("HANDLERS__CONSOLE__STYLES__FOO", "red", {"handlers > console > styles > foo": "red"}),
        ("HANDLERS__API__NOTHING__DEEP", "1", {"handlers > api > nothing": {"deep": 1}}),
        ("FORMATTERS__STANDARD__OPTIONS__KEY", "v", {"formatters > standard > options > key": "v"}),
    ],
)
def test_a_key_is_added(name, value, added):
    """With ``__``, a variable adds a key that the file lacks, in lower case; an existing name is found in any case."""
    found, changed = override(name, value)
    assert found.status == "applied"
    assert changed == added


def test_a_top_level_key_is_added():
    """A key at the top can be added as well, if `logging.config` knows it."""
    config = {"version": 1}
    assert (
        apply_overrides(config, {"PREFECT_LOGGING__DISABLE_EXISTING_LOGGERS": "true"})[0].status == "applied"
    )
    assert apply_overrides(config, {"PREFECT_LOGGING_ROOT__LEVEL": "INFO"})[0].status == "applied"
    assert config == {"version": 1, "disable_existing_loggers": True, "root": {"level": "INFO"}}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ROOT_LEVL", "PREFECT_LOGGING_ROOT_LEVEL"),
        ("LEVLE", "PREFECT_LOGGING_LEVEL"),
        ("HANDLERS_CONSOL_LEVEL", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"),
        ("ROOT", None),
        ("ROOT__LEVL", "PREFECT_LOGGING_ROOT_LEVEL"),
        ("ROOT__HANDLERS__X", None),
        ("LOGERS__RUNLOG_EXTRA__PROPAGATE", "PREFECT_LOGGING_LOGGERS_RUNLOG_EXTRA_PROPAGATE"),
        ("LOGGERS__RUNLOG_EXTRA__PROPAGAT", "PREFECT_LOGGING_LOGGERS_RUNLOG_EXTRA_PROPAGATE"),
        ("LOGGERS__LEVEL", None),
        ("HANDLERS__CONSOLE", None),
        ("HANDLERS__NEW", None),
        ("HANDLERS__CONSOLE__LEVEL__X", None),
        ("VERSION__X", None),
        ("ZZZ", None),
    ],
)
def test_what_matches_nothing(name, nearest):
    """A variable that matches nothing changes nothing, and the nearest one is named."""
    found, changed = override(name, "x")
    assert found.status == "unmatched"
    assert not changed
    assert found.nearest
    assert f"; the nearest is {found.nearest}" in found.problem
    assert nearest in (None, found.nearest)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "LOGGERS_A_B_C_LEVEL",
            "write PREFECT_LOGGING_LOGGERS__A__B_C__LEVEL or PREFECT_LOGGING_LOGGERS__A_B__C__LEVEL",
        ),
        (
            "LOGGERS__A_B_C__LEVEL",
            "write PREFECT_LOGGING_LOGGERS__A__B_C__LEVEL or PREFECT_LOGGING_LOGGERS__A_B__C__LEVEL",
        ),
        ("LOGGERS__A_B_C__PROPAGATE", "write PREFECT_LOGGING_LOGGERS__A__B_C__PROPAGATE or"),
    ],
)
def test_what_could_mean_two(name, remedy):
    """A variable that could mean two keys changes nothing, and it is said how to write which."""
    found, changed = override(name, "DEBUG")
    assert found.status == "ambiguous"
    assert not changed
    assert len(found.targets) == 2
    assert found.problem == f"{PREFIX}{name} could mean {' or '.join(found.targets)}"
    assert found.remedy.startswith(remedy)


def test_an_empty_configuration_has_nothing_to_replace():
    """Where the file has no keys, the nearest is a setting."""
    found = apply_overrides({}, {"PREFECT_LOGGING_LEVLE": "DEBUG"})
    assert [(item.status, item.nearest) for item in found] == [("unmatched", "PREFECT_LOGGING_LEVEL")]


def test_what_cannot_be_told_apart():
    """Two keys that have the same name in every way of writing must be renamed."""
    config = {"loggers": {"a-b": {"level": 1}, "a_b": {"level": 1}}}
    found = apply_overrides(config, {"PREFECT_LOGGING_LOGGERS__A_B__LEVEL": "INFO"})
    assert (found[0].status, found[0].remedy) == ("ambiguous", "rename one of the two in the file")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LOGGERS_RUNLOG_EXTRA_PROPAGATE", "maybe", "expected true or false"),
        ("HANDLERS_API_NUMBER", "x", "expected a whole number"),
        ("HANDLERS_API_SHARE", "x", "expected a number"),
        ("HANDLERS_CONSOLE_LEVEL", "loud", "expected one of NOTSET, DEBUG, INFO, "),
        (
            "FORMATTERS_STANDARD_OPTIONS",
            "x",
            "expected nothing, as it is an empty mapping: add a key with __",
        ),
    ],
)
def test_a_wrong_value(name, value, expected):
    """A value that the key cannot have changes nothing, and it is said what was expected."""
    found, changed = override(name, value)
    assert found.status == "invalid"
    assert not changed
    assert found.problem.startswith(f"{PREFIX}{name} is {value!r}, {expected}")
    assert found.problem.endswith(f"because it replaces {found.targets[0]}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROOT_LEVEL", ""),
        ("ROOT_LEVEL", "  "),
        ("LEVEL", "DEBUG"),
        ("TO_API_ENABLED", "false"),
        ("ORION_ENABLED", "false"),
        ("SETTINGS_PATH", "x"),
        ("INTERNAL_LEVEL", "DEBUG"),
    ],
)
def test_what_is_no_override(name, value):
    """Empty values and settings, Prefect's own included, are left out."""
    assert override(name, value) == (None, {})


def test_the_exact_name_wins():
    """Of two variables that mean the same key, the one with ``__`` counts."""
    config = copy.deepcopy(CONFIG)
    environ = {"PREFECT_LOGGING_ROOT__LEVEL": "ERROR", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG"}
    assert [found.status for found in apply_overrides(config, environ)] == ["applied", "applied"]
    assert config["root"]["level"] == "ERROR"


def test_several_variables_build_one_logger():
    """What one variable added, the next one finds."""
    config = copy.deepcopy(CONFIG)
    apply_overrides(
        config, {f"PREFECT_LOGGING_LOGGERS__X__Y__{key}": "api" for key in ("HANDLERS", "FILTERS")}
    )
    assert config["loggers"]["x.y"] == {"handlers": ["api"], "filters": ["api"]}


def test_every_key_of_the_packaged_file_can_be_replaced():
    """Each key of the packaged file has a variable of its own."""
    config = yaml.safe_load(PACKAGED_FILE.read_text(encoding="utf-8"))

    def leaves(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield path, node

    for path, old in list(leaves(config, ())):
        value = {bool: "true", int: "1", list: "x"}.get(type(old), "INFO")
        parts = [re.sub("[^A-Za-z0-9]+", "_", key).upper() for key in path]
        for name in (re.sub("_+", "_", "_".join(parts)), "__".join(parts)):
            found = apply_overrides(copy.deepcopy(config), {PREFIX + name: value})
            assert [(item.status, item.targets) for item in found] == [("applied", (" > ".join(path),))], name


@given(st.text("ABLOGERSHNDT_", max_size=30), st.text(max_size=5))
def test_no_variable_breaks_it(name, value):
    """Whatever a variable is called and says, it is applied or explained, and never an exception."""
    found, changed = override(name, value)
    if found is not None:
        assert bool(changed) <= (found.status == "applied")
        assert (found.problem is None) == (found.status == "applied")
