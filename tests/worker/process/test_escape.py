"""Programs that try to outlive their attempt: all are gone when it ends, with control groups and without.

`FLUSTER_ESCAPES` sets how often each tries.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

GRACE_S = 0.3
_TRIES = range(int(os.environ.get("FLUSTER_ESCAPES", "1")))

PRELUDE = """
import os, signal, sys
TREE = {tree!r}

def note():
    open(os.path.join(TREE, str(os.getpid())), "w").close()

def rest():
    note()
    while True:
        signal.pause()

def ignore(*numbers):
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)

def child(work):
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)
"""

# name: (processes that must have come to rest before the attempt is stopped, the program)
PROGRAMS = {
    "a child in a session of its own": (
        2,
        """
def work():
    os.setsid()
    rest()
child(work)
rest()
""",
    ),
    "a daemon by double fork": (
        2,
        """
def first():
    os.setsid()
    child(rest)
child(first)
os.wait()
rest()
""",
    ),
    "nohup": (
        2,
        """
os.spawnvp(os.P_NOWAIT, "nohup", ["nohup", sys.executable, "-S", "-c", PRELUDE + "rest()"])
rest()
""",
    ),
    "ignored SIGTERM": (1, "ignore(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)\nrest()"),
    "closed descriptors": (
        2,
        """
def work():
    os.closerange(0, 1024)
    rest()
child(work)
os.closerange(0, 1024)
rest()
""",
    ),
    "a grandchild that ignores SIGTERM": (
        3,
        """
def grandchild():
    ignore(signal.SIGTERM)
    rest()
def work():
    child(grandchild)
    rest()
child(work)
rest()
""",
    ),
    "a process that changes its session and its name": (
        2,
        """
def work():
    os.setsid()
    with open("/proc/self/comm", "w") as file:
        file.write("kworker/0:1")
    ignore(signal.SIGTERM)
    rest()
child(work)
rest()
""",
    ),
    "a daemon left behind by an attempt that exits 0": (
        1,
        """
def first():
    os.setsid()
    ignore(signal.SIGTERM)
    child(rest)
child(first)
os.wait()
while not os.listdir(TREE):
    pass
""",
    ),
    "a child stopped by SIGSTOP": (
        2,
        """
def work():
    os.setsid()
    ignore(signal.SIGTERM)
    note()
    os.kill(os.getpid(), signal.SIGSTOP)
    rest()
child(work)
rest()
""",
    ),
    "a fork storm": (
        127,
        """
ignore(signal.SIGTERM)
def hop(left):
    # Never the same pid for long, until it has forked often enough.
    os.setsid()
    while left:
        if os.fork():
            os._exit(0)
        left -= 1
    rest()
def grow(depth):
    if depth:
        for _ in range(2):
            child(lambda: grow(depth - 1))
    rest()
for _ in range(3):
    child(lambda: hop(3000))
grow(6)
""",
    ),
    "a child that empties its environment": (
        2,
        """
def work():
    os.setsid()
    os.execve(sys.executable, [sys.executable, "-S", "-c", PRELUDE + "ignore(signal.SIGTERM)\\nrest()"], {})
child(lambda: child(work))
rest()
""",
    ),
    "a child in a process group of its own that reads from a closed pipe": (
        2,
        """
def work():
    os.setpgid(0, 0)
    reading, writing = os.pipe()
    os.close(writing)
    ignore(signal.SIGTERM, signal.SIGPIPE)
    assert os.read(reading, 1) == b""
    rest()
child(work)
rest()
""",
    ),
}


@pytest.mark.parametrize("attempt", _TRIES)
@pytest.mark.parametrize("enforcement", ["auto", "none"])
@pytest.mark.parametrize("name", PROGRAMS)
async def test_nothing_of_the_tree_survives(
    lab: Any, until: Any, alive: Any, tmp_path: Path, name: str, enforcement: str, attempt: int
) -> None:
    count, program = PROGRAMS[name]
    tree = tmp_path / "tree"
    tree.mkdir()
    prelude = PRELUDE.format(tree=str(tree))
    source = f"PRELUDE = {prelude!r}\n{prelude}\n{program}"
    async with lab(enforcement=enforcement) as it:
        trial = it.attempt(command=(sys.executable, "-S", "-c", source))
        await it.runtime.start(trial)
        until(lambda: len(list(tree.iterdir())) >= count)
        if "exits 0" not in name:
            await it.runtime.stop(trial.uid, GRACE_S)
        end = await asyncio.wait_for(it.runtime.wait(trial.uid), GRACE_S + 2)
    survivors = [path.name for path in tree.iterdir() if alive(int(path.name))]
    assert not survivors
    if "exits 0" in name:
        assert end.exit_code == 0
    else:
        assert end.stop_requested
        assert end.signal in (9, 15)
