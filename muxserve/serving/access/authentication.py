"""A request's head in, its caller out, or a refusal, before its body is read.

Where there are keys, every path needs one except those listed here: a path that is forgotten is
closed, not open.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.types import Scope

from muxserve.serving.access.callers import Caller, of_address, peer_address
from muxserve.serving.access.keys import Keyring
from muxserve.serving.access.proxies import TrustedProxies
from muxserve.serving.errors import NotFound, Unauthenticated, shown
from muxserve.serving.security import SecurityConfig

#: Probes have no key, and learn only whether this runs.
_PROBES = {"/health", "/ready", "/-/healthz", "/v2/health/live", "/v2/health/ready"}
_MODEL_READY = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/ready")
_GRPC_PROBES = {"ServerLive", "ServerReady", "ModelReady"}
_PAGES = {
    "/stats": "stats",
    "/metrics": "metrics",
    "/docs": "docs",
    "/docs/oauth2-redirect": "docs",
    "/openapi.json": "docs",
}


class Authenticator:
    """Tells who asks, and refuses who may not."""

    def __init__(
        self, config: SecurityConfig | None = None, keyring: Keyring | None = None
    ) -> None:
        """Let callers in as the settings say.

        Args:
            config: of the application; by default everything is open.
            keyring: of ``config.keys_file``, where there is one.
        """
        config = config or SecurityConfig()
        self._keyring = keyring
        self._pages = config.pages
        self._proxies = TrustedProxies(config.trusted_proxies, config.proxy_header)
        self._proxy_header = config.proxy_header.encode()

    @property
    def tells_paths(self) -> bool:
        """Whether there is a page that lists all paths."""
        return self._pages.docs != "off"

    def needs_key(self, path: str) -> bool:
        """Whether a path of this application asks for a key."""
        page = _PAGES.get(path)
        access = "key" if page is None else self._pages.of(page)
        return self._keyring is not None and access == "key" and not _is_probe(path)

    def http_caller(self, scope: Scope, path: str) -> Caller:
        """Who asks for a path of this application.

        Raises:
            Unauthenticated: without a key, or with an unknown one.
            NotFound: a page that is off.
        """
        page = _PAGES.get(path)
        if page is not None and self._pages.of(page) == "off":
            raise NotFound(f"there is nothing at {shown(path, quoted=False)}")
        if self._keyring is not None and self.needs_key(path):
            return _of_key(self._keyring, _values(scope["headers"], b"authorization"))
        return self._by_address(scope)

    def _by_address(self, scope: Scope) -> Caller:
        client = scope.get("client")
        peer = "" if client is None else client[0]
        if not self._proxies:
            return of_address(peer)
        values = _values(scope["headers"], self._proxy_header)
        return of_address(self._proxies.address(peer, [one.decode("latin-1") for one in values]))

    def check_grpc(self, method: str, metadata: Sequence[tuple[str, Any]]) -> None:
        """Raise where a call is not allowed; ``method`` as gRPC has it, ``/service/name``.

        Raises:
            Unauthenticated: as ``http_caller``.
        """
        if self._keyring is not None and method.rpartition("/")[2] not in _GRPC_PROBES:
            _of_key(self._keyring, _texts(metadata, "authorization"))

    def grpc_caller(self, peer: str, metadata: Sequence[tuple[str, Any]]) -> Caller:
        """Who calls.

        Args:
            peer: as of a gRPC context, such as ``ipv4:127.0.0.1:5000``.
            metadata: of the call.

        Raises:
            Unauthenticated: as ``http_caller``.
        """
        if self._keyring is not None:
            return _of_key(self._keyring, _texts(metadata, "authorization"))
        address = peer_address(peer)
        if self._proxies:
            values = [one.decode("latin-1") for one in _texts(metadata, self._proxies.header)]
            address = self._proxies.address(address, values)
        return of_address(address)


def _is_probe(path: str) -> bool:
    return path in _PROBES or _MODEL_READY.fullmatch(path) is not None


def _of_key(keyring: Keyring, authorizations: Sequence[bytes]) -> Caller:
    if not authorizations:
        raise Unauthenticated(
            "an API key is needed: send it as the header 'Authorization: Bearer KEY'"
        )
    scheme, _, key = authorizations[0].partition(b" ")
    if len(authorizations) > 1 or scheme.lower() != b"bearer" or not key.strip():
        raise Unauthenticated("expected one header 'Authorization: Bearer KEY'")
    caller = keyring.caller(key.strip())
    if caller is None:
        raise Unauthenticated("the API key is not known here")
    return caller


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _texts(metadata: Sequence[tuple[str, Any]], name: str) -> list[bytes]:
    """Values of one name, which gRPC's clients write in lower case, as bytes."""
    values = [value for key, value in metadata if key == name]
    return [one if isinstance(one, bytes) else one.encode("latin-1", "replace") for one in values]
