"""What may not be called is refused, and what cannot travel is told of; the server lives on."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.actor.actors import Landmine, Refusing, Sulking, Worker
from tests.actor.conftest import ROOT, Here, There

from fluster import ActorNotFound, ActorServer, FixedResolver, RemoteError, ResourceExhausted
from fluster.actor.proxy import ActorMethod


def asked_anyway(here: Here, name: str) -> Any:
    """Calls a name that proxies refuse by themselves."""
    return ActorMethod(here.call()._route, name, 10.0, False)()


@pytest.mark.parametrize("name", ["_hidden", "__class__", "__init__", "__reduce_ex__", "_lock", "__dict__"])
def test_underscore_names_are_refused_before_anything_is_sent(here: Here, name: str) -> None:
    here.server.shutdown()
    with pytest.raises(AttributeError, match="underscore"):
        here.call().__getattr__(name)
    with pytest.raises(AttributeError, match="underscore"):
        here.pool.broadcast().__getattr__(name)


@pytest.mark.parametrize(
    "name",
    [
        "_hidden",
        "__class__",
        "__init__",
        "__reduce_ex__",
        "a.b",
        "add.__func__",
        "",
        "add\0",
        "kept.append",
        "x y",
    ],
)
def test_a_server_refuses_such_names_by_itself(here: Here, name: str) -> None:
    with pytest.raises(AttributeError):
        asked_anyway(here, name)
    assert here.call().add(1) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("attribute", "not callable"),
        ("count", "not callable"),
        ("looks_like_a_method", "a property"),
        ("missing", "has no method 'missing'"),
    ],
)
def test_what_is_no_method_is_refused(here: Here, name: str, reason: str) -> None:
    worker = here.call()
    with pytest.raises(AttributeError, match=reason):
        getattr(worker, name)()
    with pytest.raises(AttributeError, match=reason):
        getattr(worker, name).submit().result(10)
    with pytest.raises(AttributeError, match=reason):
        next(getattr(worker, name).stream())
    assert worker.add(1) == 2


def test_a_stream_is_not_called_and_a_plain_method_not_streamed(here: Here) -> None:
    worker = here.call()
    with pytest.raises(AttributeError, match="gives a stream"):
        worker.count_to(3)
    with pytest.raises(AttributeError, match="gives no stream"):
        next(worker.add.stream(1))


class Trap:
    """Attributes that do not like to be looked at."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error

    @functools.cached_property
    def cached(self) -> Any:
        raise self.error

    def add(self, a: int, b: int) -> int:
        return a + b


@pytest.mark.parametrize("error", [ValueError("v"), SystemExit(3), Refusing()], ids=["Exception", "exit", "no text"])
@pytest.mark.parametrize("name", ["cached", "absent"])
def test_an_attribute_that_raises_when_looked_at_harms_nobody(error: BaseException, name: str) -> None:
    with ActorServer(None) as server:
        server.register("trap", Trap(error))
        server.serve_background()
        resolver = FixedResolver({"trap": server.address})
        try:
            pool = resolver.lookup("trap")
            with pytest.raises((type(error), RemoteError)):
                getattr(pool.call(timeout=10.0), name)()
            assert pool.call(timeout=10.0).add(1, 2) == 3
        finally:
            resolver.close()


def test_an_unknown_actor_is_not_found_and_named(here: Here) -> None:
    resolver = FixedResolver({"somebody": here.server.address, "nobody": []})
    try:
        with pytest.raises(ActorNotFound, match="somebody"):
            resolver.lookup("somebody").call(timeout=10.0).add(1)
        with pytest.raises(ActorNotFound, match="nobody"):
            resolver.lookup("nobody").call()
        with pytest.raises(ActorNotFound, match="nobody"):
            resolver.lookup("nobody").broadcast().add(1)
        with pytest.raises(ActorNotFound, match="unheard-of"):
            resolver.lookup("unheard-of").call()
    finally:
        resolver.close()


