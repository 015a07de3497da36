"""The console shows records, in colour where that is wanted, and never gets in the way."""

from __future__ import annotations

import errno
import io
import logging
import logging.config
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from runlog import settings
from runlog.console import DEFAULT_STYLES, ConsoleHandler
from runlog.context import FlowRunContext
from runlog.formatters import JsonFormatter, RunFormatter

LINE = "%(levelname)s | %(message)s"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    settings.reset_settings_cache()
    yield
    settings.reset_settings_cache()


@pytest.fixture
def with_setting(monkeypatch):
    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        settings.reset_settings_cache()

    return change


def make_record(msg="message", args=(), level=logging.INFO, **extra):
    record = logging.LogRecord("app", level, "/src/app.py", 7, msg, (), None)
    record.args = args
    record.__dict__.update(extra)
    return record


def handler_to(stream=None, formatter=None, **options):
    handler = ConsoleHandler(stream, **options)
    handler.setFormatter(formatter or RunFormatter(LINE))
    return handler


def written(stream, record, **options):
    handler_to(stream, **options).handle(record)
    return stream.getvalue()


# --- where lines go ---


def test_a_line():
    """A record is one line on the stream that was given."""
    assert written(io.StringIO(), make_record("%d rows", (5,))) == "INFO | 5 rows\n"


def test_standard_error_is_followed(capsys, monkeypatch):
    """Without a stream, lines go to what `sys.stderr` is when they are written."""
    handler = handler_to()
    handler.handle(make_record("one"))
    assert capsys.readouterr().err == "INFO | one\n"
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    handler.handle(make_record("two"))
    assert other.getvalue() == "INFO | two\n"
    assert repr(handler) == "<ConsoleHandler (NOTSET) to stderr>"


@pytest.mark.parametrize("name", ["stderr", "stdout"])
@pytest.mark.parametrize("original", ["", "__"])
def test_a_standard_stream_is_followed(monkeypatch, name, original):
    """A standard stream that is given, as `dictConfig` does for ``ext://sys.stdout``, is followed as well."""
    handler = handler_to(getattr(sys, f"{original}{name}{original}"))
    other = io.StringIO()
    monkeypatch.setattr(sys, name, other)
    handler.handle(make_record())
    assert other.getvalue() == "INFO | message\n"


def test_another_stream_is_kept(monkeypatch):
    """A stream of the program's own is used whatever happens to the standard ones, until `setStream`."""
    stream, other = io.StringIO(), io.StringIO()
    handler = handler_to(stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler.handle(make_record())
    assert handler.setStream(other) is stream
    handler.handle(make_record())
    assert stream.getvalue() == other.getvalue() == "INFO | message\n"
    assert "StringIO" in repr(handler)


def test_no_standard_error(monkeypatch):
    """Where there is no standard error, as under ``pythonw``, nothing is written and nothing raised."""
    monkeypatch.setattr(sys, "stderr", None)
    handler = handler_to()
    handler.handle(make_record())
    handler.flush()


def test_from_a_configuration(capsys):
    """`dictConfig` builds the handler with stream, styles and level."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": LINE}},
            "handlers": {
                "console": {
                    "class": "runlog.console.ConsoleHandler",
                    "formatter": "line",
                    "stream": "ext://sys.stdout",
                    "level": "INFO",
                    "styles": {"log.info_level": "green"},
                }
            },
            "loggers": {"test_console": {"handlers": ["console"], "level": "DEBUG", "propagate": False}},
        }
    )
    logger = logging.getLogger("test_console")
    logger.info("shown")
    logger.debug("not shown")
    assert capsys.readouterr().out == "INFO | shown\n"


# --- streams that fail ---


class Broken(io.StringIO):
    """Fails with an error and counts how often it was asked."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.asked = 0

    def write(self, text):
        self.asked += 1
        raise self.error

    def flush(self):
        self.write("")


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EBADF])
def test_a_stream_without_reader(code, capsys):
    """A broken pipe is found out once, is silent, and costs nothing afterwards."""
    stream = Broken(OSError(code, "gone"))
    handler = handler_to(stream)
    for _ in range(3):
        handler.handle(make_record())
    handler.flush()
    assert stream.asked == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [RecursionError(), TypeError(), RuntimeError()])
