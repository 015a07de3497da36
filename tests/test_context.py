"""Contexts: which run is active, in every order of entering and leaving."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from contextvars_extras.context_management import bind_to_snapshot_context
from hypothesis import given
from hypothesis import strategies as st

from runlog import _fields, context
from runlog._handover import Handover
from runlog.context import (
    RUN_FIELDS,
    FlowRunContext,
    RunContext,
    TaskRunContext,
    activate_from_environment,
    active,
    current_run_context,
    current_run_fields,
    get_run_context,
    within,
)
from runlog.exceptions import MissingContextError
from runlog.settings import get_current_settings, reset_settings_cache, temporary_settings

ETL = SimpleNamespace(id=uuid.UUID(int=1), name="swift-otter")
LOAD = SimpleNamespace(id=uuid.UUID(int=2), name="load-1")
SUB = SimpleNamespace(id=uuid.UUID(int=3), name="calm-fox")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """Nothing was inherited from the environment, and no name was warned of, yet."""
    monkeypatch.setattr(context, "_inherited", None)
    monkeypatch.setattr(context, "_environment_is_read", False)
    monkeypatch.setattr(_fields, "_warned_of", set())
    reset_settings_cache()
    yield
    reset_settings_cache()
    # Some tests leave runs in other Contexts than the one entered; such runs linger in this one.
    for variable in (context._RUN, context._FLOW, context._TASK):
        variable.set(None)


@pytest.fixture
def child_environment(monkeypatch):
    """Return what sets RUNLOG_CONTEXT as a parent process would have."""

    def set_context(**handover):
        monkeypatch.setenv("RUNLOG_CONTEXT", Handover(process="another", **handover).encode())

    return set_context


def flow(run=ETL, name="etl", **options):
    return FlowRunContext(run, SimpleNamespace(name=name), **options)


def task(run=LOAD, name="load", **options):
    return TaskRunContext(run, SimpleNamespace(name=name), **options)


# --- what is active -----------------------------------------------------------------------------------


def test_without_a_run():
    """Outside of any run there is no context, and the error says what to do."""
    assert current_run_context() is None
    assert FlowRunContext.get() is TaskRunContext.get() is RunContext.get() is None
    assert dict(current_run_fields()) == {}
    with pytest.raises(MissingContextError, match=r"no flow or task run is active.*runlog\.carry\(\)"):
        get_run_context()


def test_innermost_wins():
    """A flow opened inside a task is the active run, and the task again after it."""
    with flow() as outer, task() as inside:
        assert get_run_context() is inside
        with flow(SUB, "sub") as sub:
            assert get_run_context() is current_run_context() is sub is FlowRunContext.get()
            assert TaskRunContext.get() is inside
        assert get_run_context() is inside
        assert FlowRunContext.get() is outer
    assert current_run_context() is None


def test_the_registry_shows_every_variable():
    """``active`` declares the variables, reads what they hold, and refuses misspelt ones."""
    with flow() as outer, task() as inside:
        assert (active.run, active.flow_run, active.task_run) == (inside, outer, inside)
        assert set(active) == {"run", "flow_run", "task_run"}
    assert (active.run, active.flow_run, active.task_run) == (None, None, None)
    with pytest.raises(AttributeError):
        active.flow_rum = None


def test_what_we_do_not_use_of_contextvars_extras_is_still_broken():
    """The snapshot binder loses call arguments; once it does not, our own `carry` may use it."""
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        bind_to_snapshot_context(lambda value: value)(1)


# --- fields -------------------------------------------------------------------------------------------


def test_fields_of_a_flow_run():
    """An outermost flow run has its id as text, its names, and its extras; no parents."""
    with flow(extra={"source": "s3"}) as run:
        assert run.fields == {
            "flow_run_id": str(ETL.id),
            "flow_run_name": "swift-otter",
            "flow_name": "etl",
            "source": "s3",
        }
        assert current_run_fields() is run.fields
    assert (run.run_id, run.run_name, run.logger_name) == (str(ETL.id), "swift-otter", "flow_runs")


def test_fields_of_a_task_run_in_a_flow_run():
    """A task run knows its flow run, and its attempt if it is given."""
    with flow(extra={"source": "s3"}) as outer, task(attempt=2, extra={"table": "orders"}) as run:
        assert run.fields == {
            "task_run_id": str(LOAD.id),
            "task_run_name": "load-1",
            "task_name": "load",
            "flow_run_id": str(ETL.id),
            "flow_run_name": "swift-otter",
            "flow_name": "etl",
            "attempt": 2,
            "table": "orders",
        }
        assert run.outer is outer
    assert (run.run_id, run.run_name, run.logger_name) == (str(LOAD.id), "load-1", "task_runs")


def test_fields_of_runs_inside_a_task():
    """A flow run and a task run opened in a task name it as their parent."""
    with flow(), task():
        with flow(SUB, "sub") as sub:
            assert sub.fields["parent_flow_run_id"] == str(ETL.id)
            assert sub.fields["parent_task_run_id"] == str(LOAD.id)
            with task(SimpleNamespace(id="x", name="x")) as inner:
                assert inner.fields["flow_run_id"] == str(SUB.id)
                assert "parent_task_run_id" not in inner.fields
        with task(SimpleNamespace(id="y", name="y")) as inner:
            assert inner.fields["parent_task_run_id"] == str(LOAD.id)
            assert inner.fields["flow_run_id"] == str(ETL.id)
        with flow(SUB, "sub") as sub, flow(SimpleNamespace(id="z", name="z")) as deeper:
            assert deeper.fields["parent_flow_run_id"] == str(SUB.id)
            assert "parent_task_run_id" not in deeper.fields


@pytest.mark.parametrize(
    ("run", "flow_run_id"),
    [
        (SimpleNamespace(id="a", name="a"), None),
        (SimpleNamespace(id="a", name="a", flow_run_id=None), None),
        (SimpleNamespace(id="a", name="a", flow_run_id=ETL.id), str(ETL.id)),
    ],
)
def test_a_task_run_without_a_flow_run(run, flow_run_id):
    """A task run alone is fine; it has the flow run's id if it brings it, and no names."""
    with TaskRunContext(run) as alone:
        assert alone.fields["flow_run_id"] == flow_run_id
        assert alone.fields["flow_run_name"] == alone.fields["flow_name"] == "<unknown>"
        assert alone.fields["task_name"] == "<unknown>"


