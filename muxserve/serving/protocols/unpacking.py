"""A request's compressed body in, the plain body out, within a limit of bytes.

No more is held than the limit allows, whatever a body would unpack to. Bodies of more than a piece
are unpacked on a thread, so that the event loop goes on.
"""

import asyncio
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from muxserve.serving.errors import BodyTooLarge, MalformedEncoding, UnsupportedEncoding

ENCODINGS = ("gzip", "deflate", "identity")
_FIELD = "content-encoding"
#: Packed bytes that are read at a time; one that unpacks to a thousandfold takes milliseconds.
_PIECE_BYTES = 8192
#: Parts of a gzip body; each costs as much as many bytes do.
_MOST_MEMBERS = 1024

_thread = ThreadPoolExecutor(1, "muxserve-unpack")


async def unpacked(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """``body`` without its ``encoding``, a value of the header Content-Encoding.

    Raises:
        BodyTooLarge: it has more than ``max_bytes``.
        MalformedEncoding: it is not packed in this way.
        UnsupportedEncoding: the encoding is none of ``ENCODINGS``, or several.
    """
    name = encoding.strip().lower().removeprefix(b"x-")
    if name in (b"identity", b""):
        return body
    if name not in (b"gzip", b"deflate"):
        raise UnsupportedEncoding(
            f"Content-Encoding {encoding[:64].decode('latin-1')!r} is not read here; "
            f"it may be {', '.join(ENCODINGS)}",
            field=_FIELD,
        )
    pieces = _pieces(body, name == b"gzip", max_bytes)
    if len(body) <= _PIECE_BYTES and len(body) * 4 <= max_bytes:
        # No thread for the many small ones: what they unpack to takes less than a switch of it
        # or, at worst, some milliseconds.
        return b"".join(pieces)
    return await asyncio.get_running_loop().run_in_executor(_thread, b"".join, pieces)


def _pieces(body: bytes, gzip: bool, max_bytes: int) -> Iterator[bytes]:
    bits = 31 if gzip else 15 if _has_zlib_head(body) else -15
    unpacker = zlib.decompressobj(bits)
    members, total = 1, 0
    for start in range(0, len(body), _PIECE_BYTES):
        packed = body[start : start + _PIECE_BYTES]
        while packed:
            if unpacker.eof:
                members += 1
                if not gzip or members > _MOST_MEMBERS:
                    raise MalformedEncoding("more follows the packed body's end", field=_FIELD)
                unpacker = zlib.decompressobj(bits)
            try:
                piece = unpacker.decompress(packed, max_bytes - total + 1)
            except zlib.error as error:
                raise MalformedEncoding(
                    f"the body is not {'gzip' if gzip else 'deflate'}: {error}", field=_FIELD
                ) from None
            total += len(piece)
            if total > max_bytes:
                raise BodyTooLarge(
                    f"the body unpacks to over {max_bytes} bytes; send the texts in several "
                    "requests"
                )
            yield piece
            packed = unpacker.unused_data
    if not unpacker.eof:
        raise MalformedEncoding("the packed body ends before its end", field=_FIELD)


def _has_zlib_head(body: bytes) -> bool:
    """Some clients send deflate without the head that the standard asks for."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
