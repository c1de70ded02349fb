"""The network between machines and controller: calls that get lost, late, doubled, overtaken, or only one way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from fluster.errors import Unreachable
from fluster.testing.sim.clock import Clock
from fluster.testing.sim.config import Faults

Done = Callable[[object], None]


class Call:
    """One RPC under way. Its caller hears once: an answer, or an error; what comes later is not heard.

    Attributes:
        host: The machine it came from.
        deadline: When its caller gives up.
    """

    __slots__ = ("_done", "_network", "_serve", "deadline", "host")

    def __init__(
        self, network: Network, host: str, serve: Callable[[Call], None], done: Done | None, deadline: float
    ) -> None:
        self.host = host
        self.deadline = deadline
        self._network = network
        self._serve: Callable[[Call], None] | None = serve
        self._done = done

    def answer(self, value: object) -> None:
        """The server's answer sets out for the caller; an exception is an answer too."""
        if self._done is not None:
            self._network.carry_back(self, value)

    def arrive(self) -> None:
        """The request is there."""
        if self._serve is not None:
            self._serve(self)

    def break_off(self) -> None:
        """The server is gone, and so is the connection. The client sends the request again, once, on another one."""
        serve, self._serve = self._serve, None
        if self._done is not None:
            self._network.break_off(self, serve)

    def give_up_in_time(self) -> None:
        """Nothing will come: the caller's deadline ends it."""
        if self._done is not None:
            self._network.clock.at(self.deadline, lambda: self.finish(TimeoutError("no answer in time")))

    def finish(self, value: object) -> None:
        """The caller hears."""
        done, self._done = self._done, None
        if done is not None:
            done(value)


class Network:
    """Carries calls.

    Attributes:
        faults: May be exchanged at any time.
        cut_up: Machines whose requests are lost.
        cut_down: Machines that answers do not reach.
        dark_since, dark_until: The last time that nobody reached anybody; `dark_until` is infinite while it lasts.
        lost: Messages.
        lost_at: When one of a machine's own was lost last, by chance and no cut.
    """

    def __init__(self, clock: Clock, chance: random.Random, faults: Faults) -> None:
        self.clock = clock
        self.faults = faults
        self.cut_up: set[str] = set()
        self.cut_down: set[str] = set()
        self.dark_since = self.dark_until = -math.inf
        self.lost = 0
        self.lost_at: dict[str, float] = {}
        self.sent = 0
        self._chance = chance

    @property
    def is_dark(self) -> bool:
        """Whether nobody reaches anybody now."""
        return self.dark_until == math.inf

    def call(self, host: str, serve: Callable[[Call], None], done: Done, deadline: float) -> None:
        """Sends a request; `serve` is called where it arrives, `done` where the answer does."""
        call = Call(self, host, serve, done, deadline)
        self.sent += 1
        if self._is_lost(host, self.cut_up):
            call.give_up_in_time()
        else:
            self.clock.after(self._delay(), call.arrive)
            if self._chance.random() < self.faults.duplicates:
                double = Call(self, host, serve, None, deadline)
                self.clock.after(self._delay() + self._delay(), double.arrive)

    def break_off(self, call: Call, serve: Callable[[Call], None] | None) -> None:
        """A caller learns that its connection broke: mostly at once, where the network swallows it only later."""
        if serve is None:  # it was sent again already
            self.carry_back(call, refused())
        elif self._is_lost(call.host, self.cut_down):
            call.give_up_in_time()
        else:
            self.clock.after(self._delay(), lambda: self._send_again(call, serve))

    def _send_again(self, call: Call, serve: Callable[[Call], None]) -> None:
        if self._is_lost(call.host, self.cut_up):
            call.give_up_in_time()
        else:
            self.clock.after(self._delay(), lambda: serve(call))

    def carry_back(self, call: Call, value: object) -> None:
        """Brings an answer to the caller, if it can."""
        if self._is_lost(call.host, self.cut_down):
            call.give_up_in_time()
            return
        arrives = self.clock.now + self._delay()
        if arrives < call.deadline:
            self.clock.at(arrives, lambda: call.finish(value))
        else:
            call.give_up_in_time()

    def _is_lost(self, host: str, cut: set[str]) -> bool:
        if host in cut or self.is_dark:
            self.lost += 1
            return True
        if self._chance.random() < self.faults.loss:
            self.lost += 1
            self.lost_at[host] = self.clock.now
            return True
        return False

    def _delay(self) -> float:
        draw = self._chance.random()
        if draw < self.faults.slow:
            return self._chance.expovariate(1 / self.faults.slow_s)
        return 0.0002 + 0.004 * draw


def refused() -> Unreachable:
    """What a caller hears where nobody listens."""
    return Unreachable("connection refused", address="controller")
