"""Setting logging up: which file, what it does to loggers, and what it leaves alone."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import logging.handlers
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from runlog import configuration
from runlog.configuration import describe_overrides, load_logging_config, setup_logging
from runlog.exceptions import LoggingConfigError, SettingsError
from runlog.handlers import APILogHandler
from runlog.settings import reset_settings_cache, temporary_settings

RUN_LOGGERS = ("runlog.flow_runs", "runlog.task_runs")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Each test begins where nothing was loaded or installed yet, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configuration, "_installation", None)
    reset_settings_cache()
    yield
    reset_settings_cache()


@contextlib.contextmanager
def root_handlers(*handlers):
    """Give the root logger these handlers only, in place of pytest's."""
    before = logging.root.handlers
    logging.root.handlers = list(handlers)
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            if handler not in handlers:
                handler.close()
        logging.root.handlers = before


class Keep(logging.Handler):
    """Keeps messages, and counts how often it was closed."""

    def __init__(self, level=logging.NOTSET, note=None):
        super().__init__(level)
        self.messages = []
        self.closed = 0

    def emit(self, record):
        self.messages.append(record.getMessage())

    def close(self):
        self.closed += 1
        super().close()


class Broken(logging.Handler):
    def __init__(self):
        raise OSError("no such pager")


class Stubborn(Keep):
    def flush(self):
        raise ValueError("flush of closed file")


OWN = {
    "version": 1,
    "formatters": {"short": {"format": "%(message)s"}},
    "handlers": {"keep": {"()": Keep, "formatter": "short"}, "other": {"()": Keep}},
    "loggers": {"runlog": {"level": "INFO", "handlers": ["keep"]}, "runlog.extra": {"handlers": ["keep"]}},
    "root": {"level": "WARNING", "handlers": ["other"]},
}


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Make a configuration the one that is used; changes of OWN by path, `None` removes."""

    def use(config=None, **changes):
        config = yaml.unsafe_load(yaml.dump(OWN if config is None else config))
        for path, value in changes.items():
            *above, last = path.split("__")
            node = config
            for key in above:
                node = node.setdefault(key.replace("_", "."), {})
            node[last] = value
            if value is None:
                del node[last]
        handlers = config.get("handlers")
        for section in handlers.values() if isinstance(handlers, dict) else ():
            if isinstance(section, dict) and isinstance(section.get("()"), type):
                section["()"] = f"{__name__}.{section['()'].__name__}"
        path = tmp_path / "own.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        monkeypatch.setenv("PREFECT_LOGGING_CONFIG_PATH", str(path))
        reset_settings_cache()

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return use


def handler_of(name, kind=Keep):
    (found,) = [handler for handler in logging.getLogger(name).handlers if type(handler) is kind]
    return found


# --- which file -----------------------------------------------------------------------------------


def test_the_packaged_file():
    """By default runs go to the server, everything to the console, and levels are as documented."""
    with root_handlers():
        config = setup_logging()
        assert [type(handler).__name__ for handler in logging.root.handlers] == ["ConsoleHandler"]
    assert config["incremental"] is False
    assert config["disable_existing_loggers"] is False
    for name in RUN_LOGGERS:
        assert isinstance(handler_of(name, APILogHandler), APILogHandler)
        assert logging.getLogger(name).propagate
        assert logging.getLogger(name).getEffectiveLevel() == logging.INFO
    assert logging.getLogger("runlog.server").level == logging.WARNING
    assert sorted(config["formatters"]) == ["debug", "json", "simple", "standard"]
    assert sorted(config["handlers"]) == ["api", "console", "debug"]


def test_the_packaged_file_is_in_the_package():
    """The file is found as a resource too, which is how the documentation quotes it."""
    text = importlib.resources.files("runlog").joinpath("logging.yml").read_text(encoding="utf-8")
    assert text == configuration.PACKAGED_FILE.read_text(encoding="utf-8")


def test_a_file_in_home_is_used(tmp_path):
    """``$RUNLOG_HOME/logging.yml`` replaces the packaged file as a whole, if it is there."""
    home = tmp_path / "runlog-home"
    home.mkdir()
    (home / "logging.yml").write_text("version: 1\nloggers: {x.y: {level: $PREFECT_LOGGING_LEVEL}}")
    config = setup_logging()
    assert config["loggers"] == {"x.y": {"level": "INFO"}}
    assert logging.getLogger("x.y").level == logging.INFO


def test_a_file_that_was_named_must_exist(monkeypatch, tmp_path):
    """A path that leads nowhere is an error, not the packaged file in silence."""
    monkeypatch.setenv("PREFECT_LOGGING_SETTINGS_PATH", str(tmp_path / "no.yml"))
    with pytest.raises(
        LoggingConfigError, match=r"no\.yml: the logging configuration cannot be read: No such file"
    ):
        setup_logging()


def test_load_logging_config_reads_any_file(tmp_path, monkeypatch):
    """A path may be given, as text too; overrides are applied and existing loggers are left enabled."""
    path = tmp_path / "a.yml"
    path.write_text("root: {level: INFO}")
    monkeypatch.setenv("PREFECT_LOGGING_ROOT_LEVEL", "debug")
    assert load_logging_config(str(path)) == {"root": {"level": "DEBUG"}, "disable_existing_loggers": False}
    assert load_logging_config()["root"]["level"] == "DEBUG"


def test_settings_are_errors_of_their_own(monkeypatch):
    """A wrong setting is told as such."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "LOUD")
    with pytest.raises(SettingsError, match="LOUD"):
        setup_logging()


