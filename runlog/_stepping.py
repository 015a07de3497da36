"""
Run each step of a generator in a `contextvars.Context` of its own.

A ``with`` block around a ``yield`` leaks: what it set is seen by the caller
between two steps. The wrappers here run the steps in a copy of the caller's
context, taken at the first step, so that a run opened for a generator is active
in the generator and nowhere else. What the generator sets is not seen outside,
and what the caller sets after the first step is not seen inside.

`runlog.runs` and `runlog.propagation` use it. Nothing here knows about runs.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from contextvars import Context

Finish: TypeAlias = "Callable[[BaseException | None], object]"
"""Called once, in the generator's context, with what ended it; `None` if it returned or was closed."""

Opener: TypeAlias = "Callable[[tuple[Any, ...], dict[str, Any]], tuple[Context, Finish]]"
"""Called with the arguments at the first step; returns where to run, and what to call at the end."""


def is_coroutine_function(fn: Any) -> bool:
    """Whether *fn* is ``async def``, a partial of one, or an object whose ``__call__`` is."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(_call_of(fn))


def is_generator_function(fn: Any) -> bool:
    """Whether *fn* is a generator function, a partial of one, or an object whose ``__call__`` is."""
    return inspect.isgeneratorfunction(fn) or inspect.isgeneratorfunction(_call_of(fn))


def is_async_generator_function(fn: Any) -> bool:
    """Whether *fn* is an asynchronous generator function, a partial of one, or such an object."""
    return inspect.isasyncgenfunction(fn) or inspect.isasyncgenfunction(_call_of(fn))


def _call_of(fn: Any) -> Any:
    return getattr(type(fn), "__call__", None)  # noqa: B004 - the method itself is wanted


def wrap_generator(fn: Callable[..., Generator[Any, Any, Any]], opener: Opener) -> Callable[..., Any]:
    """
    Return a generator function that runs *fn*'s steps in the context that *opener* gives.

    ``send``, ``throw``, ``close`` and the returned value are those of *fn*'s generator.
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        context, finish = opener(args, kwargs)
        try:
            generator = context.run(fn, *args, **kwargs)
            step: Callable[[Any], Any] = generator.send
            value: Any = None
            while True:
                item = context.run(step, value)
                try:
                    value = yield item
                    step = generator.send
                except GeneratorExit:
                    # Returned, not raised again: since Python 3.13 `close` has a value.
                    result = context.run(generator.close)
                    break
                except BaseException as error:
                    step, value = generator.throw, error
        except StopIteration as stop:
            result = stop.value
        except BaseException as error:
            context.run(finish, error)
            raise
        context.run(finish, None)
        return result

    return call


def wrap_async_generator(fn: Callable[..., AsyncGenerator[Any, Any]], opener: Opener) -> Callable[..., Any]:
    """Return an asynchronous generator function that does for *fn* what `wrap_generator` does."""

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        context, finish = opener(args, kwargs)
        try:
            generator = context.run(fn, *args, **kwargs)
            step: Callable[[Any], Awaitable[Any]] = generator.asend
            value: Any = None
            while True:
                item = await await_in(context, step(value))
                try:
                    value = yield item
                    step = generator.asend
                except GeneratorExit:
                    await await_in(context, generator.aclose())
                    break
                except BaseException as error:
                    step, value = generator.athrow, error
        except StopAsyncIteration:
            pass
        except BaseException as error:
            context.run(finish, error)
            raise
        context.run(finish, None)

    return call


@types.coroutine
def await_in(context: Context, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await *awaitable*, with each of its steps run in *context*."""
    iterator: Any = awaitable.__await__()
    step, value = iterator.send, None
    try:
        while True:
            signal = context.run(step, value)
            try:
                value = yield signal
                step = iterator.send
            except BaseException as error:
                step, value = iterator.throw, error
    except StopIteration as stop:
        return stop.value