def test_a_task_run_that_belongs_to_another_flow_run():
    """The flow run that a task run names itself counts, not the one around it."""
    with flow(), TaskRunContext(SimpleNamespace(id="a", name="a", flow_run_id=SUB.id)) as stray:
        assert stray.fields["flow_run_id"] == str(SUB.id)
        assert stray.fields["flow_run_name"] == "<unknown>"


def test_a_flow_run_in_a_task_run_without_a_flow():
    """What has no flow run is named as the parent by its task run alone."""
    with TaskRunContext(LOAD), flow(SUB) as sub:
        assert sub.fields["parent_task_run_id"] == str(LOAD.id)
        assert "parent_flow_run_id" not in sub.fields


@pytest.mark.parametrize(
    ("given_flow", "name"), [(None, "<unknown>"), ("etl", "etl"), (SimpleNamespace(name=None), "<unknown>")]
)
def test_names_of_flows(given_flow, name):
    """A flow is an object with a name, the name itself, or not known."""
    assert FlowRunContext(ETL, given_flow).fields["flow_name"] == name


@pytest.mark.parametrize("kind", [FlowRunContext, TaskRunContext])
def test_a_run_has_an_id(kind):
    """What has no id is no run, and the error names the argument."""
    with pytest.raises(TypeError, match=r"(flow|task)_run must have an id .* got SimpleNamespace"):
        kind(SimpleNamespace(name="x"))


def test_entering_fails_with_wrong_settings(monkeypatch):
    """Wrong settings are told when a run is entered, which can then be entered once they are right."""
    run = flow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "_default_log_prints", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.__enter__()
    with run:
        assert current_run_context() is run


def test_a_run_may_lack_a_name():
    """A run without a name is called unknown."""
    assert FlowRunContext(SimpleNamespace(id="a")).fields["flow_run_name"] == "<unknown>"


def test_fields_cannot_be_changed():
    """The fields are shared by all who log, so they are read-only, and a later change of extras is not seen."""
    extra = {"a": 1}
    run = flow(extra=extra)
    extra["a"] = 2
    assert run.fields["a"] == 1
    with pytest.raises(TypeError):
        run.fields["a"] = 3


def test_reserved_extras_are_renamed_and_warned_of_once():
    """An extra that logging would refuse gets an underscore, at the line that gave it, once."""
    run = flow(extra={"name": "a", "args": 1, "args_": 2})
    with pytest.warns(RuntimeWarning) as caught:
        fields = dict(run.fields)
    assert fields.items() >= {"name_": "a", "args__": 1, "args_": 2}.items()
    assert [(str(warning.message), warning.filename) for warning in caught] == [
        ("extra 'name' is an attribute of every log record, so it is logged as 'name_'", __file__),
        ("extra 'args' is an attribute of every log record, so it is logged as 'args__'", __file__),
    ]
    assert flow(extra={"name": "b"}).fields["name_"] == "b"


