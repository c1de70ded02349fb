"""Actors whose connections are encrypted: calls of every kind, impostors, callers without encryption, HTTP."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from tests.actor.conftest import Here

from fluster import ActorServer, ActorUnavailable, FixedResolver
from fluster.actor import line
from fluster.actor.protocol import OPENING
from fluster.actor.tls import TlsSocket, connect_tls, server_context
from fluster.cluster.controller.authority import Authority
from fluster.rpc.trust import pinned, split_pin


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def certificate(authority: Authority, tmp_path: Path) -> str:
    issued = authority.issue(["127.0.0.1"], days=1)
    (tmp_path / "both.pem").write_text(issued.certificate + issued.key)
    return str(tmp_path / "both.pem")


@pytest.fixture
def encrypted(certificate: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """As in a job of a cluster with encrypted connections, called from another machine."""
    monkeypatch.setattr(line, "SAME_HOST", False)
    context, pin = server_context(certificate)
    monkeypatch.setattr(ActorServer, "_identity", lambda _server: (pinned("5e" * 32, pin), context))
    server = Here(max_concurrency=4)
    yield server
    server.close()


def test_calls_streams_and_arrays_are_carried(encrypted: Here) -> None:
    call = encrypted.call()
    assert call.same("word") == "word"
    data = os.urandom(5_000_001)
    assert call.same(bytearray(data)) == data
    assert call.same([memoryview(data).tobytes(), 1]) == [data, 1]
    futures = [call.same.submit(bytes([i % 256]) * (i * 701)) for i in range(200)]
    assert [future.result(20) for future in futures] == [bytes([i % 256]) * (i * 701) for i in range(200)]


def test_many_threads_share_one_connection(encrypted: Here) -> None:
    failures: list[object] = []

    def hammer(number: int) -> None:
        for i in range(60):
            value = (number, i, bytes([number]) * (i * 997))
            if encrypted.call().same(value) != value:
                failures.append(value)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def test_who_has_the_address_without_the_certificate_is_not_spoken_to(encrypted: Here) -> None:
    other = pinned(split_pin(encrypted.server.access_key)[0], "0" * 64)
    resolver = FixedResolver({"worker": encrypted.server.address}, access_key=other)
    try:
        with pytest.raises(ActorUnavailable, match="does not show the actor's certificate"):
            resolver.lookup("worker").call(timeout=20).same(1)
    finally:
        resolver.close()


def test_a_caller_without_encryption_is_sent_away(encrypted: Here) -> None:
    host, port = encrypted.server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(OPENING)
        assert _end(sock) == b""


def _end(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""


def test_http_is_served_on_the_same_port_under_the_clusters_authority(encrypted: Here, authority: Authority) -> None:
    host, port = encrypted.server.address.split(":")
    context = ssl.create_default_context(cadata=authority.pem)
    connection = HTTPSConnection(host, int(port), timeout=10, context=context)
    try:
        body = json.dumps({"actor": "worker", "method": "same", "json": '{"args": ["hello"]}'})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {encrypted.server.bearer}"}
        for _ in range(2):
            connection.request("POST", "/fluster.actor.v1.ActorService/Call", body, headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            assert b"hello" in answer
    finally:
        connection.close()


def test_what_goes_out_slowly_goes_out_whole(certificate: str) -> None:
    context, pin = server_context(certificate)
    here, there = socket.socketpair()
    data = os.urandom(3_000_000)
    received = bytearray()
    ready = threading.Event()

    def serve() -> None:
        server: Any = TlsSocket(there, context, server_side=True)
        server.shake_hands(time.monotonic() + 20)
        there.settimeout(10)
        ready.wait(10)
        while len(received) < len(data):
            received.extend(server.recv(1 << 16))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here, there:
            here.settimeout(10)
            client = connect_tls(here, pin, time.monotonic() + 20)
            assert client is not None
            client.setblocking(False)
            rest = memoryview(data)
            while rest:  # until the socket is full: what is not reported is given again, as the rule says
                try:
                    rest = rest[client.send(rest) :]
                except BlockingIOError:
                    ready.set()
            thread.join(10)
    finally:
        thread.join(10)
    assert bytes(received) == data
