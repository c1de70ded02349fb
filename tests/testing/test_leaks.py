"""The leak check itself: what it must find, and what it must leave alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fluster.testing.leaks import Footprint, Leak, end_processes

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes and descriptors are found on Linux only")

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
# Prints the pid of a grandchild in a session of its own and ends: the grandchild is adopted by somebody else.
ORPHAN = f"import subprocess; print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL, start_new_session=True).pid)"


def kinds(leaks: list[Leak]) -> list[str]:
    return [leak.kind for leak in leaks]


def test_nothing_new_is_no_growth() -> None:
    assert Footprint.now().growth() == []


def test_a_thread_still_running_is_found() -> None:
    release = threading.Event()
    before = Footprint.now()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    leaks = before.growth(within_s=0)
    release.set()
    thread.join()
    assert kinds(leaks) == ["thread"]
    assert "forgotten" in str(leaks[0])


def test_what_goes_within_the_time_given_is_no_growth() -> None:
    before = Footprint.now()
    threading.Timer(0.1, lambda: None).start()
    assert before.growth() == []


def test_a_listening_socket_is_found_with_its_address() -> None:
    before = Footprint.now()
    with socket.create_server(("127.0.0.1", 0)) as server:
        leaks = before.growth(within_s=0)
        assert kinds(leaks) == ["descriptor"]
        assert f"{server.getsockname()} listening" in str(leaks[0])
    assert before.growth() == []


@pytest.mark.parametrize("make", [lambda: os.pipe(), lambda: [os.open(__file__, os.O_RDONLY)]], ids=["pipe", "file"])
def test_an_open_descriptor_is_found(make: Callable[[], list[int]]) -> None:
    before = Footprint.now()
    opened = make()
    leaks = before.growth(within_s=0)
    for descriptor in opened:
        os.close(descriptor)
    assert kinds(leaks) == ["descriptor"] * len(opened)


def test_standard_streams_that_lead_elsewhere_are_no_growth() -> None:
    reading, writing = os.pipe()
    kept = os.dup(1)
    before = Footprint.now()
    os.dup2(writing, 1)
    leaks = before.growth(within_s=0)
    os.dup2(kept, 1)
    for descriptor in (kept, reading, writing):
        os.close(descriptor)
    assert leaks == []


def test_a_child_that_runs_is_found_and_ended() -> None:
    before = Footprint.now()
    process = subprocess.Popen(SLEEP)
    leaks = before.growth(within_s=0)
    assert [leak.pid for leak in leaks] == [process.pid]
    end_processes(leaks)
    assert before.growth() == []
    process.returncode = -signal.SIGKILL  # reaped behind its back: keeps its finalizer quiet


def test_an_orphan_in_a_session_of_its_own_is_found() -> None:
    before = Footprint.now()
    pid = int(subprocess.check_output([sys.executable, "-c", ORPHAN]))
    leaks = before.growth(within_s=0)
    end_processes(leaks)
    assert [leak.pid for leak in leaks] == [pid]
    assert before.growth() == []


def test_a_child_never_waited_for_is_found() -> None:
    before = Footprint.now()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    leaks = before.growth(within_s=0)
    os.waitpid(pid, 0)
    assert [leak.pid for leak in leaks] == [pid]
    assert "never waited for" in str(leaks[0])


def test_what_an_older_child_starts_belongs_to_that_child() -> None:
    spawner = f"""
import subprocess
input()
with subprocess.Popen({SLEEP!r}) as process:
    print(process.pid, flush=True)
    input()
    process.kill()
"""
    with subprocess.Popen(
        [sys.executable, "-c", spawner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as older:
        assert older.stdin is not None
        assert older.stdout is not None
        before = Footprint.now()
        older.stdin.write("\n")
        assert int(older.stdout.readline())
        leaks = before.growth(within_s=0)
        older.stdin.write("\n")
    assert leaks == []


def test_processes_of_somebody_else_are_no_growth() -> None:
    # Started without this process's tag and adopted by init: as another user's process would look.
    before = Footprint.now()
    untagged = {key: value for key, value in os.environ.items() if key != "LEAK_CHECK_TAG"}
    pid = int(subprocess.check_output([sys.executable, "-c", ORPHAN], env=untagged))
    leaks = before.growth(within_s=0)
    os.kill(pid, signal.SIGKILL)
    assert leaks == []
