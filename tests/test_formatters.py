"""A record becomes one line that nobody can forge, or one JSON object that everybody can read."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import redaction
from runlog.context import FlowRunContext, TaskRunContext
from runlog.formatters import JsonFormatter, RunFormatter

TOKEN = "ghp_" + "a1B2" * 9


def make_record(msg="message", args=(), **extra):
    record = logging.LogRecord("app", logging.INFO, "/src/app.py", 7, msg, (), None, "work")
    record.args = args
    record.__dict__.update(extra)
    return record


def in_flow():
    return FlowRunContext(
        flow_run=SimpleNamespace(id="f1", name="brave-otter"), flow=SimpleNamespace(name="etl")
    )


def in_task():
    return TaskRunContext(task_run=SimpleNamespace(id="t1", name="load-1"), task=SimpleNamespace(name="load"))


def by_run(**options):
    return RunFormatter(
        "plain %(name)s - %(message)s",
        flow_run_fmt="flow %(flow_run_name)r - %(message)s",
        task_run_fmt="task %(task_run_name)r of %(flow_run_name)r - %(message)s",
        **options,
    )


class Hostile:
    def __str__(self):
        raise ValueError

    __repr__ = __str__


# --- which layout ---


def test_the_layout_follows_the_fields_of_the_record():
    """A record's own run fields choose the layout, whatever its logger is called."""
    formatter = by_run()
    assert formatter.format(make_record()) == "plain app - message"
    assert formatter.format(make_record(flow_run_id="f", flow_run_name="a")) == "flow 'a' - message"
    record = make_record(flow_run_id="f", flow_run_name="a", task_run_id="t", task_run_name="b")
    assert formatter.format(record) == "task 'b' of 'a' - message"
    assert formatter.format(make_record(flow_run_id=None, task_run_id=None)) == "plain app - message"


def test_the_layout_follows_the_active_run():
    """A record of an ordinary logger is labelled by the run it is formatted in, and is not changed."""
    formatter = by_run()
    record = make_record(flow_run_name=None)
    before = dict(record.__dict__)
    with in_flow():
        assert formatter.format(record) == "flow 'brave-otter' - message"
        with in_task():
            assert formatter.format(record) == "task 'load-1' of 'brave-otter' - message"
    with in_task():
        assert formatter.format(record) == "task 'load-1' of '<unknown>' - message"
    assert record.__dict__ == before


def test_one_layout_for_all():
    """Without layouts of their own, runs are formatted as everything else."""
    formatter = RunFormatter("%(levelname)s %(message)s")
    with in_flow():
        assert formatter.format(make_record()) == "INFO message"
    assert RunFormatter().format(make_record()) == "message"


@pytest.mark.parametrize(
    ("style", "layout"),
    [
        ("%", "%(order)s %(what)s - %(message)s"),
        ("{", "{order} {what} - {message}"),
        ("$", "$order ${what} - $message"),
    ],
)
def test_missing_fields(style, layout):
    """A field that a record lacks comes from the defaults, else it is unknown; nothing is raised."""
    formatter = RunFormatter(
        "%(message)s" if style == "%" else layout, style=style, flow_run_fmt=layout, defaults={"what": "?"}
    )
    assert formatter.format(make_record(flow_run_id="f")) == "<unknown> ? - message"
    assert formatter.format(make_record(flow_run_id="f", order=5, what=None)) == "5 None - message"


@pytest.mark.parametrize("style", ["%", "{", "$"])
def test_styles(style):
    """All three styles of the standard library work, with time, numbers and objects."""
    layout = {
        "%": "%(asctime)s.%(msecs)03d %(levelname)-7s|%(n)05.1f|%(d)s|%(o)s|%(x)r - %(message)s",
        "{": "{asctime}.{msecs:03.0f} {levelname:<7}|{n:05.1f}|{d}|{o.x}|{x!r} - {message}",
        "$": "$asctime.000 $levelname   |00$n|${d}|$o|'$x' - $message $$",
    }[style]
    record = make_record(created=0, msecs=0.0, n=2.5, d=Decimal("1.10"), o=SimpleNamespace(x="a"), x="b")
    text = RunFormatter(layout, "%Y", style).format(record)
    shown = "a" if style == "{" else "namespace(x='a')"
    assert re.fullmatch(
        r"19[67]\d\.000 INFO   \|" + re.escape(f"002.5|1.10|{shown}|'b' - message") + r"( \$)?", text
    )


