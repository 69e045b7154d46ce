"""Whether the order can be told: exactly zero where it cannot, and models in which it can."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.lessons.token_order import ALONE, AS_IS, WITHOUT, token_order
from interp.errors import InputError

IDS = torch.tensor([[5, 9, 2, 7, 11, 1, 30]])


def test_attention_alone_and_the_first_block_cannot_tell_the_order() -> None:
    result = token_order(make_gpt(n_layers=3, dtype=torch.float64), IDS)
    assert result.change[ALONE].max() < 1e-12
    assert result.change[WITHOUT][0].max() < 1e-12
    assert result.change[WITHOUT][1:].mean(1).min() > 1e-3  # the mask gives it away
    assert result.change[AS_IS].mean(1).min() > 1e-3
    assert {values.shape for values in result.change.values()} == {(3, 20)}


def test_against_one_shuffle_by_hand() -> None:
    """A text of three tokens has one other order of the first two."""
    model = make_gpt(dtype=torch.float64)
    result = token_order(model, torch.tensor([[5, 9, 2]]), shuffles=3)
    with torch.no_grad():
        right, swapped = (model.run_with_cache(torch.tensor([ids]))[1]["attn_out", 1][0, -1]
                          for ids in ([5, 9, 2], [9, 5, 2]))  # fmt: skip
    expected = float((swapped - right).norm() / right.norm())
    np.testing.assert_allclose(result.change[AS_IS][1], expected, rtol=1e-9)


def test_attention_that_prefers_near_tokens_tells_the_order() -> None:
    """The control: a bias on distance, as in ALiBi."""
    model = make_gpt(dtype=torch.float64)
    distance = (torch.arange(7)[:, None] - torch.arange(7)).double()
    with model.hooks([("attn_scores", lambda x, hook: x - distance)]):
        result = token_order(model, IDS)
    assert result.change[ALONE].mean(1).min() > 1e-3


def test_without_a_mask_the_order_stays_hidden_in_every_block() -> None:
    """That the mask is the reason: a model that looks at everything cannot tell, however deep."""
    result = token_order(make_gpt(n_layers=3, dtype=torch.float64, causal=False), IDS)
    assert result.change[WITHOUT].max() < 1e-12
    assert result.change[AS_IS].mean(1).min() > 1e-3


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape(shape: str) -> None:
    """Alone, nothing is told; without rotation too the first block cannot tell, unless it has a narrow window."""
    model = toy(shape, dtype=torch.float64)
    result = token_order(model, IDS)
    assert result.change[ALONE].max() < 1e-12
    narrow = model.config.windows is not None and model.config.windows[0] is not None
    first = result.change[WITHOUT][0]
    assert (first.mean() > 1e-3) if narrow else (first.max() < 1e-12)
    as_it_is = result.change[AS_IS][0]
    assert (as_it_is.max() < 1e-12) if model.config.positions is None else (as_it_is.mean() > 1e-3)


def test_without_positions_is_a_rotation_by_nothing() -> None:
    """The control: a base so large, and a text so short, that nothing turns, gives the same as turning nothing."""
    still = token_order(toy("llama", dtype=torch.float64), IDS).change[WITHOUT]
    barely = token_order(toy("llama", dtype=torch.float64, rotary_base=1e300, rotary_dim=2), IDS)
    assert np.abs(barely.change[WITHOUT] - still).max() < 1e-12
    assert np.abs(barely.change[AS_IS] - still).max() > 1e-3  # the first pair turns whatever the base


def test_what_cannot_be_used_is_said() -> None:
    for ids, options in ((IDS[:, :2], {}), (IDS, {"shuffles": 0}), (IDS, {"seed": -1})):
        with pytest.raises(InputError):
            token_order(make_gpt(), ids, **options)
