"""A real controller under random requests: single ones of any content, and sequences that make sense in part."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import messages
from tests.fuzz.wire import STREAMS, Connection, Request

from fluster.cluster.controller.permissions import ALLOWED
from fluster.cluster.tokens import new_secret, secret_sha256, worker_token
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import WorkerResources

BUNDLE = 25
"""Messages sent at once: of small requests waking up the other end takes longest."""
_OURS = ("internal", "unknown", "data_loss")
"""Codes that say that something of ours went wrong."""
_NEVER_SAID = (b"Traceback", b'File "', b"apsw", b"sqlite", b"fla_", b"flu_", b"flw_")
_REMEMBERED = 20
_RPCS = list(ALLOWED)
_STATUS_NONE = 0
_STOOD_STILL_S = 5.0
_MACHINE = WorkerResources(cpu=4, memory_bytes=1 << 33, disk_bytes=1 << 40, max_jobs=100)
_NESTED = ("x" * 20, "[" * 1000, '{"spec":' * 200)


@dataclass(slots=True)
class Controller:
    """The process, and what has been seen of it.

    Attributes:
        codes: How often each answer came.
        failures: What must never have happened.
    """

    process: subprocess.Popen[bytes]
    port: int
    token: str
    log: Path
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def resident_bytes(self) -> int:
        """Of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    @property
    def descriptors(self) -> int:
        """That the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def check(self) -> None:
        """Raises AssertionError if anything went wrong so far."""
        assert not self.failures, self.failures[:3]
        assert self.process.poll() is None, f"the controller ended with {self.process.returncode}"
        said = self.log.read_text(errors="replace")
        assert "Traceback" not in said, said[-4000:]


@contextmanager
def controller(directory: Path) -> Iterator[Controller]:
    """One without machines of its own: what is launched waits, unless a worker of the fuzzer's takes it."""
    log = directory / "controller.log"
    command = [sys.executable, "-m", "fluster", "controller", "serve", "--port", "0", "--backend", "none"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--state-dir", str(directory / "state")], stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        token = Path(told["token_file"]).read_text().strip()
        yield Controller(process, int(told["address"].rpartition(":")[2]), token, log)
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


class Caller:
    """One connection, one seed: everything it does follows from that.

    Args:
        to: Whom it calls.
        seed: Of everything random.
    """

    def __init__(self, to: Controller, seed: int) -> None:
        self._to = to
        self._rng = random.Random(seed)
        self._connection = Connection(to.port)
        self._known: defaultdict[str, list[str]] = defaultdict(list)
        self._worker = f"w-{seed}"
        self._secret = new_secret()
        self._user_token = ""
        self._epoch = 0
        self._obeyed = ""
        self._seq = 0
        self._attempts: list[str] = []

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def message(self) -> None:
        """Any requests, in any shape, by anybody: a bundle of them, sent before the first is answered."""
        requests = [self._any_request() for _ in range(BUNDLE)]
        for request, (status, content) in zip(requests, self._send(requests), strict=True):
            self._judge(request, status, content)

    def _any_request(self) -> Request:
        rng, rpc = self._rng, self._rng.choice(_RPCS)
        fields = messages.random_message(getattr(pb, f"{rpc}Request").desc(), rng, self._known)
        as_json = rng.random() < 0.3
        body = messages.to_json(fields) if as_json else messages.to_binary(fields)
        if as_json and rng.random() < 0.05:
            body = rng.choice(_NESTED).encode()
        if rng.random() < 0.4:
            body = messages.mutated(body, rng)
        others = (self._worker_token, self._user(), "", "fla_" + "0" * 64, "x" * 600)
        token = self._to.token if rng.random() < 0.8 else rng.choice(others)
        return Request(rpc, body, token, as_json)

    def sequence(self) -> None:
        """Some requests that know of each other; what was launched is ended."""
        launched: list[str] = []
        for _ in range(self._rng.randint(2, 6)):
            step = self._rng.choice((self._launch, self._launch, self._work, self._random_step, self._random_step))
            launched += step()
        for job_id in launched:
            self._ask("TerminateJob", pb.TerminateJobRequest(job_id=job_id, request_id=new_secret()).to_binary())
        self._work()

    @property
    def _worker_token(self) -> str:
        return worker_token(self._worker, self._secret)  # type: ignore[arg-type]

    def _user(self) -> str:
        """The token of a user of this caller's own."""
        if not self._user_token:
            wanted = pb.CreateTokenRequest(request_id=new_secret(), kind=pb.TokenKind.USER, user=f"u-{self._worker}")
            if (made := self._ask("CreateToken", wanted.to_binary())) is not None:
                self._user_token = pb.CreateTokenResponse.from_binary(made).token
        return self._user_token

    def _random_step(self) -> list[str]:
        rpc = self._rng.choice([each for each in ALLOWED if each not in ("LaunchJobs", "RegisterWorker")])
        fields = messages.random_message(getattr(pb, f"{rpc}Request").desc(), self._rng, self._known)
        of_a_worker = rpc in ("SyncWorker", "PushLogs")
        token = self._worker_token if of_a_worker else self._rng.choice((self._to.token, self._user()))
        self._ask(rpc, messages.to_binary(fields), token)
        return []

    def _launch(self) -> list[str]:
        rng = self._rng
        tasks = rng.choice((1, 1, 2, 5))
        request = pb.LaunchJobRequest.from_json(
            json.dumps(
                {
                    "requestId": rng.choice([*self._known["request_id"], new_secret(), new_secret()]),
                    "spec": {
                        "name": rng.choice(("a", "b/c", "job-1")),
                        "numTasks": rng.choice((tasks, tasks, tasks, 3)),
                        "independentTasks": rng.random() < 0.5,
                        "entrypoint": {"command": {"argv": ["true"]}},
                        "resources": {"cpu": 0.5, "memoryBytes": "1000000", "replicas": tasks},
                        "retry": {"maxFailures": rng.choice((0, 1)), "maxPreemptions": 2},
                    },
                }
            ).encode()
        )
        answer = self._ask("LaunchJob", request.to_binary())
        if answer is None:
            return []
        job_id = pb.LaunchJobResponse.from_binary(answer).job_id
        self._remember("job_id", job_id)
        self._remember("request_id", request.request_id)
        return [job_id]

    def _work(self) -> list[str]:
        """A worker takes what it is given and says of each attempt what comes to its mind."""
        if not self._epoch and not self._join():
            return []
        self._seq += 1
        request = pb.SyncWorkerRequest(
            incarnation="i" * 32,
            seq=self._seq,
            known_epoch=self._epoch,
            known_incarnation=self._obeyed,
            observed=[self._observation(uid) for uid in self._attempts],
            resources=_MACHINE,
            wait_s=0.01,
        )
        answer = self._ask("SyncWorker", request.to_binary(), self._worker_token)
        if answer is None:
            self._epoch = 0
            return []
        said = pb.SyncWorkerResponse.from_binary(answer)
        self._attempts = [each.attempt_uid for each in said.desired]
        for uid in self._attempts:
            self._remember("attempt_uid", uid)
        if said.reregister or said.leave:
            self._epoch = 0
        return []

    def _observation(self, uid: str) -> pb.ObservedAttempt:
        state = self._rng.choice((2, 3, 4, 5, 6, 7))
        ended = {"exit": {"cause": self._rng.randrange(0, 12), "exitCode": self._rng.choice((0, 1, 137))}}
        told = {"attemptUid": uid, "state": state, **(ended if state >= 5 else {})}
        return pb.ObservedAttempt.from_json(json.dumps(told).encode())

    def _join(self) -> bool:
        made = self._ask(
            "CreateToken", pb.CreateTokenRequest(request_id=new_secret(), kind=pb.TokenKind.JOIN, uses=1).to_binary()
        )
        if made is None:
            return False
        request = pb.RegisterWorkerRequest(
            request_id=new_secret(),
            worker_id=self._worker,
            credential_sha256=secret_sha256(self._secret),
            incarnation="i" * 32,
            resources=_MACHINE,
            host_id="h",
        )
        answer = self._ask("RegisterWorker", request.to_binary(), pb.CreateTokenResponse.from_binary(made).token)
        if answer is None:  # known already: with its own credential
            answer = self._ask("RegisterWorker", request.to_binary(), self._worker_token)
        if answer is None:
            return False
        said = pb.RegisterWorkerResponse.from_binary(answer)
        self._epoch, self._obeyed = said.controller_epoch, said.controller_incarnation
        self._seq = 0
        return True

    def _remember(self, name: str, value: str) -> None:
        values = self._known[name]
        if value:
            values.append(value)
        del values[:-_REMEMBERED]

    def _ask(self, rpc: str, body: bytes, token: str | None = None) -> bytes | None:
        """The answer's content, if it is one; whatever else comes is judged and counted."""
        request = Request(rpc, body, self._to.token if token is None else token, as_json=False)
        ((status, content),) = self._send([request])
        return content if self._judge(request, status, content) == "ok" and rpc not in STREAMS else None

    def _send(self, requests: list[Request]) -> list[tuple[int, bytes]]:
        began = time.monotonic()
        try:
            return self._connection.send(requests)
        except OSError as error:
            self._connection.close()
            # One that stood still with its machine may have been taken for one that drips.
            if time.monotonic() - began < _STOOD_STILL_S:
                self._to.failures.append(f"{error!r} for {[(each.rpc, each.body[:200]) for each in requests]}")
            return [(_STATUS_NONE, b"")] * len(requests)

    def _judge(self, request: Request, status: int, content: bytes) -> str:
        code = _code(status, content, stream=request.rpc in STREAMS)
        self._to.codes[code] += 1
        if code in _OURS or (code != "ok" and any(word in content for word in _NEVER_SAID)):
            asked = f"{request.rpc} by {request.token[:4]}"
            self._to.failures.append(f"{asked}: {content[:500]!r} for {request.body[:500]!r}")
        return code


def _code(status: int, content: bytes, *, stream: bool) -> str:
    if status == _STATUS_NONE:
        return "stood still"
    try:
        if status != 200:
            return str(json.loads(content).get("code", f"http {status}"))
        # The last frame of a stream is JSON, with an error in it or without.
        at = content.rfind(b'{"error"') if stream else -1
        return "ok" if at < 0 else str(json.loads(content[at:])["error"]["code"])
    except ValueError:
        return f"http {status}"


def run(to: Controller, what: str, count: int, seed: int, threads: int = 6) -> None:
    """So many messages (`message`, rounded up) or sequences (`sequence`), shared by some threads."""
    left = iter(range(count if what == "sequence" else -(-count // BUNDLE)))
    lock = threading.Lock()

    def call(number: int) -> None:
        caller = Caller(to, seed * 1000 + number)
        try:
            while not to.failures:
                with lock:
                    if next(left, None) is None:
                        return
                getattr(caller, what)()
        except BaseException as error:
            to.failures.append(repr(error))
        finally:
            caller.close()

    running = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    to.check()
