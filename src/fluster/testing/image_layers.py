"""Layers of images that tests run in, as tar files."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

UID = 1000
_USERS = "root:x:0:0::/root:/bin/sh\nfluster:x:{uid}:{uid}::/home/fluster:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
_GROUPS = "root:x:0:\nfluster:x:{uid}:\nnogroup:x:65534:\n"
_SCRIPT = b"#!/usr/local/bin/python3\nfrom fluster.cli import main\nraise SystemExit(main())\n"
_HOMES = ("home/fluster", "var/lib/fluster", "var/lib/fluster-join")
_DIRECTORIES = {
    **{"tmp": 0o1777, "var/tmp": 0o1777, "run": 0o755},
    **{"proc": 0o555, "sys": 0o555, "dev": 0o755, "root": 0o700},
}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


def layer(files: Mapping[str, Path | bytes], links: Mapping[str, str] | None = None, *, system: bool = False) -> bytes:
    """A tar with these files.

    Args:
        files: By name in the image: where each is here, or what is in it.
        links: What symbolic links are called, and where they lead.
        system: With the directories, users and commands that any image has.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if system:
            _add_system(tar)
        for name, found in sorted(files.items()):
            if isinstance(found, bytes):
                _add(tar, name, content=found)
            else:
                # Bytecode goes in as well, and holds for a source of the same time only.
                mode = 0o755 if os.access(found, os.X_OK) else 0o644
                _add(tar, name, mode=mode, content=found.read_bytes(), of=found)
        for name, target in (links or {}).items():
            _add(tar, name, tarfile.SYMTYPE, 0o777, link=target)
    return packed.getvalue()


def _add_system(tar: tarfile.TarFile) -> None:
    for name, mode in _DIRECTORIES.items():
        _add(tar, name, tarfile.DIRTYPE, mode)
    for name, target in _LINKS.items():
        _add(tar, name, tarfile.SYMTYPE, 0o777, link=target)
    for name in _HOMES:
        _add(tar, name, tarfile.DIRTYPE, 0o755, uid=UID)
    _add(tar, "usr/local/bin/python", tarfile.SYMTYPE, 0o777, link="python3")
    _add(tar, "usr/local/bin/fluster", mode=0o755, content=_SCRIPT)
    _add(tar, "etc/passwd", content=_USERS.format(uid=UID).encode())
    _add(tar, "etc/group", content=_GROUPS.format(uid=UID).encode())
    _add(tar, "etc/nsswitch.conf", content=b"hosts: files dns\n")


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    *,
    link: str = "",
    content: bytes = b"",
    uid: int = 0,
    of: Path | None = None,
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(content)
    entry.uid = entry.gid = uid
    entry.mtime = int(of.stat().st_mtime) if of is not None else 0
    tar.addfile(entry, io.BytesIO(content))
