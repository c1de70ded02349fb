"""`python -m fluster` is the `fluster` command."""

import sys

from fluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
