"""Expressions mean what their reference says, as SQL and as predicates; wrong ones say where and why."""

from __future__ import annotations

import asyncio
from datetime import timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lines import FLOW, OTHER_FLOW, START, TASK, batch, line

from runlog.exceptions import QueryError
from runlog.records import ExceptionInfo
from runlog.server.expression import MAX_DEPTH, MAX_EXPRESSION_LENGTH, MAX_TERMS, parse_expression
from runlog.server.expression_fields import FIELD_NAMES
from runlog.server.query import AllOf, LogQuery
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

NOW = START + 3600 * 10**9


def parse(text, **rest):
    return parse_expression(text, now_ns=NOW, **rest)


EVENT = line(
    'Time out after 10 s: "refused" by host (eu-1)',
    level=30,
    name="app.db",
    flow_run_id=FLOW,
    flow_run_name="owl",
    flow_name="etl",
    task_run_id=TASK,
    task_run_name="extract-9",
    task_name="extract",
    attempt=2,
    event_name="db.query",
    attributes={
        "table": "orders",
        "rows": 5,
        "ratio": 0.5,
        "ok": True,
        "nothing": None,
        "code.line.number": 7,
        "order": {"id": 8, "tags": ["new", "EU"]},
        "http.request": {"method": "GET"},
        "due": "2026-11-21",
        "level": "high",
        "odd key": "x",
        "text": "5",
        "path": "/var/log",
        "überschrift": "Straße",
    },
    exception=ExceptionInfo("ValueError", "bad row", "Traceback: in load()"),
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
)
BARE = line("nothing to do", level=20, name="apps")

HOLDS = (
    """
    level>=warning | level=30 | level:WARNING | level<error | level!=info | level<=30 | level>20
    task:extract | task=extract-9 | task:33333333-3333-4333-8333-333333333333 | task~^ext | task!=load
    flow:etl | flow:owl | run:owl | run:1111 | run:33333333-3333-4333-8333-333333333333 | run:extract-9 | run!=dog
    flow_run_id:11111111-1111-4111-8111-111111111111 | task_name=extract | flow_run_name!=dog
    logger:app.db | logger:app.* | logger:app.db.* | logger~"app" | name=app.db | logger!=app
    attempt=2 | attempt>1 | attempt:2 | attempt!=1 | event:db.query | event:db.* | event_name=db.query
    trace:0AF7651916CD43DD8448EB211C80319C | span=b7ad6b7169203331
    time | TIME | "time out" | refused 10 | APP.DB | "out after" db | "(eu-1)" | "\\"refused\\""
    message:"TIME OUT" | message~"[Tt]ime.*10" | /Time/ | /time/i | /10 s: "/ | message!=x | logger:app.db /out (aft)er/
    -retry | -(retry or again) | not retry | --time | not -time | -retry -again | -level>=error
    retry or time | retry or (time and out) | (retry or time) out | time or
    table=orders | table:ORD | table~^ord | table="orders" | table!=lines | table>=order | -table=lines
    rows=5 | rows=5.0 | rows>4 | rows>=5 | rows<5.5 | rows<=5 | rows!=6 | rows:5 | rows~^5$ | rows>-1 | rows<1e3 | rows=+5
    ratio=.5 or ratio=0.5 | ratio<1 | ok=true | ok=TRUE | ok!=false | nothing=null | has:nothing | ok:tru
    text=5 | text="5" | code.line.number=7 | order.id=8 | order.id>7 | order.tags=new | order.tags:eu | http.request.method=GET
    due>2026-11-01 | due<=2026-11-21 | "level"=high | "odd key"=x | "odd key":X | überschrift=Straße | path=/var/log | path~"^/var"
    has:table | has:order | has:order.id | has:exception | has:task | has:run | has:flow | has:attempt | has:"level" | has:trace
    -has:table.name | -has:other | -"has"=x | exception:valueerror | exception:"BAD ROW" | exception=ValueError | exception:load()
    exception~"bad.row" | exception!=KeyError
    since:2h | since:90m | before:now | until:now | after:61m | since:2023-11-14 | timestamp>=2023-11-14T22:13:20Z | timestamp<2023-11-15
    since:1700000000 | since:2023-11-14T23:13:20+01:00 | since:today | before:22:13:21 | since:yesterday | since:1d
""".replace("time or\n", "time or x\n")
    .replace("ratio=.5 or ", "")
    .replace("exception:load()", 'exception:"load()"')
)
"""Expressions that the first line meets, separated by a bar."""

