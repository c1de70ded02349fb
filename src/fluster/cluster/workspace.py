"""The user's directory as jobs get it: what belongs to it, sent once, and where modules are imported from in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster import transfer
from fluster.cluster.archive import MAX_BYTES, MAX_FILES, BadArchive, pack
from fluster.rpc.client import ConnectClient

_GIT_TIMEOUT_S = 60.0
_SHOWN = 5
_LEFT_OUT = frozenset(
    {".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox", ".nox", ".eggs", ".ipynb_checkpoints"}
    | {".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".cache", ".DS_Store"}
)
"""What is made from other files, wherever there is no git to say so."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A directory as it was sent.

    Attributes:
        directory: Where it is here.
        sha256: Of its archive.
        import_path: Its folders that modules are imported from, relative, most important first; "." is itself.
        files: What was sent, as real paths of this machine.
    """

    directory: Path
    sha256: str
    import_path: tuple[str, ...]
    files: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is known of an archive that was sent. `look`: how its files looked then."""

    look: tuple[tuple[object, ...], ...]
    sha256: str
    size: int


class Workspaces:
    """Sends directories to one controller, each state of one once."""

    def __init__(self, rpc: ConnectClient) -> None:
        self._rpc = rpc
        self._sent: dict[Path, _Sent] = {}

    def send(self, directory: str, import_path: Sequence[str]) -> Workspace:
        """The directory as it is now.

        Args:
            directory: Files that git tracks, and those it would not ignore; without git all but what is made of others.
            import_path: Where this process imports from.

        Raises:
            ValueError: It is no directory, it holds too much, or names or links that cannot be unpacked elsewhere.
            ResourceExhausted: The controller has no room for it.
        """
        root = Path(directory).resolve()
        names = list_files(root)
        look = tuple(_look(root, name) for name in names)
        sent = self._sent.get(root)
        if sent is None or sent.look != look or not transfer.is_there(self._rpc, sent.sha256, sent.size):
            content = _pack(root, names)
            sent = self._sent[root] = _Sent(look, transfer.put(self._rpc, content), len(content))
        files = frozenset(os.path.realpath(root / name) for name in names)
        return Workspace(root, sent.sha256, _folders(root, import_path), files)


def list_files(root: Path) -> list[str]:
    """Names of what belongs to a workspace, sorted, relative to it.

    Raises:
        ValueError: It is no directory, or there is more in it than can be sent; the largest files are named.
    """
    if not root.is_dir():
        raise ValueError(f"workspace must be a directory, got {str(root)!r}")
    asked = _ask_git(root)
    names = sorted(asked) if asked else sorted(_walk(root))
    sizes = {name: _size(root / name) for name in names}
    total = sum(sizes.values())
    if total <= MAX_BYTES and len(names) <= MAX_FILES:
        return names
    largest = sorted(names, key=lambda name: -sizes[name])[:_SHOWN]
    shown = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
    advice = "have git ignore what jobs do not need" if asked else "there is no git here to say what jobs do not need"
    raise ValueError(
        f"the workspace {root} is too large to send: {total / 1e6:.1f} MB in {len(names):,} files, at most"
        f" {MAX_BYTES / 1e6:.0f} MB in {MAX_FILES:,}; the largest are {shown}; {advice}, or put data where workers can"
        " read it"
    )


def _ask_git(root: Path) -> list[str] | None:
    """Files that git tracks here or would not ignore, with those of repositories below; `None`: git does not say."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    # A hook or an editor may have left variables that lead to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    found: dict[str, None] = {}
    for name in map(os.fsdecode, answer.stdout.split(b"\0")):
        path = root / name.rstrip("/")
        if not name or not os.path.lexists(path):  # deleted, and not committed yet
            continue
        if path.is_dir() and not path.is_symlink():  # a repository of its own
            prefix = name.rstrip("/")
            below = _ask_git(path)
            found.update(dict.fromkeys(f"{prefix}/{each}" for each in (_walk(path) if below is None else below)))
        else:
            found[name] = None
    return list(found)


def _walk(root: Path) -> Iterator[str]:
    """All files but those of environments and caches; links are not followed."""
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if each not in _LEFT_OUT and not _is_environment(Path(folder, each))]
        linked = [each for each in folders if os.path.islink(os.path.join(folder, each))]
        for name in (*names, *linked):
            if name not in _LEFT_OUT and not name.endswith((".pyc", ".pyo")):
                yield os.path.relpath(os.path.join(folder, name), root)


def _is_environment(path: Path) -> bool:
    return (path / "pyvenv.cfg").exists()


def _size(path: Path) -> int:
    return path.lstat().st_size


def _look(root: Path, name: str) -> tuple[object, ...]:
    """What changes when the file does."""
    status = (root / name).lstat()
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode


def _pack(root: Path, names: Sequence[str]) -> bytes:
    try:
        return pack(root, names)
    except BadArchive as error:
        raise ValueError(f"the workspace {root} cannot be sent: {error}; rename it, or have git ignore it") from error
    except OSError as error:
        raise ValueError(f"the workspace {root} cannot be sent: {error.filename}: {error.strerror}") from error


def _folders(root: Path, import_path: Sequence[str]) -> tuple[str, ...]:
    """Folders of the workspace that this process imports from, then itself, then `src` as projects have it."""
    found: Mapping[str, None] = dict.fromkeys(
        os.path.relpath(path, root) for path in map(os.path.realpath, import_path) if Path(path).is_relative_to(root)
    )
    usual = [".", "src"] if (root / "src").is_dir() and not (root / "src" / "__init__.py").exists() else ["."]
    return tuple(dict.fromkeys([*found, *usual]))
