"""`events`: the journal of a job; with `--audit` who asked for what, from where, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from fluster.cli.human import format_time
from fluster.cli.options import cluster_option, json_option
from fluster.cli.target import find_job, open_cluster
from fluster.cli.terminal import print_json, print_table, print_talk

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import Event
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_OTHERS = ("admin", "anonymous")
"""Who is no user by that name."""
_PAGE = 1_000
_REFUSED = "RequestRefused"


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Something that was asked for.

    Attributes:
        seq: Number of the line in the journal.
        timestamp: Unix seconds.
        actor: Who: "admin", "user:U", "job:J", "worker:W", "token:T", "anonymous".
        peer: The address it came from.
        kind: What became of it: "JobLaunched"; "RequestRefused".
        allowed: It was not refused.
        job_id: The job it is about; `None`: none.
        worker_id: Likewise.
        message: For people.
    """

    seq: int
    timestamp: float
    actor: str
    peer: str
    kind: str
    allowed: bool
    job_id: str | None
    worker_id: str | None
    message: str


@click.command()
@click.argument("job", required=False, metavar="[JOB]")
@click.option("--audit", is_flag=True, help="Who asked for what, from where, and what was refused; of all jobs too.")
@click.option("--user", metavar="NAME", help="With --audit: of this user and its jobs; also admin, anonymous.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="With --audit: the newest so many; 0: all.",
)
@json_option
@cluster_option
def events(job: str | None, audit: bool, user: str | None, limit: int, as_json: bool, cluster: str | None) -> None:
    """What happened to a job, step by step, and who caused it.

    JOB is a job's id, or its name while it is the only unfinished one with that name. With --audit, for
    administrators, it is an id, of a job that never was as well, or is left out.
    """
    if audit:
        _print_audit(job, user, limit, as_json=as_json, cluster=cluster)
        return
    if job is None:
        raise click.UsageError("give a JOB, or --audit")
    if user is not None:
        raise click.UsageError("--user goes with --audit")
    with open_cluster(cluster) as client:
        found = client.events(find_job(client, job).job_id)
    if as_json:
        print_json(found)
    else:
        columns = ("TIME", "EVENT", ">TASK", ">ATTEMPT", "WORKER", "BY", "MESSAGE")
        print_table(columns, [_event_row(event) for event in found], empty="no events")


def _event_row(event: Event) -> tuple[str, ...]:
    return (
        _exactly(event.timestamp),
        event.kind,
        "" if event.task is None else str(event.task),
        str(event.attempt or ""),
        event.worker_id or "",
        event.actor,
        event.message,
    )


def _print_audit(job: str | None, user: str | None, limit: int, *, as_json: bool, cluster: str | None) -> None:
    with open_cluster(cluster) as client:
        found = _read_audit(client, job or "", _actor(user), limit + 1 if limit else 0)
    more = bool(limit) and len(found) > limit
    found = found[-limit:] if more else found
    if as_json:
        print_json(found)
    else:
        columns = ("TIME", "BY", "FROM", "WHAT", "JOB", "WORKER", "MESSAGE")
        print_table(columns, [_audit_row(line) for line in found], empty="nobody asked for anything")
    if more:
        print_talk(f"the newest {limit} are shown; --limit 0 shows all")


def _actor(user: str | None) -> str:
    if not user:
        return ""
    return user if user in _OTHERS else f"user:{user}"


def _read_audit(client: Cluster, job_id: str, actor: str, limit: int) -> list[AuditLine]:
    """The newest so many, or all, oldest first."""
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    newest = 0 < limit <= _PAGE
    request = pb.ListEventsRequest(
        job_id=job_id, actor=actor, audit=True, newest=newest, page_size=limit if newest else _PAGE
    )
    lines: list[AuditLine] = []
    while True:
        page = client._rpc.unary("ListEvents", request, pb.ListEventsResponse).events
        lines += map(_audit_line, page)
        if newest or len(page) < _PAGE:
            return lines
        request.after_seq = page[-1].seq


def _audit_line(event: pb.Event) -> AuditLine:
    return AuditLine(
        seq=event.seq,
        timestamp=event.timestamp,
        actor=event.actor,
        peer=event.peer,
        kind=event.kind,
        allowed=event.kind != _REFUSED,
        job_id=event.job_id or None,
        worker_id=event.worker_id or None,
        message=event.message,
    )


def _audit_row(line: AuditLine) -> tuple[str, ...]:
    what = line.kind if line.allowed else "refused"
    when = _exactly(line.timestamp)
    return when, line.actor, line.peer, what, line.job_id or "", line.worker_id or "", line.message


def _exactly(timestamp: float) -> str:
    return f"{format_time(timestamp)}.{int(timestamp * 1000) % 1000:03d}"
