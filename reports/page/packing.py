"""Attention patterns made small enough to travel inside a page, and the pictures shown before they are unpacked.

Only the lower triangle is kept, row by row, heads of a layer one after the other. Up to 512 tokens each number becomes
one of 1,023 steps (an error of at most 4.9e-4), above that one of 255 (2.0e-3). The bytes are deflated (raw) and
written as base64; `static/attention.js` holds the decoder, `unpack` is the same in Python.
"""

import base64
import io
import zlib

import numpy as np
from jaxtyping import Float, UInt8

FINE_LIMIT = 512
"""Up to this many tokens a number is stored in 10 bits, above it in 8."""
THUMBNAIL = 48
"""Longest side of a head's thumbnail, in pixels."""
MOSAIC = 100_000
"""Pixels of all thumbnails together, at most; with many heads each is smaller than `THUMBNAIL`."""


def bits_for(n_tokens: int) -> int:
    """Bits a number is stored in."""
    return 10 if n_tokens <= FINE_LIMIT else 8


def deflate(data: bytes) -> bytes:
    """Raw deflate, the smallest of three strategies (noise packs better without matches, patterns and text with)."""

    def run(strategy: int) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
        return packer.compress(data) + packer.flush()

    return min(map(run, (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)), key=len)


def pack(pattern: Float[np.ndarray, "head query key"]) -> str:
    """The lower triangles of one layer's heads as base64 text.

    10 bits: the low bytes of all numbers, then the high bytes. 8 bits: two bits a number (3 means "3 or more"), four
    numbers a byte, then one byte for each number that is 3 or more.
    """
    n_tokens = pattern.shape[-1]
    lower = np.tril_indices(n_tokens)
    values = np.nan_to_num(pattern[:, lower[0], lower[1]], nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    bits = bits_for(n_tokens)
    steps = np.rint(values * (2**bits - 1)).astype(np.uint16).ravel()
    if bits == 10:
        data = (steps & 255).astype(np.uint8).tobytes() + (steps >> 8).astype(np.uint8).tobytes()
    else:
        small = np.minimum(steps, 3).astype(np.uint8)
        small = np.pad(small, (0, -len(small) % 4)).reshape(-1, 4)
        quads = small[:, 0] | small[:, 1] << 2 | small[:, 2] << 4 | small[:, 3] << 6
        data = quads.astype(np.uint8).tobytes() + steps[steps >= 3].astype(np.uint8).tobytes()
    return base64.b64encode(deflate(data)).decode("ascii")


def joined(pattern: Float[np.ndarray, "layer head query key"]) -> Float[np.ndarray, "layer head pos pos"]:
    """Any pattern as a triangular one, over a text of all keys followed by all queries: only these then look back."""
    n_layers, n_heads, n_queries, n_keys = pattern.shape
    out = np.zeros((n_layers, n_heads, n_keys + n_queries, n_keys + n_queries))
    out[:, :, n_keys:, :n_keys] = pattern
    return out


def unpack(text: str, n_heads: int, n_tokens: int) -> Float[np.ndarray, "head query key"]:
    """The inverse of `pack`, up to its rounding."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(text), -15), dtype=np.uint8)
    count = n_heads * n_tokens * (n_tokens + 1) // 2
    bits = bits_for(n_tokens)
    if bits == 10:
        steps = data[:count].astype(np.uint16) | data[count:].astype(np.uint16) << 8
    else:
        quads, rest = np.split(data, [-(-count // 4)])
        steps = np.stack([quads >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).ravel()[:count].astype(np.uint16)
        steps[steps == 3] = rest
    pattern = np.zeros((n_heads, n_tokens, n_tokens))
    lower = np.tril_indices(n_tokens)
    pattern[:, lower[0], lower[1]] = steps.reshape(n_heads, -1) / (2**bits - 1)
    return pattern


def thumbnails(pattern: Float[np.ndarray, "layer head query key"]) -> Float[np.ndarray, "layer head pixel pixel"]:
    """Every head shrunk to at most `THUMBNAIL` pixels a side; a pixel is the largest weight in its block.

    Patterns with more keys than queries, or fewer, are filled up with zeros.
    """
    n_layers, n_heads, n_queries, n_keys = pattern.shape
    n_tokens = max(n_queries, n_keys)
    if n_queries != n_keys:
        pattern = np.pad(pattern, ((0, 0), (0, 0), (0, n_tokens - n_queries), (0, n_tokens - n_keys)))
    side = min(THUMBNAIL, max(8, int((MOSAIC / max(n_layers * n_heads, 1)) ** 0.5)))
    block = -(-n_tokens // side)
    starts = np.arange(0, n_tokens, block)
    rows = np.maximum.reduceat(np.nan_to_num(pattern), starts, axis=-2)
    return np.maximum.reduceat(rows, starts, axis=-1).clip(0, 1)


def mosaic(pattern: Float[np.ndarray, "layer head query key"]) -> tuple[str, int]:
    """All thumbnails as one PNG (rows are layers, columns are heads) in 16 blues, square-root contrast.

    Returns its data URI and the side of one thumbnail in pixels.
    """
    small = thumbnails(pattern)
    n_layers, n_heads, side, _ = small.shape
    steps = np.rint(np.sqrt(small) * 15).astype(np.uint8)
    image = steps.transpose(0, 2, 1, 3).reshape(n_layers * side, n_heads * side)
    return png_uri(image, blues(16)), side


def blues(count: int) -> UInt8[np.ndarray, "step 3"]:
    """`count` colours from white to dark blue."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps["Blues"](np.linspace(0, 1, count)))[:, :3]
    colours[0] = 1.0
    whole: UInt8[np.ndarray, "step 3"] = np.rint(colours * 255).astype(np.uint8)
    return whole


def png_uri(image: UInt8[np.ndarray, "row column"], palette: UInt8[np.ndarray, "step 3"]) -> str:
    """A picture of palette entries as a PNG data URI."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.putpalette(palette.tobytes())
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True, bits=4 if len(palette) <= 16 else 8)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
