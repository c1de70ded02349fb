"""Who has which tasks, without workers: what they would say is said here."""

from __future__ import annotations

from fluster.actor.types import ActorEndpoint, ActorId
from fluster.pool import wire
from fluster.pool.dispatch import Dispatcher
from fluster.pool.tasks import Function, TaskFuture, Timing
from fluster.pool.worker import Frame, Worker


class Silent(Worker):
    """A worker that notes what it is told and says nothing."""

    def __init__(self, heeds: Dispatcher) -> None:
        super().__init__(ActorEndpoint(ActorId("a"), "worker", "127.0.0.1:1", access_key="k"), heeds)
        self.sent: list[list[TaskFuture]] = []
        self.asked = 0

    def send(self, frame: Frame) -> None:
        self.sent.append(list(frame.tasks))  # type: ignore[arg-type]

    def ask_back(self) -> None:
        self.asked += 1


def test_a_batch_that_comes_after_its_worker_was_asked_back_is_asked_back_too() -> None:
    dispatcher = Dispatcher(3, lambda _worker, _task: None)
    timing = Timing()
    timing.learn(1_000, 0.001)  # known to be quick
    function = Function(1, "f", b"", timing)

    def tasks(count: int) -> list[TaskFuture]:
        settled, cancelled = dispatcher.settled, dispatcher.cancelled
        made = [TaskFuture(function, (), settled, cancelled, mode=wire.Mode.ARGUMENTS) for _ in range(count)]
        dispatcher.add(made)
        return made

    worker = Silent(dispatcher)
    dispatcher.joined(worker)
    begun, waiting, late = tasks(3)
    assert worker.sent == [[begun, waiting], [late]]
    waiting.cancel()
    late.cancel()
    assert worker.asked == 1

    dispatcher.given_back(worker, [(0, 1)])  # the second batch was not there yet
    assert worker.asked == 2
    dispatcher.given_back(worker, [(1, 1)])
    assert worker.asked == 2
    assert worker.unanswered == 1
    assert dispatcher.stats().running == 1
