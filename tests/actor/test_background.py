"""Threads that a channel has only while there is something for them."""

import threading
import time

from fluster.actor.background import Clock


def test_a_clock_that_is_closed_while_it_looks_does_not_wait_for_what_was_due() -> None:
    looks, look_on = threading.Event(), threading.Event()

    def expire() -> float:
        looks.set()
        assert look_on.wait(10)
        return time.monotonic() + 60

    clock = Clock(expire)
    clock.look_at(time.monotonic() + 60)
    assert looks.wait(10)
    thread = clock.close()
    look_on.set()
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
