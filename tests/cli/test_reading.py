"""Commands that read, wait and stop, on a configured cluster."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.cli.conftest import Fluster, words_of

from fluster import Cluster, Entrypoint, JobRequest, LocalCluster, ResourceConfig

SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")


def launch(cluster: Cluster, name: str, script: str, resources: ResourceConfig = SMALL) -> str:
    return cluster.launch(JobRequest(name, Entrypoint.from_command("sh", "-c", script), resources))


@pytest.fixture(scope="module")
def ended(local_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gang of two that failed, once both had said what they had to say."""
    said = shlex.quote(str(tmp_path_factory.mktemp("ended") / "said"))
    script = f"""echo "out $FLUSTER_TASK_INDEX"; echo "err $FLUSTER_TASK_INDEX" >&2
        if [ $FLUSTER_TASK_INDEX = 1 ]; then touch {said}; exec sleep 60; fi
        until [ -e {said} ]; do sleep 0.05; done; exit 7"""
    job_id = launch(local_cluster, "ended", script, ResourceConfig.with_cpu(cpu=0.1, memory="100MB", replicas=2))
    local_cluster.wait(job_id, timeout=20)
    return job_id


@pytest.fixture
def sleeper(cluster: Cluster) -> Iterator[str]:
    """A job that runs until the test ends."""
    job_id = launch(cluster, "sleeper", "exec sleep 60")
    yield job_id
    cluster.terminate(job_id)
    cluster.wait(job_id, timeout=20)


def test_jobs_are_listed_newest_first_with_why_they_ended(fluster: Fluster, ended: str, sleeper: str) -> None:
    ran = fluster("jobs")
    rows = words_of(ran.stdout)
    assert ran.code == 0
    assert list(rows[0]) == ["JOB", "NAME", "STATUS", "AGE", "TIME", "WHY"]
    ids = [row[0] for row in rows[1:]]
    assert ids.index(sleeper) < ids.index(ended)
    row = next(row for row in rows if row[0] == ended)
    assert list(row[1:3]) == ["ended", "failed"]
    assert "7" in row


def test_jobs_can_be_chosen_and_cut_short(fluster: Fluster, ended: str, sleeper: str) -> None:
    assert [each["job_id"] for each in fluster("jobs", "--name", "end", "--json").objects] == [ended]
    assert sleeper not in fluster("jobs", "--status", "failed").stdout
    ran = fluster("jobs", "--limit", "1")
    assert len(ran.stdout.splitlines()) == 2
    assert "--limit 0" in ran.stderr


def test_status_shows_job_and_tasks(fluster: Fluster, ended: str) -> None:
    ran = fluster("status", ended)
    assert ran.code == 0
    assert f"job        {ended}\n" in ran.stdout
    assert "status     failed after" in ran.stdout
    tasks = words_of(ran.stdout)[-2:]
    assert [row[0] for row in tasks] == ["0", "1"]


def test_json_has_the_field_names_of_the_types(fluster: Fluster, ended: str) -> None:
    (job,) = fluster("status", ended, "--json").objects
    assert job["job_id"] == ended
    assert job["status"] == "failed"
    assert job["exit_code"] == 7
    assert [task["index"] for task in job["tasks"]] == [0, 1]
    assert isinstance(job["submitted_at"], float)
    (worker,) = fluster("workers", "--json").objects
    assert worker["status"] == "ready"
    assert worker["resources"]["cpu"] == 2
    lines = fluster("logs", ended, "--json").objects
    assert {(line["task"], line["stream"], line["data"]) for line in lines} == {
        (task, stream, f"{word} {task}") for task in (0, 1) for stream, word in (("stdout", "out"), ("stderr", "err"))
    }
    (why,) = fluster("why", ended, "--json").objects
    assert set(why) == {"state", "reasons", "would_fit", "queue_position"}
    events = fluster("events", ended, "--json").objects
    assert {"seq", "timestamp", "kind", "message"} <= set(events[0])
    assert fluster("endpoints", "--json", "no-such").objects == []


