"""The blocking client against a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fluster.errors import (
    AlreadyExists,
    FailedPrecondition,
    FlusterError,
    JobNotFound,
    NotPermitted,
    RemoteFault,
    ResourceExhausted,
    Unreachable,
)
from fluster.rpc import client as client_module
from fluster.rpc import connection
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.testing.serving import ServerThread

if TYPE_CHECKING:
    from tests.cluster.rpc.conftest import Service

SERVICE = "fluster.cluster.v1.ControllerService"


def who(client: ConnectClient, **options: float) -> str:
    reply = client.unary("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse, **options)
    return reply.workers[0].worker_id


def status(client: ConnectClient, job_id: str = "j1") -> pb.GetJobStatusResponse:
    return client.unary("GetJobStatus", pb.GetJobStatusRequest(job_id=job_id), pb.GetJobStatusResponse)


def wait(client: ConnectClient, **options: float) -> pb.WaitJobsResponse:
    return client.unary("WaitJobs", pb.WaitJobsRequest(), pb.WaitJobsResponse, **options)


def follow(client: ConnectClient, *, follow: bool = False) -> Iterator[bytes]:
    for message in client.stream("FetchLogs", pb.FetchLogsRequest(follow=follow), pb.FetchLogsResponse):
        yield message.lines[0].data


def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def in_child(work: Callable[[], str]) -> str:
    """What a forked child found."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def test_a_call_is_answered_and_its_connection_kept(client: ConnectClient, server: ServerThread) -> None:
    assert [who(client) for _ in range(5)] == ["admin"] * 5
    assert len(server.connections()) == 1


def test_threads_share_one_client(client: ConnectClient, service: Service) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: who(client), range(200))) == {"admin"}
    assert service.calls["ListWorkers"] == 200


def test_a_call_on_a_broken_kept_connection_is_sent_again(client: ConnectClient, server: ServerThread) -> None:
    who(client)
    server.break_connections()
    assert who(client, retry_s=0) == "admin"


def test_a_request_whose_kept_connection_breaks_before_the_answer_is_sent_again_once(
    client: ConnectClient, server: ServerThread, service: Service
) -> None:
    who(client)
    service.on_call = lambda: [each.transport.abort() for each in server.connections()] and None  # type: ignore[assignment]
    with pytest.raises(Unreachable, match="cannot reach") as caught:
        who(client, retry_s=0)
    assert caught.value.address == server.address
    assert service.calls["ListWorkers"] == 3


def test_an_address_where_nobody_ever_answered_fails_at_once() -> None:
    client = ConnectClient("http://127.0.0.1:1", SERVICE, retry_s=60)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"cannot reach http://127\.0\.0\.1:1: Connection refused"):
        who(client)
    assert time.monotonic() - began < 5


def test_a_server_that_restarts_is_waited_for(client: ConnectClient, server: ServerThread) -> None:
    who(client)
    server.stop()
    timer = threading.Timer(0.3, server.start)
    timer.start()
    assert who(client, retry_s=20) == "admin"
    timer.join()


def test_a_server_known_to_exist_is_waited_for_from_the_first_call(server: ServerThread) -> None:
    server.stop()
    client = ConnectClient(server.address, SERVICE, token="correct-horse", known=True, retry_s=20)
    timer = threading.Timer(0.3, server.start)
    timer.start()
    assert who(client) == "admin"
    timer.join()
    client.close()


def test_a_server_that_stays_away_is_given_up_after_the_window(client: ConnectClient, server: ServerThread) -> None:
    who(client)
    server.stop()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        who(client, retry_s=0.5)
    assert time.monotonic() - began < 5


def test_a_deadline_ends_the_call_on_both_sides(client: ConnectClient, service: Service) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wait(client, timeout_s=0.2)
    assert time.monotonic() - began < 5
    assert service.cancelled.wait(5)


def test_a_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_GRACE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ConnectClient(f"http://127.0.0.1:{silent.getsockname()[1]}", SERVICE)
        with pytest.raises(TimeoutError, match="no answer from http"):
            who(client, timeout_s=0.2)
        client.close()


