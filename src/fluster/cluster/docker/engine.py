"""What Fluster asks of a Docker Engine: containers, images, networks. A call that fails says what the engine said."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fluster.cluster.docker import http
from fluster.errors import FlusterError, Unreachable

API = "/v1.41"
"""Of Docker 20.10; every later engine still speaks it."""
DEFAULT_SOCKET = Path("/var/run/docker.sock")
ANSWER_S = 60.0
"""For calls that do not wait for something of their own."""

Json = dict[str, Any]


class EngineError(FlusterError):
    """The engine refused or failed.

    Attributes:
        status: Of its answer: 404 there is no such thing, 409 it is in the way of another.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def find_socket() -> Path:
    """Where this machine's engine listens.

    Raises:
        FlusterError: DOCKER_HOST names one on another machine.
    """
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        return DEFAULT_SOCKET
    if not host.startswith("unix://"):
        raise FlusterError(f"DOCKER_HOST is {host!r}: Fluster uses a Docker Engine of this machine (unix:///…)")
    return Path(host.removeprefix("unix://"))


class Engine:
    """A Docker Engine, by its socket. Holds no connection between calls."""

    def __init__(self, socket: Path | None = None) -> None:
        self.socket = socket or find_socket()

    async def version(self) -> str:
        """The engine's, once it answers."""
        return str((await self._json("GET", "/version"))["Version"])

    async def why_not(self) -> str:
        """Why no engine can be used here; empty when one can."""
        try:
            await self.version()
        except FlusterError as error:
            return str(error)
        return ""

    # Containers

    async def create(self, name: str, config: Json) -> str:
        """Makes a container, not started yet; its id. 409: there is one of that name."""
        return str((await self._json("POST", "/containers/create", {"name": name}, config))["Id"])

    async def start(self, container: str) -> None:
        """Starts it; one that runs goes on."""
        await self._json("POST", f"/containers/{container}/start")

    async def inspect(self, container: str) -> Json | None:
        """All that is known of it; `None`: there is none."""
        return await self._found(f"/containers/{container}/json")

    async def containers(self, labels: Mapping[str, str]) -> list[Json]:
        """Containers with all these labels, running or not."""
        found: list[Json] = await self._json("GET", "/containers/json", {"all": "1", "filters": _filters(labels)})
        return found

    async def wait(self, container: str) -> int:
        """Its exit status, once it has one; blocks without a bound."""
        return int((await self._json("POST", f"/containers/{container}/wait", timeout_s=None))["StatusCode"])

    async def signal(self, container: str, name: str) -> None:
        """Sends a signal to its first process; nothing happens if it does not run."""
        with contextlib.suppress(EngineError):
            await self._json("POST", f"/containers/{container}/kill", {"signal": name})

    async def stop(self, container: str, grace_s: float) -> None:
        """SIGTERM, and after the grace SIGKILL; returns when it has ended. One that is not there has."""
        try:
            grace = {"t": str(round(grace_s))}
            await self._json("POST", f"/containers/{container}/stop", grace, timeout_s=grace_s + ANSWER_S)
        except EngineError as error:
            if error.status != 404:
                raise

    async def unpause(self, container: str) -> None:
        """Lets it go on; nothing happens if it does not stand still."""
        with contextlib.suppress(EngineError):
            await self._json("POST", f"/containers/{container}/unpause")

    async def remove(self, container: str) -> None:
        """Kills and removes it with its anonymous volumes; returns when nothing is left, also if nothing was."""
        while True:
            try:
                await self._json("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})
                return
            except EngineError as error:
                if error.status == 404:
                    return
                if error.status != 409 or "in progress" not in str(error):
                    raise
            await asyncio.sleep(0.1)  # somebody else removes it

    async def put_files(
        self, container: str, directory: str, files: Mapping[str, bytes], *, uid: int, gid: int
    ) -> None:
        """Writes small files, readable by that user alone, into a directory of a container, running or not."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o600, uid, gid
                tar.addfile(entry, io.BytesIO(content))
        target = _target(f"/containers/{container}/archive", {"path": directory})
        await self._send("PUT", target, packed.getvalue(), "application/x-tar", ANSWER_S)

    async def read_file(self, container: str, path: str) -> bytes | None:
        """A small file of a container, running or not; `None`: there is none."""
        try:
            packed = await self._send(
                "GET", _target(f"/containers/{container}/archive", {"path": path}), b"", "", ANSWER_S
            )
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            member = tar.next()
            file = tar.extractfile(member) if member is not None and member.isfile() else None
            return None if file is None else file.read()

    async def memory_bytes(self, container: str) -> int:
        """The most memory it has used so far, where the kernel counts it; else what it uses now. 0: it has ended."""
        asked = {"stream": "0", "one-shot": "1"}
        told = (await self._json("GET", f"/containers/{container}/stats", asked) or {}).get("memory_stats") or {}
        return int(told.get("max_usage") or told.get("usage") or 0)

    async def last_lines(self, container: str, lines: int = 5) -> str:
        """The end of what it printed, for a message."""
        asked = {"stdout": "1", "stderr": "1", "tail": str(lines)}
        try:
            raw = await self._send("GET", _target(f"/containers/{container}/logs", asked), b"", "", ANSWER_S)
        except FlusterError:
            return ""
        return b"".join(frame for _, frame in split_frames(raw)).decode(errors="replace").strip()

    @contextlib.asynccontextmanager
    async def attached(self, container: str) -> AsyncIterator[AsyncIterator[tuple[int, bytes]]]:
        """What a container prints from now on, as (1: stdout or 2: stderr, bytes), until it ends."""
        target = _target(f"/containers/{container}/attach", {"stream": "1", "stdout": "1", "stderr": "1"})
        async with http.request(self.socket, "POST", API + target) as response:
            await _check(response, "POST", target)
            yield _frames(response.pieces())

    # Images

    async def image(self, name: str) -> Json | None:
        """All that is known of an image that is here; `None`: it is not."""
        return await self._found(f"/images/{quote(name, safe='/:@')}/json")

    async def images(self, labels: Mapping[str, str]) -> list[Json]:
        """Images with all these labels."""
        found: list[Json] = await self._json("GET", "/images/json", {"filters": _filters(labels)})
        return found

    async def pull(self, name: str) -> None:
        """Fetches an image from its registry."""
        image, _, tag = name.partition("@") if "@" in name else _split_tag(name)
        asked = {"fromImage": image, "tag": tag or "latest"}
        await self._progress(_target("/images/create", asked), b"", "", f"image {name!r} cannot be pulled")

    async def build(
        self, tag: str, context: bytes, labels: Mapping[str, str], arguments: Mapping[str, str] | None = None
    ) -> None:
        """Builds an image of a tar with a Dockerfile in it."""
        asked = {"t": tag, "rm": "1", "forcerm": "1", "labels": json.dumps(dict(labels))}
        asked["buildargs"] = json.dumps(dict(arguments or {}))
        await self._progress(_target("/build", asked), context, "application/x-tar", f"image {tag!r} cannot be built")

    async def import_image(self, tag: str, layer: bytes, changes: list[str]) -> None:
        """Makes an image of one tar: its whole file system."""
        name, _, version = _split_tag(tag)
        asked = [
            ("fromSrc", "-"),
            ("repo", name),
            ("tag", version or "latest"),
            *(("changes", each) for each in changes),
        ]
        target = f"/images/create?{urlencode(asked)}"
        await self._progress(target, layer, "application/x-tar", f"image {tag!r} cannot be made")

    async def remove_image(self, name: str) -> None:
        """Removes an image, or its tag; nothing happens if it is not here."""
        try:
            await self._json("DELETE", f"/images/{quote(name, safe='/:@')}")
        except EngineError as error:
            if error.status != 404:
                raise

    # Networks

    async def network(self, name: str) -> Json | None:
        """All that is known of a network; `None`: there is none."""
        return await self._found(f"/networks/{name}")

    async def create_network(self, name: str, subnet: str, labels: Mapping[str, str]) -> None:
        """Makes a bridge of its own."""
        config = {
            "Name": name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "IPAM": {"Config": [{"Subnet": subnet}]},
            "Labels": dict(labels),
        }
        await self._json("POST", "/networks/create", body=config)

    async def networks(self, labels: Mapping[str, str]) -> list[Json]:
        """Networks with all these labels."""
        found: list[Json] = await self._json("GET", "/networks", {"filters": _filters(labels)})
        return found

    async def remove_network(self, name: str) -> None:
        """Removes it; nothing happens if it is not there."""
        try:
            await self._json("DELETE", f"/networks/{name}")
        except EngineError as error:
            if error.status != 404:
                raise

    # The wire

    async def _found(self, path: str) -> Json | None:
        try:
            found: Json = await self._json("GET", path)
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        timeout_s: float | None = ANSWER_S,
    ) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        answer = await self._send(method, _target(path, query or {}), content, "application/json", timeout_s)
        return json.loads(answer) if answer.strip() else None

    async def _send(self, method: str, target: str, body: bytes, content_type: str, timeout_s: float | None) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout_s),
                http.request(self.socket, method, API + target, body, content_type) as response,
            ):
                await _check(response, method, target)
                return await response.body()
        except TimeoutError:
            what = f"the Docker Engine did not answer {method} {target} in {timeout_s:g} s"
            raise Unreachable(what, address=f"unix://{self.socket}") from None

    async def _progress(self, target: str, body: bytes, content_type: str, what: str) -> None:
        """A call that tells of its progress line by line, its failure among them."""
        async with http.request(self.socket, "POST", API + target, body, content_type) as response:
            if response.status >= 400:
                raise EngineError(f"{what}: {_said(await response.body())}", response.status)
            said = await response.body()
        for line in said.splitlines():
            told = json.loads(line) if line.strip() else {}
            if "error" in told:
                raise EngineError(f"{what}: {told['error']}", 500)


async def _check(response: http.Response, method: str, target: str) -> None:
    if response.status >= 400:
        said = _said(await response.body())
        raise EngineError(f"the Docker Engine refused {method} {target.partition('?')[0]}: {said}", response.status)


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip() or "it gave no reason"


def _target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _filters(labels: Mapping[str, str]) -> str:
    return json.dumps({"label": [f"{name}={value}" if value else name for name, value in labels.items()]})


def _split_tag(name: str) -> tuple[str, str, str]:
    """`host:5000/image:tag` at its last colon, unless that belongs to the host."""
    image, colon, tag = name.rpartition(":")
    return (image, colon, tag) if colon and "/" not in tag else (name, "", "")


async def _frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Output of a container without a terminal: a header of 8 bytes before each frame, cut anywhere."""
    waiting = b""
    async for piece in pieces:
        waiting += piece
        whole = 0
        for stream, start, end in _bounds(waiting):
            yield stream, waiting[start:end]
            whole = end
        waiting = waiting[whole:]


def split_frames(raw: bytes) -> list[tuple[int, bytes]]:
    """The same of bytes that are all there."""
    return [(stream, raw[start:end]) for stream, start, end in _bounds(raw)]


def _bounds(raw: bytes) -> list[tuple[int, int, int]]:
    found, at = [], 0
    while at + 8 <= len(raw):
        end = at + 8 + int.from_bytes(raw[at + 4 : at + 8], "big")
        if end > len(raw):
            break
        found.append((raw[at], at + 8, end))
        at = end
    return found
