"""The image of workers in containers: a public Python image with the Fluster that runs here."""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
import tarfile
import tempfile
from pathlib import Path

from fluster.cluster.docker.engine import Engine
from fluster.cluster.own_wheel import build_own_wheel

NAME = "fluster-worker"
_DOCKERFILE = Path(__file__).with_name("Dockerfile")
_LABEL = "fluster.image"


def default_base() -> str:
    """A public image with this interpreter's minor version, so that functions travel."""
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"


async def provide_worker_image(engine: Engine, base: str | None = None) -> str:
    """The name of an image that runs this Fluster; built unless it is here.

    Args:
        engine: Where it is to be.
        base: What it is built on, with Python and pip; default: a public image of this Python's version.

    Raises:
        FlusterError: It cannot be built; the text has the engine's words.
    """
    base = base or default_base()
    context = await asyncio.to_thread(_context)
    tag = f"{NAME}:{hashlib.sha256(base.encode() + context).hexdigest()[:16]}"
    if await engine.image(tag) is None:
        await engine.build(tag, context, {_LABEL: "worker"}, {"BASE": base})
    return tag


def _context() -> bytes:
    with tempfile.TemporaryDirectory(prefix="fluster-image-") as directory:
        wheel = build_own_wheel(Path(directory))
        files = {wheel.name: wheel.read_bytes(), "Dockerfile": _DOCKERFILE.read_bytes()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