@pytest.mark.parametrize("layout", ["%(n)d %(message)s", "%(msecs)s %(broken"])
def test_a_layout_that_does_not_fit(layout):
    """A layout that a record does not fit falls back to what every record has."""
    formatter = RunFormatter(layout, validate=False)
    assert formatter.format(make_record("a\nb\x1b", n="x")) == "INFO | app - a\n    b\\x1b"


def test_a_wrong_layout_is_refused():
    """A layout that cannot be meant is an error where it is configured, for each of the three."""
    for name in ("format", "flow_run_fmt", "task_run_fmt"):
        with pytest.raises(ValueError, match="format"):
            RunFormatter(**{name: "nothing %(message)z"})
        assert RunFormatter(**{name: "nothing"}, validate=False).format(make_record())


def test_from_a_configuration():
    """`dictConfig` builds both formatters, as a factory and as a class."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "standard": {
                    "()": "runlog.formatters.RunFormatter",
                    "format": "%(message)s",
                    "flow_run_fmt": "%(flow_run_name)s %(message)s",
                    "datefmt": "%H",
                },
                "plain": {"class": "runlog.formatters.RunFormatter", "format": "{message}!", "style": "{"},
                "json": {"class": "runlog.formatters.JsonFormatter", "format": "default"},
                "pretty": {"()": "runlog.formatters.JsonFormatter", "fmt": "pretty"},
                "bare": {"class": "runlog.formatters.JsonFormatter"},
            },
            "handlers": {
                name: {"class": "logging.StreamHandler", "formatter": name, "stream": "ext://sys.stderr"}
                for name in ("standard", "plain", "json", "pretty", "bare")
            },
            "loggers": {"test_formatters": {"handlers": ["standard", "plain", "json", "pretty", "bare"]}},
        }
    )
    record = make_record(flow_run_id="f", flow_run_name="a")
    texts = [handler.format(record) for handler in logging.getLogger("test_formatters").handlers]
    assert texts[:2] == ["a message", "message!"]
    assert [json.loads(text)["message"] for text in texts[2:]] == ["message"] * 3
    assert ["\n" in text for text in texts[2:]] == [False, True, False]


# --- what is in a line ---


@pytest.mark.parametrize(
    "text",
    ["a\r\n2026-11-21 | INFO | forged", "a\x1b[2K\x1b[1A", "a\u202eb", "a\x00\x9b", "a\rb", "a\ud800"],
)
@pytest.mark.parametrize(
    ("style", "layout"), [("%", "%(v)s|%(v)r|%(message)s"), ("{", "{v}|{message}"), ("$", "$v|$message")]
)
def test_no_line_can_be_forged(style, layout, text):
    """Neither a message nor a value can begin a line, move the cursor or turn the text round."""
    formatter = RunFormatter(layout, style=style)
    error = ValueError(text)
    for record in (
        make_record(text, v=text),
        make_record("%s", (text,), v=SimpleNamespace(x=text)),
        make_record("m", v=1, exc_info=(ValueError, error, None), stack_info=text),
        make_record("m", v=1, exc_text=text),
    ):
        first, *rest = formatter.format(record).split("\n")
        assert all(line.startswith("    ") for line in rest)
        assert not set("".join([first, *rest])) & set("\r\x1b\u202e\x00\x9b\ud800")


def test_the_layout_itself_is_left_alone():
    """Colours and line breaks that the layout asks for are the program's own."""
    assert (
        RunFormatter("\x1b[31m%(message)s\x1b[0m\n--").format(make_record("a\nb"))
        == "\x1b[31ma\n    b\x1b[0m\n--"
    )


