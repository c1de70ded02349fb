"""When a process that died is started again."""

from fluster.cluster.restarts import Restarts


def test_a_process_that_dies_now_and_then_is_started_again_at_once() -> None:
    restarts = Restarts()
    assert [restarts.pause_s(61.0 * death) for death in range(5)] == [0.0] * 5


def test_a_process_that_cannot_live_is_started_once_a_second_at_most() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_s(0.01 * death) for death in range(50)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.0, 1.0)
    assert sum(pauses[:10]) < 3.0
