"""Query heads that share keys and values: every analysis equals itself on the same model with its keys written out.

A model whose heads share keys and values computes what one does that has a copy of them for every head, next to one
another; copies in another order (tiled) make another model, which is the control.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import SHAPES, toy

from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.attention_patterns import attention_patterns
from analyses.attribution_patching import attribution_patching
from analyses.direct_logit_attribution import direct_logit_attribution
from analyses.logit_lens import logit_lens
from analyses.path_patching import path_patching
from interp.models.gpt import HookedGPT

SHARED = [shape for shape, config in SHAPES.items() if "n_kv_heads" in config]
CLEAN = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(3))
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2], CORRUPTED[1, 1] = 7, 8
ANSWERS = {"answer": [11, 12], "wrong": [21, 22]}
TIGHT = {"rtol": 0, "atol": 1e-10}


def shared(shape: str) -> HookedGPT:
    return toy(shape, dtype=torch.float64)


def written_out(model: HookedGPT, *, tiled: bool = False) -> HookedGPT:
    """The same function with keys and values for every head; `tiled`: in the order that a wrong guess gives them."""
    config = model.config
    group, d_head = config.n_heads // config.n_kv_heads, config.d_head
    whole = HookedGPT(replace(config, n_kv_heads=config.n_heads)).to(torch.float64)
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith(("W_K_flat", "W_V_flat", "b_K_flat", "b_V_flat")) or (
            config.qk_norm == "flat" and "k_norm" in name
        ):
            heads = value.unflatten(-1, (config.n_kv_heads, d_head))
            many = heads.repeat(*[1] * (heads.ndim - 2), group, 1) if tiled else heads.repeat_interleave(group, -2)
            value = many.flatten(-2)
        state[name] = value
    whole.load_state_dict(state)
    return whole


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.nanmax(np.abs(one - other)))


@pytest.mark.parametrize("shape", SHARED)
def test_the_model_is_the_same_function(shape):
    model = shared(shape)
    with torch.no_grad():
        torch.testing.assert_close(written_out(model)(CLEAN), model(CLEAN), **TIGHT)
        same = model.config.n_kv_heads == 1  # one key-value head has no order
        assert torch.allclose(written_out(model, tiled=True)(CLEAN), model(CLEAN), atol=1e-4) == same


@pytest.mark.parametrize("shape", SHARED)
def test_a_query_head_is_ablated_alone(shape):
    """Its values of the loss, and its direct part; also equal to rows of the output projection set to zero."""
    model = shared(shape)
    options = {"components": "heads", "metrics": ("loss", "logit_diff"), **ANSWERS}
    found = ablation(model, CLEAN, **options)
    expected = ablation(written_out(model), CLEAN, **options)
    np.testing.assert_allclose(found.values, expected.values, **TIGHT)
    np.testing.assert_allclose(found.direct, expected.direct, **TIGHT)
    if model.config.n_kv_heads > 1:
        assert apart(found.values, ablation(written_out(model, tiled=True), CLEAN, **options).values) > 1e-3
    for i, part in enumerate(found.components):
        weight = model.blocks[part.layer].attn.W_O_flat
        rows = slice(part.index * model.config.d_head, (part.index + 1) * model.config.d_head)
        with torch.no_grad():
            kept = weight[rows].clone()
            weight[rows] = 0
            log_p = model(CLEAN)[:, :-1].log_softmax(-1)
            weight[rows] = kept
        loss = -log_p.gather(-1, CLEAN[:, 1:, None])[..., 0].mean(-1)
        np.testing.assert_allclose(found.values[:, i, 0, 0], loss, **TIGHT)


@pytest.mark.parametrize("shape", SHARED)
def test_keys_and_values_are_patched_for_all_heads_that_read_them(shape):
    model, whole = shared(shape), written_out(shared(shape))
    group = model.config.n_heads // model.config.n_kv_heads
    options = {"direction": "noise", **ANSWERS}
    found = activation_patching(model, CLEAN, CORRUPTED, site="q,z,pattern", **options)
    expected = activation_patching(whole, CLEAN, CORRUPTED, site="q,z,pattern", **options)
    for one, other in zip(found.patched, expected.patched, strict=True):
        np.testing.assert_allclose(np.stack(one.values), np.stack(other.values), **TIGHT)
    by_head = activation_patching(model, CLEAN, CORRUPTED, site="v", **options)
    values = np.stack(by_head.patched[0].values)
    assert values.shape == (2, 2, model.config.n_kv_heads)
    name = "blocks.1.attn.hook_v"
    with torch.no_grad():
        source = whole.run_with_cache(CORRUPTED, names=name)[1][name]
        for kv_head in range(model.config.n_kv_heads):
            heads = range(kv_head * group, (kv_head + 1) * group)

            def put(x, hook, heads=tuple(heads)):
                x[:, :, heads] = source[:, :, heads]
                return x

            last = whole.run_with_hooks(CLEAN, fwd_hooks=[(name, put)])[:, -1]
            expected = [float(row[11 + i] - row[21 + i]) for i, row in enumerate(last)]
            np.testing.assert_allclose(values[:, 1, kv_head], expected, **TIGHT)


@pytest.mark.parametrize("shape", SHARED)
def test_a_path_into_shared_keys_is_all_paths_into_their_copies(shape):
    model, whole = shared(shape), written_out(shared(shape))
    group, last = model.config.n_heads // model.config.n_kv_heads, model.config.n_kv_heads - 1
    heads = range(last * group, (last + 1) * group)
    options = {"senders": "embed,heads,mlps", **ANSWERS}
    for letter in "kv":
        found = path_patching(model, CLEAN, CORRUPTED, receivers=f"L1KV{last}.{letter}", **options)
        copies = "+".join(f"L1H{head}.{letter}" for head in heads)
        expected = path_patching(whole, CLEAN, CORRUPTED, receivers=copies, **options)
        np.testing.assert_allclose(found.values, expected.values, **TIGHT)
        assert np.nanmax(np.abs(found.effects)) > 1e-3
    if last:
        other = path_patching(whole, CLEAN, CORRUPTED, receivers="L1H1.k+L1H3.k", **options)
        found = path_patching(model, CLEAN, CORRUPTED, receivers=f"L1KV{last}.k", **options)
        assert apart(found.values, other.values) > 1e-6


@pytest.mark.parametrize("shape", SHARED)
def test_an_edge_to_shared_keys_is_the_sum_of_those_to_their_copies(shape):
    model = shared(shape)
    few = {"methods": ("eap-ig",), "steps": 3, "sample": 3, "top": 1, **ANSWERS}
    found = attribution_patching(model, CLEAN, CORRUPTED, **few)
    whole = attribution_patching(written_out(model), CLEAN, CORRUPTED, **few)
    np.testing.assert_allclose(found.node_scores, whole.node_scores, **TIGHT)
    ends = [one.label for one in whole.receivers]
    group = model.config.n_heads // model.config.n_kv_heads
    for r, receiver in enumerate(found.receivers):
        name, _, letter = receiver.label.partition(".")
        copies = [name] if "KV" not in name else []
        first = receiver.head * group if receiver.head is not None else 0
        copies = copies or [f"L{receiver.layer}H{first + i}" for i in range(group)]
        of_copies = [ends.index(f"{copy}.{letter}" if letter else copy) for copy in copies]
        expected = whole.edge_scores[..., of_copies].sum(-1)
        np.testing.assert_allclose(found.edge_scores[..., r], expected, **TIGHT)
    assert any("KV" in one.label for one in found.receivers)


@pytest.mark.parametrize("shape", SHARED)
def test_what_heads_write_and_where_they_look_is_theirs(shape):
    model, whole = shared(shape), written_out(shared(shape))
    tiled = written_out(model, tiled=True)
    one, other, wrong = (direct_logit_attribution(each, CLEAN, **ANSWERS) for each in (model, whole, tiled))
    np.testing.assert_allclose(one.contributions, other.contributions, **TIGHT)
    np.testing.assert_allclose(np.stack(one.by_source), np.stack(other.by_source), **TIGHT)
    one, other = (attention_patterns(each, CLEAN) for each in (model, whole))
    for name in ("patterns", "value_norms", "rollout"):
        np.testing.assert_allclose(np.stack(getattr(one, name)), np.stack(getattr(other, name)), rtol=0, atol=1e-5)
    one, other = (logit_lens(each, CLEAN) for each in (model, whole))
    np.testing.assert_allclose(np.stack(one.kl), np.stack(other.kl), **TIGHT)
    if model.config.n_kv_heads > 1:
        found = direct_logit_attribution(model, CLEAN, **ANSWERS)
        assert apart(found.contributions, wrong.contributions) > 1e-3
