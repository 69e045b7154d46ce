"""The walk-through against a slow loop, another library's attention, and a head whose pattern is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, tokens_for, toy

from analyses.lessons.qkv_walkthrough import qkv_walkthrough, softmax
from interp.errors import InputError

TEXT = "Mary and John sat. Mary ran"


def test_against_a_slow_loop(toy_gpt: Any) -> None:
    """Every number of every key, from the weights, with Python's own arithmetic."""
    layer, head, query = 1, 2, 5
    found = qkv_walkthrough(toy_gpt, TEXT, layer=layer, head=head, query=query).to_dataframe()
    with torch.no_grad():
        _, cache = toy_gpt.run_with_cache(TEXT)
        block = toy_gpt.blocks[layer]
        x = (block.ln1(cache["resid_pre", layer])[0]).double()
        attn = block.attn
        q, k, v = ((x @ w[head].double() + b[head].double()).tolist()
                   for w, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)))  # fmt: skip
    products = [sum(a * b for a, b in zip(q[query], key, strict=True)) for key in k]
    powers = [math.exp(p / math.sqrt(8)) for p in products[: query + 1]]
    weights = [p / sum(powers) for p in powers] + [0.0] * (len(k) - query - 1)
    output = [sum(w * value[i] for w, value in zip(weights, v, strict=True)) for i in range(8)]
    shares = [
        sum(w * value[i] * output[i] for i in range(8)) / sum(o * o for o in output)
        for w, value in zip(weights, v, strict=True)
    ]
    np.testing.assert_allclose(found["product"], products, atol=2e-5)
    np.testing.assert_allclose(found["weight"], weights, atol=1e-6)
    np.testing.assert_allclose(found["share"], shares, atol=1e-5)
    np.testing.assert_allclose(found["value_length"], [math.hypot(*value) for value in v], rtol=1e-5)
    assert found["weight"].sum() == pytest.approx(1, abs=1e-12)
    assert found["share"].sum() == pytest.approx(1, abs=1e-12)
    assert found["visible"].tolist() == [i <= query for i in range(len(k))]


def test_against_torch_and_the_model(toy_gpt: Any) -> None:
    result = qkv_walkthrough(toy_gpt, TEXT, layer=0, head=1)
    q, k, v = (torch.as_tensor(x)[None] for x in (result.q[None], result.k, result.v))
    torch_z = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, 0]
    np.testing.assert_allclose(result.mixed, torch_z, atol=1e-12)
    np.testing.assert_allclose(result.weights, result.pattern, atol=1e-6)
    assert result.difference < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_end_where_every_kind_of_model_does(shape: str) -> None:
    """Grouped heads, turned and normed queries, caps, windows, no causality: pattern and output are the model's own."""
    model = toy(shape, dtype=torch.float64)
    ids = tokens_for(model)
    cache = model.run_with_cache(ids[:1])[1]
    for layer, head, query in ((0, 1, 5), (1, 2, -1), (1, 0, 2)):
        result = qkv_walkthrough(model, ids, layer=layer, head=head, query=query)
        np.testing.assert_allclose(result.weights, result.pattern, atol=1e-12)
        assert result.difference < 1e-12
        seen = cache["pattern", layer][0, head, query] > 0
        assert result.to_dataframe()["visible"].tolist() == seen.tolist()
        assert len(result.panels()[1].labels) == int(seen.sum())
        if model.config.n_kv_heads == 2 and head in (1, 2):  # the control: tiled rather than repeated
            wrong = result.weights @ cache["v", layer][0, :, head % 2].detach().numpy()
            assert np.abs(wrong - result.z).max() > 0.01


def test_a_head_with_other_weights_is_noticed(toy_gpt: Any) -> None:
    """The control: were the model's pattern another one, `difference` would say so."""
    with toy_gpt.hooks([("blocks.0.attn.hook_pattern", lambda x, hook: x.flip(-1))]):
        assert qkv_walkthrough(toy_gpt, TEXT, layer=0, head=1).difference > 0.01


def test_a_head_that_looks_one_back() -> None:
    model, roles = induction_model()
    layer, head = roles["previous_token"]
    ids = repeated(40, 10)
    for query in (3, 7, -1):
        result = qkv_walkthrough(model, ids, layer=layer, head=head, query=query)
        assert result.weights.argmax() == result.query - 1
        assert result.weights.max() > 0.9
        assert result.share.argmax() == result.query - 1
        assert result.written.argmax() == result.query - 1


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=12), st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_softmax_sums_to_one_and_ignores_a_constant(scores: list[float], shift: float) -> None:
    weights = softmax(np.array(scores))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights, softmax(np.array(scores) + shift), atol=1e-9)
    np.testing.assert_allclose(weights, torch.tensor(scores, dtype=torch.float64).softmax(0), atol=1e-12)


@pytest.mark.parametrize("options", [{"layer": 2}, {"layer": -1}, {"head": 4}, {"query": 99}, {"query": -99}])
def test_what_is_not_there_is_said(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        qkv_walkthrough(make_gpt(), torch.tensor([[1, 2, 3]]), **options)
