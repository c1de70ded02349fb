"""Users, and what attempts ask of the controller: launches, terminations, endpoints; asked again until answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fluster.cluster.ids import AttemptUid, JobId
from fluster.errors import FlusterError, ResourceExhausted, Unreachable
from fluster.testing.sim.clock import Outcome, Task, sleep
from fluster.testing.sim.controller import Controller
from fluster.testing.sim.machines import Process
from fluster.testing.sim.messages import AttemptSpec
from fluster.testing.sim.network import Call
from fluster.testing.sim.programs import draw_program
from fluster.testing.sim.story import InvariantBroken

if TYPE_CHECKING:
    from fluster.testing.sim.simulation import Simulation

USER = "user"
"""The users' machine, as the network knows it."""
_CALL_S = 10.0
_AGAIN = (Unreachable, TimeoutError, ResourceExhausted)


class Clients:
    """Whoever asks.

    Attributes:
        acknowledged: Jobs whose launch was answered, by the name of their program.
        open: Requests that are not answered yet.
    """

    def __init__(self, sim: Simulation, chance: random.Random) -> None:
        self.acknowledged: dict[str, JobId] = {}
        self.open = 0
        self._sim = sim
        self._chance = chance
        self._names = 0

    def launch(self) -> None:
        """A user launches some job."""
        Task(self._launch(USER, None, 0, lambda: True))

    def terminate(self) -> None:
        """A user stops some job."""
        jobs = list(self.acknowledged.values())[-40:]
        if jobs:
            job_id = self._chance.choice(jobs)
            self._sim.story.tell("UserTerminates", job_id)
            Task(self._terminate(job_id))

    def process_started(self, process: Process, spec: AttemptSpec) -> None:
        """An attempt begins to do what its program says."""
        does = process.behaviour

        def runs() -> bool:
            return process.record is None and process.machine.processes.get(process.uid) is process

        for _ in range(does.endpoints):
            Task(self._register_endpoint(process, runs))
        if does.child_at is not None and does.child_at < does.run_s:
            process.machine.later(does.child_at, lambda: self._launch_child(process, spec, runs))

    def _launch_child(self, process: Process, spec: AttemptSpec, wanted: Callable[[], bool]) -> None:
        if wanted():
            Task(self._launch(process.machine.name, process.uid, spec.program.generation + 1, wanted))

    async def _launch(self, host: str, caller: AttemptUid | None, generation: int, wanted: Callable[[], bool]) -> None:
        self._names += 1
        sim, name = self._sim, f"n{self._names}"
        program = sim.programs[name] = draw_program(
            self._chance, name, sim.config.seed, sim.config.work, generation=generation
        )
        request_id = f"r-{name}"
        answer = await self._ask(
            host, lambda controller, call: controller.jobs.launch(program, request_id, caller, call), wanted
        )
        if isinstance(answer, str):
            self._acknowledge(name, JobId(answer))

    def _acknowledge(self, name: str, job_id: JobId) -> None:
        job = self._sim.store.job(job_id)
        if job is None or job.name != name:
            raise InvariantBroken("an acknowledged launch is durable", f"{name} was told {job_id}", job=job_id)
        self.acknowledged[name] = job_id
        self._sim.story.tell("LaunchAcknowledged", job_id, text=name)

    async def _terminate(self, job_id: JobId) -> None:
        await self._ask(USER, lambda controller, call: controller.jobs.terminate(job_id, call), lambda: True)

    async def _register_endpoint(self, process: Process, wanted: Callable[[], bool]) -> None:
        name, request_id = f"e{self._chance.randrange(20)}", self._sim.new_id("r")
        await self._ask(
            process.machine.name,
            lambda controller, call: controller.jobs.register_endpoint(name, request_id, process.uid, call),
            wanted,
        )

    async def _ask(
        self, host: str, handler: Callable[[Controller, Call], None], wanted: Callable[[], bool]
    ) -> object | None:
        """The answer; `None` once nobody wants it any more. The same request is sent until it is answered."""
        self.open += 1
        answer: object | None = None
        while wanted():
            outcome: Outcome[object] = Outcome()
            deadline = self._sim.clock.now + _CALL_S
            self._sim.network.call(host, lambda call: self._sim.route(call, handler), outcome.give, deadline)
            answer = await outcome
            if not isinstance(answer, _AGAIN):
                break
            await sleep(self._sim.clock, self._chance.uniform(0.1, 2.0))
        self.open -= 1
        if isinstance(answer, Exception) and not isinstance(answer, FlusterError | TimeoutError):
            raise answer
        return answer
