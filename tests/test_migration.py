"""The migration page: every line of its right column runs; names that TransformerLens has are answered with ours."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_gpt
from shapes import tokens_for, toy

import interp
from interp import FactoredMatrix, HookedGPT
from interp.errors import InputError
from interp.migration import ATTRIBUTES, CACHE, KEYWORDS, UnknownName
from interp.residual import accumulated, decompose, logit_attrs

PAGE = Path(__file__).parent.parent / "docs" / "from_transformer_lens.md"


def rows() -> list[str]:
    lines = [line.split(" | ", 1)[1] for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
    return [re.fullmatch(r"`(.*)` \|", line)[1] for line in lines]


def test_every_row_of_the_page_runs() -> None:
    start = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    config = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_head": 8, "d_mlp": 64, "n_ctx": 8, "d_vocab": 11,
              "act_fn": "gelu", "normalization_type": "LN", "attention_dir": "causal"}  # fmt: skip
    small = make_gpt(n_layers=1, n_heads=2, d_model=16, n_ctx=8, d_vocab=11, tied=False, unembed_bias=True)
    names: dict = {"lens_cfg": config, "lens_state": classic(small)}
    exec(start, names)
    found = rows()
    assert len(found) >= 60
    for row in found:
        try:
            exec(row, names)
        except Exception as error:
            raise AssertionError(f"{row}: {error}") from error


def classic(model: HookedGPT) -> dict[str, torch.Tensor]:
    c, state = model.config, {}
    outside = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "unembed": "unembed.W_U", "b_U": "unembed.b_U"}
    for name, x in model.state_dict().items():
        if name.endswith("_flat"):
            heads = x.unflatten(0 if "O_flat" in name or "b_" in name else 1, (-1, c.d_head))
            x = heads.permute(1, 0, 2) if re.search("W_[QKV]", name) else heads
        state[outside.get(name, name.removesuffix("_flat"))] = x.T if name == "unembed" else x
    return state


def test_names_known_elsewhere_are_answered_with_ours() -> None:
    model = toy("gpt2")
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens)
    for name, said in ATTRIBUTES.items():
        with pytest.raises(UnknownName, match=re.escape(said)):
            getattr(model, name)
        assert not hasattr(model, name)
    for name, said in CACHE.items():
        with pytest.raises(UnknownName, match=re.escape(said)):
            getattr(cache, name)
    for name, said in KEYWORDS.items():
        for call in (
            model,
            model.run_with_cache,
            model.generate,
            lambda **given: HookedGPT.from_pretrained("tiny", **given),
        ):
            if name == "fwd_hooks" or (call is model.run_with_cache and name == "input"):
                continue
            with pytest.raises(TypeError) as caught:
                call(*([] if "lambda" in getattr(call, "__name__", "") else [tokens]), **{name: 1})
            assert isinstance(caught.value, UnknownName), name
            assert said in str(caught.value)
    with pytest.raises(UnknownName, match="no keyword 'colour'"):
        model(tokens, colour=1)
    with pytest.raises(AttributeError):
        model.colour  # noqa: B018
    with pytest.raises(AttributeError):
        cache.colour  # noqa: B018


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma3", "neox", "attention only"])
def test_streams_with_labels(shape) -> None:
    """The stream as it grows is the cache's; parts add up; logit shares add up to the difference before a soft-cap."""
    model = toy(shape)
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens)
    streams, labels = accumulated(model, cache, mid=True)
    assert len(labels) == len(streams)
    assert (labels[0], labels[-1]) == ("0 pre", "final post")
    assert torch.equal(streams[labels.index("1 pre")], cache["resid_pre", 1])
    assert torch.equal(streams[-1], cache["resid_post", -1])
    assert ("0 mid" in labels) == ("blocks.0.hook_resid_mid" in model.hook_points)
    assert torch.equal(
        accumulated(model, cache, 1, pos=-1)[0], torch.stack([cache["resid_pre", i][:, -1:] for i in (0, 1)])
    )
    for pos in (None, -1, slice(2, 5)):
        parts, _ = decompose(model, cache, pos=pos)
        whole = cache["resid_post", -1]
        chosen = whole if pos is None else whole[:, [-1]] if pos == -1 else whole[:, pos]
        torch.testing.assert_close(parts.sum(0), chosen, atol=1e-5, rtol=1e-5)
        shares = logit_attrs(model, cache, parts, torch.tensor([3, 4]), 7, pos=pos).sum(0)
        final = model.ln_final(chosen) - (0 if model.ln_final.b is None else model.ln_final.b)
        expected = model.unembedded(final, capped=False) - (0 if model.b_U is None else model.b_U)
        expected = expected[torch.arange(2), :, [3, 4]] - expected[..., 7]
        torch.testing.assert_close(shares, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError):
        accumulated(model, cache, 9)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma3", "neox", "gptj", "olmo2", "no norm"])
