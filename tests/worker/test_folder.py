import os
from pathlib import Path

import pytest

from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.folder import Folder, Folders, Notes, check_uid, delete, lean
from fluster.cluster.worker.messages import callable_entrypoint, inline_payload
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec

SPEC = AttemptSpec(
    job_id="j", token="flt_hush", entrypoint=callable_entrypoint(inline_payload(b"pickled")), num_tasks=1
)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path)
    made.open()
    return made


def test_what_was_written_is_found_again(folders: Folders) -> None:
    notes = Notes(accepted_at=1.5, started=True, ports={"http": 1234}, gpus=(0, 2), stop_reason=StopReason.REQUESTED)
    folders.of("a").create(SPEC, notes)
    (found,) = folders.all()
    assert found.read_notes() == notes
    assert found.read_spec() == lean(SPEC)
    assert found.entrypoint.read_bytes() == b"pickled"


def test_the_token_is_in_its_own_private_file_alone(folders: Folders) -> None:
    folder = folders.of("a")
    folder.create(SPEC, Notes())
    assert folder.token.read_text() == "flt_hush"
    assert folder.token.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    holders = [path for path in folder.path.rglob("*") if path.is_file() and b"flt_hush" in path.read_bytes()]
    assert holders == [folder.token]


def test_a_directory_that_was_not_finished_was_never_accepted(folders: Folders) -> None:
    folders.of("a").path.mkdir()
    assert folders.of("a").read_notes() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"gpus": 3}', b'{"gpus": [], "stop_reason": "x"}'])
def test_damaged_notes_are_no_notes(folders: Folders, content: bytes) -> None:
    folder = folders.of("a")
    folder.create(SPEC, Notes())
    (folder.path / "notes.9").write_bytes(content)
    assert folder.read_notes() is None


def test_the_last_notes_count(folders: Folders) -> None:
    folder = folders.of("a")
    folder.create(SPEC, Notes())
    for master_port in range(1, 20):
        folder.write_notes(Notes(master_port=master_port))
    assert folder.read_notes() == Notes(master_port=19)


@pytest.mark.parametrize("uid", ["", ".", "..", "a/b", "/abs", "a\0b", "-x", "a..b", "ü", "x" * 129])
def test_a_uid_that_is_no_plain_name_is_refused(uid: str) -> None:
    with pytest.raises(ValueError, match="uid"):
        check_uid(uid)


def test_a_link_swapped_in_during_clean_up_leaves_its_target_untouched(folders: Folders, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_text("keep")
    folder = folders.of("a")
    folder.create(SPEC, Notes())
    folder.work.rmdir()
    folder.work.symlink_to(target)
    (folder.tmp / "link").symlink_to(target / "file")
    trash = folders.discard(folder)
    assert trash is not None
    delete(trash)
    assert not trash.exists()
    assert not folder.path.exists()
    assert (target / "file").read_text() == "keep"


def test_an_attempts_directory_that_is_itself_a_link_is_only_unlinked(folders: Folders, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_text("keep")
    folder = folders.of("a")
    folder.path.symlink_to(target)
    trash = folders.discard(folder)
    assert trash is not None
    delete(trash)
    assert not os.path.lexists(trash)
    assert (target / "file").read_text() == "keep"


def test_directories_that_a_job_closed_are_deleted(folders: Folders) -> None:
    folder = folders.of("a")
    folder.create(SPEC, Notes())
    closed = folder.work / "closed" / "inside"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o000)
    closed.parent.chmod(0o000)
    trash = folders.discard(folder)
    assert trash is not None
    if os.geteuid() == 0:
        # Root needs no permission: what helps others must not harm here.
        from fluster.cluster.worker.folder import _make_writable

        _make_writable(trash)
        assert (trash / "work" / "closed").stat().st_mode & 0o777 == 0o700
    delete(trash)
    assert not trash.exists()


def test_discarding_twice_and_a_name_that_comes_again_are_harmless(folders: Folders) -> None:
    for _ in range(2):
        folders.of("a").create(SPEC, Notes())
        assert folders.discard(folders.of("a")) is not None
    assert folders.discard(folders.of("a")) is None
    assert len(folders.trash()) == 2


def test_deleting_what_is_not_there_is_harmless(tmp_path: Path) -> None:
    delete(tmp_path / "nothing")


def test_a_folder_is_named_by_its_uid() -> None:
    assert Folder(Path("/x/attempts/u-1")).uid == "u-1"
