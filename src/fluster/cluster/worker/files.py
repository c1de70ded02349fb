"""What lies in a worker's state directory for others to read."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically

_SERVICE, _TOKEN, _RELEASED, _LEFT = "service.json", "worker.token", "released", "left"


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """Where a worker's own service answers.

    Attributes:
        address: `host:port`.
        pid: Of the daemon.
        token_file: Holds what its callers show.
    """

    worker_id: str
    address: str
    pid: int
    token_file: str

    def write(self, state_dir: Path) -> None:
        """Tells others."""
        write_atomically(state_dir / _SERVICE, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, state_dir: Path) -> ServiceFile | None:
        """What the last daemon told; `None` if none ever served."""
        try:
            return cls(**json.loads((state_dir / _SERVICE).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


def own_token(state_dir: Path) -> tuple[str, Path]:
    """The token of the worker's own service and its file; made once."""
    path = state_dir / _TOKEN
    try:
        return path.read_text().strip(), path
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_atomically(path, token.encode())
        return token, path


def release(state_dir: Path) -> None:
    """Its machine is being given back: from now on SIGTERM ends what runs."""
    (state_dir / _RELEASED).touch()


def is_released(state_dir: Path) -> bool:
    """Whether its machine is being given back."""
    return (state_dir / _RELEASED).exists()


def leave(state_dir: Path) -> None:
    """The worker has left its cluster: nobody starts it again."""
    (state_dir / _LEFT).touch()


def come_back(state_dir: Path) -> None:
    """Somebody starts a worker again that has left."""
    (state_dir / _LEFT).unlink(missing_ok=True)


def has_left(state_dir: Path) -> bool:
    """Whether the worker has left its cluster."""
    return (state_dir / _LEFT).exists()
