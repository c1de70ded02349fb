"""`fluster` whose controller waits 1 s each for stops and for what clocks and kernels take, not 10 s and 5 s.

After `--cloud DIRECTORY` it has one machine from a `cloud.Cloud`, and gives one back that is silent for 4 s, not 60 s.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from fluster.cli import main
from fluster.cluster.controller import main as controller
from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.controller.server import ControllerConfig, MakeBackend

_configured = controller._config
_MACHINE = Resources(1_000, 1_000_000_000, slots=4)


def _brisk(options: controller.ServeOptions) -> ControllerConfig:
    config = _configured(options)
    return replace(config, settings=replace(config.settings, stop_grace_s=1.0, lease_margin_s=1.0))


def _clouded(options: controller.ServeOptions) -> ControllerConfig:
    config = _brisk(options)
    settings = replace(config.settings, backend="cloud", pool=(_MACHINE,), silent_release_s=4.0)
    return replace(config, settings=settings)


def _use_cloud(directory: Path) -> None:
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.network.cloud import Cloud

    def cloud(options: controller.ServeOptions) -> MakeBackend:
        assert options.backend == "none"
        return lambda running: Cloud(directory, running.address, running.join_token)

    controller._config = _clouded
    controller._backend = cloud


if __name__ == "__main__":
    controller._config = _brisk
    if sys.argv[1] == "--cloud":
        _use_cloud(Path(sys.argv[2]))
        del sys.argv[1:3]
    sys.exit(main())
