"""Heads add up: against the model's own `hook_result`, and models in which they do not."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.lessons.head_sum import head_sum
from interp.errors import InputError

IDS = torch.tensor([[5, 9, 2, 7, 11]])


@pytest.mark.parametrize("bias", [True, False])
def test_contributions_are_hook_result_and_add_up(bias: bool) -> None:
    model = make_gpt(bias=bias, d_head=12)
    result = head_sum(model, IDS, position=2)
    with torch.no_grad():
        _, cache = model.run_with_cache(IDS, names=["result", "attn_out"])
    for layer in range(2):
        np.testing.assert_allclose(result.contribution[layer], cache["result", layer][0, 2], atol=1e-5)
        total = result.total[layer] + (model.blocks[layer].attn.b_O.detach().numpy() if bias else 0)
        np.testing.assert_allclose(total, cache["attn_out", layer][0, 2], atol=1e-5)
    assert result.error.max() < 1e-14
    assert result.model_error.max() < 1e-6
    np.testing.assert_allclose(result.share.sum(1), 1, atol=1e-12)


def test_a_model_that_does_not_add_is_noticed() -> None:
    model = make_gpt()
    with model.hooks([("attn_out", lambda x, hook: x.relu())]):
        assert head_sum(model, IDS).model_error.min() > 0.1


def test_a_head_taken_out_leaves_the_others() -> None:
    model = make_gpt()
    before = head_sum(model, IDS)
    with torch.no_grad():
        model.blocks[1].attn.W_O[2] = 0
    after = head_sum(model, IDS)
    assert np.abs(after.contribution[1, 2]).max() == 0
    others = [0, 1, 3]
    np.testing.assert_allclose(after.contribution[1, others], before.contribution[1, others], atol=1e-12)


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_that_is_not_there_is_said(position: int) -> None:
    with pytest.raises(InputError, match="expected 0 to 4"):
        head_sum(make_gpt(), IDS, position=position)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape(shape: str) -> None:
    """Heads add up to what is added to the stream, behind a norm and with shared values too."""
    model = toy(shape, norm_place="both") if shape == "gpt2" else toy(shape)  # a post-norm with a bias of its own
    result = head_sum(model, IDS)
    assert result.error.max() < 1e-13
    assert result.model_error.max() < 2e-6
    with torch.no_grad():
        _, cache = model.run_with_cache(IDS, names=["z", "attn_out"])
        for head in range(model.config.n_heads):  # a head alone: the others' z at zero, the norm's scale held
            alone = torch.zeros_like(cache["z", 1])
            alone[:, :, head] = cache["z", 1][:, :, head]
            block = model.blocks[1]
            written = alone.flatten(2) @ block.attn.W_O_flat
            full = block.attn.write(cache["z", 1])
            part = block.ln1_post.centre(written) / block.ln1_post.scale_of(full) * block.ln1_post.gain
            np.testing.assert_allclose(result.contribution[1, head], part[0, -1], atol=2e-6)


def test_shares_of_a_norm_are_not_what_its_input_holds() -> None:
    """The control: with a norm after attention, plain z W_O is something else."""
    model = toy("gemma3")
    with torch.no_grad():
        _, cache = model.run_with_cache(IDS, names=["result"])
    assert np.abs(head_sum(model, IDS).contribution[0] - cache["result", 0][0, -1].numpy()).max() > 0.05
