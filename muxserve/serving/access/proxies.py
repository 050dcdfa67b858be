"""A connection's peer and a header in, the address of the caller out.

Anyone who connects can write any header. So the header is believed only from configured proxies,
and of its addresses only the rightmost one that is not such a proxy: the client wrote what stands
left of it.
"""

import functools
import ipaddress
from collections.abc import Iterator, Sequence

from muxserve.serving.access.callers import parsed_address
from muxserve.serving.security import ProxyHeader

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """Proxies that are believed about the address that they ask for."""

    def __init__(self, networks: Sequence[str] = (), header: ProxyHeader = "x-forwarded-for"):
        """Trust some proxies.

        Args:
            networks: their addresses and networks.
            header: the one that they write.
        """
        self._networks: list[_Network] = [ipaddress.ip_network(one) for one in networks]
        self.header = header
        self._knows = functools.lru_cache(4096)(self._is_one)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def address(self, peer: str, values: Sequence[str]) -> str:
        """The caller's address.

        Args:
            peer: whoever connected.
            values: of the header, in the order of its lines.

        Returns:
            The rightmost address that is not a trusted proxy's; or, where a proxy did not write an
            address, that proxy's own.
        """
        caller = peer
        hops = self._hops(values)
        while self._knows(caller):
            told = next(hops, None)
            if told is None or parsed_address(told) is None:
                break
            caller = told
        return caller

    def _is_one(self, address: str) -> bool:
        parsed = parsed_address(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._networks
        )

    def _hops(self, values: Sequence[str]) -> Iterator[str]:
        """What the proxies wrote, the nearest first; no more is read than is asked for."""
        for value in reversed(values):
            rest, comma = value, ","
            while comma:
                rest, comma, last = rest.rpartition(",")
                if last.strip():
                    yield _without_port(_node(last) if self.header == "forwarded" else last.strip())


def _node(element: str) -> str:
    """``for`` of one element of ``Forwarded``, or nothing."""
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _without_port(node: str) -> str:
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 else node
