"""What an attempt's entrypoint gave, as its report carries it."""

from __future__ import annotations

import logging

from fluster.cluster.worker.delivery import Delivery
from fluster.cluster.worker.folder import Folder
from fluster.cluster.worker.messages import inline_payload
from fluster.cluster.worker.outcome import BadOutcome, Outcome, open_result
from fluster.errors import ResourceExhausted
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, ExitReport, Payload

_log = logging.getLogger(__name__)

INLINE_BYTES = 64 * 1024
MAX_RESULT_BYTES = 1 << 30


async def add_result(report: ExitReport, folder: Folder, outcome: Outcome | None, delivery: Delivery) -> None:
    """Puts the value of a success, or the exception of a failure, into the report.

    A value that cannot be handed on makes the success a failure: its caller would otherwise wait for nothing.
    """
    if outcome is None or not _belongs(report, outcome):
        return
    try:
        report.result = await _payload(folder, outcome.size, delivery)
    except (BadOutcome, ResourceExhausted, OSError) as error:
        if report.cause is Cause.UNSPECIFIED:
            fail(report, f"the return value is lost: {error}")
        else:
            _log.warning("the exception of attempt %s is lost: %s", folder.uid, error)


def fail(report: ExitReport, why: str) -> None:
    """Makes the report of a success that of a failure."""
    report.cause = Cause.EXCEPTION
    report.error_message = why
    report.exit_code = 1
    report.result = None


def _belongs(report: ExitReport, outcome: Outcome) -> bool:
    """A value to a success, an exception to the failure it caused: anything else was written by the way."""
    if outcome.thrown is None:
        return report.cause is Cause.UNSPECIFIED
    return report.cause is Cause.EXCEPTION


async def _payload(folder: Folder, size: int, delivery: Delivery) -> Payload:
    if size > MAX_RESULT_BYTES:
        raise BadOutcome(f"it takes {size:,} bytes pickled, and {MAX_RESULT_BYTES:,} are the limit")
    if size > INLINE_BYTES:
        return await delivery.store_result(folder.result)
    with open_result(folder.result) as file:
        content = file.read(INLINE_BYTES)
    return inline_payload(content)
