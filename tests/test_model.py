"""The model is the same function as transformers' GPT-2, and hooks change exactly what they say."""

import pytest
import torch
import transformers
from conftest import make_gpt
from shapes import SHAPES, tokens_for, toy

from interp.interventions import ablate_head
from interp.models.config import PRESETS, GPTConfig
from interp.models.gpt import HookedGPT
from interp.sweep import sweep

TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-10}


def as_transformers(model: HookedGPT, directory) -> transformers.GPT2LMHeadModel:
    model.save_pretrained(directory)
    twin = transformers.GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager", dtype=model.dtype)
    return twin.eval()


def difference(model: HookedGPT, twin, tokens, mask=None) -> float:
    """Largest difference of logits at real tokens."""
    options = {}
    if mask is not None:
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        apart = (model(tokens, attention_mask=mask) - twin(tokens, **options).logits).abs()
    return float(apart[mask.bool()].max() if mask is not None else apart.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("act_fn", ["gelu_new", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_transformers(tmp_path, dtype, tied, act_fn, bias) -> None:
    model = make_gpt(dtype=dtype, tied=tied, act_fn=act_fn, bias=bias)
    twin = as_transformers(model, tmp_path)
    tokens = torch.randint(0, 300, (3, 24))
    mask = torch.ones_like(tokens)
    mask[0, :7] = mask[2, :1] = 0
    assert difference(model, twin, tokens) < TOLERANCE[dtype]
    assert difference(model, twin, tokens, mask) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1, 1, 8, 20), (3, 2, 48, 128), (4, 8, 64, 16)])
def test_logits_equal_transformers_over_shapes(tmp_path, shape) -> None:
    layers, heads, width, mlp = shape
    model = make_gpt(n_layers=layers, n_heads=heads, d_model=width, d_mlp=mlp, dtype=torch.float64)
    tokens = torch.randint(0, 300, (2, 64))
    assert difference(model, as_transformers(model, tmp_path), tokens) < 1e-10


def test_a_changed_weight_breaks_parity(tmp_path) -> None:
    model = make_gpt(dtype=torch.float64)
    twin = as_transformers(model, tmp_path)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 5] += 1e-3
    assert difference(model, twin, torch.randint(0, 300, (2, 24))) > 1e-6


@pytest.mark.slow
def test_gpt2_small_shape_equals_transformers(tmp_path) -> None:
    torch.manual_seed(0)
    model = HookedGPT(PRESETS["gpt2"])
    twin = as_transformers(model, tmp_path)
    assert difference(model, twin, torch.randint(0, 50257, (2, 100))) < 5e-5


def test_explicit_attention_equals_fused() -> None:
    model = make_gpt(dtype=torch.float64)
    tokens = torch.randint(0, 300, (2, 20))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    for given in (None, mask):
        logits, cache = model.run_with_cache(tokens, attention_mask=given)
        real = torch.ones_like(tokens).bool() if given is None else given.bool()
        torch.testing.assert_close(logits[real], model(tokens, attention_mask=given)[real], atol=1e-12, rtol=0)
        rows = cache["pattern", 1].sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-12, rtol=0)
        assert (cache["pattern", 0].triu(1) == 0).all()


def test_cache_has_every_hook_point_with_the_stated_shape() -> None:
    model = make_gpt()
    tokens = torch.randint(0, 300, (2, 9))
    _, cache = model.run_with_cache(tokens, names=lambda name: True)
    assert list(cache) == list(model.hook_points)
    for name, activation in cache.items():
        assert tuple(activation.shape) == model.hook_shape(name, 2, 9), name
    assert cache.nbytes == model.cache_bytes(2, 9, lambda name: True)


def test_hook_points_are_the_classic_names() -> None:
    block = (  # noqa: SIM905
        "hook_resid_pre hook_q_input hook_k_input hook_v_input ln1.hook_scale ln1.hook_normalized attn.hook_q "
        "attn.hook_k attn.hook_v attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result hook_attn_out "
        "hook_resid_mid hook_mlp_in ln2.hook_scale ln2.hook_normalized mlp.hook_pre mlp.hook_post hook_mlp_out "
        "hook_resid_post"
    ).split()
    expected = ["hook_embed", "hook_pos_embed"]
    expected += [f"blocks.{layer}.{name}" for layer in range(2) for name in block]
    assert list(make_gpt().hook_points) == [*expected, "ln_final.hook_scale", "ln_final.hook_normalized"]


