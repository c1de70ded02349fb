"""How answers leave: in one piece where they are whole, at once where more is to come."""

from __future__ import annotations

import socket

from tests.cluster.rpc.conftest import SERVICE, TOKEN

from fluster.testing.serving import ServerThread


def request(method: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"POST /{SERVICE}/{method} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    return head.encode() + body


def test_head_and_body_of_an_answer_come_in_one_packet(server: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for _ in range(20):
            connection.sendall(request("ListJobs", b'{"namePrefix": "abc"}', "application/json"))
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"abc" in answer


def test_the_head_of_a_stream_does_not_wait_for_its_end(server: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        follow = b"\x20\x01"
        body = b"\0" + len(follow).to_bytes(4, "big") + follow
        connection.sendall(request("FetchLogs", body, "application/connect+proto"))
        answer = b""
        while b"line 2" not in answer:  # more never comes
            answer += connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_answer_to_who_keeps_no_connection_is_whole(server: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        asked = request("ListJobs", b'{"namePrefix": "abc"}', "application/json")
        connection.sendall(asked.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n", 1))
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    assert b"abc" in answer
    assert answer.endswith(b"0\r\n\r\n")
