"""Users that attempts run as where their worker runs as root: each attempt one of its own, while it has its turn."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt import proc

_RANGE = re.compile(r"(\d{1,10})-(\d{1,10})")
_LOWEST, _HIGHEST = 1_000, (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class UserRange:
    """Users without a name that are nobody's but this worker's, and what groups they are in besides their own."""

    first: int
    last: int
    groups: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, groups: Iterable[int] = ()) -> UserRange:
        """`FIRST-LAST`.

        Raises:
            ValueError: It is no such range, or holds somebody's account.
        """
        found = _RANGE.fullmatch(text)
        first, last = (int(found[1]), int(found[2])) if found else (0, 0)
        if not _LOWEST <= first < last <= _HIGHEST:
            raise ValueError(
                f"job users must be FIRST-LAST, uids from {_LOWEST} to {_HIGHEST}, got {text!r}: 600000-601999, say"
            )
        for account in pwd.getpwall():
            if first <= account.pw_uid <= last:
                raise ValueError(
                    f"job users {text} hold the account {account.pw_name!r}: jobs would be that user; give others"
                )
        return cls(first, last, tuple(groups))

    def shares(self, workers: int) -> list[str]:
        """As many ranges, for workers of one machine: one uid must not be two jobs'.

        Raises:
            ValueError: They are too few.
        """
        each = self.count // workers
        if each < 2:
            raise ValueError(f"job users {self.first}-{self.last} are too few for {workers} workers: 2 each at least")
        begins = [self.first + number * each for number in range(workers)]
        return [f"{begin}-{begin + each - 1}" for begin in begins]

    @property
    def count(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    @property
    def max_jobs(self) -> int:
        """How many attempts may run at a time: each may have an environment built, by another user."""
        return self.count // 2


class JobUsers:
    """Which attempts have which users.

    Args:
        users: To be handed out. `None`: attempts run as the worker's own user.
    """

    def __init__(self, users: UserRange | None = None) -> None:
        self._users = users
        self._taken: dict[int, str] = {}
        # What an attempt left behind in a shared place is its user's: the longer nobody else is that user, the better.
        self._next = 0 if users is None else int.from_bytes(os.urandom(4), "big") % users.count

    @property
    def there(self) -> bool:
        """Whether attempts run as others than the worker's own user."""
        return self._users is not None

    @property
    def groups(self) -> tuple[int, ...]:
        """Of each."""
        return () if self._users is None else self._users.groups

    def take(self, uid: str) -> int | None:
        """A user for an attempt or a build, nobody else's on this machine now; the one it has, if it has one.

        Raises:
            OSError: All are taken.
        """
        if self._users is None:
            return None
        for user, owner in self._taken.items():
            if owner == uid:
                return user
        busy = _busy()
        for step in range(self._users.count):
            user = self._users.first + (self._next + step) % self._users.count
            if user not in self._taken and user not in busy:
                self._next = (self._next + step + 1) % self._users.count
                self._taken[user] = uid
                return user
        raise OSError(f"all {self._users.count} users for jobs are taken")

    def keep(self, uid: str, user: int | None) -> None:
        """Notes what an adopted attempt was given."""
        if user is not None:
            self._taken[user] = uid

    def give_back(self, uid: str) -> None:
        """Frees the user of an attempt or a build, of which nothing runs any more."""
        self._taken = {user: owner for user, owner in self._taken.items() if owner != uid}


def _busy() -> set[int]:
    """Users with a process on this machine."""
    return {user for pid in proc.all_pids() for user in proc.users_of(pid)}


def variables_of(user: int, home: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """An environment for this user, out of the worker's: without what leads to the worker's own home."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("XDG_") and name not in _PERSONAL}
    name = f"job-{user}"
    return {**kept, "HOME": str(home), "USER": name, "LOGNAME": name}


_PERSONAL = frozenset({"MAIL", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME", "SUDO_USER"})


def as_user(user: int | None) -> dict[str, object]:
    """Arguments of `subprocess.Popen` for a program of this user's."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def open_ways(directories: Sequence[Path]) -> None:
    """Lets others pass these directories of the worker's, not list them."""
    for directory in directories:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        os.chmod(directory, 0o711)
