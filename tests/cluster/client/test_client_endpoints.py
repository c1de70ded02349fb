"""Endpoints: registered, found, and kept as long as their client."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fluster.cluster.client import Cluster
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

if TYPE_CHECKING:
    from tests.cluster.client.conftest import Controller

Until = Callable[[Callable[[], object]], None]


def test_what_is_registered_is_found(cluster: Cluster) -> None:
    endpoint = cluster.register_endpoint("calc", "127.0.0.1:7", metadata={"version": "1"}, access_key="k")
    assert (endpoint.name, endpoint.address, endpoint.metadata) == ("calc", "127.0.0.1:7", {"version": "1"})
    assert endpoint.namespace == "default-of-the-controller"
    assert cluster.lookup_endpoints("calc") == [endpoint]
    assert cluster.lookup_endpoints("other") == []
    assert [each.name for each in cluster.list_endpoints("ca")] == ["calc"]
    assert "'k'" not in repr(endpoint)
    cluster.unregister_endpoint(endpoint.endpoint_id)
    cluster.unregister_endpoint(endpoint.endpoint_id)
    assert cluster.lookup_endpoints("calc") == []


def test_one_thread_renews_what_is_kept_by_a_lease(cluster: Cluster, controller: Controller, until: Until) -> None:
    controller.lease_s = 0.06
    before = threading.active_count()
    first = cluster.register_endpoint("a", "127.0.0.1:1")
    second = cluster.register_endpoint("b", "127.0.0.1:2")
    assert threading.active_count() == before + 1
    until(lambda: [first.endpoint_id, second.endpoint_id] in controller.renewals)
    cluster.unregister_endpoint(first.endpoint_id)
    until(lambda: controller.renewals[-1] == [second.endpoint_id])
    cluster.close()
    assert threading.active_count() == before


def test_a_lost_lease_is_registered_again_and_still_its_owners(
    cluster: Cluster, controller: Controller, until: Until
) -> None:
    controller.lease_s = 0.06
    endpoint = cluster.register_endpoint("a", "127.0.0.1:1", access_key="k")
    controller.endpoints.clear()
    until(lambda: controller.endpoints)
    first, again = controller.registrations
    assert (again.name, again.access_key) == ("a", "k")
    assert first.request_id != again.request_id
    until(lambda: controller.renewals[-1] == ["e2"])
    cluster.unregister_endpoint(endpoint.endpoint_id)
    assert controller.endpoints == {}


def test_renewing_goes_on_after_the_controller_was_away(cluster: Cluster, controller: Controller, until: Until) -> None:
    controller.lease_s = 0.06
    cluster.register_endpoint("a", "127.0.0.1:1")
    assert controller.server is not None
    controller.server.stop()
    controller.server.start()
    renewed = len(controller.renewals)
    until(lambda: len(controller.renewals) > renewed)


def test_an_endpoint_of_a_job_is_not_renewed(cluster: Cluster, controller: Controller) -> None:
    before = threading.active_count()
    cluster.register_endpoint("a", "127.0.0.1:1", "j1")
    assert controller.registrations[0].job_id == "j1"
    assert threading.active_count() == before


def test_a_forked_child_renews_only_what_is_its_own(cluster: Cluster, controller: Controller, until: Until) -> None:
    controller.lease_s = 0.06
    cluster.register_endpoint("a", "127.0.0.1:1")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(write)
            cluster.register_endpoint("b", "127.0.0.1:2")
            os.read(read, 1)  # until the parent has seen enough
            cluster.close()
            status = 0
        finally:
            os._exit(status)
    os.close(read)
    until(lambda: ["e2"] in controller.renewals)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    renewed = controller.renewals.count(["e1"])
    until(lambda: controller.renewals.count(["e1"]) > renewed + 1)
    assert all(len(each) == 1 for each in controller.renewals)


def test_a_failing_renewal_is_said_and_not_the_end(
    cluster: Cluster, controller: Controller, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    controller.lease_s = 0.06
    cluster.register_endpoint("a", "127.0.0.1:1")
    token, cluster._rpc.token = cluster._rpc.token, "wrong"
    until(lambda: "could not be renewed" in caplog.text)
    cluster._rpc.token = token
    renewed = len(controller.renewals)
    until(lambda: len(controller.renewals) > renewed)


def test_listing_shows_no_keys_unless_the_controller_sends_them(cluster: Cluster, controller: Controller) -> None:
    controller.endpoints["e"] = pb.Endpoint(endpoint_id="e", name="n", address="h:1")
    assert [each.access_key for each in cluster.list_endpoints()] == [None]
