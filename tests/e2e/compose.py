"""Compose: the command where there is one, else as much of it as this project's compose file needs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from fluster.cluster.docker.engine import Engine
from fluster.cluster.docker.network import provide_network

_KNOWN = {
    *("image", "command", "environment", "volumes", "networks", "init", "cap_drop", "security_opt"),
    *("restart", "stop_grace_period"),
}


def read_services(path: Path, variables: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services of a compose file in which every list is in one line."""
    services: dict[str, dict[str, Any]] = {}
    section = name = key = ""
    for line in path.read_text().splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text or text.startswith("#"):
            continue
        word, _, value = text.partition(":")
        value = re.sub(r"\$\{(\w+):-(\w+)\}", lambda found: variables.get(found[1], found[2]), value.strip())
        if indent == 0:
            section = word
        elif section == "services" and indent == 2:
            name = word
            services[name] = {}
        elif section == "services" and indent == 4:
            key = word
            assert key in _KNOWN, f"{path}: the test does not know {key!r}"
            services[name][key] = json.loads(value) if value.startswith(("[", "true")) else value or {}
        elif section == "services":
            services[name][key][word] = value
    return services


class Composed:
    """Its containers on a network of their own, each under the name of its service."""

    def __init__(self, project: str, services: dict[str, dict[str, Any]]) -> None:
        self.project = project
        self.engine = Engine()
        self._services = services
        self._labels = {"fluster.cluster": project}

    async def up(self, scale: dict[str, int]) -> None:
        network = await provide_network(self.engine, self.project)
        for service, told in self._services.items():
            for number in range(scale.get(service, 1)):
                name = self.name(service, number)
                await self.engine.create(name, self._config(service, told, network.name))
                await self.engine.start(name)

    def _config(self, service: str, told: dict[str, Any], network: str) -> dict[str, Any]:
        return {
            "Image": told["image"],
            "Cmd": told["command"],
            "Env": [f"{key}={value}" for key, value in told.get("environment", {}).items()],
            "Labels": self._labels,
            "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [service]}}},
            "HostConfig": {
                "NetworkMode": network,
                "Init": told["init"],
                "CapDrop": told["cap_drop"],
                "SecurityOpt": told["security_opt"],
                "Binds": [f"{self.project}_{volume}" for volume in told["volumes"]],
            },
        }

    def name(self, service: str, number: int = 0) -> str:
        return f"{self.project}-{service}-{number}"

    async def run(self, service: str, *argv: str) -> tuple[int, str]:
        """`docker compose exec`: exit code and output."""
        container = self.name(service)
        config = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": True}
        made = await self.engine._json("POST", f"/containers/{container}/exec", body=config)
        body = json.dumps({"Detach": False}).encode()
        raw = await self.engine._send("POST", f"/exec/{made['Id']}/start", body, "application/json", 120.0)
        from fluster.cluster.docker.engine import split_frames

        said = b"".join(piece for _, piece in split_frames(raw)).decode()
        ended = await self.engine._json("GET", f"/exec/{made['Id']}/json")
        return int(ended["ExitCode"]), said

    async def down(self) -> None:
        there = await self.engine.containers(self._labels)
        await asyncio.gather(*(self.engine.remove(each["Id"]) for each in there))
        for network in await self.engine.networks(self._labels):
            await self.engine.remove_network(network["Id"])
        for volume in ("controller", "join"):
            await self.engine._json("DELETE", f"/volumes/{self.project}_{volume}", {"force": "1"})


def find_command() -> list[str] | None:
    """`docker compose` or `docker-compose`; `None`: there is neither."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) and subprocess.run([*words, "version"], capture_output=True).returncode == 0:
            return words
    return None


class Commanded:
    """What the command makes of a compose file, under a project name of its own."""

    def __init__(self, command: list[str], project: str, path: Path, variables: dict[str, str]) -> None:
        self._command = [*command, "--project-name", project, "--file", str(path)]
        self._environment = {**os.environ, **variables}

    async def up(self, scale: dict[str, int]) -> None:
        scaled = [word for service, number in scale.items() for word in ("--scale", f"{service}={number}")]
        code, said = await self._call("up", "--detach", *scaled)
        assert code == 0, said

    async def run(self, service: str, *argv: str) -> tuple[int, str]:
        """`docker compose exec`: exit code and output."""
        return await self._call("exec", "-T", service, *argv)

    async def down(self) -> None:
        code, said = await self._call("down", "--volumes", "--timeout", "3")
        assert code == 0, said

    async def _call(self, *words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()
