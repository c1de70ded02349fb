"""What it costs that each call is authenticated: the same calls with the check and with it left out. Asserts nothing.

python benchmarks/authentication.py [--calls 40] [--rounds 200]

The server answers a call that costs least, to a client in a process of its own, over one kept connection. Rounds
with and without the check take turns, so that both see the same machine. Compared are the medians of two rounds that
follow each other; of these ratios the median is told, and where it lies with 95 % confidence.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.controller.opencalls import OpenCalls
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.ids import Namespace
from fluster.cluster.tokens import TokenKind
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

SERVICE = "fluster.cluster.v1.ControllerService"


@contextmanager
def left_out(identity: Identity) -> Iterator[None]:
    """Whoever asks is this one, unasked, and may ask for everything."""

    @contextmanager
    def nobody_looks(*_: object) -> Iterator[None]:
        yield

    with ExitStack() as stack:
        for owner, name, new in (
            (Authenticator, "authenticate", lambda *_: identity),
            (Authenticator, "still_valid", lambda *_: True),
            (Authenticator, "authorize", lambda *_: None),
            (OpenCalls, "call", nobody_looks),
        ):
            stack.enter_context(patch.object(owner, name, new))
        yield


def client() -> None:
    """The other process: a line with a number of calls in, a line with their microseconds out."""
    address, token = sys.stdin.readline().split()
    rpc = ConnectClient(address, SERVICE, token=token)
    request = pb.ListEndpointsRequest(prefix=" ")
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = time.perf_counter()
            rpc.unary("ListEndpoints", request, pb.ListEndpointsResponse)
            taken.append((time.perf_counter() - start) * 1e6)
        print(" ".join(f"{each:.1f}" for each in taken), flush=True)


def median_between(ratios: list[float]) -> tuple[float, float]:
    """Where the median lies with 95 % confidence, by what medians of as many drawn from them have."""
    drawn = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))
    return drawn[50], drawn[-51]


def measure(address: str, token: str, identity: Identity, calls: int, rounds: int) -> tuple[list[float], list[float]]:
    """Median microseconds of the rounds with the check, and without."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with_check, without = [], []

    def ask() -> list[float]:
        print(calls, file=process.stdin, flush=True)
        return list(map(float, process.stdout.readline().split()))  # type: ignore[union-attr]

    print(address, token, file=process.stdin, flush=True)
    ask()
    for number in range(rounds):
        for checks in (True, False) if number % 2 else (False, True):
            if checks:
                with_check.append(statistics.median(ask()))
            else:
                with left_out(identity):
                    without.append(statistics.median(ask()))
    process.stdin.close()
    process.wait()
    return with_check, without


def user_token(server: ControllerServer) -> str:
    admin = ConnectClient(server.address, SERVICE, token=server.token)
    request = pb.CreateTokenRequest(request_id="r", kind=pb.TokenKind.USER, user="alice")
    token = admin.unary("CreateToken", request, pb.CreateTokenResponse).token
    admin.close()
    return str(token)


def main() -> None:
    """Prints both, and the ratio."""
    parser = argparse.ArgumentParser(description="What authentication costs.")
    parser.add_argument("--calls", type=int, default=40, help="of each round")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client()
        return
    with ControllerServer() as server:
        callers: dict[str, tuple[Callable[[], str], Identity]] = {
            "administrator": (lambda: server.token, Identity(TokenKind.ADMIN)),
            "user": (
                lambda: user_token(server),
                Identity(TokenKind.USER, user="alice", namespace=Namespace("alice")),
            ),
        }
        print(f"{'one call, p50':20}{'checked':>12}{'left out':>12}{'ratio':>8}{'between':>16}")
        for who, (token, identity) in callers.items():
            checked, left = measure(server.address, token(), identity, arguments.calls, arguments.rounds)
            ratios = [one / other for one, other in zip(checked, left, strict=True)]
            low, high = median_between(ratios)
            figures = f"{statistics.median(checked):9.1f} us{statistics.median(left):9.1f} us"
            print(f"{who:20}{figures}{statistics.median(ratios):8.3f}{low:9.3f}-{high:.3f}", flush=True)


if __name__ == "__main__":
    main()
