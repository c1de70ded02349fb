"""Configured clusters: which one a client means, and the file that `up` and `down` keep.

First wins: what the caller says, `FLUSTER_*`, `[tool.fluster]` of the project's `pyproject.toml`, the user's
`config.toml`. Both files have the same form::

    cluster = "local"            # a name from below, or an address

    [clusters.local]
    address = "http://127.0.0.1:7077"
    token_file = "~/.local/state/fluster/local/admin.token"
    ca_file = "~/ca.pem"     # of an https address: the authority to believe, instead of the system's
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fluster.cluster.context import (
    CLUSTER_ADDRESS,
    ClientVariables,
    check_token,
    config_home,
    find_project,
    normal_address,
    read_token_file,
)
from fluster.cluster.refusal import nearest, refuse, shown
from fluster.cluster.validation import check_name

_KEYS = ("cluster", "clusters", "namespace", "server_python")
_ENTRY_KEYS = ("address", "token_file", "ca_file")


@dataclass(frozen=True, slots=True)
class ConfiguredCluster:
    """A cluster as somebody configured it.

    Attributes:
        address: `http://host:port`.
        token_file: File with the token; `None` when none is named.
        ca_file: File with the authority that vouches for it; `None`: what the token names, else the system's.
        name: Its name in the configuration; `None` when only an address was given.
        source: Who said so: a file's path, or the variable's name.
    """

    address: str
    token_file: str | None = None
    name: str | None = None
    source: str = ""
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say, the project's before the user's.

    Attributes:
        cluster: Name or address of the cluster to use; `None` when no file says.
        clusters: By name.
        namespace: Default namespace of clients; `None` for the controller's.
        server_python: Interpreter for the daemons of a LocalCluster.
        sources: The file each of the set keys above comes from.
    """

    cluster: str | None = None
    clusters: Mapping[str, ConfiguredCluster] = field(default_factory=dict)
    namespace: str | None = None
    server_python: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def find(self, cluster: str) -> ConfiguredCluster:
        """The cluster of that name or address.

        Raises:
            ValueError: It is neither a configured name nor an address.
        """
        if cluster in self.clusters:
            return self.clusters[cluster]
        if ":" not in cluster:
            known = (
                nearest(cluster, self.clusters) if self.clusters else "; none is configured, `fluster up` starts one"
            )
            raise ValueError(f"no configured cluster {shown(cluster)}{known}")
        address = normal_address(cluster)
        named = (entry for entry in self.clusters.values() if entry.address == address)
        return next(named, ConfiguredCluster(address))


def user_config_file(environ: Mapping[str, str] | None = None) -> Path:
    """The user's configuration file, there or not."""
    return config_home(environ) / "config.toml"


def load_configuration(
    environ: Mapping[str, str] | None = None, directory: str | os.PathLike[str] | None = None
) -> Configuration:
    """The configuration that holds in a directory (by default the current one).

    Raises:
        ValueError: A file cannot be read or says something it cannot mean; the message names file and key.
    """
    user = user_config_file(environ)
    project = find_project(directory)
    layers = [(user, _read(user))]
    if project:
        file = project / "pyproject.toml"
        tool = _read(file).get("tool")
        layers.append((file, tool.get("fluster", {}) if isinstance(tool, dict) else {}))
    merged: dict[str, Any] = {}
    clusters: dict[str, ConfiguredCluster] = {}
    sources: dict[str, str] = {}
    for file, table in layers:
        clusters.update(_clusters(file, _checked(file, table, _KEYS, "clusters")))
        texts = {key: value for key, value in table.items() if key != "clusters"}
        merged.update(texts)
        sources.update(dict.fromkeys(texts, str(file)))
    return Configuration(clusters=clusters, sources=sources, **merged)


def find_cluster(
    cluster: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> ConfiguredCluster | None:
    """The cluster a client means; `None` when nothing is configured.

    Args:
        cluster: A configured name or an address, when the caller says.
        environ: Instead of this process's variables.
        directory: Instead of the current one.

    Raises:
        ValueError: A name is unknown, an address is none, or a file is wrong.
    """
    variable = ClientVariables.from_environment(environ).address
    configuration = load_configuration(environ, directory)
    if cluster is not None:
        return configuration.find(cluster)
    if variable is not None:
        found = configuration.find(normal_address(variable))
        return replace(found, source=CLUSTER_ADDRESS)
    return configuration.find(configuration.cluster) if configuration.cluster is not None else None


def find_token(
    address: str,
    token: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> str | None:
    """The token for a controller: the given one, the variables', else the configured cluster's of that address.

    Raises:
        ValueError: What should be a token is none, or its file cannot be read; its content is not shown.
    """
    if token is not None:
        return check_token(token, "token")
    from_variables = ClientVariables.from_environment(environ).read_token()
    if from_variables is not None:
        return from_variables
    entry = load_configuration(environ, directory).find(normal_address(address))
    return read_token_file(entry.token_file) if entry.token_file is not None else None


def find_ca_file(
    address: str,
    *,
    environ: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> str | None:
    """The authority to believe about a controller: the variable's file, else the configured cluster's of that address.

    Raises:
        ValueError: A file of the configuration is wrong.
    """
    from_variables = ClientVariables.from_environment(environ).ca_file
    if from_variables is not None:
        return str(Path(from_variables).expanduser())
    return load_configuration(environ, directory).find(normal_address(address)).ca_file


def find_namespace(
    *, environ: Mapping[str, str] | None = None, directory: str | os.PathLike[str] | None = None
) -> str | None:
    """The namespace that variables or files name as this program's default; `None`: the controller's."""
    return ClientVariables.from_environment(environ).namespace or load_configuration(environ, directory).namespace


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError both are
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def _checked(file: Path, table: object, keys: tuple[str, ...], tables: str | None = None) -> dict[str, Any]:
    """The table, all of its keys known and, but for the one that holds tables, texts."""
    if not isinstance(table, dict):
        raise refuse(f"{file}: a section for Fluster", "a table", table)
    for key, value in table.items():
        if key not in keys:
            raise ValueError(f"{file}: unknown key {shown(key)}{nearest(key, keys)}")
        if key != tables and not (isinstance(value, str) and value):
            raise refuse(f"{file}: {key}", "a text", value)
    return table


def _clusters(file: Path, table: Mapping[str, Any]) -> dict[str, ConfiguredCluster]:
    section = table.get("clusters", {})
    if not isinstance(section, dict):
        raise refuse(f"{file}: clusters", "a table of tables", section)
    return {check_name(name, f"{file}: a cluster's name"): _entry(file, name, entry) for name, entry in section.items()}


def _entry(file: Path, name: str, table: object) -> ConfiguredCluster:
    entry = _checked(file, table, _ENTRY_KEYS)
    if "address" not in entry:
        raise ValueError(f"{file}: cluster {name!r} has no address")
    # Relative to the file that names it, wherever a program was started.
    files = {key: str(file.parent / Path(entry[key]).expanduser()) for key in ("token_file", "ca_file") if key in entry}
    return ConfiguredCluster(normal_address(entry["address"]), name=name, source=str(file), **files)
