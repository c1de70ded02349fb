"""Encrypted connections: whom a client believes, what it is told otherwise, and what silent connections can take."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.cluster.rpc.conftest import SERVICE, TOKEN, Service, authenticate

from fluster.cluster.controller.tls import ServerTls, TlsConfig
from fluster.errors import Unreachable
from fluster.rpc import edge, handshake
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerServiceASGIApplication
from fluster.rpc.serve import connect_options
from fluster.rpc.trust import AUTHORITY_PATH, Trust, pinned, split_pin
from fluster.testing.serving import ServerThread

_DAY_S = 86_400.0


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return ServerTls(tmp_path_factory.mktemp("authority"), TlsConfig(), "127.0.0.1")


@pytest.fixture
def encrypted(service: Service, tls: ServerTls) -> Iterator[ServerThread]:
    public = {AUTHORITY_PATH: tls.authority.pem.encode()}

    def application() -> ControllerServiceASGIApplication:
        return ControllerServiceASGIApplication(service, **connect_options())

    with ServerThread(application, authenticate, ssl_context=tls.context, public=public) as server:
        yield server


def call(address: str, trust: Trust | None = None, prefix: str = "abc") -> str:
    client = ConnectClient(address, SERVICE, token=TOKEN, trust=trust, retry_s=0.0)
    try:
        request = pb.ListJobsRequest(name_prefix=prefix)
        return client.unary("ListJobs", request, pb.ListJobsResponse).next_page_token
    finally:
        client.close()


def test_a_pin_is_enough_to_know_the_right_server(encrypted: ServerThread, tls: ServerTls) -> None:
    assert call(encrypted.address, Trust(pin=tls.pin)) == "abc"


def test_large_requests_and_streams_are_encrypted_too(encrypted: ServerThread, tls: ServerTls) -> None:
    client = ConnectClient(encrypted.address, SERVICE, token=TOKEN, trust=Trust(pin=tls.pin))
    try:
        chunk = bytes(3 << 20)
        assert client.unary("PutBlob", pb.PutBlobRequest(chunk=chunk), pb.PutBlobResponse).next_offset == len(chunk)
        lines = [each.lines[0].data for each in client.stream("FetchLogs", pb.FetchLogsRequest(), pb.FetchLogsResponse)]
    finally:
        client.close()
    assert lines == [b"line 0", b"line 1", b"line 2"]


@pytest.mark.parametrize("trust", [None, Trust(pin="0" * 64)], ids=["the system's authorities", "another pin"])
def test_a_server_that_is_not_believed_gets_no_token(
    encrypted: ServerThread, service: Service, trust: Trust | None
) -> None:
    with pytest.raises(Unreachable, match=r"its certificate is not believed: .*ca_file"):
        call(encrypted.address, trust)
    assert not service.calls
    assert not encrypted.refused


def test_a_certificate_for_another_name_is_not_believed(
    encrypted: ServerThread, tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.create_connection

    def led_elsewhere(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        return real(("127.0.0.1", address[1]), timeout=timeout)

    monkeypatch.setattr(socket, "create_connection", led_elsewhere)
    with pytest.raises(Unreachable, match=r"(?i)mismatch"):
        call(f"https://elsewhere.example:{encrypted.port}", _already_fetched(tls))


def _already_fetched(tls: ServerTls) -> Trust:
    trust = Trust(pin=tls.pin)
    trust._pem = tls.authority.pem  # the Host header of a fetch would be refused first
    return trust


def test_an_authoritys_file_that_cannot_be_used_is_named(encrypted: ServerThread, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"gone\.pem cannot be read"):
        call(encrypted.address, Trust(str(tmp_path / "gone.pem")))
    (tmp_path / "empty.pem").write_text("nothing\n")
    with pytest.raises(Unreachable, match=r"empty\.pem holds no certificate"):
        call(encrypted.address, Trust(str(tmp_path / "empty.pem")))


def test_who_takes_https_for_http_is_told_and_the_other_way_round(
    encrypted: ServerThread, server: ServerThread
) -> None:
    with pytest.raises(Unreachable, match=f"say https://127.0.0.1:{encrypted.port}"):
        call(f"http://127.0.0.1:{encrypted.port}")
    with pytest.raises(Unreachable, match="does not speak TLS"):
        call(f"https://127.0.0.1:{server.port}")


def test_an_own_origin_is_https(encrypted: ServerThread, tls: ServerTls) -> None:
    host = f"127.0.0.1:{encrypted.port}"
    for origin, status in ((f"https://{host}", b"401"), (f"http://{host}", b"403")):
        with _secure(encrypted, tls) as connection:
            head = f"POST /{SERVICE}/ListJobs HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            assert connection.recv(4096).split()[1] == status


def _secure(server: ServerThread, tls: ServerTls) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=tls.authority.pem)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), 10), server_hostname="127.0.0.1")


def test_who_does_not_finish_the_handshake_is_sent_away(
    encrypted: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT_S", 0.3)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", encrypted.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01")
        assert connection.recv(1) == b""
    assert time.monotonic() - began < 5


def test_silent_connections_before_the_handshake_are_capped_and_real_clients_served(
    encrypted: ServerThread, tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "MAX_STRANGERS", 16)
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", encrypted.port), timeout=10)) for _ in range(40)
        ]
        assert silent[0].recv(1) == b""
        assert call(encrypted.address, Trust(pin=tls.pin)) == "abc"
        assert len(encrypted.server._protocol.strangers) <= 16


def test_a_server_stops_although_a_handshake_is_under_way(encrypted: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", encrypted.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01")
        deadline = time.monotonic() + 10
        while not len(encrypted.server._protocol.strangers):  # accepted
            assert time.monotonic() < deadline
            time.sleep(0.005)
        encrypted.stop()
        assert _end_of(connection) == b""


def _end_of(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


def test_a_certificate_is_renewed_before_it_ends_without_a_restart(service: Service, tmp_path: Path) -> None:
    clock = [time.time() - 61 * _DAY_S]
    tls = ServerTls(tmp_path, TlsConfig(), "127.0.0.1", clock=lambda: clock[0])
    clock[0] += _DAY_S
    assert not tls.renew()

    def application() -> ControllerServiceASGIApplication:
        return ControllerServiceASGIApplication(service, **connect_options())

    with ServerThread(application, authenticate, ssl_context=tls.context) as server:
        with _secure(server, tls) as connection:
            first = connection.getpeercert(binary_form=True)
        clock[0] = time.time()
        assert tls.renew()
        with _secure(server, tls) as connection:
            assert connection.getpeercert(binary_form=True) != first


def test_a_restarted_server_shows_the_same_certificate_unless_it_has_other_names(tmp_path: Path) -> None:
    ServerTls(tmp_path, TlsConfig(), "127.0.0.1")
    first = (tmp_path / "server.pem").read_bytes()
    ServerTls(tmp_path, TlsConfig(), "127.0.0.1")
    assert (tmp_path / "server.pem").read_bytes() == first
    ServerTls(tmp_path, TlsConfig(names=("cluster.example",)), "127.0.0.1")
    assert (tmp_path / "server.pem").read_bytes() != first


def test_the_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    ServerTls(tmp_path, TlsConfig(), "127.0.0.1")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("ca.key", "server.pem")} == {0o600}


def test_a_pin_is_told_from_a_token(tls: ServerTls) -> None:
    assert split_pin(pinned("flj_x_ab", tls.pin)) == ("flj_x_ab", tls.pin)
    assert split_pin("any.word") == ("any.word", None)
