"""Jobs with packages, projects and workspaces of their own, on real workers with a real uv, and no network."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.lab import Process, in_thread, wait_until
from tests.packages import make_needed_wheels, make_sdist, make_wheel

from fluster import (
    Cause,
    Cluster,
    Entrypoint,
    EnvironmentConfig,
    JobInfo,
    JobRequest,
    JobStatus,
    LocalCluster,
    ResourceConfig,
    WorkerPool,
)
from fluster.cluster.context import read_token_file
from fluster.cluster.worker import files

SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="200MB")
WITHIN_S = 50.0


SLOW = """
import pathlib, time
def build_wheel(*arguments, **options):
    pathlib.Path({mark!r}).touch()
    time.sleep(600)
build_sdist = get_requires_for_build_wheel = lambda *arguments: []
"""


@pytest.fixture
def slow_package(index: Path) -> Iterator[Path]:
    """A file that is there once somebody has begun to build the package `slow`, which takes for ever."""
    (index / "begun").unlink(missing_ok=True)
    yield index / "begun"
    (index / "begun").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of wheels, which is all that the workers of this module install from."""
    directory = tmp_path_factory.mktemp("index")
    make_needed_wheels(directory)
    for version in ("1.0", "2.0"):
        make_wheel(directory, "moo", version, {"moo.py": f"def say():\n    return 'moo {version}'\n"})
    make_wheel(directory, "herd", "1.0", {"herd.py": "import moo\n"}, ("moo<2",))
    make_sdist(directory, "slow", "1.0", "slow_backend", SLOW.format(mark=str(directory / "begun")))
    broken = make_wheel(directory, "spoilt", "1.0", {"spoilt.py": "x = 1\n" * 1000})
    broken.write_bytes(broken.read_bytes()[:900] + bytes(64) + broken.read_bytes()[964:])
    return directory


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("UV_OFFLINE", "1")
        patch.setenv("UV_COMPILE_BYTECODE", "0")  # half of the time, for environments of one second
        patch.setenv("UV_FIND_LINKS", str(index))
        with LocalCluster(cpu=4, memory="8GB", num_workers=2) as cluster:
            yield cluster


@pytest.fixture
def cluster(local_cluster: LocalCluster) -> Iterator[LocalCluster]:
    yield local_cluster
    local_cluster._rpc.close_idle()


@pytest.fixture
def far(local_cluster: LocalCluster) -> Iterator[Cluster]:
    """The same one as it is to a client on another machine."""
    token = read_token_file(local_cluster._daemon.token_file)
    with Cluster(local_cluster.address, token=token) as client:
        yield client


def with_packages(*packages: str, **fields: object) -> EnvironmentConfig:
    return EnvironmentConfig(pip_packages=packages, **fields)  # type: ignore[arg-type]


def python(code: str, environment: EnvironmentConfig) -> JobRequest:
    return JobRequest("python", Entrypoint.from_command("python", "-c", code), SMALL, environment)


def failed(cluster: Cluster, request: JobRequest) -> JobInfo:
    info = cluster.wait(cluster.launch(request), timeout=WITHIN_S)
    assert info.status is JobStatus.FAILED, info
    return info


def said(cluster: Cluster, request: JobRequest) -> str:
    job = cluster.submit(request)
    info = job.wait(timeout=WITHIN_S)
    text = "\n".join(line.data for line in job.logs())
    assert info.status is JobStatus.SUCCEEDED, (info, text)
    return text


def started_with(cluster: Cluster, job_id: str) -> str:
    (message,) = [event.message for event in cluster.events(job_id) if event.kind == "TaskStarted"]
    return message


