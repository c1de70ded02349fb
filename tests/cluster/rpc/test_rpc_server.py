"""The server: who gets in, what is refused, how it stops. Spoken to in plain HTTP and by the library's own client."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from fluster.rpc import edge
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.serve import RpcServer
from fluster.testing.serving import ServerThread

if TYPE_CHECKING:
    from tests.cluster.rpc.conftest import Service

TOKEN = "correct-horse"
PATH = "/fluster.cluster.v1.ControllerService/"
JSON = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
PROTO = {"Content-Type": "application/proto", "Authorization": f"Bearer {TOKEN}"}


def post(
    server: ServerThread,
    method: str = "ListJobs",
    body: bytes = b"{}",
    headers: dict[str, str] = JSON,
    *,
    query: str = "",
) -> tuple[int, dict[str, Any]]:
    status, content = ask(server, "POST", PATH + method + query, body, headers)
    return status, json.loads(content) if content else {}


def ask(
    server: ServerThread, verb: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(verb, target, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def dial(server: ServerThread) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def until_closed(peer: socket.socket) -> bytes:
    """What the server says before it closes."""
    said = b""
    try:
        while piece := peer.recv(65536):
            said += piece
    except ConnectionError:
        pass
    return said


def test_json_over_plain_http_works(server: ServerThread) -> None:
    assert post(server, body=b'{"namePrefix": "train"}') == (200, {"nextPageToken": "train"})


def test_the_librarys_own_client_understands_answers_errors_and_streams(server: ServerThread) -> None:
    # In a process of its own, because the HTTP library under that client keeps a runtime for good.
    command = [sys.executable, "-c", GENERATED_CLIENT, server.address, TOKEN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stderr, done.stdout.splitlines()) == (
        "",
        ["admin", "line 0, line 1, line 2", "not_found job_not_found {'job_id': 'j1'}"] + ["unauthenticated"] * 2,
    )


GENERATED_CLIENT = """
import sys
from connectrpc.errors import ConnectError
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerServiceClientSync

headers = {"authorization": f"Bearer {sys.argv[2]}"}
with ControllerServiceClientSync(sys.argv[1]) as client:
    print(client.list_workers(pb.ListWorkersRequest(), headers=headers).workers[0].worker_id)
    logs = client.fetch_logs(pb.FetchLogsRequest(), headers=headers)
    print(", ".join(each.lines[0].data.decode() for each in logs))
    try:
        client.get_job_status(pb.GetJobStatusRequest(job_id="j1"), headers=headers)
    except ConnectError as error:
        info = error.details[0].value(pb.ErrorInfo)
        print(error.code.value, info.reason, info.metadata)
    unary, stream = pb.ListWorkersRequest(), pb.FetchLogsRequest()
    for call in (lambda: client.list_workers(unary), lambda: list(client.fetch_logs(stream))):
        try:
            call()
        except ConnectError as error:
            print(error.code.value)