@pytest.mark.parametrize(
    "error",
    [
        JobNotFound("j7"),
        AlreadyExists("taken"),
        NotPermitted("not yours"),
        ResourceExhausted("too many"),
        FailedPrecondition("not now"),
        RemoteFault("broken"),
        FlusterError("something"),
        ValueError("cpu must be above 0, got -1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_itself(client: ConnectClient, service: Service, error: Exception) -> None:
    service.failure = error
    with pytest.raises(type(error)) as caught:
        status(client)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "job_id", None) == getattr(error, "job_id", None)


def test_a_refused_job_id_keeps_its_attribute(client: ConnectClient) -> None:
    with pytest.raises(JobNotFound) as caught:
        status(client, "nobody")
    assert caught.value.job_id == "nobody"


@pytest.mark.parametrize("error", [RuntimeError("the secret"), UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret")])
def test_what_a_server_did_not_expect_tells_the_caller_nothing_but_a_request_id(
    client: ConnectClient, service: Service, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    service.failure = error
    with pytest.raises(RemoteFault) as caught:
        status(client)
    assert "secret" not in str(caught.value)
    request_id = str(caught.value).rsplit(" ", 1)[-1]
    assert request_id in caplog.text
    assert "secret" in caplog.text


def test_a_stream_gives_its_messages_and_its_connection_back(client: ConnectClient, server: ServerThread) -> None:
    assert list(follow(client)) == [b"line 0", b"line 1", b"line 2"]
    who(client)
    assert len(server.connections()) == 1


def test_a_stream_that_fails_raises_after_what_came(client: ConnectClient, service: Service) -> None:
    service.failure = JobNotFound("j3")
    stream = follow(client)
    assert [next(stream) for _ in range(3)] == [b"line 0", b"line 1", b"line 2"]
    with pytest.raises(JobNotFound) as caught:
        next(stream)
    assert caught.value.job_id == "j3"


def test_a_stream_may_carry_large_messages(client: ConnectClient) -> None:
    sizes = [len(each.chunk) for each in client.stream("GetBlob", pb.GetBlobRequest(), pb.GetBlobResponse)]
    assert sizes == [8 * 1024 * 1024]


def test_closing_a_stream_early_ends_it_at_the_server(client: ConnectClient, service: Service) -> None:
    stream = follow(client, follow=True)
    assert next(stream) == b"line 0"
    stream.close()  # type: ignore[attr-defined]
    assert service.cancelled.wait(5)


def test_a_stream_that_breaks_is_unreachable_not_ended(
    client: ConnectClient, server: ServerThread, service: Service
) -> None:
    stream = follow(client, follow=True)
    assert [next(stream) for _ in range(3)] == [b"line 0", b"line 1", b"line 2"]
    assert service.running.wait(5)
    server.break_connections()
    with pytest.raises(Unreachable):
        next(stream)


def test_a_stopping_server_ends_streams_as_unavailable(
    client: ConnectClient, server: ServerThread, service: Service
) -> None:
    stream = follow(client, follow=True)
    assert [next(stream) for _ in range(3)] == [b"line 0", b"line 1", b"line 2"]
    assert service.running.wait(5)
    server.stop()
    with pytest.raises(Unreachable, match="stopping"):
        next(stream)


def test_a_message_over_the_servers_limit_is_refused(client: ConnectClient) -> None:
    def put(size: int) -> int:
        request = pb.PutBlobRequest(chunk=bytes(size))
        return client.unary("PutBlob", request, pb.PutBlobResponse).next_offset

    assert put(4 * 1024 * 1024 - 100) == 4 * 1024 * 1024 - 100
    with pytest.raises(ResourceExhausted):
        put(4 * 1024 * 1024)
    assert who(client) == "admin"


def test_a_forked_child_uses_connections_of_its_own(
    client: ConnectClient, server: ServerThread, service: Service
) -> None:
    callers: list[object] = []
    service.on_call = lambda: callers.append(service.peer)
    who(client)
    assert in_child(lambda: who(client)) == "admin"
    assert who(client, retry_s=0) == "admin"
    assert callers[0] == callers[2] != callers[1]
    until(lambda: len(server.connections()) == 1)


def test_a_child_forked_while_another_thread_calls_is_not_stuck(client: ConnectClient, service: Service) -> None:
    def call() -> None:
        with pytest.raises(RuntimeError, match="closed"):
            wait(client)

    caller = threading.Thread(target=call)
    caller.start()
    assert service.running.wait(5)
    assert in_child(lambda: who(client)) == "admin"
    client.close()
    caller.join()


def test_a_stream_stays_with_the_process_that_opened_it(client: ConnectClient) -> None:
    stream = follow(client)
    assert next(stream) == b"line 0"
    assert in_child(lambda: next(stream).decode()).startswith("Unreachable: ")
    assert list(stream) == [b"line 1", b"line 2"]


def test_ctrl_c_ends_a_call_at_once(server: ServerThread, service: Service) -> None:
    program = f"""
import sys
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
client = ConnectClient({server.address!r}, {SERVICE!r}, token="correct-horse")
try:
    client.unary("WaitJobs", pb.WaitJobsRequest(), pb.WaitJobsResponse, timeout_s=60)
except KeyboardInterrupt:
    reply = client.unary("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse)
    print("interrupted", reply.workers[0].worker_id)
client.close()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert service.running.wait(20)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=10)
    assert (out, err, process.returncode) == ("interrupted admin\n", "", 0)
    assert time.monotonic() - began < 5
    assert service.cancelled.wait(5)


def test_closing_ends_the_calls_of_other_threads(client: ConnectClient, service: Service) -> None:
    caught: list[BaseException] = []

    def call() -> None:
        try:
            wait(client, timeout_s=60)
        except BaseException as error:
            caught.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert service.running.wait(5)
    client.close()
    caller.join(5)
    assert isinstance(caught[0], RuntimeError)
    with pytest.raises(RuntimeError, match="closed"):
        who(client)


def test_closing_a_client_closes_what_is_idle(client: ConnectClient, server: ServerThread) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: who(client), range(40)))
    client.close()
    until(lambda: not server.connections())


def test_a_connection_idle_for_too_long_is_not_used_again(
    client: ConnectClient, server: ServerThread, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[object] = []
    service.on_call = lambda: callers.append(service.peer)
    who(client)
    who(client)
    monkeypatch.setattr(connection, "IDLE_S", 0.0)
    who(client)
    assert callers[0] == callers[1] != callers[2]


def test_idle_connections_can_be_closed_and_the_next_call_makes_a_new_one(
    client: ConnectClient, server: ServerThread
) -> None:
    who(client)
    client.close_idle()
    until(lambda: not server.connections())
    assert who(client) == "admin"


def test_a_clone_can_be_closed_alone(client: ConnectClient) -> None:
    twin = client.clone()
    assert who(twin) == "admin"
    twin.close()
    assert who(client) == "admin"


def test_a_token_can_be_exchanged(client: ConnectClient) -> None:
    assert who(client) == "admin"
    client.token = "guest-1"
    assert who(client) == "guest-1"


def test_something_else_that_speaks_http_is_named_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi")
                peer.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        client = ConnectClient(f"http://127.0.0.1:{listener.getsockname()[1]}", SERVICE)
        with pytest.raises(RemoteFault, match="no Fluster service answers"):
            who(client)
        client.close()
        thread.join()


def test_something_that_speaks_no_http_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unreachable, match="cannot reach"):
            who(ConnectClient(f"http://127.0.0.1:{listener.getsockname()[1]}", SERVICE))
        thread.join()


@pytest.mark.parametrize(
    "address", ["", "ftp://host:1", "http://", "http://host:0", "http://host:99999", "http://u@host:1", "http://h:1/x"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ConnectClient(address, SERVICE)


def test_the_client_side_loads_neither_server_libraries_nor_an_event_loop() -> None:
    program = (
        "import sys, fluster.rpc.client, fluster.cluster.client;"
        "print([name for name in ('connectrpc', 'uvicorn', 'asyncio', 'cloudpickle') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout == "[]\n"
