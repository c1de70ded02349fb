"""A handle of one launched job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fluster.cluster import waiting
from fluster.cluster.ids import JobId
from fluster.cluster.observed import Explanation, JobInfo, LogLine
from fluster.cluster.states import JobStatus

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster


class Job:
    """A launched job; `await job` gives its result without blocking the event loop."""

    def __init__(self, cluster: Cluster, job_id: JobId) -> None:
        self._cluster = cluster
        self._job_id = job_id

    def __repr__(self) -> str:
        return f"Job({self._job_id!r} at {self._cluster.address})"

    @property
    def job_id(self) -> JobId:
        """Its id."""
        return self._job_id

    def status(self) -> JobStatus:
        """As last committed."""
        return self.info().status

    def info(self) -> JobInfo:
        """As last committed, with its tasks."""
        return self._cluster.poll(self._job_id)

    def wait(self, timeout: float | None = None) -> JobInfo:
        """Wait until it has finished, however; see `Cluster.wait`.

        Raises:
            TimeoutError: It had not finished in time.
        """
        return self._cluster.wait(self._job_id, timeout=timeout)

    def result(self, timeout: float | None = None) -> Any:
        """What its entrypoint returned, or raise what that raised; see `Cluster.result`."""
        return self._cluster.result(self._job_id, timeout=timeout)

    def logs(self, follow: bool = False) -> Iterator[LogLine]:
        """What it printed; with `follow` until it has ended."""
        return self._cluster.logs(self._job_id, follow=follow)

    def terminate(self) -> None:
        """Stop it with all its descendants; repeating it is harmless."""
        self._cluster.terminate(self._job_id)

    def why(self) -> Explanation:
        """What it waits for, or why it ended."""
        return self._cluster.why(self._job_id)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result_from_thread().__await__()

    async def _result_from_thread(self) -> Any:
        """The result, waited for in a thread of its own. Cancelling closes the thread's connection, which ends it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Any, Exception | None]] = loop.create_future()
        rpc = self._cluster._rpc.clone()

        def deliver(value: Any, error: Exception | None) -> None:
            if not answer.done():
                answer.set_result((value, error))

        def run() -> None:
            value, problem = None, None
            try:
                value = waiting.job_result(rpc, self._job_id, 0, None)
            except Exception as error:
                problem = error
            with suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(deliver, value, problem)

        threading.Thread(target=run, name=f"fluster-await-{self._job_id}", daemon=True).start()
        try:
            value, problem = await answer
        finally:
            rpc.close()
        if problem is not None:
            raise problem
        return value