FAILS = """
    level>warning | level=warn* | level=error | level<30 | level!=30 | task:load | task:EXTRACT | task!=extract | run:dog | run:111 | run!=owl
    logger:app | logger:apps.* | logger:"app.*" | attempt=1 | attempt>2 | event:db | event:dbx.*
    retry | time retry | -time | -(time out) | not time | (retry or again) time | "timeout" | "out  after" | messages:time
    table=Orders | table=ORDERS or table=order | table!=orders | table:lines | table>p | -table=orders
    rows="5" | rows=6 | rows>5 | rows>abc | rows<abc | rows!=5 | ok=1 | ok=yes | ok="true" | ok>0 | nothing=none | nothing="null" | nothing!=null
    text>4 | text<6 | text!=5 | order=8 | order:8 | order:id | order~. | order.tags=old | order.tags.new=1 | other=1 | other!=1 | other:x
    "level"=30 | level.x=1 | has:other | has:"task" | has:table.name | has:order.name | exception:keyerror | exception=valueerror | exception!=ValueError
    since:59m | before:61m | until:2023-11-14T22:13:19Z | after:2023-11-14T22:13:20Z | since:23:00 | timestamp!=2023-11-14T22:13:20Z | before:today
    trace:0af7 | span!=b7ad6b7169203331 | message=time | /time/ | message~"^out" | flow:x
""".replace("level=warn* | ", "")


def rows_of(table):
    return [text.strip() for text in table.replace("\n", "|").split("|") if text.strip()]


@pytest.mark.parametrize("text", rows_of(HOLDS))
def test_an_expression_holds(text):
    """The line is one that the expression wants, and is none that its negation wants."""
    assert parse(text).matches(EVENT)
    assert not parse(f"-({text})").matches(EVENT)


@pytest.mark.parametrize("text", rows_of(FAILS))
def test_an_expression_does_not_hold(text):
    """The line is none that the expression wants, and is one that its negation wants."""
    assert not parse(text).matches(EVENT)
    assert parse(f"-({text})").matches(EVENT)


@pytest.mark.parametrize("text", ["", "  \t\n"])
def test_a_blank_expression_wants_everything(text):
    """No term is no condition."""
    assert parse(text) == AllOf()


@pytest.mark.parametrize(
    "text",
    [
        *("task:x", "task!=x", "run!=x", "attempt>0", "attempt!=1", "event!=x", "trace!=x", "span:x"),
        *("exception:x", "exception!=x", "x=1", "x!=1", "x<1", "flow~.", "has:x", "has:run"),
    ],
)
def test_what_a_line_lacks_passes_no_test_but_a_negation(text):
    """``!=`` is about a thing that is there; a negated term holds for lines that lack it as well."""
    assert not parse(text).matches(BARE)
    assert parse(f"-{text}").matches(BARE)


