"""Each intervention equals the plain tensor edit it stands for."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.interventions import (
    Add,
    Replace,
    ablate_head,
    ablate_mlp,
    ablate_neurons,
    axes,
    freeze,
    patch,
    project_out,
    steer,
)
from interp.sweep import slow_sweep, sweep

MODEL = make_gpt(dtype=torch.float64)
TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))
EXACT = {"atol": 1e-12, "rtol": 0}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([n for n in MODEL.hook_points if "scores" not in n]), st.data())
def test_replace_and_add_equal_loops(name, data) -> None:
    shape = MODEL.hook_shape(name, 2, 9)
    pos_axis, head_axis = axes(name)
    pos = data.draw(st.none() | st.integers(-9, 8) | st.lists(st.integers(0, 8), min_size=1, max_size=3))
    head = data.draw(st.none() | st.integers(0, 3)) if head_axis is not None else None
    unit = data.draw(st.none() | st.integers(0, shape[-1] - 1))
    x, value = torch.randn(shape), torch.randn(shape)
    expected, added = x.clone(), x.clone()
    for index in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        place = tuple(index)
        wanted_pos = [p % 9 for p in ([pos] if isinstance(pos, int) else pos or range(9))]
        if place[pos_axis] in wanted_pos and head in (None, place[head_axis or 0]) and unit in (None, place[-1]):
            expected[place] = value[place]
            added[place] += 2 * value[place]
        if sum(shape) > 200:
            break
    else:
        where = {"name": name, "head": head, "pos": pos, "unit": unit}
        torch.testing.assert_close(Replace(**where, value=value).edit(x), expected, **EXACT)
        torch.testing.assert_close(Add(**where, value=value, scale=2).edit(x), added)


def test_ablating_a_head_removes_its_result() -> None:
    _, clean = MODEL.run_with_cache(TOKENS, names=lambda name: True)
    with MODEL.hooks([ablate_head(1, 2)]):
        _, cache = MODEL.run_with_cache(TOKENS, names="attn_out")
    torch.testing.assert_close(cache["attn_out", 1], clean["attn_out", 1] - clean["result", 1][:, :, 2], **EXACT)


def test_ablating_neurons_and_mlp() -> None:
    _, clean = MODEL.run_with_cache(TOKENS)
    with MODEL.hooks([ablate_neurons(0, [5, 7], pos=3)]):
        _, cache = MODEL.run_with_cache(TOKENS, names="mlp_out")
    gone = clean["post", 0][:, 3, [5, 7]] @ MODEL.W_out[0][[5, 7]]
    torch.testing.assert_close(cache["mlp_out", 0][:, 3], clean["mlp_out", 0][:, 3] - gone, **EXACT)
    torch.testing.assert_close(cache["mlp_out", 0][:, 4], clean["mlp_out", 0][:, 4], **EXACT)
    with MODEL.hooks([ablate_mlp(1)]):
        _, cache = MODEL.run_with_cache(TOKENS, names="resid_post")
    torch.testing.assert_close(cache["resid_post", 1], clean["resid_mid", 1], **EXACT)


def test_patching_and_freezing_everything_reproduce_the_other_run() -> None:
    other_logits, other = MODEL.run_with_cache(OTHER)
    patched = MODEL.run_with_hooks(TOKENS, fwd_hooks=[patch("blocks.1.hook_resid_pre", other)])
    torch.testing.assert_close(patched, other_logits, **EXACT)
    frozen = freeze(["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"], other)
    with MODEL.hooks(frozen):
        _, cache = MODEL.run_with_cache(TOKENS, names="resid_post")
    expected = cache["resid_post", 0] + other["attn_out", 1] + other["mlp_out", 1]
    torch.testing.assert_close(cache["resid_post", 1], expected, **EXACT)


def test_steering_adds_the_vector_at_the_position() -> None:
    vector = torch.randn(32, dtype=torch.float64)
    _, clean = MODEL.run_with_cache(TOKENS, names="resid_pre")
    with MODEL.hooks([steer(1, vector, 3.0, pos=-1)]):
        _, cache = MODEL.run_with_cache(TOKENS, names="resid_pre")
    torch.testing.assert_close(cache["resid_pre", 1][:, -1], clean["resid_pre", 1][:, -1] + 3 * vector, **EXACT)
    torch.testing.assert_close(cache["resid_pre", 1][:, :-1], clean["resid_pre", 1][:, :-1], **EXACT)


@pytest.mark.parametrize(
    "edit", [ablate_head(0, 9), ablate_mlp(0, pos=20), Replace(name="blocks.0.hook_mlp_out", head=1)]
)
def test_places_that_are_not_there(edit) -> None:
    with pytest.raises(InputError):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[edit])


LONG, SHORT, ONE = torch.arange(20)[None] % 7, torch.arange(5)[None] % 7, torch.zeros(1, 1, dtype=torch.long)


@pytest.mark.parametrize("run", [sweep, slow_sweep])
@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize(
    ("source", "kept", "target"),
    [(LONG, None, SHORT), (SHORT, None, LONG), (ONE, None, SHORT), (LONG, -1, LONG), (LONG, [3, 5], LONG)],
)
def test_a_patch_from_a_run_of_another_length_is_refused(run, name, source, kept, target) -> None:
    """Longer, shorter, of one token, or kept at some positions alone: it would land elsewhere than it came from."""
    model = make_gpt()
    _, cache = model.run_with_cache(source, names=name, pos=kept)
    for wrong in (patch(name, cache), patch(name, cache, pos=[3, 4])):
        with pytest.raises(InputError, match="expected a value for each position"):
            run(model, target, [wrong], lambda logits: {"x": logits[..., 0]})
    _, whole = model.run_with_cache(target, names=name)
    right = run(model, target, [patch(name, whole)], lambda logits: {"x": logits[..., 0]})["x"][0]
    torch.testing.assert_close(right, model(target)[..., 0])


def test_a_patched_prompt_goes_on_in_generation() -> None:
    """A source as short as the prompt, one token even, changes the prompt and nothing after it."""
    model = make_gpt()
    for prompt, other in ((SHORT, SHORT.flip(1)), (ONE, ONE + 3)):
        _, cache = model.run_with_cache(other, names="blocks.1.hook_resid_pre")
        with model.hooks([patch("blocks.1.hook_resid_pre", cache)]):
            found = [model.generate(prompt, max_new_tokens=6, temperature=0, use_cache=use) for use in (True, False)]

        def by_hand(x, hook, cache=cache):
            at = cache[hook.name].shape[1]
            x[:, :at] = cache[hook.name]

        ids = prompt
        for _ in range(6):
            logits = model.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_resid_pre", by_hand)])
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(found[0], ids)
        assert torch.equal(found[1], ids)


@pytest.mark.parametrize("wrong", [torch.zeros(7), torch.zeros(2, 5, 32), torch.zeros(1, 1, 5, 32), torch.zeros(3, 32)])
def test_a_value_that_does_not_fit_is_named(wrong) -> None:
    model = make_gpt()
    for edit in (
        Replace(name="blocks.0.hook_attn_out", value=wrong), Add(name="blocks.0.hook_attn_out", value=wrong),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"value of shape .* at blocks.0.hook_attn_out"):
            model.run_with_hooks(SHORT, fwd_hooks=[edit])
        with pytest.raises(InputError, match=r"value of shape .* at blocks.0.hook_attn_out"):
            sweep(model, SHORT, [edit], lambda logits: {"x": logits[..., 0]})


@pytest.mark.parametrize(
    "index", [[0, 2], (0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2]), [np.int64(0), torch.tensor(2)]]
)
@pytest.mark.parametrize("axis", ["head", "pos", "unit"])
def test_places_may_be_arrays_and_tensors(index, axis) -> None:
    """In hooks and in sweeps alike; one place too."""
    model = make_gpt(n_layers=2)
    tokens = torch.arange(6)[None]
    name = "blocks.0.attn.hook_z" if axis == "head" else "blocks.0.hook_mlp_out"
    variants = [Replace(name=name, **{axis: some}) for some in (index, [0, 2], index[1], 2)]
    for run in (sweep, slow_sweep):
        found = run(model, tokens, variants, lambda logits: {"logits": logits})["logits"]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[2], found[3])
        assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize(
    "index", [True, [True, False], np.array([True, False]), torch.tensor([True, False]), 1.0, [0.5], "0", b"0"]
)
@pytest.mark.parametrize("axis", ["head", "pos", "unit"])
def test_what_is_no_place_is_refused(index, axis) -> None:
    """Booleans, which would be read as places 0 and 1, first of all."""
    with pytest.raises(InputError, match=f"{axis} at blocks.0.attn.hook_z"):
        Replace(name="blocks.0.attn.hook_z", **{axis: index})


def test_what_depends_on_the_rest_is_not_projected_out_twice() -> None:
    """Directions of rank 2 given as three, and a zero: the span of two is gone, all else stays; by least squares."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    more = torch.cat([directions, directions.sum(0, keepdim=True), torch.zeros(1, 16, dtype=torch.float64)])
    x = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64)
    span = directions.T @ torch.linalg.pinv(directions.T)
    for some in (directions, more):
        found = project_out("blocks.0.hook_resid_pre", some).edit(x)
        torch.testing.assert_close(found, x - x @ span, atol=1e-12, rtol=0)
    nothing = project_out("blocks.0.hook_resid_pre", torch.zeros(1, 16)).edit(x)
    assert torch.equal(nothing, x)
    with pytest.raises(InputError, match="no numbers"):
        project_out("blocks.0.hook_resid_pre", torch.full((1, 16), torch.nan))