def test_cached_activations_obey_the_model_equations() -> None:
    model = make_gpt(dtype=torch.float64)
    _, cache = model.run_with_cache(torch.randint(0, 300, (2, 9)), names=lambda name: True)
    exact = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(cache["resid_pre", 0], cache["embed"] + cache["pos_embed"], **exact)
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(
            cache["resid_mid", layer], cache["resid_pre", layer] + cache["attn_out", layer], **exact
        )
        torch.testing.assert_close(
            cache["resid_post", layer], cache["resid_mid", layer] + cache["mlp_out", layer], **exact
        )
        mixed = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], cache["v", layer])
        torch.testing.assert_close(cache["z", layer], mixed, **exact)
        torch.testing.assert_close(cache["attn_out", layer], cache["result", layer].sum(2) + block.attn.b_O, **exact)
        scores = torch.einsum("bqhd,bkhd->bhqk", cache["q", layer], cache["k", layer]) / model.config.d_head**0.5
        below = torch.ones(9, 9).tril().bool()
        torch.testing.assert_close(cache["attn_scores", layer][..., below], scores[..., below], **exact)
        deviation = (cache["resid_pre", layer].var(-1, correction=0, keepdim=True) + model.config.eps).sqrt()
        torch.testing.assert_close(cache["scale", layer, "ln1"], deviation, **exact)


def test_weights_stack_as_views_and_rebuild_q() -> None:
    model = make_gpt(dtype=torch.float64)
    _, cache = model.run_with_cache(torch.randint(0, 300, (2, 9)))
    norm = model.blocks[1].ln1
    q = torch.einsum("bpm,hmd->bphd", cache["normalized", 1, "ln1"] * norm.w + norm.b, model.W_Q[1]) + model.b_Q[1]
    torch.testing.assert_close(q, cache["q", 1], atol=1e-12, rtol=0)
    assert model.W_Q.shape == (2, 4, 32, 8)
    assert model.W_K.untyped_storage().data_ptr() == model.blocks[1].attn.W_K_flat.untyped_storage().data_ptr()
    for name in ("W_O", "W_in", "W_out", "b_V", "b_O", "b_in", "b_out"):
        stacked = getattr(model, name)
        assert stacked.data_ptr() == getattr(model, name).data_ptr(), name  # the same storage each time
        assert len(stacked) == 2
    before = model(torch.zeros(1, 4, dtype=torch.long))
    with torch.no_grad():
        model.W_in[0].zero_()
    assert not torch.equal(before, model(torch.zeros(1, 4, dtype=torch.long)))


