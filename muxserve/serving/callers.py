"""Who asks: the caller of a request, as every protocol tells it to the service."""

import functools
import ipaddress
from dataclasses import dataclass
from urllib.parse import unquote

#: Of an IPv6 address, what one customer of a network has.
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a request is answered for.

    Attributes:
        name: what tells callers apart: an address.
    """

    name: str


#: Python handles of the same Ray cluster: whoever holds one is trusted, and they count as one.
HANDLES = Caller("handle")


def of_client(client: tuple[str, int] | None) -> Caller:
    """The caller of an ASGI scope's ``client``."""
    return of_address("" if client is None else client[0])


def of_grpc_peer(peer: str) -> Caller:
    """The caller of a gRPC context's ``peer()``, such as ``ipv4:127.0.0.1:5000``."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return of_address(unquote(host).strip("[]"))


@functools.lru_cache(4096)
def of_address(address: str) -> Caller:
    """The caller at an address; those whose address is none count as one.

    An IPv6 network of 64 bits is one caller: its owner has as many addresses as he likes.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Caller("")
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return Caller(str(parsed.ipv4_mapped))
        return Caller(str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False)))
    return Caller(str(parsed))
