"""SentencePiece's table of character replacements, checked before a tokenizer reads it.

The table is a trie in one array, followed by the replacements' text. The library that reads it
trusts every number: a wrong one ends the thread that tokenizes, and a replacement may have any
length. Here every node that a text can reach is visited once.
"""

import base64
import binascii
import struct

import numpy as np

_LENGTH = struct.Struct("<I")
#: Far over the 33 bytes of the longest replacement of any Unicode normal form.
MOST_REPLACEMENT_BYTES = 256


def charsmap_fault(encoded: str) -> str | None:
    """What is wrong with a ``precompiled_charsmap``, or None."""
    try:
        table = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return "not base64"
    if len(table) < _LENGTH.size:
        return "shorter than its own length"
    size = _LENGTH.unpack_from(table)[0]
    rest = table[_LENGTH.size :]
    if size % 4 or size == 0 or size > len(rest):
        return f"its trie would have {size:,} of {len(rest):,} bytes"
    try:
        text = rest[size:].decode("utf-8")
    except UnicodeDecodeError:
        return "its replacements are not UTF-8"
    longest = max(len(one.encode()) for one in text.split("\0"))
    if longest > MOST_REPLACEMENT_BYTES:
        return f"a character is replaced by {longest:,} bytes, at most {MOST_REPLACEMENT_BYTES}"
    return _trie_fault(np.frombuffer(rest[:size], dtype="<u4").astype(np.int64), text.encode())


def _trie_fault(units: np.ndarray, replacements: bytes) -> str | None:
    outside = "its trie leads outside of itself"
    # A replacement begins at a character, not at one of UTF-8's continuation bytes 10xxxxxx.
    begins = (np.frombuffer(replacements, dtype=np.uint8) & 0xC0) != 0x80
    seen = np.zeros(len(units), dtype=bool)
    nodes = np.zeros(1, dtype=np.int64)
    characters = np.arange(1, 256, dtype=np.int64)
    while nodes.size:
        bases = nodes ^ _offsets(units[nodes])
        leaves = bases[(units[nodes] >> 8 & 1).astype(bool) & (nodes != 0)]
        if (leaves >= len(units)).any():
            return outside
        values = units[leaves] & 0x7FFFFFFF
        if (values >= len(replacements)).any() or not begins[values].all():
            return "its trie leads outside of its replacements"
        steps = bases[:, None] ^ characters
        if (steps >= len(units)).any():
            return outside
        follows = (units[steps] & 0x800000FF) == characters
        nodes = np.unique(steps[follows])
        nodes = nodes[~seen[nodes]]
        seen[nodes] = True
    return None


def _offsets(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & (1 << 9)) >> 6)
