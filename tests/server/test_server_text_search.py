from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlog.server.text_search import TextSearch, parse_text_search


@pytest.mark.parametrize(
    ("query", "include", "exclude", "require"),
    [
        ("", (), (), ()),
        ("  \t ", (), (), ()),
        ("error", ("error",), (), ()),
        ("Time OUT", ("time", "out"), (), ()),
        ('"time out"', ("time out",), (), ()),
        ("error -debug !trace +db", ("error",), ("debug", "trace"), ("db",)),
        ('-"time out" +"disk full"', (), ("time out",), ("disk full",)),
        ("- error", ("error",), (), ()),
        ("error -", ("error",), (), ()),
        ("+ ! - x", ("x",), (), ()),
        ("--x", (), ("-x",), ()),
        ("a-b c+d", ("a-b", "c+d"), (), ()),
        (r'"say \"hi\""', ('say "hi"',), (), ()),
        (r'"back\\slash"', (r"back\slash",), (), ()),
        (r'"other \n escape"', (r"other \n escape",), (), ()),
        ('"left open', ("left open",), (), ()),
        ('"ends with \\', ("ends with \\",), (), ()),
        ('""', (), (), ()),
        ('" "', (), (), ()),
        ('-""', (), (), ()),
        ('ab"c d"ef', ("ab", "c d", "ef"), (), ()),
        ('-ab"c"', ("c",), ("ab",), ()),
        ("50% a_b", ("50%", "a_b"), (), ()),
        ("ÄRGER", ("ärger",), (), ()),
    ],
)
def test_a_query_is_taken_apart(query, include, exclude, require):
    """Words, prefixes, phrases and escapes mean what they mean in Prefect."""
    assert parse_text_search(query) == TextSearch(include, exclude, require)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("", True),
        ("disk", True),
        ("nothing disk", True),
        ("nothing", False),
        ("DISK", True),
        ("etl.load", True),
        ('"full etl.load"', True),
        ("-disk", False),
        ("-nothing", True),
        ("disk -full", False),
        ("+disk +full", True),
        ("+disk +nothing", False),
        ("nothing +disk", False),
        ("%", False),
        ("d_sk", False),
    ],
)
def test_words_are_looked_for_in_message_and_logger(query, matches):
    """Plain words are alternatives, others must or must not be there; case and wildcards mean nothing."""
    assert parse_text_search(query).matches("Disk full", "etl.load") is matches


@given(st.text(alphabet=st.sampled_from('ab "\\-+! \t'), max_size=20))
def test_every_text_is_a_query(query):
    """Whatever is typed is taken apart, and no empty word is among the parts."""
    found = parse_text_search(query)
    for term in (*found.include, *found.exclude, *found.require):
        assert term.strip()
        assert term == term.lower()
