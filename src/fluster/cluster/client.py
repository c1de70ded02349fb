"""A cluster as its users see it: launch jobs, wait for them, read what they printed, find endpoints."""

from __future__ import annotations

import os
import re
import sys
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, overload

from protobuf import Message

from fluster.cluster import transfer, waiting, wire
from fluster.cluster.context import CA_FILE, TOKEN, TOKEN_FILE, TaskContext, normal_address
from fluster.cluster.ids import EndpointId, JobId, Namespace
from fluster.cluster.leases import LeaseKeeper
from fluster.cluster.log_reader import read_logs
from fluster.cluster.observed import Endpoint, Event, Explanation, JobInfo, LogLine, WorkerInfo
from fluster.cluster.states import JobStatus
from fluster.cluster.transfer import RETRY_S
from fluster.cluster.types import Entrypoint, JobRequest, job_name_of
from fluster.cluster.validation import check_id, check_name
from fluster.errors import RemoteFault
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import JobSpec, Payload
from fluster.rpc.trust import Trust, split_pin

if TYPE_CHECKING:
    from types import TracebackType

    from fluster.cluster.job import Job
    from fluster.cluster.surroundings import Surroundings
    from fluster.cluster.workspace import Workspace, Workspaces

M = TypeVar("M", bound=Message)
AnyJob: TypeAlias = "JobId | str | Job"
"""A job, by its id or by the handle that `Cluster.submit` gave."""

SERVICE = "fluster.cluster.v1.ControllerService"
_PAGE = 1_000
# All entrypoints of a group that travel in one message.
_GROUP_INLINE_BYTES = 2 * 1024 * 1024


