"""Lets go of old history, a little at a time, so that nothing grows without end."""

from __future__ import annotations

import asyncio
import logging

from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.logstore import LogStore
from fluster.cluster.controller.store import Store, StoreBusy, StoreFull
from fluster.cluster.ids import JobId

_log = logging.getLogger(__name__)

KEEP_S = 30 * 86_400.0
"""A month: long enough to ask what became of last sprint's runs."""
KEEP_JOBS = 200_000
KEEP_REFUSED = 100_000
"""Refused requests: some 20 MB of history, whoever tries how often."""
_EVERY_S = 600.0
_PAUSE_S = 0.05
_BLOB_AGE_S = 3_600.0
"""A blob that nothing names yet may belong to a launch that is on its way."""


async def run(controller: Controller) -> None:
    """Until cancelled. A full disk is no reason to end; a broken one is."""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            before = controller.loop.now() - KEEP_S
            await prune(controller, before, KEEP_JOBS)
            while controller.store.prune_refused(before, KEEP_REFUSED):
                await asyncio.sleep(_PAUSE_S)
        except (StoreFull, StoreBusy, OSError) as error:
            _log.warning("history was not pruned: %s", error)


async def prune(controller: Controller, before: float, keep_jobs: int) -> None:
    """Removes finished jobs that ended before `before` or are more than `keep_jobs`, with their logs and blobs."""
    removed = 0
    while job_ids := controller.store.prune(before, keep_jobs):
        removed += len(job_ids)
        for job_id in job_ids:
            await asyncio.to_thread(controller.logs.delete_job, job_id)
        await asyncio.sleep(_PAUSE_S)  # others are served in between
    # A crash between the two leaves logs without a job.
    for job_id in await asyncio.to_thread(_unknown, controller.store, controller.logs):
        if controller.find_job(job_id) is None:  # one that is just being launched may be in memory only
            await asyncio.to_thread(controller.logs.delete_job, job_id)
    referenced = await asyncio.to_thread(controller.store.referenced_blobs)
    await asyncio.to_thread(controller.blobs.sweep, referenced, min_age_s=_BLOB_AGE_S)
    if removed:
        _log.info("removed %d finished jobs from the history", removed)


def _unknown(store: Store, logs: LogStore) -> list[JobId]:
    """Jobs of which there are logs and no row. In a thread: there are as many jobs to look at as the history has."""
    return [job_id for job_id in logs.job_ids() if store.job(job_id) is None]
