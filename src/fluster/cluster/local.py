"""A cluster on this machine that lives as long as its creator, and the cluster a program means when it names none."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from fluster.cluster.client import Cluster
from fluster.cluster.config import find_cluster, find_namespace, load_configuration
from fluster.cluster.context import ClientVariables, TaskContext, read_token_file
from fluster.cluster.daemon import ControllerProcess
from fluster.cluster.surroundings import Surroundings
from fluster.cluster.validation import check_cpu, check_int, check_name, parse_bytes
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

_SERVER_MODULES = ("apsw", "connectrpc", "httptools", "uvicorn")


class LocalCluster(Cluster):
    """A cluster of this machine: its controller and workers are processes of their own, tied to this one.

    When this process ends, even by kill -9, all of them end. A controller or worker that dies is started again and
    running jobs go on. Jobs see this process's directory, import path and interpreter.

    Args:
        namespace: Default of everything launched here.
        num_workers: They share evenly what is offered.
        cpu: Cores offered in all; default: the machine's, at least 2. More than there are overcommits.
        memory: Memory offered in all, bytes or "8GB"; default: all of the machine or its cgroup.
        state_dir: Kept: unfinished jobs go on at the next start, as new attempts, uncharged. Default: a temporary one.
        server_python: Interpreter with the `server` extra for the daemons; default: this one if it has the extra, else
            `FLUSTER_SERVER_PYTHON`.

    Raises:
        ValueError: A value breaks its rule.
        FlusterError: No interpreter has the `server` extra, or the controller did not start; the text has its log.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        num_workers: int = 1,
        cpu: float | None = None,
        memory: str | int | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        server_python: str | None = None,
    ) -> None:
        arguments = _serve_arguments(namespace, num_workers, cpu, memory)
        python = find_server_python(server_python)
        self._pid = os.getpid()
        self._temporary = state_dir is None
        self._state_dir = Path(tempfile.mkdtemp(prefix="fluster-") if state_dir is None else state_dir).absolute()
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._temporary:
            arguments.append("--ephemeral")
        try:
            self._daemon = ControllerProcess(python, self._state_dir, arguments, ["--shut-down-before"])
        except BaseException:
            self._remove_state()
            raise
        try:
            token = read_token_file(self._daemon.token_file)
            super().__init__(self._daemon.address, namespace, token=token)
        except BaseException:
            self._daemon.close()
            self._remove_state()
            raise

    def shutdown(self) -> None:
        """Ends jobs, workers and controller; nothing is left but a given `state_dir`. Repeating is harmless."""
        if os.getpid() != self._pid:
            self._daemon.abandon()
            super().close()
            return
        super().close()
        self._daemon.close()
        self._remove_state()

    def close(self) -> None:
        """The same as `shutdown`: what this object started is its own."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _surroundings(self) -> Surroundings | None:
        return Surroundings.here()

    def _remove_state(self) -> None:
        if self._temporary:
            shutil.rmtree(self._state_dir, ignore_errors=True)


def _serve_arguments(namespace: str | None, num_workers: int, cpu: float | None, memory: str | int | None) -> list[str]:
    """What the controller is told, checked first."""
    workers = check_int(num_workers, "num_workers", low=1, high=1_000)
    arguments = ["--backend", "local", "--workers", str(workers)]
    if namespace is not None:
        arguments += ["--namespace", check_name(namespace, "namespace")]
    if cpu is not None:
        arguments += ["--cpu", repr(check_cpu(cpu))]
    if memory is not None:
        arguments += ["--memory", str(parse_bytes(memory, "memory"))]
    return arguments


def find_server_python(asked: str | None = None) -> str:
    """The interpreter for daemons: the given one, this one if it has the `server` extra, else the configured one.

    Raises:
        FlusterError: There is none; the text says what to install.
    """
    if asked is not None:
        return asked
    if sys.executable and all(importlib.util.find_spec(name) is not None for name in _SERVER_MODULES):
        return sys.executable
    configured = ClientVariables.from_environment().server_python or load_configuration().server_python
    if configured is not None:
        return configured
    raise FlusterError(
        "a local cluster needs the server extra: `pip install 'fluster-cluster[server]'`; or name an interpreter that "
        "has it by FLUSTER_SERVER_PYTHON or server_python="
    )


_shared: LocalCluster | None = None
_shared_lock = threading.Lock()


def _in_child() -> None:
    """The cluster is the parent's; the lock may be held by a thread that was not forked."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_in_child)


def current_cluster() -> Cluster:
    """The cluster this program means.

    Inside a job the job's own; else the one `FLUSTER_CLUSTER_ADDRESS` names; else the configured one; else one
    LocalCluster shared by this process and closed at its exit, which is said once on the logger.

    Raises:
        NotInCluster: This is a job's process whose variables are incomplete.
    """
    task = TaskContext.from_environment()
    if task is not None:
        return Cluster(task.cluster_address)
    configured, namespace = find_cluster(), find_namespace()
    if configured is not None:
        return Cluster(configured.address, namespace)
    return _shared_cluster(namespace)


def _shared_cluster(namespace: str | None) -> LocalCluster:
    global _shared
    with _shared_lock:
        if _shared is None or _shared._rpc.closed:
            _shared = LocalCluster(namespace)
            atexit.register(_shared.shutdown)
            _log.warning(
                "no cluster is configured: started one on this machine that ends with this process; "
                "`fluster up` starts one that stays"
            )
        return _shared
