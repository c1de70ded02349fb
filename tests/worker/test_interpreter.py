import sys
from pathlib import Path

import pytest

from fluster.cluster.worker.interpreter import NoInterpreter, choose_interpreter, minor, same_interpreter, satisfies

OWN = "{}.{}.{}".format(*sys.version_info[:3])


def fake(path: Path, version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


async def test_without_a_wish_it_is_the_workers_own() -> None:
    assert await choose_interpreter(None, None) == (sys.executable, OWN)


async def test_the_workers_default_comes_next(tmp_path: Path) -> None:
    default = str(fake(tmp_path / "py", "3.13.1"))
    assert await choose_interpreter(None, default) == (default, "3.13.1")


async def test_a_version_that_the_default_has_needs_no_other() -> None:
    assert await choose_interpreter(minor(OWN), None) == (sys.executable, OWN)
    assert await choose_interpreter(OWN, None) == (sys.executable, OWN)


async def test_another_version_is_looked_up_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake(tmp_path / "python3.98", "3.98.2")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert await choose_interpreter("3.98", None) == (str(found), "3.98.2")
    with pytest.raises(NoInterpreter, match=r"3\.98\.7 was asked for, but .* is 3\.98\.2"):
        await choose_interpreter("3.98.7", None)


async def test_a_script_on_the_path_that_starts_an_interpreter_stands_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python3.98"
    script.write_text("#!/bin/sh\necho 3.98.2\necho /opt/python/bin/python3.98\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert await choose_interpreter("3.98", None) == ("/opt/python/bin/python3.98", "3.98.2")


def test_links_of_one_environment_are_one_interpreter_and_those_of_two_are_not(tmp_path: Path) -> None:
    real = fake(tmp_path / "real", "3.12.0")
    for name in ("one/python", "one/python3", "two/python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(real)
    assert same_interpreter(str(tmp_path / "one/python"), str(tmp_path / "one/python3"))
    assert not same_interpreter(str(tmp_path / "one/python"), str(tmp_path / "two/python"))


async def test_a_version_is_no_prefix_of_a_number() -> None:
    with pytest.raises(NoInterpreter):
        await choose_interpreter(OWN[:3], None)  # "3.1" of "3.11": another Python


async def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = str(fake(tmp_path / "python", "3.12.0"))
    assert await choose_interpreter(path, None) == (path, "3.12.0")


async def test_what_is_missing_or_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoInterpreter, match=r"python3\.97"):
        await choose_interpreter("3.97", None)
    with pytest.raises(NoInterpreter, match="nowhere"):
        await choose_interpreter("/nowhere/python", None)
    with pytest.raises(NoInterpreter, match="does not run as a Python"):
        await choose_interpreter(str(fake(tmp_path / "odd", "hello")), None)
    (tmp_path / "plain").write_text("text")
    with pytest.raises(NoInterpreter, match="does not run as a Python"):
        await choose_interpreter(str(tmp_path / "plain"), None)


@pytest.mark.parametrize(
    ("wanted", "is_met"),
    [
        *[("", True), (">=3.11", True), (">=3.12", False), (">=3.11,<3.12", True), (">=3.9, <3.11", False)],
        *[("==3.11.*", True), ("==3.11", False), ("!=3.11.*", False), ("!=3.11.7", False), ("!=3.11", True)],
        *[("~=3.10", True), ("~=3.12", False), ("~=3.11.2", True), ("~=3.11.8", False), ("~=4.0", False)],
        *[
            (">3.11", True),
            (">3.11.7", False),
            ("<=3.11", False),
            ("<=3.11.7", True),
            ("<4", True),
            ("gibberish", True),
        ],
    ],
)
def test_a_projects_python_is_compared_as_versions_are(wanted: str, is_met: bool) -> None:
    assert satisfies("3.11.7", wanted) is is_met
