"""A body's bytes in, the value of its JSON out, at a cost in proportion to its size.

Nothing else is answered while a body is parsed. So it may have no more lists and objects than a
request needs, and no endless nesting.
"""

import gc
import re
from typing import Any

from pydantic_core import from_json

from muxserve.errors import InvalidInput
from muxserve.serving.errors import MalformedJson

#: Up to so many brackets are not looked at: reading them costs some milliseconds at most.
_FREE_BRACKETS = 20_000
#: A string of JSON, or one that never ends. Nothing here is tried twice, whatever the body is.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z|\\\Z)', re.DOTALL)
#: What the parser says of an escape such as "\\ud800" that has no second half.
_HALVES = ("lone leading surrogate", "unexpected end of hex escape")

#: One that was written as UTF-8 never is.
_HALF_BYTES = re.compile(rb"\xed[\xa0-\xbf]")


def read_json(body: bytes, most_texts: int) -> Any:
    """What the JSON says.

    Args:
        body: JSON in UTF-8.
        most_texts: that one request may have, each in a list of its own at most.

    Raises:
        MalformedJson: not JSON (NaN and Infinity are not), or not UTF-8.
        InvalidInput: with half a character, or far more lists and objects than texts.
    """
    if body.count(b"[") + body.count(b"{") > _FREE_BRACKETS:
        outside = _STRING.sub(b"", body)
        brackets = outside.count(b"[") + outside.count(b"{")
        if brackets > _FREE_BRACKETS + most_texts:
            raise InvalidInput(f"the body has {brackets} lists and objects, far too many")
    # What is made here has no cycles; the collector would look for them in every list.
    collects = gc.isenabled()
    gc.disable()
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        message = str(error)
    finally:
        if collects:
            gc.enable()
    if any(half in message for half in _HALVES) or (
        "invalid unicode" in message and _HALF_BYTES.search(body)
    ):
        raise InvalidInput(
            f"the text cannot be UTF-8: half a character ({message}); it was cut or decoded in a "
            "wrong way"
        )
    raise MalformedJson(f"the body is not JSON in UTF-8: {message}")
