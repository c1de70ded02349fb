"""Service discovery over the wire: addresses that mean something, owners, leases, namespaces, keys."""

from __future__ import annotations

import pytest
from tests.cluster.controller.remote import Api, Site, launch, new_id, site, terminate, wait_for

from fluster import Cluster
from fluster.cluster.controller.core.state import Settings
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

HERE = "127.0.0.1:1234"


def registration(name: str = "service", address: str = HERE, **fields: object) -> pb.RegisterEndpointRequest:
    return pb.RegisterEndpointRequest(**{"request_id": new_id(), "name": name, "address": address, **fields})  # type: ignore[arg-type]


def names(api: Api, prefix: str = "", namespace: str = "") -> list[str]:
    return [each.name for each in api(pb.ListEndpointsRequest(prefix=prefix, namespace=namespace)).endpoints]


@pytest.mark.parametrize("as_json", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0:1", "the unspecified address"),
        ("[::]:80", "the unspecified address"),
        ("169.254.1.1:80", "a link-local address"),
        ("[fe80::1]:80", "a link-local address"),
        ("169.254.169.254:80", "a cloud's metadata service"),
        ("metadata.google.internal:80", "a cloud's metadata service"),
        ("2852039166:80", "not an IPv4 address in its usual form"),
        ("file:///etc/passwd", "'host:port', without scheme, user or path"),
        ("http://host:80", "'host:port', without scheme, user or path"),
        ("user@host:80", "'host:port', without scheme, user or path"),
        ("host:0", "from 1 to 65535"),
        ("host:65536", "from 1 to 65535"),
        ("host", "'host:port', without scheme, user or path"),
        ("", "'host:port', without scheme, user or path"),
        ("h\u00f6st:80", "'host:port', without scheme, user or path"),
    ],
)
def test_an_address_that_means_nothing_to_others_is_refused(
    shared: Site, address: str, words: str, as_json: bool
) -> None:
    reply = shared.admin.post(registration(address=address), as_json=as_json)

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message
    cluster = Cluster(shared.address, token=shared.server.token)
    with cluster, pytest.raises(ValueError, match="an endpoint's"):
        cluster.register_endpoint("service", address)


@pytest.mark.parametrize("name", ["", "../x", "a\0", "<script>", "x" * 129])
def test_a_bad_name_is_refused(shared: Site, name: str) -> None:
    reply = shared.admin.post(registration(name))

    assert (reply.code, "an endpoint's name must be 1 to 128 of" in reply.message) == ("invalid_argument", True)


def test_metadata_past_the_quota_are_refused(shared: Site) -> None:
    assert shared.admin.post(registration(metadata={"a": "x" * 16_384})).code == "resource_exhausted"
    assert shared.admin.post(registration(metadata={"": "x"})).code == "invalid_argument"
    assert shared.admin.post(registration(access_key="x" * 257)).code == "invalid_argument"


def test_endpoints_past_the_quota_are_refused() -> None:
    with site(Settings(max_endpoints_per_job=2)) as few:
        _, _, task = few.task(few.worker())
        for _ in range(2):
            task(registration())
            few.admin(registration())

        assert task.post(registration()).code == "resource_exhausted"
        assert few.admin.post(registration()).code == "resource_exhausted"


def test_a_task_registers_its_own_machine_only(alone: Site) -> None:
    _, _, task = alone.task(alone.worker(host="10.1.2.3"))

    for address in ("10.1.2.3:80", "127.0.0.1:80", "localhost:80", "[::1]:80"):
        task(registration(address=address))
    for address in ("10.1.2.4:80", "example.org:80", "[2001:db8::1]:80"):
        reply = task.post(registration(address=address))
        assert (reply.status, reply.code) == (403, "permission_denied")
        assert "10.1.2.3" in reply.message
    alone.admin(registration(address="10.1.2.4:80"))  # the administrator knows best


def test_a_hosts_name_is_compared_as_names_are(alone: Site) -> None:
    _, _, task = alone.task(alone.worker(host="Node-1.Example.org"))

    task(registration(address="node-1.example.org:80"))
    assert task.post(registration(address="node-2.example.org:80")).code == "permission_denied"


def test_another_jobs_endpoints_are_out_of_reach(alone: Site) -> None:
    worker = alone.worker()
    mine, _, task = alone.task(worker)
    other, _, other_task = alone.task(worker)
    endpoint = other_task(registration("other")).endpoint

    assert task.post(registration(job_id=other)).code == "permission_denied"
    withdrawal = pb.UnregisterEndpointRequest(request_id=new_id(), endpoint_id=endpoint.endpoint_id)
    assert task.post(withdrawal).code == "permission_denied"
    renewed = task(pb.RenewEndpointsRequest(endpoint_ids=[endpoint.endpoint_id]))
    assert list(renewed.unknown_endpoint_ids) == [endpoint.endpoint_id]
    assert [each.job_id for each in task(pb.LookupEndpointsRequest(name="other")).endpoints] == [other]
    other_task(withdrawal)
    other_task(withdrawal)  # harmless
    assert names(task) == []
    assert task(registration()).endpoint.job_id == mine


