"""Entrypoints out, results and exceptions back."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cloudpickle
import pytest
from protobuf import Oneof

from fluster.cluster.attempt import files, outcome
from fluster.cluster.pickling import dump_call, failed, load_outcome
from fluster.cluster.surroundings import Surroundings, is_installed
from fluster.errors import RemoteError
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

LOCK = threading.Lock()


def uses_a_global() -> Any:
    return LOCK


class Connected:
    def __init__(self) -> None:
        self.pool = {"a": [1, threading.Lock()]}

    def work(self) -> None:
        return None


class Refuses:
    def __reduce__(self) -> Any:
        raise ValueError("I am not for travelling")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class TakesTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def closure_over(value: Any) -> Any:
    def inner() -> Any:
        def deeper() -> Any:
            return value

        return deeper()

    return inner


def call(fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Through a pickle and back."""
    pickled, arguments, keywords = pickle.loads(dump_call(fn, args, kwargs, project_by_value=False))
    return pickled(*arguments, **keywords)


def outcome_of(directory: Path, value: object = None, error: BaseException | None = None) -> bytes:
    """As the job's side writes it."""
    if error is not None:
        outcome.write_error(directory, error)
    else:
        outcome.write_value(directory, value)
    return (directory / files.RESULT).read_bytes()


def test_a_call_with_its_arguments_survives() -> None:
    assert call(lambda x, y: x + y, 2, y=3) == 5
    assert call(closure_over([1, 2])) == [1, 2]
    assert call(functools.partial(pow, 2), 5) == 32


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "named"),
    [
        (uses_a_global, (), {}, r"the global 'LOCK' of the entrypoint 'uses_a_global' is a _thread\.lock"),
        (
            closure_over(LOCK),
            (),
            {},
            r"the closure variable 'value' of the entrypoint 'closure_over.* is a _thread\.lock",
        ),
        (print, (1, LOCK), {}, r"argument 1 of 'print' is a _thread\.lock"),
        (print, (), {"x": [{"k": LOCK}]}, r"the value of 'k' of item 0 of argument 'x' of 'print' is a _thread\.lock"),
        (
            Connected().work,
            (),
            {},
            r"item 1 of the value of 'a' of the attribute 'pool' of the object of the entrypoint",
        ),
        (functools.partial(print, LOCK), (), {}, r"the argument 0 of the entrypoint 'partial' is a _thread\.lock"),
        (print, (number for number in range(3)), {}, None),
        (print, ((number for number in range(3)),), {}, r"argument 0 of 'print' is a generator"),
        (
            print,
            (Refuses(),),
            {},
            r"argument 0 of 'print' is a .*Refuses and cannot be pickled \(I am not for travelling\)",
        ),
    ],
    ids=["global", "closure", "argument", "container", "method", "partial", "fine", "generator", "own refusal"],
)
def test_what_cannot_be_pickled_is_named(fn: Any, args: Any, kwargs: Any, named: str | None) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        if named is None:
            dump_call(fn, tuple(args), kwargs, project_by_value=False)
            return
        with pytest.raises(TypeError, match=named):
            dump_call(fn, args, kwargs, project_by_value=False)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_structure_too_deep_for_pickling_is_an_error_too() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match=r"argument 0 of 'print' is a list and cannot be pickled"):
        dump_call(print, (deep,), {}, project_by_value=False)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the user's own, importable here only."""
    package = tmp_path / "ownproject"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helpers.py").write_text("class Point:\n    x = 7\n\ndef double(x):\n    return 2 * x\n")
    (package / "work.py").write_text(
        "from ownproject.helpers import Point, double\n\ndef run(x):\n    return double(x), Point\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("ownproject.work")
    for name in [name for name in sys.modules if name.startswith("ownproject")]:
        del sys.modules[name]


def elsewhere(program: str, stdin: bytes) -> bytes:
    """In an interpreter that knows nothing of the project."""
    found = subprocess.run([sys.executable, "-c", program], input=stdin, capture_output=True, check=False, timeout=30)
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout


def test_modules_of_the_project_travel_by_value_and_classes_come_back_as_themselves(project: ModuleType) -> None:
    pickled = dump_call(project.run, (21,), {}, project_by_value=True)
    program = (
        "import sys, pickle, cloudpickle\n"
        "fn, args, kwargs = pickle.loads(sys.stdin.buffer.read())\n"
        "number, kind = fn(*args, **kwargs)\n"
        "sys.stdout.buffer.write(cloudpickle.dumps((number, kind())))\n"
    )
    number, point = pickle.loads(elsewhere(program, pickled))
    assert number == 42
    assert type(point) is sys.modules["ownproject.helpers"].Point


def test_on_this_machine_modules_of_the_project_go_by_name(project: ModuleType) -> None:
    assert b"double" not in dump_call(project.run, (1,), {}, project_by_value=False)


def test_dumping_leaves_the_settings_of_cloudpickle_as_they_were(project: ModuleType) -> None:
    cloudpickle.register_pickle_by_value(project)
    try:
        dump_call(project.run, (1,), {}, project_by_value=True)
        with pytest.raises(TypeError):
            dump_call(project.run, (LOCK,), {}, project_by_value=True)
        assert cloudpickle.list_registry_pickle_by_value() == {project.__name__}
    finally:
        cloudpickle.unregister_pickle_by_value(project)


@pytest.mark.parametrize("project_by_value", [True, False])
def test_functions_of_main_travel_from_children_of_multiprocessing_too(tmp_path: Path, project_by_value: bool) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, sys\n"
        "from fluster.cluster.pickling import dump_call\n"
        "def double(x):\n    return 2 * x\n"
        f"def dump():\n    return dump_call(double, (21,), {{}}, project_by_value={project_by_value})\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        sys.stdout.buffer.write(pool.apply(dump))\n"
    )
    pickled = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, check=True, timeout=30
    ).stdout
    program = "import sys, pickle\nfn, args, _ = pickle.loads(sys.stdin.buffer.read())\nprint(fn(*args))"
    assert elsewhere(program, pickled) == b"42\n"


