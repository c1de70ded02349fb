"""What a person sees on a terminal."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.cli.conftest import Fluster, wait_until

from fluster import Cluster, Entrypoint, JobRequest, JobStatus, ResourceConfig

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")


def ended(cluster: Cluster, name: str, script: str) -> str:
    job_id = cluster.launch(JobRequest(name, Entrypoint.from_command("sh", "-c", script), SMALL))
    cluster.wait(job_id, timeout=20)
    return job_id


def test_states_have_colours_and_the_last_column_is_cut_at_the_edge(fluster: Fluster, cluster: Cluster) -> None:
    ended(cluster, "good", "true")
    bad = ended(cluster, "bad", "exit 9")
    shown = fluster.on_terminal("jobs", columns=64).stdout
    assert "\x1b[32msucceeded" in shown
    assert "\x1b[31mfailed" in shown
    lines = [ESCAPE.sub("", line).rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 64
    assert next(line for line in lines if line.startswith(bad)).endswith("…")


@pytest.mark.parametrize(("columns", "said"), [(80, "exited with"), (64, "exited")])
def test_a_long_name_makes_room_for_what_is_said_of_its_job(
    fluster: Fluster, cluster: Cluster, columns: int, said: str
) -> None:
    job_id = ended(cluster, f"sweep/{'x' * 110}-17", "exit 9")
    shown = fluster.on_terminal("jobs", columns=columns).stdout
    lines = [ESCAPE.sub("", line).rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= columns
    line = next(line for line in lines if line.startswith(job_id))
    assert re.search(r" sweep/?x*…x*-17 +failed ", line)
    assert said in line


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_whose_user_wants_it_plain_gets_plain_text(fluster: Fluster, environ: dict[str, str]) -> None:
    ran = fluster.on_terminal("run", "--", "echo", "plain", environ=environ)
    assert ran.code == 0
    assert "plain\r\n" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert "\x1b" not in fluster.on_terminal("workers", environ=environ).stdout


def test_without_a_terminal_nothing_is_coloured_whatever_variables_say(fluster: Fluster) -> None:
    ran = fluster("run", "--", "sh", "-c", "exit 3", FORCE_COLOR="1", TTY_COMPATIBLE="1", CLICOLOR_FORCE="1")
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "\x1b" not in fluster("jobs", FORCE_COLOR="1").stdout


def test_what_a_job_prints_does_nothing_to_the_terminal_but_colour(fluster: Fluster, cluster: Cluster) -> None:
    script = r"printf '\033[31mred\033[0m \033[2J\033]0;title\007 10%%\r 50%%\r100%%\n'"
    for words in (("run", "--", "sh", "-c", script), ("logs", ended(cluster, "hostile", script))):
        shown = fluster.on_terminal(*words).stdout
        assert "100%" in shown
        assert "50%" not in shown
        assert "\x1b[2J" not in shown
        assert "\x1b]0;" not in shown
        assert "\a" not in shown


def test_colours_of_a_job_are_kept_and_ended(fluster: Fluster) -> None:
    shown = fluster.on_terminal("run", "--", "printf", r"\033[35mmagenta\n").stdout
    assert "\x1b[35mmagenta\x1b[0m" in shown


def test_hostile_texts_are_shown_inert_by_every_reading_command(fluster: Fluster, cluster: Cluster) -> None:
    job_id = ended(cluster, "hostile", r"printf '\033[2J\033]0;t\007last words\n' >&2; exit 1")
    endpoint = cluster.register_endpoint("hostile", "127.0.0.1:9", metadata={"k": "\x1b[2J\x1b]0;t\x07"})
    commands = (["status", job_id], ["why", job_id], ["jobs"], ["events", job_id], ["wait", job_id], ["endpoints"])
    for words in commands:
        shown = fluster.on_terminal(*words).stdout
        assert COLOUR.sub("", shown).count("\x1b") == 0, words
        assert "\a" not in shown
    assert "k=\\x1b[2J" in fluster.on_terminal("endpoints").stdout
    cluster.unregister_endpoint(endpoint.endpoint_id)


def test_what_waits_is_shown_in_one_line_that_goes_when_the_job_prints(fluster: Fluster, cluster: Cluster) -> None:
    both_cores = ResourceConfig.with_cpu(cpu=2, memory="100MB")
    blocker = cluster.launch(JobRequest("blocker", Entrypoint.from_command("sleep", "60"), both_cores))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(fluster.on_terminal, "run", "--cpu", "1", "--", "echo", "printed")
        wait_until(lambda: cluster.list_jobs(name_prefix="echo", status=JobStatus.PENDING), "it waits")
        time.sleep(1.5)  # it says so after 0.3 s; what is on the terminal is known only at the end
        cluster.terminate(blocker)
        ran = running.result()
    assert ran.code == 0
    assert "waiting: 1 cpu needed, 0 free" in ran.stdout
    before, _, _ = ran.stdout.partition("printed")
    # The line of the wait is taken away before anything else is printed.
    assert "\x1b[2K" in before[before.rindex("waiting:") :]


def test_a_run_that_succeeds_says_how_long_it_took(fluster: Fluster) -> None:
    assert re.search(r"succeeded after [0-9.]+ s", fluster.on_terminal("run", "--", "sleep", "0.2").stdout)
