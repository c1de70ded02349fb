"""Many threads and processes call one actor without pause: every reply is right, none is lost.

Its long form, which also looks at memory: `HAMMER_SECONDS=60 HAMMER_THREADS=32 HAMMER_PROCESSES=4` in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from tests.actor.conftest import ROOT, There, eventually

SECONDS = float(os.environ.get("HAMMER_SECONDS", "2"))
THREADS = int(os.environ.get("HAMMER_THREADS", "8"))
PROCESSES = int(os.environ.get("HAMMER_PROCESSES", "2"))
MAY_GROW_BYTES = 16 << 20
"""From half-time on. A hundred bytes that stay with each call would be more in the long form."""

PROGRAM = """
import itertools, sys, threading, time
from fluster import FixedResolver
from fluster.actor import line
from tests.actor.actors import block_of, resident_bytes
address, key, seconds, threads, same_host = sys.argv[1:]
line.SAME_HOST = same_host == "True"
resolver = FixedResolver({"worker": address}, access_key=key)
pool = resolver.lookup("worker")
until = time.monotonic() + float(seconds)
calls, failures = itertools.count(), []
def work(number):
    try:
        each = 0
        while time.monotonic() < until:
            each += 1
            worker = pool.call(30.0)
            kind = (number + each) % 8
            if kind == 0:
                futures = [worker.same.submit((number, each, n)) for n in range(50)]
                assert [f.result(30) for f in futures] == [(number, each, n) for n in range(50)]
            elif kind == 1:
                assert worker.seed_of(block_of(each, 300_000)) == each % 256
            elif kind == 2:
                assert list(worker.count_to.stream(40)) == list(range(40))
            elif kind == 3:
                try:
                    worker.fail(ValueError((number, each)))
                except ValueError as error:
                    assert error.args == ((number, each),)
                else:
                    raise AssertionError
            elif kind == 4:
                assert worker.async_add(number, each) == number + each
            elif kind == 5:
                worker.same.submit(each).cancel()
            else:
                assert worker.same((number, each)) == (number, each)
            worker.increment()
            next(calls)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(int(threads))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(float(seconds) + 60)
    assert not thread.is_alive(), "a call hangs"
if failures:
    raise failures[0]
resolver.close()
print(next(calls))
"""


@pytest.mark.timeout(SECONDS + 100)
@pytest.mark.parametrize("same_host", [True, False], ids=["unix", "tcp"])
def test_every_reply_is_right_and_no_call_is_lost(there: There, same_host: bool) -> None:
    arguments = [sys.executable, "-c", PROGRAM, there.address, there.access_key]
    arguments += [str(SECONDS), str(THREADS), str(same_host)]
    before = there.call().descriptors()
    callers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(PROCESSES)]
    try:
        time.sleep(SECONDS / 2)
        at_half_time = there.call().resident_bytes()
        outputs = [caller.communicate(timeout=SECONDS + 80)[0] for caller in callers]
    finally:
        for caller in callers:
            caller.kill()
            caller.wait(10)
    assert [caller.returncode for caller in callers] == [0] * PROCESSES
    counts = [int(output) for output in outputs]
    assert min(counts) > 0
    assert there.call().total() == sum(counts)
    grown = there.call().resident_bytes() - at_half_time
    print(f"{sum(counts):,} rounds; {grown / 1e6:+.1f} MB since half-time, of {at_half_time / 1e6:.0f} MB")
    if SECONDS >= 30:
        assert grown < MAY_GROW_BYTES
    eventually(lambda: there.call().descriptors() <= before + 6)
