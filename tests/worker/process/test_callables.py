"""A function runs in its attempt's process as if it were a program of its own."""

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest


async def test_a_function_returns_its_value(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(lambda a, b: {"sum": a + b}, 2, 3)
    assert ended.value == {"sum": 5}
    assert ended.record.exit_code == 0
    assert ended.record.signal is None
    assert not ended.record.out_of_memory
    assert ended.record.started_at is not None
    assert ended.record.started_at <= ended.record.finished_at


async def test_an_exception_keeps_its_type_text_traceback_and_itself(lab: Any) -> None:
    def fail() -> None:
        raise ValueError("nothing fits")

    async with lab() as it:
        ended = await it.run(fail)
    assert ended.record.exit_code == 1
    assert ended.error.type_name == "ValueError"
    assert ended.error.message == "nothing fits"
    assert "in fail" in ended.error.traceback
    assert "fluster" not in ended.error.traceback, "frames of the runtime are no help to the user"
    raised = cloudpickle.loads(ended.error.pickled)
    assert isinstance(raised, ValueError)
    assert raised.args == ("nothing fits",)


async def test_an_exceptions_traceback_is_printed_as_python_does(lab: Any) -> None:
    def fail() -> None:
        raise ValueError("nothing fits")

    async with lab() as it:
        ended = await it.run(fail)
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.endswith("ValueError: nothing fits\n")


async def test_an_exception_that_cannot_be_pickled_arrives_as_text(lab: Any) -> None:
    def fail() -> None:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("odd")

        raise Odd(1, 2)

    async with lab() as it:
        ended = await it.run(fail)
    assert ended.error.type_name.endswith("Odd")
    assert ended.error.message == "odd"
    assert ended.error.pickled == b""


async def test_an_exception_whose_text_fails_is_still_reported(lab: Any) -> None:
    def fail() -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        raise Mute

    async with lab() as it:
        ended = await it.run(fail)
    assert ended.record.exit_code == 1
    assert "RuntimeError" in ended.error.message


async def test_a_result_that_cannot_be_pickled_is_an_error_naming_it(lab: Any) -> None:
    def give() -> object:
        import threading

        return threading.Lock()

    async with lab() as it:
        ended = await it.run(give)
    assert ended.record.exit_code == 1
    assert ended.error.type_name == "TypeError"
    assert "_thread.lock" in ended.error.message


async def test_an_entrypoint_that_cannot_be_imported_names_the_module(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def work():\n    return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    async with lab() as it:
        missing = await it.run(only_here.work)
        found = await it.run(only_here.work, import_path=(str(tmp_path),))
    assert missing.record.exit_code == 1
    assert missing.error.type_name == "ModuleNotFoundError"
    assert "only_here" in missing.error.message
    assert "could not be loaded" in missing.error.traceback
    assert found.value == 1


@pytest.mark.parametrize(
    ("argument", "code"), [(None, 0), (0, 0), (3, 3), (256, 0), (-1, 255), (True, 1), ("out of luck", 1)]
)
async def test_sys_exit_ends_the_attempt_with_its_code(lab: Any, argument: object, code: int) -> None:
    def leave(argument: Any) -> None:
        import sys

        sys.exit(argument)

    async with lab() as it:
        ended = await it.run(leave, argument)
    assert ended.record.exit_code == code
    assert ended.has_result is (code == 0), "an exit code speaks for itself; a success has the result None"
    assert ("out of luck" in ended.stderr) is (argument == "out of luck")


async def test_os_exit_ends_the_attempt_with_its_code_and_no_result(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(lambda: __import__("os")._exit(7))
    assert ended.record.exit_code == 7
    assert not ended.has_result


async def test_a_signal_is_told_from_an_exit_code(lab: Any) -> None:
    def kill(number: int) -> None:
        import os

        os.kill(os.getpid(), number)

    async with lab() as it:
        for number in (signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM):
            ended = await it.run(kill, int(number))
            assert (ended.record.signal, ended.record.exit_code) == (number, None)
            assert not ended.record.stop_requested


async def test_keyboard_interrupt_exits_with_130(lab: Any) -> None:
    def interrupt() -> None:
        import signal

        signal.raise_signal(signal.SIGINT)

    async with lab() as it:
        ended = await it.run(interrupt)
    assert ended.record.exit_code == 130
    assert ended.error.type_name == "KeyboardInterrupt"


async def test_the_environment_is_the_attempts_and_nothing_else(lab: Any) -> None:
    def look() -> dict[str, str]:
        import os

        return dict(os.environ)

    async with lab() as it:
        ended = await it.run(look, environment={"COLOUR": "blue", "TZ": "Asia/Tokyo"})
    assert ended.value == {
        **os.environ,
        "COLOUR": "blue",
        "TZ": "Asia/Tokyo",
        "FLUSTER_ATTEMPT_UID": ended.directory.name,
    }


async def test_a_child_process_sees_the_environment_too(lab: Any) -> None:
    def look() -> str:
        import subprocess

        return subprocess.run(["/bin/sh", "-c", "echo $COLOUR"], capture_output=True, text=True).stdout

    async with lab() as it:
        assert (await it.run(look, environment={"COLOUR": "blue"})).value == "blue\n"


async def test_the_time_zone_of_the_environment_holds(lab: Any) -> None:
    def look() -> str:
        import time

        return time.strftime("%H", time.localtime(0))

    async with lab() as it:
        assert (await it.run(look, environment={"TZ": "XYZ-9"})).value == "09"


async def test_it_starts_in_its_directory_with_its_import_path_first(lab: Any, tmp_path: Path) -> None:
    def look() -> tuple[str, list[str], object]:
        import json
        import os
        import sys

        return os.getcwd(), sys.path, json.__file__

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "fluster.py").write_text("raise RuntimeError('shadowed')\n")
    async with lab() as it:
        ended = await it.run(look, working_directory=tmp_path / "here", import_path=("/some/path",))
    directory, path, _ = ended.value
    assert directory == str(tmp_path / "here")
    assert path[0] == "/some/path"
    assert "" not in path
    assert "/" not in path


async def test_standard_streams_go_to_the_log_files_line_by_line(lab: Any, until: Any) -> None:
    def talk() -> None:
        import signal
        import sys

        print("grüße", input.__name__)
        print("to stderr", file=sys.stderr)
        assert sys.stdin.read() == ""
        signal.pause()

    async with lab() as it:
        attempt = it.attempt(talk)
        await it.runtime.start(attempt)
        logs = it.runtime.logs(attempt.uid)
        until(lambda: "to stderr" in logs.stderr.read_text())
        assert logs.stdout.read_text() == "grüße input\n", "visible while the attempt runs"


async def test_signals_umask_and_arguments_are_a_fresh_programs(lab: Any) -> None:
    def look() -> dict[str, object]:
        import os
        import signal
        import sys

        mask = os.umask(0)
        ignored = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
        return {
            "ignored": sorted(map(int, ignored)),
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "umask": mask,
            "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:4],
            "leader": os.getsid(0) == os.getpid(),
            "main": sys.modules["__main__"].__dict__.get("Zygote"),
        }

    async with lab() as it:
        seen = (await it.run(look)).value
    assert seen["ignored"] == [signal.SIGPIPE, signal.SIGXFSZ]
    assert seen["interrupt"]
    assert seen["blocked"] == set()
    assert seen["umask"] == 0o022
    assert seen["descriptors"] == [0, 1, 2, 3], "3 is the listing itself: nothing else is inherited"
    assert seen["leader"]
    assert seen["main"] is None


async def test_two_attempts_draw_different_random_numbers(lab: Any) -> None:
    def draw() -> float:
        import random

        return random.random()

    async with lab() as it:
        assert (await it.run(draw)).value != (await it.run(draw)).value


async def test_threads_are_waited_for_and_exit_functions_run(lab: Any, tmp_path: Path) -> None:
    def work(path: str) -> str:
        import atexit
        import threading

        returned = threading.Event()

        def say(line: str) -> None:
            with open(path, "a") as file:
                file.write(line)

        def late() -> None:
            returned.wait()
            say("thread\n")

        atexit.register(say, "exit function\n")

        threading.Thread(target=late).start()
        threading.Timer(0.05, returned.set).start()
        return "value"

    async with lab() as it:
        ended = await it.run(work, str(tmp_path / "order"))
    assert ended.value == "value"
    assert (tmp_path / "order").read_text() == "thread\nexit function\n"


async def test_what_the_program_left_open_is_written_and_finalized(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "leaves_open.py").write_text(
        "class Last:\n"
        "    def __del__(self):\n"
        "        print('finalized', self.name)\n"
        "def work(path):\n"
        "    global file, kept\n"
        "    file = open(path, 'w')\n"
        "    file.write('not flushed')\n"
        "    kept = Last(); kept.name = 'global'\n"
        "    cycle = Last(); cycle.name = 'cycle'; cycle.self = cycle\n"
    )

    def work(path: str) -> None:
        import leaves_open  # type: ignore[import-not-found]

        leaves_open.work(path)

    async with lab() as it:
        ended = await it.run(work, str(tmp_path / "file"), import_path=(str(tmp_path),))
    assert ended.record.exit_code == 0, ended.stderr
    assert (tmp_path / "file").read_text() == "not flushed"
    assert sorted(ended.stdout.splitlines()) == ["finalized cycle", "finalized global"]


async def test_what_c_code_left_in_its_buffers_is_written(lab: Any, tmp_path: Path) -> None:
    def work(path: str) -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        libc.fputs(b"from c\n", ctypes.c_void_p(libc.fopen(path.encode(), b"w")))

    async with lab() as it:
        ended = await it.run(work, str(tmp_path / "file"))
    assert ended.record.exit_code == 0, ended.stderr
    assert (tmp_path / "file").read_text() == "from c\n"


async def test_a_daemon_thread_does_not_keep_the_attempt(lab: Any) -> None:
    def work() -> None:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()

    async with lab() as it:
        assert (await it.run(work)).record.exit_code == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_multiprocessing_works(lab: Any, method: str) -> None:
    def work(method: str) -> list[int]:
        import multiprocessing
        import operator

        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(operator.neg, [1, 2, 3])

    async with lab() as it:
        ended = await it.run(work, method)
        assert ended.record.exit_code == 0, ended.stderr
        assert ended.value == [-1, -2, -3]


PROGRAM = """
def double(x):
    return 2 * x

def work():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(double, [1, 2, 3])

class Work:
    def __init__(self):
        self.doubled = work()
"""


@pytest.mark.parametrize(
    "entrypoint",
    ["work", "functools.partial(work)", "lambda: work()", "lambda: Work().doubled"],
    ids=["function", "partial", "lambda", "class"],
)
async def test_functions_of_the_submitters_main_are_found_by_name_in_children(lab: Any, entrypoint: str) -> None:
    program: dict[str, Any] = {"__name__": "__main__", "functools": functools}
    exec(PROGRAM, program)
    async with lab() as it:
        ended = await it.run(eval(entrypoint, program))
    assert ended.record.exit_code == 0, ended.stderr
    assert ended.value == [2, 4, 6]


async def test_subclasses_of_main_survive_the_round_trip(lab: Any) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    async with lab() as it:
        got = (await it.run(Point, 3)).value
    assert isinstance(got, Point), "a class sent by value comes back as the one that was sent"
    assert got.x == 3


async def test_compiled_libraries_get_the_interpreters_own_end(lab: Any) -> None:
    def work(with_library: bool) -> None:
        import os
        import sys
        from typing import Any

        class Last:
            # Bound early: at the interpreter's end there are no globals any more.
            def __del__(self, write: Any = os.write, is_finalizing: Any = sys.is_finalizing) -> None:
                write(1, str(is_finalizing()).encode())

        import json.tool as own

        if with_library:
            import apsw as own  # type: ignore[no-redef]
        own.kept = Last()  # type: ignore[attr-defined]

    pytest.importorskip("apsw")
    async with lab() as it:
        assert (await it.run(work, True)).stdout == "True"
        assert (await it.run(work, False)).stdout == "False"
