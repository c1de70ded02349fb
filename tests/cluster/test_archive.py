import gzip
import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fluster.cluster import archive
from fluster.cluster.archive import BadArchive, pack, unpack


def entry(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = len(content), kind, link
    return made, content


def hostile(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for info, content in entries:
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory with one inside it: what is unpacked there must not show here."""
    (tmp_path / "inside").mkdir()
    return tmp_path


def unpacked(content: bytes, outside: Path) -> dict[str, str]:
    unpack(io.BytesIO(content), outside / "inside")
    return {
        path.relative_to(outside / "inside").as_posix(): path.read_text()
        for path in (outside / "inside").rglob("*")
        if path.is_file()
    }


def test_files_links_and_their_right_to_be_executed_come_out_as_they_went_in(tmp_path: Path, outside: Path) -> None:
    source = tmp_path / "source"
    (source / "package" / "ä b").mkdir(parents=True)
    (source / "run.sh").write_text("echo")
    (source / "run.sh").chmod(0o700)
    (source / "package" / "ä b" / ("n" * 200)).write_text("long")
    (source / "package" / "up").symlink_to("../run.sh")
    os.mkfifo(source / "pipe")
    content = pack(source, ["run.sh", f"package/ä b/{'n' * 200}", "package/up", "pipe"])
    assert unpacked(content, outside) == {"run.sh": "echo", "package/up": "echo", f"package/ä b/{'n' * 200}": "long"}
    assert os.readlink(outside / "inside" / "package" / "up") == "../run.sh"
    assert os.access(outside / "inside" / "run.sh", os.X_OK)
    assert not os.access(outside / "inside" / "package" / "up" / "..", os.X_OK)


def test_the_same_files_give_the_same_bytes_whenever_they_were_written(tmp_path: Path) -> None:
    made = []
    for name, times in (("one", (1, 1)), ("two", (2e9, 2e9))):
        (tmp_path / name).mkdir()
        for file in ("b", "a"):
            (tmp_path / name / file).write_text(file)
            os.utime(tmp_path / name / file, times)
        made.append(pack(tmp_path / name, sorted("ab", reverse=name == "two")))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("../evil", b"x")], "is no path inside"),
        ([entry("a/../../evil", b"x")], "is no path inside"),
        ([entry("/evil", b"x")], "is no path inside"),
        ([entry("./a", b"x")], "is no path inside"),
        ([entry("a//b", b"x")], "is no path inside"),
        ([entry("a", b"x"), entry("a", b"y")], "twice"),
        ([entry("a", b"x"), entry("a/b", b"y")], "twice"),
        ([entry("a/b", b"x"), entry("a", b"y")], "twice"),
        ([entry("Readme", b"x"), entry("README", b"y")], "where case does not matter"),
        ([entry("d/x", b"x"), entry("D/y", b"y")], "where case does not matter"),
        ([entry("caf\u00e9", b"x"), entry("cafe\u0301", b"y")], "where case does not matter"),
        ([entry("l", kind=tarfile.SYMTYPE, link="/etc/passwd")], "leads out"),
        ([entry("l", kind=tarfile.SYMTYPE, link="../evil")], "leads out"),
        ([entry("d/l", kind=tarfile.SYMTYPE, link="../../evil")], "leads out"),
        ([entry("l", kind=tarfile.SYMTYPE, link="a/../../../evil")], "leads out"),
        (
            [
                entry("a/b/l", kind=tarfile.SYMTYPE, link="../.."),
                entry("m", kind=tarfile.SYMTYPE, link="a/b/l/../evil"),
            ],
            "down and up",
        ),
        ([entry("l", kind=tarfile.SYMTYPE, link="."), entry("l/evil", b"x")], "twice"),
        ([entry("h", kind=tarfile.LNKTYPE, link="/etc/passwd")], "neither a file nor"),
        ([entry("f", kind=tarfile.FIFOTYPE)], "neither a file nor"),
        ([entry("d", kind=tarfile.CHRTYPE)], "neither a file nor"),
        ([entry("n" * 300, b"x")], "too long a path"),
        ([entry("/".join("ab" * 40 for _ in range(60)), b"x")], "too long a path"),
    ],
)
def test_what_leads_out_or_is_there_twice_is_refused(
    entries: list[tuple[tarfile.TarInfo, bytes]], said: str, outside: Path
) -> None:
    with pytest.raises(BadArchive, match=said):
        unpacked(hostile(*entries), outside)
    assert [path.name for path in outside.iterdir()] == ["inside"]


def test_a_million_files_are_given_up_at_the_limit(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 50)
    written = hostile(*(entry(f"f{number}") for number in range(1000)))
    with pytest.raises(BadArchive, match="more than 50 files"):
        unpacked(written, outside)
    assert len(list((outside / "inside").iterdir())) == 50


def test_a_bomb_is_given_up_at_the_limit(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 100_000)
    monkeypatch.setattr(archive, "MAX_FILES", 10)
    with pytest.raises(BadArchive, match="more than 100,000 bytes"):
        unpacked(hostile(entry("zeros", bytes(10_000_000))), outside)
    # Nothing that is counted as a file's content.
    comment = b"600000 comment=".ljust(599_999, b"x") + b"\n"
    with pytest.raises(BadArchive, match="more than 100,000 bytes"):
        unpacked(gzip.compress(pax_of(600_000) + comment.ljust(600_064, b"\0") + entry("a")[0].tobuf()), outside)


def pax_of(size: int) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "made",
    [
        lambda: b"",
        lambda: b"PK\3\4 something else",
        lambda: gzip.compress(b"no tar" * 1000),
        lambda: hostile(entry("a", random.Random(1).randbytes(10_000)))[:5000],
        lambda: gzip.compress(entry("a", b"x" * 5000)[0].tobuf()),
        lambda: gzip.compress(pax_of(1 << 33) + bytes(4 << 20)),
        lambda: gzip.compress(b"".join([pax_of(512) + b"20 size=-1\n".ljust(512, b"\0")] * 3000)),
    ],
)
def test_what_is_no_archive_is_refused_in_words(made: Callable[[], bytes], outside: Path) -> None:
    with pytest.raises(BadArchive):
        unpacked(made(), outside)


def test_damaged_bytes_never_do_more_than_be_refused(outside: Path) -> None:
    chance = random.Random(7)
    raw = bytearray(gzip.decompress(hostile(*(entry(f"d/f{number}", b"x" * 700) for number in range(4)))))
    for number in range(100):
        damaged = bytearray(raw)
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(2100)] = chance.randrange(256)
        (outside / "inside").rename(outside / f"was{number}")
        (outside / "inside").mkdir()
        try:
            unpack(io.BytesIO(gzip.compress(bytes(damaged), 1)), outside / "inside")
        except BadArchive:
            pass
    assert {path.name for path in outside.iterdir()} == {"inside", *(f"was{number}" for number in range(100))}


def test_a_name_that_would_be_refused_is_not_packed(tmp_path: Path) -> None:
    for name in ("Readme", "README"):
        (tmp_path / name).touch()
    with pytest.raises(BadArchive, match="where case does not matter"):
        pack(tmp_path, ["Readme", "README"])
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(BadArchive, match="leads out"):
        pack(tmp_path, ["link"])


def test_it_stops_when_nobody_waits_any_more(tmp_path: Path) -> None:
    unpack(io.BytesIO(hostile(entry("a"), entry("b"))), tmp_path, go_on=lambda: not (tmp_path / "a").exists())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