def test_a_warning_that_is_an_error_is_not_raised(recwarn):
    """With -W error the extra is renamed all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn_explicit", lambda *_: (_ for _ in ()).throw(RuntimeWarning("raised")))
        assert flow(extra={"msg": 1}).fields["msg_"] == 1


# --- entering and leaving -----------------------------------------------------------------------------


def test_one_object_is_entered_once_at_a_time():
    """A second entry is an error and changes nothing; a copy may be entered, and the object again after it."""
    with flow(extra={"a": 1}) as run:
        with pytest.raises(RuntimeError, match=r"swift-otter.* is entered already.*\.copy\(\)"):
            run.__enter__()
        assert current_run_context() is run
        with run.copy() as copy:
            assert copy is not run
            assert copy.fields["a"] == 1
            assert current_run_context() is copy
        with task(attempt=3) as inner, inner.copy() as copy:
            assert copy.fields["attempt"] == 3
            assert RunContext.get() is copy
    with run:
        assert current_run_context() is run


def test_another_thread_cannot_enter_it_either():
    """One object is one entry, in all threads together."""
    with flow() as run, ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(run.__enter__).exception(), RuntimeError)
        assert pool.submit(current_run_context).result() is None


def test_leaving_without_entering():
    """An exit without entry is an error, also after a proper exit."""
    run = flow()
    with pytest.raises(RuntimeError, match="left without having been entered"):
        run.__exit__(None, None, None)
    with run:
        pass
    with pytest.raises(RuntimeError, match="left without having been entered"):
        run.__exit__(None, None, None)


def test_leaving_in_the_wrong_order():
    """Leaving around a context that is active names both and changes nothing; the right order works after it."""
    outer, inner = flow(), task()
    outer.__enter__()
    inner.__enter__()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"swift-otter.* before .*load-1.*entered later"):
            outer.__exit__(None, None, None)
        assert current_run_context() is inner
        assert FlowRunContext.get() is outer
    inner.__exit__(None, None, None)
    assert current_run_context() is outer
    outer.__exit__(None, None, None)
    assert current_run_context() is None
    assert FlowRunContext.get() is None


def test_repr_tells_the_state():
    """The repr has name, id and whether it is entered."""
    run = flow()
    assert repr(run) == f"<FlowRunContext 'swift-otter' ({ETL.id}), not entered>"
    with run:
        assert repr(run) == f"<FlowRunContext 'swift-otter' ({ETL.id}), entered>"


@given(st.lists(st.tuples(st.sampled_from(["enter", "exit"]), st.integers(0, 4))))
def test_any_order_of_entering_and_leaving(actions):
    """Whatever is tried in whatever order, the active run is the top of a stack that refuses wrong moves."""
    kinds = [FlowRunContext, TaskRunContext, FlowRunContext, TaskRunContext, FlowRunContext]
    objects = [
        kind(SimpleNamespace(id=str(i), name=str(i)), log_prints=False) for i, kind in enumerate(kinds)
    ]

    def play():
        stack = []
        for action, number in actions:
            run = objects[number]
            allowed = run not in stack if action == "enter" else bool(stack) and stack[-1] is run
            if not allowed:
                with pytest.raises(RuntimeError):
                    run.__enter__() if action == "enter" else run.__exit__(None, None, None)
            elif action == "enter":
                run.__enter__()
                stack.append(run)
            else:
                run.__exit__(None, None, None)
                stack.pop()
            assert current_run_context() is (stack[-1] if stack else None)
            for kind in (FlowRunContext, TaskRunContext):
                of_kind = [entered for entered in stack if isinstance(entered, kind)]
                assert kind.get() is (of_kind[-1] if of_kind else None)
            assert all(run.is_entered == (run in stack) for run in objects)

    contextvars.copy_context().run(play)


# --- other contextvars.Contexts -----------------------------------------------------------------------


def test_leaving_in_a_copy_of_the_context():
    """An exit in a copy, where the run is the innermost, puts the value from before back there."""
    with flow() as outer:
        inner = task()
        inner.__enter__()
        copy = contextvars.copy_context()
        copy.run(inner.__exit__, None, None, None)
        assert copy.run(current_run_context) is outer
        assert copy.run(TaskRunContext.get) is None
        assert not inner.is_entered


def test_leaving_in_a_context_that_never_saw_it():
    """An exit where another run is active leaves that run alone: as web frameworks do with their dependencies."""
    run = flow()
    contextvars.copy_context().run(run.__enter__)
    with task() as active_here:
        run.__exit__(None, None, None)
        assert current_run_context() is active_here
    assert not run.is_entered


def test_what_was_left_elsewhere_is_not_in_the_way():
    """A run that lingers after an exit in another Context does not keep the one around it from being left."""
    outer, inner = flow(), task()
    outer.__enter__()
    inner.__enter__()
    contextvars.copy_context().run(inner.__exit__, None, None, None)
    outer.__exit__(None, None, None)
    assert current_run_context() is None
    with inner:  # nor from being entered again
        assert current_run_context() is inner


def test_entering_again_where_it_lingers():
    """A run that was left elsewhere is not its own parent when it is entered again."""

    def play():
        run = flow()
        run.__enter__()
        contextvars.copy_context().run(run.__exit__, None, None, None)
        with run:
            assert "parent_flow_run_id" not in run.fields
        assert current_run_context() is None

    contextvars.copy_context().run(play)


def test_entering_again_inside_of_itself():
    """A run that was left elsewhere cannot be entered in a run that was entered in it: it would have no end."""

    def play():
        run = flow()
        run.__enter__()
        with task() as inner:
            contextvars.copy_context().run(inner.copy().__enter__)
            contextvars.Context().run(run.__exit__, None, None, None)
            with pytest.raises(RuntimeError, match=r"swift-otter.* is around .*load-1.*\.copy\(\)"):
                run.__enter__()
            with run.copy():
                pass
        assert not run.is_entered

    contextvars.copy_context().run(play)


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "exit"]), st.integers(0, 2), st.integers(0, 3)), max_size=30)
)
def test_exits_anywhere(actions):
    """Over three Contexts, an exit raises nothing but RuntimeError, and what is not entered can be entered."""
    objects = [FlowRunContext(SimpleNamespace(id=str(i), name=str(i)), log_prints=False) for i in range(4)]
    contexts = [contextvars.copy_context() for _ in range(3)]
    for action, where, number in actions:
        run, place = objects[number], contexts[where]
        entered = run.is_entered
        if action == "enter":
            try:
                place.run(run.__enter__)
            except RuntimeError:
                assert run.is_entered == entered
            else:
                assert not entered
                assert place.run(current_run_context) is run
        else:
            try:
                place.run(run.__exit__, None, None, None)
            except RuntimeError:
                assert run.is_entered == entered
            else:
                assert entered
                assert not run.is_entered
                assert place.run(current_run_context) is not run


def test_threads_start_without_a_run():
    """A new thread has no run, and what it enters is not seen outside."""
    with flow() as run:
        seen = []

        def work():
            seen.append(current_run_context())
            with task() as inner:
                seen.append(current_run_context() is inner)

        thread = threading.Thread(target=contextvars.Context().run, args=(work,))
        thread.start()
        thread.join(10)
        assert seen == [None, True]
        assert current_run_context() is run


def test_a_hundred_asyncio_tasks_each_have_their_run():
    """Tasks that take turns while each is in a run of its own see nobody else's."""

    async def work(number):
        with (
            flow(SimpleNamespace(id=str(number), name="x")),
            task(SimpleNamespace(id=f"t{number}", name="x")),
        ):
            for _ in range(5):
                await asyncio.sleep(0)  # lets the others have their turn
                fields = current_run_fields()
                assert (fields["flow_run_id"], fields["task_run_id"]) == (str(number), f"t{number}")

    async def main():
        with flow() as around:
            await asyncio.gather(*(work(number) for number in range(100)))
            assert current_run_context() is around

    asyncio.run(main())


