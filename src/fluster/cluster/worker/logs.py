"""Ships what attempts print to the controller's log store: continuously, in order, completely."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.clocks import unix_clock
from fluster.cluster.worker import logfile
from fluster.cluster.worker.decide import pause_s
from fluster.cluster.worker.delivery import LOG_CAP_BYTES
from fluster.cluster.worker.runtime import LogFiles
from fluster.cluster.worker.veil import Veil
from fluster.errors import FlusterError, NotPermitted, RemoteFault, ResourceExhausted, Unreachable
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import LogChunk, PushLogsRequest, PushLogsResponse
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

_log = logging.getLogger(__name__)

LOOK_S = 0.1
# A request may hold 2 MiB of log; the rest is for what surrounds it.
_REQUEST_BYTES = 1_900_000
_STREAM_BYTES = 512 * 1024
_CHUNKS = 500
# Cutting costs a system call; it is done by so much at a time.
_CUT_BYTES = 1 << 20
_REFUSALS = 5
_AWAY = (Unreachable, TimeoutError, RemoteFault)

_NO_VEIL = Veil(())

Push = Callable[[PushLogsRequest], Awaitable[PushLogsResponse]]


@dataclass(slots=True, eq=False)
class _Stream:
    """One log file on its way.

    Attributes:
        sent: The controller has everything before it, or will never get it.
        asked: Where the last request began.
        size: When last looked.
        seen: Up to which offset what was there at which time.
        cut: Bytes before it are no longer on this disk.
        stuck: Requests in a row that moved nothing.
        refused: Nobody wants it.
        veil: Hides secrets.
        final: Nothing more is written.
    """

    uid: str
    kind: LogStream
    path: Path
    sent: int = 0
    asked: int = 0
    size: int = 0
    seen: deque[tuple[int, float]] = field(default_factory=deque)
    cut: int = 0
    stuck: int = 0
    refused: bool = False
    veil: Veil = field(default_factory=lambda: _NO_VEIL)
    final: bool = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return self.sent < self.size and not self.refused

    def look(self, now: float, cap: int) -> None:
        """Notes what has been written since; gives up what is beyond the cap and was not sent in time."""
        size = logfile.size_of(self.path)
        if size > self.size:
            self.size = size
            if len(self.seen) >= _CHUNKS:
                self.seen.pop()  # the controller has been away for long: its times may be coarse
            self.seen.append((size, now))
        self.sent = max(self.sent, self.size - cap)
        if self.sent - self.cut >= _CUT_BYTES and self.size - self.cut > cap:
            self.cut = max(self.cut, logfile.cut(self.path, min(self.sent, self.size - cap)))

    def chunks(self, room: int) -> Iterator[LogChunk]:
        """What to send next, at most `room` bytes."""
        self.asked = start = max(self.sent, self.cut)
        data = self.veil.read(self.path, start, min(room, _STREAM_BYTES, self.size - start), final=self.final)
        end = start + len(data)
        if not data and (self.final or not logfile.read(self.path, start, 1)):  # removed, or cut short by the job
            self.sent = self.size
        for seen_end, timestamp in list(self.seen):
            if seen_end <= start:
                continue
            piece = data[: seen_end - start]
            if not piece:
                break
            yield LogChunk(attempt_uid=self.uid, stream=self.kind, offset=start, data=piece, timestamp=timestamp)
            data, start = data[len(piece) :], start + len(piece)
            if start >= end:
                break

    def arrived(self, position: int) -> None:
        """The controller has so many bytes of it."""
        self.stuck = self.stuck + 1 if position <= self.asked else 0
        self.sent = position
        while self.seen and self.seen[0][0] <= position:
            self.seen.popleft()
        if self.stuck >= _REFUSALS:
            _log.warning("the controller takes no more of %s of attempt %s", self.kind.name, self.uid)
            self.refused = True


class LogShipper:
    """The log files of all attempts of one worker.

    Args:
        push: Sends one request.
        cap_bytes: How much of each stream is kept here at least; older bytes are cut off.
        look_s: How often files are looked at.
        clock: Unix seconds of a steady clock.
    """

    def __init__(
        self,
        push: Push,
        *,
        cap_bytes: int = LOG_CAP_BYTES,
        look_s: float = LOOK_S,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._push = push
        self._clock = clock or unix_clock()
        self._cap = cap_bytes
        self._look_s = look_s
        self._streams: dict[str, tuple[_Stream, _Stream]] = {}
        self._finishing: dict[str, asyncio.Event] = {}
        self._followed = asyncio.Event()
        self._rung = asyncio.Event()
        self._failures = 0
        self._refusals = 0

    def follow(self, uid: str, files: LogFiles, *, adopted: bool) -> None:
        """Ships what the attempt prints from now on. What an earlier daemon sent the controller says itself."""
        veil = files.veil or _NO_VEIL
        streams = (
            _Stream(uid, LogStream.STDOUT, files.stdout, veil=veil),
            _Stream(uid, LogStream.STDERR, files.stderr, veil=veil),
        )
        if adopted:
            for stream in streams:
                stream.sent = stream.cut = logfile.first_kept(stream.path)
        self._streams[uid] = streams
        self._followed.set()

    async def finish(self, uid: str) -> None:
        """Returns when everything the ended attempt printed has arrived."""
        streams = self._streams.get(uid)
        if streams is None:
            return
        for stream in streams:
            stream.final = True
        self._look(streams)
        if any(stream.waiting for stream in streams):
            self._finishing[uid] = arrived = asyncio.Event()
            self._rung.set()
            await arrived.wait()
        self.forget(uid)

    def forget(self, uid: str) -> None:
        """Ships nothing more of the attempt."""
        self._streams.pop(uid, None)
        if (waiting := self._finishing.pop(uid, None)) is not None:
            waiting.set()

    async def run(self) -> None:
        """Looks and sends until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            # Apart: a controller that is away must not keep files from being looked at and cut.
            tasks.create_task(self._keep_looking())
            tasks.create_task(self._keep_sending())

    async def _keep_looking(self) -> None:
        while True:
            if not self._streams:
                self._followed.clear()
                await self._followed.wait()
            for streams in self._streams.values():
                self._look(streams)
            if any(stream.waiting for streams in self._streams.values() for stream in streams):
                self._rung.set()
            await asyncio.sleep(self._look_s)

    async def _keep_sending(self) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            while chunks := self._batch():
                await self._send(chunks)
                self._tell_finished()
            self._tell_finished()

    def _look(self, streams: tuple[_Stream, _Stream]) -> None:
        now = self._clock()
        for stream in streams:
            stream.look(now, self._cap)

    def _batch(self) -> list[LogChunk]:
        """The next request: those first whose end waits for it."""
        room = _REQUEST_BYTES
        chunks: list[LogChunk] = []
        for uid in sorted(self._streams, key=lambda each: each not in self._finishing):
            for stream in self._streams[uid]:
                if stream.waiting and room > 0 and len(chunks) < _CHUNKS:
                    more = list(stream.chunks(room))
                    room -= sum(len(chunk.data) for chunk in more)
                    chunks += more
        return chunks

    async def _send(self, chunks: list[LogChunk]) -> None:
        try:
            response = await self._push(PushLogsRequest(chunks=chunks, sent_at=self._clock()))
        except _AWAY as error:
            await self._pause(error)
        except (FlusterError, ValueError) as error:
            await self._refused(chunks, error)
        else:
            self._failures = self._refusals = 0
            self._note(chunks, response)

    def _note(self, chunks: list[LogChunk], response: PushLogsResponse) -> None:
        positions = {(each.attempt_uid, each.stream): each.size for each in response.positions}
        for uid, kind in {(chunk.attempt_uid, chunk.stream) for chunk in chunks}:
            for stream in self._streams.get(uid, ()):
                if stream.kind is kind:
                    stream.arrived(positions.get((uid, kind), 0))

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.info("logs wait for the controller: %s", error)
        await asyncio.sleep(pause_s(self._failures))

    async def _refused(self, chunks: list[LogChunk], error: Exception) -> None:
        """One attempt the controller does not want to hear of must not hold up the logs of the others."""
        uids = list(dict.fromkeys(chunk.attempt_uid for chunk in chunks))
        if len(uids) > 1:
            for uid in uids:
                await self._send([chunk for chunk in chunks if chunk.attempt_uid == uid])
            return
        self._refusals += 1
        # This worker may be unknown for as long as it registers, and a full disk may be cleared.
        if isinstance(error, NotPermitted | ResourceExhausted) and self._refusals < _REFUSALS:
            await self._pause(error)
            return
        _log.warning("the controller refuses the logs of attempt %s: %s", uids[0], error)
        for stream in self._streams.get(uids[0], ()):
            stream.refused = True

    def _tell_finished(self) -> None:
        for uid in list(self._finishing):
            if not any(stream.waiting for stream in self._streams.get(uid, ())):
                self._finishing.pop(uid).set()
