"""The cluster that `up` keeps on this machine: its controller as a process of its own session, found again by files."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluster.cli.places import state_home
from fluster.cluster.backend.docker import has_docker_workers
from fluster.cluster.controller.statelock import Holder
from fluster.errors import FlusterError

LOCK = "controller.lock"
PREFERRED_PORT = 7077
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_START_S = 30.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2_000
_RECORD_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Standing:
    """One such cluster, running or not.

    Attributes:
        name: In the configuration.
        directory: Its controller's state directory.
    """

    name: str
    directory: Path

    @classmethod
    def named(cls, name: str) -> Standing:
        """The one of that name.

        Raises:
            ValueError: It is no name of one.
        """
        if not _NAME.fullmatch(name) or name in ("controller", "worker"):
            raise ValueError(f"a cluster on this machine has a name of letters, digits and . _ -, got {name[:80]!r}")
        return cls(name, state_home() / name)

    @classmethod
    def all_there(cls) -> list[Standing]:
        """Those of this user of which anything may run, by name."""
        names = sorted(path.name for path in state_home().glob("*") if _NAME.fullmatch(path.name))
        found = [cls(name, state_home() / name) for name in names if name not in ("controller", "worker")]
        return [standing for standing in found if standing.is_there()]

    @property
    def token_file(self) -> Path:
        """Holds the administrator's token."""
        return self.directory / "admin.token"

    @property
    def ca_file(self) -> Path | None:
        """The authority that vouches for its controller; `None`: nothing is encrypted."""
        told = _told_in(self._announced).get("ca_file")
        return Path(str(told)) if told else None

    @property
    def log(self) -> Path:
        """What the controller has to say."""
        return self.directory / "controller.log"

    def address(self) -> str | None:
        """Where its controller serves, or served last."""
        return _address_in(self._announced)

    def holder(self) -> Holder | None:
        """The controller's process; `None` when none runs."""
        try:
            found = Holder(**json.loads((self.directory / LOCK).read_bytes()[:_RECORD_BYTES]))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.runs_here() else None

    def is_there(self) -> bool:
        """Whether anything of it may run: it was not taken down since it was up."""
        if self.address() is not None or self.holder() is not None:
            return True
        return (self.directory / "workers").exists() or has_docker_workers(self.directory)

    def start(self, backend: str, *arguments: str) -> str:
        """Starts the controller, which outlives this process, and returns its address once it serves.

        Raises:
            FlusterError: It did not start; the text has the last line of its log.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        served = (self.address() or "").rpartition(":")[2]
        # The one it had, else the usual one, else any.
        for port in (int(served) if served.isdigit() else 0, PREFERRED_PORT):
            if port and _is_free(port):
                try:
                    return self._start(backend, port, arguments)
                except FlusterError:
                    if _is_free(port):
                        raise
        return self._start(backend, 0, arguments)

    def _start(self, backend: str, port: int, arguments: Sequence[str]) -> str:
        command = [sys.executable, "-m", "fluster", "controller", "serve", "--backend", backend]
        command += ["--state-dir", str(self.directory), "--port", str(port), *arguments]
        # Its own until it serves: two at a time must not take each other's.
        announced = self._announced.with_suffix(f".{os.getpid()}")
        with announced.open("wb") as out, open(self.log, "ab", opener=_privately) as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # the terminal's Ctrl-C and end are not its own
            )
        try:
            address = self._served(process, announced)
            announced.replace(self._announced)
        except BaseException:
            process.terminate()
            process.wait()
            announced.unlink(missing_ok=True)
            raise
        process.returncode = 0  # it is on its own now; nobody here waits for its end
        return address

    def forget(self) -> None:
        """It is down on purpose."""
        self._announced.unlink(missing_ok=True)

    @property
    def _announced(self) -> Path:
        return self.directory / "serving.json"

    def _served(self, process: subprocess.Popen[bytes], announced: Path) -> str:
        deadline = time.monotonic() + _START_S
        while (address := _address_in(announced)) is None:
            if process.poll() is not None:
                raise FlusterError(f"the controller did not start; its log is {self.log}\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise FlusterError(f"the controller did not serve within {_START_S:.0f} s; its log is {self.log}")
            time.sleep(_POLL_S)
        return address

    def _last_words(self) -> str:
        try:
            lines = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


def _address_in(announced: Path) -> str | None:
    address = _told_in(announced).get("address")
    return str(address) if address else None


def _told_in(announced: Path) -> dict[str, object]:
    try:
        told = json.loads(announced.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def short(path: Path) -> str:
    """A path for people, with `~` for their home."""
    home = os.path.expanduser("~")
    return f"~{str(path)[len(home) :]}" if str(path).startswith(f"{home}/") else str(path)


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