def test_functions_and_commands_find_their_packages_and_nothing_else(cluster: LocalCluster) -> None:
    def work() -> tuple[str, bool, str]:
        import importlib.util

        import moo  # type: ignore[import-not-found]

        return moo.say(), importlib.util.find_spec("pytest") is not None, sys.prefix

    request = JobRequest("f", Entrypoint.from_callable(work), SMALL, with_packages("moo==1.0"))
    answer, has_pytest, prefix = cluster.submit(request).result(timeout=WITHIN_S)
    assert (answer, has_pytest) == ("moo 1.0", False)
    code = "import moo, sys, os; print(moo.say(), sys.prefix, os.environ['VIRTUAL_ENV'])"
    assert said(cluster, python(code, with_packages("moo==1.0"))) == f"moo 1.0 {prefix} {prefix}"


def test_an_environment_is_built_once_then_found_and_says_so(cluster: LocalCluster, far: Cluster) -> None:
    jobs = [far.submit(python("import herd", with_packages("herd"))) for _ in range(10)]
    seen: set[str] = set()
    while not all(job.status().finished() for job in jobs):
        seen.update(filter(None, (job.info().pending_reason for job in jobs)))
        seen.update(reason for reason in jobs[0].why().reasons if "building" in reason)
    assert [job.status() for job in jobs] == [JobStatus.SUCCEEDED] * 10
    assert any("building: resolving 2 packages (" in reason for reason in seen), seen
    assert all(" built in " in started_with(cluster, job.job_id) for job in jobs), "each says what it waited for"
    again = far.submit(python("import herd", with_packages("herd")))
    assert again.wait(timeout=WITHIN_S).status is JobStatus.SUCCEEDED
    assert " was there" in started_with(cluster, again.job_id)


@pytest.mark.docker
def test_packages_are_found_in_a_container_by_functions_commands_and_those_of_a_notebook(
    cluster: LocalCluster, docker_image: str
) -> None:
    environment = with_packages("moo==1.0", docker_image=docker_image)

    def work() -> tuple[str, bool]:
        import moo

        return moo.say(), os.path.exists("/.dockerenv")

    job = cluster.submit(JobRequest("f", Entrypoint.from_callable(work), SMALL, environment))
    assert job.result(timeout=WITHIN_S) == ("moo 1.0", True)
    told = started_with(cluster, job.job_id)
    assert re.search(rf"image {docker_image} is sha256:\w+; environment \w+ (was there|built in)", told), told
    command = Entrypoint.from_command("python3", "-c", "import moo; print(moo.say())")
    assert said(cluster, JobRequest("c", command, SMALL, environment)) == "moo 1.0"
    notebook = NOTEBOOK.format(address=cluster.address, image=docker_image)
    variables = {**os.environ, "FLUSTER_TOKEN": read_token_file(cluster._daemon.token_file)}
    ran = subprocess.run(
        [sys.executable, "-"], input=notebook, env=variables, capture_output=True, text=True, timeout=WITHIN_S
    )
    assert ran.stdout == "moo 1.0 there\n", ran.stderr


# Functions of a __main__ without a file, called while an event loop runs.
NOTEBOOK = """
import asyncio
from fluster import Cluster, Entrypoint, EnvironmentConfig, JobRequest, ResourceConfig

where = "there"

def speak():
    import moo
    return moo.say() + " " + where

async def cell():
    environment = EnvironmentConfig(pip_packages=["moo==1.0"], docker_image={image!r})
    with Cluster({address!r}) as cluster:
        small = ResourceConfig.with_cpu(cpu=0.1, memory="200MB")
        request = JobRequest("cell", Entrypoint.from_callable(speak), small, environment)
        print(await cluster.submit(request))

asyncio.run(cell())
"""


@pytest.mark.docker
def test_a_python_that_an_image_does_not_have_is_refused_before_anything_runs(
    cluster: LocalCluster, docker_image: str
) -> None:
    environment = EnvironmentConfig(docker_image=docker_image, python="3.9")
    for entrypoint in (Entrypoint.from_callable(os.getpid), Entrypoint.from_command("true")):
        info = failed(cluster, JobRequest("old", entrypoint, SMALL, environment))
        assert (info.cause, info.tasks[0].attempt) == (Cause.BUILD_FAILED, 1)
        assert f"image '{docker_image}' has no interpreter 'python3.9'" in (info.error_message or "")


