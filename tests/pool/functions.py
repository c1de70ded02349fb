"""What tests have workers do."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 8.0


def square(x: int) -> int:
    return x * x


def square_slowly(x: int) -> int:
    time.sleep(0.001)
    return x * x


def touch(path: str) -> None:
    Path(path).touch()


def add(a: int, b: int = 0) -> int:
    return a + b


def pid(_: object = None) -> int:
    return os.getpid()


def process(_: object = None) -> tuple[str, int]:
    """This one, among those of all containers."""
    return os.readlink("/proc/self/ns/pid"), os.getpid()


def on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def die(code: int) -> None:
    os._exit(code)


def kill_itself(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def meet(place: str, name: str, others: int) -> str:
    """Returns once so many are there at the same time."""
    Path(place, name).touch()
    until(lambda: len(list(Path(place).iterdir())) >= others)
    return name


def wait_for(path: str, result: int = 0) -> int:
    """Returns once a file is there."""
    until(lambda: Path(path).exists())
    return result


def begin_and_wait(begun: str, until_there: str) -> int:
    """Says that it has begun, and returns its process once a file is there."""
    Path(begun).touch()
    until(lambda: Path(until_there).exists())
    return os.getpid()


def die_the_first_times(counter: str, times: int) -> int:
    """Kills so many workers; gives the number of runs."""
    with open(counter, "a") as file:
        file.write("x")
    runs = len(Path(counter).read_text())
    if runs <= times:
        os._exit(9)
    return runs


def square_or_die(x: int, deadly: int) -> int:
    if x == deadly:
        os._exit(3)
    return x * x


def until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Waits for a condition, with a bound."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)