def test_endpoints_are_listed_without_their_keys(fluster: Fluster, cluster: Cluster) -> None:
    endpoint = cluster.register_endpoint("server/a", "127.0.0.1:9", metadata={"k": "v"}, access_key="the-key")
    try:
        ran = fluster("endpoints", "server/")
        assert list(words_of(ran.stdout)[1]) == ["server/a", "127.0.0.1:9", "default", "k=v"]
        shown = fluster("endpoints", "--json").stdout
        assert "the-key" not in ran.stdout + shown
        assert "access_key" not in shown
    finally:
        cluster.unregister_endpoint(endpoint.endpoint_id)


def test_logs_can_be_chosen_by_task_pattern_and_tail(fluster: Fluster, ended: str) -> None:
    assert sorted(fluster("logs", ended).stdout.splitlines()) == ["[0] err 0", "[0] out 0", "[1] err 1", "[1] out 1"]
    assert sorted(fluster("logs", ended, "--task", "1").stdout.splitlines()) == ["err 1", "out 1"]
    assert sorted(fluster("logs", ended, "--grep", "^o.t").stdout.splitlines()) == ["[0] out 0", "[1] out 1"]
    assert len(fluster("logs", ended, "--tail", "3").stdout.splitlines()) == 3
    assert fluster("logs", ended, "--task", "2").code == 2
    assert fluster("logs", ended, "--grep", "(").code == 2


def test_logs_are_followed_to_the_end_of_the_job(fluster: Fluster, cluster: Cluster) -> None:
    job_id = launch(cluster, "counter", "for i in 1 2 3; do echo $i; sleep 0.2; done")
    assert fluster("logs", "-f", job_id).stdout == "1\n2\n3\n"


def test_who_follows_a_job_that_waits_is_told_for_what_and_how_it_ended(fluster: Fluster, cluster: Cluster) -> None:
    request = JobRequest("far-off", Entrypoint.from_command("true"), ResourceConfig.with_cpu(cpu=1_000))
    job_id = cluster.launch(request)
    process = fluster.start("logs", "-f", job_id)
    assert process.stderr is not None
    assert "waiting: no worker can hold one task: 1000 cpu needed" in process.stderr.readline()
    cluster.terminate(job_id)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (0, "")
    assert f"fluster: job far-off ({job_id}) stopped: terminated by" in stderr


def test_logs_in_a_pipe_are_what_the_job_printed(fluster: Fluster, cluster: Cluster) -> None:
    job_id = launch(cluster, "raw", r"printf '\033[2J\033]0;t\007x\r\n'")
    cluster.wait(job_id, timeout=20)
    # Universal newlines of the pipe's reader would hide the return.
    assert fluster("logs", job_id, "--json").objects[0]["data"] == "\x1b[2J\x1b]0;t\x07x\r"
    assert fluster("logs", job_id).stdout.startswith("\x1b[2J\x1b]0;t\x07x")


def test_a_reader_that_leaves_ends_logs_quietly(fluster: Fluster, cluster: Cluster) -> None:
    job_id = launch(cluster, "many", "seq 100000")
    cluster.wait(job_id, timeout=20)
    process = fluster.start("logs", job_id)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "1\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize("command", ["jobs", "jobs --json", "workers", "config show"])
