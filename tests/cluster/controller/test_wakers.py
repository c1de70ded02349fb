"""How long polls end."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from fluster.cluster.controller.wakers import woken


async def ends_of(waits_s: list[float]) -> list[float]:
    """When waits are to end, by the loop's clock: they begin at 1000.1, one every hundredth of a second."""
    loop, ends = asyncio.get_running_loop(), list[float]()
    began = itertools.count()

    def call_at(when: float, *_: Any) -> asyncio.TimerHandle:
        ends.append(when)
        return asyncio.TimerHandle(when, lambda: None, (), loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_at", call_at)
        patch.setattr(loop, "time", lambda: 1000.1 + next(began) / 100)
        for within_s in waits_s:
            waker = loop.create_future()
            waker.set_result(None)
            await woken(waker, within_s)
    return ends


def test_long_waits_that_began_near_each_other_end_together_a_moment_early() -> None:
    assert asyncio.run(ends_of([20.0] * 10)) == [1020.0] * 10


def test_short_waits_take_what_was_asked() -> None:
    assert asyncio.run(ends_of([0.5])) == pytest.approx([1000.6])