class Cluster:
    """A cluster whose controller listens at an address. Nothing is sent before the first call.

    A job is named by its id or by its handle. May be shared by threads; a forked child may go on using its copy. A
    controller that restarts is waited for: 30 s by whatever launches, waits or follows, 10 s by what only looks; one
    that was never there fails at once.

    Args:
        address: ``http://host:port``, ``https://host:port`` or ``host:port``.
        namespace: Where endpoints are registered and looked up, and jobs belong; `None`: the calling job's, else the
            controller's default.
        token: Default: inside a job that job's; else `FLUSTER_TOKEN`, `FLUSTER_TOKEN_FILE`, the configured cluster's.
            Whom to believe about an https address: `FLUSTER_CA_FILE`, else the configured cluster's `ca_file`, else
            the authority that the token names, else the system's.

    Raises:
        ValueError: Address, namespace or token break a rule.
        NotInCluster: This is a job's process whose variables are incomplete.
    """

    def __init__(self, address: str, namespace: str | None = None, *, token: str | None = None) -> None:
        self._address = normal_address(address)
        self._task = _own_task(self._address)
        if namespace is not None:
            check_name(namespace, "namespace")
        self._namespace = namespace if namespace is not None or self._task is None else self._task.namespace
        token, trust = _find_credentials(self._address, token, self._task)
        self._rpc = ConnectClient(
            self._address,
            SERVICE,
            token=token,
            known=self._task is not None or self._surroundings() is not None,
            trust=trust,
        )
        self._leases = LeaseKeeper(self._rpc)
        self._workspaces: Workspaces | None = None
        self._closers: list[weakref.WeakMethod[Callable[[], None]]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r}, namespace={self._namespace!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and stop renewing endpoints; jobs go on. Repeating it is harmless."""
        while self._closers:
            if (closer := self._closers.pop()()) is not None:
                closer()
        self._leases.stop()
        self._rpc.close()
        self._leases.join()

    @property
    def address(self) -> str:
        """Of the controller: ``http://host:port``."""
        return self._address

    @property
    def namespace(self) -> Namespace:
        """Where this client's jobs belong and endpoints are looked up; asked of the controller if nobody said."""
        if self._namespace is None:
            # No name begins with a space, so this lists nothing.
            reply = self._call("ListEndpoints", pb.ListEndpointsRequest(prefix=" "), pb.ListEndpointsResponse)
            self._namespace = reply.namespace or "default"
        return Namespace(self._namespace)

    def launch(self, request: JobRequest) -> JobId:
        """Launch a job; it is durable when this returns.

        The same `request_id` gives the same job, now or later.

        Raises:
            TypeError: Something of the entrypoint cannot be pickled; the message names it.
            ValueError: The workspace cannot be sent: too large, or not to be unpacked elsewhere.
            AlreadyExists: The request id was used for something else.
            ResourceExhausted: A quota or a size limit is spent.
        """
        spec = self._spec(request)
        message = pb.LaunchJobRequest(
            request_id=request.request_id or _new_id(), namespace=self._namespace or "", spec=spec
        )
        return JobId(self._call("LaunchJob", message, pb.LaunchJobResponse, retry_s=RETRY_S).job_id)

    def launch_group(self, requests: Sequence[JobRequest], *, request_id: str | None = None) -> list[JobId]:
        """Launch all of them or none; ids in the order of the requests.

        Args:
            requests: At most 1,000, without request ids of their own.
            request_id: Of the group: the same id gives the same jobs.

        Raises:
            TypeError: Something of an entrypoint cannot be pickled; nothing was launched.
            AlreadyExists: The request id was used for something else.
            ResourceExhausted: A quota or a size limit is spent.
        """
        requests = list(requests)
        if request_id is not None:
            check_id(request_id)
        if any(request.request_id is not None for request in requests):
            raise ValueError("a group has one request id: give it to launch_group, not to its requests")
        if not requests:
            return []
        inline_bytes = min(transfer.INLINE_BYTES, _GROUP_INLINE_BYTES // len(requests))
        specs = [self._spec(each, inline_bytes=inline_bytes) for each in requests]
        message = pb.LaunchJobsRequest(request_id=request_id or _new_id(), namespace=self._namespace or "", specs=specs)
        return [
            JobId(job_id)
            for job_id in self._call("LaunchJobs", message, pb.LaunchJobsResponse, retry_s=RETRY_S).job_ids
        ]

    def submit(self, fn_or_request: Callable[..., Any] | JobRequest, /, *args: Any, **kwargs: Any) -> Job:
        """Launch a function with its arguments, or a request, and get a handle. A function's job is named after it.

        Raises:
            TypeError: What is given is neither, or cannot be pickled.
        """
        from fluster.cluster.job import Job

        if isinstance(fn_or_request, JobRequest):
            if args or kwargs:
                raise TypeError("a JobRequest carries its own arguments: Entrypoint.from_callable(fn, *args, **kwargs)")
            request = fn_or_request
        elif callable(fn_or_request):
            entrypoint = Entrypoint.from_callable(fn_or_request, *args, **kwargs)
            request = JobRequest(name=job_name_of(fn_or_request), entrypoint=entrypoint)
        else:
            raise TypeError(f"submit takes a function or a JobRequest, got a {type(fn_or_request).__name__}")
        return Job(self, self.launch(request))

    def poll(self, job_id: AnyJob) -> JobInfo:
        """The job as last committed.

        Raises:
            JobNotFound: There is none, or none that this client may see.
        """
        reply = self._call("GetJobStatus", pb.GetJobStatusRequest(job_id=_job_id(job_id)), pb.GetJobStatusResponse)
        if reply.job is None:
            raise RemoteFault("the controller's answer holds no job")
        return wire.job_info(reply.job)

    # A str is a sequence of str as well; the first signature wins.
    @overload
    def wait(  # type: ignore[overload-overlap]
        self,
        job_id: AnyJob,
        *,
        timeout: float | None = None,
        raise_on_failure: bool = False,
    ) -> JobInfo: ...

    @overload
    def wait(
        self,
        job_id: Sequence[AnyJob],
        *,
        timeout: float | None = None,
        raise_on_failure: bool = False,
    ) -> list[JobInfo]: ...

    def wait(
        self,
        job_id: AnyJob | Sequence[AnyJob],
        *,
        timeout: float | None = None,
        raise_on_failure: bool = False,
    ) -> JobInfo | list[JobInfo]:
        """Wait until a job, or each of several, has finished. Ctrl-C stops waiting at once and leaves the jobs.

        Args:
            job_id: One, or a sequence; its order is kept.
            timeout: Seconds; `None`: as long as it takes.
            raise_on_failure: Raise for the first job that did not succeed, without waiting for the others.

        Raises:
            TimeoutError: Not all had finished in time.
            JobFailed: With `raise_on_failure`: cause, exit code, the job's message and its last lines.
            JobNotFound: One of them is not there.
        """
        one = isinstance(job_id, str) or not isinstance(job_id, Iterable)
        jobs = job_id if isinstance(job_id, Iterable) and not isinstance(job_id, str) else (job_id,)
        job_ids = [_job_id(each) for each in jobs]
        found = waiting.wait_jobs(self._rpc, job_ids, timeout, until_failure=raise_on_failure)
        if raise_on_failure:
            failed = [found[each] for each in job_ids if each in found]
            for info in failed:
                if info.status is not JobStatus.SUCCEEDED:
                    raise waiting.job_failed(info)
        return found[job_ids[0]] if one else [found[each] for each in job_ids]

    def result(self, job_id: AnyJob, *, task: int = 0, timeout: float | None = None) -> Any:
        """Wait for the end of a job, then give what the entrypoint of one task returned; `None` for a command.

        Raises:
            Exception: What the entrypoint raised, with the remote traceback as a note.
            JobFailed: The job did not succeed for another reason.
            TimeoutError: It had not finished in time.
            RemoteError: Exception or value cannot be rebuilt in this process.
        """
        return waiting.job_result(self._rpc, _job_id(job_id), task, timeout)

    def terminate(self, job_id: AnyJob) -> None:
        """Stop a job with all its descendants: SIGTERM, after at most 10 s SIGKILL. Repeating it is harmless.

        Returns when the wish is durable; the job is STOPPED once nothing of it is left.

        Raises:
            JobNotFound: There is no such job.
        """
        message = pb.TerminateJobRequest(request_id=_new_id(), job_id=_job_id(job_id))
        self._call("TerminateJob", message, pb.TerminateJobResponse, retry_s=RETRY_S)

    def list_jobs(
        self, *, status: JobStatus | str | None = None, name_prefix: str | None = None, limit: int | None = None
    ) -> list[JobInfo]:
        """Jobs, newest first, without their tasks.

        Args:
            status: Only those of this status.
            name_prefix: Only those whose name begins so.
            limit: At most so many; `None`: all.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be at least 0, got {limit}")
        request = pb.ListJobsRequest(
            namespace=self._namespace or "", status=wire.status_filter(status), name_prefix=name_prefix or ""
        )
        jobs: list[JobInfo] = []
        while limit is None or len(jobs) < limit:
            request.page_size = _PAGE if limit is None else min(_PAGE, limit - len(jobs))
            reply = self._call("ListJobs", request, pb.ListJobsResponse)
            jobs += wire.job_infos(reply.jobs)
            request.page_token = reply.next_page_token
            if not reply.next_page_token:
                break
        return jobs

    def logs(
        self,
        job_id: AnyJob,
        *,
        task: int | None = None,
        attempt: int | None = None,
        follow: bool = False,
        tail: int | None = None,
        grep: str | None = None,
    ) -> Iterator[LogLine]:
        """What the job printed: complete, up to the cap, once it has ended.

        Args:
            job_id: The job.
            task: Only of this task.
            attempt: Only of this attempt.
            follow: Go on until the job has ended.
            tail: Of what is there now only the last so many lines.
            grep: Only lines in which this regular expression is found; `tail` counts those.

        Raises:
            ValueError: `grep` is no regular expression, or a number is negative.
            JobNotFound: There is no such job.
        """
        if tail is not None and tail < 0:
            raise ValueError(f"tail must be at least 0, got {tail}")
        try:
            pattern = re.compile(grep) if grep is not None else None
        except re.error as error:
            raise ValueError(f"grep is no regular expression: {error}") from None
        return read_logs(
            self._rpc, _job_id(job_id), task=task, attempt=attempt, follow=follow, tail=tail, pattern=pattern
        )

    def monitor(self, job_id: AnyJob) -> JobInfo:
        """Print what the job prints until it has ended, stdout to stdout and stderr to stderr; return how it ended.

        Lines of a job with several tasks begin with the task's index.
        """
        several = len(self.poll(job_id).tasks) > 1
        for line in self.logs(job_id, follow=True):
            text = f"[{line.task}] {line.data}" if several else line.data
            print(text, file=sys.stderr if line.stream == "stderr" else sys.stdout, flush=True)
        return self.wait(job_id)

    def why(self, job_id: AnyJob) -> Explanation:
        """What the job waits for, with numbers, or why it ended and what to do; print it."""
        return wire.explanation(
            self._call("ExplainJob", pb.ExplainJobRequest(job_id=_job_id(job_id)), pb.ExplainJobResponse)
        )

    def events(self, job_id: AnyJob) -> list[Event]:
        """The journal of a job, oldest first."""
        request = pb.ListEventsRequest(job_id=_job_id(job_id), page_size=_PAGE)
        events: list[Event] = []
        while True:
            page = self._call("ListEvents", request, pb.ListEventsResponse).events
            events += map(wire.event, page)
            if len(page) < _PAGE:
                return events
            request.after_seq = page[-1].seq

    def workers(self) -> list[WorkerInfo]:
        """The workers the controller knows."""
        reply = self._call("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse)
        return [wire.worker_info(worker) for worker in reply.workers]

    def register_endpoint(
        self,
        name: str,
        address: str,
        job_id: JobId | str | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        access_key: str | None = None,
    ) -> Endpoint:
        """Publish an address under a name.

        A job's endpoint ends with its attempt; one of no job is kept by a lease that a thread renews until `close`.

        Args:
            name: Several endpoints may share it.
            address: ``host:port`` where others reach it.
            job_id: Default: the calling job.
            metadata: What is told about it.
            access_key: What proves a caller's right; lookups of this namespace get it.
        """
        request = pb.RegisterEndpointRequest(
            request_id=_new_id(),
            name=name,
            address=address,
            job_id=job_id or (self._task.job_id if self._task is not None else ""),
            namespace=self._namespace or "",
            metadata=dict(metadata or {}),
            access_key=access_key or "",
        )
        reply = self._call("RegisterEndpoint", request, pb.RegisterEndpointResponse, retry_s=RETRY_S)
        endpoint = wire.endpoint(reply.endpoint)
        if reply.lease_s > 0:
            self._leases.keep(request, endpoint.endpoint_id, reply.lease_s)
        return endpoint

    def unregister_endpoint(self, endpoint_id: EndpointId | str) -> None:
        """Withdraw an endpoint; one that is gone already is no error."""
        current = self._leases.drop(EndpointId(endpoint_id))
        message = pb.UnregisterEndpointRequest(request_id=_new_id(), endpoint_id=current)
        self._call("UnregisterEndpoint", message, pb.UnregisterEndpointResponse, retry_s=RETRY_S)

    def lookup_endpoints(self, name: str) -> list[Endpoint]:
        """All endpoints of a name, oldest first, with their access keys."""
        request = pb.LookupEndpointsRequest(name=name, namespace=self._namespace or "")
        return list(map(wire.endpoint, self._call("LookupEndpoints", request, pb.LookupEndpointsResponse).endpoints))

    def list_endpoints(self, prefix: str = "") -> list[Endpoint]:
        """All endpoints whose name begins so, oldest first, without access keys."""
        request = pb.ListEndpointsRequest(prefix=prefix, namespace=self._namespace or "")
        return list(map(wire.endpoint, self._call("ListEndpoints", request, pb.ListEndpointsResponse).endpoints))

    def _on_close(self, closer: Callable[[], None]) -> None:
        """Has a method called when this is closed, if its object is still there: for what is built on a cluster."""
        self._closers.append(weakref.WeakMethod(closer))

    def _call(self, method: str, request: Message, response_type: type[M], *, retry_s: float | None = None) -> M:
        return self._rpc.unary(method, request, response_type, retry_s=retry_s)

    def _spec(self, request: JobRequest, *, inline_bytes: int = transfer.INLINE_BYTES) -> JobSpec:
        here, directory = self._surroundings(), request.environment.workspace
        workspace = None if directory is None else self._send(directory)
        payload = partial(
            self._payload,
            # A container sees no directory of this machine, either.
            project_by_value=here is None or workspace is not None or request.environment.docker_image is not None,
            elsewhere=workspace.files if workspace is not None else frozenset(),
            inline_bytes=inline_bytes,
        )
        return wire.job_spec(request, payload, parent=self._parent(), surroundings=here, workspace=workspace)

    def _send(self, directory: str) -> Workspace:
        from fluster.cluster.surroundings import Surroundings
        from fluster.cluster.workspace import Workspaces

        if self._workspaces is None:
            self._workspaces = Workspaces(self._rpc)
        return self._workspaces.send(directory, Surroundings.here().import_path)

    def _payload(
        self, entrypoint: Entrypoint, *, project_by_value: bool, elsewhere: frozenset[str], inline_bytes: int
    ) -> Payload:
        from fluster.cluster import pickling  # brings cloudpickle, which most programs that only look never need

        assert entrypoint.callable is not None
        pickled = pickling.dump_call(
            entrypoint.callable,
            entrypoint.args,
            entrypoint.kwargs,
            project_by_value=project_by_value,
            elsewhere=elsewhere,
        )
        return transfer.send(self._rpc, pickled, inline_bytes=inline_bytes)

    def _parent(self) -> JobId | None:
        return self._task.job_id if self._task is not None else None

    def _surroundings(self) -> Surroundings | None:
        """What jobs of this cluster can share with this process; only those of this machine can."""
        return None


def _own_task(address: str) -> TaskContext | None:
    """The calling task, when the cluster is its own."""
    task = TaskContext.from_environment()
    return task if task is not None and normal_address(task.cluster_address) == address else None


def _find_credentials(address: str, token: str | None, task: TaskContext | None) -> tuple[str | None, Trust | None]:
    """The token that is sent, and whom to believe; `None`: nothing is encrypted."""
    from fluster.cluster.config import find_ca_file, find_token

    environ: Mapping[str, str] = os.environ
    if task is None and TaskContext.from_environment() is not None:
        # A task's token is for its own cluster; another one must not get it.
        environ = {name: value for name, value in os.environ.items() if name not in (TOKEN, TOKEN_FILE, CA_FILE)}
    found = find_token(address, token, environ=environ)
    given, pin = split_pin(found) if found is not None else (None, None)
    if not address.startswith("https:"):
        if pin is not None:
            raise ValueError(
                f"this token is of a cluster with encrypted connections, and {address} is not; say https://"
            )
        return given, None
    return given, Trust(find_ca_file(address, environ=environ), pin)


def _job_id(value: AnyJob) -> JobId:
    return JobId(check_id(value if isinstance(value, str) else getattr(value, "job_id", value), "job_id"))


def _new_id() -> str:
    return uuid.uuid4().hex