def test_within_makes_a_run_the_innermost_in_another_thread():
    """A run that was entered elsewhere can be active in any number of threads, also after it was left."""
    with flow() as outer, task() as run:
        pass

    def work(_):
        with within(run):
            found = (current_run_context(), FlowRunContext.get(), TaskRunContext.get())
        return (*found, current_run_context())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [(run, outer, run, None)] * 8


def test_within_may_end_in_another_context():
    """Ended in a copy of the Context, it restores what was there before."""
    run = flow()
    stack = ExitStack()
    stack.enter_context(within(run))
    copy = contextvars.copy_context()
    copy.run(stack.close)
    assert copy.run(current_run_context) is None


# --- prints -------------------------------------------------------------------------------------------


def test_log_prints_is_inherited():
    """A run that does not say takes after the run around it."""
    with flow(log_prints=True):
        with task() as inner:
            assert inner.log_prints
        with task(log_prints=False) as inner:
            assert not inner.log_prints


@pytest.mark.parametrize("value", [True, False])
def test_the_outermost_run_asks_the_settings(value):
    """``PREFECT_LOGGING_LOG_PRINTS`` decides where nobody says."""
    with temporary_settings({"PREFECT_LOGGING_LOG_PRINTS": str(value)}), flow() as run:
        assert run.log_prints is value