def test_a_traceback_stays_readable():
    """A traceback follows its line, indented; secrets in it are masked; the record keeps no copy."""
    try:
        raise ValueError(f"no access with {TOKEN}")
    except ValueError:
        record = make_record(exc_info=sys.exc_info())
    lines = by_run().format(record).split("\n")
    assert lines[:2] == ["plain app - message", "    Traceback (most recent call last):"]
    assert lines[-1] == "    ValueError: no access with ***"
    assert record.exc_text is None


@pytest.mark.parametrize("exc_info", [None, (None, None, None), True])
def test_no_exception(exc_info):
    """Outside of an exception handler `exc_info` adds nothing."""
    assert by_run().format(make_record(exc_info=exc_info)) == "plain app - message"
    assert "exception" not in json.loads(JsonFormatter().format(make_record(exc_info=exc_info)))


def test_a_text_that_another_formatter_left():
    """A traceback that was rendered before, and a stack, are shown."""
    record = make_record(exc_text="Traceback: x", stack_info="Stack:\n  y")
    assert by_run().format(record) == "plain app - message\n    Traceback: x\n    Stack:\n      y"


def test_subclass_points():
    """The methods that `logging.Formatter` lets subclasses override are used."""

    class Own(RunFormatter):
        def formatTime(self, record, datefmt=None):  # noqa: N802 - logging's name
            return "now"

        def formatException(self, ei):  # noqa: N802 - logging's name
            return "trouble"

        def formatStack(self, stack_info):  # noqa: N802 - logging's name
            return "stack"

    record = make_record(exc_info=(ValueError, ValueError(), None), stack_info="x")
    assert Own("%(asctime)s %(message)s").format(record) == "now message\n    trouble\n    stack"


def test_wrong_arguments():
    """Arguments that do not fit are shown with the reason."""
    text = by_run().format(make_record("%d rows", ("many",)))
    assert text.startswith("plain app - %d rows 'many' <TypeError: ")
    assert text.endswith(">")


def test_secrets_are_masked(monkeypatch):
    """Secrets are masked in message, values and over line breaks."""
    monkeypatch.setattr(redaction, "_values", ())
    redaction.register_secret("first\nsecond")
    formatter = RunFormatter("%(v)s password=%(w)s %(message)s")
    assert formatter.format(make_record("x first\nsecond", v=TOKEN, w="abc")) == "*** password=*** x ***"


# --- JSON ---


def test_a_json_line():
    """Each attribute is there, with rendered message, severity and time."""
    record = make_record("%d rows", (5,), table="orders", created=1795258417.123456)
    record.taskName = None
    found = json.loads(JsonFormatter().format(record))
    assert found == {
        "timestamp": "2026-11-21T10:53:37.123456Z",
        "severity": "INFO",
        "severity_number": 9,
        "message": "5 rows",
        "name": "app",
        "msg": "%d rows",
        "args": [5],
        "levelname": "INFO",
        "levelno": 20,
        "pathname": "/src/app.py",
        "filename": "app.py",
        "module": "app",
        "stack_info": None,
        "lineno": 7,
        "funcName": "work",
        "created": 1795258417.123456,
        "msecs": record.msecs,
        "relativeCreated": record.relativeCreated,
        "thread": record.thread,
        "threadName": record.threadName,
        "processName": "MainProcess",
        "process": record.process,
        "taskName": None,
        "table": "orders",
    }


def test_json_of_an_exception():
    """An exception is an object of its own, also one that is text already."""
    try:
        raise KeyError("order")
    except KeyError:
        record = make_record(exc_info=sys.exc_info())
    found = json.loads(JsonFormatter("pretty").format(record))
    assert found["exception"]["type"] == "KeyError"
    assert found["exception"]["message"] == "'order'"
    assert found["exception"]["traceback"].startswith("Traceback (most recent call last):")
    assert "exc_info" not in found
    found = json.loads(JsonFormatter().format(make_record(exc_text="Traceback: x")))
    assert found["exception"] == {"type": "", "message": "", "traceback": "Traceback: x"}


