"""One HTTP request over a connection of its own: for questions, never for load."""

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit


def request(
    base: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> tuple[int, bytes]:
    """GET a path, or POST a JSON body to it.

    Args:
        base: http(s)://host:port, with a path that goes before ``path``.
        path: of the route.
        body: JSON to send; None asks with GET.
        headers: more of them.
        timeout_s: of the connection, and between two pieces of the answer.

    Returns:
        Status and body.

    Raises:
        OSError, http.client.HTTPException: nothing answers.
    """
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        method = "GET" if body is None else "POST"
        of_body = {} if body is None else {"content-type": "application/json"}
        connection.request(
            method, parts.path.rstrip("/") + path, body, {**of_body, **(headers or {})}
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