"""


def test_no_token_and_a_wrong_token_are_told_the_same(server: ServerThread, service: Service) -> None:
    answers = [
        post(server, headers={"Content-Type": "application/json", **extra})
        for extra in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
        )
    ]
    assert answers[0][0] == 401
    assert answers[0][1]["code"] == "unauthenticated"
    assert all(answer == answers[0] for answer in answers)
    assert service.calls["ListJobs"] == 0


def test_two_tokens_or_two_hosts_are_nobodys(server: ServerThread, service: Service) -> None:
    wrong = ["Authorization: Bearer wrong", f"Authorization: Bearer {TOKEN}"]
    hosts = ["Host: evil.example", "Host: localhost"]
    for twice, once, status in ((wrong, hosts[1:], b"401"), (hosts, wrong[1:], b"421")):
        for pair in (twice, twice[::-1]):
            lines = [f"POST {PATH}ListJobs HTTP/1.1", *pair, *once, "Content-Type: application/json"]
            with dial(server) as peer:
                peer.sendall("\r\n".join([*lines, "Content-Length: 2", "", "{}"]).encode())
                assert peer.recv(65536).startswith(b"HTTP/1.1 " + status)
    assert service.calls["ListJobs"] == 0


def test_a_token_in_the_url_is_refused_and_written_down_nowhere(
    server: ServerThread, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for query in (f"?token={TOKEN}", f"?access_token={TOKEN}", f"?x=1&Authorization=Bearer%20{TOKEN}"):
        assert post(server, query=query)[0] == 401
    assert service.calls["ListJobs"] == 0
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(server.refused)
    assert len(server.refused) == 3


def test_a_foreign_host_is_turned_away_before_anything_else(server: ServerThread, service: Service) -> None:
    hosts = (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.1.2.3",
        "[2001:db8::1]:80",
        "",
        "169.254.0.1",
    )
    assert [post(server, headers={**JSON, "Host": host})[0] for host in hosts] == [421] * len(hosts)
    assert ask(server, "GET", "/healthz", headers={"Host": "evil.example"})[0] == 421
    assert service.calls["ListJobs"] == 0


def test_all_names_of_the_loopback_are_known(server: ServerThread) -> None:
    hosts = ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{server.port}", "127.1.2.3:9", "[::1]:7077")
    assert [post(server, headers={**JSON, "Host": host})[0] for host in hosts] == [200] * len(hosts)


def test_a_foreign_origin_is_refused_and_the_own_is_not(server: ServerThread) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert post(server, headers={**JSON, "Origin": own})[0] == 200
    for origin in ("http://evil.example", "null", "https://127.0.0.1", f"http://localhost:{server.port}", own + "0"):
        assert post(server, headers={**JSON, "Origin": origin})[0] == 403


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "application/grpc"],
)
def test_what_a_browsers_form_can_send_is_refused(server: ServerThread, content_type: str) -> None:
    assert post(server, headers={**JSON, "Content-Type": content_type})[0] == 415


def test_only_posts_are_calls(server: ServerThread) -> None:
    for verb in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, verb, PATH + "ListJobs", headers=JSON)[0] == 405


def test_health_needs_no_token(server: ServerThread) -> None:
    assert ask(server, "GET", "/healthz") == (200, b"ok")


def test_unknown_services_and_methods_are_not_found(server: ServerThread) -> None:
    for target in ("/", "/nothing/here", PATH + "Nothing", "/fluster.cluster.v1.WorkerService/RunJob"):
        assert ask(server, "POST", target, b"{}", JSON)[0] == 404


def test_a_forwarded_address_is_not_believed(server: ServerThread) -> None:
    post(server, headers={"Content-Type": "application/json", "X-Forwarded-For": "8.8.8.8", "Forwarded": "for=8.8.8.8"})
    assert [client.partition(":")[0] for _, _, client in server.refused] == ["127.0.0.1"]


def test_handlers_know_who_asks(server: ServerThread) -> None:
    clients = [
        ConnectClient(server.address, "fluster.cluster.v1.ControllerService", token=f"guest-{i}") for i in range(5)
    ]
    names = [
        client.unary("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse).workers[0].worker_id
        for client in clients
    ]
    assert names == [f"guest-{i}" for i in range(5)]
    for client in clients:
        client.close()


def test_an_unknown_json_field_is_named(server: ServerThread) -> None:
    status, error = post(server, body=b'{"namePrefx": "train"}')
    assert (status, error["code"]) == (400, "invalid_argument")
    assert "namePrefx" in error["message"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (PROTO, b"\x1a\xff\xff\xff\xff\x0f"),
        (PROTO, b"\x1a\x02\xff\xfe"),
        (PROTO, bytes(range(256))),
        (JSON, b'{"namePrefix": "\xff"}'),
        (JSON, b'{"namePrefix": '),
        (JSON, b"[" * 1000 + b"]" * 1000),
        (JSON, b'{"namePrefix": 5}'),
        (JSON, b'{"status": "JOB_STATUS_SLEEPING"}'),
    ],
    ids=["truncated", "invalid UTF-8", "random", "invalid UTF-8 JSON", "half JSON", "deep", "wrong type", "enum"],
)
def test_what_is_no_message_is_an_invalid_argument(server: ServerThread, headers: dict[str, str], body: bytes) -> None:
    status, error = post(server, body=body, headers=headers)
    assert (status, error["code"]) == (400, "invalid_argument")
    assert "Traceback" not in error["message"]


def test_an_unknown_protobuf_field_is_passed_over(server: ServerThread) -> None:
    assert ask(server, "POST", PATH + "ListJobs", b"\xf8\x07\x01", PROTO)[0] == 200


def test_a_gzipped_request_is_read(server: ServerThread) -> None:
    body = gzip.compress(b'{"namePrefix": "zip"}')
    assert post(server, body=body, headers={**JSON, "Content-Encoding": "gzip"}) == (200, {"nextPageToken": "zip"})


def test_a_small_body_that_unpacks_to_more_than_the_limit_is_refused(server: ServerThread) -> None:
    body = gzip.compress(bytes(64 * 1024 * 1024))
    status, error = post(server, "PutBlob", body, {**PROTO, "Content-Encoding": "gzip"})
    assert (status, error["code"]) == (429, "resource_exhausted")


def test_a_body_of_many_gzip_members_is_refused_at_once(server: ServerThread) -> None:
    body = gzip.compress(b"") * 150_000
    began = time.monotonic()
    status, error = post(server, "PutBlob", body, {**PROTO, "Content-Encoding": "gzip"})
    assert (status, error["code"]) == (400, "invalid_argument")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("encoding", ["zstd", "br", "deflate", "nonsense"])
def test_an_encoding_that_is_not_offered_is_unimplemented(server: ServerThread, encoding: str) -> None:
    status, error = post(server, headers={**JSON, "Content-Encoding": encoding})
    assert (status, error["code"]) == (501, "unimplemented")


def test_a_body_over_the_limit_is_refused_and_the_server_lives(server: ServerThread) -> None:
    status, error = post(server, "PutBlob", bytes(4 * 1024 * 1024 + 1), PROTO)
    assert (status, error["code"]) == (429, "resource_exhausted")
    assert post(server)[0] == 200


def test_a_head_over_64_kib_is_refused_in_whatever_pieces_it_comes(server: ServerThread) -> None:
    for head in (b"X-Long: " + b"a" * 8_000_000, b"".join(b"X-%d: %s\r\n" % (i, b"b" * 900) for i in range(200))):
        with dial(server) as peer:
            try:
                peer.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
            except ConnectionError:
                pass
            assert until_closed(peer) in (b"", edge._TOO_LARGE)
    with dial(server) as peer:
        peer.sendall(b"POST /" + b"u" * 70_000)
        assert until_closed(peer).startswith(b"HTTP/1.1 431 ")
    assert post(server)[0] == 200


def test_a_head_over_the_limit_is_refused_although_it_comes_in_one_packet(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "MAX_HEAD_BYTES", 1000)
    with dial(server) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 1200 + b"\r\n\r\n")
        assert until_closed(peer).startswith(b"HTTP/1.1 431 ")


def test_endless_trailers_are_refused(server: ServerThread) -> None:
    head = f"POST {PATH}ListJobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with dial(server) as peer:
        try:
            peer.sendall(head.encode() + b"X-Trailer: " + b"t" * 1_000_000)
        except ConnectionError:
            pass
        until_closed(peer)
    assert post(server)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HT", b"\r\n\r\n", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "],
    ids=["silent", "line", "blank", "header"],
)
def test_a_connection_that_owes_its_head_is_closed(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(edge, "HEAD_TIMEOUT_S", 0.2)
    with dial(server) as peer:
        peer.sendall(sent)
        assert until_closed(peer) == b""


def test_a_kept_connection_that_sends_but_asks_nothing_is_closed(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "HEAD_TIMEOUT_S", 0.2)
    with dial(server) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            answer += peer.recv(65536)
        peer.sendall(b"\r\n")
        assert until_closed(peer) == b""


def test_a_head_dripped_byte_by_byte_gets_no_more_time(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "HEAD_TIMEOUT_S", 0.5)
    with dial(server) as peer:
        peer.settimeout(0.05)
        began = time.monotonic()
        for byte in b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 1000:
            try:
                peer.sendall(bytes([byte]))
                if peer.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert time.monotonic() - began < 5


def test_a_body_that_does_not_come_closes_the_connection(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_TIMEOUT_S", 0.2)
    with dial(server) as peer:
        peer.sendall(
            f"POST {PATH}ListJobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        assert until_closed(peer) == b""


def test_a_long_poll_outlives_the_deadlines_for_requests(
    server: ServerThread, service: Service, client: ConnectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(edge, "BODY_TIMEOUT_S", 0.1)
    with pytest.raises(TimeoutError):
        client.unary("WaitJobs", pb.WaitJobsRequest(), pb.WaitJobsResponse, timeout_s=0.6)
    assert service.calls["WaitJobs"] == 1


def test_of_too_many_strangers_the_oldest_go_and_known_callers_stay(
    server: ServerThread, client: ConnectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "MAX_STRANGERS", 3)
    client.unary("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse)
    known = server.connections()
    strangers = [dial(server) for _ in range(6)]
    for stranger in strangers[:3]:
        assert until_closed(stranger) == b""
    assert set(known) <= set(server.connections())
    assert post(server)[0] == 200
    for stranger in strangers:
        stranger.close()


def test_connections_send_without_delay(server: ServerThread, client: ConnectClient) -> None:
    client.unary("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse)
    (connection,) = server.connections()
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_caller_that_hangs_up_ends_its_call_and_was_not_refused(server: ServerThread, service: Service) -> None:
    with dial(server) as peer:
        peer.sendall(
            f"POST {PATH}WaitJobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}".encode()
        )
        assert service.running.wait(5)
    assert service.cancelled.wait(5)
    server.stop()  # whatever follows from it has
    assert server.refused == []


def test_stopping_ends_long_polls_at_once_and_tells_them_why(server: ServerThread, service: Service) -> None:
    body = b"{}"
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", PATH + "WaitJobs", body, JSON)
    assert service.running.wait(5)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 3
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (503, "unavailable")
    connection.close()


def test_who_is_being_accepted_while_the_server_stops_is_sent_away(server: ServerThread) -> None:
    rpc = server.server

    async def stop_while_accepting() -> socket.socket:
        client = dial(server)
        for _ in range(2):  # the socket is accepted in the second, and what makes its transport is still to come
            await asyncio.sleep(0)
        await rpc.stop()
        return client

    with server.run(stop_while_accepting()) as client:
        client.settimeout(5)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_stopping_twice_is_harmless(server: ServerThread) -> None:
    rpc = server.server
    server.run(rpc.stop())
    server.run(rpc.stop())
    with pytest.raises(ConnectionRefusedError):
        dial(server)


def test_a_taken_port_is_an_error_not_an_exit(server: ServerThread) -> None:
    async def start() -> None:
        await RpcServer([], lambda _: None, port=server.port).start()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(start())


def test_serving_leaves_the_signals_of_the_process_alone() -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    async def serve() -> None:
        before = handlers()
        server = RpcServer([], lambda _: None)
        await server.start()
        assert handlers() == before
        await server.stop()
        assert handlers() == before

    asyncio.run(serve())