def test_times_without_a_zone_are_in_the_given_one():
    """``today`` begins at midnight where the asker is."""
    east = timezone(timedelta(hours=2))  # there, it is 01:13 of the next day
    assert parse("since:today").matches(EVENT)
    assert parse("since:today", zone=east).matches(EVENT)
    assert not parse("since:01:00", zone=east).matches(EVENT)
    assert parse("since:2023-11-15", zone=east).matches(EVENT)
    assert not parse("since:2023-11-15").matches(EVENT)


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("level>=wurst", 7, "expected a number or one of CRITICAL, .*after level>=, got 'wurst'"),
        ("a level~x", 7, 'level goes with .* and not with ~; .* is written "level" in quotes'),
        ("attempt=two", 8, "expected a number after attempt=, got 'two'"),
        ("since:soon", 6, "expected a time such as 10m, .*after since:, got 'soon'"),
        ("since>10m", 5, "since goes with : = and not with >"),
        ("run~x", 3, "run goes with"),
        ("message>x", 7, "message goes with"),
        ("has>x", 3, "has goes with"),
        ('has:""', 4, "expected the name"),
        ('message:""', 8, "expected text"),
        ("a (b", 2, "this '\\(' is not closed"),
        ("(", 1, "expected a term, got the end"),
        ("a ()", 3, "expected a term between the parentheses"),
        ("a b)", 3, "this '\\)' closes nothing"),
        (")", 0, "expected a term, got '\\)'"),
        ("say(x)", 3, "expected a space after a word, got '\\('"),
        ("(a)b", 3, "expected a space after '\\)', got 'b'"),
        ('"a"b', 3, "expected a space after a phrase, got 'b'"),
        ('x="a"b', 5, "expected a space after a value, got 'b'"),
        ('a"b"', 1, "expected a space after a word"),
        ('a "b c', 2, "this quote is not closed"),
        ('"a\\"', 0, "this quote is not closed"),
        ('""', 0, "expected text between the quotes"),
        ('""=5', 0, "expected an attribute's name between the quotes"),
        ("x=", 2, "expected a value directly after x="),
        ("x= 5", 2, "expected a value directly after x="),
        ("x==5", 2, "expected a value after x=, got '='; put it into quotes"),
        ("level >= 30", 6, "expected a name before the operator, and no space"),
        ("a or", 4, "expected a term, got the end"),
        ("or a", 0, "expected a term, got 'or'; in quotes it is a word"),
        ("a and and b", 6, "expected a term, got 'and'"),
        ("not", 3, "expected a term, got the end"),
        ("a - b", 3, "expected a term directly after '-'"),
        ("/var/log", 5, "expected a space after the regular expression"),
        ("/abc", 0, "begins a regular expression that is not closed"),
        ("//", 1, "expected a regular expression between the slashes"),
        ("a /(/", 3, "not a regular expression .*missing \\)"),
        ("message~(", 8, "expected a value directly after message~"),
        ("message~a**", 8, "not a regular expression .*bad repetition"),
        ("message~(?!a)", 8, "expected a value directly after message~"),
        ('x~"(?!a)"', 2, "not a regular expression .*\\(\\?!"),
        ('x~"\\1"', 2, "not a regular expression"),
        (f'x~"{"a" * 1001}"', 2, "at most 1000 characters, got 1001"),
        ("see http://host/x", 9, "an address has to be in quotes"),
        ("a\ud800", 1, "half of a surrogate pair"),
        ("a" * (MAX_EXPRESSION_LENGTH + 1), MAX_EXPRESSION_LENGTH, "at most 2000 characters, got 2001"),
        ("a " * (MAX_TERMS + 1), 2 * MAX_TERMS, "more than 100 terms"),
        ("(" * 500, MAX_DEPTH + 1, "more than 30 parentheses"),
        ("-" * 500 + "a", MAX_DEPTH + 1, "more than 30 parentheses"),
    ],
)
def test_a_wrong_expression_says_where_and_why(text, position, problem):
    """The error names what was expected and what came, and points at it."""
    with pytest.raises(QueryError, match=problem) as caught:
        parse(text)
    assert caught.value.position == position
    assert "\n" not in str(caught.value)


def test_patterns_that_other_engines_never_end_with_are_done_at_once():
    """Repetitions within repetitions take time in proportion to the text."""
    hostile = line("a" * 50_000 + "b")
    for pattern in ("(a|aa)+$", "(a+)+$", "(.*)(.*)(.*)(.*)(.*)[^b]$", "(a?){200}a{200}$", "(x+x+)+y"):
        assert not parse(f'message~"{pattern}"').matches(hostile)


@pytest.mark.parametrize("pattern", ["((a{100}){100}){100}", "(a{1000}){1000}", r"\pL" * 300, "(" * 1000])
def test_patterns_that_would_take_much_memory_are_refused(pattern):
    """A short pattern that stands for a huge one is an error of the expression."""
    with pytest.raises(QueryError, match="not a regular expression"):
        parse(f'message~"{pattern}"')


# --- SQL and predicate --------------------------------------------------------------------------------

