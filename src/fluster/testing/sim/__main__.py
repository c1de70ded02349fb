"""`python -m fluster.testing.sim`."""

import sys

from fluster.testing.sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
