"""Generation: the same tokens with and without the cache, hooks included; equal to transformers when greedy."""

import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from interp.errors import InputError
from interp.generation import generate, sampling_distribution, steps
from interp.interventions import Add, Replace, ablate_head

MODEL = make_gpt(dtype=torch.float64)
TOKENS = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None)
@given(
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([None, 1, 20]),
    top_p=st.sampled_from([None, 0.3, 0.95]),
    seed=st.integers(0, 1000),
    padding=st.integers(0, 4),
    hooked=st.booleans(),
)
def test_cache_changes_nothing(temperature, top_k, top_p, seed, padding, hooked) -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, :padding] = 0
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "attention_mask": mask}
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edits = [
        ablate_head(0, 1),
        Replace(name="blocks.1.mlp.hook_post", unit=[3, 5], pos=[4, 6], value=1.0),
        Add(name="blocks.1.hook_resid_pre", value=vector, pos=list(range(5, 20))),
        ("blocks.1.hook_mlp_out", lambda x, hook: 0.5 * x),
    ]
    with MODEL.hooks(edits if hooked else []):
        with_cache = generate(MODEL, TOKENS, max_new_tokens=15, use_cache=True, **options)
        without = generate(MODEL, TOKENS, max_new_tokens=15, use_cache=False, **options)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -0.5])
def test_settings_that_mean_nothing(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        sampling_distribution(torch.zeros(5), temperature=temperature)
    assert torch.equal(sampling_distribution(torch.zeros(5)), torch.full((5,), 0.2))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match="seed"):
        generate(MODEL, TOKENS, max_new_tokens=1, seed=seed)
    assert generate(MODEL, TOKENS, max_new_tokens=1, seed=2**32 - 1).shape == (2, 8)


def test_greedy_equals_transformers(tmp_path) -> None:
    import transformers

    MODEL.save_pretrained(tmp_path)
    twin = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
    expected = twin.generate(TOKENS, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(generate(MODEL, TOKENS, max_new_tokens=20, temperature=0), expected)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.1, 3),
    st.sampled_from([None, 1, 5, 299, 400]),
    st.sampled_from([None, 0.01, 0.5, 0.99, 1.0]),
    st.integers(0, 99),
)
def test_sampling_distribution_equals_transformers(temperature, top_k, top_p, seed) -> None:
    logits = 3 * torch.randn(2, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    mine = sampling_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(mine, warpers(TOKENS, logits).softmax(-1), atol=1e-12, rtol=0)


def test_seed_decides_and_draws_follow_the_distribution() -> None:
    assert torch.equal(
        generate(MODEL, TOKENS, max_new_tokens=9, seed=4), generate(MODEL, TOKENS, max_new_tokens=9, seed=4)
    )
    assert not torch.equal(
        generate(MODEL, TOKENS, max_new_tokens=9, seed=4), generate(MODEL, TOKENS, max_new_tokens=9, seed=5)
    )
    many = TOKENS[:1].expand(4000, -1)
    chosen, logits = next(steps(MODEL, many, max_new_tokens=1, top_k=5))
    expected = sampling_distribution(logits[0], top_k=5)
    seen = torch.bincount(chosen, minlength=300) / 4000
    assert (seen - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_stops_at_the_end_token(toy_gpt) -> None:
    end = toy_gpt.tokenizer.bos

    def always_end(x, hook):
        return torch.zeros_like(x) + toy_gpt.W_E[end].detach() * 50

    with toy_gpt.hooks([("ln_final.hook_normalized", always_end)]):
        out = toy_gpt.generate("The cat", max_new_tokens=20)
    assert out[0, -1] == end
    assert out.shape[1] == toy_gpt.to_tokens("The cat").shape[1] + 1


@pytest.mark.parametrize("options", [{"max_new_tokens": 58}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}])
def test_bad_options(options) -> None:
    with pytest.raises(InputError):
        generate(MODEL, TOKENS, **({"max_new_tokens": 3} | options))


def test_a_patched_pattern_and_places_to_come_work_with_and_without_the_cache() -> None:
    _, cache = MODEL.run_with_cache(TOKENS)
    means = cache["z", 1].mean(0)
    edits = [
        Replace(name="blocks.0.attn.hook_pattern", value=cache["pattern", 0]),
        Replace(name="blocks.1.attn.hook_pattern", value=0.1, unit=9),
        Replace(name="blocks.1.attn.hook_z", value=means, head=2),
    ]
    with MODEL.hooks(edits):
        tokens = [generate(MODEL, TOKENS, max_new_tokens=6, use_cache=use, temperature=0) for use in (True, False)]
    assert torch.equal(*tokens)
    with MODEL.hooks([ablate_head(0, 1, pos=-1)]), pytest.raises(InputError, match="while generating"):
        generate(MODEL, TOKENS, max_new_tokens=3)


def test_an_intervention_needs_the_full_name() -> None:
    with pytest.raises(InputError, match="full hook name"):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[Replace(name="pattern", pos=0)])


@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_on_the_right_is_refused_and_on_the_left_changes_nothing(use_cache) -> None:
    """The last column of a batch padded on the right is padding: what follows it would not follow the text."""
    short = TOKENS[:1, :3]
    alone = MODEL.generate(short, max_new_tokens=4, temperature=0)[:, 3:]
    fill, mask = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 0, 0, 0, 0]])
    options = {"max_new_tokens": 4, "temperature": 0, "use_cache": use_cache}
    with pytest.raises(InputError, match="padding on the right"):
        MODEL.generate(torch.cat([short, fill], 1), attention_mask=mask, **options)
    left = MODEL.generate(torch.cat([fill, short], 1), attention_mask=mask.flip(1), **options)
    assert torch.equal(left[:, 7:], alone)


def test_an_inverted_or_additive_mask_is_refused() -> None:
    """A batch's longest row has no padding, so that inverted it is padding alone."""
    mask = torch.ones(2, 7)
    mask[1, :3] = 0
    MODEL(TOKENS, attention_mask=mask)
    for wrong in (1 - mask, mask == 0, (1 - mask) * -1e4, mask * 2, mask / 0):
        with pytest.raises(InputError, match="attention_mask with"):
            MODEL(TOKENS, attention_mask=wrong)


@pytest.mark.parametrize("temperature", [1e-37, 1e-38, 1e-45, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature) -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).to(dtype) * 1e3
        found = sampling_distribution(logits, temperature=temperature)
        assert torch.equal(found, sampling_distribution(logits, temperature=0))
