import json
from contextlib import closing
from pathlib import Path

import pytest

from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.tokens import TokenKind, parse_token, secret_sha256
from fluster.cluster.worker.state import WorkerState, lease_clock, steady_clock
from fluster.errors import AlreadyExists


def test_the_identity_is_made_once_and_private(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path / "w")) as first:
        identity = first.identity
    with closing(WorkerState(tmp_path / "w")) as second:
        assert second.identity == identity
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "w" / "identity.json").stat().st_mode & 0o777 == 0o600


def test_the_token_names_the_worker_and_the_hash_fits_it(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path, worker_id="w-1")) as state:
        token = parse_token(state.identity.token)
        assert token is not None
        assert (token.kind, token.subject) == (TokenKind.WORKER, "w-1")
        assert state.identity.next_sha256 == secret_sha256(token.secret)


def test_being_registered_is_remembered(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path)) as state:
        assert not state.identity.registered
        state.registered()
    with closing(WorkerState(tmp_path)) as state:
        assert state.identity.registered


def test_a_directory_of_another_worker_is_refused(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path, worker_id="w-1")):
        pass
    with pytest.raises(AlreadyExists, match="belongs to worker 'w-1', not to 'w-2'"):
        WorkerState(tmp_path, worker_id="w-2")


def test_epoch_and_lease_are_found_again_a_little_early_at_most(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path)) as state:
        for moment in range(100):
            state.obey(7, "c", 30.0, 1000.0 + moment)
    with closing(WorkerState(tmp_path)) as state:
        assert (state.contact.epoch, state.contact.lease_s) == (7, 30.0)
        assert 1099.0 - 3.0 <= state.contact.lease_until <= 1099.0


def test_a_new_epoch_is_written_down_at_once(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path)) as state:
        state.obey(7, "c", 30.0, 1000.0)
        state.obey(8, "c", 30.0, 1000.1)
        assert json.loads((tmp_path / "contact.json").read_bytes())["epoch"] == 8


def test_a_lease_means_nothing_after_the_machine_restarted_but_the_epoch_does(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path)) as state:
        state.obey(7, "c", 30.0, 1e9)
    contact = json.loads((tmp_path / "contact.json").read_bytes())
    (tmp_path / "contact.json").write_text(json.dumps({**contact, "boot": "another"}))
    with closing(WorkerState(tmp_path)) as state:
        assert (state.contact.epoch, state.contact.lease_until) == (7, 0.0)


def test_the_end_of_the_lease_is_told_exactly_to_those_who_outlive_the_daemon(tmp_path: Path) -> None:
    clock = lease_clock(same_machine=True)
    with closing(WorkerState(tmp_path)) as state:
        state.tell_lease(clock)
        for moment in range(3):
            state.obey(7, "c", 300.0, steady_clock(clock)() + 100.0 + moment)
    left_s = LeaseFile(tmp_path / "lease").left_s()
    assert left_s is not None
    assert 101.0 < left_s <= 102.0


def test_clocks_do_not_run_backwards() -> None:
    for same_machine in (True, False):
        clock = steady_clock(lease_clock(same_machine=same_machine))
        assert clock() <= clock()


def test_each_daemon_has_a_secret_of_its_own_once_a_controller_has_taken_it(tmp_path: Path) -> None:
    with closing(WorkerState(tmp_path / "w")) as first:
        first.renew_secret()
        assert first.identity.next_token == first.identity.token  # nobody knows it yet: one is enough
        first.registered()
        old = first.identity.token
    with closing(WorkerState(tmp_path / "w")) as crashed:
        crashed.renew_secret()
        offered = crashed.identity.next_token
        assert (crashed.identity.token, offered != old) == (old, True)
    with closing(WorkerState(tmp_path / "w")) as again:
        again.renew_secret()
        assert (again.identity.token, again.identity.next_token) == (old, offered)  # either may be the one that is good
        again.registered()
        assert again.identity.token == again.identity.next_token == offered
    with closing(WorkerState(tmp_path / "w")) as last:
        assert (last.identity.token, last.identity.registered) == (offered, True)


def test_a_full_disk_leaves_a_worker_the_secret_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(WorkerState(tmp_path / "w")) as state:
        state.registered()

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fluster.cluster.worker.state.write_atomically", full)
        state.renew_secret()
        assert state.identity.next_token == state.identity.token
