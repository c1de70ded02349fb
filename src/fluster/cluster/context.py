"""The only reader of `FLUSTER_*` variables: what a task is told about itself, and what a client's surroundings say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.ids import JobId, Namespace, WorkerId
from fluster.cluster.validation import RESERVED_ENV_PREFIX, refuse
from fluster.errors import NotInCluster

CLUSTER_ADDRESS = "FLUSTER_CLUSTER_ADDRESS"
NAMESPACE = "FLUSTER_NAMESPACE"
JOB_ID = "FLUSTER_JOB_ID"
JOB_NAME = "FLUSTER_JOB_NAME"
TASK_INDEX = "FLUSTER_TASK_INDEX"
NUM_TASKS = "FLUSTER_NUM_TASKS"
ATTEMPT = "FLUSTER_ATTEMPT"
ATTEMPT_UID = "FLUSTER_ATTEMPT_UID"
WORKER_ID = "FLUSTER_WORKER_ID"
ADVERTISE_HOST = "FLUSTER_ADVERTISE_HOST"
PORT_PREFIX = "FLUSTER_PORT_"
TOKEN = "FLUSTER_TOKEN"
TOKEN_FILE = "FLUSTER_TOKEN_FILE"
CA_FILE = "FLUSTER_CA_FILE"
CERTIFICATE_FILE = "FLUSTER_CERTIFICATE_FILE"
SERVER_PYTHON = "FLUSTER_SERVER_PYTHON"
SECRET_DEFAULTS = ("HF_TOKEN", "WANDB_API_KEY")
"""Variables of the field that are passed on when set, and travel as secrets."""

_TASK_VARIABLES = (
    *(CLUSTER_ADDRESS, NAMESPACE, JOB_NAME, TASK_INDEX, NUM_TASKS, ATTEMPT, ATTEMPT_UID),
    *(WORKER_ID, TOKEN_FILE, ADVERTISE_HOST),
)
_TOKEN_FORM = re.compile(r"[!-~]{1,512}")
MAX_TOKEN_FILE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a task's process is told about itself; the worker writes it, the task reads it.

    Attributes:
        cluster_address: Of the controller, as the worker reaches it.
        namespace: Where its endpoints are valid.
        job_id: Its job.
        job_name: Its job's name.
        task_index: 0 to ``num_tasks`` - 1.
        num_tasks: Tasks of the job.
        attempt: Number of this attempt, from 1.
        attempt_uid: This attempt's own name.
        worker_id: Where it runs.
        token_file: File with the token that is valid while this attempt lives.
        advertise_host: Where other tasks reach it.
        ports: By the name the job gave them, in upper case.
        ca_file: The authority that vouches for the controller; `None`: the system's do, or nothing is encrypted.
        certificate_file: Certificate and key of this attempt's servers; `None`: they do not encrypt.
    """

    cluster_address: str
    namespace: Namespace
    job_id: JobId
    job_name: str
    task_index: int
    num_tasks: int
    attempt: int
    attempt_uid: str
    worker_id: WorkerId
    token_file: str
    advertise_host: str
    ports: Mapping[str, int] = field(default_factory=dict)
    ca_file: str | None = None
    certificate_file: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> TaskContext | None:
        """The calling task's context; `None` outside of a job.

        Raises:
            NotInCluster: This is a job's process, but variables are missing or no numbers; the error names them.
        """
        environ = os.environ if environ is None else environ
        if not environ.get(JOB_ID):
            return None
        missing = [name for name in _TASK_VARIABLES if not environ.get(name)]
        if missing:
            raise NotInCluster(
                f"{JOB_ID} says this is a task, but what else a task has is not set: {', '.join(missing)};"
                f" start subprocesses with the task's environment, or unset {JOB_ID} to act as a client from outside",
                missing=missing,
            )
        return cls(
            cluster_address=environ[CLUSTER_ADDRESS],
            namespace=Namespace(environ[NAMESPACE]),
            job_id=JobId(environ[JOB_ID]),
            job_name=environ[JOB_NAME],
            task_index=_number(environ, TASK_INDEX),
            num_tasks=_number(environ, NUM_TASKS),
            attempt=_number(environ, ATTEMPT),
            attempt_uid=environ[ATTEMPT_UID],
            worker_id=WorkerId(environ[WORKER_ID]),
            token_file=environ[TOKEN_FILE],
            advertise_host=environ[ADVERTISE_HOST],
            ports=_ports(environ),
            ca_file=environ.get(CA_FILE) or None,
            certificate_file=environ.get(CERTIFICATE_FILE) or None,
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads back as the same context."""
        return {
            CLUSTER_ADDRESS: self.cluster_address,
            NAMESPACE: self.namespace,
            JOB_ID: self.job_id,
            JOB_NAME: self.job_name,
            TASK_INDEX: str(self.task_index),
            NUM_TASKS: str(self.num_tasks),
            ATTEMPT: str(self.attempt),
            ATTEMPT_UID: self.attempt_uid,
            WORKER_ID: self.worker_id,
            TOKEN_FILE: self.token_file,
            ADVERTISE_HOST: self.advertise_host,
            **{f"{PORT_PREFIX}{name.upper()}": str(port) for name, port in self.ports.items()},
            **({CA_FILE: self.ca_file} if self.ca_file is not None else {}),
            **({CERTIFICATE_FILE: self.certificate_file} if self.certificate_file is not None else {}),
        }


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise NotInCluster(f"{name} must be a whole number, got {environ[name]!r}", missing=[name]) from None


def _ports(environ: Mapping[str, str]) -> dict[str, int]:
    names = [name for name in environ if name.startswith(PORT_PREFIX)]
    return {name.removeprefix(PORT_PREFIX): _number(environ, name) for name in names}


@dataclass(frozen=True, slots=True)
class ClientVariables:
    """What the variables say to a client; `None` where one is not set or empty."""

    address: str | None = None
    namespace: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    ca_file: str | None = None
    server_python: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ClientVariables:
        """The variables of this process."""
        environ = os.environ if environ is None else environ
        return cls(
            address=environ.get(CLUSTER_ADDRESS) or None,
            namespace=environ.get(NAMESPACE) or None,
            token=environ.get(TOKEN) or None,
            token_file=environ.get(TOKEN_FILE) or None,
            ca_file=environ.get(CA_FILE) or None,
            server_python=environ.get(SERVER_PYTHON) or None,
        )

    def read_token(self) -> str | None:
        """`FLUSTER_TOKEN`, else the content of `FLUSTER_TOKEN_FILE`, else `None`.

        Raises:
            ValueError: What is there does not have a token's form; it is not shown.
        """
        if self.token is not None:
            return check_token(self.token, TOKEN)
        return read_token_file(self.token_file) if self.token_file is not None else None


def check_token(value: str, where: str) -> str:
    """A token's form: one printable ASCII word. The error never shows it."""
    if not _TOKEN_FORM.fullmatch(value):
        raise ValueError(f"{where} does not hold a token: one word of printable ASCII, at most 512 characters")
    return value


def read_token_file(path: str | os.PathLike[str]) -> str:
    """The token a file holds.

    Raises:
        ValueError: The file cannot be read, or holds something else; its content is not shown.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_TOKEN_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read the token file {os.fspath(path)!r}: {error.strerror}") from None
    # Other files are refused by form, so a misguided configuration cannot send a private key to a server.
    return check_token(content.decode("ascii", "replace").strip(), f"the token file {os.fspath(path)!r}")


def field_defaults(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that jobs of this field usually want from their submitter's surroundings."""
    environ = os.environ if environ is None else environ
    passed_on = {name: environ[name] for name in SECRET_DEFAULTS if environ.get(name)}
    # Tokenizers warn, or deadlock, when used on both sides of a fork: data loaders fork.
    return {"TOKENIZERS_PARALLELISM": "false", **passed_on}


def without_cluster_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less everything Fluster's own: what a daemon hands on before it adds a task's own context."""
    return {name: value for name, value in environ.items() if not name.startswith(RESERVED_ENV_PREFIX)}


def with_absolute_python_path(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with a `PYTHONPATH` that means the same in every directory."""
    given = environ.get("PYTHONPATH")
    if not given:
        return dict(environ)
    # An empty entry is the current directory.
    return {**environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, given.split(os.pathsep)))}


def config_home(environ: Mapping[str, str] | None = None) -> Path:
    """Directory of the user's configuration: `$XDG_CONFIG_HOME/fluster`, by default under the home directory."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME") or ""
    # The XDG specification tells to ignore relative paths.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "fluster"


def find_project(directory: str | os.PathLike[str] | None = None) -> Path | None:
    """The nearest directory from here upwards with a `pyproject.toml`, not looking beyond a repository's root."""
    try:
        start = Path(directory or os.getcwd()).resolve()
    except FileNotFoundError:  # the current directory was removed
        return None
    for candidate in (start, *start.parents):
        if (candidate / "pyproject.toml").is_file():
            return candidate
        if (candidate / ".git").exists():
            return None
    return None


def normal_address(value: str) -> str:
    """A controller's address as `http://host:port`; "host:port" means http.

    Raises:
        ValueError: It is not an address.
    """
    rule = "'http://host:port' or 'https://host:port'"
    if not isinstance(value, str):
        raise refuse("a cluster's address", rule, value)
    address = value if "://" in value else f"http://{value}"
    if not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?", address):
        raise refuse("a cluster's address", rule, value)
    return address.rstrip("/")
