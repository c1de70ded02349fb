"""`config show`: which cluster commands mean here, and who says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import click

from fluster.cli.options import cluster_option, json_option
from fluster.cli.places import state_home
from fluster.cli.target import find_target
from fluster.cli.terminal import print_json, print_table
from fluster.cluster.config import ConfiguredCluster, load_configuration, user_config_file
from fluster.cluster.context import CA_FILE, NAMESPACE, SERVER_PYTHON, TOKEN, TOKEN_FILE, ClientVariables, find_project


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that holds here. Empty where nobody says anything."""

    name: str
    value: str
    source: str


@click.command()
@json_option
@cluster_option
def config_show(as_json: bool, cluster: str | None) -> None:
    """What holds here, and who says so: a flag, a variable, the project's pyproject.toml, or your own file.

    Tokens are not shown.
    """
    settings = list(_settings(cluster))
    if as_json:
        print_json(settings)
    else:
        print_table(("SETTING", "VALUE", "SOURCE"), [(each.name, each.value, each.source) for each in settings])


def _settings(cluster: str | None) -> Iterator[Setting]:
    target = find_target(cluster)
    variables = ClientVariables.from_environment()
    configuration = load_configuration()
    if target is None:
        yield Setting("cluster", "(none: `fluster up` starts one)", "")
    else:
        yield Setting("cluster", target.name or target.address, "--cluster" if cluster else target.source)
        yield Setting("address", target.address, target.source)
        yield _token(target, variables)
        if target.address.startswith("https:"):
            yield _authority(target, variables)
    for name, variable, value in (
        ("namespace", NAMESPACE, variables.namespace),
        ("server_python", SERVER_PYTHON, variables.server_python),
    ):
        configured = getattr(configuration, name)
        source = variable if value else configuration.sources.get(name, "")
        yield Setting(name, value or configured or "(default)", source)
    for entry in configuration.clusters.values():
        yield Setting(f"clusters.{entry.name}", entry.address, entry.source)
    yield Setting("your file", *_file(user_config_file()))
    project = find_project()
    if project is not None:
        yield Setting("project's file", *_file(project / "pyproject.toml"))
    yield Setting("state", str(state_home()), "")


def _token(target: ConfiguredCluster, variables: ClientVariables) -> Setting:
    if variables.token:
        return Setting("token", "(set)", TOKEN)
    if variables.token_file:
        return Setting("token", f"in {variables.token_file}", TOKEN_FILE)
    if target.token_file:
        return Setting("token", f"in {target.token_file}", target.source)
    return Setting("token", "(none)", "")


def _authority(target: ConfiguredCluster, variables: ClientVariables) -> Setting:
    if variables.ca_file:
        return Setting("ca_file", variables.ca_file, CA_FILE)
    if target.ca_file:
        return Setting("ca_file", target.ca_file, target.source)
    return Setting("ca_file", "(what the token names, else the system's authorities)", "")


def _file(path: os.PathLike[str]) -> tuple[str, str]:
    return os.fspath(path), "" if os.path.exists(path) else "not there"
