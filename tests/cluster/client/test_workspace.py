import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fluster.cluster import workspace
from fluster.cluster.workspace import list_files


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "repository"
    write(root, "tracked.py", "deleted.py", "tracked_but_ignored.log", "new.py", "ignored.log", "build/x", "ä/ö.py")
    write(root, ".gitignore")
    git(root.parent, "init", "-q", str(root))
    (root / ".gitignore").write_text("*.log\nbuild/\n")
    git(root, "add", "--force", "tracked.py", "deleted.py", "tracked_but_ignored.log")
    (root / "deleted.py").unlink()
    return root


def test_git_says_what_belongs_to_it(repository: Path) -> None:
    assert list_files(repository) == [".gitignore", "new.py", "tracked.py", "tracked_but_ignored.log", "ä/ö.py"]


def test_a_folder_of_a_repository_is_a_workspace_too(repository: Path) -> None:
    assert list_files(repository / "ä") == ["ö.py"]
    write(repository, "build/y")  # ignored as a whole: git has nothing to say about it
    assert list_files(repository / "build") == ["x", "y"]


def test_repositories_inside_come_along_by_their_own_rules(repository: Path) -> None:
    inner = repository / "inner"
    write(inner, "a.py", "b.tmp")
    git(repository, "init", "-q", str(inner))
    (inner / ".gitignore").write_text("*.tmp\n")
    assert [name for name in list_files(repository) if name.startswith("inner")] == ["inner/.gitignore", "inner/a.py"]


def test_variables_of_a_git_hook_lead_to_no_other_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(repository / "nothing"))
    assert "tracked.py" in list_files(repository)


def test_without_git_all_but_what_is_made_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path, "a.py", "b/c.py", "b/__pycache__/c.pyc", "node_modules/x", "env/pyvenv.cfg", "env/bin/python", "x.pyc"
    )
    write(tmp_path, ".hidden", ".git/HEAD")
    (tmp_path / "link").symlink_to("b")
    monkeypatch.setenv("PATH", "")
    assert list_files(tmp_path) == [".hidden", "a.py", "b/c.py", "link"]


def test_what_is_too_large_is_refused_with_the_largest_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MAX_BYTES", 1_000_000)
    (repository / "big").write_bytes(bytes(2_000_000))
    (repository / "bigger").write_bytes(bytes(3_000_000))
    with pytest.raises(
        ValueError, match=r"5\.0 MB in 7 files, at most 1 MB.*bigger \(3\.0 MB\), big \(2\.0 MB\).*git ignore"
    ):
        list_files(repository)
    monkeypatch.setattr(workspace, "MAX_BYTES", 100_000_000)
    monkeypatch.setattr(workspace, "MAX_FILES", 6)
    with pytest.raises(ValueError, match="in 7 files"):
        list_files(repository)


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a directory, got .*nothing"):
        list_files(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "out").symlink_to("/etc"), "the link 'out' leads out, to '/etc'"),
        (lambda root: write(root, "New.py"), "one name where case does not matter"),
    ],
)
def test_what_could_not_be_unpacked_is_not_sent(repository: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(repository)
    with pytest.raises(ValueError, match=said):
        workspace._pack(repository, list_files(repository))


def test_folders_that_are_imported_from_come_first(repository: Path) -> None:
    write(repository, "src/x.py", "scripts/y.py")
    given = [str(repository / "scripts"), str(repository.parent), os.fspath(repository)]
    assert workspace._folders(repository, given) == ("scripts", ".", "src")
    write(repository, "src/__init__.py")
    assert workspace._folders(repository, []) == (".",)
