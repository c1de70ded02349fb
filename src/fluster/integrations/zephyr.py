"""`FlusterBackend`: runs Zephyr's pipelines on a cluster; needs `marin-zephyr`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fray.types import ResourceConfig
from zephyr.context import ZephyrContext

from fluster.cluster.validation import check_int, parse_bytes
from fluster.integrations.fray.client import FlusterClient

if TYPE_CHECKING:
    from zephyr.dataset import Dataset

    from fluster.cluster.client import Cluster


COORDINATOR_CPU: Final = 0.5
"""Zephyr's own 0.1 is too little where processors are busy: a share is a weight, and 3 s of imports come first."""


class FlusterBackend:
    """Runs each pipeline with a coordinator and workers of its own, which end with it.

    Args:
        cluster: `None`: the one this program means.
        max_parallelism: At most so many workers; those for which there is no room wait, the others work.
        memory_per_worker: Bytes, or a size like "2GB".
        storage: Where chunks and results go: a directory or an fsspec path that all workers see; `None`: what Zephyr
            chooses, which is right on one machine.

    Raises:
        ValueError: A value breaks its rule.
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        max_parallelism: int = 100,
        memory_per_worker: str = "2GB",
        *,
        storage: str | None = None,
    ) -> None:
        self._client = FlusterClient(cluster)
        self._max_parallelism = check_int(max_parallelism, "max_parallelism", low=1, high=1_000)
        self._memory_bytes = parse_bytes(memory_per_worker, "memory_per_worker")
        self._storage = storage

    def execute(self, dataset: Dataset) -> list[Any]:
        """The results of a pipeline: rows, or the paths of files that it wrote.

        Raises:
            ZephyrWorkerError: A shard failed again and again; the text has its last error.
        """
        memory = f"{self._memory_bytes}B"
        context = ZephyrContext(
            client=self._client,
            max_workers=self._max_parallelism,
            resources=ResourceConfig(cpu=1, ram=memory),
            coordinator_resources=ResourceConfig(cpu=COORDINATOR_CPU, ram=memory, preemptible=False),
            chunk_storage_prefix=self._storage,
            name="fluster",
        )
        return list(context.execute(dataset).results)