def test_the_second_function_of_an_environment_is_forked_warm(cluster: LocalCluster) -> None:
    def parent() -> str:
        import os

        return open(f"/proc/{os.getppid()}/comm").read().strip()

    request = JobRequest("f", Entrypoint.from_callable(parent), SMALL, with_packages("moo==1.0"))
    assert cluster.submit(request).result(timeout=WITHIN_S) == "fluster-shim"
    again = cluster.submit(request)
    assert again.result(timeout=WITHIN_S) == "fluster-shim"
    assert " was there" in started_with(cluster, again.job_id)


def test_what_cannot_be_had_fails_once_in_the_words_of_the_tool(cluster: LocalCluster) -> None:
    last = ""
    for package, words in (
        ("moo==9", "no version of moo==9"),
        ("no-such-thing", "no-such-thing was not found"),
        ("a b c", "a b c"),
    ):
        info = failed(cluster, python("1", with_packages(package)))
        assert info.cause is Cause.BUILD_FAILED
        assert words in (info.error_message or ""), info.error_message
        assert "could not be built" in (info.error_message or "")
        assert info.tasks[0].attempt == 1
        last = info.job_id
    assert "mend the environment" in str(cluster.why(last))


def test_what_arrives_damaged_is_asked_for_once_more(cluster: LocalCluster) -> None:
    info = failed(cluster, python("1", with_packages("spoilt")))
    assert (info.cause, info.tasks[0].attempt) == (Cause.BUILD_FAILED, 1)
    assert "spoilt" in (info.error_message or "")


def test_extras_without_a_project_are_refused(cluster: LocalCluster) -> None:
    info = failed(cluster, python("1", EnvironmentConfig(extras=["x"])))
    assert "the job has no workspace with one" in (info.error_message or "")


def test_a_function_for_another_python_is_refused_and_a_command_runs_in_it(cluster: LocalCluster) -> None:
    others = [each for each in ("3.12", "3.13") if each != f"{sys.version_info[0]}.{sys.version_info[1]}"]
    found = next((path for each in others if (path := _find_python(each))), None)
    if found is None:
        pytest.skip("needs another Python")
    environment = with_packages("moo==1.0", python=found)
    info = failed(cluster, JobRequest("f", Entrypoint.from_callable(os.getpid), SMALL, environment))
    assert info.cause is Cause.BUILD_FAILED
    assert f"pickled by Python {sys.version_info[0]}.{sys.version_info[1]}, but {found} is Python 3." in (
        info.error_message or ""
    )
    ran = said(cluster, python("import moo, sys; print(moo.say(), '%d.%d' % sys.version_info[:2])", environment))
    assert ran in {f"moo 1.0 {each}" for each in others}


