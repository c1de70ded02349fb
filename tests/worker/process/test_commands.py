"""Commands and interpreters of their own: what starts, what cannot, and how it is told."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.worker.runtime import ExitRecord, get_runtime


async def test_a_command_runs_with_its_arguments_environment_and_directory(lab: Any, tmp_path: Path) -> None:
    script = 'echo "$0 $1 $COLOUR $PWD"; echo oops >&2; exit 3'
    async with lab() as it:
        ended = await it.run(
            command=("sh", "-c", script, "zero", "one"), environment={"COLOUR": "blue"}, working_directory=tmp_path
        )
    assert ended.stdout == f"zero one blue {tmp_path}\n"
    assert ended.stderr == "oops\n"
    assert ended.record.exit_code == 3
    assert not ended.has_result


async def test_a_command_gets_default_signals_and_no_descriptors(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(command=("sh", "-c", "grep SigIgn /proc/self/status; ls /proc/self/fd; cat"))
    _, ignored, *descriptors = ended.stdout.split()
    # glibc keeps signals 32 and 33 to itself: its posix_spawn ignores them in children, and nothing can undo it.
    assert int(ignored, 16) & ~(0b11 << 31) == 0
    assert descriptors == ["0", "1", "2", "3"]


async def test_a_missing_command_is_a_start_error_with_127(lab: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(command=("no-such-program", "x"))
        end = await it.runtime.start(attempt)
    assert isinstance(end, ExitRecord)
    assert end.exit_code == 127
    assert end.start_error is not None
    assert "'no-such-program' was not found on PATH" in end.start_error
    assert not end.fluster_fault


async def test_a_start_error_is_never_taken_for_an_exit_code(lab: Any) -> None:
    # The process that could not become the command ends at once: its shim must not see the end before the reason.
    async with lab() as it:
        for number in range(30):
            end = await it.runtime.start(it.attempt(command=("no-such-program",), uid=f"missing-{number}"))
            assert isinstance(end, ExitRecord)
            assert end.start_error is not None


@pytest.mark.parametrize("content", ["#!/bin/sh\necho never\n", None])
async def test_a_command_that_may_not_be_executed_is_a_start_error_with_126(
    lab: Any, tmp_path: Path, content: str | None
) -> None:
    program = tmp_path / "program"
    if content is None:
        program.mkdir()
    else:
        program.write_text(content)
    async with lab() as it:
        end = await it.runtime.start(it.attempt(command=(str(program),)))
    assert isinstance(end, ExitRecord)
    assert end.exit_code == 126
    assert end.start_error is not None
    assert "Permission denied" in end.start_error
    assert not end.fluster_fault


async def test_a_script_whose_interpreter_is_missing_is_a_start_error_with_127(lab: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    async with lab() as it:
        end = await it.runtime.start(it.attempt(command=(str(program),)))
    assert isinstance(end, ExitRecord)
    assert end.exit_code == 127


@pytest.mark.parametrize("command", [None, ("true",)])
async def test_a_missing_working_directory_is_a_start_error(lab: Any, command: tuple[str, ...] | None) -> None:
    async with lab() as it:
        attempt = it.attempt(int, command=command, working_directory=Path("/no/such/directory"))
        end = await it.runtime.start(attempt)
    assert isinstance(end, ExitRecord)
    assert end.exit_code is None
    assert end.start_error is not None
    assert "'/no/such/directory'" in end.start_error
    assert not end.fluster_fault


async def test_a_missing_entrypoint_is_flusters_fault(lab: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(int)
        (attempt.directory / "entrypoint").unlink()
        end = await it.runtime.start(attempt)
        assert isinstance(end, ExitRecord)
        assert end.fluster_fault
        assert end.start_error is not None
        assert "no entrypoint" in end.start_error
        assert await it.runtime.wait(attempt.uid) == end


async def test_a_variable_that_python_reads_at_start_gets_an_interpreter_of_its_own(lab: Any) -> None:
    def look() -> tuple[bool, str]:
        import sys

        return sys.flags.dev_mode, sys.orig_argv[3]

    async with lab() as it:
        warm = await it.run(look)
        fresh = await it.run(look, environment={"PYTHONDEVMODE": "1"})
    assert warm.value == (False, "fluster.cluster.attempt.zygote")
    assert fresh.value == (True, "fluster.cluster.attempt.main")


async def test_a_fresh_interpreter_behaves_as_a_warm_one(lab: Any, tmp_path: Path) -> None:
    def work() -> None:
        import os
        import sys

        print(os.getcwd(), sys.path[0], sys.argv, sys.modules["__main__"].__dict__.get("run"))
        raise ValueError("late")

    async with lab() as it:
        options = {"import_path": ("/some/path",), "working_directory": tmp_path}
        warm = await it.run(work, **options)
        fresh = await it.run(work, **options, environment={"PYTHONHASHSEED": "0"})
    assert fresh.stdout == warm.stdout
    assert fresh.stderr == warm.stderr
    assert fresh.error == warm.error
    assert fresh.record.exit_code == 1


async def test_another_interpreter_runs_the_function(lab: Any, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nOTHER=yes exec {sys.executable} "$@"\n')
    other.chmod(0o755)
    async with lab() as it:
        ended = await it.run(lambda: __import__("os").environ.get("OTHER"), python=str(other))
    assert ended.value == "yes"


async def test_a_missing_interpreter_is_a_start_error(lab: Any) -> None:
    async with lab() as it:
        end = await it.runtime.start(it.attempt(int, python="/no/such/python"))
    assert isinstance(end, ExitRecord)
    assert end.exit_code == 127
    assert end.start_error is not None
    assert "the interpreter '/no/such/python' was not found" in end.start_error


async def test_an_interpreter_without_fluster_is_a_start_error_that_says_so(lab: Any) -> None:
    # -S: without site-packages, as an environment in which nothing was installed.
    bare = Path(sys.base_prefix, "bin", "python3")
    async with lab() as it:
        ended = await it.run(int, python=str(bare), environment={"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"})
    if "fluster" in os.listdir(Path(sys.base_prefix, "lib")):
        pytest.skip("the base interpreter has fluster installed")
    assert ended.record.exit_code == 126
    assert ended.record.start_error is not None
    assert "fluster-cluster" in ended.record.start_error
    assert "No module named" in ended.record.start_error
    assert not ended.record.fluster_fault


async def test_a_uid_that_is_no_file_name_is_refused(lab: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(int)
        for uid in ("../up", "", "a/b", "x" * 200, "a b"):
            with pytest.raises(ValueError, match="attempt uid"):
                await it.runtime.start(type(attempt)(**{**_fields(attempt), "uid": uid}))


def _fields(attempt: Any) -> dict[str, Any]:
    return {name: getattr(attempt, name) for name in attempt.__slots__}


async def test_runtimes_are_found_by_name() -> None:
    assert get_runtime().name == "process"
    assert get_runtime("process").enforcement in ("v1", "v2", "none")
    assert get_runtime("docker").name == "docker"
    with pytest.raises(ValueError, match="no runtime 'podman'"):
        get_runtime("podman")


async def test_the_process_runtime_is_importable_beside_the_protocol() -> None:
    from fluster.cluster.worker import process_runtime, runtime

    assert runtime.ProcessRuntime is process_runtime.ProcessRuntime


async def test_a_missing_relative_command_is_told_with_its_directory(lab: Any, tmp_path: Path) -> None:
    async with lab() as it:
        end = await it.runtime.start(it.attempt(command=("./train.sh",), working_directory=tmp_path))
    assert isinstance(end, ExitRecord)
    assert end.start_error is not None
    assert f"'./train.sh' was not found in '{tmp_path}'" in end.start_error
