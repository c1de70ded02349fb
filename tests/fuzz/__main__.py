"""The long form: ``python -m tests.fuzz --frames 1000000 --messages 1000000 --sequences 100000 --seed 1``."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import frames, rpcs

MAY_GROW_BYTES = 32 << 20
"""From the second of ten parts on: what is kept of the first requests is there by then."""
_PARTS = 10


def main() -> None:
    """Runs all, and prints what came of it. Raises: AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=5_000)
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, frames.actor(Path(name)) as actor:
        in_parts("frames", given.frames, given.seed, lambda n, seed: frames.run(actor, n, seed), actor.check)
    # In memory where that can be: what a disk takes to sync is not what is looked for here.
    there = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=there) as name, rpcs.controller(Path(name)) as controller:

        def held() -> int:
            controller.check()
            return controller.resident_bytes

        for what, count in (("messages", given.messages), ("sequences", given.sequences)):
            one = what.removesuffix("s")
            in_parts(what, count, given.seed, lambda n, seed, one=one: rpcs.run(controller, one, n, seed), held)  # type: ignore[misc]
            print("  " + ", ".join(f"{code} {number:,}" for code, number in controller.codes.most_common()))
            controller.codes.clear()


def in_parts(what: str, count: int, seed: int, run: Callable[[int, int], None], held: Callable[[], int]) -> None:
    """Runs ten parts and looks at memory between them."""
    began = time.monotonic()
    sizes = []
    for part in range(_PARTS):
        run(count // _PARTS, seed * _PARTS + part)
        sizes.append(held())
    grown = sizes[-1] - sizes[1]
    took = time.monotonic() - began
    print(
        f"{what}: {count:,} in {took:.0f} s, seed {seed}; memory {sizes[1] >> 20} MiB, {grown / 1e6:+.1f} MB",
        flush=True,
    )
    assert grown < MAY_GROW_BYTES, f"memory grew: {sizes}"


if __name__ == "__main__":
    main()