def test_the_format_of_prefect_1(monkeypatch, capsys):
    """``PREFECT__LOGGING__FORMAT`` and ``PREFECT__LOGGING__LEVEL`` shape all lines of the packaged file."""
    monkeypatch.setenv("PREFECT__LOGGING__FORMAT", "%(levelname)s!%(message)s")
    monkeypatch.setenv("PREFECT__LOGGING__LEVEL", "DEBUG")
    with root_handlers():
        setup_logging()
        logging.getLogger("runlog.flow_runs").debug("hi", extra={"flow_run_id": "1", "send_to_api": False})
    assert "DEBUG!hi" in capsys.readouterr().err


# --- overrides ------------------------------------------------------------------------------------


def test_overrides_are_applied(monkeypatch):
    """A variable changes a key of the packaged file."""
    monkeypatch.setenv("PREFECT_LOGGING_LOGGERS_RUNLOG_SERVER_LEVEL", "DEBUG")
    setup_logging()
    assert logging.getLogger("runlog.server").level == logging.DEBUG


def test_an_unmatched_override_is_a_warning_at_the_caller(monkeypatch):
    """What matches nothing is warned of, where `setup_logging` was called."""
    monkeypatch.setenv("PREFECT_LOGGING_ROOT_LEVL", "DEBUG")
    message = "PREFECT_LOGGING_ROOT_LEVL matches no key .* the nearest is PREFECT_LOGGING_ROOT_LEVEL"
    with pytest.warns(UserWarning, match=message) as caught:
        setup_logging()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as caught:
        load_logging_config()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_LOGGING_LOGGERS_A_B_C_LEVEL", "DEBUG", "could mean loggers > a.b_c > level or loggers > a_b.c > level; write"),
        ("PREFECT_LOGGING_ROOT_LEVEL", "LOUD", "is 'LOUD', expected one of .*; correct it or unset it"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_an_error(tmp_path, monkeypatch, name, value, message):
    """An ambiguous variable and a wrong value are errors, and nothing changes."""
    path = tmp_path / "a.yml"
    path.write_text("version: 1\nloggers: {a.b_c: {level: INFO}, a_b.c: {level: INFO}}\nroot: {level: INFO}")
    monkeypatch.setenv("PREFECT_LOGGING_CONFIG_PATH", str(path))
    monkeypatch.setenv(name, value)
    with pytest.raises(LoggingConfigError, match=message) as caught:
        setup_logging()
    assert (caught.value.key, caught.value.got) == (name, value)
    assert logging.getLogger("a.b_c").level == logging.NOTSET
    assert [item.status for item in describe_overrides()] == ["ambiguous" if "A_B_C" in name else "invalid"]


def test_overrides_can_be_listed(monkeypatch):
    """What becomes of each variable can be asked for, without a warning."""
    monkeypatch.setenv("PREFECT_LOGGING_ROOT_LEVEL", "DEBUG")
    monkeypatch.setenv("PREFECT_LOGGING_ROOT_LEVL", "DEBUG")
    found = {item.name: (item.status, item.targets) for item in describe_overrides()}
    assert found == {
        "PREFECT_LOGGING_ROOT_LEVEL": ("applied", ("root > level",)),
        "PREFECT_LOGGING_ROOT_LEVL": ("unmatched", ()),
    }


# --- a second call --------------------------------------------------------------------------------


def test_a_second_call_changes_levels_in_place(use):
    """Nothing is built anew if only levels and propagation differ."""
    use()
    with root_handlers():
        assert setup_logging()["incremental"] is False
        keep, other = handler_of("runlog"), handler_of(None)
        use(loggers__runlog__level="DEBUG", handlers__keep__level="ERROR", root__level="INFO")
        assert setup_logging()["incremental"] is True
        assert (handler_of("runlog"), handler_of(None)) == (keep, other)
        assert logging.getLogger("runlog").level == logging.DEBUG
        assert logging.root.level == logging.INFO
    assert keep.level == logging.ERROR
    assert not keep.closed
    use(loggers__runlog__propagate=False)
    setup_logging(incremental=True)
    assert logging.getLogger("runlog").propagate is False


def test_a_second_call_with_other_handlers_installs_them(use):
    """What was replaced is flushed and closed once; the new handlers keep their names."""
    use()
    setup_logging()
    keep = handler_of("runlog")
    use(formatters__short__format="%(levelname)s")
    assert setup_logging()["incremental"] is False
    assert handler_of("runlog") is not keep
    assert (keep.closed, handler_of("runlog").closed) == (1, 0)
    assert logging._handlers["keep"] is handler_of("runlog")


def test_what_somebody_removed_comes_back(use):
    """A handler that a framework took off its logger is put back by the next call."""
    use()
    setup_logging()
    logging.getLogger("runlog").handlers.clear()
    logging.getLogger("runlog").disabled = True
    assert setup_logging()["incremental"] is False
    logging.getLogger("runlog").info("again")
    assert handler_of("runlog").messages == ["again"]


def test_incremental_as_asked(use):
    """`True` never builds what is there, `False` always does; unknown handlers make the first the second."""
    use()
    assert setup_logging(incremental=True)["incremental"] is False  # nothing is there yet
    keep = handler_of("runlog")
    use(formatters__short__format="%(levelname)s")
    assert setup_logging(incremental=True)["incremental"] is True
    assert handler_of("runlog") is keep
    assert setup_logging(incremental=False)["incremental"] is False
    use(handlers__third={"()": Keep})
    assert setup_logging(incremental=True)["incremental"] is False


def test_incremental_as_the_file_says(use):
    """``incremental`` in a file is what the argument is by default."""
    use(incremental=False)
    setup_logging()
    keep = handler_of("runlog")
    setup_logging()
    assert handler_of("runlog") is not keep
    assert setup_logging(incremental=True)["incremental"] is True


def test_a_handler_that_cannot_be_closed_harms_nobody(use):
    """An exception from a handler that is thrown away stays here, and the others are closed."""
    use(handlers__other={"()": Stubborn}, loggers__runlog__handlers=["keep", "other"])
    setup_logging()
    keep = handler_of("runlog")
    setup_logging(incremental=False)
    assert keep.closed == 1


def test_the_answer_is_a_copy(use):
    """Changing what was returned changes nothing that is in force."""
    use()
    setup_logging()["handlers"].clear()
    assert setup_logging()["incremental"] is True


# --- what is left alone ---------------------------------------------------------------------------


def test_somebody_elses_root_handlers_stay(use):
    """A root logger with a handler of somebody else's keeps handlers and level, also at a second call."""
    use()
    foreign = Keep()
    with root_handlers(foreign):
        logging.root.setLevel(logging.ERROR)
        config = setup_logging()
        assert "root" not in config
        setup_logging(incremental=False)
        assert (logging.root.handlers, logging.root.level) == ([foreign], logging.ERROR)
    assert not foreign.closed


def test_pytests_handlers_are_somebody_elses(use, caplog):
    """``caplog`` sees lines of runs after a set-up in the test."""
    use()
    assert "root" not in setup_logging()
    logging.getLogger("runlog.flow_runs").warning("seen")
    assert caplog.messages == ["seen"]


def test_a_root_handler_that_came_later_stays(use):
    """Where the root logger is ours, a handler that the program adds is kept beside ours."""
    use()
    later = Keep()
    with root_handlers():
        setup_logging()
        logging.root.addHandler(later)
        use(formatters__short__format="%(levelname)s")
        assert "root" in setup_logging()
        assert later in logging.root.handlers
        assert len(logging.root.handlers) == 2
        assert not later.closed


def test_handlers_of_the_program_are_neither_removed_nor_closed(use):
    """Handlers on runlog's loggers and their children, and files elsewhere, survive a full set-up."""
    use()
    mine, child, elsewhere = Keep(), Keep(), Keep()
    setup_logging()
    for name, handler in (("runlog", mine), ("runlog.Task B", child), ("else.where", elsewhere)):
        logging.getLogger(name).addHandler(handler)
    setup_logging(incremental=False)
    logging.getLogger("runlog.Task B").warning("line")
    assert (mine.messages, child.messages) == (["line"], ["line"])
    assert elsewhere in logging.getLogger("else.where").handlers
    assert not mine.closed + child.closed + elsewhere.closed


def test_handlers_of_other_named_loggers_are_replaced(use):
    """A logger of somebody else's that the file gives handlers has these, and one that only gets a level keeps its own."""
    use(loggers__else_a={"handlers": ["keep"]}, loggers__else_b={"level": "ERROR"})
    a, b = Keep(), Keep()
    logging.getLogger("else_a").addHandler(a)
    logging.getLogger("else_b").addHandler(b)
    setup_logging()
    assert logging.getLogger("else_a").handlers == [handler_of("runlog")]
    assert logging.getLogger("else_b").handlers == [b]


def test_loggers_are_not_disabled(use):
    """Existing loggers stay as they are: enabled, or disabled by somebody on purpose."""
    use()
    logging.getLogger("else.on").disabled = False
    logging.getLogger("else.off").disabled = True
    setup_logging()
    assert logging.getLogger("else.on").disabled is False
    assert logging.getLogger("else.off").disabled is True


def test_a_file_may_disable_existing_loggers(use):
    """``disable_existing_loggers: true`` is honoured, but for runlog's loggers and the children of those named."""
    use(disable_existing_loggers=True, loggers__named={"level": "INFO"})
    for name in ("else.where", "named.child", "runlog.child"):
        logging.getLogger(name).disabled = False
    setup_logging()
    disabled = [
        name for name in ("else.where", "named.child", "runlog.child") if logging.getLogger(name).disabled
    ]
    assert disabled == ["else.where"]


def test_attach_only(use):
    """With ``attach_only`` only ``runlog`` and ``runlog.*`` are touched."""
    use(loggers__else_a={"handlers": ["keep"], "level": "ERROR"}, disable_existing_loggers=True)
    with root_handlers(), temporary_settings({"PREFECT_LOGGING_EXTRA_LOGGERS": "else_b"}):
        level = logging.root.level
        config = setup_logging(attach_only=True)
        assert (logging.root.handlers, logging.root.level) == ([], level)
    assert sorted(config["loggers"]) == ["runlog", "runlog.extra"]
    for name in ("else_a", "else_b"):
        logger = logging.getLogger(name)
        assert (logger.handlers, logger.level, logger.disabled) == ([], logging.NOTSET, False)
    handler_of("runlog")


def test_attach_only_after_a_whole_set_up(use):
    """What a whole set-up gave other loggers stays there, open, until the next whole one."""
    use()
    with root_handlers():
        setup_logging()
        other, keep = handler_of(None), handler_of("runlog")
        setup_logging(attach_only=True)
        assert handler_of(None) is other
        assert (other.closed, keep.closed) == (0, 1)
        setup_logging()
        assert handler_of(None) is not other
    assert other.closed == 1


# --- extra loggers --------------------------------------------------------------------------------


def test_extra_loggers(use):
    """Extra loggers get the handlers of ``runlog.extra``, once, however often logging is set up."""
    use()
    with temporary_settings({"PREFECT_LOGGING_EXTRA_LOGGERS": "lib, lib.sub,other"}):
        for _ in range(2):
            setup_logging()
            setup_logging(incremental=False)
    keep = handler_of("lib")
    assert keep is handler_of("other")
    assert logging.getLogger("lib").level == logging.NOTSET
    logging.getLogger("lib.sub").warning("once")
    assert keep.messages == ["once"]
    with temporary_settings({"PREFECT_LOGGING_EXTRA_LOGGERS": ""}):
        assert setup_logging()["incremental"] is False
    assert not logging.getLogger("lib").handlers


def test_an_extra_logger_below_one_that_does_not_propagate(use):
    """A parent's handler counts only if lines come to it."""
    use(loggers__lib={"propagate": False}, loggers__quiet={"handlers": ["keep"]})
    logging.getLogger("quiet.sub").propagate = False
    with temporary_settings({"PREFECT_LOGGING_EXTRA_LOGGERS": "lib.sub,quiet.sub,quiet.sub.sub"}):
        setup_logging()
    for name in ("lib.sub", "quiet.sub"):
        assert handler_of(name) is handler_of("quiet")
    assert not logging.getLogger("quiet.sub.sub").handlers
    logging.getLogger("quiet.sub").propagate = True


def test_the_root_logger_as_an_extra_logger(use):
    """Lines of all loggers can be sent: those of runs still come once."""
    use(loggers={"runlog.extra": {"handlers": ["keep"]}, "runlog.flow_runs": {"handlers": ["keep"]}})
    with root_handlers(Keep()) as _, temporary_settings({"PREFECT_LOGGING_EXTRA_LOGGERS": "root"}):
        setup_logging()
        keep = logging.root.handlers[-1]
        logging.getLogger("runlog.flow_runs").warning("a")
        logging.getLogger("any").warning("b")
    assert keep.messages == ["a", "b"]


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, "version is missing, expected 1; write version: 1"),
        ({"version": 2}, "version is 2, expected 1"),
        ({"handlers": []}, r"handlers is \[\], expected a mapping"),
        ({"handlers__keep": 5}, "handlers > keep is 5, expected a mapping"),
        ({"handlers__keep": {"level": 5}}, "handlers > keep > class is None, expected the dotted name of a class"),
        ({"handlers__keep__formatter": "no"}, "handlers > keep > formatter is 'no', expected one that .*: short"),
        ({"handlers__keep__level": "LOUD"}, "handlers > keep > level is 'LOUD', expected one of NOTSET, .* or a number"),
        ({"loggers__runlog__handlers": ["no"]}, "loggers > runlog > handlers is 'no', expected .*: keep, other"),
        ({"loggers__runlog__filters": ["no"]}, "loggers > runlog > filters is 'no', expected .*: none"),
        ({"loggers__runlog__handlers": "keep"}, r"loggers > runlog > handlers is 'keep', expected a list, such as \[keep\]"),
        ({"loggers__runlog__propagate": "no"}, "loggers > runlog > propagate is 'no', expected true or false"),
        ({"loggers__runlog__levle": "INFO"}, "loggers > runlog is 'levle', expected keys out of level, handlers"),
        ({"loggers__runlog__level": True}, "loggers > runlog > level is True, expected one of"),
        ({"root__level": "LOUD"}, "root > level is 'LOUD'"),
        ({"disable_existing_loggers": "no"}, "disable_existing_loggers is 'no', expected true or false"),
        ({"loggers": {5: {}}}, "loggers is 5, expected names that are text: put quotes around it"),
        ({"handlers__keep__filters": ["no"]}, "handlers > keep > filters is 'no', expected one that .*: none"),
        ({"handlers__keep__formatter": ["no"]}, r"handlers > keep > formatter is \['no'\], expected one that"),
        ({"loggers__runlog__handlers": [["keep"]]}, r"handlers is \['keep'\], expected one that the file defines"),
        ({"root": 5}, "root is 5, expected a mapping"),
        ({"handlers__keep": {"class": "no.such.Class"}}, "handlers > keep cannot be made: ModuleNotFoundError: No module"),
        ({"handlers__keep": {"()": Broken}}, "handlers > keep cannot be made: OSError: no such pager"),
        ({"handlers__keep": {"()": Keep, "colour": "red"}}, "handlers > keep cannot be made: TypeError: .*'colour'"),
        ({"formatters__short": {"format": "%(message)"}}, "formatters > short cannot be made: ValueError: "),
        ({"filters": {"f": {"()": "no.such"}}}, "filters > f cannot be made: "),
        ({"handlers__keep": {"class": "logging.handlers.MemoryHandler", "capacity": 1, "target": "no"}}, "handlers > keep cannot be made: KeyError: 'no'"),
    ],
)  # fmt: skip
def test_mistakes_change_nothing(use, changes, message):
    """A mistake in a file is one error that names file and key, and leaves logging and open handlers as they were."""
    use()
    with root_handlers():
        setup_logging()
        before = logging.getLogger("runlog").handlers[:]
        use(**changes)
        with pytest.raises(LoggingConfigError, match=message) as caught:
            setup_logging()
        assert str(caught.value).count("\n") == 0
        assert str(caught.value).startswith(os.environ["PREFECT_LOGGING_CONFIG_PATH"])
        assert logging.getLogger("runlog").handlers == before
        assert not before[0].closed


