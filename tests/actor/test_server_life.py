"""Servers: from the first registration to the last reply."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from tests.actor.actors import Block, Worker
from tests.actor.conftest import Here, eventually

from fluster import (
    ActorContext,
    ActorServer,
    ActorUnavailable,
    Cluster,
    ClusterResolver,
    Entrypoint,
    FixedResolver,
    JobRequest,
    JobStatus,
    ResourceConfig,
    current_cluster,
)


def test_callers_wait_for_a_server_that_does_not_serve_yet() -> None:
    with ActorServer(None) as server:
        server.register("worker", Worker())
        resolver = FixedResolver({"worker": server.address})
        results: list[Any] = []
        caller = threading.Thread(target=lambda: results.append(resolver.lookup("worker").call(20.0).add(1)))
        caller.start()
        server.serve_background()
        server.serve_background()
        caller.join(20)
        assert results == [2]
        resolver.close()


def test_an_actor_registered_later_is_served(here: Here) -> None:
    here.server.register("later", Worker())
    resolver = FixedResolver({"later": here.server.address})
    assert resolver.lookup("later").call(20.0).add(1) == 2
    resolver.close()


def test_serving_may_begin_while_an_actor_is_being_registered() -> None:
    class Slow:
        namespace = ""

        def register_endpoint(self, *_: Any, **__: Any) -> Any:
            server.serve_background()

            class Endpoint:
                endpoint_id = "endpoint"

            return Endpoint()

        def unregister_endpoint(self, _: Any) -> None:
            pass

        def _on_close(self, _: Any) -> None:
            pass

    server = ActorServer(Slow())  # type: ignore[arg-type]
    server.register("worker", Worker())
    resolver = FixedResolver({"worker": server.address})
    assert resolver.lookup("worker").call(20.0).add(1) == 2
    resolver.close()
    server.shutdown()


def test_a_name_is_taken_once_on_one_server(here: Here) -> None:
    with pytest.raises(ValueError, match="'worker' already"):
        here.server.register("worker", Worker())
    here.server.unregister("worker")
    with pytest.raises(Exception, match="no actor 'worker'"):
        here.server.unregister("worker")
    here.server.register("worker", Worker())
    assert here.call().add(1) == 2


def test_several_servers_share_a_name_in_turn_and_all_at_once() -> None:
    heres = [Here() for _ in range(3)]
    key = heres[0].server.access_key
    assert key not in (heres[1].server.access_key, heres[2].server.access_key)
    resolver = FixedResolver({"worker": [here.server.address for here in heres]})
    pool = resolver.lookup("worker")
    assert pool.size == 3
    for _ in range(12):
        pool.call(20.0).increment()
    assert [here.worker.count for here in heres] == [4, 4, 4]
    futures = pool.broadcast(20.0).increment()
    assert [future.result(20) for future in futures] == [5, 5, 5]
    heres[1].server.shutdown()
    futures = pool.broadcast(20.0).increment()
    wait(futures, 20)
    assert sum(isinstance(future.exception(), ActorUnavailable) for future in futures) <= 1
    resolver.close()
    for here in heres:
        here.close()


@pytest.mark.parametrize("way_of_calling", ["call", "submit"])
def test_a_call_inside_the_grace_period_comes_to_its_end(here: Here, way: str, way_of_calling: str) -> None:
    results: list[Any] = []
    worker = here.call()
    if way_of_calling == "call":
        caller = threading.Thread(target=lambda: results.append(worker.wait(20.0)))
    else:
        future = worker.wait.submit(20.0)
        caller = threading.Thread(target=lambda: results.append(future.result(20)))
    caller.start()
    assert here.worker.begun.wait(10)
    ender = threading.Thread(target=lambda: here.server.shutdown(grace_period=20.0))
    ender.start()
    here.worker.gate.set()
    ender.join(15)
    caller.join(5)
    assert results == [True]


@pytest.mark.usefixtures("tcp")
def test_a_large_result_is_delivered_before_the_server_ends(here: Here) -> None:
    results: list[Any] = []
    memory = bytearray([6]) * (40 << 20)

    def give() -> Block:
        here.worker.begun.set()
        return Block(memory)

    here.worker.give = give  # type: ignore[attr-defined]
    caller = threading.Thread(target=lambda: results.append(here.call().give()))
    caller.start()
    assert here.worker.begun.wait(10)
    here.server.shutdown(grace_period=20.0)
    caller.join(20)
    assert results[0].seed == 6


def test_a_call_past_the_grace_period_is_unavailable(here: Here) -> None:
    coroutine = here.call().async_wait.submit()
    assert here.worker.begun.wait(10)
    here.worker.begun.clear()
    future = here.call().wait.submit(30.0)
    assert here.worker.begun.wait(10)
    releaser = threading.Timer(1.0, here.worker.gate.set)
    releaser.start()
    began = time.monotonic()
    here.server.shutdown(grace_period=0.2)
    assert time.monotonic() - began < 8.0
    for each in (future, coroutine):
        with pytest.raises(ActorUnavailable):
            each.result(10)
    assert here.worker.closed.is_set()
    releaser.join()


def test_after_shutdown_nothing_is_served_and_shutting_down_again_is_harmless(here: Here) -> None:
    assert here.call().add(1) == 2
    address = here.server.address
    here.server.shutdown()
    here.server.shutdown()
    with pytest.raises(ActorUnavailable):
        here.call(5.0).add(1)
    with pytest.raises(RuntimeError, match="shut down"):
        here.server.register("other", Worker())
    with pytest.raises(RuntimeError, match="shut down"):
        here.server.serve_background()
    with ActorServer(None, port=int(address.rpartition(":")[2])) as successor:
        successor.register("worker", Worker())


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_method_may_shut_its_own_server_down(kind: str) -> None:
    class Ender:
        def plain(self) -> str:
            server.shutdown(grace_period=10.0)
            return "ended"

        async def async_(self) -> str:
            server.shutdown(grace_period=10.0)
            return "ended"

    server = ActorServer(None)
    server.register("ender", Ender())
    resolver = FixedResolver({"ender": server.address})
    serving = threading.Thread(target=server.serve)
    serving.start()
    began = time.monotonic()
    ender = resolver.lookup("ender").call(20.0)
    assert (ender.plain() if kind == "plain" else ender.async_()) == "ended"
    serving.join(20)
    assert not serving.is_alive()
    assert time.monotonic() - began < 6.0
    resolver.close()


def test_a_server_that_was_never_used_leaves_nothing() -> None:
    ActorServer(None).shutdown()
    with ActorServer(None) as server:
        server.register("worker", Worker())
    with ActorServer(None) as server:
        server.serve_background()


@pytest.mark.everywhere
def test_actor_registration_and_call(cluster: Cluster) -> None:
    """Test actor server and client interaction."""
    resolver = ClusterResolver(cluster)

    class Calculator:
        def add(self, ctx: ActorContext, a: int, b: int) -> int:
            assert ctx.cluster is cluster
            return a + b

    # Start actor server
    server = ActorServer(cluster)
    server.register("calculator", Calculator())
    server.serve_background()

    # Client looks up and calls actor
    pool = resolver.lookup("calculator")
    pool.wait_for_size(1)

    result = pool.call().add(2, 3)
    assert result == 5

    server.shutdown()
    resolver.close()
    cluster._rpc.close_idle()


def host_until_terminated(name: str) -> str:
    with current_cluster() as cluster:
        server = ActorServer(cluster)
        server.register(name, Worker())
        server.serve()
    return "ended cleanly"


@pytest.mark.everywhere
def test_actor_cleanup_on_job_termination(cluster: Cluster) -> None:
    """A terminated job ends its server within the grace time, and its actors are gone from the registry."""
    resolver = ClusterResolver(cluster)
    pool = resolver.lookup("hosted")
    job_id = cluster.launch(
        JobRequest("host", Entrypoint(host_until_terminated, args=("hosted",)), ResourceConfig.with_cpu(cpu=1))
    )
    pool.wait_for_size(1, timeout=30.0)
    assert pool.endpoints[0].job_id == job_id
    assert pool.call(20.0).add(1) == 2
    began = time.monotonic()
    cluster.terminate(job_id)
    info = cluster.wait(job_id, timeout=30.0)
    assert info.status in (JobStatus.STOPPED, JobStatus.SUCCEEDED)
    assert time.monotonic() - began < 10.0
    eventually(lambda: pool.size == 0)
    resolver.close()
    cluster._rpc.close_idle()


def test_actors_need_nothing_but_cloudpickle_and_protobuf_py(tmp_path: Path) -> None:
    """Only these two, beside Fluster, can be imported."""
    import cloudpickle
    import protobuf

    import fluster

    for module in (cloudpickle, protobuf, fluster):
        assert module.__file__ is not None
        package = Path(module.__file__).parent
        (tmp_path / package.name).symlink_to(package)
    for package in Path(protobuf.__file__ or "").parents[1].glob("protobuf*"):
        if not (tmp_path / package.name).exists():
            (tmp_path / package.name).symlink_to(package)
    program = f"""
        import sys
        sys.path[:] = [{str(tmp_path)!r}] + [each for each in sys.path if "site-packages" not in each]
        from fluster import ActorServer, FixedResolver
        class Adder:
            def add(self, a, b): return a + b
            async def async_add(self, a, b): return a + b
            def count(self, n): yield from range(n)
        with ActorServer(None) as server:
            server.register("adder", Adder())
            server.serve_background()
            adder = FixedResolver({{"adder": server.address}}).lookup("adder").call(20)
            assert adder.add(1, 2) == adder.async_add(1, 2) == adder.add.submit(1, 2).result() == 3
            assert list(adder.count.stream(3)) == [0, 1, 2]
        for name in ("connectrpc", "uvicorn", "apsw", "click", "rich", "numpy"):
            assert name not in sys.modules, name
    """
    arguments = [sys.executable, "-S", "-E", "-c", textwrap.dedent(program)]
    subprocess.run(arguments, check=True, timeout=60, cwd=tmp_path)
