import asyncio
import errno
import io
import os
from pathlib import Path

import pytest
from tests.packages import make_needed_wheels

from fluster.cluster.archive import pack, unpack
from fluster.cluster.attempt import proc
from fluster.cluster.worker.delivery import StaysHere
from fluster.cluster.worker.failures import BuildFailed
from fluster.cluster.worker.interpreter import choose_interpreter
from fluster.cluster.worker.provision import Provision
from fluster.cluster.worker.uv import Fault, UvFailed, find_uv, run_uv, uv_variables
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec


def fake(directory: Path, script: str) -> str:
    path = directory / "fake-uv"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def failure_of(directory: Path, said: str) -> Exception:
    with pytest.raises((UvFailed, OSError)) as caught:
        await run_uv(fake(directory, f"cat >&2 <<'E'\n{said}\nE\nexit 1"), (), directory=directory, environment={})
    return caught.value


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("error: No solution found\n  cause: Because there is no version of moo==9 …", Fault.REQUEST),
        ("error: Failed to fetch: x\n  cause: tcp connect error\n  cause: Connection refused", Fault.DOWNLOAD),
        ("error: Failed to fetch: x\n  cause: HTTP status server error (503 Service Unavailable)", Fault.DOWNLOAD),
        ("error: Failed to fetch: x\n  cause: HTTP status client error (404 Not Found)", Fault.REQUEST),
        ("error: Failed to download `moo`\n  cause: Hash mismatch for `moo`", Fault.DAMAGE),
        ("error: Failed to extract archive: moo.whl", Fault.DAMAGE),
    ],
)
async def test_a_failure_is_known_by_what_uv_says(said: str, fault: Fault, tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, said)
    assert isinstance(failure, UvFailed)
    assert (failure.fault, failure.text) == (fault, said)


async def test_a_full_disk_is_none_of_the_requests_fault(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, "error: failed to write\n  cause: No space left on device (os error 28)")
    assert isinstance(failure, OSError)
    assert failure.errno == errno.ENOSPC


async def test_when_nobody_waits_any_more_uv_ends_with_all_it_started(tmp_path: Path) -> None:
    script = f"(setsid sleep 600 & echo $! > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/child); sleep 600"
    task = asyncio.create_task(
        run_uv(fake(tmp_path, script), (), directory=tmp_path, environment={"PATH": os.environ["PATH"]})
    )
    async with asyncio.timeout(20):
        while not (tmp_path / "child").exists():
            await asyncio.sleep(0.01)
    pid = int((tmp_path / "child").read_text())
    started = proc.start_time(pid)
    assert started is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not proc.is_running(pid, started)


def test_uv_does_not_see_what_is_the_daemons_own() -> None:
    given = {"FLUSTER_TOKEN": "secret", "PYTHONPATH": "/daemon", "VIRTUAL_ENV": "/daemon", "UV_INDEX_URL": "u"}
    seen = uv_variables(given)
    assert seen["UV_INDEX_URL"] == "u"
    assert not {"FLUSTER_TOKEN", "PYTHONPATH", "VIRTUAL_ENV"}.intersection(seen)


def provision_of(directory: Path, **environment: str) -> Provision:
    given = {**os.environ, "UV_CACHE_DIR": str(directory / "uv"), "UV_COMPILE_BYTECODE": "0", **environment}
    return Provision(StaysHere(), given, directory=directory / "cache")


async def test_an_index_that_does_not_answer_is_a_failed_download(tmp_path: Path) -> None:
    offered = provision_of(tmp_path, UV_INDEX_URL="http://127.0.0.1:9/none", UV_HTTP_RETRIES="0")
    spec = EnvironmentSpec(pip_packages=["moo"])
    with pytest.raises(BuildFailed, match="a download failed") as caught:
        await offered.environment(spec, await choose_interpreter(None, None), None, tmp_path, lambda _: None)
    assert caught.value.fluster_fault
    assert not list((tmp_path / "cache" / "environments" / "making").iterdir())


