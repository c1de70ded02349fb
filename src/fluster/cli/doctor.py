"""`doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import click

from fluster.cli.exits import ExitCode
from fluster.cli.options import cluster_option, json_option
from fluster.cli.terminal import print_json, print_table, print_talk


@click.command()
@json_option
@cluster_option
def doctor(as_json: bool, cluster: str | None) -> int:
    """Look at this machine: what it has for clients and workers, what it lacks, and what to do about it.

    "limited" says that something does not work here and jobs that do not need it run all the same. Exit code 1 says
    that something failed that all of them need.
    """
    from fluster.cli.checks import Status, all_checks

    found = all_checks(cluster)
    if as_json:
        print_json(found)
    else:
        print_table(("WHAT", "STATUS", "FOUND"), [(each.name, each.status, each.found) for each in found], empty="")
        for each in found:
            if each.advice:
                print_talk(f"{each.name}: {each.advice}")
    return ExitCode.FAILED if any(each.status is Status.FAILED for each in found) else ExitCode.OK
