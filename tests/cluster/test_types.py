import dataclasses
import functools
import pickle
import re

import pytest

from fluster.cluster.types import (
    Cause,
    Endpoint,
    EndpointId,
    Entrypoint,
    EnvironmentConfig,
    Explanation,
    JobId,
    JobInfo,
    JobRequest,
    JobStatus,
    Namespace,
    Priority,
    ResourceConfig,
    RetryPolicy,
    TaskState,
    TaskStatus,
    VMId,
    VMInfo,
    VMStatus,
    WorkerStatus,
    job_name_of,
)
from fluster.cluster.validation import MAX_SECONDS, check_name

BAD_NUMBERS = [-1, 0, 2**63 - 1, 10**400, float("nan"), float("inf"), float("-inf"), True, "3", None, 1j]
BAD_NAMES = [
    *(
        "",
        "x" * 129,
        "x" * 10_240,
        "../x",
        "a..b",
        "a\0b",
        "a\nb",
        "a\n",
        "\u202eevil",
        "<script>",
        "a b",
        "ü",
        "-a",
        ".a",
        "/a",
    ),
    *(None, 3, b"a"),
]


def add(a: int, b: int = 0) -> int:
    return a + b


def request(**changes: object) -> JobRequest:
    return JobRequest(**{"name": "a", "entrypoint": Entrypoint(callable=add), **changes})  # type: ignore[arg-type]


# States and causes.


def test_exactly_the_three_ends_of_a_job_are_finished() -> None:
    assert {status for status in JobStatus if status.finished()} == {
        JobStatus.SUCCEEDED,
        JobStatus.FAILED,
        JobStatus.STOPPED,
    }


@pytest.mark.parametrize("enum", [JobStatus, TaskState, Cause, Priority, VMStatus, WorkerStatus])
def test_values_of_states_are_their_lower_case_names(enum: type[JobStatus]) -> None:
    assert [member.value for member in enum] == [member.name.lower() for member in enum]


def test_states_and_causes_are_those_of_the_specification() -> None:
    assert " ".join(JobStatus.__members__) == "PENDING RUNNING SUCCEEDED FAILED STOPPED"
    assert " ".join(TaskState.__members__) == "PENDING ASSIGNED BUILDING RUNNING SUCCEEDED FAILED STOPPED"
    assert " ".join(Cause.__members__) == (
        "EXIT EXCEPTION SIGNAL OUT_OF_MEMORY TIME_LIMIT TERMINATED PREEMPTED WORKER_LOST BUILD_FAILED START_FAILED"
        " DISK_FULL UNSCHEDULABLE"
    )
    assert " ".join(Priority.__members__) == "LOW NORMAL HIGH"


# Requests.


def test_a_request_as_the_plan_writes_it_is_made_with_the_documented_defaults() -> None:
    made = JobRequest(
        name="test",
        resources=ResourceConfig.with_cpu(),
        entrypoint=Entrypoint(callable=add),
        environment=EnvironmentConfig(),
    )
    assert (made.retry, made.timeout_s, made.scheduling_timeout_s) == (RetryPolicy(0, 100, 1.0, 60.0), None, None)
    assert (made.priority, made.gang, made.parent, made.request_id, made.ports) == ("normal", True, None, None, ())


def test_the_fields_of_a_request_come_in_the_documented_order() -> None:
    assert " ".join(field.name for field in dataclasses.fields(JobRequest)) == (
        "name entrypoint resources environment retry timeout_s scheduling_timeout_s priority gang parent request_id"
        " ports"
    )


@pytest.mark.parametrize("name", ["a", "0", "train/llm-7b_v1.2", "A" * 128, "a.b", "a/./b"])
def test_names_of_letters_digits_and_the_four_signs_are_taken(name: str) -> None:
    assert request(name=name).name == name


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_any_other_name_is_a_value_error_that_names_the_rule(name: object) -> None:
    with pytest.raises(ValueError, match=r"name must be 1 to 128 of A-Z a-z 0-9 \. _ / -, the first a letter or digit"):
        request(name=name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_an_error_message_is_one_short_line_of_ascii_whatever_was_given(name: object) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_name(name)
    assert re.fullmatch(r"[ -~]{1,250}", str(caught.value))


def test_a_value_whose_repr_raises_is_told_by_its_type() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ValueError, match="got a value of type Odd"):
        request(name=Odd())