# --- Prefect 1 ----------------------------------------------------------------------------------------


def test_get_a_value_of_the_run():
    """`get` finds fields and extras of the active run, or the default."""
    assert context.get("flow_name") is None
    assert context.get("flow_name", "none") == "none"
    with flow(extra={"source": "s3"}):
        assert context.get("flow_name") == "etl"
        assert context.get("source") == "s3"
        assert context.get("task_name", "none") == "none"


def test_get_a_logger_outside_of_a_run():
    """Outside of a run, ``get("logger")`` is the default, or the logger of the library."""
    assert context.get("logger").name == "runlog"
    assert context.get("logger", 1) == 1


# --- RUNLOG_CONTEXT -----------------------------------------------------------------------------------


def test_the_environment_hands_over_a_run(child_environment):
    """A child program finds its parent's run, in every thread, with exactly the parent's fields."""
    fields = {"flow_run_id": "f", "flow_run_name": "fn", "flow_name": "flow", "parent_flow_run_id": "p"}
    child_environment(run=fields, extra={"a": 1})
    run = get_run_context()
    assert run.fields == fields | {"a": 1}
    assert isinstance(run, FlowRunContext)
    assert FlowRunContext.get() is run
    assert TaskRunContext.get() is None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_run_context).result() is run


def test_a_task_run_from_the_environment(child_environment):
    """A task run comes with its flow run, its attempt, and unknown names where names were left out."""
    child_environment(run={"flow_run_id": "f", "task_run_id": "t", "attempt": 2})
    run = activate_from_environment()
    assert run.fields == {
        "flow_run_id": "f",
        "flow_run_name": "<unknown>",
        "flow_name": "<unknown>",
        "task_run_id": "t",
        "task_run_name": "<unknown>",
        "task_name": "<unknown>",
        "attempt": 2,
    }
    assert TaskRunContext.get() is run
    assert FlowRunContext.get().fields["flow_run_id"] == "f"


def test_runs_of_a_child_program_are_children(child_environment):
    """A flow run opened in a child program names the parent's run as its own parent."""
    child_environment(run={"flow_run_id": "f", "task_run_id": "t"}, log_prints=True)
    with flow() as run:
        assert run.fields["parent_flow_run_id"] == "f"
        assert run.fields["parent_task_run_id"] == "t"
        assert not run.log_prints
    assert current_run_context().run_id == "t"


def test_settings_come_with_it_below_the_environment(child_environment, monkeypatch):
    """Handed-over settings become environment variables, but do not replace any."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("RUNLOG_SERVICE_NAME", "to be removed at the end")
    monkeypatch.delenv("RUNLOG_SERVICE_NAME")
    assert get_current_settings().service.name is None
    child_environment(settings={"PREFECT_LOGGING_LEVEL": "DEBUG", "RUNLOG_SERVICE_NAME": "etl"})
    assert activate_from_environment() is None
    assert get_current_settings().logging.level == "ERROR"
    assert get_current_settings().service.name == "etl"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        (json.dumps({"v": 99}), "written in version 99, this runlog reads version 1"),
    ],
)
def test_text_that_cannot_be_understood(monkeypatch, text, reason):
    """Odd text in the environment is warned of once, and there is no run."""
    monkeypatch.setenv("RUNLOG_CONTEXT", text)
    with pytest.warns(
        RuntimeWarning, match=f"RUNLOG_CONTEXT is not a run's context and is ignored: {reason}"
    ):
        assert activate_from_environment() is None
    with pytest.raises(MissingContextError):
        get_run_context()


def test_a_process_does_not_inherit_from_itself(monkeypatch):
    """A program that prepares its own environment for a child stays without a run."""
    from runlog.propagation import capture

    with flow():
        monkeypatch.setenv("RUNLOG_CONTEXT", capture())
    monkeypatch.setattr(context, "_environment_is_read", False)
    assert activate_from_environment() is None


def test_run_fields_name_all_fields():
    """Every field that a run can have is in `RUN_FIELDS`."""
    with flow(), task(), flow(SUB) as sub, task(attempt=1), task(SimpleNamespace(id="i", name="i")) as inner:
        assert set(sub.fields) | set(inner.fields) | {"attempt"} == set(RUN_FIELDS)