def test_flushing_never_raises(error):
    """`logging.config` flushes all handlers before it does anything: one odd stream must not stop it."""
    handler_to(Broken(error)).flush()


def test_a_full_disk_may_pass(capsys):
    """Other errors of the system are silent, and the next line is tried again."""
    stream = Broken(OSError(errno.ENOSPC, "full"))
    handler = handler_to(stream)
    handler.handle(make_record())
    handler.handle(make_record())
    assert stream.asked == 2
    assert capsys.readouterr().err == ""


def test_a_closed_stream(capsys, monkeypatch):
    """A closed stream is silent; once standard error is replaced lines appear again."""
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    handler = handler_to()
    closed.close()
    handler.handle(make_record())
    handler.handle(make_record())
    handler.flush()
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    handler.handle(make_record())
    handler.flush()
    assert other.getvalue() == "INFO | message\n"


def test_a_stream_that_cannot_be_flushed(capsys):
    """`flush`, which `logging` calls at the end of the program, is silent too; a missing one is not needed."""
    stream = Broken(ValueError("I/O operation on closed file"))
    handler = handler_to(stream)
    handler.flush()
    handler.flush()
    assert stream.asked == 1
    texts = []
    handler = handler_to(SimpleNamespace(write=texts.append))
    handler.handle(make_record())
    handler.flush()
    assert texts == ["INFO | message\n"]


def test_a_stream_that_is_none(capsys):
    """A mistake of the stream's own is reported as `logging` reports it, and not raised."""
    handler = handler_to(Broken(ValueError("strange")))
    handler.handle(make_record())
    assert "ValueError: strange" in capsys.readouterr().err
    handler = handler_to(Broken(RecursionError()))
    handler.handle(make_record())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_stream_with_a_narrow_encoding(encoding):
    """Characters that the terminal's encoding lacks are shown as escapes."""
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding=encoding, write_through=True)
    handler_to(stream).handle(make_record("語 ok"))
    assert data.getvalue() == b"INFO | \\u8a9e ok" + os.linesep.encode()


def test_a_narrow_stream_without_encoding():
    """A stream that fails to encode and does not say why gets ASCII."""

    class Narrow(io.StringIO):
        encoding = None

        def write(self, text):
            text.encode("ascii")
            return super().write(text)

    assert written(Narrow(), make_record("é")) == "INFO | \\xe9\n"


