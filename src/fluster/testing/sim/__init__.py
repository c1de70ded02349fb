"""A whole cluster under a virtual clock: the real core and the real decisions of workers, seeded faults, rules.

One seed decides everything. `python -m fluster.testing.sim --help` runs many.
"""

from fluster.testing.sim.config import CALM, Config, Faults, Work
from fluster.testing.sim.simulation import Result, Simulation, simulate
from fluster.testing.sim.story import Happening, InvariantBroken

__all__ = ["CALM", "Config", "Faults", "Happening", "InvariantBroken", "Result", "Simulation", "Work", "simulate"]