def test_what_one_head_reads(shape) -> None:
    """Half of what the queries of one head read: as scaling its own copy by hand; a copy left alone changes nothing."""
    model = toy(shape)
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens, names=lambda name: True)
    for site in ("q", "k", "v"):
        point = f"blocks.1.hook_{site}_input"
        assert tuple(cache[point].shape) == model.hook_shape(point, *tokens.shape)

        def halve(x, hook):
            x[:, :, 0] *= 0.5

        with model.hooks([(point, halve)]):
            _, changed = model.run_with_cache(tokens, names=lambda name: True)
        attn, ln1 = model.blocks[1].attn, model.blocks[1].ln1
        weight, bias = getattr(attn, f"W_{site.upper()}"), getattr(attn, f"b_{site.upper()}")
        own = ln1(cache["resid_pre", 1] * 0.5) @ weight[0] + bias[0]
        torch.testing.assert_close(changed[site, 1][:, :, 0], own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(changed[site, 1][:, :, 1:], cache[site, 1][:, :, 1:], atol=1e-5, rtol=1e-5)
        for other in {"q", "k", "v"} - {site}:
            torch.testing.assert_close(changed[other, 1], cache[other, 1], atol=1e-5, rtol=1e-5)
    same = model.run_with_hooks(tokens, fwd_hooks=[(("blocks.*.hook_*_input", "mlp_in"), lambda x, hook: x * 1.0)])
    torch.testing.assert_close(same, model(tokens), atol=1e-4, rtol=1e-4)
    mlp = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_in", lambda x, hook: x * 0)])
    assert (mlp - model(tokens)).abs().max() > 1e-3
    if model.config.norm is not None and model.config.norm_place != "post":
        both = [("blocks.1.hook_q_input", halve), ("blocks.1.ln1.hook_scale", lambda x, hook: x * 2)]
        with pytest.raises(InputError, match="expected one of them"):
            model.run_with_hooks(tokens, fwd_hooks=both)


@torch.no_grad()
def test_a_factored_matrix_is_its_product() -> None:
    A, B = torch.randn(3, 7, 4, dtype=torch.float64), torch.randn(3, 4, 7, dtype=torch.float64)
    product, whole = FactoredMatrix(A, B), A @ B
    assert product.shape == whole.shape
    close = torch.testing.assert_close
    close(product.AB, whole)
    close(product.T.AB, whole.mT)
    close(product[1].AB, whole[1])
    close((product @ product).AB, whole @ whole)
    close((torch.ones(2, 7, dtype=torch.float64) @ product).AB, torch.ones(2, 7, dtype=torch.float64) @ whole)
    U, values, Vh = product.svd()
    close(values, torch.linalg.svdvals(whole)[..., :4])
    close(U @ torch.diag_embed(values) @ Vh, whole)
    close(product.norm(), torch.linalg.matrix_norm(whole))
    close(product.trace, whole.diagonal(dim1=-2, dim2=-1).sum(-1))
    ours, theirs = product.eigenvalues[0].abs().sort().values, torch.linalg.eigvals(whole[0]).abs().sort().values[-4:]
    close(ours, theirs)
    with pytest.raises(InputError):
        FactoredMatrix(A, A)
    with pytest.raises(InputError):
        FactoredMatrix(A[:, :5], B).eigenvalues  # noqa: B018
    assert "rank at most 4" in repr(product)


@torch.no_grad()
def test_texts_go_straight_in_and_padding_is_not_read() -> None:
    model = HookedGPT.from_pretrained("tiny", device="cpu")
    texts = ["The dog", "The cat sat on the mat and slept"]
    logits = model(texts)
    for row, text in zip(logits, texts, strict=True):
        alone = model(text)[0]
        torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-4, rtol=1e-4)
    found = model.generate(texts, max_new_tokens=4, temperature=0)
    for row, text in zip(found, texts, strict=True):
        assert row[-4:].tolist() == model.generate(text, max_new_tokens=4, temperature=0)[0, -4:].tolist()
    losses = model.loss(texts, per_token=True)
    for row, text in zip(losses, texts, strict=True):
        ids = model.to_tokens(text)
        expected = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
        torch.testing.assert_close(row[-len(expected) :], expected, atol=1e-4, rtol=1e-4)
        assert row[: -len(expected)].isnan().all()
    torch.testing.assert_close(model.loss(texts), losses[~losses.isnan()].mean())
    assert (model.loss(model.to_batch(texts).tokens) - model.loss(texts)).abs() > 1e-3  # the control: padding read
    for wrong in (42, [], [1, 2], None, [["a"]]):
        with pytest.raises(InputError) as caught:
            model(wrong)
        assert len(str(caught.value).splitlines()) <= 3
    for bad in (
        lambda: model.loss(tokens_for(toy("bidirectional"))[:1, :1]),
        lambda: toy("bidirectional").loss(torch.ones(1, 3).long()),
    ):
        with pytest.raises(InputError):
            bad()


def test_the_loss_trains() -> None:
    model = toy("llama")
    tokens = tokens_for(model)
    expected = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.loss(tokens), expected)
    model.loss(tokens).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_stop_at_layer() -> None:
    model = toy("gpt2")
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens)
    for layer in (0, 1, -1):
        torch.testing.assert_close(model(tokens, stop_at_layer=layer), cache["resid_pre", layer])
    torch.testing.assert_close(model(tokens, stop_at_layer=2), cache["resid_post", 1])
    _, part = model.run_with_cache(tokens, stop_at_layer=1)
    assert not any(name.startswith("blocks.1") for name in part)
    with pytest.raises(InputError):
        model(tokens, stop_at_layer=3)


def test_names_of_the_package() -> None:
    assert set(interp.__all__) <= set(dir(interp))
    assert all(getattr(interp, name) is not None for name in interp.__all__)