def test_a_reader_that_goes_away():
    """A program whose reader has gone ends normally, without a word."""
    program = (
        "import logging, os, sys\n"
        "from runlog.console import ConsoleHandler\n"
        "handler = ConsoleHandler(sys.stdout)\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 1)\n"
        "logger = logging.getLogger('x')\n"
        "logger.addHandler(handler)\n"
        "for i in range(100): logger.error('line %d', i)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- what is in a line ---


@pytest.mark.parametrize("layout", [LINE, "{levelname} | {message}", "$levelname | $message"])
def test_a_plain_formatter_is_made_safe(layout):
    """With a plain `logging.Formatter` lines cannot be forged either, and missing fields do not fail."""
    style = {"%": "%", "{": "{", "$": "$"}[layout[0]]
    formatter = logging.Formatter(layout, style=style)
    text = written(io.StringIO(), make_record("a\nINFO | b\x1b[2K password=x"), formatter=formatter)
    assert text == "INFO | a\n    INFO | b\\x1b[2K password=***\n"


def test_a_plain_formatter_with_a_style_of_its_own():
    """A formatter whose style is unknown formats itself."""
    formatter = logging.Formatter(LINE)
    formatter._style = type("Own", (logging.PercentStyle,), {})(LINE)
    assert written(io.StringIO(), make_record("a\x1bb"), formatter=formatter) == "INFO | a\\x1bb\n"


def test_another_formatter():
    """A formatter of the program's own keeps its colours and lines; the rest is shown and masked."""

    class Own(logging.Formatter):
        def format(self, record):
            return "\x1b[31mred\x1b[0m\n" + record.getMessage()

    text = written(io.StringIO(), make_record("a\x1b[2K\r\ud800 password=x"), formatter=Own())
    assert text == "\x1b[31mred\x1b[0m\na\\x1b[2K\\r\\ud800 password=***\n"
    assert written(io.StringIO(), make_record(), formatter=Own()) == "\x1b[31mred\x1b[0m\nmessage\n"

    class Plain(logging.Formatter):
        def format(self, record):
            return record.msg

    assert written(io.StringIO(), make_record("text"), formatter=Plain()) == "text\n"


def test_a_formatter_that_fails():
    """A formatter that raises costs the layout, not the line."""

    class Failing(logging.Formatter):
        def format(self, record):
            raise KeyError("x")

    assert written(io.StringIO(), make_record("text"), formatter=Failing()) == "text <Failing: KeyError>\n"


def test_without_a_formatter():
    """Without a formatter the message is the line; JSON is written as it is."""
    stream = io.StringIO()
    handler = ConsoleHandler(stream)
    handler.handle(make_record("a\x1b"))
    handler.setFormatter(JsonFormatter())
    handler.handle(make_record("b"))
    handler.setFormatter(None)
    handler.handle(make_record("c"))
    lines = stream.getvalue().splitlines()
    assert (lines[0], lines[2]) == ("a\\x1b", "c")
    assert '"message":"b"' in lines[1]


def test_a_line_is_not_wrapped():
    """A long line is one line, on a terminal too."""
    text = "word " * 100 + "end"
    for stream in (io.StringIO(), Terminal()):
        assert written(stream, make_record(text)).count("\n") == 1


def test_a_line_shows_its_run():
    """Inside a run a line of any logger shows the run."""
    formatter = RunFormatter(LINE, flow_run_fmt="Flow run %(flow_run_name)r - %(message)s")
    with FlowRunContext(flow_run=SimpleNamespace(id="f1", name="brave-otter")):
        assert (
            written(Terminal(), make_record(), formatter=formatter)
            == "Flow run \x1b[35m'brave-otter'\x1b[0m - message\n"
        )


# --- colours ---


@pytest.mark.parametrize(
    ("text", "colored"),
    [
        ("WARNING", "\x1b[33mWARNING\x1b[0m"),
        ("CRITICAL", "\x1b[1;31mCRITICAL\x1b[0m"),
        ("see https://x.org/a?b=c now", "see \x1b[94mhttps://x.org/a?b=c\x1b[0m now"),
        ("see file:///a/b", "see \x1b[94mfile:///a/b\x1b[0m"),
        ("Flow run 'a' of flow 'b'", "Flow run \x1b[35m'a'\x1b[0m of flow \x1b[1;35m'b'\x1b[0m"),
        ("Task run \"it's\" of task 'b'", "Task run \x1b[34m\"it's\"\x1b[0m of task \x1b[1;34m'b'\x1b[0m"),
        ("Completed()", "\x1b[32mCompleted\x1b[0m()"),
        ("RUNNING", "\x1b[34mRUNNING\x1b[0m"),
        ("FAILED, Cached", "\x1b[31mFAILED\x1b[0m, \x1b[94mCached\x1b[0m"),
        ("completed in 1.20 s", "\x1b[32mcompleted\x1b[0m in 1.20 s"),
        ("the job failed, INFORMATION", "the job failed, INFORMATION"),
    ],
)
def test_parts_of_a_line_have_colours(text, colored):
    """Levels, addresses, names and states are told apart on a terminal."""
    assert written(Terminal(), make_record(text), formatter=RunFormatter()) == colored + "\n"


def test_own_styles():
    """Own styles are laid over the default ones; an empty one takes the colour away."""
    stream = Terminal()
    styles = {"log.info_level": "green", "log.web_url": "", "log.local_url": None, "log.unheard_of": "red"}
    text = written(stream, make_record("WARNING https://x.org file:///a"), styles=styles)
    assert text == "\x1b[32mINFO\x1b[0m | \x1b[33mWARNING\x1b[0m https://x.org file:///a\n"


def test_a_wrong_style(capsys):
    """A wrong style is an error where it is configured; if only found later, it is reported and lines go on."""
    with pytest.raises(
        ValueError, match=r"style log.info_level is 'no such thing', expected words such as 'bold red'"
    ):
        ConsoleHandler(Terminal(), styles={"log.info_level": "no such thing"})
    handler = handler_to(io.StringIO(), styles={"log.info_level": "no such thing"})
    stream = handler.stream = Terminal()
    handler.handle(make_record())
    handler.handle(make_record())
    assert stream.getvalue() == "INFO | message\n" * 2
    assert capsys.readouterr().err.count("style log.info_level") == 1


@pytest.mark.parametrize(
    ("stream", "environment", "is_colored"),
    [
        (Terminal, {}, True),
        (io.StringIO, {}, False),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),
        (Terminal, {"PREFECT_LOGGING_COLORS": "false"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"FORCE_COLOR": "1"}, True),
        (io.StringIO, {"FORCE_COLOR": "0"}, False),
        (io.StringIO, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (Terminal, {"COLORTERM": "truecolor"}, True),
    ],
)
def test_when_there_are_colours(with_setting, stream, environment, is_colored):
    """A terminal gets colours unless settings or environment say no; other streams only if forced."""
    with_setting(**environment)
    assert ("\x1b[" in written(stream(), make_record())) is is_colored


def test_a_terminal_without_colours(with_setting):
    """A terminal that is forced and can show no colours gets none."""
    with_setting(TERM="dumb", FORCE_COLOR="1")
    assert written(io.StringIO(), make_record()) == "INFO | message\n"


def test_a_stream_that_does_not_know(capsys):
    """A stream whose `isatty` fails is no terminal."""
    stream = Terminal()
    stream.isatty = lambda: 1 / 0
    assert written(stream, make_record()) == "INFO | message\n"


def test_a_replaced_stream_is_looked_at(monkeypatch):
    """Whether there are colours is decided for each stream that takes the place of standard error."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler = handler_to()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler.handle(make_record())
    assert "\x1b[36mINFO" in terminal.getvalue()


def test_rich_is_imported_for_colours_only():
    """A program whose console is no terminal never imports rich."""
    program = (
        "import logging, sys\n"
        "from runlog.console import ConsoleHandler\n"
        "logging.getLogger().addHandler(ConsoleHandler())\n"
        "logging.error('x')\n"
        "assert 'rich' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "x\n")


# --- markup ---


def test_markup_is_off_by_default():
    """Brackets in a message are text."""
    assert written(io.StringIO(), make_record("[bold]a[/bold]")) == "INFO | [bold]a[/bold]\n"


def test_markup(with_setting):
    """With the setting, markup is carried out on a terminal, besides the colours, and left out elsewhere."""
    with_setting(PREFECT_LOGGING_MARKUP="true")
    record = make_record("[bold]a[/bold] b [1, 2] :smile: " + "x" * 100)
    assert written(io.StringIO(), record) == "INFO | a b [1, 2] :smile: " + "x" * 100 + "\n"
    assert written(Terminal(), record) == (
        "\x1b[36mINFO\x1b[0m | \x1b[1ma\x1b[0m b [1, 2] :smile: " + "x" * 100 + "\n"
    )
    assert written(Terminal(), make_record("plain")) == "\x1b[36mINFO\x1b[0m | plain\n"


def test_markup_without_colours(with_setting):
    """With colours off, markup still reads as what it says."""
    with_setting(PREFECT_LOGGING_MARKUP="true", PREFECT_LOGGING_COLORS="false")
    assert written(Terminal(), make_record("[red]a[/red]")) == "INFO | a\n"


def test_wrong_markup(with_setting):
    """Brackets that are no markup are shown as they are."""
    with_setting(PREFECT_LOGGING_MARKUP="true")
    assert written(io.StringIO(), make_record("a [/b] [bold]c")) == "INFO | a [/b] [bold]c\n"


def test_the_styles_are_prefects():
    """Styles have the names that a configuration written for Prefect uses."""
    for name in ("log.web_url", "log.info_level", "log.flow_run_name", "log.completed_state"):
        assert name in DEFAULT_STYLES


def test_the_packaged_styles_are_known():
    """Each style that the packaged configuration sets is of a part that is told apart."""
    (styles,) = [
        handler["styles"]
        for handler in yaml.safe_load((Path(settings.__file__).parents[1] / "logging.yml").read_text())[
            "handlers"
        ].values()
        if "styles" in handler
    ]
    assert set(styles) <= set(DEFAULT_STYLES)