async def test_without_uv_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluster.cluster.worker.venvs.find_uv", lambda: None)
    spec = EnvironmentSpec(pip_packages=["moo"])
    with pytest.raises(BuildFailed, match=r"fluster-cluster\[server\]"):
        await provision_of(tmp_path).environment(
            spec, await choose_interpreter(None, None), None, tmp_path, lambda _: None
        )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of what every environment needs."""
    directory = tmp_path_factory.mktemp("index")
    make_needed_wheels(directory)
    return directory


async def test_ten_that_ask_two_workers_at_once_have_it_built_once(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$1" >> {tmp_path}/calls; exec {find_uv()} "$@"'
    monkeypatch.setattr("fluster.cluster.worker.venvs.find_uv", lambda: fake(tmp_path, script))
    offered = [provision_of(tmp_path, UV_OFFLINE="1", UV_FIND_LINKS=str(index)) for _ in range(2)]
    spec, python = EnvironmentSpec(pip_packages=["cloudpickle"]), await choose_interpreter(None, None)
    made = await asyncio.gather(
        *(offered[number % 2].environment(spec, python, None, tmp_path, lambda _: None) for number in range(10))
    )
    assert len({each.path for each in made if each is not None}) == 1
    assert (tmp_path / "calls").read_text().split() == ["venv", "pip"]


async def test_what_was_damaged_on_its_way_is_had_without_the_cache(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        f'echo "$*" >> {tmp_path}/calls; case "$*" in (venv*|pip*no-cache*) exec {find_uv()} "$@";; esac;'
        'echo "error: Failed to extract archive: x.whl" >&2; exit 2'
    )
    monkeypatch.setattr("fluster.cluster.worker.venvs.find_uv", lambda: fake(tmp_path, script))
    offered = provision_of(tmp_path, UV_OFFLINE="1", UV_FIND_LINKS=str(index))
    said: list[str] = []
    spec = EnvironmentSpec(pip_packages=["cloudpickle"])
    venv = await offered.environment(spec, await choose_interpreter(None, None), None, tmp_path, said.append)
    assert venv is not None
    assert "building: resolving 2 packages again without a cache: something arrived damaged" in said
    assert len((tmp_path / "calls").read_text().splitlines()) == 4


async def test_a_closed_environment_is_evicted_under_the_cap_once_it_is_released(tmp_path: Path, index: Path) -> None:
    environment = {**os.environ, "UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)}
    environment |= {"UV_COMPILE_BYTECODE": "0", "UV_CACHE_DIR": str(tmp_path / "uv")}
    offered = Provision(StaysHere(), environment, directory=tmp_path / "cache", cap_bytes=1)
    python, paths = await choose_interpreter(None, None), []
    for number in range(2):
        attempt = tmp_path / f"attempt{number}"
        attempt.mkdir()
        spec = EnvironmentSpec(pip_packages=["cloudpickle", *["protobuf-py"] * number])
        venv = await offered.environment(spec, python, None, attempt, lambda _: None)
        assert venv is not None
        assert not (venv.path / "lib").stat().st_mode & 0o222
        paths.append(venv.path)
        offered.release(attempt.name)
    assert [path.exists() for path in paths] == [False, True], "the newer one is kept, the older one was not in use"


@pytest.mark.root
async def test_a_disk_that_is_full_is_told_as_such_and_nothing_half_made_is_left(tmp_path: Path, index: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small))
    if await mounted.wait() != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        environment = {
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(index),
            "UV_CACHE_DIR": str(tmp_path / "uv"),
        }
        offered = provision_of(small, **environment)
        spec, python = EnvironmentSpec(pip_packages=["cloudpickle"]), await choose_interpreter(None, None)
        with pytest.raises(OSError, match="No space left"):
            await offered.environment(spec, python, None, tmp_path, lambda _: None)
        assert not list((small / "cache" / "environments" / "making").iterdir())
        content = pack(index, [path.name for path in index.iterdir()])
        with open("/dev/urandom", "rb") as noise, pytest.raises(OSError, match="No space left"):
            (small / "filler").write_bytes(noise.read(2 << 20))
        (small / "work").mkdir()
        with pytest.raises(OSError, match="No space left"):
            unpack(io.BytesIO(content), small / "work")
    finally:
        unmounted = await asyncio.create_subprocess_exec("umount", str(small))
        assert await unmounted.wait() == 0


async def test_a_package_of_the_real_index_is_there_after_its_download(tmp_path: Path) -> None:
    said: list[str] = []
    spec = EnvironmentSpec(pip_packages=["cowsay==6.1"])
    try:
        venv = await provision_of(tmp_path).environment(
            spec, await choose_interpreter(None, None), None, tmp_path, said.append
        )
    except BuildFailed as error:
        if error.fluster_fault:
            pytest.skip(f"needs a package index: {error}")
        raise
    assert venv is not None
    process = await asyncio.create_subprocess_exec(
        str(venv.path / "bin" / "cowsay"), "-t", "moo", stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await process.communicate()
    assert b"| moo |" in shown
    assert said[0] == "building: resolving 2 packages"
    assert any(text.startswith("building: fetching") for text in said)
