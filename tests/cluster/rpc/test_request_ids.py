"""Every answer to a request has an id, and the log has it too where the request was refused or failed."""

from __future__ import annotations

import logging
from http.client import HTTPConnection

import pytest
from tests.cluster.rpc.conftest import SERVICE, TOKEN, Service

from fluster.testing.serving import ServerThread


def id_of(server: ServerThread, token: str, method: str = "GetJobStatus", *, given: str = "mine") -> tuple[str, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}", "X-Request-Id": given}
        connection.request("POST", f"/{SERVICE}/{method}", b"{}", headers)
        response = connection.getresponse()
        body = response.read()
        return response.headers["x-request-id"], body
    finally:
        connection.close()


def test_a_refused_and_a_failed_request_are_found_in_the_log_by_their_ids(
    server: ServerThread, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refused, _ = id_of(server, "wrong")
    service.failure = KeyError("the inside")
    failed, told = id_of(server, TOKEN)
    assert refused != failed
    assert f"(request {refused})" in caplog.text
    assert f"(request {failed})" in caplog.text
    assert failed.encode() in told
    assert b"the inside" not in told


def test_a_request_that_went_well_has_one_and_a_callers_own_is_not_taken_over(
    server: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ids = {id_of(server, TOKEN, "ListJobs", given="mine")[0] for _ in range(3)}
    assert len(ids) == 3
    assert not any("mine" in each for each in ids)
