"""Where the daemons of this machine keep their state."""

from __future__ import annotations

import os
from pathlib import Path


def state_home() -> Path:
    """`$XDG_STATE_HOME/fluster`, by default below the home directory."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    # The XDG specification tells to ignore relative paths.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "fluster"
