"""HTTP/1.1 with prepared bytes over kept connections; cooperative where gevent has patched sockets.

Generator and server often share a machine's cores, and a general client would be measured with the
server: this one costs some 50 microseconds per request, a general one several times that.
"""

import select
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK = 65_536


class BadAnswer(Exception):
    """What came is no answer of the protocol that was spoken."""


@dataclass(frozen=True, slots=True)
class Response:
    """Status, head in lower case, and body."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """A header's value; its name in lower case."""
        at = self.head.find(b"\r\n" + name + b":")
        if at < 0:
            return None
        end = self.head.find(b"\r\n", at + 2)
        return self.head[at + 3 + len(name) : end if end >= 0 else None].strip()


class HttpClient:
    """Connections to one server; as many as requests are under way."""

    def __init__(
        self, url: str, headers: dict[str, str], timeout_s: float, source: str | None = None
    ) -> None:
        """Describe the server; connections are opened when they are needed.

        Args:
            url: http(s)://host:port, with a path that goes before each route's.
            headers: sent with each request.
            timeout_s: of a connection, and between two pieces of an answer.
            source: address of this machine to connect from; the system chooses by default.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._source = None if source is None else (source, 0)
        self._idle: deque[socket.socket] = deque()
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"host: {parts.netloc}\r\ncontent-type: application/json\r\n{more}"

    def prepare(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}content-length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    def send(self, request: bytes) -> Response:
        """One request, and its answer.

        Raises:
            OSError: nothing answers, or the connection broke.
            BadAnswer: what came is not HTTP.
        """
        while self._idle:
            connection = self._idle.pop()
            if _is_open(connection):
                return self._exchange(connection, request)
            connection.close()
        return self._exchange(self._connect(), request)

    def get(self, path: str) -> Response:
        """One GET."""
        return self.send(self.prepare("GET", path))

    def close(self) -> None:
        """End the connections that are idle."""
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> socket.socket:
        address = (self._host, self._port)
        connection = socket.create_connection(address, self._timeout_s, self._source)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            return self._tls.wrap_socket(connection, server_hostname=self._host)
        return connection

    def _exchange(self, connection: socket.socket, request: bytes) -> Response:
        try:
            connection.sendall(request)
            response, keep = _read(connection)
        except BaseException:
            connection.close()
            raise
        if keep:
            self._idle.append(connection)
        else:
            connection.close()
        return response


def _is_open(connection: socket.socket) -> bool:
    """Whether the server has not ended an idle connection meanwhile.

    Looked at before it is used: a request that failed after it was sent may have been served, so it
    is an error and is not sent again.
    """
    try:
        return not select.select([connection], [], [], 0)[0]
    except ValueError:
        return True  # more connections than select can tell apart


def _read(connection: socket.socket) -> tuple[Response, bool]:
    """An answer, and whether the connection can be used again."""
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        piece = connection.recv(_CHUNK)
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        received += piece
        if len(received) > _CHUNK and end < 0:
            raise BadAnswer("no end of the head of the answer")
    head, body = received[:end].lower(), received[end + 4 :]
    if not head.startswith(b"http/1.") or not head[9:12].isdigit():
        raise BadAnswer(f"not HTTP: {received[:40]!r}")
    response = Response(int(head[9:12]), head, b"")
    if (length := response.header(b"content-length")) is not None:
        missing = int(length) - len(body)
        pieces = [body]
        while missing > 0:
            piece = connection.recv(_CHUNK)
            if not piece:
                raise ConnectionResetError("the server closed the connection within an answer")
            pieces.append(piece)
            missing -= len(piece)
        body = b"".join(pieces)
    elif response.header(b"transfer-encoding") == b"chunked":
        body = _chunks(connection, body)
    keep = response.header(b"connection") != b"close" and not head.startswith(b"http/1.0")
    return Response(response.status, head, body), keep


def _chunks(connection: socket.socket, received: bytes) -> bytes:
    found: list[bytes] = []
    while True:
        while (end := received.find(b"\r\n")) < 0:
            received += _more(connection)
        size = int(received[:end].split(b";")[0], 16)
        while len(received) < end + 2 + size + 2:
            received += _more(connection)
        if size == 0:
            return b"".join(found)
        found.append(received[end + 2 : end + 2 + size])
        received = received[end + 2 + size + 2 :]


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(_CHUNK)
    if not piece:
        raise ConnectionResetError("the server closed the connection within an answer")
    return piece
