"""What the reference of the query expression shows can be asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runlog.server.expression import parse_expression
from runlog.server.expression_fields import FIELD_NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "query.md").read_text(encoding="utf-8")


def expressions():
    """The first cell of each row that holds code, and the example at the top."""
    cells = re.findall(r"^\| `((?:[^`])+)` \|", PAGE, flags=re.MULTILINE)
    return [cell.replace("\\|", "|") for cell in cells] + re.findall(r"```text\n(level>=warning .*)\n", PAGE)


@pytest.mark.parametrize("text", expressions())
def test_an_example_is_an_expression(text):
    """Each example is understood."""
    parse_expression(text, now_ns=0)


def test_the_page_has_examples():
    """The pattern above still finds them."""
    assert len(expressions()) > 25


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_every_field_is_documented(name):
    """A field that nobody can read about is not there."""
    assert re.search(rf"`(has:)?{name}\b", PAGE)