def test_empty_sections_are_fine(use):
    """What is left empty in a file is as good as left out, and a level may have any case."""
    use(
        {
            "version": 1,
            "handlers": None,
            "loggers": {"x.y": None, "x.z": {"level": "debug", "handlers": None}},
            "root": None,
        }
    )
    setup_logging()
    assert logging.getLogger("x.z").level == logging.DEBUG


def test_handlers_that_refer_to_others(use):
    """A memory handler gets its target, whatever their order; handlers that no logger has are closed in the end, too."""
    buffer = {"class": "logging.handlers.MemoryHandler", "capacity": 10, "target": "keep"}
    use(handlers__a_buffer=buffer, loggers__runlog__handlers=["a_buffer"], loggers__runlog_extra=None)
    setup_logging()
    memory = handler_of("runlog", logging.handlers.MemoryHandler)
    keep = memory.target
    logging.getLogger("runlog").info("kept")
    setup_logging(incremental=False)
    assert keep.messages == ["kept"]
    assert keep.closed == 1


def test_filters(use):
    """Filters of loggers and handlers are installed, and replaced by the next set-up; the program's own stay."""
    named = {"filters": {"ours": {"name": "runlog"}}, "loggers__runlog__filters": ["ours"]}
    use(**named)
    mine = logging.Filter("runlog")
    logging.getLogger("runlog").addFilter(mine)
    for _ in range(2):
        setup_logging(incremental=False)
    filters = logging.getLogger("runlog").filters
    assert len(filters) == 2
    assert filters[0] is mine


