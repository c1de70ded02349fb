"""`FlusterBackend`: runs Zephyr's pipelines on a cluster; needs `marin-zephyr`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fray.types import ResourceConfig
from zephyr.context import ZephyrContext
from zephyr.runners import InlineRunner, SubprocessRunner

from fluster.cluster.validation import check_int, parse_bytes
from fluster.integrations.fray.client import FlusterClient

if TYPE_CHECKING:
    from zephyr.dataset import Dataset

    from fluster.cluster.client import Cluster


COORDINATOR_CPU: Final = 0.5
"""Zephyr's own 0.1 is too little where processors are busy: a share is a weight, and 3 s of imports come first."""


class FlusterBackend:
    """Runs each pipeline with a coordinator and workers of its own, which end with it.

    In a `with` block they stay for all pipelines of the block, at once or one after the other: starting them is most
    of what a small pipeline takes. Zephyr starts the coordinator of a single pipeline again when it dies, but not that
    of a block: its pipelines fail.

    Args:
        cluster: `None`: the one this program means.
        max_parallelism: At most so many workers; those for which there is no room wait, the others work.
        memory_per_worker: Bytes, or a size like "2GB".
        storage: Where chunks and results go: a directory or an fsspec path that all workers see; `None`: what Zephyr
            chooses, which is right on one machine.
        isolate_shards: Each shard is a program of its own, Zephyr's default: what it leaks or how it crashes harms no
            other, for the seconds that importing Zephyr takes. Else shards run in the workers.

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
        isolate_shards: bool = True,
    ) -> None:
        self._client = FlusterClient(cluster)
        self._max_parallelism = check_int(max_parallelism, "max_parallelism", low=1, high=1_000)
        self._memory_bytes = parse_bytes(memory_per_worker, "memory_per_worker")
        self._storage = storage
        self._runner = SubprocessRunner if isolate_shards else InlineRunner
        self._kept: ZephyrContext | None = None

    def __enter__(self) -> Self:
        if self._kept is not None:
            raise RuntimeError("this backend's workers are there already: make another FlusterBackend")
        self._kept = self._context().start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.shutdown()

    @property
    def context(self) -> ZephyrContext:
        """Zephyr's own view of a `with` block's workers, for what it can do beyond `execute`.

        Raises:
            RuntimeError: There is no such block.
        """
        if self._kept is None:
            raise RuntimeError("only in a `with` block of a FlusterBackend are there workers between pipelines")
        return self._kept

    def execute(self, dataset: Dataset) -> list[Any]:
        """The results of a pipeline: rows, or the paths of files that it wrote.

        Raises:
            ZephyrWorkerError: A shard failed again and again; the text has its last error.
        """
        context = self._kept if self._kept is not None else self._context()
        return list(context.execute(dataset).results)

    def _context(self) -> ZephyrContext:
        memory = f"{self._memory_bytes}B"
        return ZephyrContext(
            client=self._client,
            max_workers=self._max_parallelism,
            resources=ResourceConfig(cpu=1, ram=memory),
            coordinator_resources=ResourceConfig(cpu=COORDINATOR_CPU, ram=memory, preemptible=False),
            chunk_storage_prefix=self._storage,
            stage_runner_factory=self._runner,
            name="fluster",
        )
