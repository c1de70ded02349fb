"""`fluster` whose controller has machines, with the backend `docker`, as a test wants them; its first word says which.

`wide`: two, all the time, of two cores each. `narrow`: up to four, as there is work, which one task each fills; those
that are silent or idle are given back within seconds.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from fluster.cli import main
from fluster.cluster.controller import main as controller
from fluster.cluster.controller.core.rows import Offer, Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.server import ControllerConfig

WIDE = Resources(2_000, 4_000_000_000, slots=100, disk_bytes=0)
NARROW = Resources(500, 200_000_000, slots=4, disk_bytes=0)
_SETTINGS = {
    "wide": Settings(backend="docker", offers=(Offer("docker", WIDE, at_least=2, at_most=2),)),
    "narrow": Settings(
        worker_lease_s=6.0,
        stop_grace_s=1.0,
        lease_margin_s=1.0,
        silent_release_s=4.0,
        idle_release_s=1.0,
        backend="docker",
        offers=(Offer("docker", NARROW, at_most=4),),
    ),
}
_configured = controller._config


def _as_wanted(options: controller.ServeOptions) -> ControllerConfig:
    return replace(_configured(options), settings=_SETTINGS[_kind])


if __name__ == "__main__":
    _kind = sys.argv.pop(1)
    controller._config = _as_wanted
    sys.exit(main())