def _find_python(version: str) -> str | None:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[0]) if found else None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with code of its own, a dependency, and what git ignores."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "project"
    (root / "src" / "inner").mkdir(parents=True)
    (root / "pyproject.toml").write_text(
        "[project]\nname='demo'\nversion='1'\nrequires-python='>=3.11'\ndependencies=['moo<2']\n"
        "[project.optional-dependencies]\nbig=['herd']\n"
    )
    (root / "src" / "inner" / "__init__.py").write_text("import moo\n\ndef speak():\n    return 'inner ' + moo.say()\n")
    (root / "tool.py").write_text("import inner\n\ndef speak():\n    return 'tool ' + inner.speak()\n")
    (root / ".gitignore").write_text("junk/\n")
    (root / "junk").mkdir()
    (root / "junk" / "large").write_bytes(os.urandom(1000))
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def test_a_project_runs_where_its_dependencies_were_never_installed(cluster: LocalCluster, project: Path) -> None:
    script = project / "main.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            from fluster import Cluster, Entrypoint, JobRequest, create_environment

            def here():
                import tool
                return tool.speak(), sorted(set(os.listdir()) - {'__pycache__'}), os.getcwd()

            def count(n):
                return Box(n)

            class Box:
                def __init__(self, n): self.n = n

            if __name__ == "__main__":
                with Cluster(sys.argv[1]) as cluster:
                    def ask(fn, *args):
                        request = JobRequest("x", Entrypoint.from_callable(fn, *args), environment=create_environment())
                        return cluster.submit(request).result(timeout=50)
                    print(*ask(here))
                    import types
                    sys.modules["moo"] = types.ModuleType("moo")  # not installed where this runs
                    sys.path.insert(0, "src")
                    import tool
                    sys.modules["moo"].say = lambda: "wrong"
                    print(ask(tool.speak), ask(count, 3).n)
            """
        )
    )
    token = read_token_file(cluster._daemon.token_file)
    ran = subprocess.run(
        [sys.executable, str(script), cluster.address],
        cwd=project,
        env={**os.environ, "FLUSTER_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first.startswith("tool inner moo 1.0 ['.gitignore', 'main.py', 'pyproject.toml', 'src', 'tool.py'] /")
    assert str(project) not in first
    assert second == "tool inner moo 1.0 3"


def test_commands_start_in_the_workspace_with_its_extras_and_lock(far: Cluster, project: Path) -> None:
    code = "import tool, herd; print(tool.speak()); open('written', 'w').close()"
    environment = EnvironmentConfig(workspace=str(project), extras=["big"])
    assert said(far, python(code, environment)) == "tool inner moo 1.0"
    assert not (project / "written").exists()
    (project / "requirements.lock").write_text("moo==2.0\nherd==1.0\n")
    info = failed(far, python(code, environment))
    assert "unsatisfiable" in (info.error_message or ""), "a lock is kept to"
    (project / "requirements.lock").unlink()
    pyproject = project / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace(">=3.11", ">=3.99"))
    info = failed(far, python(code, environment))
    assert "the workspace's project needs Python >=3.99, and " in (info.error_message or "")
    pyproject.write_text(pyproject.read_text().replace(">=3.99", ">=3.11"))
    info = failed(far, python(code, EnvironmentConfig(workspace=str(project), extras=["none"])))
    assert "none" in (info.error_message or "")


def test_a_lock_of_uv_decides_on_versions(far: Cluster, project: Path, index: Path) -> None:
    environ = {**os.environ, "UV_OFFLINE": "1", "UV_FIND_LINKS": str(index), "UV_PYTHON_DOWNLOADS": "never"}
    make_wheel(index, "moo", "1.5", {"moo.py": "def say():\n    return 'moo 1.5'\n"})
    try:
        (project / "pyproject.toml").write_text(
            "[project]\nname='demo'\nversion='1'\nrequires-python='>=3.11'\ndependencies=['moo<2']\n[tool.uv]\n"
        )
        command = [
            sys.executable,
            "-m",
            "uv",
            "lock",
            "--quiet",
            "--python",
            sys.executable,
            "--upgrade-package",
            "moo==1.0",
        ]
        subprocess.run(command, cwd=project, env=environ, check=True, timeout=WITHIN_S)
        locked = said(far, python("import moo; print(moo.say())", EnvironmentConfig(workspace=str(project))))
        assert locked == "moo 1.0"
    finally:
        (index / "moo-1.5-py3-none-any.whl").unlink()


def test_the_children_of_a_job_find_what_it_found(cluster: LocalCluster, project: Path) -> None:
    def parent() -> str:
        from fluster import current_cluster

        def child() -> str:
            import tool  # type: ignore[import-not-found]

            return str(tool.speak())

        return str(current_cluster().submit(child).result(timeout=40))

    environment = EnvironmentConfig(workspace=str(project))
    request = JobRequest("parent", Entrypoint.from_callable(parent), SMALL, environment)
    assert cluster.submit(request).result(timeout=WITHIN_S) == "tool inner moo 1.0"


def test_a_pool_has_the_environment_in_its_workers(cluster: LocalCluster) -> None:
    def ask(number: int) -> str:
        import moo

        return f"{moo.say()} {number}"

    with WorkerPool(cluster, 2, SMALL, with_packages("moo==1.0")) as pool:
        pool.wait_for_workers(timeout=WITHIN_S)
        assert [future.result(timeout=WITHIN_S) for future in pool.map(ask, range(3))] == [
            f"moo 1.0 {n}" for n in range(3)
        ]


def test_a_workspace_that_is_too_large_is_refused_with_its_largest_files(far: Cluster, tmp_path: Path) -> None:
    (tmp_path / "small").write_text("x")
    with open(tmp_path / "data.bin", "wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match=r"too large to send: 200\.0 MB in 2 files.*data\.bin \(200\.0 MB\), small"):
        far.launch(python("1", EnvironmentConfig(workspace=str(tmp_path))))


def test_a_workspace_is_sent_once(far: Cluster, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    unary = far._rpc.unary

    def counted(method: str, request: object, *args: object, **kwargs: object) -> object:
        sent.append((method, len(getattr(request, "chunk", b""))))
        return unary(method, request, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(far._rpc, "unary", counted)
    (project / "new").write_bytes(os.urandom(16))
    for _ in range(3):
        far.launch(python("1", EnvironmentConfig(workspace=str(project))))
    assert sum(size > 0 for method, size in sent if method == "PutBlob") == 1
    (project / "tool.py").write_text("changed = True\n")
    assert said(far, python("import tool; print(tool.changed)", EnvironmentConfig(workspace=str(project)))) == "True"


def builders() -> list[str]:
    """What runs to build environments, by its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
            if "fluster.cluster.attempt.tied" in words or "slow_backend" in words:
                found.append(words)
    return found


