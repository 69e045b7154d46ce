"""Hooks: what they change, what they leave alone, and that they never outlive their `with`."""

import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.cache import ActivationCache
from interp.errors import HookNameError, InputError
from interp.models.gpt import HookedGPT

MODEL = make_gpt(dtype=torch.float64)
TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))
NAMES = list(MODEL.hook_points)


def listeners(model: HookedGPT) -> int:
    return sum(len(p.forward_listeners) + len(p.backward_listeners) for p in model.hook_points.values())


def test_zeroing_z_equals_subtracting_the_heads_result() -> None:
    def zero(z, hook):
        z[:, :, 2] = 0
        return z

    ablated = MODEL.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", zero)])
    _, cache = MODEL.run_with_cache(TOKENS, names=lambda name: True)
    without = cache["resid_mid", 1] - cache["result", 1][:, :, 2]
    block = MODEL.blocks[1]
    expected = MODEL.unembedded(MODEL.ln_final(without + block.mlp(block.ln2(without))))
    torch.testing.assert_close(ablated, expected, atol=1e-10, rtol=0)
    assert (ablated - MODEL(TOKENS)).abs().max() > 1e-3


@given(st.sampled_from(NAMES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_replacing_by_the_same_value_changes_nothing(name: str, in_place: bool) -> None:
    def same(x, hook):
        assert hook.name == name
        if in_place:
            x *= 1.0
            return None
        return x.clone()

    torch.testing.assert_close(
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[(name, same)]), MODEL(TOKENS), atol=1e-12, rtol=0
    )


@given(st.sampled_from(NAMES), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_point_is_really_on_the_path(name: str, seed: int) -> None:
    """A change there moves the logits, and only later activations."""
    noise = torch.Generator().manual_seed(seed)

    def disturb(x, hook):
        return x + torch.randn(x.shape, generator=noise, dtype=x.dtype).masked_fill(x.isinf(), 0)

    kept = {}

    def keep(x, hook):
        kept[hook.name] = x.clone()

    with MODEL.hooks([(name, disturb)]), MODEL.hooks([(NAMES, keep)], reads_only=True):
        logits = MODEL(TOKENS)
    _, clean = MODEL.run_with_cache(TOKENS, names=NAMES)
    assert (logits - MODEL(TOKENS)).abs().max() > 1e-6
    before = NAMES[: NAMES.index(name)]
    later_twin = {"hook_pos_embed"} if name == "hook_embed" else set()
    for other in before:
        if other not in later_twin:
            torch.testing.assert_close(kept[other], clean[other], atol=1e-12, rtol=0)


def test_an_in_place_edit_touches_neither_weights_nor_earlier_cached_values() -> None:
    weights = {name: p.clone() for name, p in MODEL.state_dict().items()}
    cache = {}

    def ruin(x, hook):
        x.zero_()

    with MODEL.hooks([("blocks.0.hook_resid_post", lambda x, hook: cache.update(x=x))], reads_only=True):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", ruin), ("hook_pos_embed", ruin)])
    assert cache["x"].abs().max() > 0
    assert all(torch.equal(p, weights[name]) for name, p in MODEL.state_dict().items())


def test_hooks_are_gone_after_an_exception_and_others_stay() -> None:
    seen = []
    with MODEL.hooks([("blocks.0.hook_resid_pre", lambda x, hook: seen.append(hook.name))]):
        with pytest.raises(RuntimeError, match="on purpose"), MODEL.hooks([("resid_post", _fail)]):
            MODEL(TOKENS)
        assert listeners(MODEL) == 1
        MODEL(TOKENS)
    assert listeners(MODEL) == 0
    assert seen == ["blocks.0.hook_resid_pre"] * 2


def _fail(x, hook):
    raise RuntimeError("on purpose")


def test_a_bad_name_in_the_middle_leaves_nothing_behind() -> None:
    with pytest.raises(HookNameError), MODEL.hooks([("resid_post", _fail), ("blocks.0.nonsense", _fail)]):
        pass
    assert listeners(MODEL) == 0


def test_hooks_are_reentrant() -> None:
    double = ("blocks.0.hook_mlp_out", lambda x, hook: 2 * x)
    kept = []
    with MODEL.hooks([double]), MODEL.hooks([double]):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: kept.append(x.clone()))])
    _, clean = MODEL.run_with_cache(TOKENS, names="mlp_out")
    torch.testing.assert_close(kept[0], 4 * clean["mlp_out", 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("blocks.1.hook_mlp_out", ["blocks.1.hook_mlp_out"]),
        ("blocks.*.hook_mlp_out", ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
        ("mlp_out", ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
        (("mlp_out", -1), ["blocks.1.hook_mlp_out"]),
        (("scale", 0, "ln2"), ["blocks.0.ln2.hook_scale"]),
        (["embed", ("pattern", 0)], ["hook_embed", "blocks.0.attn.hook_pattern"]),
        (lambda name: name.startswith("ln_final"), ["ln_final.hook_scale", "ln_final.hook_normalized"]),
    ],
)
def test_names(spec, expected) -> None:
    assert MODEL.match(spec) == expected


@pytest.mark.parametrize(
    "spec", ["blocks.0.hook_resid_pots", "pattern_", ("pattern", 7), "blocks.9.*", lambda name: False]
)
def test_unknown_names_are_errors_that_help(spec) -> None:
    with pytest.raises(HookNameError) as caught:
        MODEL.match(spec)
    assert 1 <= str(caught.value).count("\n") + 1 <= 3
    if spec == "blocks.0.hook_resid_pots":
        assert "blocks.0.hook_resid_post" in str(caught.value)


@pytest.mark.parametrize("bad", [lambda x, h: x[:1], lambda x, h: x.float(), lambda x, h: 3, lambda x, h: x.to("meta")])
def test_a_replacement_of_another_kind_is_refused(bad) -> None:
    with pytest.raises(InputError, match=r"blocks\.0\.hook_mlp_out"):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_mlp_out", bad)])


def test_gradients_and_backward_hooks() -> None:
    gradients = {}

    def keep(gradient, hook):
        gradients[hook.name] = gradient.clone()

    with MODEL.hooks(bwd_hooks=[(["blocks.1.hook_resid_pre", "blocks.1.attn.hook_pattern"], keep)]):
        MODEL(TOKENS)[0, -1, 7].backward()
    _, cache = MODEL.run_with_cache(TOKENS, names=["resid_pre"], detach=False)
    residual = cache["resid_pre", 1].detach().requires_grad_()
    MODEL.unembedded(MODEL.ln_final(MODEL.run_blocks(residual, MODEL.embed(TOKENS)[1], first=1)))[0, -1, 7].backward()
    torch.testing.assert_close(gradients["blocks.1.hook_resid_pre"], residual.grad, atol=1e-10, rtol=0)
    assert gradients["blocks.1.attn.hook_pattern"].abs().max() > 0
    MODEL.zero_grad()


def test_backward_hooks_can_replace_and_do_not_outlive_the_with() -> None:
    name = "blocks.0.hook_mlp_out"
    with MODEL.hooks(bwd_hooks=[(name, lambda gradient, hook: gradient * 0)]):
        MODEL(TOKENS)[0, -1, 7].backward()
        blocked = MODEL.blocks[0].mlp.b_out.grad.clone()
        MODEL.zero_grad()
        late = MODEL(TOKENS)[0, -1, 7]
    late.backward()
    assert blocked.abs().max() == 0
    assert MODEL.blocks[0].mlp.b_out.grad.abs().max() > 0
    MODEL.zero_grad()


def test_cache_options() -> None:
    _, whole = MODEL.run_with_cache(TOKENS)
    _, part = MODEL.run_with_cache(TOKENS, names=["resid_post", "pattern"], pos=-1, dtype=torch.float32, device="cpu")
    assert list(part) == [name for name in NAMES if name.endswith(("resid_post", "pattern"))]
    torch.testing.assert_close(part["resid_post", 0], whole["resid_post", 0][:, -1:].float())
    torch.testing.assert_close(part["pattern", 1], whole["pattern", 1][:, :, -1:].float())
    _, some = MODEL.run_with_cache(TOKENS, names="z", pos=[0, 3])
    torch.testing.assert_close(some["z", 1], whole["z", 1][:, [0, 3]])
    assert "blocks.0.attn.hook_result" not in whole
    assert not whole["z", 0].requires_grad
    torch.testing.assert_close(whole.stack("resid_post")[1], whole["resid_post", 1])


def test_cache_keys() -> None:
    _, cache = MODEL.run_with_cache(TOKENS)
    assert cache["pattern", 1] is cache["blocks.1.attn.hook_pattern"]
    assert ("pattern", 1) in cache
    assert "nonsense" not in cache
    with pytest.raises(HookNameError, match="means 2"):
        cache["resid_pre"]
    with pytest.raises(HookNameError, match="holds nothing"):
        cache["result", 0]
    assert isinstance(cache.to(dtype=torch.float32), ActivationCache)


def test_nothing_is_computed_because_it_might_be_looked_at(monkeypatch) -> None:
    fused = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or real(*a, **k)
    )
    MODEL(TOKENS)
    assert len(fused) == 2
    MODEL.run_with_cache(TOKENS, names=("pattern", 1))
    assert len(fused) == 3  # only the layer that is looked at leaves the fused kernel


def test_negative_layers_count_from_the_models_last_block() -> None:
    _, cache = MODEL.run_with_cache(TOKENS, names=[("pattern", 0)])
    with pytest.raises(HookNameError):
        cache["pattern", -1]
    assert ("pattern", -2) in cache


def test_stack_takes_blocks_only_and_refuses_two_of_a_block() -> None:
    _, cache = MODEL.run_with_cache(TOKENS)
    assert cache.stack("ln1.hook_scale").shape[0] == 2
    with pytest.raises(HookNameError, match="two for each block"):
        cache.stack("scale")


def test_keeping_q_alone_does_not_keep_k_and_v_alive() -> None:
    _, cache = MODEL.run_with_cache(TOKENS, names="q")
    held = sum(x.untyped_storage().nbytes() for x in cache.values())
    assert held == cache.nbytes == MODEL.cache_bytes(2, 9, "q")


def test_biases_of_heads() -> None:
    for name in ("b_Q", "b_K", "b_V"):
        assert torch.equal(getattr(MODEL.blocks[1].attn, name), getattr(MODEL, name)[1])
