"""The controller's process: `python -m fluster.cluster.controller serve …`."""

import sys

from fluster.cluster.loading import uncollected

if __name__ == "__main__":
    with uncollected():
        from fluster.cluster.controller.main import main
    sys.exit(main())