def test_nothing_is_registered_for_a_job_of_which_nothing_runs(alone: Site) -> None:
    worker = alone.worker()
    waiting = launch(alone.admin, cpu=1000.0)
    ended, uid, _ = alone.task(worker)
    worker.end(uid)

    for job_id in (waiting, ended):
        reply = alone.admin.post(registration(job_id=job_id))
        assert (reply.status, reply.code) == (400, "failed_precondition")
    assert alone.admin.post(registration(job_id="jabsent")).code == "not_found"


def test_the_administrator_registers_for_the_first_task_that_runs(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2, independent_tasks=True)
    first, second = worker.accept(2)
    worker.end(first)

    endpoint = alone.admin(registration(job_id=job_id)).endpoint
    assert (endpoint.job_id, names(alone.admin)) == (job_id, ["service"])
    worker.end(second)
    assert names(alone.admin) == []


def test_endpoints_go_with_their_attempt(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    response = task(registration())
    assert response.lease_s == 0
    assert names(task) == ["service"]

    worker.end(uid)

    assert names(alone.admin) == []
    assert not alone.admin(pb.LookupEndpointsRequest(name="service")).endpoints
    assert alone.admin(pb.GetJobStatusRequest(job_id=job_id)).job.finished_at


def test_job_termination_cleans_up_endpoints(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    task(registration())

    terminate(alone.admin, job_id)
    assert names(alone.admin) == ["service"]  # its process may still answer
    worker.sync()
    worker.end(uid, 143, stop_requested=True)

    assert names(alone.admin) == []


def test_a_task_looks_into_its_own_namespace_only(alone: Site) -> None:
    worker = alone.worker()
    _, _, task = alone.task(worker, namespace="team")
    task(registration("inside"))
    alone.admin(registration("outside"))

    assert names(task) == ["inside"]
    assert alone.admin(pb.ListEndpointsRequest()).namespace == "default"
    assert task(pb.ListEndpointsRequest()).namespace == "team"
    assert not task(pb.LookupEndpointsRequest(name="outside")).endpoints
    for request in (
        pb.LookupEndpointsRequest(name="outside", namespace="default"),
        pb.ListEndpointsRequest(namespace="default"),
        registration(namespace="default"),
    ):
        assert task.post(request).code == "permission_denied"
    assert names(alone.admin, namespace="team") == ["inside"]
    assert alone.admin.post(pb.ListEndpointsRequest(namespace="../x")).code == "invalid_argument"


def test_keys_are_told_to_who_looks_up_only(shared: Site) -> None:
    request = registration("keyed", access_key="0123abcd", metadata={"a": "\u00fc"})
    registered = shared.admin(request).endpoint

    (found,) = shared.admin(pb.LookupEndpointsRequest(name="keyed")).endpoints
    (listed,) = shared.admin(pb.ListEndpointsRequest(prefix="keyed")).endpoints

    assert (registered.access_key, found.access_key, listed.access_key) == ("", "0123abcd", "")
    assert dict(found.metadata) == {"a": "\u00fc"}


def test_endpoints_are_listed_oldest_first_by_the_beginning_of_their_names(shared: Site) -> None:
    for name in ("list/b", "list/a", "lost"):
        shared.admin(registration(name))

    assert names(shared.admin, "list/") == ["list/b", "list/a"]
    assert names(shared.admin, "lis' OR '1'='1") == []


def test_an_endpoint_that_is_registered_twice_is_one(shared: Site) -> None:
    request = registration("once")
    first, again = shared.admin(request), shared.admin(request)

    assert first.endpoint.endpoint_id == again.endpoint.endpoint_id
    assert names(shared.admin, "once") == ["once"]
    assert (
        shared.admin.post(registration("once", request_id=request.request_id, access_key="k")).code == "already_exists"
    )
    shared.admin(pb.UnregisterEndpointRequest(request_id=new_id(), endpoint_id=first.endpoint.endpoint_id))
    assert shared.admin.post(request).code == "failed_precondition"


def test_a_leased_endpoint_ends_unless_it_is_renewed() -> None:
    with site(Settings(endpoint_lease_s=1.2)) as brief:
        kept, left = (brief.admin(registration(name)).endpoint.endpoint_id for name in ("kept", "left"))

        def renewed() -> bool:
            assert not brief.admin(pb.RenewEndpointsRequest(endpoint_ids=[kept])).unknown_endpoint_ids
            return names(brief.admin) == ["kept"]

        wait_for(renewed, "the endpoint that nobody renews to end")
        unknown = brief.admin(pb.RenewEndpointsRequest(endpoint_ids=[left, kept, "ep-absent"])).unknown_endpoint_ids
        assert list(unknown) == [left, "ep-absent"]


def test_a_client_outside_of_jobs_keeps_its_endpoints() -> None:
    with site(Settings(endpoint_lease_s=1.2)) as brief:
        with Cluster(brief.address, token=brief.server.token) as cluster:
            assert cluster.namespace == "default"
            endpoint = cluster.register_endpoint("kept", HERE, metadata={"a": "b"}, access_key="secret")
            other = brief.admin(registration("left")).endpoint
            wait_for(lambda: names(brief.admin) == ["kept"], f"{other.name} to end")
            (found,) = cluster.lookup_endpoints("kept")
            assert (found.endpoint_id, found.access_key) == (endpoint.endpoint_id, "secret")
            assert endpoint.access_key is None
        wait_for(lambda: names(brief.admin) == [], "the lease to end with its client")
