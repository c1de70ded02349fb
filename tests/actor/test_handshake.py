"""Who cannot prove the key is sent away before anything is unpickled, and callers are let in by nobody else."""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.actor.conftest import Here, There, eventually
from tests.actor.raw import Raw

from fluster import ActorUnavailable, FixedResolver
from fluster.actor import doors
from fluster.actor.protocol import (
    ANSWER,
    CHALLENGE,
    HEADER,
    HELLO,
    NONCE_BYTES,
    OPENING,
    SESSION_BYTES,
    Hello,
    Kind,
    Verdict,
    caller_proof,
    socket_name,
    target_of,
)

KEY_OF_NOBODY = "0" * 64


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def short_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "GREETING_S", 0.4)


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    body = target_of("", "worker", "same") + pickle.dumps(((Bomb(tmp_path / "went off"),), {}), 5)
    return HEADER.pack(len(body), 0, Kind.CALL, 0, 1, 0, 0) + body


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_with_the_key_a_caller_is_let_in(here: Here, unix: bool) -> None:
    with Raw(here.server.address, here.server.access_key, unix=unix) as raw:
        assert raw.open() == Verdict.OPENED
        raw.call(1, "add", 2, 3)
        kind, call_id, body = raw.reply()
        assert (kind, call_id, pickle.loads(body)) == (Kind.REPLY, 1, 5)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("proof", ["none", "wrong", "of another key", "the server's own", "the caller's role swapped"])
def test_without_proof_nothing_is_unpickled(here: Here, tmp_path: Path, bomb: bytes, unix: bool, proof: str) -> None:
    for _ in range(5):
        with Raw(here.server.address, here.server.access_key, unix=unix) as raw:
            hello, nonce = raw.challenged()
            proofs = {
                "none": b"",
                "wrong": secrets.token_bytes(32),
                "of another key": caller_proof(KEY_OF_NOBODY, hello, nonce),
                "the server's own": b"\0" * 32,
                "the caller's role swapped": hello.nonce,
            }
            answer = ANSWER.pack(proofs[proof], 0) if proofs[proof] else b""
            raw.send(answer + bomb)
            assert raw.ended()
    assert here.call().add(1) == 2
    assert not (tmp_path / "went off").exists()
    with Raw(here.server.address, here.server.access_key, unix=unix) as raw:
        raw.open()
        raw.send(bomb)
        raw.reply()
    assert (tmp_path / "went off").exists()  # it is one


def test_a_bomb_instead_of_a_greeting_does_not_go_off(here: Here, tmp_path: Path, bomb: bytes) -> None:
    for first in (bomb, OPENING + bomb, pickle.dumps(Bomb(tmp_path / "went off")), OPENING[:3] + bomb):
        with Raw(here.server.address, here.server.access_key) as raw:
            raw.send(first + bytes(200))
            with contextlib.suppress(OSError):  # it may have hung up already
                raw.sock.shutdown(socket.SHUT_WR)
                assert b"Traceback" not in raw.sock.recv(65_536)
    assert here.call().add(1) == 2
    assert not (tmp_path / "went off").exists()


def test_a_replayed_greeting_is_refused(here: Here, tmp_path: Path, bomb: bytes) -> None:
    with Raw(here.server.address, here.server.access_key) as raw:
        raw.open()
        raw.call(1, "increment")
        raw.reply()
        recorded = raw.sent
    for _ in range(3):
        with Raw(here.server.address, here.server.access_key) as raw:
            raw.send(recorded[: HELLO.size])
            raw.sock.recv(CHALLENGE.size)
            raw.send(recorded[HELLO.size :] + bomb)
            assert raw.ended()
    assert here.worker.count == 1
    assert not (tmp_path / "went off").exists()


def test_a_session_is_not_taken_over_without_the_key(here: Here) -> None:
    session = secrets.token_bytes(SESSION_BYTES)
    with Raw(here.server.address, here.server.access_key) as raw:
        raw.open(Hello(False, session, secrets.token_bytes(NONCE_BYTES)))
        with Raw(here.server.address, here.server.access_key) as thief:
            thief.challenged(Hello(True, session, secrets.token_bytes(NONCE_BYTES)))
            thief.send(ANSWER.pack(secrets.token_bytes(32), 0))
            assert thief.ended()
        raw.call(1, "add", 1)
        assert raw.reply()[0] == Kind.REPLY


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_ours_and_sent_away(here: Here, version: int) -> None:
    with Raw(here.server.address, here.server.access_key) as raw:
        raw.send(HELLO.pack(OPENING, version, 0, bytes(SESSION_BYTES), bytes(NONCE_BYTES)))
        answer = raw.sock.recv(4_096)
        assert answer[0] == 1
        assert raw.sock.recv(1) == b""