@pytest.mark.usefixtures("ended")  # so that there is something to print
def test_a_closed_or_full_stdout_is_no_traceback(fluster: Fluster, command: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m fluster {command}"
    for redirection, code in ((">&-", 0), ("| true; exit ${PIPESTATUS[0]}", 0), (">/dev/full", 1)):
        shell = ["bash", "-c", f"{line} {redirection}"]
        ran = subprocess.run(shell, env=fluster.environ, capture_output=True, text=True, timeout=20)
        assert ran.returncode == code, (redirection, ran.stderr)
        assert len(ran.stderr.splitlines()) == code


def test_wait_says_by_its_exit_code_how_the_job_ended(fluster: Fluster, cluster: Cluster, ended: str) -> None:
    good = launch(cluster, "good", "sleep 0.3")
    ran = fluster("wait", good)
    assert (ran.code, ran.stdout) == (0, "")
    assert "succeeded" in ran.stderr
    assert fluster("wait", ended).code == 1
    assert fluster("wait", ended, "--json").objects[0]["status"] == "failed"


def test_wait_that_takes_too_long_ends_with_124(fluster: Fluster, sleeper: str) -> None:
    ran = fluster("wait", sleeper, "--timeout", "0.3")
    assert ran.code == 124
    assert "0.3 s" in ran.stderr
    assert fluster("wait", sleeper, "--timeout", "0").code == 124


def test_stop_returns_when_nothing_of_the_job_is_left_and_may_be_repeated(fluster: Fluster, sleeper: str) -> None:
    ran = fluster("stop", "sleeper")
    assert ran.code == 0
    assert "stopped" in ran.stderr
    assert fluster("status", sleeper, "--json").objects[0]["status"] == "stopped"
    assert fluster("stop", sleeper).code == 0


def test_why_says_what_a_job_waits_for_and_why_one_ended(fluster: Fluster, cluster: Cluster, ended: str) -> None:
    waiting = launch(cluster, "too-large", "true", ResourceConfig.with_cpu(cpu=64, memory="100MB"))
    assert "64 cpu needed" in fluster("why", "too-large").stdout
    assert "64 cpu needed" in fluster("jobs", "--name", "too-large").stdout
    assert fluster("stop", waiting).code == 0
    said = fluster("why", ended).stdout.splitlines()
    assert said[:3] == ["failed", "  task 0: exited with code 7", "    last lines of stderr:"]
    assert said[-1] == f"  its output is in its logs: `fluster logs {ended}`"


def test_events_tell_the_story_in_order(fluster: Fluster, ended: str) -> None:
    kinds = [row[2] for row in words_of(fluster("events", ended).stdout)[1:]]
    assert kinds[0] == "JobLaunched"
    assert len(kinds) > 3


def test_workers_show_what_is_free(fluster: Fluster, sleeper: str) -> None:
    ran = fluster("workers")
    assert ran.code == 0
    assert "of 2 " in ran.stdout
    assert "of 64 GB" in ran.stdout


@pytest.mark.parametrize("command", ["status", "logs", "wait", "stop", "why", "events"])
def test_an_unknown_job_ends_with_3_and_one_line(fluster: Fluster, command: str) -> None:
    ran = fluster(command, "no-such-job")
    assert (ran.code, ran.stdout) == (3, "")
    assert "no-such-job" in ran.stderr
    assert "`fluster jobs`" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_name_means_the_only_unfinished_job_that_has_it(fluster: Fluster, cluster: Cluster) -> None:
    first = launch(cluster, "twin", "exec sleep 60")
    assert fluster("status", "twin", "--json").objects[0]["job_id"] == first
    second = launch(cluster, "twin", "exec sleep 60")
    other = launch(cluster, "twin-2", "exec sleep 60")
    ran = fluster("status", "twin")
    assert (ran.code, ran.stdout) == (2, "")
    assert first in ran.stderr
    assert second in ran.stderr
    assert other not in ran.stderr
    assert fluster("stop", first).code == 0
    assert fluster("status", "twin", "--json").objects[0]["job_id"] == second
    assert fluster("stop", second).code == 0
    ran = fluster("status", "twin")
    assert ran.code == 3
    assert "an ended one is named by its id" in ran.stderr
    assert second in ran.stderr
    assert fluster("stop", other).code == 0


@pytest.mark.parametrize("command", [["jobs"], ["workers"], ["worker", "token"], ["run", "--detach", "--", "true"]])
@pytest.mark.parametrize("token", ["", f"fla_{'0' * 64}", f"flt_some-attempt_{'0' * 64}"])
def test_no_token_or_a_wrong_one_ends_with_4_and_one_line(fluster: Fluster, command: list[str], token: str) -> None:
    ran = fluster(*command, FLUSTER_TOKEN=token)
    assert (ran.code, ran.stdout) == (4, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "0000" not in ran.stderr


def test_an_interrupted_command_ends_with_130_and_leaves_the_job(fluster: Fluster, cluster: Cluster) -> None:
    job_id = launch(cluster, "talker", "echo started; exec sleep 60")
    follower, waiter = fluster.start("logs", "-f", job_id), fluster.start("wait", job_id)
    assert follower.stdout is not None
    assert waiter.stderr is not None
    assert follower.stdout.readline() == "started\n"
    assert "running on" in waiter.stderr.readline()
    for process in (follower, waiter):
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
        # Who began to follow before the job had started was told where it runs as well.
        assert (process.returncode, stdout, stderr.splitlines()[-1]) == (130, "", "fluster: interrupted")
    assert not cluster.poll(job_id).status.finished()
    assert fluster("stop", job_id).code == 0
