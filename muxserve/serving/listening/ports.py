"""A port in, whether it is ours to listen on out.

Ingresses of one application on one machine share a port: the kernel spreads connections over them.
It would do the same with those of another application, and the wrong model would answer without an
error. So a port has one owner, and the owner's processes hold a lock.
"""

import fcntl
import os
import random
import socket
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from muxserve.errors import InvalidInput

#: An exclusive lock is held for microseconds.
_TRIES, _PAUSE_S = 50, 0.02
#: Where ``free_block`` looks.
_BLOCKS = (20_000, 30_000)


def check_port_is_free(host: str, port: int, field: str) -> None:
    """Raise InvalidInput where nothing can listen on ``host:port``.

    Args:
        host: an address or a name.
        port: which.
        field: the setting or option that chooses the port.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {host} (--host): {error.strerror}", field="host"
        ) from None
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        # A port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise InvalidInput(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with {field}",
                field=field,
            ) from None


def free_block(size: int) -> int:
    """The first of ``size`` ports in a row that are free on this machine's loopback address.

    They lie below those that the kernel gives to clients. The first one is drawn at random, so that
    others are unlikely to choose the same.

    Raises:
        InvalidInput: there is no such block.
    """
    starts = list(range(*_BLOCKS, size))
    random.shuffle(starts)
    for start in starts:
        try:
            for port in range(start, start + size):
                check_port_is_free("127.0.0.1", port, "another --proxy")
        except InvalidInput:
            continue
        return start
    raise InvalidInput(f"no {size} free ports in a row between {_BLOCKS[0]} and {_BLOCKS[1]}")


class PortClaim:
    """This process's part in an owner's claim of a port; it ends with the process, or ``release``.

    The lock is the kernel's (``flock``), so a process that is killed leaves none behind.
    """

    def __init__(self, host: str, port: int, owner: str, field: str) -> None:
        """Join the owner's claim, or make it.

        Args:
            host: where the port is listened on.
            port: which.
            owner: names the application and its cluster; the same in all its processes.
            field: the setting that chooses the port.

        Raises:
            InvalidInput: another owner has the port, or another program.
        """
        path = Path(tempfile.gettempdir()) / f"muxserve-port-{port}-{os.getuid()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        try:
            if self._lock(fcntl.LOCK_EX):
                check_port_is_free(host, port, field)
                self._file.truncate(0)
                self._file.write(owner.encode())
            for _ in range(_TRIES):
                if self._lock(fcntl.LOCK_SH):
                    break
                time.sleep(_PAUSE_S)
            self._file.seek(0)
            other = self._file.read().decode(errors="replace")
            if other != owner:
                raise InvalidInput(
                    f"port {port} is {other}'s; choose another with {field}", field=field
                )
        except BaseException:
            self.release()
            raise

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the part up."""
        self._file.close()
