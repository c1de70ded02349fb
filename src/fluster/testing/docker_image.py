"""An image of this machine's own Python with Fluster and what it needs, made without any registry, for tests.

A container of it runs the very interpreter and packages that the test runs, so that functions travel between the two.
Only as much of the system goes in as those need, by what `ldd` says, and a few commands.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import fluster
from fluster.cluster.docker.engine import Engine, EngineError
from fluster.testing import image_layers
from fluster.testing.image_layers import UID, layer

NAME = "fluster-test"
_PACKAGES = ("fluster-cluster[server]", "pip")
_LABEL = "fluster.testing.image"
_COMMANDS = [
    *(
        "sh",
        "bash",
        "env",
        "cat",
        "ls",
        "cp",
        "mv",
        "rm",
        "ln",
        "mkdir",
        "chmod",
        "touch",
        "id",
        "uname",
        "head",
        "tail",
    ),
    *("grep", "sed", "tr", "wc", "sort", "cut", "seq", "date", "sleep", "tee", "timeout", "true", "false", "echo"),
    *("printf", "dd", "chown", "stat", "readlink", "kill", "ps", "setsid", "nohup", "yes"),
]
_NOT_NEEDED = {
    *("test", "tests", "site-packages", "dist-packages", "ensurepip", "tkinter", "idlelib", "turtledemo"),
    *("lib2to3", "pydoc_data"),
}
_NOT_NEEDED_SUFFIXES = (".a", ".opt-1.pyc", ".opt-2.pyc")
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


async def provide_test_image(engine: Engine) -> str:
    """The name of an image with this interpreter and Fluster; it is made unless it is here. Older ones are removed."""
    return await provide_image_with(engine, NAME, await provide_test_base(engine), dict(_fluster()))


async def provide_image_with(
    engine: Engine,
    name: str,
    base: str,
    files: Mapping[str, Path | bytes],
    links: Mapping[str, str] | None = None,
) -> str:
    """An image with further files on another one; it is made unless it is here. Older ones of that name are removed.

    Args:
        engine: Where it is to be.
        name: Of the image, before its tag.
        base: Image it is made on.
        files: By name in the image: where each is here, or what is in it.
        links: What symbolic links are called, and where they lead.
    """
    tag = f"{name}:{_digest({**files, base: json.dumps(links).encode()})}"
    with _one_at_a_time():
        if await engine.image(tag) is None:
            added = layer(files, links)
            await engine.build(
                tag,
                layer({"Dockerfile": f"FROM {base}\nADD files.tar /\n".encode(), "files.tar": added}),
                {_LABEL: "1"},
            )
            await _remove_others(engine, tag, base)
    return tag


async def provide_test_base(engine: Engine) -> str:
    """The same without Fluster, but with pip and all that Fluster needs: large, and the same for a long time."""
    files = dict(_files())
    tag = f"{NAME}-base:{_digest(files)}"
    with _one_at_a_time():
        if await engine.image(tag) is None:
            packed = layer({**files, **dict(libraries(files.values()))}, system=True)
            await engine.import_image(tag, packed, _changes())
    return tag


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Tests that run side by side need it at the same moment."""
    with open(Path(tempfile.gettempdir()) / f"{NAME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def _remove_others(engine: Engine, *kept: str) -> None:
    names = {each.partition(":")[0] for each in kept}
    for image in await engine.images({_LABEL: ""}):
        for other in image["RepoTags"] or ():
            if other not in kept and other.partition(":")[0] in names:
                with contextlib.suppress(EngineError):  # somebody still uses it
                    await engine.remove_image(other)


def _changes() -> list[str]:
    return [*(f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()), f"LABEL {_LABEL}=1", f"USER {UID}"]


def _digest(files: Mapping[str, Path | bytes]) -> str:
    seen = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), Path(image_layers.__file__)):
        seen.update(path.read_bytes())
    for name, found in sorted(files.items()):
        if isinstance(found, bytes):
            seen.update(name.encode() + found)
        elif found.suffix != ".pyc":  # written anew whenever some program likes
            status = found.stat()
            seen.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def _files() -> Iterator[tuple[str, Path]]:
    """Name in the image, and where it is here."""
    yield "usr/local/bin/python3", Path(os.path.realpath(sys.executable))
    for command, path in _commands().items():
        yield f"usr/bin/{command}", path
    yield from _standard_library().items()
    yield from _modules()


def _commands() -> dict[str, Path]:
    found = {command: shutil.which(command, path="/usr/bin:/bin") for command in _COMMANDS}
    return {command: Path(os.path.realpath(path)) for command, path in found.items() if path is not None}


def _library_directory() -> str:
    return f"lib/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"


def _standard_library() -> dict[str, Path]:
    root, inside = Path(sysconfig.get_path("stdlib")), _python_directory()
    return {f"{inside}/{path.relative_to(root)}": path for path in tree(root)}


def _python_directory() -> str:
    return f"usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}"


def tree(root: Path) -> Iterator[Path]:
    """The files below, without those that no program needs."""
    for top, directories, names in os.walk(root):
        directories[:] = [each for each in directories if each not in _NOT_NEEDED and not each.startswith("config-")]
        yield from (
            Path(top, name) for name in names if not name.endswith(_NOT_NEEDED_SUFFIXES) and "_tkinter" not in name
        )


def _modules() -> Iterator[tuple[str, Path]]:
    site = f"{_python_directory()}/site-packages"
    for name, distribution in _distributions(_PACKAGES).items():
        if name == "fluster-cluster":
            continue
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and path.suffix != ".pth" and path.is_file():
                yield f"{site}/{file}", path


def _fluster() -> Iterator[tuple[str, Path]]:
    """Its own modules: an editable install lists none of its files."""
    package = Path(fluster.__file__).parent
    for path in tree(package):
        yield f"{_python_directory()}/site-packages/fluster/{path.relative_to(package)}", path


def _distributions(packages: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Those named, and what they need here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting, seen = [(_parsed(each)) for each in packages], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform, or an extra that is not installed
        for requirement in found[name].requires or ():
            needed, _, condition = requirement.partition(";")
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", condition)
            if extra is None or extra.group(1) in extras:
                waiting.append(_parsed(needed))
    return found


def _parsed(requirement: str) -> tuple[str, tuple[str, ...]]:
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?", requirement)
    assert match is not None
    extras = tuple(each.strip() for each in (match.group(2) or "").split(",") if each.strip())
    return re.sub(r"[-_.]+", "-", match.group(1)).lower(), extras


def libraries(programs: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Shared libraries that these programs and modules load."""
    paths = sorted({str(path) for path in programs if path.suffix not in (".py", ".pyc") and _is_elf(path)})
    # Some are no programs that ldd can look at, which it says by its status.
    said = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False).stdout
    words = {word for line in said.splitlines() if line.startswith("\t") for word in line.split()}
    for library in (Path(word) for word in words if word.startswith("/")):
        where = "lib64" if library.name.startswith("ld-linux") else _library_directory()
        yield f"usr/{where}/{library.name}", Path(os.path.realpath(library))


def _is_elf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
