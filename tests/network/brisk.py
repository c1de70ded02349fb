"""`fluster` whose controller waits 1 s each for stops and for what clocks and kernels take, not 10 s and 5 s."""

from __future__ import annotations

import sys
from dataclasses import replace

from fluster.cli import main
from fluster.cluster.controller import main as controller
from fluster.cluster.controller.server import ControllerConfig

_configured = controller._config


def _brisk(options: controller.ServeOptions) -> ControllerConfig:
    config = _configured(options)
    return replace(config, settings=replace(config.settings, stop_grace_s=1.0, lease_margin_s=1.0))


if __name__ == "__main__":
    controller._config = _brisk
    sys.exit(main())
