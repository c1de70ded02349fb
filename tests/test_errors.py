import copy
import inspect
import pickle
import re

import pytest

import fluster
from fluster import errors
from fluster.cluster.types import Cause, JobId, JobInfo, JobStatus

INFO = JobInfo(
    JobId("j1"), "train", JobStatus.FAILED, error_message="ValueError: no", exit_code=1, cause=Cause.EXCEPTION
)

SAMPLES: list[errors.FlusterError] = [
    errors.FlusterError("something"),
    errors.JobNotFound("a1"),
    errors.JobFailed(
        "j1",
        cause=Cause.EXCEPTION,
        exit_code=1,
        remote_message="ValueError: no",
        last_lines=["loading", "stepping"],
        info=INFO,
    ),
    errors.AlreadyExists("request id 'r' was used for another job"),
    errors.NotPermitted("no token"),
    errors.Unreachable("nobody answers at http://127.0.0.1:1", address="http://127.0.0.1:1"),
    errors.ResourceExhausted("too many endpoints"),
    errors.FailedPrecondition("the attempt has ended"),
    errors.NotInCluster("not a task", missing=["FLUSTER_NAMESPACE"]),
    errors.RemoteFault("internal error"),
    errors.ActorError("an actor"),
    errors.ActorNotFound("calculator"),
    errors.ActorUnavailable("gone"),
    errors.ActorCallTimeout("10 s passed"),
    errors.RemoteError("mymodule.Odd: text", type_name="mymodule.Odd", remote_traceback="Traceback …"),
]


def tree_of_classes() -> dict[str, str]:
    """Name of each class of the module and of its base within the module."""
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    return {cls.__name__: cls.__bases__[0].__name__ for cls in classes if cls.__module__ == errors.__name__}


def tree_as_drawn() -> dict[str, str]:
    path: list[str] = []
    parents = {"FlusterError": "Exception"}
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        del path[len(indent) // 4 :]
        parents[name] = path[-1] if path else "FlusterError"
        path.append(name)
    return parents


def test_the_tree_drawn_at_the_top_of_the_module_is_the_tree_there_is() -> None:
    assert tree_as_drawn() == tree_of_classes()


def test_every_error_has_a_sample_here() -> None:
    assert {type(error).__name__ for error in SAMPLES} == set(tree_of_classes())


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_arrives_whole_when_pickled_or_copied(error: errors.FlusterError, copied) -> None:  # type: ignore[no-untyped-def]
    error.add_note("remote traceback")
    arrived = copied(error)
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))


def test_a_subclass_with_another_constructor_is_pickled_too() -> None:
    arrived = pickle.loads(pickle.dumps(OddError(3, colour="red")))
    assert (arrived.number, arrived.colour, str(arrived)) == (3, "red", "3 red")


class OddError(errors.Unreachable):
    def __init__(self, number: int, *, colour: str) -> None:
        super().__init__(f"{number} {colour}")
        self.number = number
        self.colour = colour


def test_an_unreachable_cluster_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError, match="nobody answers"):
        raise errors.Unreachable("nobody answers")


def test_an_actor_call_that_took_too_long_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError, match="10 s"):
        raise errors.ActorCallTimeout("10 s passed")


def test_a_missing_job_is_named_with_what_to_do() -> None:
    error = errors.JobNotFound("a1")
    assert str(error) == "no job 'a1'; `Cluster.list_jobs()` shows those there are"
    assert error.job_id == "a1"


def test_a_failed_job_says_cause_exit_code_and_what_the_job_said() -> None:
    error = errors.JobFailed("j1", cause=Cause.EXCEPTION, exit_code=1, remote_message="ValueError: no")
    assert str(error) == "job 'j1' did not succeed (exception, exit code 1): ValueError: no"
    assert (error.cause, error.exit_code, error.remote_message) == (Cause.EXCEPTION, 1, "ValueError: no")


def test_errors_are_public() -> None:
    assert set(tree_of_classes()) <= set(fluster.__all__)
