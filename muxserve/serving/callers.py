"""Who asks: the caller of a request, as every protocol tells it to the service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a request is answered for; room, turns and equal texts are counted by it.

    Attributes:
        name: what tells callers apart: an API key's name, or an address. Never the key itself.
    """

    name: str


#: Python handles of the same Ray cluster: whoever holds one is trusted, and they count as one.
HANDLES = Caller("handle")
