"""What happened, in order: what a failing seed shows, and the hash by which two runs are compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from fluster.testing.sim.clock import START, Clock


@dataclass(frozen=True, slots=True)
class Happening:
    """One event of the story. `job` and `worker` are empty where it concerns none."""

    at: float
    kind: str
    job: str
    worker: str
    text: str

    def __str__(self) -> str:
        about = " ".join(part for part in (self.job, self.worker, self.text) if part)
        return f"{self.at - START:12.3f}  {self.kind:<24} {about}"


UNEXPECTED = "nothing fails unexpectedly"
"""The rule that an exception breaks which nobody foresaw: a defect, maybe of the simulator itself."""


class InvariantBroken(BaseException):
    """A rule does not hold. No `Exception`: nothing of what is simulated may take it for one of its own.

    Attributes:
        rule: Which one.
        job, worker: Whom it concerns; may be empty.
    """

    def __init__(self, rule: str, text: str, *, job: str = "", worker: str = "") -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.job = job
        self.worker = worker


class Story:
    """Collects happenings, and counts them by kind."""

    def __init__(self, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._told: list[tuple[float, str, str, str, str]] = []

    def tell(self, kind: str, job: str = "", worker: str = "", text: str = "") -> None:
        """One more thing happened."""
        self.counts[kind] += 1
        self._told.append((self._clock.now, kind, job, worker, text))

    @property
    def digest(self) -> str:
        """The same for the same run, in every interpreter."""
        told = "".join([f"{at!r}\0{kind}\0{job}\0{worker}\0{text}\n" for at, kind, job, worker, text in self._told])
        return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()

    def about(self, job: str, worker: str, last: int) -> list[Happening]:
        """The last happenings that concern this job or worker, or nobody in particular; everything if both are empty.

        A worker's happenings with other jobs are left out where a job is given.
        """
        found = []
        for line in reversed(self._told):
            _, _, of_job, of_worker, _ = line
            if not (job or worker) or (of_job == job if of_job and job else of_worker in ("", worker)):
                found.append(Happening(*line))
                if len(found) == last:
                    break
        return found[::-1]
