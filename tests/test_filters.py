"""Filters complete records with their run, and drop records by logger and level."""

from __future__ import annotations

import logging
import logging.config
from types import SimpleNamespace

import pytest

from runlog.context import RUN_FIELDS, FlowRunContext
from runlog.filters import ExcludeLoggersFilter, MaxLevelFilter, RunFieldsFilter


def make_record(name="app", level=20, **extra):
    record = logging.LogRecord(name, level, "path", 1, "message", (), None)
    record.__dict__.update(extra)
    return record


def a_run(**extra):
    return FlowRunContext(
        flow_run=SimpleNamespace(id="f1", name="brave-otter"), flow=SimpleNamespace(name="etl"), extra=extra
    )


def test_a_record_gets_the_active_run():
    """Inside a run any record has all run fields, and the run's extras."""
    record = make_record(flow_name=None, color="blue")
    with a_run(source="s3", color="red"):
        assert RunFieldsFilter().filter(record)
    assert (record.flow_run_id, record.flow_run_name, record.flow_name) == ("f1", "brave-otter", "etl")
    assert (record.source, record.color) == ("s3", "blue")
    assert record.task_run_id is None


def test_a_record_keeps_its_own_run():
    """A record that was labelled keeps its run, whatever run is active."""
    record = make_record(flow_run_id="f0", flow_run_name="other")
    with a_run(source="s3"):
        RunFieldsFilter("-").filter(record)
    assert (record.flow_run_id, record.flow_run_name, record.flow_name) == ("f0", "other", "-")
    assert not hasattr(record, "source")


def test_outside_of_a_run():
    """Outside of any run names get the placeholder and ids stay empty, so that formats do not fail."""
    record = make_record()
    RunFieldsFilter("-").filter(record)
    assert [getattr(record, name) for name in RUN_FIELDS] == [
        "-" if name.endswith("_name") else None for name in RUN_FIELDS
    ]


@pytest.mark.parametrize("names", [["httpx", "a.b"], "httpx, a.b,", ("httpx", " a.b ")])
def test_excluded_loggers(names):
    """Named loggers and those below them are dropped, others with a similar name are not."""
    allows = ExcludeLoggersFilter(names).filter
    assert not allows(make_record("httpx"))
    assert not allows(make_record("httpx.client"))
    assert not allows(make_record("a.b.c"))
    assert allows(make_record("httpx2"))
    assert allows(make_record("a"))
    assert ExcludeLoggersFilter([]).filter(make_record("a"))


@pytest.mark.parametrize("level", [30, "WARNING", "warning"])
def test_levels(level):
    """A level itself passes, what is above it does not."""
    allows = MaxLevelFilter(level).filter
    assert allows(make_record(level=30))
    assert not allows(make_record(level=31))


def test_a_level_that_does_not_exist():
    """A wrong level name is an error that lists the right ones."""
    with pytest.raises(ValueError, match=r"level must be one of .*INFO.* got 'LOUD'"):
        MaxLevelFilter("LOUD")


def test_filters_from_a_configuration():
    """`dictConfig` builds each of them from plain values."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {
                "run": {"()": "runlog.filters.RunFieldsFilter", "missing": "-"},
                "quiet": {"()": "runlog.filters.ExcludeLoggersFilter", "names": ["httpx"]},
                "low": {"()": "runlog.filters.MaxLevelFilter", "level": "INFO"},
            },
            "handlers": {"null": {"class": "logging.NullHandler", "filters": ["run", "quiet", "low"]}},
            "loggers": {"test_filters": {"handlers": ["null"]}},
        }
    )
    (handler,) = logging.getLogger("test_filters").handlers
    assert handler.filter(make_record())
    assert not handler.filter(make_record("httpx"))
    assert not handler.filter(make_record(level=30))
