"""The connections of one listener: how many there may be, and how long each may keep one waiting.

A connection costs a file descriptor, and a process that has none left serves nobody. So there is a
limit that leaves some for the rest, and room is made at the cost of connections that ask nothing.
One sweep over all connections keeps the deadlines; a request sets no timer.
"""

import asyncio
import math
import os
import resource
import time
from enum import IntEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

#: Most connections of a listener by default: each costs some 20 KB.
_MOST = 16_384
#: Fewest connections that a listener has room for, however few descriptors there are.
_FEWEST = 16
#: Descriptors that stay free for files, replicas and answers to those that are refused.
_FEWEST_SPARE = 64
#: The soft limit of descriptors is raised up to this, where the hard one lets it.
_MOST_DESCRIPTORS = 65_536
#: Where there is no room, an unfinished head, or body, is given up after so long.
_PATIENCE_S = (1.0, 5.0)
#: Where no connection could be given up, the next look is after so long.
_LOOK_AGAIN_S = 0.05


class ConnectionsConfig(BaseModel):
    """What one connection may take, where an ingress listens by itself."""

    model_config = ConfigDict(extra="forbid")

    max_connections: int | None = Field(
        None,
        ge=16,
        le=1_000_000,
        description="Connections of one ingress to direct_port, and as many to grpc_port; by "
        "default what its file descriptors allow, 16384 at most, and a sixteenth of the "
        "descriptors over gRPC. Where it is full, HTTP connections that ask nothing are closed "
        "first, then new ones get 503.",
    )
    first_byte_timeout_s: float = Field(
        20.0, gt=0, le=3600, description="Seconds from a connection to its first request."
    )
    head_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds for a request's whole head, however slowly it comes; then 408.",
    )
    max_head_bytes: int = Field(
        65_536,
        ge=1024,
        le=16 * 1024 * 1024,
        description="Bytes of a request's head, and of a gRPC call's metadata; more is 431.",
    )
    idle_timeout_s: float = Field(
        75.0,
        gt=0,
        le=86_400,
        description="Seconds that a connection is kept between requests; longer than clients and "
        "load balancers keep theirs.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a client may leave an answer unread; then its connection ends.",
    )
    max_grpc_streams: int = Field(
        1024, ge=1, le=1_000_000, description="Calls under way of one gRPC connection; more wait."
    )


class Phase(IntEnum):
    """What a connection is doing."""

    SILENT = 0  #: nothing came yet
    HEAD = 1
    BODY = 2  #: the app waits for it, and has its own deadline
    ANSWER = 3
    IDLE = 4
    DRAINING = 5  #: answered, before all of the body came
    LINGERING = 6  #: the last answer is written; what still comes is thrown away
    CLOSING = 7  #: the last answer is being read


class Connection(Protocol):
    """What is swept."""

    phase: Phase
    #: When the phase began, on the monotonic clock.
    since_s: float
    #: Since when the client leaves an answer unread, where it does.
    stuck_since_s: float | None

    def late(self) -> None:
        """The phase took too long."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...


class Connections:
    """The connections of one listener. Belongs to the listener's event loop."""

    def __init__(self, config: ConnectionsConfig) -> None:
        self.config = config
        self.limit = config.max_connections or _FEWEST
        self._open: set[Connection] = set()
        self._no_room_until_s = 0.0
        self._next: asyncio.TimerHandle | None = None
        self._seconds = {
            Phase.SILENT: config.first_byte_timeout_s,
            Phase.HEAD: config.head_timeout_s,
            Phase.BODY: math.inf,
            Phase.ANSWER: math.inf,
            Phase.IDLE: config.idle_timeout_s,
            Phase.DRAINING: 5.0,
            Phase.LINGERING: 2.0,
            Phase.CLOSING: config.write_timeout_s,
        }

    def start(self) -> None:
        """Settle the limit, and sweep from now on."""
        self.limit = self.config.max_connections or _connections_allowed()
        self._sweep_later()

    def stop(self) -> None:
        """Sweep no more."""
        if self._next is not None:
            self._next.cancel()

    def admit(self, connection: Connection) -> bool:
        """Count it, and make room where there is none; False where none could be made."""
        room = len(self._open) < self.limit or self._make_room()
        self._open.add(connection)
        return room

    @property
    def crowded(self) -> bool:
        """Whether so many are being refused that they are closed without a reason."""
        return len(self._open) > self.limit + _FEWEST_SPARE // 2

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)

    def _make_room(self) -> bool:
        """Give up some of the connections that matter least, the oldest first."""
        now = time.monotonic()
        if now < self._no_room_until_s:
            return False
        least, found = 9, []
        for one in self._open:
            rank = _rank(one, now)
            if rank < least:
                least, found = rank, [one]
            elif rank == least < 9:
                found.append(one)
        if not found:
            self._no_room_until_s = now + _LOOK_AGAIN_S
            return False
        # Some at once: a flood would otherwise cost a look at all of them for each of its own.
        found.sort(key=lambda one: one.since_s)
        for one in found[: max(1, self.limit // 16)]:
            self._open.discard(one)
            one.abort()
        return True

    def _sweep_later(self) -> None:
        shortest_s = min(self._seconds.values())
        every_s = min(1.0, shortest_s / 4, self.config.write_timeout_s / 4)
        self._next = asyncio.get_running_loop().call_later(every_s, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        write_s = self.config.write_timeout_s
        for one in list(self._open):
            if now - one.since_s > self._seconds[one.phase]:
                one.late()
            elif one.stuck_since_s is not None and now - one.stuck_since_s > write_s:
                one.abort()
        self._sweep_later()


def _rank(one: Connection, now: float) -> int:
    """Which go first where there is no room; 9 never goes."""
    age_s = now - one.since_s
    head_s, body_s = _PATIENCE_S
    if one.phase == Phase.SILENT:
        return 0
    if one.phase >= Phase.DRAINING:
        return 1
    if one.phase == Phase.HEAD and age_s > head_s:
        return 2
    if one.phase == Phase.IDLE:
        return 3
    if one.phase == Phase.BODY and age_s > body_s:
        return 4
    if one.stuck_since_s is not None and now - one.stuck_since_s > body_s:
        return 4
    return 9


def raise_descriptor_limit() -> int:
    """Raise this process' soft limit of file descriptors as far as it may; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY:
        return _MOST_DESCRIPTORS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def grpc_connections_allowed() -> int:
    """As many as the descriptors hold that HTTP leaves; one carries any number of calls."""
    return max(_FEWEST, min(_MOST, raise_descriptor_limit() // 16))


def _connections_allowed() -> int:
    """HTTP connections that leave descriptors for the rest of this process."""
    most = raise_descriptor_limit()
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    spare = max(_FEWEST_SPARE, most // 8)
    return max(_FEWEST, min(_MOST, most - len(os.listdir(folder)) - spare))
