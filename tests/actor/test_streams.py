"""Streams: generators of an actor, consumed by a caller, no faster than it consumes."""

from __future__ import annotations

import threading

import pytest
from tests.actor.actors import Worker
from tests.actor.conftest import Here, There, eventually

from fluster import ActorCallTimeout, ActorServer, ActorUnavailable, FixedResolver
from fluster.actor.protocol import STREAM_WINDOW


@pytest.mark.parametrize("method", ["count_to", "async_count_to"])
@pytest.mark.parametrize("count", [0, 1, STREAM_WINDOW, 1_000])
def test_items_come_in_order_and_all(here: Here, way: str, method: str, count: int) -> None:
    assert list(getattr(here.call(), method).stream(count)) == list(range(count))
    assert here.call().is_closed(10.0)


@pytest.mark.parametrize("method", ["count_and_fail", "async_count_and_fail"])
@pytest.mark.parametrize("count", [0, 5, 100])
def test_an_error_comes_after_the_items_before_it(here: Here, method: str, count: int) -> None:
    stream = getattr(here.call(), method).stream(count)
    assert [next(stream) for _ in range(count)] == list(range(count))
    with pytest.raises(ValueError, match="in the middle") as caught:
        next(stream)
    assert list(stream) == []
    assert method in "".join(caught.value.__notes__)


@pytest.mark.parametrize("method", ["count_for_ever", "count_to"])
def test_a_generator_runs_at_most_the_window_ahead(here: Here, method: str) -> None:
    stream = getattr(here.call(), method).stream(*([10_000] if method == "count_to" else []))
    for expected in range(100):
        assert next(stream) == expected
        assert here.worker.produced <= expected + 1 + STREAM_WINDOW
    stream.close()
    assert here.worker.closed.wait(10)


@pytest.mark.parametrize("method", ["count_to", "async_count_to"])
def test_a_slow_consumer_blocks_no_other_calls(here: Here, method: str) -> None:
    """Also with one thread: the generator is put aside until more is wanted."""
    worker = here.call()
    stream = getattr(worker, method).stream(100)
    assert next(stream) == 0
    eventually(lambda: here.worker.produced >= STREAM_WINDOW)
    assert worker.add(1) == 2
    assert worker.add.submit(2).result(10) == 3
    others = [worker.count_to.stream(50) for _ in range(5)]
    for each in zip(*others, strict=True):
        assert len(set(each)) == 1
    assert list(stream) == list(range(1, 100))


@pytest.mark.parametrize("method", ["count_for_ever", "async_count_to"])
def test_closing_a_stream_ends_its_generator(here: Here, method: str) -> None:
    arguments = [10**9] if method == "async_count_to" else []
    with getattr(here.call(), method).stream(*arguments) as stream:
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
    assert here.worker.closed.wait(10)
    assert list(stream) == []
    stream.close()
    assert here.call().add(1) == 2


def test_a_stream_that_nobody_has_read_is_closed_too(here: Here) -> None:
    here.call().count_for_ever.stream().close()
    eventually(lambda: here.worker.closed.is_set() or here.worker.produced == 0)
    assert here.call().add(1) == 2


def test_arrays_of_a_stream_are_those_of_their_moment(here: Here, way: str) -> None:
    """The generator writes into one memory again and again."""
    blocks = list(here.call().blocks.stream(40, 300_000))
    assert [block.seed for block in blocks] == list(range(40))


def test_the_items_of_many_streams_are_not_mixed_up(there: There) -> None:
    failures: list[BaseException] = []

    def consume(number: int) -> None:
        try:
            for _ in range(5):
                length = 50 + number
                assert list(there.call().count_to.stream(length)) == list(range(length))
                assert there.call().add(number) == number + 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


def test_a_parked_generator_is_continued_by_one_thread_alone() -> None:
    """Credit comes in just when its thread puts the generator aside: it must not be run by two."""
    here = Here(max_concurrency=4)
    try:
        failures: list[BaseException] = []

        def consume() -> None:
            try:
                for _ in range(6):
                    assert list(here.call().count_to.stream(1_000)) == list(range(1_000))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
    finally:
        here.close()


@pytest.mark.parametrize("method", ["count_for_ever", "async_count_to"])
def test_a_stream_has_a_deadline(here: Here, method: str) -> None:
    arguments = [10**9] if method == "async_count_to" else []
    stream = getattr(here.call(), method).options(timeout=0.3).stream(*arguments)
    with pytest.raises(ActorCallTimeout):
        for _ in stream:
            pass
    assert list(stream) == []
    assert here.worker.closed.wait(10)


def test_streams_end_when_their_server_does() -> None:
    server = ActorServer(None)
    worker = Worker()
    server.register("worker", worker)
    server.serve_background()
    resolver = FixedResolver({"worker": server.address})
    stream = resolver.lookup("worker").call().count_for_ever.stream()
    assert next(stream) == 0
    server.shutdown(grace_period=0.1)
    with pytest.raises(ActorUnavailable):
        for _ in stream:
            pass
    assert worker.closed.wait(10)
    resolver.close()
