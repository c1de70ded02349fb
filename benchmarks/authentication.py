"""What it costs that each call is authenticated: the same calls with the check and with it left out. Asserts nothing.

python benchmarks/authentication.py [--calls 200] [--rounds 40]

The server answers a call that costs least, to a client in a process of its own, over one kept connection. Rounds with
and without the check take turns, so that both see the same machine; what is compared are the medians of all calls.
"""

from __future__ import annotations

import argparse
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


def measure(address: str, token: str, identity: Identity, calls: int, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of the calls with the check, and without."""
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
    for _ in range(rounds):
        with_check += ask()
        with left_out(identity):
            without += ask()
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
    parser.add_argument("--calls", type=int, default=200, help="of each round")
    parser.add_argument("--rounds", type=int, default=40)
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
        print(f"{'one call, p50':20}{'checked':>12}{'left out':>12}{'ratio':>8}")
        for who, (token, identity) in callers.items():
            checked, left = measure(server.address, token(), identity, arguments.calls, arguments.rounds)
            one, other = statistics.median(checked), statistics.median(left)
            print(f"{who:20}{one:9.1f} us{other:9.1f} us{one / other:8.3f}")


if __name__ == "__main__":
    main()
