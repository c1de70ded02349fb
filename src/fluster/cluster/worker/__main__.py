"""The worker's process: `python -m fluster.cluster.worker serve …`."""

import sys

from fluster.cluster.loading import uncollected

if __name__ == "__main__":
    with uncollected():
        from fluster.cluster.worker.main import main
    sys.exit(main())
