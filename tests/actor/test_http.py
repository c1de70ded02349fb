"""Actors are called over HTTP by whoever speaks Connect, and by nobody who does not hold the bearer."""

from __future__ import annotations

import base64
import gzip
import http.client
import itertools
import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import cloudpickle
import pytest
from protobuf import Oneof

from fluster.actor import http as actor_http
from fluster.actor import http_wire
from fluster.actor.http import Calls, available, serve_connection
from fluster.errors import ActorNotFound
from fluster.rpc.gen.fluster.actor.v1.actor_pb import CallError, CallRequest, CallResponse, PickledArguments

BEARER = "correct-horse"
LIMIT = 256 * 1024
CALL = "/fluster.actor.v1.ActorService/Call"
HEALTH = "/fluster.actor.v1.ActorService/HealthCheck"
JSON = {"authorization": f"Bearer {BEARER}", "content-type": "application/json"}
PROTO = {"authorization": f"Bearer {BEARER}", "content-type": "application/proto"}
ROOT = Path(__file__).parents[2]


class Actor(Calls):
    """One actor, `calculator`, whose methods a test adds; what it did is remembered by call id."""

    def __init__(self) -> None:
        self.key = BEARER
        self.methods: dict[str, Callable[..., Any]] = {"add": lambda a, b: a + b, "echo": lambda *a, **k: [a, k]}
        self.ran: list[str] = []  # call ids, as they came
        self.replies: dict[str, Any] = {}

    @property
    def bearer(self) -> str:
        return self.key

    def call(
        self,
        actor: str,
        method: str,
        call_id: str,
        load: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
        dump: Callable[[Any], Any],
    ) -> Any:
        if actor != "calculator":
            raise ActorNotFound(actor)
        if method not in self.methods:
            error = AttributeError(f"'calculator' has no method {method!r}")
            error.refused = True  # type: ignore[attr-defined]
            raise error
        if call_id not in self.replies:
            self.ran.append(call_id)
            args, kwargs = load()
            self.replies[call_id] = dump(self.methods[method](*args, **kwargs))
        return self.replies[call_id]


