"""Everything Fluster raises on purpose, as one tree.

FlusterError
├── JobNotFound             no such job, or none the caller may see
├── JobFailed               a job that was waited for did not succeed
├── AlreadyExists           the request id or name is taken by something else
├── NotPermitted            no token, a wrong one, or one that does not reach so far
├── Unreachable             nobody answered (also a ConnectionError)
├── ResourceExhausted       a quota or a size limit is spent
├── FailedPrecondition      right request, wrong moment: the state of things does not allow it
├── NotInCluster            a task's variables are missing or incomplete
├── RemoteFault             the other side failed in a way it did not expect
└── ActorError
    ├── ActorNotFound       nothing is registered under the name
    ├── ActorUnavailable    its registration is gone; whether the call ran is unknown
    ├── ActorCallTimeout    the call's deadline passed (also a TimeoutError)
    └── RemoteError         the remote exception or result could not be rebuilt here

A wrong argument is a `ValueError`, a wait that took too long a `TimeoutError`; both are Python's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluster.cluster.types import Cause, JobInfo


class FlusterError(Exception):
    """Base of all errors Fluster raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The text without notes."""
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args` alone, which breaks every subclass whose arguments are not its text.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[FlusterError], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> FlusterError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class JobNotFound(FlusterError):
    """No such job, or none that the caller may see: the two look the same."""

    job_id: str

    def __init__(self, job_id: str, message: str | None = None) -> None:
        super().__init__(message or f"no job {job_id!r}; `Cluster.list_jobs()` shows those there are")
        self.job_id = job_id


class JobFailed(FlusterError):
    """A job that was waited for did not succeed.

    Attributes:
        job_id: The job.
        cause: Why the task that decided ended; `None` if unknown.
        exit_code: Its exit code, 128+n for signal n; `None` if nothing ran.
        remote_message: The job's own `error_message`.
        last_lines: What the task printed last, oldest first.
        info: The job as last seen; `None` where only a pool's task failed.
    """

    job_id: str
    cause: Cause | None
    exit_code: int | None
    remote_message: str
    last_lines: tuple[str, ...]
    info: JobInfo | None

    def __init__(
        self,
        job_id: str,
        *,
        cause: Cause | None = None,
        exit_code: int | None = None,
        remote_message: str = "",
        last_lines: Sequence[str] = (),
        info: JobInfo | None = None,
        message: str | None = None,
    ) -> None:
        super().__init__(message or _job_failed_text(job_id, cause, exit_code, remote_message))
        self.job_id = job_id
        self.cause = cause
        self.exit_code = exit_code
        self.remote_message = remote_message
        self.last_lines = tuple(last_lines)
        self.info = info


def _job_failed_text(job_id: str, cause: str | None, exit_code: int | None, remote_message: str) -> str:
    facts = [str(cause)] if cause else []
    facts += [f"exit code {exit_code}"] if exit_code is not None else []
    head = f"job {job_id!r} did not succeed" + (f" ({', '.join(facts)})" if facts else "")
    return f"{head}: {remote_message}" if remote_message else head


class AlreadyExists(FlusterError):
    """The request id was used with another body, or the name is taken."""


class NotPermitted(FlusterError):
    """The token is missing, wrong, ended, or does not reach so far."""


class Unreachable(FlusterError, ConnectionError):
    """Nobody answered at the address; what was asked may or may not have happened."""

    address: str | None

    def __init__(self, message: str, *, address: str | None = None) -> None:
        super().__init__(message)
        self.address = address


class ResourceExhausted(FlusterError):
    """A quota, a size limit or a queue is spent; asking later or for less may help."""


class FailedPrecondition(FlusterError):
    """The request is right, the state of things does not allow it; asking again alone does not help."""


class NotInCluster(FlusterError):
    """What only a task can do was asked outside of one, or a task's variables are incomplete.

    Attributes:
        missing: Names of the variables that are not set.
    """

    missing: tuple[str, ...]

    def __init__(self, message: str, *, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class RemoteFault(FlusterError):
    """The other side failed in a way it did not expect; its log has the details."""


class ActorError(FlusterError):
    """Base of what can go wrong between a caller and an actor."""


class ActorNotFound(ActorError):
    """Nothing is registered under the name."""

    name: str

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__(message or f"no actor {name!r} is registered; `ActorPool.wait_for_size()` waits for one")
        self.name = name


class ActorUnavailable(ActorError):
    """The actor's registration is gone; whether the call ran is unknown."""


class ActorCallTimeout(ActorError, TimeoutError):
    """The call's deadline passed before its reply came."""


class RemoteError(ActorError):
    """The remote exception or result could not be rebuilt here; the text holds what is known of it.

    Attributes:
        type_name: Name of the original exception's type; empty if there was none.
        remote_traceback: Formatted where it happened; empty if unknown.
    """

    type_name: str
    remote_traceback: str

    def __init__(self, message: str, *, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback
