"""What the tests of the fray client run; each function gets a client and gives what can be written as JSON."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fray.actor import ActorUnavailableError, current_actor
from fray.client import JobAlreadyExists, JobFailed, wait_all
from fray.current_client import current_client
from fray.local_backend import LocalClient
from fray.types import ActorConfig, Entrypoint, JobRequest, ResourceConfig, create_environment

from fluster.integrations.fray import convert

SMALL = ResourceConfig(cpu=0.5, ram="256m")


def job(name: str, function: Any, *args: Any, **options: Any) -> JobRequest:
    entrypoint = Entrypoint.from_callable(function, args)
    return JobRequest(name=name, entrypoint=entrypoint, resources=SMALL, **options)


def until(condition: Any, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.02)


def fail() -> None:
    raise RuntimeError("on purpose")


def wait_for_file(path: str) -> None:
    until(lambda: os.path.exists(path), 60)


def jobs(client: Any) -> Any:
    ok = client.submit(job("ok", print, "printed here"))
    bad = client.submit(job("bad", fail))
    program = Entrypoint.from_binary(sys.executable, ["-c", "import sys; print('a program'); sys.exit(3)"])
    binary = client.submit(JobRequest(name="binary", entrypoint=program, resources=SMALL))
    statuses = [str(each) for each in wait_all([ok, bad, binary], timeout=60, raise_on_failure=False)]
    found = {"statuses": statuses, "logs": [ok.logs(), binary.logs()], "id": ok.job_id, "bad": "", "binary": ""}
    try:
        bad.wait()
    except RuntimeError as error:
        found["bad"] = str(error)
    try:
        binary.wait()
    except JobFailed as error:
        found["binary"] = "".join(error.__notes__)
    return found


def names(client: Any) -> Any:
    gate = os.path.abspath("gate")
    first = client.submit(job("named", wait_for_file, gate))
    adopted = client.submit(job("named", wait_for_file, gate))
    refused = ""
    try:
        client.submit(job("named", print), adopt_existing=False)
    except JobAlreadyExists as error:
        refused = error.handle.job_id
    Path(gate).touch()
    ended = str(first.wait())
    again = client.submit(job("named", print), adopt_existing=False)
    again.wait()
    stopped = client.submit(job("stopped", time.sleep, 60))
    stopped.terminate()
    return {
        "adopted": adopted.job_id == first.job_id,
        "refused": refused == first.job_id,
        "ended": ended,
        "again": again.job_id != first.job_id,
        "stopped": str(stopped.status()),
        "stopped at last": str(stopped.wait(raise_on_failure=False)),
    }


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()


class Actor:
    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.context = current_actor()
        self.gate = threading.Event()
        self.met, self.here = threading.Condition(), 0
        self.called_at_start: list[int] = []
        threading.Thread(target=lambda: self.called_at_start.append(self.context.handle.add(0))).start()

    def called_itself(self) -> int:
        until(lambda: self.called_at_start)
        return self.called_at_start[0]

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def ctx_is_an_argument(self, ctx: int) -> int:
        return ctx

    def me(self) -> Any:
        return self.context.handle

    def where(self) -> tuple[int, int, str]:
        return os.getpid(), self.context.index, self.context.group_name

    def has_context(self) -> bool:
        try:
            current_actor()
        except RuntimeError:
            return False
        return True

    def fails(self) -> None:
        raise KeyError("a message of the actor's")

    def fails_strangely(self) -> None:
        raise Unpicklable

    def wait(self) -> str:
        return "opened" if self.gate.wait(60) else "not opened"

    def open(self) -> None:
        self.gate.set()

    def meet(self, others: int) -> int:
        with self.met:
            self.here += 1
            self.met.notify_all()
            return others if self.met.wait_for(lambda: self.here >= others, 60) else self.here

    def end(self, error: str = "") -> None:
        if error:
            self.context.fail(ValueError(error))
        else:
            self.context.shutdown_event.set()

    def attempt(self) -> int:
        return int(os.environ["FLUSTER_ATTEMPT"])


def what(call: Any) -> str:
    """Type and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def actors(client: Any) -> Any:
    config = ActorConfig(max_concurrency=101)
    actor = client.create_actor(Actor, 5, name="actor", resources=SMALL, actor_config=config)
    found = {
        "called at start": actor.called_itself(),
        "added": actor.add.remote(amount=2).result(),
        "called": actor.add(),
        "ctx": actor.ctx_is_an_argument(ctx=7),
    }
    held = actor.wait.submit()
    found["timeout"] = what(lambda: held.result(timeout=0.1))
    found["beside"] = actor.add(0)
    found["at once"] = sum(call.result(timeout=60) == 100 for call in [actor.meet.remote(100) for _ in range(100)])
    actor.open()
    found["held"] = held.result(timeout=30)
    found["raised"] = what(actor.fails)
    found["strange"] = what(actor.fails_strangely)
    found["underscore"] = what(lambda: actor._private)
    found["unknown"] = what(lambda: actor.no_such_method())
    found["context after init"] = actor.has_context()
    found["itself"] = pickle.loads(pickle.dumps(actor.me())).add(0)
    found["local"] = isinstance(client, LocalClient)
    actor.end()
    until(lambda: what(actor.add).startswith("ActorUnavailableError"))
    return found


def calls_in_a_job(handle: Any, group: Any, path: str) -> None:
    with open(path + ".new", "w") as file:
        file.write(f"{handle.add.remote(100).result()} {len(group.wait_ready())}")
    os.rename(path + ".new", path)


def groups(client: Any) -> Any:
    config = ActorConfig(max_task_retries=1)
    group = client.create_actor_group(Actor, name="group", count=2, resources=SMALL, actor_config=config)
    first = group.wait_ready(count=1)
    everyone = group.wait_ready()
    pids = {each.where()[1]: each.where()[0] for each in everyone}
    found = {"first": len(first), "all": len(everyone), "ready": group.ready_count, "new": len(group.discover_new())}
    found["indices"] = sorted(pids)
    result = os.path.abspath("called")
    client.submit(job("caller", calls_in_a_job, everyone[0], group, result)).wait()
    found["from a job"] = Path(result).read_text()
    # One dies in a call, comes back under its name, and one records an error.
    index = everyone[0].where()[1]
    held = everyone[0].wait.submit()
    os.kill(pids[index], signal.SIGKILL)
    everyone[1].end("recorded")
    found["died"] = what(lambda: held.result(timeout=30))
    found["followed"] = everyone[0].where()[1] == index and everyone[0].where()[0] != pids[index]
    until(lambda: what(everyone[1].attempt) == "nothing" and everyone[1].attempt() == 2)
    for each in everyone:
        each.end()
    until(group.is_done)
    found["status"] = str(client.cluster.poll(group._job_id).status)
    return found


def in_thread(call: Any) -> Any:
    """What it gives in a plain thread."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    thread.join()
    return given[0]


def too_many(client: Any) -> Any:
    large = ResourceConfig(cpu=1, ram="64m")
    group = client.create_actor_group(Actor, name="crowd", count=1_000, resources=large)
    found = {"ready": len(group.wait_ready(count=2, timeout=60)), "why": str(client.cluster.why(group._job_id))}
    found["timeout"] = what(lambda: group.wait_ready(count=1_000, timeout=0.5))
    found["in a thread"] = in_thread(group.is_done)
    in_thread(group.shutdown)
    found["done"] = in_thread(group.is_done)
    return found


def see_client(path: str) -> None:
    """What plain threads, programs and their threads, and children of a job find."""
    seen = [type(current_client()).__name__]
    thread = threading.Thread(target=lambda: seen.append(type(current_client()).__name__))
    thread.start()
    thread.join()
    script = (
        "import threading, fray_programs as p; from fray.current_client import current_client as c\n"
        "t = threading.Thread(target=lambda: print(type(c()).__name__)); t.start(); t.join()"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True)
    seen.append(ran.stdout.strip() or ran.stderr)
    current_client().submit(job("child", see_variable, path)).wait()
    with open(path + ".new", "w") as file:
        file.write(" ".join(seen))
    os.rename(path + ".new", path)


def see_variable(path: str) -> None:
    with open(path + ".child", "w") as file:
        file.write(f"{os.environ.get('OF_THE_PARENT')} {type(current_client()).__name__}")


def clients(client: Any) -> Any:
    path = os.path.abspath("seen")
    environment = create_environment(env_vars={"OF_THE_PARENT": "inherited"})
    client.submit(job("seer", see_client, path, environment=environment)).wait()
    return [Path(path).read_text(), Path(path + ".child").read_text()]


def hosted(client: Any) -> Any:
    actor = client.host_actor(Actor, 1, name="hosted")
    path = os.path.abspath("hosted")
    client.submit(job("guest", call_hosted, actor.handle, path)).wait()
    actor.shutdown()
    return Path(path).read_text()


def call_hosted(handle: Any, path: str) -> None:
    with open(path, "w") as file:
        file.write(str(handle.add(10)))


def budgets(client: Any) -> Any:
    """How many attempts jobs had that fail, and an actor that died of a signal though it may not fail once."""
    killed = client.create_actor(Actor, name="killed", resources=SMALL)
    before = killed.where()[0]
    os.kill(before, signal.SIGKILL)
    handles = [
        client.submit(job(f"budget-{failures}-{in_all}", fail, max_retries_failure=failures, max_task_failures=in_all))
        for failures, in_all in ((2, 1), (1, 2), (1, 0))
    ]
    wait_all(handles, timeout=60, raise_on_failure=False)
    ids = [handle.job_id.rpartition("/")[2] for handle in handles]
    tried = [client.cluster.poll(each).tasks[0].attempt for each in ids]
    until(lambda: what(killed.attempt) == "nothing" and killed.where()[0] != before)
    lost = convert.job_retry(job("lost", fail, max_retries_preemption=7)).max_preemptions
    return {"failed": tried, "killed": killed.attempt(), "machines": lost}


def gone(client: Any) -> Any:
    actor = client.create_actor(Actor, name="gone", resources=SMALL)
    actor.add()
    client.shutdown()
    try:
        actor.add()
    except ActorUnavailableError as error:
        return str(error)
    return "answered"