def test_json_in_a_run():
    """A record of an ordinary logger has the fields of the active run, a labelled one its own."""
    with in_flow(), in_task():
        found = json.loads(JsonFormatter().format(make_record(flow_name="mine", task_name=None)))
        own = json.loads(JsonFormatter().format(make_record(flow_run_id="f0")))
    assert [found[name] for name in ("flow_run_name", "task_run_name", "flow_name", "task_name")] == [
        "brave-otter",
        "load-1",
        "mine",
        "load",
    ]
    assert own["flow_run_id"] == "f0"
    assert "task_run_id" not in own


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (60, ("CRITICAL", 21)),
        (50, ("CRITICAL", 21)),
        (40, ("ERROR", 17)),
        (35, ("WARNING", 13)),
        (20, ("INFO", 9)),
        (10, ("DEBUG", 5)),
        (5, ("DEBUG", 1)),
        (None, ("DEFAULT", 0)),
    ],
)
def test_severities(level, severity):
    """Each level has a severity that log services know."""
    found = json.loads(JsonFormatter().format(make_record(levelno=level)))
    assert (found["severity"], found["severity_number"]) == severity


def test_names_that_clash():
    """An extra with the name of one of our own fields is kept beside it."""
    record = make_record("%d", ("x",), timestamp="then", severity=1, exception="e", format_error="f")
    found = json.loads(JsonFormatter().format(record))
    assert (found["timestamp_"], found["severity_"], found["exception_"], found["format_error_"]) == (
        "then",
        1,
        "e",
        "f",
    )
    assert found["format_error"].startswith("TypeError")


def test_json_is_redacted():
    """Messages, sensitive extras and texts in nested values are masked."""
    text = JsonFormatter().format(
        make_record(TOKEN, password="hunter2", nested={"a": [TOKEN]}, surrogate="\ud800")
    )
    assert TOKEN not in text
    assert json.loads(text)["password"] == "***"
    assert json.loads(text)["surrogate"] == "\\ud800"


def test_a_record_without_time():
    """A record made by hand, whose time is none, gets the present one."""
    for created in (float("nan"), 1e300, "soon"):
        assert json.loads(JsonFormatter().format(make_record(created=created)))["timestamp"].startswith("20")
        assert (
            RunFormatter("%(asctime)s %(message)s").format(make_record(created=created))
            == "INFO | app - message"
        )


def test_wrong_options():
    """A wrong word and a time format are refused, with what is expected."""
    with pytest.raises(ValueError, match="must be 'default' or 'pretty', got 'ugly'"):
        JsonFormatter("ugly")
    with pytest.raises(ValueError, match="takes no datefmt"):
        JsonFormatter("default", "%H")


anything = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.integers(),
    st.floats(),
    st.binary(),
    st.none(),
    st.builds(Hostile),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.integers(), st.text(), max_size=2),
)


@given(
    msg=anything,
    args=st.one_of(st.just(()), st.lists(anything, max_size=2).map(tuple)),
    extra=st.dictionaries(st.text(st.characters(exclude_categories=())), anything, max_size=3),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "flow_run_id",
                "task_run_id",
                "flow_run_name",
                "name",
                "levelname",
                "levelno",
                "created",
                "exc_text",
            ]
        ),
        anything,
        max_size=3,
    ),
)
def test_any_record_can_be_formatted(msg, args, extra, fields):
    """Whatever a record holds, it becomes lines that can be written, and valid JSON."""
    record = make_record(msg, args)
    record.__dict__.update({**extra, **record.__dict__, **fields})
    for layout in (
        "%(levelname)s|%(name)s|%(flow_run_name)s|%(asctime)s - %(message)s",
        "%(levelno)d %(message)s",
    ):
        first, *rest = RunFormatter(layout).format(record).split("\n")
        assert all(not line or line.startswith("    ") for line in rest)
        first.encode()
    found = json.loads(JsonFormatter().format(record).encode())
    assert found["levelno"] == json.loads(JsonFormatter("pretty").format(record))["levelno"]
