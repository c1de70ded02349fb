"""`worker token`: lets a worker join."""

from __future__ import annotations

import uuid

import click

from fluster.cli.options import Duration, cluster_option
from fluster.cli.target import open_cluster


@click.command()
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Workers it is good for.")
@click.option("--ttl", type=Duration(), default="10m", show_default=True, help="How long it is good: 30s, 10m, 1h30m.")
@cluster_option
def worker_token(uses: int, ttl: float, cluster: str | None) -> None:
    """Print a token with which workers can join, and nothing else.

    On the other machine: fluster worker serve --controller URL --token-file FILE
    """
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    request = pb.CreateTokenRequest(request_id=uuid.uuid4().hex, kind=pb.TokenKind.JOIN, uses=uses, ttl_s=ttl)
    with open_cluster(cluster) as client:
        # An administrator's matter, so `Cluster`, which programs use, has no method for it.
        print(client._rpc.unary("CreateToken", request, pb.CreateTokenResponse).token)