@pytest.mark.parametrize("what", ["timeout_s", "scheduling_timeout_s"])
@pytest.mark.parametrize("value", [value for value in BAD_NUMBERS if value is not None], ids=ascii)
def test_a_timeout_that_is_no_positive_finite_number_of_seconds_is_refused(what: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{what} must be a number of seconds above 0"):
        request(**{what: value})


def test_timeouts_from_a_moment_to_ten_years_are_taken() -> None:
    assert request(timeout_s=0.001, scheduling_timeout_s=MAX_SECONDS).timeout_s == 0.001


@pytest.mark.parametrize("given", ["high", Priority.HIGH])
def test_a_priority_is_taken_by_name(given: str) -> None:
    assert request(priority=given).priority is Priority.HIGH


@pytest.mark.parametrize("given", ["hihg", "HIGH", "", None, 3])
def test_an_unknown_priority_is_refused_with_the_known_ones(given: object) -> None:
    with pytest.raises(ValueError, match=r"unknown priority .*high"):
        request(priority=given)


@pytest.mark.parametrize("given", ["r", "x" * 128, "8a7b cc {}'\"; DROP TABLE jobs"])
def test_a_request_id_is_any_short_printable_text(given: str) -> None:
    assert request(request_id=given).request_id == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a\n", "ü", "\0", 3, b"x"], ids=ascii)
def test_any_other_request_id_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="request_id must be 1 to 128 printable ASCII characters"):
        request(request_id=given)


@pytest.mark.parametrize(
    "given", [("",), ("1st",), ("a-b",), ("a", "A"), ("ä",), ("x" * 65,), "http", 3, [f"p{i}" for i in range(65)]]
)
def test_port_names_that_cannot_be_variables_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="ports"):
        request(ports=given)


def test_port_names_are_kept_in_order() -> None:
    assert request(ports=["http", "grpc_2"]).ports == ("http", "grpc_2")


@pytest.mark.parametrize("changes", [{"resources": 3}, {"environment": {}}, {"retry": 3}, {"gang": 1}, {"parent": ""}])
def test_a_part_of_the_wrong_kind_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} must be"):
        request(**changes)


def test_a_bare_function_as_entrypoint_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ValueError, match=r"Entrypoint\.from_callable"):
        request(entrypoint=add)


def test_a_request_has_as_many_tasks_as_replicas_or_vms_of_its_slices() -> None:
    assert request(resources=ResourceConfig(replicas=3)).num_tasks == 3
    assert request(resources=ResourceConfig.with_tpu("v5litepod-16", slice_count=2)).num_tasks == 8


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().name = "b"  # type: ignore[misc]


def test_a_request_can_be_pickled_and_replaced() -> None:
    made = request(ports=("http",), priority="low")
    assert pickle.loads(pickle.dumps(made)) == made
    assert dataclasses.replace(made, name="b").name == "b"


# Entrypoints.


def test_an_entrypoint_holds_a_callable_with_its_arguments() -> None:
    made = Entrypoint.from_callable(add, 1, b=2)
    assert made == Entrypoint(callable=add, args=(1,), kwargs={"b": 2})
    assert made.callable is not None
    assert made.callable(*made.args, **made.kwargs) == 3


def test_arguments_named_like_a_parameter_of_from_callable_reach_the_function() -> None:
    assert Entrypoint.from_callable(dict, fn=1, cls=2).kwargs == {"fn": 1, "cls": 2}


def test_an_entrypoint_holds_a_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert Entrypoint.from_command("echo", "hi", "").command == ("echo", "hi", "")
    assert Entrypoint.from_command(tmp_path / "x").command == (str(tmp_path / "x"),)


