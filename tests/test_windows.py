"""Locally banded attention: a layer with a window equals dense attention whose other keys are cut off by hand."""

import json

import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

EXACT = {"atol": 1e-12, "rtol": 0}


def dense_twin(model: HookedGPT) -> HookedGPT:
    twin = make_gpt(dtype=torch.float64, n_layers=model.config.n_layers)
    twin.load_state_dict(model.state_dict())
    return twin


def cut(windows: tuple[int | None, ...]) -> list:
    """Hooks that put -inf where a query may not look, written as two loops."""

    def far(x: Tensor, hook: HookPoint) -> Tensor:
        window = windows[hook.layer]
        for query in range(x.shape[2]):
            for key in range(x.shape[3]):
                if window is not None and query - key >= window:
                    x[:, :, query, key] = -torch.inf
        return x

    return [("attn_scores", far)]


@settings(max_examples=15, deadline=None)
@given(
    windows=st.tuples(*[st.none() | st.integers(1, 14)] * 3),
    length=st.integers(1, 12),
    padding=st.integers(0, 5),
    seen=st.booleans(),
)
def test_a_window_is_dense_attention_with_far_keys_cut_off(windows, length, padding, seen) -> None:
    model = make_gpt(dtype=torch.float64, n_layers=3, windows=windows)
    tokens = torch.randint(0, 300, (2, length))
    mask = torch.ones_like(tokens)
    mask[1, : min(padding, length - 1)] = 0
    expected = dense_twin(model).run_with_hooks(tokens, attention_mask=mask, fwd_hooks=cut(windows))
    got = model.run_with_cache(tokens, attention_mask=mask)[0] if seen else model(tokens, attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **EXACT)


def test_a_window_changes_what_a_dense_layer_computes() -> None:
    tokens = torch.randint(0, 300, (1, 12))
    model = make_gpt(dtype=torch.float64, windows=(None, 5))
    apart = (model(tokens) - dense_twin(model)(tokens)).abs().amax(-1)[0]
    assert (apart[:5] < 1e-12).all()  # the first five see all that came before
    assert (apart[5:] > 1e-6).all()


def test_keys_outside_the_window_change_nothing_and_those_inside_do() -> None:
    model = make_gpt(dtype=torch.float64, n_layers=1, windows=(3,))
    tokens = torch.randint(1, 300, (1, 10))
    other = tokens.clone()
    other[0, 4] = 0
    apart = (model(tokens) - model(other)).abs().amax(-1)[0]
    assert [bool(x > 1e-9) for x in apart] == [4 <= pos <= 6 for pos in range(10)]


@pytest.mark.parametrize("step", [1, 3])
def test_the_key_value_cache_gives_the_same_logits_with_padding_on_the_left(step) -> None:
    from interp.models.gpt import KVCache

    model = make_gpt(dtype=torch.float64, n_layers=3, windows=(4, None, 2))
    tokens = torch.randint(0, 300, (2, 12))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    for given_mask in (None, mask):
        past, parts = KVCache(), []
        for start in range(0, 12, step):
            piece = slice(start, start + step)
            part = None if given_mask is None else given_mask[:, piece]
            parts.append(model(tokens[:, piece], attention_mask=part, past=past))
        real = mask.bool() if given_mask is not None else torch.ones_like(tokens).bool()
        torch.testing.assert_close(torch.cat(parts, 1)[real], model(tokens, attention_mask=given_mask)[real], **EXACT)


def test_generation_is_the_same_with_and_without_a_cache() -> None:
    model = make_gpt(windows=(3, None))
    start = torch.randint(0, 300, (2, 6))
    options = {"max_new_tokens": 20, "temperature": 0.0}
    assert torch.equal(model.generate(start, **options), model.generate(start, use_cache=False, **options))


def test_patterns_are_banded_and_the_fused_kernel_is_used_when_nobody_looks(monkeypatch) -> None:
    model = make_gpt(windows=(4, None))
    tokens = torch.randint(0, 300, (1, 9))
    _, cache = model.run_with_cache(tokens)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    assert ((cache["pattern", 0][0] > 0) == ((distance >= 0) & (distance < 4))).all()
    assert ((cache["pattern", 1][0] > 0) == (distance >= 0)).all()
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    model(tokens)
    assert len(calls) == 2


def test_windows_are_saved_and_loaded(tmp_path) -> None:
    model = make_gpt(windows=[8, None])
    assert model.config.windows == (8, None)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["interp_windows"] == [8, None]
    loaded = HookedGPT.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == model.config
    tokens = torch.randint(0, 300, (1, 20))
    assert torch.equal(loaded(tokens), model(tokens))
    make_gpt().save_pretrained(tmp_path)
    assert "interp_windows" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("windows", [(4,), (4, 0), (4, 2.5), (True, None), "ab", 3])
def test_windows_that_do_not_fit_are_refused(windows) -> None:
    with pytest.raises(InputError, match="windows"):
        GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=8, d_vocab=10, windows=windows)


def test_all_dense_is_the_dense_model() -> None:
    assert make_gpt(windows=(None, None)).config == make_gpt().config
