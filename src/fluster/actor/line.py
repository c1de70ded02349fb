"""The connection to one server, and the next one when it breaks: the calls that were under way go on there."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from fluster.actor.link import Impostor, Link, NotSentInTime, Refused, connect
from fluster.actor.memory import Received
from fluster.actor.pending import NotRun, Pending, too_late
from fluster.actor.protocol import MAX_RESUMED, SESSION_BYTES
from fluster.errors import ActorUnavailable

SAME_HOST = True
"""Whether Unix sockets and shared memory are tried; benchmarks turn it off."""
GIVE_UP_S = 10.0
"""After so long without a connection the registration counts as gone."""
_PAUSE_S = 0.05


class Line:
    """Connects, again and again, until the registration is gone. Whoever has it connect holds the lock of sending.

    Args:
        address: ``host:port``.
        access_key: Of the server.
        received: Memory for what comes.
        limit: The largest message, in bytes.
        calls: Those without a reply.
        resend: Sends one of them over a new connection.
        on_gone: Told that the registration is gone.

    Attributes:
        link: The connection, while there is one.
        gone: Why the registration is gone.
        hung_up: Those that somebody may still be reading.
    """

    def __init__(
        self,
        address: str,
        access_key: str,
        received: Received,
        limit: int,
        calls: Mapping[int, Pending],
        *,
        resend: Callable[[Link, Pending], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.address = address
        self.link: Link | None = None
        self.gone: str | None = None
        self._access_key = access_key
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._received = received
        self._limit = limit
        self._calls = calls
        self._resend = resend
        self._on_gone = on_gone
        self.hung_up: deque[Link] = deque()
        self._opened = False
        self._lost_at: float | None = None

    def open(self, deadline: float | None) -> Link:
        """A new connection, over which the calls that the server does not know are sent again.

        Raises:
            NotRun: The registration is gone.
            ActorCallTimeout: The deadline passed before.
        """
        began = self._lost_at if self._lost_at is not None else time.monotonic()
        while True:
            if self.gone is not None:
                raise NotRun(ActorUnavailable(self.gone))
            if deadline is not None and time.monotonic() >= deadline:
                raise too_late()
            try:
                return self._connected(min(began + GIVE_UP_S, deadline or float("inf")))
            except (ConnectionRefusedError, Impostor, Refused) as error:
                self.leave(f"the actor's server at {self.address} is gone: {error}")
            except (OSError, EOFError) as error:
                if time.monotonic() - began >= GIVE_UP_S:
                    why = f"the actor's server at {self.address} could not be reached for {GIVE_UP_S:g} s: {error}"
                    self.leave(why)
                elif deadline is None or time.monotonic() < deadline:
                    time.sleep(_PAUSE_S)

    def broken(self, link: Link, *, by_reader: bool) -> None:
        """The connection is of no more use; whoever waits makes another."""
        if self.link is link:
            self.link = None
            self._lost_at = time.monotonic()
        if by_reader:
            link.close()
        else:
            self._hang_up(link)

    def let_go(self) -> None:
        """By whoever reads: nobody reads what was hung up."""
        while self.hung_up:
            self.hung_up.popleft().close()

    def leave(self, why: str) -> None:
        """The registration is gone: nothing is sent any more."""
        self.shuts_down(why)
        link, self.link = self.link, None
        self._on_gone()
        if link is not None:
            self._hang_up(link, bye=True)

    def shuts_down(self, why: str) -> None:
        """No other connection will be made; replies may still come over this one."""
        self.gone = self.gone or why

    def abandon(self) -> None:
        """In a forked child: the parent's connection is let go of, and goes on there."""
        link, self.link = self.link, None
        for each in (link, *self.hung_up):
            if each is not None:
                each.abandon()

    def _connected(self, deadline: float) -> Link:
        sock = connect(self.address, self._access_key, same_host=SAME_HOST, deadline=deadline)
        try:
            open_calls = sorted(self._calls)[:MAX_RESUMED] if self._opened else None
            link = Link(sock, self._access_key, self._session, open_calls, self._received, self._limit, deadline)
        except BaseException:
            sock.close()
            raise
        try:
            self._go_on(link, open_calls or [])
        except BaseException:
            link.close()
            raise
        self._opened, self._lost_at, self.link = True, None, link
        for pending in list(self._calls.values()):
            if pending.consumed:  # which it may not have learned
                with suppress(OSError):
                    link.credit(pending.call_id, pending.consumed)
        return link

    def _go_on(self, link: Link, open_calls: list[int]) -> None:
        if open_calls and not link.resumed:
            raise Refused("it has forgotten this caller's calls")
        for call_id, is_known in zip(open_calls, link.known, strict=True):
            pending = self._calls.get(call_id)
            if pending is not None and not is_known:
                pending.sent = True
                with suppress(NotSentInTime):  # its own deadline has passed
                    self._resend(link, pending)

    def _hang_up(self, link: Link, *, bye: bool = False) -> None:
        """Somebody may be reading it: whoever reads next lets go of it."""
        link.hang_up(bye=bye)
        self.hung_up.append(link)
