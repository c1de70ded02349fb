"""What may not be in a request: refused by the rule it breaks, on the wire, and by clients before anything is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
from protobuf import Message, Oneof
from tests.cluster.controller.remote import Site, callable_of, command, inline, job_spec, new_id

from fluster import Entrypoint, EnvironmentConfig, GpuConfig, JobRequest, ResourceConfig, RetryPolicy, TpuConfig
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

BAD_NAMES = {
    "empty": "",
    "10 KB": "a" * 10_000,
    "path": "../x",
    "dots inside": "a/../b",
    "NUL": "a\0b",
    "newline": "a\nb",
    "right-to-left override": "a\u202eb",
    "markup": "<script>",
    "leading dash": "-a",
    "SQL": "a'; DROP TABLE jobs; --",
}
NUMBERS = {"-1": -1, "0": 0, "2^63-1": 2**63 - 1, "NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
MANY = {f"V{index}": "1" for index in range(10_000)}


def resources(**fields: Any) -> types_pb.ResourceSpec:
    return types_pb.ResourceSpec(**{"cpu": 1.0, "memory_bytes": 1_000_000, "replicas": 1, **fields})


def gpu(variant: str, count: int = 1) -> types_pb.ResourceSpec:
    device = types_pb.GpuDevice(variant=variant, count=count)
    return resources(device=Oneof[Literal["gpu"], types_pb.GpuDevice]("gpu", device))


def tpu(variant: str) -> types_pb.ResourceSpec:
    return resources(device=Oneof[Literal["tpu"], types_pb.TpuDevice]("tpu", types_pb.TpuDevice(variant=variant)))


def env(**variables: str) -> types_pb.EnvironmentSpec:
    return types_pb.EnvironmentSpec(env_vars=variables)


def limited(what: str, seconds: float) -> types_pb.JobSpec:
    fields: dict[str, Any] = {what: seconds}
    return job_spec(**fields)


# What is wrong, the job, words of the refusal.
BAD_SPECS: list[tuple[str, types_pb.JobSpec, str]] = [
    *((f"name {label}", job_spec(name), "name must be 1 to 128 of") for label, name in BAD_NAMES.items()),
    *(
        (f"cpu {label}", job_spec(resources=resources(cpu=float(number))), "cpu must be a number of cores")
        for label, number in NUMBERS.items()
    ),
    *(
        (f"memory {label}", job_spec(resources=resources(memory_bytes=number)), "memory must be bytes")
        for label, number in NUMBERS.items()
        if isinstance(number, int)
    ),
    *(
        (f"disk {label}", job_spec(resources=resources(disk_bytes=number)), "disk must be bytes")
        for label, number in NUMBERS.items()
        if isinstance(number, int)
    ),
    *(
        (f"{what} {label}", limited(what, float(number)), f"{what} must be a number of seconds above 0")
        for what in ("timeout_s", "scheduling_timeout_s")
        for label, number in NUMBERS.items()
    ),
    ("replicas -1", job_spec(replicas=-1), "replicas must be a whole number from 1"),
    ("replicas too many", job_spec(replicas=10_001), "replicas must be a whole number from 1 to 10000"),
    ("tasks that do not add up", job_spec(num_tasks=7), "num_tasks must be 1, what its resources mean"),
    ("gpu variant", job_spec(resources=gpu("H10O")), "the nearest are H100"),
    ("gpu count", job_spec(resources=gpu("H100", 0)), "the GPU count must be a whole number from 1"),
    ("tpu variant", job_spec(resources=tpu("v5litepod-17")), "the nearest are v5litepod-1, v5litepod-16"),
    ("memory as written", job_spec(resources=resources(memory="2GB" * 1000)), "memory must be a text of 1 to"),
    ("place", job_spec(resources=resources(zones=["a b"])), "zones must be 1 to 63"),
    ("variable with =", job_spec(environment=env(**{"A=B": "1"})), "without '=' and NUL"),
    ("variable with NUL", job_spec(environment=env(**{"A\0": "1"})), "without '=' and NUL"),
    ("value with NUL", job_spec(environment=env(A="1\0")), "without NUL"),
    ("empty variable", job_spec(environment=env(**{"": "1"})), "without '=' and NUL"),
    ("reserved variable", job_spec(environment=env(FLUSTER_TOKEN="1")), "outside FLUSTER_*"),
    ("10,000 variables", job_spec(environment=env(**MANY)), "at most 4096 variables, got 10000"),
    (
        "reserved secret",
        job_spec(environment=types_pb.EnvironmentSpec(secrets={"FLUSTER_X": "1"})),
        "outside FLUSTER_*",
    ),
    (
        "variables and secrets over 128 KB",
        job_spec(environment=types_pb.EnvironmentSpec(env_vars={"A": "x" * 70_000}, secrets={"B": "x" * 70_000})),
        "env_vars and secrets must be at most 128000 bytes",
    ),
    (
        "secrets that say they are sealed",
        job_spec(environment=types_pb.EnvironmentSpec(sealed_secrets=b"x")),
        "sealed_secrets must be empty",
    ),
    ("over 128 KB of variables", job_spec(environment=env(A="x" * 70_000, B="x" * 70_000)), "at most 128000 bytes"),
    (
        "directory",
        job_spec(environment=types_pb.EnvironmentSpec(working_directory="/a\0b")),
        "working_directory must be a text",
    ),
    ("import path", job_spec(environment=types_pb.EnvironmentSpec(import_path=["/a\0b"])), "entry of import_path"),
    ("interpreter", job_spec(environment=types_pb.EnvironmentSpec(python="three")), "python must be a version"),
    ("package", job_spec(environment=types_pb.EnvironmentSpec(pip_packages=["--index-url=x"])), "not an option"),
    ("extra", job_spec(environment=types_pb.EnvironmentSpec(extras=["a b"])), "entry of extras must be"),
    ("image", job_spec(environment=types_pb.EnvironmentSpec(docker_image="a b")), "docker_image must be 1 to 512"),
    ("port name", job_spec(ports=["9lives"]), "a name in ports must be"),
    ("same ports", job_spec(ports=["a", "A"]), "ports must be names that differ in more than case"),
    ("retries", job_spec(retry=types_pb.RetrySpec(max_failures=-1)), "max_failures must be a whole number from 0"),
    ("backoff", job_spec(retry=types_pb.RetrySpec(backoff_s=math.nan)), "backoff_s must be a number of seconds from 0"),
    ("no entrypoint", types_pb.JobSpec(name="a"), "entrypoint must be a callable or a command"),
    ("no program", job_spec(entrypoint=command()), "a command must be at least a program"),
    ("argument with NUL", job_spec(entrypoint=command("echo", "a\0")), "an argument of a command must be"),
    ("a long argument", job_spec(entrypoint=command("echo", "x" * 131_072)), "an argument of a command must be"),
    (
        "another hash",
        job_spec(entrypoint=callable_of(types_pb.Payload(content=inline(b"x").content, sha256="0" * 64))),
        "must have the sha256 that came with it",
    ),
    (
        "no hash",
        job_spec(entrypoint=callable_of(types_pb.Payload(content=inline(b"x").content, sha256="xyz"))),
        "the sha256 of entrypoint must be 64 lower-case hex digits",
    ),
    ("over 64 KiB in place", job_spec(entrypoint=callable_of(inline(bytes(65_537)))), "at most 65536 bytes in place"),
    ("parent", job_spec(parent="p" * 129), "job_id must be 1 to 128 printable"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize(("spec", "words"), [case[1:] for case in BAD_SPECS], ids=[case[0] for case in BAD_SPECS])
def test_a_bad_job_is_refused_by_the_rule_it_breaks(
    shared: Site, spec: types_pb.JobSpec, words: str, as_json: bool
) -> None:
    reply = shared.admin.post(pb.LaunchJobRequest(request_id=new_id(), spec=spec), as_json=as_json)

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message
    assert len(reply.text) < 2_000
    assert "Traceback" not in reply.text


TRUE = Entrypoint.from_command("true")


def job(**fields: Any) -> JobRequest:
    return JobRequest(**{"name": "job", "entrypoint": TRUE, **fields})


# What is wrong, how a client says it, words of the refusal: the same as on the wire.
BAD_REQUESTS: list[tuple[str, Callable[[], object], str]] = [
    *(
        (f"name {label}", lambda name=name: job(name=name), "name must be 1 to 128 of")
        for label, name in BAD_NAMES.items()
    ),
    *(
        (f"cpu {label}", lambda number=number: ResourceConfig(cpu=number), "cpu must be a number of cores")
        for label, number in NUMBERS.items()
    ),
    *(
        (f"memory {label}", lambda number=number: ResourceConfig(memory=number), "memory must be bytes")
        for label, number in NUMBERS.items()
    ),
    *(
        (f"timeout {label}", lambda number=number: job(timeout_s=number), "timeout_s must be a number of seconds")
        for label, number in NUMBERS.items()
    ),
    ("gpu variant", lambda: GpuConfig("H10O"), "the nearest are H100"),
    ("tpu variant", lambda: TpuConfig("v5litepod-17"), "the nearest are v5litepod-1, v5litepod-16"),
    ("variable with =", lambda: EnvironmentConfig(env_vars={"A=B": "1"}), "without '=' and NUL"),
    ("variable with NUL", lambda: EnvironmentConfig(env_vars={"A\0": "1"}), "without '=' and NUL"),
    ("reserved variable", lambda: EnvironmentConfig(env_vars={"FLUSTER_X": "1"}), "outside FLUSTER_*"),
    ("10,000 variables", lambda: EnvironmentConfig(env_vars=MANY), "at most 4096 variables, got 10000"),
    ("over 128 KB", lambda: EnvironmentConfig(env_vars={"A": "x" * 128_001}), "at most 128000 bytes"),
    ("retries", lambda: RetryPolicy(max_failures=-1), "max_failures must be a whole number from 0"),
    ("request id", lambda: job(request_id="a\nb"), "request_id must be 1 to 128 printable"),
    ("port name", lambda: job(ports=("9lives",)), "a name in ports must be"),
]


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in BAD_REQUESTS], ids=[case[0] for case in BAD_REQUESTS])
def test_a_client_refuses_it_by_the_same_rule_before_anything_is_sent(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def launch_request(**fields: Any) -> pb.LaunchJobRequest:
    return pb.LaunchJobRequest(**{"request_id": new_id(), "spec": job_spec(), **fields})


BAD_CALLS: list[tuple[str, Message, str]] = [
    ("no request id", launch_request(request_id=""), "request_id must be 1 to 128 printable"),
    ("long request id", launch_request(request_id="x" * 129), "request_id must be 1 to 128 printable"),
    ("request id with NUL", launch_request(request_id="a\0"), "request_id must be 1 to 128 printable"),
    ("namespace", launch_request(namespace="../x"), "namespace must be 1 to 128 of"),
    ("no spec", launch_request(spec=None), "spec must be given"),
    ("no jobs", pb.LaunchJobsRequest(request_id="a"), "the number of specs must be 1 to 1000"),
    ("jobs", pb.LaunchJobsRequest(request_id="a", specs=[job_spec()] * 1_001), "the number of specs must be 1 to 1000"),
    (
        "tasks",
        pb.LaunchJobsRequest(request_id="a", specs=[job_spec(replicas=10_000)] * 11),
        "the number of tasks in all must be at most 100000",
    ),
    ("no job id", pb.GetJobStatusRequest(), "job_id must be 1 to 128 printable"),
    ("long job id", pb.GetJobStatusRequest(job_id="j" * 100_000), "job_id must be 1 to 128 printable"),
    ("terminate without id", pb.TerminateJobRequest(job_id="a"), "request_id must be 1 to 128"),
    ("page size", pb.ListJobsRequest(page_size=1_001), "page_size must be 0 to 1000"),
    ("negative page size", pb.ListJobsRequest(page_size=-1), "page_size must be 0 to 1000"),
    ("status", pb.ListJobsRequest(status=types_pb.JobStatus(99)), "status must be a known JobStatus, got 99"),
    ("page token", pb.ListJobsRequest(page_token="eyJhIjogMX0="), "page_token must be one that a listing"),
    ("page token that is no base64", pb.ListJobsRequest(page_token="\u20ac"), "page_token must be one that a listing"),
    ("deep page token", pb.ListJobsRequest(page_token="W1tb" * 100_000), "page_token must be one that a listing"),
    ("no jobs to wait for", pb.WaitJobsRequest(wait_s=1), "the number of job_ids must be 1 to 10000"),
    ("wait", pb.WaitJobsRequest(job_ids=["a"], wait_s=math.nan), "wait_s must be a number of seconds from 0"),
    ("negative wait", pb.WaitJobsRequest(job_ids=["a"], wait_s=-1), "wait_s must be a number of seconds from 0"),
    ("events", pb.ListEventsRequest(page_size=5_000), "page_size must be 0 to 1000"),
    ("token kind", pb.CreateTokenRequest(request_id="a"), "kind must be JOIN"),
    (
        "unknown token kind",
        pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind(7)),
        "kind must be a known TokenKind",
    ),
    (
        "token uses",
        pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind.JOIN, uses=-1),
        "uses must be a whole number",
    ),
    (
        "token life",
        pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind.JOIN, ttl_s=-1),
        "ttl_s must be a number of",
    ),
    (
        "endless",
        pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind.JOIN, ttl_s=math.inf),
        "ttl_s must be a number of",
    ),
    (
        "a year",
        pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind.JOIN, ttl_s=4e7),
        "ttl_s must be at most 2592000",
    ),
    ("hash", pb.PutBlobRequest(sha256="../../etc/passwd", total_size=1), "sha256 must be 64 lower-case hex digits"),
    ("chunk", pb.PutBlobRequest(sha256="0" * 64, offset=2, chunk=b"a", total_size=1), "do not lie in a blob"),
    ("another's hash", pb.PutBlobRequest(sha256="0" * 64, chunk=b"a", total_size=1), "do not have the hash"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize(("request_", "words"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS])
def test_a_bad_request_is_refused_by_the_rule_it_breaks(
    shared: Site, request_: Message, words: str, as_json: bool
) -> None:
    reply = shared.admin.post(request_, as_json=as_json)

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message
    assert len(reply.text) < 2_000


def test_an_unknown_priority_is_refused(shared: Site) -> None:
    spec = job_spec(priority=types_pb.Priority(42))
    reply = shared.admin.post(launch_request(spec=spec), as_json=False)

    assert (reply.code, reply.message) == ("invalid_argument", "priority must be a known Priority, got 42")


def test_an_enum_value_that_json_does_not_know_is_named(shared: Site) -> None:
    reply = shared.admin.post_bytes("ListJobs", b'{"status": "JOB_STATUS_LOST"}')

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert "JOB_STATUS_LOST" in reply.message


def test_a_field_that_json_does_not_know_is_named(shared: Site) -> None:
    reply = shared.admin.post_bytes("GetJobStatus", b'{"jobld": "a"}')

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert "jobld" in reply.message


def test_a_field_that_protobuf_does_not_know_is_passed_over(shared: Site) -> None:
    unknown = bytes([0xFA, 0x7F, 2]) + b"hi"  # field 2047, two bytes
    reply = shared.admin.post_bytes("ListJobs", unknown, "application/proto")

    assert reply.status == 200


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\x0a\x7fshort", "application/proto"),  # cut off
        (bytes(range(256)) * 4, "application/proto"),
        (b"\x0a\x02\xff\xfe", "application/proto"),  # no UTF-8
        (b'{"jobId": "\xff\xfe"}', "application/json"),
        (b'{"jobId": "\\ud800"}', "application/json"),  # half a character
        (b'{"jobId": 5}', "application/json"),
        (b'{"jobId": "a"', "application/json"),
        (b"[1, 2]", "application/json"),
        (b'{"a":' * 1_000, "application/json"),
        (b"[" * 100_000, "application/json"),
    ],
)
def test_a_body_that_is_no_message_is_an_invalid_argument(shared: Site, body: bytes, content_type: str) -> None:
    reply = shared.admin.post_bytes("GetJobStatus", body, content_type)

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert len(reply.text) < 2_000
    assert "Traceback" not in reply.text


def test_numbers_that_are_none_are_refused_in_json_too(shared: Site) -> None:
    for word in (b'"NaN"', b'"Infinity"', b'"-Infinity"'):
        body = (
            b'{"requestId": "r", "spec": {"name": "a", "entrypoint": {"command": {"argv": ["true"]}},'
            b'"resources": {"cpu": ' + word + b', "memoryBytes": "1000000"}}}'
        )
        reply = shared.admin.post_bytes("LaunchJob", body)
        assert (reply.status, reply.code) == (400, "invalid_argument")
        assert "cpu must be a number of cores" in reply.message