@pytest.mark.parametrize("length", [0, 1, 5, 6, 7, 55, 56, 57, 91])
def test_a_greeting_that_is_cut_short_harms_nobody(here: Here, length: int) -> None:
    with Raw(here.server.address, here.server.access_key) as raw:
        hello = Hello(False, bytes(SESSION_BYTES), bytes(NONCE_BYTES)).to_bytes() + bytes(36)
        raw.send(hello[:length])
    assert here.call().add(1) == 2


@pytest.mark.usefixtures("short_greeting")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_greeting_in_drips_and_silence_are_ended_in_time(here: Here, unix: bool) -> None:
    hello = Hello(False, bytes(SESSION_BYTES), bytes(NONCE_BYTES)).to_bytes()
    began = time.monotonic()
    with (
        Raw(here.server.address, here.server.access_key, unix=unix) as silent,
        Raw(here.server.address, here.server.access_key, unix=unix) as dripping,
    ):
        for each in hello:
            try:
                dripping.sock.sendall(bytes([each]))
            except OSError:
                break
            dripping.sock.settimeout(0.05)
            try:
                if dripping.sock.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("it was listened to")
        assert silent.sock.recv(1) == b""
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_silent_strangers_keep_no_caller_out(here: Here, unix: bool, way: str) -> None:
    before = threading.active_count()
    strangers = [Raw(here.server.address, here.server.access_key, unix=unix) for _ in range(200)]
    try:
        began = time.monotonic()
        assert here.call().add(1) == 2
        assert time.monotonic() - began < 5.0
        assert threading.active_count() - before <= doors.MAX_STRANGERS + 5
    finally:
        for stranger in strangers:
            stranger.sock.close()


def test_descriptors_from_strangers_and_callers_do_not_stay(here: Here) -> None:
    before = len(os.listdir("/proc/self/fd"))
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        for _ in range(5):
            with Raw(here.server.address, here.server.access_key, unix=True) as stranger:
                stranger.sock.sendmsg([OPENING[:1]], rights)
            with Raw(here.server.address, here.server.access_key, unix=True) as caller:
                caller.open()
                try:
                    for _ in range(20):  # which no frame asks for
                        caller.sock.sendmsg([HEADER.pack(0, 0, Kind.ACK, 0, 0, 0, 0)], rights)
                except OSError:
                    pass
        assert here.call().add(1) == 2
    finally:
        for each in descriptors:
            os.close(each)
    here.resolver.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


class Impostor:
    """Listens where the server was, with answers of its own."""

    def __init__(self, listener: socket.socket, answer: bytes) -> None:
        self.heard = b""
        self._listener = listener
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(2):
            sock, _ = self._listener.accept()
            with sock:
                sock.settimeout(10.0)
                try:
                    self.heard += sock.recv(4_096)
                    sock.sendall(self._answer)
                    while data := sock.recv(4_096):
                        self.heard += data
                except OSError:
                    pass

    def close(self) -> None:
        self._thread.join(30)
        self._listener.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("answer", ["zeros", "random"])
def test_an_impostor_on_a_recycled_address_gets_no_call(kind: str, answer: str) -> None:
    there = There()
    assert there.call().add(1) == 2
    there.kill()
    if kind == "tcp":
        listener = socket.create_server(("127.0.0.1", there.port))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(socket_name(there.access_key))
        listener.listen()
    data = bytes([1]) + (bytes(64) if answer == "zeros" else secrets.token_bytes(64))
    impostor = Impostor(listener, data)
    resolver = FixedResolver({"worker": there.address}, access_key=there.access_key)
    try:
        for pool in (there.pool, resolver.lookup("worker")):
            with pytest.raises(ActorUnavailable, match="is not the actor's server"):
                pool.call(10.0).add("secret", "argument")
        assert b"secret" not in impostor.heard
        assert there.access_key.encode() not in impostor.heard
    finally:
        resolver.close()
        impostor.close()
        there.close()


def test_another_server_on_the_recycled_port_is_not_called() -> None:
    there = There()
    port = there.port
    assert there.call().add(1) == 2
    there.kill()
    other = There(port=port)
    try:
        with pytest.raises(ActorUnavailable):
            there.call(10.0).increment()
        assert other.call().total() == 0
    finally:
        other.close()
        there.close()


def test_callers_who_prove_the_key_and_vanish_leave_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluster.actor import server

    monkeypatch.setattr(server, "SESSION_KEPT_S", 0.1)
    for _ in range(20):
        with Raw(here.server.address, here.server.access_key, unix=True) as raw:
            hello, nonce = raw.challenged()
            raw.send(ANSWER.pack(caller_proof(raw.access_key, hello, nonce), 0))
    with Raw(here.server.address, here.server.access_key, unix=True) as raw:
        raw.open()
        raw.call(1, "async_wait")
        assert here.worker.begun.wait(10)

    def forgotten() -> bool:
        here.server._tidy()
        return not here.server._sessions

    eventually(forgotten)
    assert here.worker.closed.wait(10)  # its call was cancelled
