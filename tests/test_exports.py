import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import fluster
from fluster.cluster import types

NAMES = """
    ActorCallTimeout ActorContext ActorEndpoint ActorError ActorFuture ActorId ActorNotFound ActorPool ActorProxy
    ActorServer ActorUnavailable AlreadyExists BroadcastHandle Cause Cluster ClusterResolver CpuConfig Endpoint
    EndpointId Entrypoint EnvironmentConfig Event Explanation FailedPrecondition FixedResolver FlusterError GPU_VARIANTS
    GpuConfig Job JobFailed JobId JobInfo JobNotFound JobRequest JobStatus LocalCluster LogLine Namespace NotInCluster
    NotPermitted PoolStats Priority RemoteError RemoteFault Resolver ResourceConfig ResourceExhausted RetryPolicy
    TPU_TOPOLOGIES TaskState TaskStatus TpuConfig TpuTopologyInfo Unreachable VMId VMInfo VMStatus WorkerId WorkerInfo
    WorkerPool WorkerResources WorkerStatus __version__ create_environment current_actor current_cluster
    get_tpu_topology idempotent
"""
PUBLIC = NAMES.split()

IMPORT_BUDGET_S = 0.1
"""Of CPU time: what a busy machine adds is not ours."""


def in_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert sorted(fluster.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(fluster, name) is not None
    assert name in dir(fluster)


def test_an_unknown_name_is_an_attribute_error_naming_it() -> None:
    with pytest.raises(AttributeError, match="'Clutser'"):
        fluster.Clutser  # type: ignore[attr-defined]  # noqa: B018


def test_importing_fluster_loads_neither_protobuf_nor_cloudpickle_nor_anything_else_of_its_own() -> None:
    loaded = in_fresh_interpreter("import sys, fluster; print(*sys.modules)").split()
    assert [name for name in loaded if name.split(".")[0] in ("protobuf", "cloudpickle", "connectrpc", "google")] == []
    assert [name for name in loaded if name.startswith("fluster")] == ["fluster"]


def test_nouns_and_errors_load_neither_protobuf_nor_cloudpickle() -> None:
    code = "import sys; from fluster import JobRequest, JobFailed, create_environment; print(*sys.modules)"
    loaded = in_fresh_interpreter(code).split()
    assert [name for name in loaded if name.split(".")[0] in ("protobuf", "cloudpickle", "connectrpc", "google")] == []


def test_importing_fluster_takes_at_most_100_ms_of_cpu() -> None:
    code = "import time; t = time.process_time(); import fluster; print(time.process_time() - t)"
    assert min(float(in_fresh_interpreter(code)) for _ in range(3)) <= IMPORT_BUDGET_S


def test_a_copy_of_the_files_without_metadata_still_has_a_version() -> None:
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import fluster; print(fluster.__version__)"
    )
    assert in_fresh_interpreter(code) == "0+unknown"


def test_the_version_is_a_version() -> None:
    assert re.match(r"[0-9]+\.[0-9]+", fluster.__version__)


def test_type_checkers_see_every_public_name() -> None:
    source = Path(str(fluster.__file__)).read_text(encoding="utf-8")
    checked = source.split("if TYPE_CHECKING:")[1].split("__all__ = [")[0]
    words = set(re.findall(r"\w+", re.sub(r"from [\w.]+ import", "", checked)))
    assert words - {"str"} == set(PUBLIC)


def test_the_nouns_of_the_cluster_layer_are_all_importable_from_types() -> None:
    for name in types.__all__:
        assert hasattr(types, name)


def test_public_annotations_can_be_resolved() -> None:
    for name in types.__all__:
        value = getattr(types, name)
        if isinstance(value, type):
            typing.get_type_hints(value)
