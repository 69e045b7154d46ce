"""The loop against `generate`, influences against a slow loop, and models with another structure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.lessons.outer_loop import influences, outer_loop
from interp.errors import InputError, NotApplicable

IDS = torch.tensor([[5, 9, 2, 7, 11]])


def test_the_tokens_are_those_of_greedy_generation(toy_gpt: object) -> None:
    model = make_gpt()
    result = outer_loop(model, IDS, steps=4)
    made = model.generate(IDS, max_new_tokens=4, temperature=0.0)[0].tolist()
    assert [int(token.strip("<>")) for token in result.tokens] == made
    assert result.given == 5
    assert result.most_often == 1
    assert set(result.computed) == {len(model.hook_points)}
    for step in range(4):
        logits = model(torch.tensor([made[: 5 + step]])).detach()[0, -1]
        assert result.probability[step] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-6)
    assert np.isnan(result.influence[1]).tolist() == [False] * 6 + [True] * 3


def test_influences_against_one_run_for_each_token() -> None:
    model = make_gpt(dtype=torch.float64)
    ids = torch.arange(40)[None]  # more than one batch of tokens taken out
    found = influences(model, ids)
    with torch.no_grad():
        usual = model(ids)[0, -1].softmax(-1)
        for pos in (0, 17, 31, 32, 39):

            def out(x: torch.Tensor, hook: object, pos: int = pos) -> torch.Tensor:
                x[:, pos] = model.W_E.mean(0)
                return x

            changed = model.run_with_hooks(ids, fwd_hooks=[("hook_embed", out)])[0, -1].softmax(-1)
            assert found[pos] == pytest.approx((changed - usual).abs().sum().item() / 2, abs=1e-12)


def test_without_attention_only_the_last_token_matters() -> None:
    model = make_gpt()
    with model.hooks([("attn_out", lambda x, hook: torch.zeros_like(x))]):
        result = outer_loop(model, IDS, steps=2)
    assert result.least_influence < 1e-6
    for step in range(2):
        assert (result.influence[step, : 4 + step] < 1e-6).all()
        assert result.influence[step, 4 + step] > 1e-3


def test_a_loop_inside_is_counted() -> None:
    model = make_gpt()
    block = model.blocks[1]
    usual = block.forward
    block.forward = lambda x, mask=None, past=None: usual(usual(x, mask, past), mask, past)  # type: ignore[method-assign]
    assert outer_loop(model, IDS, steps=1).most_often == 2


def test_only_the_last_row_is_decoded() -> None:
    model = make_gpt()
    assert outer_loop(model, IDS, steps=1).rows_used < 1e-5
    decode = model.unembedded
    model.unembedded = lambda x: decode(x.cumsum(-2)) if x.ndim == 3 else decode(x)  # type: ignore[method-assign]
    assert outer_loop(model, IDS, steps=1).rows_used > 0.01


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_has_no_loop_but_the_outer_one(shape: str) -> None:
    """And a token taken out leaves the mean embedding, as it would be added: scaled, where embeddings are."""
    model = toy(shape)
    if not model.config.causal:
        with pytest.raises(NotApplicable, match="next token"):
            outer_loop(model, IDS, steps=2)
        return
    result = outer_loop(model, IDS, steps=2)
    shared = model.config.shared_norm  # which attention and MLP each pass
    assert result.most_often == 1 + shared
    assert result.computed[0] == len(model.hook_points) + 2 * model.config.n_layers * shared
    assert result.rows_used < 1e-5
    mean = model.W_E.detach().mean(0)
    with torch.no_grad():
        usual = model(IDS)[0, -1].softmax(-1)
        blank = torch.nn.Parameter(torch.cat([model.W_E, mean[None]]))  # the mean as one more token
        taken, whole = IDS.clone(), model.W_E
        taken[0, 1] = len(whole)
        model.W_E, model.config = blank, replace(model.config, d_vocab=len(blank), tied=False)
        model.unembed = whole if model.unembed is None else model.unembed
        changed = model(taken)[0, -1].softmax(-1)
    expected = (changed - usual).abs().sum().item() / 2
    assert result.influence[0, 1] == pytest.approx(expected, abs=1e-5)
    assert expected > 1e-3


def test_what_cannot_be_used_is_said() -> None:
    model = make_gpt(n_ctx=6)
    assert len(outer_loop(model, IDS, steps=9).computed) == 1  # as many as fit
    for ids, options in ((IDS, {"steps": 0}), (torch.arange(6)[None], {})):
        with pytest.raises(InputError):
            outer_loop(model, ids, **options)
