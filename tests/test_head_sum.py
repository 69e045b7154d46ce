"""Heads add up: against the model's own `hook_result`, and models in which they do not."""

import numpy as np
import pytest
import torch
from conftest import make_gpt

from analyses.head_sum import head_sum
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
