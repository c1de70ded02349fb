"""What authentication asks of the state: who is alive, and with which credential."""

from __future__ import annotations

from collections.abc import Callable

from fluster.cluster.controller.core.rows import AllocationStatus, TokenRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.ids import AllocationId, AttemptUid, JobId, WorkerId


class StateDirectory:
    """A `Directory` over the state as it is now; the state object itself may be exchanged."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def user_token(self, token_id: str) -> TokenRow | None:
        """The user's token of this id."""
        token = self._state().tokens.get(token_id)
        return token if token is not None and token.user else None

    def live_attempt_job(self, uid: AttemptUid) -> JobId | None:
        """The job of an attempt that may have a process."""
        attempt = self._state().attempts.get(uid)
        return attempt.job_id if attempt is not None and has_process(attempt) else None

    def worker_credential(self, worker_id: WorkerId) -> str | None:
        """Hash of the worker's secret."""
        worker = self._state().workers.get(worker_id)
        return None if worker is None else worker.credential_sha256

    def join_token_expiry(self, token_id: str) -> float | None:
        """When the join token ends."""
        token = self._state().tokens.get(token_id)
        return None if token is None or token.user else token.expires_at

    def allocation_wanted(self, allocation_id: AllocationId) -> bool:
        """Whether the allocation is to be kept."""
        row = self._state().allocations.get(allocation_id)
        return row is not None and row.status in (AllocationStatus.REQUESTED, AllocationStatus.READY)
