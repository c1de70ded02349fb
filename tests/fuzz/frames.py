"""A real actor server under random frames: after the greeting, instead of it, and as HTTP."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.actor.raw import Raw
from tests.fuzz.messages import mutated

from fluster import FixedResolver
from fluster.actor.protocol import BUFFER, HEADER, IN_STREAM, LAST_KIND, Kind, target_of

ROOT = Path(__file__).parents[2]
_IN_A_CONNECTION = 50
_BODY = target_of("", "worker", "add") + pickle.dumps(((1, 2), {}), 5)
_CALL = HEADER.pack(len(_BODY), 0, Kind.CALL, 0, 1, 0, 0) + _BODY
_WITH_BUFFERS = (
    HEADER.pack(len(_BODY), 2, Kind.CALL, 0, 7, 0, 0)
    + BUFFER.pack(40, IN_STREAM)
    + BUFFER.pack(0, IN_STREAM)
    + _BODY
    + bytes(40)
)
_NAMES = ("", "worker", "add", "looks_like_a_method", "_hidden", "__class__", "no\0name", "x" * 300)
_HTTP = (
    b"POST /fluster.actor.v1.ActorService/Call HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b'content-length: 45\r\n\r\n{"actor": "worker", "method": "add", "json": 1}'
)


@dataclass(slots=True)
class Actor:
    """The process."""

    process: subprocess.Popen[str]
    address: str
    access_key: str
    log: Path

    def check(self) -> int:
        """Raises AssertionError if anything went wrong so far; gives how many bytes it holds."""
        with closing(FixedResolver({"worker": self.address}, access_key=self.access_key)) as resolver:
            worker = resolver.lookup("worker").call(20.0)
            assert worker.add(2, 3) == 5
            resident = worker.resident_bytes()
        said = self.log.read_text(errors="replace")
        assert "Traceback" not in said, said[-4000:]
        return int(resident)


@contextmanager
def actor(directory: Path) -> Iterator[Actor]:
    """A server in a process of its own."""
    log = directory / "actor.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.actor.actors", "0", "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address, access_key = process.stdout.readline().split()
        yield Actor(process, address, access_key, log)
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def run(to: Actor, count: int, seed: int) -> None:
    """Sends so many frames, or what goes for them."""
    rng = random.Random(seed)
    for _ in range(-(-count // _IN_A_CONNECTION)):
        _connection(to, rng)


def _connection(to: Actor, rng: random.Random) -> None:
    with Raw(to.address, to.access_key, unix=rng.random() < 0.5) as raw:
        try:
            match rng.randrange(10):
                case 0:
                    raw.send(rng.randbytes(rng.choice((1, 20, 500))))
                case 1:
                    raw.send(mutated(_HTTP, rng))
                case _:
                    raw.open()
            raw.send(b"".join(_frame(rng) for _ in range(_IN_A_CONNECTION)))
        except OSError:
            pass  # it has heard enough


def _frame(rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return rng.choice((_CALL, _WITH_BUFFERS))
        case 1:
            # Nothing that follows is understood if the lengths are wrong: few of them are.
            return mutated(rng.choice((_CALL, _WITH_BUFFERS)), rng) if rng.random() < 0.05 else _CALL
        case _:
            body = rng.randbytes(rng.choice((0, 1, 8, 30, 300)))
            kind, flags = rng.randint(1, LAST_KIND), rng.choice((0, 0, 2, 4, 6))
            if kind == Kind.CALL and rng.random() < 0.95:  # without a target it would be the connection's last
                body = target_of(rng.choice(_NAMES), rng.choice(_NAMES), rng.choice(_NAMES)) + body
            numbers = (
                rng.choice((0, 1, 7, 2**32, 2**64 - 1)),
                rng.choice((0, 1, 5, 2**32 - 1)),
                rng.choice((0, 1, 1000)),
            )
            return HEADER.pack(len(body), 0, kind, flags, *numbers) + body
