"""Whatever a log call is given becomes text and plain values, and nothing is raised."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import gc
import json
import logging
import pathlib
import sys
import threading
import time
import types
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog import rendering
from runlog.rendering import (
    clean_text,
    format_exception,
    normalise,
    render_message,
    safe_repr,
    safe_str,
    visible,
    visible_lines,
)


class Hostile:
    """Every way in which an object can refuse to be read."""

    def __init__(self, error=ValueError):
        self.error = error

    def _refuse(self, *_):
        raise self.error("no")

    __str__ = __repr__ = __eq__ = __len__ = __iter__ = __bool__ = _refuse
    __hash__ = object.__hash__


class HidingType(type):
    @property
    def __name__(cls):
        raise ValueError

    @property
    def __module__(cls):
        raise ValueError


class Hidden(metaclass=HidingType):
    def __str__(self):
        raise ValueError


def kind_of(value):
    """For the names of tests: the values have no text to make one of."""
    return type.__dict__["__name__"].__get__(type(value))


def make_record(msg, args=()):
    record = logging.LogRecord("name", 20, "path", 1, msg, (), None)
    record.args = args
    return record


# --- text ---


@pytest.mark.parametrize("text", ["", "plain", "größe 語 🦦", "a\nb\x1b\x00"])
def test_clean_text_is_kept(text):
    """Text that can be encoded is not copied."""
    assert clean_text(text) is text


def test_lone_surrogates_become_visible():
    """A lone surrogate becomes a backslash escape; a neighbour that is fine stays."""
    assert clean_text("é\udc80x") == "é\\udc80x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\nc\rd", "a\\nb\\r\\nc\\rd"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x07\x08\x0b\x0c\x7f\x85\x9b", "\\x00\\x07\\x08\\x0b\\x0c\\x7f\\x85\\x9b"),
        ("a\u202eb\u2066c\u2028d\u2029", "a\\u202eb\\u2066c\\u2028d\\u2029"),
        ("x\ud800", "x\\ud800"),
        ("tab\tand\xa0space é 🦦\u200d", "tab\tand\xa0space é 🦦\u200d"),
    ],
)
def test_visible(text, shown):
    """Control characters and bidirectional overrides are shown as escapes, on one line."""
    assert visible(text) == shown


def test_visible_lines():
    """Lines are kept and begin with the indent, all else is shown as an escape."""
    assert visible_lines("plain", "  ") == "plain"
    assert visible_lines("tab\there", "  ") == "tab\there"
    assert visible_lines("a\nb\r\n\nc\rd\x1b\u202e", "  ") == "a\n  b\n\n  c\\rd\\x1b\\u202e"


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_no_line_can_be_forged(text):
    """Whatever the text, it can be written, it is one line, or each further line begins with the indent."""
    assert visible(text).encode().splitlines() in ([visible(text).encode()], [])
    first, *rest = visible_lines(text, "    ").split("\n")
    for line in rest:
        assert line == "" or line.startswith("    ")
    assert "\r" not in first
    assert "\x1b" not in visible_lines(text, "    ")


# --- objects ---


def test_safe_text_of_objects():
    """Objects give their text, cut if asked for, and a placeholder if they have none."""
    assert safe_str(5) == "5"
    assert safe_str("\ud800") == "\\ud800"
    assert safe_repr("x") == "'x'"
    assert safe_repr("x" * 100, 10) == "'xxxxxx..."
    assert safe_str(Hostile()) == safe_repr(Hostile()) == "<unprintable Hostile: ValueError>"
    assert safe_repr(Hostile(RecursionError)) == "<unprintable Hostile: RecursionError>"
    assert safe_str(Hidden()) == "<unprintable Hidden: ValueError>"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_meant_for_the_program_passes(error):
    """An interrupt while an argument is rendered reaches the program."""
    for call in (safe_str, safe_repr, normalise):
        with pytest.raises(error):
            call(Hostile(error))
    with pytest.raises(error):
        render_message(make_record("%s", (Hostile(error),)))


# --- messages ---


@pytest.mark.parametrize(
    ("msg", "args", "message", "error"),
    [
        ("plain 100%", (), "plain 100%", None),
        ("%d rows", (5,), "5 rows", None),
        ("%(n)d rows", {"n": 5}, "5 rows", None),
        (5, (), "5", None),
        ("a\ud800", (), "a\\ud800", None),
        ("%s", ("\ud800",), "\\ud800", None),
        ("%d rows of %s", ("many", "x"), "%d rows of %s 'many', 'x'", "TypeError: "),
        ("%s %s", ("x",), "%s %s 'x'", "TypeError: not enough arguments for format string"),
        ("none", ("x",), "none 'x'", "TypeError: not all arguments converted"),
        ("%(n)d", {"m": 5}, "%(n)d {'m': 5}", "KeyError: 'n'"),
        ("%(n)s", {"n": Hostile()}, "<unprintable Hostile: ValueError>", None),
        ("%s and %s", (Hostile(), 1), "<unprintable Hostile: ValueError> and 1", None),
        ("%r", (Hostile(RecursionError),), "<unprintable Hostile: RecursionError>", None),
        ("%s", (10**5000,), "<unprintable int: ValueError>", None),
        ("%d", (Hostile(),), "%d <unprintable Hostile: ValueError>", "TypeError: "),
        (Hostile(), (), "<unprintable Hostile: ValueError>", None),
        (Hostile(), ("x",), "<unprintable Hostile: ValueError> 'x'", "TypeError: not all arguments"),
        ("%s", Hostile(), "<unprintable Hostile: ValueError>", None),
        ("%s", 5, "5", None),
    ],
    ids=kind_of,
)
def test_messages(msg, args, message, error):
    """A message is rendered; what cannot be printed or does not fit costs neither template nor arguments."""
    text, format_error = render_message(make_record(msg, args))
    assert text == message
    assert (format_error or "").startswith(error or "")
    assert (format_error is None) == (error is None)


def test_a_mapping_that_cannot_be_read():
    """Arguments whose items cannot be listed leave the template and a placeholder."""

    class Mapping(collections.UserDict):
        def items(self, *_):
            raise ValueError

        __getitem__ = __repr__ = items

    text, format_error = render_message(make_record("%(a)s", Mapping(a=1)))
    assert text == "%(a)s <unprintable Mapping: ValueError>"
    assert format_error == "ValueError: "


def test_a_record_class_of_the_program():
    """A record whose message is no text is rendered as well."""

    class Own(logging.LogRecord):
        def getMessage(self):  # noqa: N802 - logging's name
            return 5

    record = Own("name", 20, "path", 1, "x", (), None)
    assert render_message(record) == ("5", None)


# --- values ---


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Endless(enum.Enum):
    A = 1

    @property
    def value(self):
        return self


class Text(str):
    __slots__ = ()

    def __str__(self):
        raise ValueError

    def encode(self, *_):
        raise ValueError

    isascii = encode


class Number(int):
    def __index__(self):
        raise ValueError

    __str__ = __repr__ = __index__


class Items(list):
    def __iter__(self):
        raise ValueError

    __len__ = __iter__


@dataclasses.dataclass
class Order:
    number: int
    parts: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Broken:
    number: int = dataclasses.field(init=False)


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - a plain named tuple is the subject

ident = uuid.uuid4()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (5, 5),
        (1.5, 1.5),
        ("x", "x"),
        ("\ud800", "\\ud800"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (10**5000, "<int of 16610 bits>"),
        ([float("nan"), 2**64, "\ud800", None, True], ["NaN", str(2**64), "\\ud800", None, True]),
        (b"abc\xff\x00", "abc\\xff\x00"),
        (bytearray(b"a"), "a"),
        (memoryview(b"a"), "a"),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "None": "b", "False": "c"}),
        ({"\ud800": 1, (1, 2): 2}, {"\\ud800": 1, "[1, 2]": 2}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ((1, [2, {3}], frozenset([4])), [1, [2, [3]], [4]]),
        (collections.deque([1, 2]), [1, 2]),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Order(5, [Order(6)]), {"number": 5, "parts": [{"number": 6, "parts": []}]}),
        (Broken(), {"number": "<unprintable Broken: AttributeError>"}),
        (Color.RED, "red"),
        (Level.LOW, 1),
        (Endless.A, "<too deep>"),
        (Text("x"), "x"),
        (Number(5), 5),
        (type("F", (float,), {})(1.5), 1.5),
        (Items([1, 2]), [1, 2]),
        (ident, str(ident)),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (decimal.Decimal("1.10"), "1.10"),
        (dt.datetime(2026, 11, 21, 10, 53, tzinfo=dt.UTC), "2026-11-21T10:53:00+00:00"),
        (dt.date(2026, 11, 21), "2026-11-21"),
        (dt.time(10, 53), "10:53:00"),
        (dt.timedelta(minutes=2), 120.0),
        (ValueError("x"), "ValueError: x"),
        (KeyError(), "KeyError"),
        (json.JSONDecodeError("m", "d", 0), "json.decoder.JSONDecodeError: m: line 1 column 1 (char 0)"),
        (range(5), "range(0, 5)"),
        (Hostile(), "<unprintable Hostile: ValueError>"),
        ({Hostile(): Hostile()}, {"<unprintable Hostile: ValueError>": "<unprintable Hostile: ValueError>"}),
        (Hidden(), "<unprintable Hidden: ValueError>"),
    ],
    ids=kind_of,
)
def test_values(value, plain):
    """Values of every kind become what JSON knows."""
    result = normalise(value)
    assert result == plain
    assert type(result) is type(plain)


def test_numpy_scalars():
    """A NumPy scalar becomes its Python number, an array its text; NumPy itself is not needed for it."""

    class Scalar:
        ndim = 0

        def item(self):
            return 1.5

        def __str__(self):
            return "text"

    Scalar.__module__ = "numpy"
    assert normalise(Scalar()) == 1.5
    array = Scalar()
    array.ndim = 1
    assert normalise(array) == "text"
    endless = Scalar()
    endless.item = lambda: endless
    assert normalise(endless) == "<too deep>"


def test_an_iterator_is_not_consumed():
    """A generator given to a log call still has its items."""
    numbers = iter([1, 2])
    assert normalise(numbers).startswith("<list_iterator")
    assert list(numbers) == [1, 2]


def test_circular_and_deep_values():
    """A value inside itself, and one too deep, end in a word; the same value twice does not."""
    circular = {"a": 1}
    circular["self"] = [circular]
    assert normalise(circular) == {"a": 1, "self": ["<circular>"]}
    items = []
    items.append(items)
    assert normalise(items) == ["<circular>"]
    assert normalise([[[1]]], depth=2) == [["<too deep>"]]
    assert normalise({"a": {"b": 1}}, depth=1) == {"a": "<too deep>"}
    twice = [1]
    assert normalise([twice, twice]) == [[1], [1]]


def test_large_values_say_what_is_missing():
    """Of a large mapping or list the first entries are kept and the rest is counted."""
    assert normalise({str(i): i for i in range(5)}, max_keys=2) == {"0": 0, "1": 1, "...": "3 more"}
    assert normalise(list(range(5)), max_items=2) == [0, 1, "... 3 more"]
    assert len(normalise(dict.fromkeys(range(1000)))) == 129
    assert normalise(type("Long", (), {"__str__": lambda _: "x" * 10**5})()) == "x" * 8189 + "..."


circular = []
circular.append(circular)
deep = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    "value",
    [
        [Hostile() for _ in range(5000)],
        {i: {j: {} for j in range(200)} for i in range(200)},
        [[list(range(100))] * 100] * 100,
        {Hostile(): Hostile() for _ in range(500)},
        deep,
        set(range(100_000)),
        [object()] * 5000,
    ],
    ids=["hostile", "dicts", "lists", "keys", "deep", "set", "objects"],
)
def test_hostile_values_are_bounded(value):
    """No value costs more than some milliseconds: 2 to 3, and more while coverage is traced."""
    durations = []
    for _ in range(5):
        begin = time.thread_time()
        result = normalise(value)
        durations.append(time.thread_time() - begin)
    msgspec.json.encode(result)
    assert min(durations) < 0.05


ODDITIES = [circular, deep, Hidden(), Color.RED, Text("x"), Number(1), Items([1]), json, int, 2**70]
"""Drawn by their place: hypothesis itself cannot print all of them."""

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.binary(),
        st.text(st.characters(exclude_categories=())),
        st.uuids(),
        st.decimals(),
        st.datetimes(),
        st.timedeltas(),
        st.complex_numbers(),
        st.builds(Hostile, st.sampled_from([ValueError, RecursionError, MemoryError])),
        st.sampled_from(range(len(ODDITIES))).map(lambda place: ODDITIES[place]),
        st.builds(ValueError, st.text()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(st.characters(exclude_categories=())), st.integers()), inner, max_size=4
        ),
        st.builds(Order, inner, st.lists(inner, max_size=2)),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
    ),
    max_leaves=20,
)


@given(anything)
def test_any_value_becomes_json(value):
    """Whatever the value, the result is encoded by strict encoders and comes back equal."""
    result = normalise(value)
    assert json.loads(json.dumps(result, allow_nan=False, ensure_ascii=False).encode()) == result
    assert msgspec.json.decode(msgspec.json.encode(result)) == result
    assert normalise(result, depth=20) == result


@given(msg=anything, args=st.one_of(st.just(()), st.lists(anything, max_size=3).map(tuple), anything))
def test_any_record_has_a_message(msg, args):
    """Whatever template and arguments are, there is a message that can be encoded."""
    text, format_error = render_message(make_record(msg, args))
    text.encode()
    (format_error or "").encode()


def test_a_mapping_that_another_thread_changes():
    """A mapping that changes meanwhile is read without an error."""
    shared = {str(i): i for i in range(50)}
    stop = threading.Event()

    def change():
        while not stop.is_set():
            shared["new"] = 1
            shared.pop("new")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(500):
            assert normalise(shared)["0"] == 0
    finally:
        stop.set()
        thread.join()


# --- exceptions ---


def raised(error, *, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_an_exception():
    """Type, message and traceback are text, with cause and notes."""
    error = raised(KeyError("order 7"), cause=raised(ValueError("first")))
    error.add_note("see the manual")
    kind, message, trace = format_exception((type(error), error, error.__traceback__))
    assert (kind, message) == ("KeyError", "'order 7'")
    assert trace.startswith("Traceback (most recent call last):")
    assert "ValueError: first" in trace
    assert trace.endswith("KeyError: 'order 7'\nsee the manual")
    assert format_exception(error) == (kind, message, trace)


def test_the_exception_being_handled():
    """``exc_info=True`` means the one being handled, if there is one."""
    assert format_exception(True) == ("", "", "")
    try:
        raise json.JSONDecodeError("m", "d", 0)
    except ValueError:
        assert format_exception(True)[0] == "json.decoder.JSONDecodeError"


@pytest.mark.parametrize("exc_info", [None, (), (None, None, None), False, "text", (1, 2)])
def test_no_exception(exc_info):
    """What is no exception gives empty texts."""
    assert format_exception(exc_info) == ("", "", "")


def test_an_exception_of_the_main_program():
    """A class of ``__main__`` is named as in a traceback, and so is one that hides its module."""
    local = type("Local", (Exception,), {"__module__": "__main__", "__qualname__": "Local"})
    assert format_exception(local())[0] == "Local"
    hiding = HidingType("Hiding", (Exception,), {})
    assert format_exception(hiding())[0] == "Hiding"


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError


def test_an_exception_without_text():
    """An exception whose text fails has a placeholder, and a traceback all the same."""
    kind, message, trace = format_exception(raised(UnprintableError()))
    assert kind.endswith("UnprintableError")
    assert message == "<unprintable UnprintableError: ValueError>"
    assert "in raised" in trace
    assert "Unprintable" in trace


def test_a_traceback_that_cannot_be_rendered(monkeypatch):
    """If the traceback fails the exception is named at least."""

    def fail(*_, **__):
        raise RecursionError

    monkeypatch.setattr(rendering.traceback, "format_exception", fail)
    assert format_exception(ValueError("x"))[2] == "ValueError: x\n<no traceback: RecursionError>"


def test_a_circular_chain():
    """Exceptions that cause each other end."""
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert "first" in format_exception(first)[2]
    many = [raised(ValueError(i)) for i in range(100)]
    for one, other in zip(many, [*many[1:], many[0]], strict=True):
        one.__cause__ = other
    assert format_exception(many[0])[2].startswith("... 84 earlier exceptions in the chain\n\n")


def test_a_long_chain():
    """Of a long chain the last exceptions are shown, the others counted, in bounded time."""
    error = None
    for i in range(5000):
        error = raised(ValueError(i), cause=error)
    begin = time.thread_time()
    text = format_exception(error)[2]
    assert time.thread_time() - begin < 0.1
    assert text.startswith("... 4984 earlier exceptions in the chain\n\nTraceback (most recent")
    assert text.endswith("ValueError: 4999")
    assert text.count("which led to:") == 15


def test_contexts():
    """A long chain of contexts counts as well, up to one that is suppressed; frames are not needed."""
    error = None
    for i in range(100):
        new = ValueError(i)
        new.__context__ = error
        error = new
    text = format_exception(error)[2]
    assert text.startswith("... 84 earlier exceptions in the chain\n\nValueError: 84\n")
    error.__suppress_context__ = True
    assert format_exception(error)[2] == "ValueError: 99"


def test_exception_groups():
    """A group is shown as `traceback` shows it; of a large one the first few, and how many more there are."""
    group = ExceptionGroup("two", [raised(ValueError("one")), KeyError("two")])
    assert "+---------------- 2 ----------------" in format_exception(group)[2]
    large = ExceptionGroup("large", [ValueError(i) for i in range(20_000)])
    gc.disable()  # what earlier tests left behind would be looked through meanwhile
    try:
        begin = time.thread_time()
        text = format_exception(large)[2]
        took = time.thread_time() - begin
    finally:
        gc.enable()
    assert took < 0.1
    assert text.startswith("ExceptionGroup: large (20000 sub-exceptions)\n  | ValueError: 0\n")
    assert text.endswith("  | ... 19984 more exceptions in the group")
    nested = ExceptionGroup(
        "some", [ExceptionGroup("inner", [ValueError(i) for i in range(40)]) for _ in range(2)]
    )
    assert "more exceptions in the group" not in format_exception(nested)[2]


def test_a_deep_traceback(monkeypatch):
    """Of a very deep traceback the innermost frames are shown."""
    monkeypatch.setattr(rendering, "_MAX_FRAMES", 20)

    def descend(depth):
        if depth:
            ascend(depth - 1)
        raise ValueError("the bottom")

    def ascend(depth):
        descend(depth)

    try:
        descend(200)
    except ValueError:
        text = format_exception(sys.exc_info())[2]
    assert text.endswith("ValueError: the bottom")
    assert text.count("  File ") == 10
