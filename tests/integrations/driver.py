"""Runs in Zephyr's environment: calls functions of a module as it is told to, on a cluster of its own."""

import contextlib
import importlib
import json
import sys
import traceback

from fluster import LocalCluster
from fluster.integrations.fray import FlusterClient


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr
    with LocalCluster(cpu=int(sys.argv[2])) as cluster, contextlib.closing(_Shutting(FlusterClient(cluster))) as held:
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                answer = [getattr(module, name)(held.client, *arguments), None]
            except Exception:
                answer = [None, traceback.format_exc()]
            print(json.dumps(answer), file=answers, flush=True)


class _Shutting:
    def __init__(self, client: FlusterClient) -> None:
        self.client = client

    def close(self) -> None:
        self.client.shutdown()


if __name__ == "__main__":
    main()