# --- threads, processes, runs ---------------------------------------------------------------------


def test_no_line_is_lost_while_handlers_are_exchanged(use):
    """Lines of another thread reach the former or the new handler, each exactly once."""
    use()
    setup_logging()
    seen, ready, stop = [], threading.Event(), threading.Event()

    def log():
        count = 0
        while not stop.is_set():
            logging.getLogger("runlog").info("%d", count)
            count += 1
            ready.set()
        return count

    keepers = [handler_of("runlog")]
    with ThreadPoolExecutor(1) as pool:
        logging_thread = pool.submit(log)
        assert ready.wait(10)
        for _ in range(20):
            setup_logging(incremental=False)
            keepers.append(handler_of("runlog"))
        stop.set()
        count = logging_thread.result(10)
    for keeper in keepers:
        seen += keeper.messages
    assert sorted(map(int, seen)) == list(range(count))


def test_threads_may_set_up_at_once(use):
    """Many threads that set up at once install once."""
    use()
    barrier = threading.Barrier(8)

    def set_up(_):
        barrier.wait(10)
        return setup_logging()["incremental"]

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(set_up, range(8))) == [False] + [True] * 7
    logging.getLogger("runlog").info("one")
    assert handler_of("runlog").messages == ["one"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_in_the_middle_of_a_set_up_is_survived(use):
    """A child that was forked while another thread was setting up can set up."""
    use()
    held, done = threading.Event(), threading.Event()

    def hold():
        with configuration._setting_up:
            held.set()
            done.wait(30)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        assert held.wait(10)
        pid = os.fork()
        if not pid:
            os._exit(0 if setup_logging() else 1)
        status = os.waitpid(pid, 0)[1]
        done.set()
    assert status == 0


def test_a_run_from_the_environment_brings_its_settings(tmp_path):
    """A child program continues the run of ``RUNLOG_CONTEXT``, with its settings, once logging is set up."""
    code = (
        "import os, runlog\n"
        "from runlog.propagation import capture\n"
        "from runlog.settings import temporary_settings\n"
        "with temporary_settings({'PREFECT_LOGGING_LEVEL': 'ERROR'}), runlog.flow_run('etl', run_name='friday'):\n"
        "    print(capture())\n"
    )
    environ = {
        "PATH": os.environ["PATH"],
        "RUNLOG_HOME": str(tmp_path),
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    code = (
        "import logging, runlog\n"
        "runlog.setup_logging()\n"
        "print(runlog.get_run_context().run_name, logging.getLogger('runlog').level)\n"
    )
    environ["RUNLOG_CONTEXT"] = run.stdout.strip()
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert run.stdout == "friday 40\n"
