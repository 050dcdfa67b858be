"""Who asks: the caller of a request, as every protocol tells it to the service."""

import functools
import ipaddress
from dataclasses import dataclass
from urllib.parse import unquote

from muxserve.serving.config import LimitsConfig

#: Where the app keeps the caller of a request in its ASGI scope.
CALLER = "muxserve.caller"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Bits of an IPv6 address that all addresses of one customer share.
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is answered for.

    Attributes:
        name: what tells callers apart: an address, or ``key:`` and the name of an API key.
        share: its weight in room and turns, beside the 1 of others.
        max_num_instances: widest N that may answer it, whatever a request asks for.
        max_waiting_texts: texts of it that one ingress holds; None for as many as all may have.
        limits: of its requests, where they are not those of the server.
        key: the name of its API key, where it has one.
        isolated: whether its texts never share a group with those of another key.
    """

    name: str
    share: float = 1.0
    max_num_instances: int | None = None
    max_waiting_texts: int | None = None
    limits: LimitsConfig | None = None
    key: str | None = None
    isolated: bool = False

    def isolation_key(self, asked: str | None) -> str | None:
        """The isolation key of a request's texts in the engine.

        Args:
            asked: what the request says. It narrows what the caller has, and reaches no group of
                another key: names of keys have no colon.
        """
        if asked is None and not self.isolated:
            return None
        return f"{self.key or ''}:{asked or ''}"

    def cap(self, asked: int | None) -> int | None:
        """The cap on N of a request that asks for ``asked``."""
        caps = [cap for cap in (asked, self.max_num_instances) if cap is not None]
        return min(caps, default=None)


#: Python handles of the same Ray cluster: they are trusted, and count as one caller.
HANDLES = Caller("handle")


def peer_address(peer: str) -> str:
    """The address of a gRPC context's ``peer()``, such as ``ipv4:127.0.0.1:5000``."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return unquote(host).strip("[]")


@functools.lru_cache(4096)
def of_address(address: str) -> Caller:
    """The caller at an address; all whose address cannot be read count as one.

    An IPv6 network of 64 bits is one caller: its owner can use any address in it.
    """
    parsed = parsed_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return Caller(str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False)))
    return Caller("" if parsed is None else str(parsed))


def parsed_address(address: str) -> Address | None:
    """An IP address without its zone, or None; IPv4 that is written as IPv6 becomes IPv4."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
