"""Tests written as coroutines run on an event loop of their own, and leave the test runner as it was."""

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from fluster.cluster.attempt import proc


@pytest.fixture(autouse=True)
def orphans_go_where_they_went_before() -> Iterator[None]:
    """A runtime makes its process, here the test runner, a subreaper; orphans of later tests are none of its own."""
    yield
    proc.become_subreaper(on=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = inspect.signature(function).parameters
    asyncio.run(function(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
