"""Reads all connections of a server with whichever thread has nothing else to do."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from fluster.actor.frames import Frame, TooLarge
from fluster.actor.protocol import ProtocolError
from fluster.actor.spin import Spin
from fluster.errors import ResourceExhausted

if TYPE_CHECKING:
    from fluster.actor.lanes import Lane, Work
    from fluster.actor.peers import Peer

_WATCH_S = 0.001
"""A method that takes longer has another thread read meanwhile."""
_PARK_AFTER = 64
"""Looks without a call in between after which the watching thread sleeps."""
_SPARE: Final = -1
_HANDED: Final = -2


class Reactor:
    """The connections, and the one thread at a time that leads: reads them, and runs or passes on what it read.

    A lane's thread leads while it has nothing else to do, and runs the calls it reads by itself. When one of them takes
    longer than a millisecond the spare thread leads instead, and only reads; it hands the lead on with the next call
    for a lane that is idle.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._spin = Spin(self._epoll.poll)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._peers: dict[int, Peer] = {}
        self._parsed: deque[tuple[Peer, Frame]] = deque()
        self._dirty: deque[Peer] = deque()
        self._mutex = threading.Lock()
        self._leader = 0
        self._lane: Lane | None = None  # that of the leader
        self._busy = False
        self._turn = 0
        self._parked = False
        self._unpark = threading.Lock()
        self._unpark.acquire()
        self._closed = False
        self._spare = threading.Thread(target=self._watch, name="fluster-actor-spare", daemon=True)

    def start(self) -> None:
        """Lets the spare thread begin: it leads until there is work for another."""
        self._leader = _SPARE
        self._spare.start()

    def add(self, peer: Peer) -> None:
        """Reads this connection from now on."""
        with self._mutex:
            closed = self._closed
            if not closed:
                self._peers[peer.fileno] = peer
                # What was sent again to a caller that came back may not have gone out yet.
                self._epoll.register(peer.fileno, select.EPOLLIN | (select.EPOLLOUT if peer.unsent else 0))
        if closed:
            peer.close()

    def drop(self, peer: Peer) -> None:
        """The connection is of no more use."""
        with self._mutex:
            if self._peers.get(peer.fileno) is peer:
                del self._peers[peer.fileno]
                try:
                    self._epoll.unregister(peer.fileno)
                except (OSError, ValueError):
                    pass
        peer.close()

    def want_to_write(self, peer: Peer, wanted: bool) -> None:
        """Whether the connection has more to send than it could."""
        with self._mutex:
            if self._peers.get(peer.fileno) is peer and not self._closed:
                self._epoll.modify(peer.fileno, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    @property
    def peers(self) -> list[Peer]:
        """All connections."""
        with self._mutex:
            return list(self._peers.values())

    @property
    def peers_at_fork(self) -> list[Peer]:
        """The same where no other thread is left, and the lock may be held by one that was not forked."""
        return list(self._peers.values())

    @property
    def batches(self) -> bool:
        """Whether the calling thread will flush soon: it leads, and there is more to run."""
        return bool(self._parsed) and self._leader == threading.get_ident()

    def send_later(self, peer: Peer) -> None:
        """The connection has something for the next `flush`."""
        self._dirty.append(peer)

    def flush(self) -> None:
        """Sends what waits for it."""
        while self._dirty:
            try:
                self._dirty.popleft().flush()
            except IndexError:
                break

    def try_lead(self) -> bool:
        """Makes the calling thread the leader if there is none."""
        with self._mutex:
            if self._leader or self._closed:
                return False
            self._leader = threading.get_ident()
            return True

    def take_over(self) -> None:
        """The calling thread was handed the lead."""
        with self._mutex:
            self._leader = threading.get_ident()

    def stop_leading(self) -> None:
        """The calling thread ends; the spare thread leads."""
        with self._mutex:
            self._leader = _SPARE
            self._lane = None
        self._wake_spare()

    def run_leading(self, work: Work) -> bool:
        """Runs work in the leading thread; whether it still leads afterwards."""
        self._turn += 1
        self._busy = True
        if self._parked:
            self._wake_spare()
        work.run()
        with self._mutex:
            if self._leader != threading.get_ident():
                return False
            self._busy = False
            return True

    def lead(self, lane: Lane) -> bool:
        """Reads and runs until the lane has other work, which gives true, or another thread leads."""
        self._lane = lane
        flushed_at = time.monotonic()
        while True:
            while self._parsed:
                if (found := self._take()) is None:
                    continue
                home, work = found
                if home is not lane or lane.has_work:
                    home.push(work)
                elif not self.run_leading(work):
                    return False
                if self._dirty and time.monotonic() - flushed_at > _WATCH_S:
                    self.flush()
                    flushed_at = time.monotonic()
            self.flush()
            if lane.has_work or self._closed:
                return True
            self._heed(self._spin.wait() or self._epoll.poll())
            flushed_at = time.monotonic()

    def _take(self) -> tuple[Lane, Work] | None:
        """Heeds the next frame; gives what is to be run, and where."""
        peer, frame = self._parsed.popleft()
        try:
            return peer.session.take(peer, frame)
        except ProtocolError:
            self.drop(peer)
            return None

    def interrupt(self, lane: Lane) -> None:
        """There is work for this lane: its thread may be reading."""
        if self._lane is lane and self._leader != threading.get_ident():
            self._ring()

    def close(self) -> None:
        """Ends all connections; the threads that lead notice."""
        with self._mutex:
            self._closed = True
            peers = list(self._peers.values())
        for peer in peers:
            self.drop(peer)
        self._ring()
        self._wake_spare()

    def join(self, timeout: float) -> None:
        """Frees what the threads used, once they have ended."""
        if self._spare.ident is not None and self._spare is not threading.current_thread():
            self._spare.join(timeout)
        if not self._spare.is_alive():
            self._epoll.close()
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1

    def _ring(self) -> None:
        try:
            os.eventfd_write(self._wake, 1)
        except OSError:
            pass

    def _heed(self, events: list[tuple[int, int]]) -> None:
        """Cuts what has come into frames."""
        for descriptor, event in events:
            if descriptor == self._wake:
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
                continue
            peer = self._peers.get(descriptor)
            if peer is None:
                continue
            if event & select.EPOLLOUT:
                peer.flush()
            if event & ~select.EPOLLOUT:
                self._read(peer)

    def _read(self, peer: Peer) -> None:
        try:
            for frame in peer.reader.read():
                self._parsed.append((peer, frame))
        except BlockingIOError:
            pass
        except TooLarge as error:
            peer.session.refuse(peer, error.frame, ResourceExhausted(f"the call cannot be taken: {error}"))
            self.drop(peer)
        except (EOFError, OSError, MemoryError):
            self.drop(peer)

    def _wake_spare(self) -> None:
        if self._parked:
            try:
                self._unpark.release()
            except RuntimeError:  # somebody else did
                pass

    def _watch(self) -> None:
        """The spare thread: leads when the leader is busy for too long."""
        looks, last = 0, -1
        while not self._closed:
            if self._leader == _SPARE or (self._busy and self._turn == last and self._take_from_busy()):
                self._lead_spare()
                looks = 0
                continue
            looks = 0 if self._turn != last or self._busy else looks + 1
            last = self._turn
            if looks < _PARK_AFTER:
                time.sleep(_WATCH_S)
                continue
            self._parked = True
            if not self._busy and self._leader != _SPARE and not self._closed:
                self._unpark.acquire()
            self._parked = False
            looks = 0

    def _take_from_busy(self) -> bool:
        with self._mutex:
            if not self._busy or self._closed:
                return False
            self._leader, self._lane, self._busy = _SPARE, None, False
            return True

    def _lead_spare(self) -> None:
        while not self._closed:
            self.flush()
            while self._parsed:
                if (found := self._take()) is None:
                    continue
                home, work = found
                self._leader = _HANDED
                if home.push(work, lead=True):
                    return
                self._leader = _SPARE
            self.flush()
            self._heed(self._epoll.poll())
