"""Machines: hosts with a worker, which may lose their power and be started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.e2e import lab
from tests.network.hosts import Host, Network

from fluster.cluster.attempt import proc

_WITHIN_S = 30.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_WORKER = [sys.executable, "-m", "fluster.cluster.worker"]


class Machine:
    """A host of the worker's name, its disk a directory.

    Args:
        words: Of the worker's command line.
        join_token: What it joins with.

    Attributes:
        off_at: When it lost its power, of the monotonic clock; `None` while it has it.
    """

    def __init__(self, network: Network, host: Host, directory: Path, words: Sequence[str], join_token: str) -> None:
        self.host = host
        self.off_at: float | None = None
        self._network = network
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        token_file = directory / "join.token"
        token_file.write_text(join_token)
        serve = ["serve", "--state-dir", str(directory), "--worker-id", host.name, "--token-file", str(token_file)]
        self._command = [*_WORKER, *serve, *words]

    def boot(self) -> None:
        """Starts it, with a boot id of its own: what ran before the power was lost is known to be of another boot."""
        boot_id = self._directory / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(boot_id), *self._command]
        self.off_at = None
        self._network.heal(self.host)
        with (self._directory / "worker.log").open("ab") as log, self._network.at(self.host):
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def lose_power(self) -> None:
        """Its cable is silent first, and nobody has time to write down the end of another."""
        self._network.cut(self.host)
        self._signal_all(signal.SIGSTOP)
        self._kill_all()
        self.off_at = time.monotonic()

    def end(self) -> None:
        """Nothing of it is left."""
        self._kill_all()
        if any((self._directory / "attempts").glob("*")):
            subprocess.run([*_WORKER, "end", "--state-dir", str(self._directory)], check=True, timeout=_WITHIN_S)

    def _kill_all(self) -> None:
        lab.wait_until(lambda: not self._signal_all(signal.SIGKILL), f"all of {self.host.name} is dead", _WITHIN_S)
        if self._process is not None:
            self._process.wait()

    def _signal_all(self, number: signal.Signals) -> int:
        """How many there were."""
        namespace = os.fstat(self.host.namespace)
        alive = [pid for pid in proc.all_pids() if _is_within(pid, namespace) and lab.Process.of(pid).runs]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(alive)


def _is_within(pid: int, namespace: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (namespace.st_dev, namespace.st_ino)
