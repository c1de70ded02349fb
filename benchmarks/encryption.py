"""What it costs that calls to actors of other machines are encrypted: the same calls over TLS and in plain, in turns.

    python -m benchmarks.encryption [--calls 500] [--rounds 20]

Run it in the repository's root. One actor of each kind, each a process of its own, is called by this one over loopback,
one call after the other; neither tries Unix sockets. What is compared are the medians of rounds that follow each other.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import Calculator, median_s

from fluster import ActorServer, FixedResolver
from fluster.actor.tls import server_context
from fluster.cluster.controller.authority import Authority
from fluster.rpc.trust import pinned

AT_MOST = 1.5


def serve(certificate_file: str) -> None:
    """The other process: one actor, encrypted if there is a certificate, until its input ends."""
    if certificate_file:
        context, pin = server_context(certificate_file)
        setattr(ActorServer, "_identity", lambda _: (pinned("5e" * 32, pin), context))  # noqa: B010
    with ActorServer(None) as server:
        server.register("calculator", Calculator())
        server.serve_background()
        print(server.address, server.access_key, flush=True)
        sys.stdin.read()


@contextmanager
def actor(certificate_file: str = "") -> Iterator[Any]:
    """A proxy of an actor in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.encryption", "--serve", certificate_file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address, access_key = process.stdout.readline().split()
            resolver = FixedResolver({"calculator": address}, access_key=access_key)
            try:
                yield resolver.lookup("calculator").call()
            finally:
                resolver.close()
        finally:
            process.stdin.close()


def main() -> None:
    """Prints both, and how many times as long the encrypted one takes."""
    parser = argparse.ArgumentParser(description="What encryption costs.")
    parser.add_argument("--calls", type=int, default=500, help="of each round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    line: Any = importlib.import_module("fluster.actor.line")
    line.SAME_HOST = False
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        issued = Authority.open(directory).issue(["127.0.0.1"], days=1)
        certificate_file = directory / "actor.pem"
        certificate_file.write_text(issued.certificate + issued.key)
        proxies = {"plain": stack.enter_context(actor()), "TLS": stack.enter_context(actor(str(certificate_file)))}
        found: dict[str, list[float]] = {name: [] for name in proxies}
        for number in range(given.rounds + 1):
            for name in random.sample(sorted(proxies), 2):
                taken = 1e6 * median_s(lambda proxy=proxies[name]: proxy.add(1, 2), given.calls)  # type: ignore[misc]
                if number:
                    found[name].append(taken)
    ratios = sorted(encrypted / plain for encrypted, plain in zip(found["TLS"], found["plain"], strict=True))
    for name, figures in found.items():
        print(f"{name:6}{statistics.median(figures):8.1f} us a call")
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"{statistics.median(ratios):.2f} times as long ({low:.2f} to {high:.2f}; aimed at: <= {AT_MOST:g})")


if __name__ == "__main__":
    main()
