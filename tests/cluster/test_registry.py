from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fluster.cluster.ids import EndpointId, JobId, Namespace
from fluster.cluster.observed import Endpoint
from fluster.cluster.registry import EndpointRegistry
from fluster.cluster.validation import check_endpoint_address, parse_endpoint_address
from fluster.errors import AlreadyExists

NS = Namespace("team")
OTHER_NS = Namespace("others")
JOB = JobId("j1")
OTHER_JOB = JobId("j2")


def ids() -> Iterator[EndpointId]:
    return (EndpointId(f"e{number}") for number in count(1))


@pytest.fixture
def registry() -> EndpointRegistry:
    return EndpointRegistry(ids().__next__)


def test_a_registered_endpoint_is_found_by_name(registry: EndpointRegistry) -> None:
    made = registry.register("calculator", "10.0.0.1:80", JOB, NS, {"kind": "test"})
    assert made == Endpoint(EndpointId("e1"), "calculator", "10.0.0.1:80", JOB, NS, {"kind": "test"})
    assert registry.lookup("calculator", NS) == made
    assert registry.lookup_all("calculator", NS) == [made]


def test_nothing_is_found_under_a_name_nobody_registered(registry: EndpointRegistry) -> None:
    assert registry.lookup("calculator", NS) is None
    assert registry.lookup_all("calculator", NS) == []


def test_several_endpoints_share_a_name_and_are_found_oldest_first(registry: EndpointRegistry) -> None:
    made = [registry.register("w", f"h:{port}", JOB, NS) for port in (3, 1, 2)]
    assert registry.lookup_all("w", NS) == made
    assert registry.lookup("w", NS) == made[0]


def test_a_name_is_valid_in_its_namespace_only(registry: EndpointRegistry) -> None:
    registry.register("w", "h:1", JOB, NS)
    assert registry.lookup_all("w", OTHER_NS) == []


def test_an_unregistered_endpoint_is_gone_and_repeating_is_harmless(registry: EndpointRegistry) -> None:
    made = registry.register("w", "h:1", JOB, NS)
    assert registry.unregister(made.endpoint_id) == made
    assert registry.unregister(made.endpoint_id) is None
    assert registry.lookup("w", NS) is None


def test_cleanup_job_removes_all_endpoints_of_that_job_and_no_others(registry: EndpointRegistry) -> None:
    gone = (registry.register("a", "h:1", JOB, NS), registry.register("b", "h:2", JOB, OTHER_NS))
    kept = registry.register("a", "h:3", OTHER_JOB, NS)
    assert registry.cleanup_job(JOB) == gone
    assert list(registry) == [kept]
    assert registry.cleanup_job(JOB) == ()


def test_an_ended_attempt_takes_its_own_endpoints_along_not_those_of_the_next(registry: EndpointRegistry) -> None:
    old = registry.register("a", "h:1", JOB, NS, owner="attempt-1")
    new = registry.register("a", "h:2", JOB, NS, owner="attempt-2")
    assert registry.owner(old.endpoint_id) == "attempt-1"
    assert registry.cleanup_owner("attempt-1") == (old,)
    assert registry.lookup_all("a", NS) == [new]


def test_endpoints_are_listed_by_prefix_and_namespace(registry: EndpointRegistry) -> None:
    a1, b = registry.register("pool/a", "h:1", JOB, NS), registry.register("other", "h:2", JOB, NS)
    a2 = registry.register("pool/b", "h:3", JOB, OTHER_NS)
    assert registry.list("pool/") == [a1, a2]
    assert registry.list("pool/", NS) == [a1]
    assert registry.list(namespace=NS) == [a1, b]


def test_an_endpoint_made_elsewhere_can_be_added_once(registry: EndpointRegistry) -> None:
    made = Endpoint(EndpointId("x"), "a", "h:1", JOB, NS)
    registry.add(made)
    assert registry.get(EndpointId("x")) == made
    assert EndpointId("x") in registry
    with pytest.raises(AlreadyExists, match="'x'"):
        registry.add(made)


def test_what_was_removed_leaves_nothing_behind_in_any_index(registry: EndpointRegistry) -> None:
    for number in range(100):
        registry.unregister(registry.register("a", "h:1", JOB, NS, owner=f"attempt-{number % 7}").endpoint_id)
    assert [index for index in vars(registry).values() if isinstance(index, dict) and index] == []


def test_ids_made_by_default_differ() -> None:
    registry = EndpointRegistry()
    assert len({registry.register("a", "h:1", JOB, NS).endpoint_id for _ in range(100)}) == 100


def test_the_given_metadata_is_copied(registry: EndpointRegistry) -> None:
    given = {"a": "1"}
    made = registry.register("a", "h:1", JOB, NS, given)
    given["a"] = "2"
    assert made.metadata == {"a": "1"}