WORDS = (
    "alpha",
    "Beta",
    "straße",
    "ÄÖ",
    "%",
    "_",
    "\0",
    "a b",
    "\u212a",
    "k",
    "İ",
    "i",
    "10",
    "a\nb",
    "ΟΔΟΣ",
    "",
)
LOGGERS = ("etl", "etl.load", "etl2", "ETL.Load.x", "", "e%l", "K\u212a")
KEYS = ("table", "rows", "a.b", "a", "odd key", "ü", 'q"', "level", "task", "b")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([2**63, -(2**63), 2**64 + 1, 2**53, 0.5, 0.1 + 0.2, 5.0, -0.0, 1e300])
    | st.sampled_from([*WORDS, "5", "true", "null", "orders"])
)
attribute_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
    max_leaves=4,
)
maybe = st.none() | st.sampled_from(["etl", "one", "Two", FLOW, OTHER_FLOW, TASK, ""])
lines = st.builds(
    line,
    st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join),
    at=st.integers(0, 20),
    level=st.sampled_from([0, 10, 20, 25, 30, 40, 50]),
    name=st.sampled_from(LOGGERS),
    flow_run_id=st.sampled_from([None, FLOW, OTHER_FLOW, "run 4", "abcd"]),
    task_run_id=st.sampled_from([None, TASK, "11112222", ""]),
    flow_run_name=maybe,
    flow_name=maybe,
    task_run_name=maybe,
    task_name=maybe,
    parent_flow_run_id=maybe,
    attempt=st.sampled_from([None, 1, 2, 3]),
    event_name=st.sampled_from([None, None, "etl", "etl.load", ""]),
    trace_id=st.sampled_from([None, "0af7", ""]),
    attributes=st.dictionaries(st.sampled_from(KEYS), attribute_values, max_size=4),
    exception=st.none() | st.builds(ExceptionInfo, *[st.sampled_from(WORDS)] * 3),
)

OPERATORS = (":", "=", "!=", "<", "<=", ">", ">=", "~")


def quoted(text):
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


plain_values = st.sampled_from(
    (
        *FIELD_NAMES,
        *(
            "5",
            "5.0",
            "0.5",
            "0.3",
            "9223372036854775807",
            "9.3e18",
            "9007199254740991",
            "-3",
            "1",
            "2",
            "true",
            "False",
            "null",
            "orders",
            "etl",
            "etl.*",
            "one",
            "Two",
        ),
        *(
            "alpha",
            "k",
            "beta",
            "\u212a",
            "i\u0307",
            "ä",
            "ß",
            "ΟΔΟΣ",
            "οδος",
            "1111",
            FLOW,
            TASK,
            "abcd",
            "%",
        ),
        *("0AF7", "warning", "3590s", "1h", "2023-11-14T22:13:25Z", "yesterday", "^a", "[a-k]+", "."),
    )
)
values = plain_values | plain_values.map(quoted) | st.sampled_from(WORDS).map(quoted)
names = st.sampled_from(
    [*FIELD_NAMES, "table", "rows", "a.b", "a", "ü", "b", "a.b.a", "level.task"]
) | st.sampled_from(KEYS).map(quoted)
terms = st.one_of(
    st.builds("{}{}{}".format, names, st.sampled_from(OPERATORS), values),
    values,
    st.sampled_from(
        [
            "/a|k/i",
            "/^$/",
            "/ÄÖ/",
            "has:table",
            "has:a.b",
            "level>=25",
            "task:etl",
            "exception:alpha",
            "run:1111",
        ]
    ),
)
expressions = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.builds("-{}".format, inner.map("({})".format)),
        st.builds("not {}".format, inner.map("({})".format)),
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=2, max_size=3).map(" or ".join).map("({})".format),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def stores(runner, tmp_path_factory):
    """Two stores that get the same lines; the lines add up over the examples."""
    found = MemoryStorage(), SQLiteStorage(tmp_path_factory.mktemp("expression") / "runlog.db")
    for store in found:
        runner.run(store.open())
    yield found
    for store in found:
        runner.run(store.close())


_stored = [0]


@given(events=st.lists(lines, max_size=6), text=expressions)
@settings(max_examples=150, deadline=None)
def test_sql_and_predicate_agree(runner, stores, events, text):
    """SQLite finds the lines that the predicate lets pass, whatever is negated and whatever lines lack."""
    for store in stores:
        if events:
            runner.run(store.append(batch(*events, first_seq=_stored[0]), observed_ns=1))
    _stored[0] += len(events)
    try:
        where = parse(text)
    except QueryError:
        return
    for order in ("asc", "desc"):
        query = LogQuery(where=where, order=order, limit=100_000)
        in_memory, in_sqlite = (runner.run(store.read_lines(query)) for store in stores)
        assert in_sqlite == in_memory


@given(text=st.text(max_size=60) | st.text(alphabet='ab:=<>~-/"\\() .level|', max_size=40) | expressions)
@settings(max_examples=500)
def test_any_text_is_a_condition_or_an_error_with_a_place(text):
    """No text makes the parser fail in another way, and a place is within the text or at its end."""
    place = 0
    try:
        parse(text).matches(EVENT)
    except QueryError as error:
        place = error.position
    assert place is not None
    assert 0 <= place <= len(text)
