"""Reinforcement learning in small: several jobs play, one learns, and actors hold what they share.

    python examples/rl.py [--rollouts 3] [--rounds 40]

The game is a bandit: five levers, of which one pays best. The coordinator serves two actors: the policy, which players
read, and the experience, which they fill. Players are jobs of their own and find both by name.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
from collections.abc import Sequence

from fluster import (
    ActorContext,
    ActorServer,
    Cluster,
    ClusterResolver,
    Entrypoint,
    JobRequest,
    LocalCluster,
    ResourceConfig,
    current_cluster,
)

PAYS = (0.1, 0.3, 0.8, 0.5, 0.2)
"""How often each lever pays; players do not know."""
PULLS = 20
"""Of a player in one round."""
SMALL = ResourceConfig.with_cpu(cpu=0.5, memory="256MB")

Pull = tuple[int, float]
"""Which lever, and what it paid."""


class Policy:
    """What is believed of each lever. Players read it, the coordinator improves it."""

    def __init__(self) -> None:
        self.values = [0.5] * len(PAYS)
        self.counts = [0] * len(PAYS)

    def current(self) -> list[float]:
        """What each lever is believed to pay."""
        return self.values

    def learn(self, pulls: list[Pull]) -> None:
        """Moves each value towards what was seen."""
        for lever, reward in pulls:
            self.counts[lever] += 1
            self.values[lever] += (reward - self.values[lever]) / self.counts[lever]


class Experience:
    """What players have seen and nobody has learned from yet."""

    def __init__(self) -> None:
        self.pulls: list[Pull] = []
        self.players: set[str] = set()

    def add(self, ctx: ActorContext, player: int, pulls: list[Pull]) -> None:
        """A player brings what it saw. `ctx` says where this actor runs, and finds others."""
        self.players.add(f"{ctx.namespace}/{player}")
        self.pulls += pulls

    def take(self) -> tuple[list[Pull], int]:
        """All there is, and how many players brought some."""
        taken, self.pulls = self.pulls, []
        return taken, len(self.players)


def play(player: int, rounds: int) -> float:
    """A rollout job: reads the policy, plays by it, brings what it saw; gives what it won in its last round."""
    resolver = ClusterResolver(current_cluster())
    policy, experience = resolver.lookup("policy", Policy), resolver.lookup("experience", Experience)
    dice = random.Random(player)
    won = 0.0
    for number in range(rounds):
        values = policy.call().current()
        curious = 1.0 / (1 + number)
        pulls = []
        for _ in range(PULLS):
            best = max(range(len(PAYS)), key=lambda lever: values[lever])
            lever = dice.randrange(len(PAYS)) if dice.random() < curious else best
            pulls.append((lever, float(dice.random() < PAYS[lever])))
        experience.call().add(player, pulls)  # type: ignore[call-arg]
        won = sum(reward for _, reward in pulls)
    return won


def run(cluster: Cluster, rollouts: int, rounds: int) -> None:
    """The coordinator: serves the actors, launches the players, learns while they play."""
    with ActorServer(cluster) as server:
        policy, experience = Policy(), Experience()
        server.register("policy", policy)
        server.register("experience", experience)
        server.serve_background()

        jobs = [
            cluster.submit(JobRequest(f"rollout-{player}", Entrypoint.from_callable(play, player, rounds), SMALL))
            for player in range(rollouts)
        ]
        # The coordinator calls its own actors as everybody does: one call at a time, so that nothing needs a lock.
        resolver = ClusterResolver(cluster)
        to_policy, to_experience = resolver.lookup("policy", Policy), resolver.lookup("experience", Experience)
        ended = threading.Event()
        learned = players = 0

        def wait_for_players() -> None:
            for job in jobs:
                job.wait()
            ended.set()

        waiter = threading.Thread(target=wait_for_players)
        waiter.start()
        last_look = False
        while not last_look:
            last_look = ended.wait(0.01)
            pulls, players = to_experience.call().take()
            if pulls:
                to_policy.call().learn(pulls)
                learned += len(pulls)
        waiter.join()

        values = to_policy.call().current()
        best = max(range(len(PAYS)), key=lambda lever: values[lever])
        print(f"{players} players pulled {learned} times")
        print(f"what the levers are believed to pay: {[round(value, 2) for value in values]}")
        print(f"the best lever is number {best}")
        print(f"won in the last round, of {PULLS}: {[int(job.result()) for job in jobs]}")


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Reinforcement learning in small, with jobs and actors.")
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args(argv)
    with LocalCluster(cpu=max(2, arguments.rollouts)) as cluster:
        run(cluster, arguments.rollouts, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
