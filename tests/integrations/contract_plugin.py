"""Has fray's own tests, which name its LocalClient, test Fluster's client instead. Loaded by pytest with -p."""

from __future__ import annotations

import copyreg
import threading
from typing import Any

import fray.local_backend

from fluster import LocalCluster
from fluster.integrations.fray import FlusterClient

_CLUSTER = LocalCluster(cpu=32, memory="256GB")


# Two tests have a job wait for an event that is set only to clean up: a job may as well have one of its own.
copyreg.pickle(threading.Event, lambda _: (threading.Event, ()))


def _client(max_threads: int = 0) -> FlusterClient:
    return FlusterClient(_CLUSTER)


fray.local_backend.LocalClient = _client


def pytest_unconfigure(config: Any) -> None:
    """Ends the cluster."""
    _CLUSTER.shutdown()