def test_a_build_ends_with_the_last_that_waits_for_it(cluster: LocalCluster, slow_package: Path) -> None:
    jobs = [cluster.submit(python("1", with_packages("slow"))) for _ in range(2)]
    wait_until(lambda: slow_package.exists() or None, "its build begins")
    wait_until(lambda: all("building" in (job.info().pending_reason or "") for job in jobs), "both wait for it")
    jobs[0].terminate()
    assert jobs[0].wait(timeout=WITHIN_S).status is JobStatus.STOPPED
    assert builders()
    jobs[1].terminate()
    assert jobs[1].wait(timeout=WITHIN_S).status is JobStatus.STOPPED
    wait_until(lambda: not builders(), "nothing is built any more")


def test_the_command_says_what_is_built_while_it_waits(cluster: LocalCluster, slow_package: Path) -> None:
    environ = {**os.environ, "FLUSTER_TOKEN": read_token_file(cluster._daemon.token_file)}
    words = [sys.executable, "-m", "fluster", "run", "--name", "built", "--cluster", cluster.address]
    with subprocess.Popen([*words, "--with", "slow", "--", "true"], env=environ, stderr=subprocess.PIPE) as command:
        assert command.stderr is not None
        lines = iter(command.stderr.readline, b"")
        try:
            # Which step is seen first depends on what was built before.
            said = re.compile(rb"building: (resolving|fetching) \d packages \(")
            assert in_thread(lambda: any(said.search(line) for line in lines)).result(WITHIN_S)
        finally:
            command.kill()
    (job,) = cluster.list_jobs(name_prefix="built", limit=1)
    cluster.terminate(job.job_id)
    assert cluster.wait(job.job_id, timeout=WITHIN_S).status is JobStatus.STOPPED


def test_what_a_killed_worker_built_ends_and_is_built_again(cluster: LocalCluster, slow_package: Path) -> None:
    job = cluster.submit(python("1", with_packages("slow")))
    wait_until(lambda: slow_package.exists() or None, "its build begins")
    before = builders()
    slow_package.unlink()
    for number in range(2):
        service = files.ServiceFile.read(cluster._state_dir / f"workers/local-{number}")
        assert service is not None
        Process.of(service.pid).kill()
    wait_until(lambda: slow_package.exists() or None, "it is built again")
    assert not set(before).intersection(builders()), "the first one's builder is gone"
    job.terminate()
    assert job.wait(timeout=WITHIN_S).status is JobStatus.STOPPED