@pytest.mark.parametrize(
    "argv",
    [(), ("",), ("a", "b\0"), ("a", 3), ("a", "x" * 131_072), ("\ud800",), ("a",) * 500_001],
    ids=lambda a: ascii(a)[:30],
)
def test_a_command_that_cannot_be_started_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="command"):
        Entrypoint.from_command(*argv)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"callable": 3},
        {"callable": add, "command": ("a",)},
        {"command": ("a",), "args": (1,)},
        {"command": "ls -l"},
    ],
)
def test_an_entrypoint_is_a_callable_or_a_command_and_nothing_between(parts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"callable|command"):
        Entrypoint(**parts)  # type: ignore[arg-type]


def test_from_callable_refuses_what_cannot_be_called() -> None:
    with pytest.raises(ValueError, match="must be something that can be called, got None"):
        Entrypoint.from_callable(None)  # type: ignore[arg-type]


class Callme:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("fn", "name"),
    [(add, "add"), (lambda: 0, "lambda"), (functools.partial(add, 1), "add"), (Callme(), "Callme"), (print, "print")],
)
def test_a_functions_job_is_named_after_it(fn, name: str) -> None:  # type: ignore[no-untyped-def]
    assert job_name_of(fn) == name


@pytest.mark.parametrize("given", ["täglich", "_private", "...", "é", "a..b", "x" * 300, "a b\n"])
def test_a_job_name_made_of_a_function_is_always_a_valid_one(given: str) -> None:
    def fn() -> None: ...

    fn.__name__ = given
    assert check_name(job_name_of(fn))


# Retries.


@pytest.mark.parametrize("what", ["max_failures", "max_preemptions"])
@pytest.mark.parametrize("value", [-1, 2**63 - 1, 1.0, float("nan"), True, "1", None])
def test_a_budget_is_a_whole_number_from_zero(what: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{what} must be a whole number from 0"):
        RetryPolicy(**{what: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["backoff_s", "max_backoff_s"])
@pytest.mark.parametrize("value", [value for value in BAD_NUMBERS if value != 0], ids=ascii)
def test_a_backoff_is_a_finite_number_of_seconds_from_zero(what: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{what} must be a number of seconds from 0"):
        RetryPolicy(**{what: value})  # type: ignore[arg-type]


def test_no_retries_and_no_backoff_are_a_policy() -> None:
    assert RetryPolicy(0, 0, 0, 0).max_preemptions == 0


# What a cluster reports.


def test_the_fields_of_reports_come_in_the_documented_order() -> None:
    def names(kind: type) -> str:
        return " ".join(field.name for field in dataclasses.fields(kind))

    assert names(TaskStatus) == ("index state attempt worker_id exit_code error_message cause started_at finished_at")
    assert names(JobInfo) == (
        "job_id name status error_message exit_code cause pending_reason submitted_at started_at finished_at tasks"
        " parent namespace"
    )
    assert names(Endpoint) == "endpoint_id name address job_id namespace metadata access_key"
    assert names(VMInfo) == "vm_id address status resources hosts"
    assert names(Explanation) == "state reasons would_fit queue_position"


def test_an_access_key_does_not_show_in_a_repr() -> None:
    made = Endpoint(EndpointId("e"), "n", "h:1", JobId("j"), Namespace("ns"), {}, access_key="hush")
    assert "hush" not in repr(made)
    assert made.access_key == "hush"


def test_a_vm_takes_its_status_by_name_and_no_other() -> None:
    assert VMInfo(VMId("v"), "h:1", "starting").status is VMStatus.STARTING  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="melting"):
        VMInfo(VMId("v"), "h:1", "melting")  # type: ignore[arg-type]


def test_an_explanation_prints_as_state_place_and_reasons() -> None:
    made = Explanation(JobStatus.PENDING, ("2 cpu needed, 1 free", "largest worker: 4 cpu"), True, 3)
    assert str(made) == "pending, number 3 in the queue\n  2 cpu needed, 1 free\n  largest worker: 4 cpu"
