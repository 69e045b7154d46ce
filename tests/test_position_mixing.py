"""Where positions meet: the known answer for a GPT, and models with a violation planted in each place."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.lessons.position_mixing import EMBEDDING, MEETING, UNEMBEDDING, compare, operations, position_mixing
from interp.errors import InputError
from interp.hooks import APART
from interp.models.gpt import HookedGPT

IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 30]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_meet_in_scores_and_weighted_sums_only(dtype: torch.dtype) -> None:
    result = position_mixing(make_gpt(dtype=dtype), IDS)
    assert result.mixing == MEETING
    rounding = 100 * torch.finfo(dtype).eps  # rows of a batch may be summed in another order
    assert result.leak < rounding
    assert result.head_leak < rounding
    n = IDS.shape[1]
    frame = result.to_dataframe()
    for _, row in frame.iterrows():
        pairs = n * (n - 1) // 2 if row["operation"] in MEETING else 0  # every earlier position, and no later one
        assert row["pairs"] == pairs
        assert row["own"] > 0.01, "the change at the position itself is seen"
    assert len(frame) == 2 * 14 + 3
    for name in MEETING:
        moved = result.moved[name] > result.threshold
        np.testing.assert_array_equal(moved, np.broadcast_to(np.triu(np.ones((n, n), dtype=bool)), moved.shape))


def planted(model: HookedGPT, where: str) -> None:
    """Lets the next position's input through, a little, in one operation of block 1."""
    block = model.blocks[1]
    module: Any = {"MLP in": block.mlp, "norm before MLP": block.ln2, "norm before attention": block.ln1}[where]
    usual = module.forward
    module.forward = lambda x: usual(x + 0.01 * x.roll(-1, 1))


@pytest.mark.parametrize("where", ["MLP in", "norm before MLP", "norm before attention"])
def test_an_operation_that_mixes_positions_is_found(where: str) -> None:
    model = make_gpt()
    planted(model, where)
    result = position_mixing(model, IDS)
    assert result.mixing == tuple(sorted((*MEETING, where), key=result.operations.index))
    assert result.leak > 1e-3  # it reads from a later position
    by_layer = result.part(where, "other")
    assert by_layer[0] < 1e-5
    assert by_layer[1] > result.threshold


def test_an_embedding_and_an_unembedding_that_mix_are_found() -> None:
    model = make_gpt()
    embed, decode = model.embed, model.unembedded
    model.embed = lambda *a: (embed(*a)[0].cumsum(1), embed(*a)[1])  # type: ignore[method-assign]
    assert EMBEDDING in position_mixing(model, IDS).mixing
    model.embed = embed  # type: ignore[method-assign]
    model.unembedded = lambda x: decode(x.cumsum(-2))  # type: ignore[method-assign]
    found = position_mixing(model, IDS)
    assert UNEMBEDDING in found.mixing
    assert found.part(UNEMBEDDING, "earlier").max() < 1e-5


def test_values_of_one_head_in_another_are_found() -> None:
    model = make_gpt()
    attn = model.blocks[0].attn
    usual = attn.mix
    attn.mix = lambda q, k, v, *rest: usual(q, k, v + 0.05 * v.roll(1, 1), *rest)  # type: ignore[method-assign]
    result = position_mixing(model, IDS)
    assert result.head_leak > 1e-3
    assert result.heads["softmax"][:, ~np.eye(4, dtype=bool)].max() < 1e-5, "scores and weights are each head's own"


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape(shape: str) -> None:
    """Positions meet where they met, whatever else a block does; every step of the block is there; heads keep apart."""
    model = toy(shape, n_layers=2)
    result = position_mixing(model, IDS)
    assert result.mixing == MEETING
    assert (result.leak > 1e-3) == (not model.config.causal)
    assert (result.head_leak > 1e-3) == (model.config.qk_norm == "flat")  # OLMo 2's one norm over all heads' queries
    points = {name.removeprefix("blocks.0.") for name in model.hook_points if name.startswith("blocks.0.")}
    aside = {name for name in points if name.endswith("hook_scale") or "_post." in name or name.endswith(APART)}
    assert points - aside - {output for *_, output in operations(model)} == {"hook_resid_pre", "attn.hook_result"}
    heads = next(iter(result.heads.values()))
    assert heads.shape[1:] == (model.config.n_kv_heads, model.config.n_heads)


def test_a_group_that_reads_another_groups_values_is_found() -> None:
    model = toy("llama")
    attn = model.blocks[0].attn
    usual = attn.mix
    attn.mix = lambda q, k, v, *rest: usual(q, k, v + 0.05 * v.roll(1, 1), *rest)  # type: ignore[method-assign]
    assert position_mixing(model, IDS).head_leak > 1e-3


def test_positions_of_a_long_text_are_spread() -> None:
    result = position_mixing(make_gpt(), torch.arange(40)[None], most=5)
    assert result.changed.tolist() == [0, 10, 20, 29, 39]
    assert result.mixing == MEETING


def test_compare() -> None:
    inf = torch.inf
    x = torch.tensor([[[3.0, 4], [1, -inf]], [[3, 4], [2, -inf]], [[3, 4], [1, torch.nan]]])
    change = compare(x)
    size = ((25 + 1) / 2) ** 0.5
    assert change[0].tolist() == pytest.approx([0, 1 / size])
    assert change[1].tolist() == [0, inf]  # what is no number any more has changed as much as can be


def test_what_cannot_be_used_is_said() -> None:
    for ids, options in ((IDS[:, :1], {}), (IDS, {"most": 1}), (IDS, {"seed": -1})):
        with pytest.raises(InputError):
            position_mixing(make_gpt(), ids, **options)
