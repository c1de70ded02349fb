"""A Docker Engine as Fluster speaks to it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fluster.cluster.docker.engine import Engine, EngineError, find_socket, split_frames
from fluster.errors import FlusterError, Unreachable


@asynccontextmanager
async def container(image: str, *argv: str) -> AsyncIterator[tuple[Engine, str]]:
    engine, name = Engine(), f"fluster-test-{uuid.uuid4().hex[:12]}"
    try:
        await engine.create(name, {"Image": image, "Entrypoint": list(argv), "Labels": {"fluster.test": name}})
        yield engine, name
    finally:
        await engine.remove(name)


async def output(engine: Engine, name: str) -> dict[int, bytes]:
    said = {1: b"", 2: b""}
    async with engine.attached(name) as frames:
        await engine.start(name)
        async for stream, piece in frames:
            said[stream] += piece
    return said


@pytest.mark.docker
async def test_a_containers_streams_and_exit_status_arrive_whole(docker_image: str) -> None:
    script = "seq 1 50000; echo problem >&2; exit 7"
    async with container(docker_image, "sh", "-c", script) as (engine, name):
        said = await output(engine, name)
        assert await engine.wait(name) == 7
        assert said[1].splitlines() == [str(number).encode() for number in range(1, 50_001)]
        assert said[2] == b"problem\n"
        assert len((await engine.last_lines(name, 3)).splitlines()) == 3


@pytest.mark.docker
async def test_containers_are_found_by_their_labels_until_they_are_removed(docker_image: str) -> None:
    async with container(docker_image, "true") as (engine, name):
        assert [each["Names"] for each in await engine.containers({"fluster.test": name})] == [[f"/{name}"]]
        await engine.remove(name)
        assert await engine.containers({"fluster.test": name}) == []
        assert await engine.inspect(name) is None
        await engine.remove(name)


@pytest.mark.docker
async def test_many_who_remove_one_container_at_once_all_find_it_gone(docker_image: str) -> None:
    async with container(docker_image, "sleep", "60") as (engine, name):
        await engine.start(name)
        await asyncio.gather(*(engine.remove(name) for _ in range(5)))
        assert await engine.inspect(name) is None


@pytest.mark.docker
async def test_small_files_go_into_a_container_and_come_back(docker_image: str) -> None:
    async with container(docker_image, "true") as (engine, name):
        await engine.put_files(name, "/var/lib/fluster", {"token": b"secret"}, uid=1000, gid=1000)
        assert await engine.read_file(name, "/var/lib/fluster/token") == b"secret"
        assert await engine.read_file(name, "/var/lib/fluster/nothing") is None


@pytest.mark.docker
async def test_what_the_engine_refuses_is_said_in_its_words(docker_image: str) -> None:
    async with container(docker_image, "true") as (engine, name):
        with pytest.raises(EngineError, match="already in use") as refused:
            await engine.create(name, {"Image": docker_image, "Cmd": ["true"]})
        assert refused.value.status == 409
        with pytest.raises(EngineError, match="No such image: nowhere/nothing:1"):
            await engine.create("x", {"Image": "nowhere/nothing:1", "Cmd": ["true"]})


async def test_without_an_engine_it_is_said_where_none_answers(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"no Docker Engine answers on .*/no\.sock: No such file"):
        await Engine(tmp_path / "no.sock").version()
    assert "no Docker Engine answers" in await Engine(tmp_path / "no.sock").why_not()


async def test_an_answer_that_breaks_off_is_no_answer(tmp_path: Path) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nhalf")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, tmp_path / "e.sock"):
        with pytest.raises(Unreachable, match="broke off"):
            await Engine(tmp_path / "e.sock").version()


def test_an_engine_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://there:2375")
    with pytest.raises(FlusterError, match="a Docker Engine of this machine"):
        find_socket()
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1/docker.sock")
    assert find_socket() == Path("/run/user/1/docker.sock")


def test_a_frame_that_is_not_whole_is_left_out() -> None:
    whole = b"\x01\0\0\0\0\0\0\x02ab"
    assert split_frames(whole + whole[:9]) == [(1, b"ab")]
