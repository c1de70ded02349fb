"""`fluster run` on a configured cluster."""

import signal
import subprocess

import pytest
from tests.cli.conftest import Fluster, wait_until

from fluster import Cluster, Entrypoint, JobId, JobRequest, JobStatus
from fluster.cli.follow import run_there


def test_each_stream_of_the_job_is_the_same_here_and_its_exit_code_is_passed_on(fluster: Fluster) -> None:
    ran = fluster("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ran.code, ran.stdout) == (3, "out\n")
    assert "err\n" in ran.stderr
    assert "failed" in ran.stderr
    assert "3" in ran.stderr.splitlines()[-1]


def test_a_job_that_succeeds_leaves_nothing_but_its_output_on_stdout(fluster: Fluster) -> None:
    ran = fluster("run", "--name", "hello", "--", "echo", "-n", "--", "--name", "Grüße 世界")
    assert (ran.code, ran.stdout) == (0, "-- --name Grüße 世界\n")
    assert "hello" in ran.stderr


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("kill -SEGV $$", 139, "SIGSEGV"),
        ("kill -KILL $$", 137, "SIGKILL"),
        ("exit 255", 255, "255"),
        ("exec /no/such/program", 127, "127"),
    ],
)
def test_how_a_job_died_is_its_exit_code_and_said(fluster: Fluster, script: str, code: int, said: str) -> None:
    ran = fluster("run", "--", "bash", "-c", script)
    assert ran.code == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_command_that_is_missing_is_named(fluster: Fluster) -> None:
    ran = fluster("run", "--", "no-such-program", "--flag")
    assert ran.code == 127
    assert "no-such-program" in ran.stderr


def test_a_command_that_was_not_sent_along_is_told_with_how_to_send_it(fluster: Fluster) -> None:
    (fluster.directory / "train.sh").write_text("#!/bin/sh\n")
    ran = fluster("run", "--name", "not-sent", "--", "./train.sh")
    assert ran.code == 127
    assert "--workspace" in ran.stderr
    job_id = fluster("jobs", "--name", "not-sent", "--json").objects[0]["job_id"]
    assert "--workspace" in fluster("why", job_id).stdout


def test_a_job_past_its_time_limit_ends_with_124_and_says_so(fluster: Fluster) -> None:
    ran = fluster("run", "--timeout", "0.5", "--", "sleep", "60")
    assert ran.code == 124
    assert "0.5" in ran.stderr
    assert "--timeout" in ran.stderr


def test_detach_prints_the_id_alone_and_leaves_the_job_running(fluster: Fluster, cluster: Cluster) -> None:
    ran = fluster("run", "--detach", "--name", "left", "--", "sleep", "60")
    assert ran.code == 0
    job_id = ran.stdout.strip()
    assert ran.stdout == f"{job_id}\n"
    assert cluster.poll(job_id).name == "left"
    assert not cluster.poll(job_id).status.finished()
    assert fluster("stop", job_id).code == 0


def test_options_reach_the_job(fluster: Fluster) -> None:
    ran = fluster(
        *("run", "--name", "opts", "--cpu", "0.25", "--memory", "300MB", "--replicas", "2", "--priority", "high"),
        *("--env", "COLOUR=a=b", "--env", "PASSED", "--", "sh", "-c"),
        'echo "$FLUSTER_JOB_NAME $FLUSTER_NUM_TASKS $COLOUR $PASSED"',
        PASSED="on",
    )
    assert ran.code == 0
    assert sorted(ran.stdout.splitlines()) == ["[0] opts 2 a=b on", "[1] opts 2 a=b on"]


def test_what_a_job_waits_for_is_said_with_numbers_and_then_where_it_runs(fluster: Fluster, cluster: Cluster) -> None:
    blocker = fluster("run", "--detach", "--cpu", "1.5", "--memory", "100MB", "--", "sleep", "60").stdout.strip()
    process = fluster.start("run", "--cpu", "2", "--memory", "100MB", "--", "echo", "at last")
    assert process.stderr is not None
    line = ""
    while "waiting:" not in line:
        line = process.stderr.readline()
        assert line, "it ended without saying what it waits for"
    assert "2 cpu needed, 0.5 free" in line
    cluster.terminate(blocker)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (0, "at last\n")
    assert "running on" in stderr or "started after" in stderr


def test_ctrl_c_detaches_and_says_how_to_attach_and_stop(fluster: Fluster, cluster: Cluster) -> None:
    process = fluster.start("run", "--name", "detached", "--", "sh", "-c", "echo started; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    job = next(job for job in cluster.list_jobs(name_prefix="detached") if not job.status.finished())
    assert f"fluster logs -f {job.job_id}" in stderr
    assert f"fluster stop {job.job_id}" in stderr
    assert "Traceback" not in stderr
    assert cluster.poll(job.job_id).status is JobStatus.RUNNING
    assert fluster("stop", "detached").code == 0


def test_ctrl_c_while_waiting_detaches_at_once(fluster: Fluster, cluster: Cluster) -> None:
    process = fluster.start("run", "--name", "impossible", "--cpu", "500", "--", "true")
    wait_until(lambda: cluster.list_jobs(name_prefix="impossible"), "the job is there")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "detached" in stderr
    assert fluster("stop", "impossible").code == 0


def test_ctrl_c_while_launching_says_which_job_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, launched = cluster.launch, []

    def interrupted_before_the_answer(request: JobRequest) -> JobId:
        monkeypatch.undo()
        launched.append(launch(request))
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "launch", interrupted_before_the_answer)
    assert run_there(cluster, JobRequest("hasty", Entrypoint.from_command("sleep", "60"))) == 130
    (job_id,) = launched
    assert f"detached: job {job_id} goes on" in capsys.readouterr().err
    assert [job.job_id for job in cluster.list_jobs(name_prefix="hasty")] == [job_id]
    cluster.terminate(job_id)


def test_a_reader_that_leaves_is_no_error_and_the_job_goes_on(fluster: Fluster, cluster: Cluster) -> None:
    process = fluster.start("run", "--name", "chatty", "--", "sh", "-c", "while echo line; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == 0
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
    assert fluster("stop", "chatty").code == 0


def test_run_inside_a_job_runs_its_child(fluster: Fluster, cluster: Cluster) -> None:
    inner = "fluster.cli"
    script = f"import sys; from {inner} import main; sys.exit(main(['run', '--cpu', '0.5', '--', 'echo', 'child']))"
    import sys

    ran = fluster("run", "--name", "parent", "--cpu", "0.5", "--", sys.executable, "-c", script)
    assert (ran.code, ran.stdout) == (0, "child\n")
    child = cluster.list_jobs(name_prefix="echo", limit=1)[0]
    assert child.parent == cluster.list_jobs(name_prefix="parent", limit=1)[0].job_id


def test_output_can_be_sent_to_a_file_while_the_talk_stays_on_stderr(fluster: Fluster) -> None:
    ran = subprocess.run(
        ["sh", "-c", f"{_this_python()} -m fluster run -- seq 3 > out.txt; cat out.txt"],
        env=fluster.environ,
        cwd=fluster.directory,
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert ran.stdout == "1\n2\n3\n"
    assert "job" in ran.stderr


def _this_python() -> str:
    import shlex
    import sys

    return shlex.quote(sys.executable)
