"""Fluster's own wheel, made again from the files it runs from: what new machines and environments get it by.

Never by name from an index: there that name may be somebody else's, and the version another one.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import os
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fluster
from fluster.cluster.attempt.files import write_atomically
from fluster.errors import FlusterError

_NAME = "fluster-cluster"
_TAG = "py3-none-any"
_WHEEL = f"Wheel-Version: 1.0\nGenerator: fluster\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
# The first moment a zip archive knows: the same files give the same bytes.
_WHEN = (1980, 1, 1, 0, 0, 0)


def build_own_wheel(directory: Path) -> Path:
    """A wheel of the Fluster that runs here, written into `directory`; the same files give the same bytes.

    Works for ordinary and editable installs, and for a source tree on the import path.

    Raises:
        FlusterError: Nothing here says what Fluster depends on: it is neither installed nor in its source tree.
    """
    metadata = _metadata()
    prefix = f"{_NAME.replace('-', '_')}-{_field(metadata['METADATA'], 'Version')}"
    files = dict(_package_files(Path(fluster.__file__).parent))
    files |= {f"{prefix}.dist-info/{name}": content for name, content in metadata.items()}
    record = f"{prefix}.dist-info/RECORD"
    files[record] = _record(files, record)
    path = directory / f"{prefix}-{_TAG}.whl"
    write_atomically(path, _archive(files))
    return path


def _package_files(package: Path) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(each for each in folders if each != "__pycache__" and not each.startswith("."))
        for name in sorted(names):
            if not name.endswith((".pyc", "~")) and not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(package.parent).as_posix(), path.read_bytes()


def _metadata() -> dict[str, bytes]:
    """The files of the wheel's `.dist-info`, but for its list of files."""
    try:
        installed = importlib.metadata.distribution(_NAME)
    except importlib.metadata.PackageNotFoundError:
        return {"METADATA": _metadata_of_source_tree(), "WHEEL": _WHEEL.encode()}
    files = {"WHEEL": _WHEEL.encode()}
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        if (text := installed.read_text(name)) is not None:
            files[name] = text.encode()
    return files


def _metadata_of_source_tree() -> bytes:
    """What an installed Fluster's METADATA would say, as far as an installer of the job side reads it."""
    path = Path(fluster.__file__).parents[2] / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        if project["name"] != _NAME:
            raise KeyError(project["name"])
        lines = [f"Name: {_NAME}", f"Version: {project['version']}", f"Requires-Python: {project['requires-python']}"]
        lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    except (OSError, ValueError, KeyError) as error:
        raise FlusterError(
            f"no wheel of Fluster can be made from {Path(fluster.__file__).parent}: no {_NAME} is installed in this"
            " interpreter and no source tree is around it; install Fluster with pip"
        ) from error
    return "\n".join(["Metadata-Version: 2.4", *lines, ""]).encode()


def _field(metadata: bytes, name: str) -> str:
    prefix = f"{name}: "
    for line in metadata.decode().splitlines():
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    raise FlusterError(f"the metadata of the installed {_NAME} have no {name}; install Fluster again")


def _record(files: dict[str, bytes], record: str) -> bytes:
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    return "\n".join([*rows, f"{record},,", ""]).encode()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