def test_installed_modules_are_not_the_projects(project: ModuleType) -> None:
    assert project.__file__ is not None
    assert not is_installed(project.__file__)
    for module in (os, pytest, cloudpickle, functools):
        assert module.__file__ is not None
        assert is_installed(module.__file__)


def test_surroundings_name_what_the_interpreter_does_not_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "path", ["", "lib", "missing", *sys.path])
    here = Surroundings.here()
    assert here.directory == str(tmp_path)
    assert here.import_path[:2] == (str(tmp_path), str(tmp_path / "lib"))
    assert not any("site-packages" in entry or "missing" in entry for entry in here.import_path)
    assert here.python == sys.executable


def test_a_value_comes_back(tmp_path: Path) -> None:
    data = outcome_of(tmp_path, {"answer": [4, 2]})
    assert load_outcome(data) == {"answer": [4, 2]}
    assert not failed(data)


def test_a_function_that_travels_by_value_says_in_tracebacks_which_file_it_is_of() -> None:
    def raises() -> int:
        raise LookupError("deep inside")

    with pytest.raises(LookupError) as caught:
        call(lambda: [raises() for _ in range(1)])  # one within the other
    assert {str(entry.path) for entry in caught.traceback} == {__file__}


def test_an_exception_comes_back_as_itself_with_its_remote_traceback(tmp_path: Path) -> None:
    def explode() -> None:
        raise KeyError("the missing one")

    with pytest.raises(KeyError) as remote:
        explode()
    data = outcome_of(tmp_path, error=remote.value)
    assert failed(data)
    with pytest.raises(KeyError, match="the missing one") as caught:
        load_outcome(data)
    (note,) = caught.value.__notes__
    assert note.startswith("Remote traceback:\nTraceback (most recent call last):")
    assert "in explode" in note


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TakesTwo(1, 2), "TakesTwo: 1 and 2"),
        (Unprintable(), "Unprintable"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=["constructor", "no text", "interrupt", "exit"],
)
def test_what_cannot_be_rebuilt_arrives_as_text(tmp_path: Path, error: BaseException, text: str) -> None:
    data = outcome_of(tmp_path, error=error)
    if isinstance(error, Unprintable):
        broken = types_pb.RemoteError(type_name="Unprintable", pickled=b"garbage")
        data = types_pb.Outcome(kind=Oneof[Literal["error"], types_pb.RemoteError]("error", broken)).to_binary()
    with pytest.raises(RemoteError) as caught:
        load_outcome(data)
    assert text in str(caught.value)
    assert caught.value.type_name


def test_a_value_that_cannot_be_rebuilt_says_what_is_missing() -> None:
    data = types_pb.Outcome(kind=Oneof[Literal["value"], bytes]("value", b"cnowhere\nthing\n.")).to_binary()
    with pytest.raises(RemoteError, match="No module named 'nowhere'"):
        load_outcome(data)


def test_threads_may_dump_at_the_same_time(project: ModuleType) -> None:
    errors: list[BaseException] = []

    def dump() -> None:
        try:
            for _ in range(30):
                dump_call(project.run, (1,), {}, project_by_value=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=dump) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
