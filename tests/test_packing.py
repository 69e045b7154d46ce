"""Packed attention comes back within its stated error, and stays within its budget."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_samples import attention

from reports.page import packing


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_round_trip_in_ten_bits(heads, n_tokens, seed):
    pattern = attention(1, heads, n_tokens, seed)[0]
    back = packing.unpack(packing.pack(pattern), heads, n_tokens)
    assert back.shape == pattern.shape
    assert np.abs(back - pattern).max() <= 0.5 / 1023 + 1e-7


def test_round_trip_in_eight_bits_above_512_tokens():
    pattern = attention(1, 2, 513)[0]
    back = packing.unpack(packing.pack(pattern), 2, 513)
    error = np.abs(back - pattern).max()
    assert packing.bits_for(512) == 10
    assert packing.bits_for(513) == 8
    assert 5e-4 < error <= 0.5 / 255 + 1e-7  # coarser than ten bits, as documented


def test_extremes_survive_and_what_is_not_a_weight_is_zero():
    pattern = np.tril(np.array([[[1.0, 0, 0], [0, 1, 0], [np.nan, np.inf, -1]]]))
    back = packing.unpack(packing.pack(pattern), 1, 3)
    assert back.tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 0]]]


def test_a_damaged_pack_does_not_come_back_equal():
    pattern = attention(1, 2, 12)[0]
    back = packing.unpack(packing.pack(pattern[::-1]), 2, 12)
    assert np.abs(back - pattern).max() > 0.01


def test_budget_of_144_heads_by_64_tokens():
    size = sum(len(packing.pack(layer)) for layer in attention(12, 12, 64))
    assert size < 0.34e6


def test_thumbnails_keep_the_largest_weight_of_every_block():
    pattern = attention(2, 2, 100)
    small = packing.thumbnails(pattern)
    side = small.shape[-1]
    block = -(-100 // side)
    slow = np.zeros_like(small)
    for query in range(100):
        for key in range(100):
            at = (..., query // block, key // block)
            slow[at] = np.maximum(slow[at], pattern[..., query, key])
    assert side <= packing.THUMBNAIL
    assert np.array_equal(small, slow)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 3), (12, 12)])
def test_mosaic_is_a_picture_of_all_heads(layers, heads):
    uri, side = packing.mosaic(attention(layers, heads, 50))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert picture.size == (heads * side, layers * side)
    pixels = np.asarray(picture.convert("RGB")).reshape(layers, side, heads, side, 3)
    assert (pixels[:, 0, :, side - 1] == 255).all()  # the future is white
    assert (pixels[:, 0, :, 0] == packing.blues(16)[-1]).all()  # the first token sees only itself: darkest blue
