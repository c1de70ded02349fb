"""A cluster whose connections are encrypted: its worker, its jobs, its clients, and certificates of others."""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluster import ActorServer, Cluster, ClusterResolver, NotPermitted, Unreachable, current_cluster
from fluster.actor import line
from fluster.cluster.backend.local import LocalBackend
from fluster.cluster.config_edit import configure_cluster
from fluster.cluster.controller.authority import Authority
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.controller.tls import TlsConfig
from fluster.cluster.ids import WorkerId
from fluster.cluster.tokens import worker_token
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.trust import Trust, pin_of, pinned, split_pin

SERVICE = "fluster.cluster.v1.ControllerService"


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerServer]:
    with ControllerServer(state_dir=tmp_path_factory.mktemp("encrypted"), tls=TlsConfig()) as controller:
        yield controller


def _pinned(controller: ControllerServer) -> str:
    assert controller.ca_file is not None
    return pinned(controller.token, pin_of(controller.ca_file.read_text()))


def _look_around() -> list[str]:
    print("said inside")
    return [job.name for job in current_cluster().list_jobs()]


def test_workers_and_jobs_use_encrypted_connections_and_a_workers_token_needs_its_certificate() -> None:
    backend = LocalBackend()
    with (
        ControllerServer(backend, tls=TlsConfig(worker_certificates=True)) as controller,
        Cluster(controller.address, token=_pinned(controller)) as cluster,
    ):
        assert controller.address.startswith("https://")
        job = cluster.submit(_look_around)
        assert job.result(timeout=30) == ["look_around"]
        assert [line.data for line in job.logs(follow=True)] == ["said inside"]
        _call_an_actor(cluster)
        _speak_for_a_worker_without_its_certificate(controller, backend._workers / "local-0")


class Greeter:
    def greet(self, name: str) -> str:
        return f"hello {name}"


def _serve_a_greeter() -> None:
    server = ActorServer(current_cluster())
    server.register("greeter", Greeter())
    server.serve()


def _call_an_actor(cluster: Cluster) -> None:
    """Over TCP, as from another machine."""
    job = cluster.submit(_serve_a_greeter)
    resolver = ClusterResolver(cluster)
    pool = resolver.lookup("greeter")
    pool.wait_for_size(1, timeout=30)
    (endpoint,) = cluster.lookup_endpoints("greeter")
    assert split_pin(endpoint.access_key or "")[1] is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "SAME_HOST", False)
        assert pool.call(timeout=20).greet("there") == "hello there"
    resolver.close()
    job.terminate()
    job.wait(timeout=30)


def _speak_for_a_worker_without_its_certificate(controller: ControllerServer, state_dir: Path) -> None:
    identity = json.loads((state_dir / "identity.json").read_bytes())
    token = worker_token(WorkerId(identity["worker_id"]), identity["secret"])
    client = ConnectClient(controller.address, SERVICE, token=token, trust=Trust(str(controller.ca_file)))
    try:
        with pytest.raises(NotPermitted, match="a valid bearer token is needed"):
            client.unary("PushLogs", pb.PushLogsRequest(), pb.PushLogsResponse)
    finally:
        client.close()
    assert (state_dir / "worker.pem").stat().st_mode & 0o777 == 0o600


def test_a_join_token_and_a_configured_entry_are_enough(
    controller: ControllerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "token").write_text(controller.token)
    assert controller.ca_file is not None
    configure_cluster("far", controller.address, tmp_path / "token", controller.ca_file)
    request = pb.CreateTokenRequest(request_id="r", kind=pb.TokenKind.JOIN)
    with current_cluster() as configured:
        made = configured._rpc.unary("CreateToken", request, pb.CreateTokenResponse).token
    assert made.endswith(f".{pin_of(controller.ca_file.read_text())}")


def test_a_token_that_names_an_authority_is_not_sent_in_plain_text(controller: ControllerServer) -> None:
    with pytest.raises(ValueError, match="say https://"):
        Cluster(controller.address.replace("https:", "http:"), token=_pinned(controller))


def test_without_the_authority_a_client_is_told_what_to_do(controller: ControllerServer) -> None:
    with (
        Cluster(controller.address, token=controller.token) as stranger,
        pytest.raises(Unreachable, match=r"is not believed: .*FLUSTER_CA_FILE"),
    ):
        stranger.list_jobs()


def test_a_wrong_certificate_is_one_line_and_exit_code_5(controller: ControllerServer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(Authority.open(tmp_path).pem)
    environ = {"FLUSTER_TOKEN": controller.token, "FLUSTER_CA_FILE": str(tmp_path / "ca.pem")}
    command = [sys.executable, "-m", "fluster", "jobs", "--cluster", controller.address]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 5
    assert ran.stderr.count("\n") == 1
    assert "its certificate is not believed" in ran.stderr
    assert controller.token not in ran.stderr


def test_an_operators_own_certificate_is_shown_and_no_other_authority_named(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = Authority.open(tmp_path / "theirs")
    issued = theirs.issue(["127.0.0.1"], days=1)
    (tmp_path / "cert.pem").write_text(issued.certificate)
    (tmp_path / "key.pem").write_text(issued.key)
    tls = TlsConfig(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ControllerServer(state_dir=tmp_path / "state", tls=tls) as controller:
        assert controller.ca_file is None
        trust = Trust(str(tmp_path / "theirs/ca.pem"))
        client = ConnectClient(controller.address, SERVICE, token=controller.token, trust=trust)
        request = pb.CreateTokenRequest(request_id="r", kind=pb.TokenKind.JOIN)
        assert "." not in client.unary("CreateToken", request, pb.CreateTokenResponse).token
        client.close()


def test_files_that_are_no_certificate_are_refused_before_anything_is_bound(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    tls = TlsConfig(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(ValueError, match=r"cert\.pem holds no certificate"):
        ControllerServer(state_dir=tmp_path / "state", tls=tls).start()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(Exception, match=r"ca\.key can be read by others"):
        Authority.open(tmp_path)


def test_the_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "ca.pem").write_text(Authority.open(tmp_path / "other").pem)
    with pytest.raises(Exception, match=r"ca\.pem is not the certificate of ca\.key"):
        Authority.open(tmp_path)


def test_what_is_no_request_gets_no_certificate(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    for garbage in (b"", b"x" * 100, b"\x30\x82\x01"):
        with pytest.raises(ValueError, match="PKCS #10"):
            authority.certify(garbage, "fluster:worker:w", days=1)


def test_what_an_authority_issues_passes_the_strictest_check(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    issued = authority.issue(["127.0.0.1", "cluster.example"], days=1, now=datetime.datetime.now(datetime.UTC))
    (tmp_path / "both.pem").write_text(issued.certificate + issued.key)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=authority.pem)
    server.load_cert_chain(tmp_path / "both.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname="cluster.example")
    answering = server.wrap_bio(there, back, server_side=True)
    for _ in range(3):
        for each in (asking, answering):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert asking.getpeercert()
