"""Packages for tests of environments: tiny ones made here, and what Fluster needs out of what is installed."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

NEEDED = ("cloudpickle", "protobuf-py", "protobuf-py-ext", "protobuf-py-pure", "typing-extensions")
"""By Fluster's own job side."""


def make_wheel(
    directory: Path, name: str, version: str, files: Mapping[str, str], requires: tuple[str, ...] = ()
) -> Path:
    """A pure wheel of these files."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    about = {
        "METADATA": "\n".join([*lines, ""]),
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    contents = {**files, **{f"{info}/{key}": text for key, text in about.items()}}
    path = directory / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    _write(path, info, {key: text.encode() for key, text in contents.items()})
    return path


def make_sdist(directory: Path, name: str, version: str, backend: str, code: str) -> Path:
    """A source distribution that is built by `code`."""
    project = f"[project]\nname='{name}'\nversion='{version}'\n"
    build = f"[build-system]\nrequires=[]\nbuild-backend='{backend}'\nbackend-path=['.']\n"
    path = directory / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in (("pyproject.toml", project + build), (f"{backend}.py", code)):
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def make_needed_wheels(directory: Path) -> None:
    """Wheels of what Fluster's job side needs, out of the files installed here."""
    for name in NEEDED:
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # no compiled form for this platform
        _write(directory / _file_name(installed), _info(installed), dict(_files(installed)))


def _info(installed: metadata.Distribution) -> str:
    return f"{installed.metadata['Name'].replace('-', '_')}-{installed.version}.dist-info"


def _file_name(installed: metadata.Distribution) -> str:
    tags = [
        line.partition(": ")[2]
        for line in (installed.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    ]
    python, abi, _ = tags[0].split("-")
    platforms = ".".join(tag.split("-")[2] for tag in tags)
    return f"{_info(installed).removesuffix('.dist-info')}-{python}-{abi}-{platforms}.whl"


def _files(installed: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    for file in installed.files or ():
        made_by_installer = file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
        if not made_by_installer and not file.name.endswith(".pyc") and file.parts[0] != "..":
            yield file.as_posix(), Path(str(file.locate())).read_bytes()


def _write(path: Path, info: str, contents: Mapping[str, bytes]) -> None:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(content)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