class Served:
    """A listening socket whose connections are served, each on a thread of its own."""

    def __init__(self, actor: Actor, *, first_bytes: int = 7, wrap: Callable[[socket.socket], socket.socket] | None):
        self.actor = actor
        self.stop = threading.Event()
        self._wrap = wrap or (lambda sock: sock)
        self._first_bytes = first_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop.set()
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread that accepts
        self.join()
        self._listener.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(
        self, body: Any, headers: dict[str, str] = JSON, path: str = CALL, method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        """One request on a connection of its own: status and JSON of the answer."""
        connection = self.connection()
        try:
            encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, encoded, headers)
            response = connection.getresponse()
            answer = response.read()
            return response.status, json.loads(answer) if answer else {}
        finally:
            connection.close()

    def call(self, method: str, arguments: str = "{}") -> dict[str, Any]:
        """A call with JSON arguments that is not refused: the answer."""
        status, answer = self.ask({"actor": "calculator", "method": method, "json": arguments})
        assert status == 200, answer
        return answer

    def call_pickled(self, method: str, *args: Any, **kwargs: Any) -> CallResponse:
        request = pickled_request(method, cloudpickle.dumps(args), cloudpickle.dumps(kwargs))
        connection = self.connection()
        try:
            connection.request("POST", CALL, request.to_binary(), PROTO)
            response = connection.getresponse()
            assert response.status == 200
            return CallResponse.from_binary(response.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Everything that comes back until the server closes."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_to_end(sock)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self.stop.is_set():
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock = self._wrap(sock)
        first = sock.recv(self._first_bytes)
        serve_connection(sock, first, self.actor, max_body_bytes=LIMIT, stopping=self.stop.is_set)


@contextmanager
def serving(
    actor: Actor | None = None, *, first_bytes: int = 7, wrap: Callable[[socket.socket], socket.socket] | None = None
) -> Iterator[Served]:
    with Served(actor or Actor(), first_bytes=first_bytes, wrap=wrap) as served:
        yield served


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def pickled_request(method: str, args: bytes, kwargs: bytes = b"", actor: str = "calculator") -> CallRequest:
    arguments: Oneof[Literal["pickled"], PickledArguments] = Oneof(
        "pickled", PickledArguments(args=args, kwargs=kwargs)
    )
    return CallRequest(actor=actor, method=method, arguments=arguments)


def result_of(response: CallResponse) -> Any:
    assert response.result is not None
    return response.result.value


def error_of(response: CallResponse) -> CallError:
    error = result_of(response)
    assert isinstance(error, CallError)
    return error


def request(*lines: str, body: bytes = b"", path: str = CALL) -> bytes:
    """A POST by hand, with the bearer."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in JSON.items()), *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


ADD = json.dumps({"actor": "calculator", "method": "add", "json": '{"args": [2, 3]}'}).encode()


# Whoever speaks Connect


def as_generated_client(address: str, codec_name: str) -> None:
    """What a caller with generated code does; prints what it saw. For a process of its own: its HTTP library keeps
    descriptors for as long as the process lives."""
    from connectrpc.codec import proto_binary_codec, proto_json_codec
    from connectrpc.errors import ConnectError

    from fluster.rpc.gen.fluster.actor.v1.actor_connect import ActorServiceClientSync
    from fluster.rpc.gen.fluster.actor.v1.actor_pb import HealthCheckRequest

    codec = proto_json_codec() if codec_name == "json" else proto_binary_codec()
    headers = {"authorization": f"Bearer {BEARER}"}
    seen: dict[str, Any] = {}
    with ActorServiceClientSync(address, codec=codec) as client:  # compresses what it sends
        seen["healthy"] = client.health_check(HealthCheckRequest(), headers=headers).healthy
        answer = client.call(pickled_request("add", cloudpickle.dumps((b"x" * 100_000, b"y"))), headers=headers)
        seen["pickled"] = len(pickle.loads(result_of(answer)))
        in_json: Oneof[Literal["json"], str] = Oneof("json", '{"args": [2], "kwargs": {"b": 3}}')
        answer = client.call(CallRequest(actor="calculator", method="add", arguments=in_json), headers=headers)
        seen["json"] = result_of(answer)
        answer = client.call(pickled_request("add", cloudpickle.dumps((1, "a"))), headers=headers)
        seen["raised"] = repr(pickle.loads(error_of(answer).pickled))
        for what, wrong in (("absent", CallRequest(actor="nobody", method="add")), ("nothing", CallRequest())):
            try:
                client.call(wrong, headers=headers)
            except ConnectError as error:
                seen[what] = error.code.value
        try:
            client.health_check(HealthCheckRequest())
        except ConnectError as error:
            seen["stranger"] = error.code.value
    print(json.dumps(seen))


@pytest.mark.parametrize("codec", ["proto", "json"])
def test_the_generated_client_calls_an_actor(served: Served, codec: str) -> None:
    program = f"""if True:
        from tests.actor.test_http import as_generated_client
        as_generated_client("http://127.0.0.1:{served.port}", {codec!r})"""
    run = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=50, cwd=ROOT, text=True
    )

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "healthy": True,
        "pickled": 100_001,
        "json": "5",
        "raised": """TypeError("unsupported operand type(s) for +: 'int' and 'str'")""",
        "absent": "not_found",
        "nothing": "invalid_argument",
        "stranger": "unauthenticated",
    }


def test_plain_json_as_curl_sends_it_is_answered_in_json(served: Served) -> None:
    assert served.ask(ADD) == (200, {"json": "5"})
    assert served.ask(b"{}", path=HEALTH) == (200, {"healthy": True})


def test_a_content_type_may_name_its_charset(served: Served) -> None:
    assert served.ask(ADD, {**JSON, "content-type": "application/json; charset=utf-8"}) == (200, {"json": "5"})


def test_a_call_without_arguments_has_none(served: Served) -> None:
    assert served.ask({"actor": "calculator", "method": "echo"}) == (200, {"json": "[[], {}]"})
    assert served.call("echo") == {"json": "[[], {}]"}
    assert pickle.loads(result_of(served.call_pickled("echo"))) == [(), {}]


def test_text_of_every_kind_survives_json(served: Served) -> None:
    served.actor.methods["text"] = lambda text: text + "\ud800"
    answer = served.call("text", json.dumps({"args": ["zażółć \0 \U0001f600"]}, ensure_ascii=False))

    assert json.loads(answer["json"]) == "zażółć \0 \U0001f600\ud800"


def test_pickled_arguments_arrive_as_they_were_and_so_does_the_result(served: Served) -> None:
    answer = served.call_pickled("echo", {1, 2}, b"\0", key=(3,))

    assert pickle.loads(result_of(answer)) == [({1, 2}, b"\0"), {"key": (3,)}]


# Who may ask

STRANGERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "another bearer": {"authorization": "Bearer wrong-horse"},
    "a longer one": {"authorization": f"Bearer {BEARER}x"},
    "an empty one": {"authorization": "Bearer "},
    "bytes": {"authorization": "Bearer \xff\xfe"},
    "another scheme": {"authorization": f"Basic {BEARER}"},
    "no scheme": {"authorization": BEARER},
}


@pytest.mark.parametrize("what", STRANGERS)
def test_who_does_not_present_the_bearer_is_refused_with_one_and_the_same_text(served: Served, what: str) -> None:
    headers = {"content-type": "application/json", **STRANGERS[what]}

    for path in (CALL, HEALTH, "/elsewhere"):
        status, answer = served.ask(ADD, headers, path)
        assert (status, answer["code"]) == (401, "unauthenticated")
        assert answer["message"] == actor_http.UNAUTHENTICATED
    assert served.actor.ran == []


def test_a_bearer_in_the_url_is_none_and_is_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    status, _ = served.ask(ADD, {"content-type": "application/json"}, f"{CALL}?authorization={BEARER}")

    assert status == 401
    assert "unauthenticated" in caplog.text
    assert BEARER not in caplog.text


def test_two_bearers_are_none(served: Served) -> None:
    raw = served.raw(request(f"Authorization: Bearer {BEARER}", "Content-Length: 0"))

    assert raw.startswith(b"HTTP/1.1 401 ")


def test_an_actor_without_a_bearer_lets_nobody_in() -> None:
    actor = Actor()
    actor.key = ""
    with serving(actor) as served:
        assert served.ask(ADD, {"content-type": "application/json", "authorization": "Bearer "})[0] == 401


def test_a_stranger_is_refused_before_the_body_is_read_let_alone_unpickled(served: Served) -> None:
    head = f"POST {CALL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n\r\n"

    assert served.raw(head.encode()).startswith(b"HTTP/1.1 401 ")


class _FromElsewhere(socket.socket):
    def getpeername(self) -> Any:
        return ("192.0.2.7", 50_000)


def test_a_peer_that_is_not_on_loopback_is_refused() -> None:
    with serving(wrap=lambda sock: _FromElsewhere(fileno=sock.detach())) as served:
        status, answer = served.ask(ADD)

    assert (status, answer["code"]) == (403, "permission_denied")
    assert served.actor.ran == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.7", "", "a b"])
def test_a_foreign_host_is_refused(served: Served, host: str) -> None:
    status, answer = served.ask(ADD, {**JSON, "host": host})

    assert (status, answer["code"]) == (403, "permission_denied")


def test_no_host_and_two_hosts_are_foreign(served: Served) -> None:
    assert served.raw(f"POST {CALL} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 403 ")
    assert served.raw(request("Host: localhost", "Content-Length: 0")).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:80", "[::1]", "127.1.2.3"])
def test_a_host_of_this_machine_is_served(served: Served, host: str) -> None:
    assert served.ask(ADD, {**JSON, "host": host})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_a_foreign_origin_is_refused(served: Served, origin: str) -> None:
    status, answer = served.ask(ADD, {**JSON, "origin": origin})

    assert (status, answer["code"]) == (403, "permission_denied")


# What may be asked


def test_what_is_no_post_is_refused(served: Served) -> None:
    for method in ("GET", "PUT", "OPTIONS", "DELETE"):
        assert served.ask(b"", JSON, method=method)[0] == 405
    raw = served.raw(request("Content-Length: 0").replace(b"POST", b"HEAD", 1))
    assert raw.startswith(b"HTTP/1.1 405 ")
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/fluster.cluster.v1.ControllerService/LaunchJob", f"{CALL}?x=1"])
def test_another_path_is_not_there(served: Served, path: str) -> None:
    assert served.ask(ADD, path=path)[0] == 404


def test_another_method_of_the_service_is_not_there(served: Served) -> None:
    assert served.ask(ADD, path="/fluster.actor.v1.ActorService/Stop")[0] == 404


@pytest.mark.parametrize("content_type", ["text/plain", "application/grpc", "application/connect+json", ""])
def test_a_content_type_that_is_no_unary_rpc_is_refused(served: Served, content_type: str) -> None:
    assert served.ask(ADD, {**JSON, "content-type": content_type})[0] == 415


NO_REQUESTS = {
    "words": b"hello there\r\n\r\n",
    "bare line feeds": request("Content-Length: 0").replace(b"\r\n", b"\n"),
    "one bare line feed": request("X: a\nY: b"),
    "a bare carriage return": request("X: a\rb"),
    "NUL": request("X: a\0b"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": request().replace(b"HTTP/1.1", b"HTTP/1.2"),
    "an absolute target": request(path=f"http://localhost{CALL}"),
    "a target with bytes": request(path="/\xff"),
    "a header without a colon": request("nonsense"),
    "a space before the colon": request("Content-Length : 0"),
    "a folded header": request("X: a", " b"),
    "two lengths": request("Content-Length: 0", "Content-Length: 1"),
    "a length with a sign": request("Content-Length: +1"),
    "a length that is none": request("Content-Length: ten"),
    "an endless length": request("Content-Length: " + "9" * 5000),
    "length and chunks": request("Content-Length: 3", "Transfer-Encoding: chunked"),
    "another coding": request("Transfer-Encoding: gzip, chunked"),
    "chunks in HTTP/1.0": request("Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a chunk without a size": request("Transfer-Encoding: chunked", body=b"\r\n"),
    "a negative chunk": request("Transfer-Encoding: chunked", body=b"-1\r\n"),
    "a chunk that is longer": request("Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n"),
    "an endless chunk line": request("Transfer-Encoding: chunked", body=b"1;" + b"x" * 5000),
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_what_is_no_request_is_told_so_and_ends_the_connection(served: Served, what: str) -> None:
    raw = served.raw(NO_REQUESTS[what])

    assert raw.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in raw
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["code"] == "invalid_argument"
    assert served.ask(ADD)[0] == 200


def test_a_head_over_64_kb_is_refused(served: Served) -> None:
    assert served.raw(request("X: " + "a" * 100_000)).startswith(b"HTTP/1.1 431 ")
    assert served.raw(request(*["X: a"] * 20_000)).startswith(b"HTTP/1.1 431 ")
    fitting = request("X: " + "a" * 60_000, f"Content-Length: {len(ADD)}", "Connection: close", body=ADD)
    assert served.raw(fitting).startswith(b"HTTP/1.1 200 ")


def drip(sock: socket.socket, pieces: Iterator[bytes]) -> None:
    """Sends piece after piece until the server has had enough."""
    sock.settimeout(0.02)
    for piece in pieces:
        try:
            sock.send(piece)
            if not sock.recv(1):
                return
        except TimeoutError:
            continue
        except ConnectionError:
            return


def test_a_head_that_drips_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "HEAD_TIMEOUT_S", 0.3)
    with served.connect() as sock:
        drip(sock, itertools.chain([f"POST {CALL} HTTP/1.1\r\nX: ".encode()], itertools.repeat(b"a")))
    with served.connect() as sock:
        sock.sendall(request(f"Content-Length: {len(ADD)}", body=ADD))
        assert sock.recv(65536).endswith(b'{"json":"5"}')
        drip(sock, itertools.repeat(b"\r\n"))


def test_a_body_that_drips_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "BODY_TIMEOUT_S", 0.3)
    with served.connect() as sock:
        drip(sock, itertools.chain([request("Content-Length: 100000")], itertools.repeat(b"a")))
    with served.connect() as sock:
        drip(sock, itertools.chain([request("Transfer-Encoding: chunked")], itertools.repeat(b"1\r\na\r\n")))


def test_a_connection_on_which_nothing_more_comes_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "IDLE_TIMEOUT_S", 0.3)
    assert served.raw(request(f"Content-Length: {len(ADD)}", body=ADD)).endswith(b'{"json":"5"}')


def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not(served: Served) -> None:
    fitting = json.dumps({"actor": "calculator", "method": "echo", "callId": "x"}).encode().ljust(LIMIT)

    assert served.ask(fitting)[0] == 200
    status, answer = served.ask(fitting + b" ")
    assert (status, answer["code"]) == (429, "resource_exhausted")


def test_a_chunked_body_over_the_limit_is_refused(served: Served) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    raw = served.raw(request("Transfer-Encoding: chunked", body=chunk * 5))

    assert raw.startswith(b"HTTP/1.1 429 ")
    assert b"resource_exhausted" in raw


def test_a_length_beyond_all_reason_is_refused_at_once(served: Served) -> None:
    assert served.raw(request(f"Content-Length: {2**59}")).startswith(b"HTTP/1.1 429 ")


def test_gzip_is_unpacked_and_a_bomb_is_not(served: Served) -> None:
    packed = {**JSON, "content-encoding": "gzip"}

    assert served.ask(gzip.compress(ADD), packed) == (200, {"json": "5"})
    status, answer = served.ask(gzip.compress(bytes(64 * 1024 * 1024)), packed)
    assert (status, answer["code"]) == (429, "resource_exhausted")
    assert served.ask(b"no gzip", packed)[1]["code"] == "invalid_argument"


def test_an_encoding_that_is_not_offered_is_unimplemented(served: Served) -> None:
    for encoding in ("br", "zstd", "x"):
        assert served.ask(ADD, {**JSON, "content-encoding": encoding})[1]["code"] == "unimplemented"


NO_MESSAGES: dict[str, tuple[dict[str, str], bytes, str]] = {
    "truncated protobuf": (PROTO, pickled_request("add", b"12345").to_binary()[:-3], ""),
    "random protobuf": (PROTO, bytes(range(255, 0, -1)), ""),
    "a name that is no UTF-8": (PROTO, b"\x0a\x02\xff\xfe", ""),
    "JSON that ends early": (JSON, ADD[:-2], ""),
    "an unknown field": (JSON, b'{"actr": "calculator"}', "actr"),
    "JSON nested 1,000 deep": (JSON, b"[" * 1000 + b"]" * 1000, "nested"),
    "nothing": (JSON, b"", ""),
    "no names": (JSON, b"{}", "actor"),
    "no method": (JSON, b'{"actor": "calculator"}', "method"),
    "a long name": (JSON, json.dumps({"actor": "a" * 600, "method": "add"}).encode(), "512"),
    "a long call id": (JSON, json.dumps({"actor": "a", "method": "add", "callId": "a" * 600}).encode(), "512"),
    "both kinds of arguments": (JSON, b'{"json": "{}", "pickled": {}}', ""),
}


@pytest.mark.parametrize("what", NO_MESSAGES)
def test_what_is_no_message_is_an_invalid_argument(served: Served, what: str) -> None:
    headers, body, named = NO_MESSAGES[what]

    status, answer = served.ask(body, headers)

    assert (status, answer["code"]) == (400, "invalid_argument")
    assert named in answer["message"]
    assert served.actor.ran == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[1, 2]", '{"args": [...], "kwargs": {...}}'),
        ("null", "got None"),
        ('{"arg": [1]}', "'arg'"),
        ('{"args": {"a": 1}}', "args"),
        ('{"args": "ab"}', "args"),
        ('{"kwargs": [1]}', "kwargs"),
        ('{"args": [NaN]}', "NaN"),
        ('{"args": [-Infinity]}', "-Infinity"),
        ('{"args": ' + "[" * 100_000, "nested"),
    ],
)
def test_json_arguments_of_another_shape_are_refused_by_the_rule(served: Served, arguments: str, named: str) -> None:
    status, answer = served.ask({"actor": "calculator", "method": "add", "json": arguments})

    assert (status, answer["code"]) == (400, "invalid_argument")
    assert named in answer["message"]
    assert served.actor.ran == []


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        (b"no pickle", b"", "args cannot be unpickled"),
        (b"cno_such_module\nx\n.", b"", "no_such_module"),
        (cloudpickle.dumps([1, 2]), b"", "got one of a list"),
        (b"", cloudpickle.dumps(()), "got one of a tuple"),
        (b"", cloudpickle.dumps({1: 2}), "strings"),
    ],
)
def test_pickles_that_are_no_arguments_are_refused_by_the_rule(
    served: Served, args: bytes, kwargs: bytes, named: str
) -> None:
    status, answer = served.ask(pickled_request("add", args, kwargs).to_binary(), PROTO)

    assert (status, answer["code"]) == (400, "invalid_argument")
    assert named in answer["message"]


# How a request arrives


def test_a_chunked_body_is_put_together_and_the_next_request_begins_behind_its_trailers(served: Served) -> None:
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(piece), piece) for piece in (ADD[:1], ADD[1:10], ADD[10:]))
    chunked = request("Transfer-Encoding: Chunked", body=chunks + b"0\r\nTrailer: x\r\nAnother: y\r\n\r\n")

    raw = served.raw(chunked + request(f"Content-Length: {len(ADD)}", "Connection: close", body=ADD))

    assert raw.count(b"HTTP/1.1 200 ") == 2
    assert raw.count(b'{"json":"5"}') == 2


def test_a_header_with_an_underscore_is_not_taken_for_the_one_without(served: Served) -> None:
    assert served.ask(ADD, {**JSON, "content_encoding": "br"}) == (200, {"json": "5"})


def test_a_refusal_reaches_a_caller_who_still_sends(served: Served) -> None:
    assert served.ask(bytes(30_000_000))[0] == 429
    assert served.ask(bytes(30_000_000), {"content-type": "application/json"})[0] == 401


def test_a_peer_that_waits_to_be_asked_for_the_body_is_asked(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(request(f"Content-Length: {len(ADD)}", "Expect: 100-continue", "Connection: close"))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(ADD)
        assert read_to_end(sock).endswith(b'{"json":"5"}')


def test_a_body_that_will_be_refused_is_not_asked_for(served: Served) -> None:
    assert served.raw(request("Content-Length: 999999", "Expect: 100-continue")).startswith(b"HTTP/1.1 429 ")
    stranger = request("Content-Length: 1", "Expect: 100-continue").replace(BEARER.encode(), b"wrong")
    assert served.raw(stranger).startswith(b"HTTP/1.1 401 ")
    assert served.raw(request("Content-Length: 1", "Expect: a miracle")).startswith(b"HTTP/1.1 417 ")


def test_several_requests_are_served_on_one_connection(served: Served) -> None:
    connection = served.connection()
    connection.connect()
    sock = connection.sock
    for number in range(5):
        body = {"actor": "calculator", "method": "add", "json": json.dumps({"args": [number, 1]})}
        connection.request("POST", CALL, json.dumps(body), JSON)
        assert json.loads(connection.getresponse().read()) == {"json": str(number + 1)}
    connection.request("POST", CALL, json.dumps({"actor": "nobody", "method": "add"}), JSON)
    assert connection.getresponse().read()
    connection.request("POST", HEALTH, "{}", JSON)
    assert connection.getresponse().read() == b'{"healthy":true}'
    assert connection.sock is sock
    connection.close()


def test_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    bodies = [json.dumps({"actor": "calculator", "method": "add", "json": f'{{"args": [{n}, 0]}}'}) for n in range(3)]
    sent = [request(f"Content-Length: {len(body)}", body=body.encode()) for body in bodies]
    sent[-1] = sent[-1].replace(b"Host:", b"Connection: close\r\nHost:")

    raw = served.raw(b"\r\n".join(sent))

    assert [raw.index(b'{"json":"%d"}' % n) for n in range(3)] == sorted(
        raw.index(b'{"json":"%d"}' % n) for n in range(3)
    )
    assert raw.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("first_bytes", [1, 40, 65536])
def test_it_does_not_matter_how_much_the_caller_had_read(first_bytes: int) -> None:
    with serving(first_bytes=first_bytes) as served:
        assert served.ask(ADD) == (200, {"json": "5"})


def test_http_1_0_gets_one_answer(served: Served) -> None:
    raw = served.raw(request(f"Content-Length: {len(ADD)}", body=ADD).replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert raw.endswith(b'{"json":"5"}')


def test_a_caller_who_leaves_harms_nobody(served: Served) -> None:
    ran = threading.Event()
    served.actor.methods["wait"] = lambda: ran.wait(10) and b"x" * 5_000_000
    for sent in (b"P", request("Content-Length: 10"), request("Transfer-Encoding: chunked", body=b"5\r\nab")):
        with served.connect() as sock:
            sock.sendall(sent)
    with served.connect() as sock:
        message = pickled_request("wait", b"").to_binary()
        head = request(f"Content-Length: {len(message)}").replace(b"application/json", b"application/proto")
        sock.sendall(head + message)
    ran.set()
    assert served.ask(ADD)[0] == 200


def test_a_long_result_arrives_whole(served: Served) -> None:
    served.actor.methods["long"] = lambda: b"x" * 20_000_000

    assert len(pickle.loads(result_of(served.call_pickled("long")))) == 20_000_000


def test_an_idle_connection_ends_when_the_server_stops(served: Served) -> None:
    with served.connect() as fresh, served.connect() as halfway, served.connect() as used:
        fresh.sendall(b"P")
        halfway.sendall(request("Content-Length: 10", body=b"{"))
        used.sendall(request(f"Content-Length: {len(ADD)}", body=ADD))
        assert used.recv(65536).endswith(b'{"json":"5"}')
        served.stop.set()
        for sock in (fresh, halfway, used):
            try:
                assert read_to_end(sock) == b""
            except ConnectionResetError:  # what it had sent was not read any more
                pass


def test_a_call_that_runs_is_answered_though_the_server_stops(served: Served) -> None:
    def stop() -> str:
        served.stop.set()
        return "done"

    served.actor.methods["stop"] = stop
    body = json.dumps({"actor": "calculator", "method": "stop"}).encode()

    raw = served.raw(request(f"Content-Length: {len(body)}", body=body))

    assert b"\r\nconnection: close\r\n" in raw
    assert raw.endswith(b'{"json":"\\"done\\""}')


# What comes of a call


def test_a_result_that_json_cannot_carry_is_an_error_that_says_so(served: Served) -> None:
    circle: list[Any] = []
    circle.append(circle)
    for value in (b"bytes", {1, 2}, object(), float("nan"), circle):
        served.actor.methods["give"] = lambda value=value: value
        error = served.call("give")["error"]
        assert error["typeName"] == "fluster.errors.RemoteError"
        assert f"the result of 'give', of type {type(value).__name__}, cannot be told in JSON" in error["message"]


def test_a_result_that_cannot_be_pickled_is_an_error_that_says_so(served: Served) -> None:
    class Leaves:
        def __reduce__(self) -> Any:
            raise SystemExit(3)

    for value in (threading.Lock(), Leaves()):
        served.actor.methods["give"] = lambda value=value: value
        error = error_of(served.call_pickled("give"))
        assert "the result of 'give'" in error.message
        assert "cannot be pickled" in error.message


def test_what_a_method_raises_comes_with_type_text_and_the_users_frames(served: Served) -> None:
    def divide(a: int, b: int) -> float:
        return a / b

    served.actor.methods["divide"] = divide

    error = served.call("divide", '{"args": [1, 0]}')["error"]

    assert error["typeName"] == "ZeroDivisionError"
    assert error["message"] == "division by zero"
    assert "return a / b" in error["traceback"]
    assert "fluster/actor/http" not in error["traceback"]
    assert "pickled" not in error  # it was no pickle that asked

    rebuilt = error_of(served.call_pickled("divide", 1, 0))
    assert isinstance(pickle.loads(rebuilt.pickled), ZeroDivisionError)


class TwoArguments(Exception):
    """Can be pickled, but not loaded."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Garbled(Exception):
    def __str__(self) -> str:
        return "half \ud800 a pair"


def test_an_exception_that_does_not_survive_pickling_arrives_as_text(served: Served) -> None:
    for failure in (TwoArguments("a", "b"), ValueError("a", threading.Lock())):
        served.actor.methods["fail"] = raising(failure)
        error = error_of(served.call_pickled("fail"))
        assert error.pickled == b""
        assert error.type_name.endswith(type(failure).__name__)
        assert "a" in error.message


@pytest.mark.parametrize(("failure", "named"), [(Mute(), "RuntimeError"), (Exits(), "SystemExit")])
def test_an_exception_whose_text_raises_says_so(served: Served, failure: Exception, named: str) -> None:
    served.actor.methods["fail"] = raising(failure)

    error = served.call("fail")["error"]

    assert error["typeName"] == f"{__name__}.{type(failure).__name__}"
    assert error["message"].startswith("<")
    assert named in error["message"]


def test_an_exception_whose_text_no_message_may_carry_is_escaped(served: Served) -> None:
    served.actor.methods["fail"] = raising(Garbled())

    assert served.call("fail")["error"]["message"] == "half \\ud800 a pair"


@pytest.mark.parametrize("failure", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_exit_is_a_result_and_the_connection_lives(served: Served, failure: BaseException) -> None:
    served.actor.methods["fail"] = raising(failure)

    assert served.call("fail")["error"]["typeName"] == type(failure).__name__
    assert isinstance(pickle.loads(error_of(served.call_pickled("fail")).pickled), type(failure))


def raising(failure: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise failure

    return fail


def test_an_actor_that_is_not_there_is_not_found(served: Served) -> None:
    status, answer = served.ask({"actor": "nobody", "method": "add"})

    assert (status, answer["code"]) == (404, "not_found")
    assert "'nobody'" in answer["message"]
    assert b"actor_not_found" in base64.b64decode(answer["details"][0]["value"] + "==")


def test_an_actor_that_the_method_did_not_find_is_the_methods_error(served: Served) -> None:
    served.actor.methods["ask_other"] = raising(ActorNotFound("other"))

    assert served.call("ask_other")["error"]["typeName"] == "fluster.errors.ActorNotFound"


def test_a_method_that_is_refused_is_an_invalid_argument(served: Served) -> None:
    status, answer = served.ask({"actor": "calculator", "method": "__class__"})

    assert (status, answer["code"]) == (400, "invalid_argument")
    assert answer["message"] == "'calculator' has no method '__class__'"


def test_an_attribute_that_the_method_misses_is_the_methods_error(served: Served) -> None:
    served.actor.methods["miss"] = lambda: (1).missing  # type: ignore[attr-defined]

    assert served.call("miss")["error"]["typeName"] == "AttributeError"


class Unexpected(AttributeError):
    @property
    def refused(self) -> bool:
        raise RuntimeError("inner secret")


def test_what_nobody_expected_is_an_internal_error_without_its_text(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.actor.methods["fail"] = raising(Unexpected())

    status, answer = served.ask({"actor": "calculator", "method": "fail"})

    assert (status, answer["code"]) == (500, "internal")
    assert "secret" not in str(answer)
    assert "inner secret" in caplog.text
    assert served.ask(ADD)[0] == 200


# Call ids


def test_a_call_id_goes_to_the_actor_and_the_same_one_runs_once(served: Served) -> None:
    numbers = itertools.count()
    served.actor.methods["count"] = lambda: next(numbers)
    body = {"actor": "calculator", "method": "count", "callId": "mine"}

    assert [served.ask(body) for _ in range(3)] == [(200, {"json": "0"})] * 3
    assert served.actor.ran == ["mine"]


def test_calls_without_an_id_get_one_each(served: Served) -> None:
    for _ in range(3):
        assert served.ask(ADD)[0] == 200
    assert len(set(served.actor.ran)) == 3
    assert all(len(call_id) == 32 for call_id in served.actor.ran)


# The extra


def test_nothing_of_the_extra_is_loaded_before_somebody_calls() -> None:
    program = """if True:
        import sys
        import fluster.actor.http
        assert fluster.actor.http.available()
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"connectrpc", "pyqwest", "uvicorn", "httptools", "asyncio"}, loaded"""
    run = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=50, cwd=ROOT, text=True
    )

    assert run.returncode == 0, run.stderr


def test_without_the_extra_a_caller_is_told_what_is_missing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()
    monkeypatch.setitem(sys.modules, "fluster.actor.http_service", None)
    monkeypatch.setitem(sys.modules, "connectrpc", None)

    assert not available()
    status, answer = served.ask(ADD)
    assert (status, answer["code"]) == (501, "unimplemented")
    assert "fluster-cluster[server]" in answer["message"]