@pytest.mark.parametrize("metadata", [{"": "x"}, {"a": 1}, {1: "a"}, {"a": "\ud800"}, ["a"]])
def test_metadata_that_is_no_mapping_of_texts_is_refused(registry: EndpointRegistry, metadata: object) -> None:
    with pytest.raises(ValueError, match="metadata"):
        registry.register("a", "h:1", JOB, NS, metadata)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:80",
        "127.0.0.1:1",
        "localhost:65535",
        "node-1.example.com:8080",
        "[2001:db8::1]:80",
        "[::1]:80",
        "a_b:1",
    ],
)
def test_an_address_is_host_and_port(registry: EndpointRegistry, address: str) -> None:
    assert check_endpoint_address(address) == address
    assert registry.register("a", address, JOB, NS).address == address


def test_an_address_is_taken_apart() -> None:
    assert parse_endpoint_address("[2001:db8::1]:80") == ("2001:db8::1", 80)
    assert parse_endpoint_address("node:8080") == ("node", 8080)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0:1", "[::]:1", "0.1.2.3:80", "[::ffff:0.0.0.0]:80"),
        *("169.254.1.1:80", "[fe80::1]:80", "[fe80::1%eth0]:80", "[::ffff:169.254.169.254]:80"),
        *("169.254.169.254:80", "metadata.google.internal:80", "METADATA.google.internal.:80", "[fd00:ec2::254]:80"),
        *(
            "100.100.100.200:80",
            "2852039166:80",
            "0xa9fea9fe:80",
            "169.254.43518:80",
            "0251.254.169.254:80",
            "a.0x1:80",
        ),
        *("224.0.0.1:80", "255.255.255.255:80", "240.0.0.1:80", "[ff02::1]:80"),
        *("file:///etc/passwd", "http://h:80", "user@host:80", "u:p@host:80", "host:80/path", "host:80?x", "host:80#x"),
        *(
            "host:0",
            "host:65536",
            "host:99999",
            "host:-1",
            "host:+1",
            "host:\uff18\uff10",
            "host:",
            "host",
            ":80",
            "",
            "host:80\n",
        ),
        *(
            "::1:80",
            "[10.0.0.1]:80",
            "[nonsense]:80",
            "[::1]",
            "-a:80",
            "a..b:80",
            "a-:80",
            "x" * 64 + ":80",
            "h ost:80",
        ),
        *("hö:80", "h\0:80", 80, None),
    ],
)
def test_any_other_address_is_refused(registry: EndpointRegistry, address: object) -> None:
    with pytest.raises(ValueError, match=r"^an endpoint's (address|host|port) must be"):
        registry.register("a", address, JOB, NS)  # type: ignore[arg-type]
    assert len(registry) == 0


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 129])
def test_an_endpoints_name_obeys_the_rule_for_names(registry: EndpointRegistry, name: str) -> None:
    with pytest.raises(ValueError, match="an endpoint's name must be 1 to 128 of"):
        registry.register(name, "h:1", JOB, NS)


class AgainstAList(RuleBasedStateMachine):
    """Whatever is done, lookups say what a plain list of the endpoints would."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = EndpointRegistry(ids().__next__)
        self.model: list[tuple[Endpoint, str]] = []

    @rule(name=st.sampled_from("ab"), job=st.sampled_from([JOB, OTHER_JOB]), ns=st.sampled_from([NS, OTHER_NS]))
    def register(self, name: str, job: JobId, ns: Namespace) -> None:
        owner = f"{job}/{len(self.model) % 2}"
        self.model.append((self.registry.register(name, "h:1", job, ns, owner=owner), owner))

    @rule(number=st.integers(0, 9))
    def unregister(self, number: int) -> None:
        if number < len(self.model):
            assert self.registry.unregister(self.model.pop(number)[0].endpoint_id) is not None

    @rule(job=st.sampled_from([JOB, OTHER_JOB]))
    def cleanup_job(self, job: JobId) -> None:
        assert self.registry.cleanup_job(job) == tuple(e for e, _ in self.model if e.job_id == job)
        self.model = [(e, owner) for e, owner in self.model if e.job_id != job]

    @rule(owner=st.sampled_from(["j1/0", "j1/1", "j2/0", "j2/1"]))
    def cleanup_owner(self, owner: str) -> None:
        assert self.registry.cleanup_owner(owner) == tuple(e for e, o in self.model if o == owner)
        self.model = [(e, o) for e, o in self.model if o != owner]

    @invariant()
    def lookups_agree(self) -> None:
        assert list(self.registry) == [e for e, _ in self.model]
        for ns in (NS, OTHER_NS):
            for name in "ab":
                wanted = [e for e, _ in self.model if (e.name, e.namespace) == (name, ns)]
                assert self.registry.lookup_all(name, ns) == wanted


TestAgainstAList = AgainstAList.TestCase