def test_a_server_without_actors_says_so() -> None:
    with ActorServer(None) as server:
        server.serve_background()
        resolver = FixedResolver({"worker": server.address})
        try:
            with pytest.raises(ActorNotFound, match="worker"):
                resolver.lookup("worker").call(timeout=10.0).add(1)
            server.register("worker", Worker())
            assert resolver.lookup("worker").call(timeout=10.0).add(1) == 2
        finally:
            resolver.close()


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("give_lock", (), r"the result, of type _thread\.lock, cannot be pickled"),
        ("give_sulking", ("refusing",), "cannot be pickled: <its __str__ raised RuntimeError>"),
        ("give_sulking", ("exit",), "cannot be pickled: 3"),
        ("give_sulking", ("interrupt",), "cannot be pickled"),
        ("give_landmine", (), "the result cannot be rebuilt here: ValueError: boom"),
        ("fail_refusing", (), "Refusing"),
        ("fail_picky", (), "Picky: 1 and 2"),
        ("fail_frozen", (), "Frozen"),
        ("fail_local", (), "Local"),
    ],
)
def test_what_cannot_travel_back_is_told_as_text(here: Here, method: str, arguments: Any, expected: str) -> None:
    worker = here.call()
    if method == "fail_refusing":
        with pytest.raises((Refusing, RemoteError)):
            worker.fail_refusing()
    else:
        with pytest.raises(RemoteError, match=expected):
            getattr(worker, method)(*arguments)
        with pytest.raises(RemoteError, match=expected):
            getattr(worker, method).submit(*arguments).result(10)
    assert worker.add(1) == 2


@pytest.mark.parametrize("kind", [ValueError, SystemExit, Refusing], ids=lambda kind: str(kind.__name__))
def test_arguments_that_cannot_be_loaded_are_told_of(here: Here, kind: type[BaseException]) -> None:
    worker = here.call()
    with pytest.raises((RemoteError, SystemExit, RuntimeError)):
        worker.same(Landmine(kind, "boom"))
    with pytest.raises((RemoteError, SystemExit, RuntimeError)):
        worker.async_add(Landmine(kind, "boom"), 1)
    with pytest.raises((RemoteError, SystemExit, RuntimeError)):
        next(worker.count_to.stream(Landmine(kind, "boom")))
    assert worker.add(1) == 2


def test_arguments_that_cannot_be_pickled_fail_where_they_are_given(here: Here) -> None:
    worker = here.call()
    for call in (worker.same, worker.same.submit, worker.count_to.stream):
        with pytest.raises(ValueError, match="sulks"):
            call(Sulking(ValueError("sulks")))
    assert worker.add(1) == 2


def test_a_class_that_only_the_caller_has_is_named(there: There, tmp_path: Path) -> None:
    """Its module can be imported by the caller, not by the actor."""
    (tmp_path / "only_the_caller_has_it.py").write_text("class Thing:\n    pass\n")
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}]
        from fluster import FixedResolver, RemoteError
        from only_the_caller_has_it import Thing
        resolver = FixedResolver({{"worker": {there.address!r}}}, access_key={there.access_key!r})
        worker = resolver.lookup("worker").call(10)
        try:
            worker.same(Thing())
        except RemoteError as error:
            assert "only_the_caller_has_it" in str(error), error
            assert "same" in str(error), error
        else:
            raise AssertionError
        assert worker.add(1) == 2
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=30, cwd=ROOT)
    assert there.call().add(1) == 2


@pytest.mark.parametrize("max_concurrency", [1, 4])
def test_a_result_beyond_the_limit_is_an_error_and_so_are_such_arguments(way: str, max_concurrency: int) -> None:
    here = Here(max_concurrency, max_message_bytes=1 << 20)
    try:
        worker = here.call()
        for kind in ("make", "bytes", "list"):
            here.worker.big = {  # type: ignore[attr-defined]
                "make": lambda: here.worker.make(1, 2 << 20),
                "bytes": lambda: bytes(2 << 20),
                "list": lambda: [bytes(1 << 20), bytes(1 << 20)],
            }[kind]
            with pytest.raises(ResourceExhausted, match="the result takes"):
                worker.big()
        waiting = worker.async_wait.submit()
        for argument in (bytes(2 << 20), here.worker.make(1, 2 << 20)):
            with pytest.raises(ResourceExhausted, match="1,048,576"):
                worker.same(argument)
            with pytest.raises(ResourceExhausted, match="1,048,576"):
                worker.same.submit(argument).result(20)
        assert worker.add(1) == 2
        assert not waiting.done()
        waiting.cancel()
    finally:
        here.close()
