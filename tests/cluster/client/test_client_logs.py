"""What jobs printed: complete, filtered, followed through broken connections without a gap or a double."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from fluster.cluster.client import Cluster
from fluster.cluster.types import Entrypoint, JobId, JobRequest, JobStatus
from fluster.rpc.gen.fluster.cluster.v1 import types_pb
from fluster.testing.serving import ServerThread

if TYPE_CHECKING:
    from tests.cluster.client.conftest import Controller


@pytest.fixture
def job_id(cluster: Cluster) -> JobId:
    return cluster.launch(JobRequest("talker", Entrypoint.from_command("true")))


def texts(cluster: Cluster, job_id: JobId, **options: object) -> list[str]:
    return [line.data for line in cluster.logs(job_id, **options)]  # type: ignore[arg-type]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"line %d" % index for index in range(start, start + count)]


def test_all_lines_come_in_order_with_their_origin(cluster: Cluster, controller: Controller, job_id: JobId) -> None:
    controller.print_lines(job_id, b"out", b"caf\xc3\xa9 \xff")
    controller.print_lines(job_id, b"err", task=1, stream="STDERR")
    found = [(line.task, line.stream, line.data) for line in cluster.logs(job_id)]
    assert found == [(0, "stdout", "out"), (0, "stdout", "café \N{REPLACEMENT CHARACTER}"), (1, "stderr", "err")]
    assert texts(cluster, job_id, task=1) == ["err"]


def test_grep_is_a_regular_expression_and_tail_counts_after_it(
    cluster: Cluster, controller: Controller, job_id: JobId
) -> None:
    controller.print_lines(job_id, *numbered(100))
    assert texts(cluster, job_id, grep=r"line 9\d$") == [f"line 9{digit}" for digit in range(10)]
    assert texts(cluster, job_id, tail=2) == ["line 98", "line 99"]
    assert texts(cluster, job_id, tail=2, grep="0$") == ["line 80", "line 90"]
    assert texts(cluster, job_id, tail=0) == []
    assert texts(cluster, job_id, tail=0, grep="0$") == []


def test_arguments_that_cannot_be_are_refused_at_the_call(cluster: Cluster, job_id: JobId) -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        cluster.logs(job_id, grep="(")
    with pytest.raises(ValueError, match="tail"):
        cluster.logs(job_id, tail=-1)


def test_following_ends_with_the_job(cluster: Cluster, controller: Controller, job_id: JobId) -> None:
    controller.print_lines(job_id, *numbered(3))
    stream = cluster.logs(job_id, follow=True)
    assert [next(stream).data for _ in range(3)] == ["line 0", "line 1", "line 2"]
    controller.print_lines(job_id, b"the last words")
    controller.finish(job_id)
    assert [line.data for line in stream] == ["the last words"]


@pytest.mark.parametrize("grep", [None, r"[05]$"])
def test_following_from_a_tail_shows_what_comes_then(
    cluster: Cluster, controller: Controller, job_id: JobId, grep: str | None
) -> None:
    controller.print_lines(job_id, *numbered(20))
    stream = cluster.logs(job_id, follow=True, tail=2, grep=grep)
    first = [next(stream).data for _ in range(2)]
    assert first == (["line 18", "line 19"] if grep is None else ["line 10", "line 15"])
    controller.print_lines(job_id, *numbered(6, start=20))
    controller.finish(job_id)
    rest = [line.data for line in stream]
    assert rest == ([f"line {index}" for index in range(20, 26)] if grep is None else ["line 20", "line 25"])


@pytest.mark.parametrize("follow", [False, True])
def test_broken_streams_leave_no_gap_and_no_double(
    cluster: Cluster, controller: Controller, job_id: JobId, follow: bool
) -> None:
    for task in range(3):
        for stream in ("STDOUT", "STDERR"):
            controller.print_lines(job_id, *numbered(30), task=task, stream=stream)
    controller.finish(job_id)
    controller.break_stream_after = [random.Random(seed).randrange(30) for seed in range(10)]
    found = [(line.task, line.stream, line.data) for line in cluster.logs(job_id, follow=follow)]
    assert controller.break_stream_after == []
    assert len(found) == len(set(found)) == 180
    assert controller.cursors[0] == 0
    assert controller.cursors[-1] > 0


def test_a_tail_cut_off_in_the_middle_shows_nothing_older(
    cluster: Cluster, controller: Controller, job_id: JobId
) -> None:
    controller.print_lines(job_id, *numbered(10), task=0)
    controller.print_lines(job_id, *numbered(10), task=1)
    controller.print_lines(job_id, b"new", task=0)
    controller.finish(job_id)
    controller.break_stream_after = [2]
    found = [(line.task, line.data) for line in cluster.logs(job_id, follow=True, tail=4)]
    assert found == [(1, "line 7"), (1, "line 8"), (1, "line 9"), (0, "new")]


def test_following_outlives_a_restart_of_the_controller(
    cluster: Cluster, controller: Controller, server: ServerThread, job_id: JobId
) -> None:
    controller.print_lines(job_id, *numbered(2))
    stream = cluster.logs(job_id, follow=True)
    assert [next(stream).data for _ in range(2)] == ["line 0", "line 1"]

    def restart() -> None:
        server.stop()
        controller.print_lines(job_id, *numbered(2, start=2))
        controller.finish(job_id)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert [line.data for line in stream] == ["line 2", "line 3"]
    thread.join()


def test_leaving_a_stream_early_leaves_nothing_open(cluster: Cluster, controller: Controller, job_id: JobId) -> None:
    controller.print_lines(job_id, *numbered(3))
    for line in cluster.logs(job_id, follow=True):
        assert line.data == "line 0"
        break


def test_monitor_prints_to_the_end_and_says_how_it_ended(
    cluster: Cluster, controller: Controller, job_id: JobId, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.print_lines(job_id, b"to stdout")
    controller.print_lines(job_id, b"to stderr", stream="STDERR")
    controller.finish(job_id)
    assert cluster.monitor(job_id).status is JobStatus.SUCCEEDED
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")


def test_monitor_names_the_task_where_there_are_several(
    cluster: Cluster, controller: Controller, job_id: JobId, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.print_lines(job_id, b"hello", task=1)
    controller.finish(job_id)
    controller.jobs[job_id].tasks = [
        types_pb.TaskInfo(index=index, state=types_pb.TaskState.SUCCEEDED) for index in range(2)
    ]
    cluster.monitor(job_id)
    assert capsys.readouterr().out == "[1] hello\n"
