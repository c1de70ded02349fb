"""`python -m fluster.testing.sim`: many seeds, a summary, and for a seed that fails how to see it again."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from fluster.testing.sim.config import Config
from fluster.testing.sim.mutants import MUTANTS
from fluster.testing.sim.simulation import Result, simulate

_STORY_LINES = 30


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 when a rule does not hold, 2 for what cannot be."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.list_mutants:
        print("\n".join(f"{name:<32} {mutant.what}" for name, mutant in MUTANTS.items()))
        return 0
    if given.mutant is not None and given.mutant not in MUTANTS:
        parser.error(f"no mutant {given.mutant!r}; --list-mutants shows those there are")
    # What the product says of faults it was given on purpose is no news here.
    logging.getLogger("fluster").addHandler(logging.NullHandler())
    results = []
    for result in _results(given):
        results.append(result)
        if result.broken is not None:
            print(_failure(result, given), flush=True)
        elif given.story:
            print("\n".join(map(str, result.story)))
        if result.broken is not None and not given.keep_going:
            break
    print(_summary(results))
    return 1 if any(result.broken is not None for result in results) else 0


def _results(given: argparse.Namespace) -> Iterator[Result]:
    mutant = MUTANTS[given.mutant] if given.mutant is not None else None
    config = mutant.config if mutant is not None else Config(seconds=3600.0, workers=50)
    if given.hours is not None:
        config = replace(config, seconds=given.hours * 3600)
    if given.workers is not None:
        config = replace(config, workers=given.workers)
    with mutant.active() if mutant is not None else nullcontext():
        for seed in given.seeds:
            yield simulate(replace(config, seed=seed))


def _failure(result: Result, given: argparse.Namespace) -> str:
    assert result.broken is not None
    again = f"python -m fluster.testing.sim --seeds {result.seed} --story"
    for name in ("hours", "workers", "mutant"):
        if (value := getattr(given, name)) is not None:
            again += f" --{name} {value}"
    told = result.story if given.story else result.story[-_STORY_LINES:]
    lines = [f"seed {result.seed}: {result.broken}", "", *map(str, told), ""]
    if (cause := result.broken.__cause__) is not None:
        lines += traceback.format_exception(cause)
    return "\n".join([*lines, f"replay: {again}", ""])


def _summary(results: list[Result]) -> str:
    simulated, cpu = sum(r.simulated_s for r in results), sum(r.cpu_s for r in results)
    broken = [r.seed for r in results if r.broken is not None]
    lines = [
        ("seeds", f"{len(results)}, {len(broken)} broken" + (f": {broken}" if broken else "")),
        ("simulated", f"{simulated / 3600:.2f} hours"),
        ("speed", f"{simulated / max(cpu, 1e-9):,.0f} times real time on one core"),
        ("events", f"{sum(r.events for r in results):,}"),
        ("messages", f"{sum(r.messages for r in results):,}"),
        ("commits", f"{sum(r.commits for r in results):,}"),
        ("faults", f"{sum(r.faults for r in results):,}"),
        ("jobs", f"{sum(r.jobs for r in results):,}"),
        ("attempts", f"{sum(r.attempts for r in results):,}"),
        ("lost with their machine", f"{sum(r.lost for r in results):,}"),
    ]
    if len(results) == 1:
        lines.append(("trace", results[0].digest))
    return "\n".join(f"{name:<24}{value}" for name, value in lines)


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fluster.testing.sim", description="Simulate clusters under faults, and check what must hold."
    )
    parser.add_argument("--seeds", type=_seeds, default=[0], help="such as 7, 0-99 or 1,5,20-29")
    parser.add_argument("--hours", type=float, help="of simulated time with faults, for each seed (1)")
    parser.add_argument("--workers", type=int, help="machines (50)")
    parser.add_argument("--mutant", metavar="NAME", help="break a fence on purpose, under the faults it is for")
    parser.add_argument("--list-mutants", action="store_true", help="name them")
    parser.add_argument("--story", action="store_true", help="tell what happened")
    parser.add_argument("--keep-going", action="store_true", help="go on after a seed that fails")
    return parser
