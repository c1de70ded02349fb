"""Calls: what goes in arrives, what comes out comes back, in the threads and in the order that were promised."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from tests.actor.actors import Block, Worker, doubles
from tests.actor.conftest import Here, There

from fluster import ActorContext, ActorServer, FixedResolver, NotInCluster, RemoteError, current_actor


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -(2**200),
        1.5,
        float("inf"),
        "ü\0\n\U0001f600",
        b"\0\xff" * 7,
        bytearray(b"abc"),
        [1, [2, [3, [4, [5]]]]],
        {"a": {"b": (1, 2)}, 3: None},
        {1, 2},
        frozenset({3}),
        range(5),
        2 + 3j,
        Block(bytearray(b"xyz")),
        doubles(40_000),
        b"x" * 1_000_000,
        [{} for _ in range(1_000)],
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_value_comes_back_as_it_went(there_module: There, way: str, value: Any) -> None:
    resolver = FixedResolver({"worker": there_module.address}, access_key=there_module.access_key)
    try:
        worker = resolver.lookup("worker").call(timeout=20.0)
        back = worker.same(value)
        assert back == value
        assert type(back) is type(value)
    finally:
        resolver.close()


@pytest.fixture(scope="module")
def there_module() -> Any:
    server = There()
    yield server
    server.close()


def test_arguments_go_by_position_and_by_name(here: Here) -> None:
    worker = here.call()
    assert worker.add(2, b=3) == 5
    assert worker.add(a=2) == 3
    assert worker.echo() == ((), {})
    assert worker.echo(1, *"ab", x=None, self=5) == ((1, "a", "b"), {"x": None, "self": 5})
    with pytest.raises(TypeError, match="unexpected keyword"):
        worker.add(1, c=2)


def test_functions_and_classes_of_main_and_of_functions_travel_by_value(there: There) -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

        def __add__(self, other: int) -> int:
            return self.number + other

    assert there.call().add(Local(2), 3) == 5


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("k"), TimeoutError("t"), ConnectionError("c"), OSError(2, "n", "f"), RuntimeError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["fail", "async_fail"])
def test_an_exception_arrives_as_itself_with_the_remote_traceback(here: Here, method: str, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        getattr(here.call(), method)(error)
    assert str(caught.value) == str(error)
    assert caught.value.args == error.args
    assert f"in {method}" in "".join(caught.value.__notes__)
    assert here.call().add(1) == 2


def test_an_exception_of_a_class_the_caller_does_not_have_is_told_of(there: There) -> None:
    worker = there.call()
    with pytest.raises(RemoteError, match=r"Local: .*of a class made here") as caught:
        worker.fail_local()
    assert "Local" in (caught.value.type_name or "")
    assert worker.add(1) == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_ends_programs_ends_no_actor(here: Here, error: BaseException) -> None:
    worker = here.call()
    expected = SystemExit if isinstance(error, SystemExit) else RemoteError
    for method in ("fail", "async_fail"):
        with pytest.raises(expected):
            getattr(worker, method)(error)
        assert worker.add(1) == 2


@pytest.mark.parametrize("method", ["with_ctx", "with_annotation", "async_with_ctx"])
def test_the_context_comes_first_by_name_or_annotation(here: Here, method: str) -> None:
    assert getattr(here.call(), method)(7) == (True, 7)
    assert getattr(here.call(), method)(value=7) == (True, 7)


def test_a_later_parameter_named_ctx_is_the_callers(here: Here) -> None:
    assert here.call().kwarg_ctx(1, 2) == (1, 2)
    assert here.call().kwarg_ctx(1) == (1, 3)


def test_the_context_is_that_of_the_server(here: Here) -> None:
    class Asker:
        def ask(self, ctx: ActorContext) -> Any:
            assert ctx is current_actor()
            return ctx.cluster, ctx.job_id, ctx.namespace

    here.server.register("asker", Asker())
    resolver = FixedResolver({"asker": here.server.address})
    try:
        assert resolver.lookup("asker").call(timeout=20.0).ask() == (None, "", "")
    finally:
        resolver.close()


def test_there_is_no_current_actor_outside_of_a_call() -> None:
    with pytest.raises(NotInCluster, match="no actor's method runs here"):
        current_actor()


def test_synchronous_methods_run_on_one_thread_in_the_order_of_each_caller(here: Here) -> None:
    count, callers = 300, 6
    threads: set[int] = set()

    def caller(number: int) -> None:
        worker = here.call()
        futures = []
        for each in range(count):
            # Every way to call, mixed.
            if each % 3 == 0:
                worker.note((number, each))
            else:
                futures.append(worker.note.submit((number, each)))
            if each % 50 == 0:
                threads.add(worker.thread())
        wait(futures, timeout=20)

    with ThreadPoolExecutor(callers) as executor:
        list(executor.map(caller, range(callers)))
    notes = here.call().notes()
    assert len(notes) == count * callers
    for number in range(callers):
        assert [each for who, each in notes if who == number] == list(range(count))
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})


def test_order_holds_while_methods_are_slow_and_fast_in_turn(here: Here) -> None:
    """The reading of connections changes hands whenever a method takes over a millisecond."""
    worker = here.call()
    futures = [worker.nap_and_note.submit(0.004 if each % 7 == 0 else 0.0, each) for each in range(400)]
    wait(futures, timeout=20)
    assert worker.notes() == list(range(400))


def test_calls_do_not_overlap_by_default(here: Here) -> None:
    futures = [here.call().overlap.submit(2, 0.02) for _ in range(10)]
    assert {future.result(20) for future in futures} == {1}


def test_calls_overlap_as_far_as_max_concurrency_says(here_4: Here) -> None:
    worker = here_4.call()
    assert {future.result(20) for future in [worker.overlap.submit(4) for _ in range(4)]} == {4}
    here_4.worker.most = 0
    futures = [worker.overlap.submit(5, 0.3) for _ in range(5)]
    assert max(future.result(20) for future in futures) == 4


def test_coroutines_overlap_on_one_thread_of_their_own(here: Here) -> None:
    worker = here.call()
    results = [future.result(20) for future in [worker.async_overlap.submit(50) for _ in range(50)]]
    assert {most for most, _ in results} == {50}
    assert len({thread for _, thread in results}) == 1
    assert worker.thread() not in {thread for _, thread in results}


def test_a_slow_method_keeps_no_other_actor_of_the_server_waiting(here: Here) -> None:
    here.server.register("other", Worker())
    resolver = FixedResolver({"other": here.server.address})
    try:
        waiting = here.call().wait.submit(20.0)
        assert resolver.lookup("other").call(timeout=5.0).add(1) == 2
        assert here.call().async_add(1, 2) == 3
        assert not waiting.done()
        here.call().open_gate_async()
        assert waiting.result(20) is True
    finally:
        resolver.close()


def test_an_actor_calls_itself_when_there_is_a_thread_for_it() -> None:
    here = Here(max_concurrency=2)
    try:
        address, key = here.server.address, here.server.access_key
        for _ in range(20):
            assert here.call().call_other(address, key, "add", 1, 2) == 3
    finally:
        here.close()


def test_an_actor_calls_another_which_calls_it_back() -> None:
    one, other = There(max_concurrency=2), There()
    try:
        back = ("call_other", other.address, other.access_key, "call_other", one.address, one.access_key, "add", 20, 3)
        worker = one.call()
        for _ in range(20):
            assert getattr(worker, back[0])(*back[1:]) == 23
    finally:
        one.close()
        other.close()


def test_a_caller_that_serves_is_called_back() -> None:
    here, other = Here(), There()
    try:
        worker = other.call()
        for _ in range(20):
            assert worker.call_other(here.server.address, here.server.access_key, "add", 1, 5) == 6
    finally:
        here.close()
        other.close()


def test_a_class_is_not_registered_for_an_instance(here: Here) -> None:
    with pytest.raises(TypeError, match="instance of Worker"):
        here.server.register("other", Worker)


def test_a_caller_without_key_for_a_foreign_server_is_told_so(there: There) -> None:
    with pytest.raises(ValueError, match="no key is known for the actor server"):
        FixedResolver({"worker": there.address}).lookup("worker")


def test_calling_many_actors_of_one_server_mixes_nothing_up() -> None:
    names = [f"worker-{number}" for number in range(8)]
    with ActorServer(None) as server:
        workers = {name: Worker() for name in names}
        for name, worker in workers.items():
            server.register(name, worker)
        server.serve_background()
        resolver = FixedResolver(dict.fromkeys(names, server.address))
        try:
            pools = {name: resolver.lookup(name) for name in names}
            futures = [pools[name].call().same.submit((name, each)) for each in range(200) for name in names]
            assert [future.result(20) for future in futures] == [(name, each) for each in range(200) for name in names]
            threads = [pools[name].call().thread() for name in names]
            assert len(set(threads)) == len(names)
        finally:
            resolver.close()
