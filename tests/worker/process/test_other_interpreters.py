"""Functions under an interpreter that is not the worker's: forked from a zygote of it, where a fork is as good."""

import os
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fluster


@pytest.fixture
def other(tmp_path: Path) -> Callable[..., Path]:
    """Makes an environment that finds this one's packages, and more by lines for `site` to read at each start."""

    def make(*lines: str) -> Path:
        root = tmp_path / "other"
        venv.create(root, symlinks=True)
        packages = sysconfig.get_path("purelib", "venv", {"base": str(root), "platbase": str(root)})
        found = [sysconfig.get_path("purelib"), str(Path(fluster.__file__).parents[1]), *lines]
        Path(packages, "found.pth").write_text("\n".join(found))
        return root / "bin" / "python"

    return make


def look() -> Any:
    def work() -> tuple[str, str, bool]:
        import sys

        return sys.executable, sys.orig_argv[3].rpartition(".")[2], hasattr(sys, "added_later")

    return work


async def test_functions_are_forked_from_a_zygote_of_the_interpreter_they_ask_for(lab: Any, other: Any) -> None:
    python = str(other())
    async with lab() as it:
        ended = [await it.run(look(), python=python) for _ in range(2)]
        own = await it.run(look())
    assert [each.value for each in ended] == [(python, "zygote", False)] * 2
    assert own.value == (sys.executable, "zygote", False)


async def test_what_was_installed_since_is_found(lab: Any, other: Any) -> None:
    python = other()
    async with lab() as it:
        await it.run(look(), python=str(python))
        (packages,) = python.parents[1].glob("lib/python3*/site-packages")
        (packages / "later.pth").write_text("import sys; sys.added_later = True")
        ended = await it.run(look(), python=str(python))
        warm = len(it.runtime._zygotes._warm)
    assert ended.value == (str(python), "zygote", True)
    assert warm == 1, "the zygote that knows less has ended"


async def test_an_interpreter_that_starts_threads_is_not_forked(lab: Any, other: Any) -> None:
    beginning = "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    python = str(other(beginning))
    async with lab() as it:
        ended = [await it.run(look(), python=python) for _ in range(2)]
    assert [each.value for each in ended] == [(python, "main", False)] * 2


async def test_an_interpreter_that_can_be_no_zygote_tells_why_in_the_attempts_own_words(lab: Any, other: Any) -> None:
    python = str(other("import sys; 'zygote' in ' '.join(sys.orig_argv) and sys.exit('not here')"))
    async with lab() as it:
        ended = await it.run(look(), python=python)
    assert ended.value == (python, "main", False)


async def test_only_so_many_others_are_kept_warm(lab: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluster.cluster.worker.zygotes.MAX_OTHERS", 1)
    python = other()
    second = python.with_name("python3")
    async with lab() as it:
        await it.runtime.prepare()
        for each in (python, second, python):
            assert (await it.run(look(), python=str(each))).value[1] == "zygote"
        warm = {kind.python for kind in it.runtime._zygotes._warm}
    assert warm == {sys.executable, str(python)}
    assert os.path.samefile(python, second)
