"""Processes of actors are killed, stopped and started again: callers learn of it at once, or get their answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.actor.actors import Worker, block_of
from tests.actor.conftest import ROOT, There, eventually

from fluster import ActorNotFound, ActorServer, ActorUnavailable, ClusterResolver, LocalCluster
from fluster.cluster.context import read_token_file

SOON_S = 1.5
"""A second, and something for a loaded machine."""


def fails_soon(wait: Callable[[], Any], killed_at: float) -> None:
    with pytest.raises(ActorUnavailable):
        wait()
    assert time.monotonic() - killed_at < SOON_S


def test_callers_of_a_killed_process_are_told_within_a_second(there: There, way: str) -> None:
    worker = there.pool.call()
    future, coroutine = worker.wait.submit(30.0), worker.async_wait.submit()
    stream = worker.count_for_ever.stream()
    waiting = worker.add.submit(1)
    assert worker.async_has_begun()
    there.kill()
    killed_at = time.monotonic()
    for each in (future, coroutine, waiting):
        fails_soon(lambda each=each: each.result(10), killed_at)  # type: ignore[misc]
    fails_soon(lambda: list(stream), killed_at)
    fails_soon(lambda: worker.add(1), killed_at)
    fails_soon(lambda: there.pool.call().add.submit(1).result(10), killed_at)


def test_a_process_killed_before_the_first_call_is_unavailable(there: There, way: str) -> None:
    there.kill()
    fails_soon(lambda: there.pool.call().add(1), time.monotonic())


def test_calls_of_an_actor_that_is_gone_get_errors_of_their_own(there: There, way: str) -> None:
    worker = there.call()
    there.kill()
    errors = []
    for _ in range(4):
        with pytest.raises(ActorUnavailable) as caught:
            worker.add(1)
        errors.append(caught.value)
        # One that all share would grow by the frames of everybody who raised it, and keep what they refer to.
        assert len(caught.traceback) < 20
    assert len(set(map(id, errors))) == 4


@pytest.mark.parametrize("delay_s", [0.0, 0.0005, 0.002, 0.01, 0.05])
def test_a_kill_at_any_moment_of_a_call_ends_it(there: There, way: str, delay_s: float) -> None:
    """The moment is what is tried out: while the argument is on its way, while it runs, while the result is."""
    worker = there.pool.call()
    assert worker.add(1) == 2
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(worker.same(block_of(3, 8 << 20)).seed)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(delay_s)
    there.kill()
    thread.join(5)
    assert not thread.is_alive()
    assert outcome[0] == 3 or isinstance(outcome[0], ActorUnavailable)


class Hosted:
    """A process that hosts a `Worker` with the cluster, until it is killed or its input ends."""

    PROGRAM = """
import sys
from fluster import ActorServer, Cluster
from tests.actor.actors import Worker
with Cluster(sys.argv[1], token=sys.argv[2]) as cluster, ActorServer(cluster) as server:
    server.register(sys.argv[3], Worker())
    server.serve_background()
    print("serves", flush=True)
    sys.stdin.read()
"""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        arguments = [
            sys.executable,
            "-c",
            self.PROGRAM,
            cluster.address,
            read_token_file(cluster._daemon.token_file),
            name,
        ]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"serves\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def resolver(cluster: LocalCluster) -> Iterator[ClusterResolver]:
    resolver = ClusterResolver(cluster)
    yield resolver
    resolver.close()
    cluster._rpc.close_idle()


def test_an_idempotent_call_gets_its_answer_from_the_restarted_actor(
    cluster: LocalCluster, resolver: ClusterResolver
) -> None:
    first = Hosted(cluster, "phoenix")
    worker = resolver.lookup("phoenix").call(30.0)
    assert worker.increment() == 1
    pid = worker.pid()
    first.kill()
    answers: list[Any] = []
    callers = [
        threading.Thread(target=lambda: answers.append(worker.pid.options(idempotent=True)())),
        threading.Thread(target=lambda: answers.append(worker.pid.options(idempotent=True).submit().result(30))),
    ]
    for caller in callers:
        caller.start()
    second = Hosted(cluster, "phoenix")
    for caller in callers:
        caller.join(30)
    assert answers == [second.process.pid] * 2
    assert second.process.pid != pid
    # And the proxy goes on with the new one, which counts anew.
    assert worker.increment.options(idempotent=True)() == 1
    second.close()
    first.close()


def test_a_call_that_may_not_run_twice_is_told_of_and_not_repeated(
    cluster: LocalCluster, resolver: ClusterResolver
) -> None:
    first, second = Hosted(cluster, "once"), Hosted(cluster, "once")
    pool = resolver.lookup("once")
    pool.wait_for_size(2, timeout=20.0)
    proxies = {proxy.pid(): proxy for proxy in [pool.call(20.0) for _ in range(4)]}
    assert set(proxies) == {first.process.pid, second.process.pid}
    running = proxies[first.process.pid].nap.submit(30.0)
    proxies[first.process.pid].async_add(1, 1)
    first.kill()
    with pytest.raises(ActorUnavailable):
        running.result(10)
    assert proxies[second.process.pid].total() == 0
    # What was not sent is sent to the other one.
    assert proxies[first.process.pid].pid() == second.process.pid
    assert {pool.call().pid() for _ in range(6)} == {second.process.pid}
    second.close()
    first.close()


def test_registrations_go_when_a_server_shuts_down(cluster: LocalCluster, resolver: ClusterResolver) -> None:
    pool = resolver.lookup("leaving")
    with ActorServer(cluster) as server:
        server.register("leaving", Worker())
        server.register("leaving-too", Worker())
        server.serve_background()
        pool.wait_for_size(1, timeout=20.0)
        assert pool.call().add(1) == 2
        server.unregister("leaving-too")
        assert resolver.lookup("leaving-too").size == 0
    assert pool.size == 0
    with pytest.raises(ActorNotFound, match="leaving"):
        pool.call()
    with pytest.raises(TimeoutError, match=r"0 of 1 actors 'leaving' .*list_jobs"):
        pool.wait_for_size(1, timeout=0.2)


def test_a_server_that_comes_back_under_its_name_is_found_by_old_proxies(
    cluster: LocalCluster, resolver: ClusterResolver
) -> None:
    pool = resolver.lookup("again")
    proxy: Any = None
    for number in range(4):
        with ActorServer(cluster) as server:
            server.register("again", Worker())
            server.serve_background()
            if proxy is None:
                proxy = pool.call(20.0)
            eventually(lambda: proxy.add.options(idempotent=True)(number) == number + 1)  # noqa: B023
            assert proxy.increment.options(idempotent=True)() == 1


def test_sigstop_is_no_failure_in_a_cluster(cluster: LocalCluster, resolver: ClusterResolver) -> None:
    hosted = Hosted(cluster, "sleeper")
    proxy = resolver.lookup("sleeper").call(30.0)
    assert proxy.increment() == 1
    hosted.process.send_signal(signal.SIGSTOP)
    status = Path(f"/proc/{hosted.process.pid}/stat")
    eventually(lambda: status.read_bytes().rpartition(b")")[2].split()[0] == b"T")
    waiting = proxy.increment.submit()
    assert not waiting.done()
    hosted.process.send_signal(signal.SIGCONT)
    assert waiting.result(20) == 2
    hosted.close()