def test_left_padding_gives_the_same_logits_as_no_padding(toy_gpt) -> None:
    texts = ["The cat sat on the mat.", "A dog"]
    tokens, mask = toy_gpt.to_batch(texts)
    with torch.no_grad():
        padded = toy_gpt(tokens, attention_mask=mask)
        for row, text in enumerate(texts):
            alone = toy_gpt(text)[0]
            torch.testing.assert_close(padded[row, -len(alone) :], alone, atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype) -> None:
    exact = make_gpt(dtype=torch.float64)
    tokens = torch.randint(0, 300, (2, 12))
    logits, cache = make_gpt().to(dtype).run_with_cache(tokens)
    assert logits.dtype == cache["pattern", 0].dtype == cache["scale", 0, "ln1"].dtype == dtype
    error = (logits.double() - exact(tokens)).norm() / exact(tokens).norm()
    assert error < (3e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    model, tokens = make_gpt(dtype=torch.float64), torch.randint(0, 300, (2, 20))
    expected, cache = model.run_with_cache(tokens)
    logits, on_gpu = make_gpt(dtype=torch.float64).cuda().run_with_cache(tokens.cuda(), device="cpu")
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-10, rtol=0)
    for name in cache:
        torch.testing.assert_close(on_gpu[name], cache[name], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 65, dtype=torch.long), "65 tokens"),
        (torch.zeros(1, 0, dtype=torch.long), "pos >= 1"),
        (torch.zeros(5, dtype=torch.long), r"expected whole numbers \[batch pos\]"),
        (torch.full((1, 3), 300), "token id 300"),
        (torch.full((1, 3), -1), "token id -1"),
        (torch.zeros(1, 3), "float32"),
    ],
)
def test_bad_tokens_are_refused_in_three_lines(tokens, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_gpt()(tokens)
    assert str(caught.value).count("\n") <= 2


def test_config_is_frozen_and_checked() -> None:
    config = GPTConfig(n_layers=2, n_heads=4, d_model=32, n_ctx=8, d_vocab=10)
    assert (config.d_head, config.d_mlp) == (8, 128)
    with pytest.raises(AttributeError):
        config.n_layers = 3
    with pytest.raises(ValueError, match="not a multiple"):
        GPTConfig(n_layers=2, n_heads=5, d_model=32, n_ctx=8, d_vocab=10)


def test_presets_have_the_published_parameter_counts() -> None:
    published = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for name, count in published.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in HookedGPT(PRESETS[name]).parameters()) == count


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out"])
def test_stacked_weights_carry_gradients(name: str) -> None:
    """A penalty on a stack reaches each block's own parameter, beside the loss; without gradients on it is a view."""
    model = toy("llama")
    tokens = tokens_for(model)
    penalty = getattr(model, name).square().sum()
    (model(tokens).logsumexp(-1).mean() + penalty).backward()
    with_penalty = {key: x.grad.clone() for key, x in model.named_parameters()}
    model.zero_grad()
    model(tokens).logsumexp(-1).mean().backward()
    for key, x in model.named_parameters():
        extra = 2 * x.detach() if key.rsplit(".", 1)[-1].removesuffix("_flat") == name else torch.zeros_like(x)
        torch.testing.assert_close(with_penalty[key], x.grad + extra, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not getattr(model, name).requires_grad


def test_a_replaced_non_linearity_acts_whoever_listens() -> None:
    """`mlp.act` is the one place: the plain run, the run with a listener and the sweep agree; a control differs."""
    model = toy("llama", dtype=torch.float64)
    tokens, before = tokens_for(model), toy("llama", dtype=torch.float64)(tokens_for(model))
    for block in model.blocks:
        block.mlp.act = torch.tanh
    plain = model(tokens)
    listened, _ = model.run_with_cache(tokens)
    swept = sweep(model, tokens, [ablate_head(0, 0, value=0.5)], lambda logits: {"x": logits})["x"][0]
    torch.testing.assert_close(listened, plain, atol=1e-12, rtol=0)
    slow = model.run_with_hooks(tokens, fwd_hooks=[ablate_head(0, 0, value=0.5)])
    torch.testing.assert_close(swept, slow, atol=1e-12, rtol=0)
    assert (plain - before).abs().max() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_computes_its_equations(shape: str) -> None:
    """The stream is the sum of what is added, patterns mix the values of each head's key-value head, caps cap."""
    model = toy(shape, dtype=torch.float64)
    tokens = tokens_for(model)
    logits, cache = model.run_with_cache(tokens, names=lambda name: True)
    exact = {"atol": 1e-12, "rtol": 0}
    for layer, block in enumerate(model.blocks):
        stream = cache["resid_pre", layer] + cache["attn_out", layer]
        if block.mlp is not None and not model.config.parallel:
            torch.testing.assert_close(cache["resid_mid", layer], stream, **exact)
        if block.mlp is not None:
            stream = stream + cache["mlp_out", layer]
        torch.testing.assert_close(cache["resid_post", layer], stream, **exact)
        group = model.config.n_heads // model.config.n_kv_heads
        shared = cache["v", layer].repeat_interleave(group, 2)
        mixed = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], shared)
        torch.testing.assert_close(cache["z", layer], mixed, **exact)
        if 1 < model.config.n_kv_heads < model.config.n_heads:  # control: tiled
            tiled = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], cache["v", layer].repeat(1, 1, group, 1))
            assert (tiled - mixed).abs().max() > 1e-3
        written = block.attn.summed(cache["result", layer])
        torch.testing.assert_close(cache["attn_out", layer], block.ln1_post(written), **exact)
    torch.testing.assert_close(model.unembedded(model.ln_final(stream)), logits, **exact)
    if model.config.logit_softcap is not None:
        assert logits.abs().max() < model.config.logit_softcap
    for name, x in cache.items():
        assert tuple(x.shape) == model.hook_shape(name, *tokens.shape), name


def test_rotation_depends_on_distance_alone() -> None:
    """Shifting a text by padding on the left leaves every real token's stream as it is."""
    model = toy("llama", dtype=torch.float64)
    tokens = tokens_for(model, 1, 6)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], 1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, 3:], model(tokens), atol=1e-10, rtol=0)
    assert (model(padded)[:, 3:] - model(tokens)).abs().max() > 1e-3  # control: padding read as text


def test_run_to_runs_no_later_block() -> None:
    model = toy("neox")
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens, names=["resid_pre", "resid_post"])
    seen = []
    with model.hooks([("resid_pre", lambda x, hook: seen.append(hook.name))], reads_only=True):
        assert torch.equal(model.run_to(tokens, 0), cache["resid_post", 0])
        assert torch.equal(model.run_to(tokens, -1), cache["resid_pre", 0])
    assert seen == ["blocks.0.hook_resid_pre"]
