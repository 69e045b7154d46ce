"""Identities hold for every shape and dtype; each planted fault breaks the one that is about it, and says where."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shapes import SHAPES, tokens_for, toy

from interp.models import parts
from interp.models.gpt import HookedGPT
from interp.models.identities import apart, identities

THEIRS = "logits = transformers, eager"


def broken(model: HookedGPT) -> set[str]:
    return {one.name for one in identities(model, tokens_for(model)) if not one.holds}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape(shape: str, dtype: torch.dtype) -> None:
    model = toy(shape, dtype=dtype)
    found = identities(model, tokens_for(model))
    assert not [one for one in found if not one.holds]
    assert len(found) == 7 + (not (model.config.parallel or model.config.attn_only))


def test_against_transformers(tmp_path: Path) -> None:
    toy("gpt2").save_pretrained(tmp_path)
    model = HookedGPT.from_pretrained(tmp_path, device="cpu")
    assert THEIRS in {one.name for one in identities(model, tokens_for(model)) if one.holds}
    with torch.no_grad():
        model.blocks[0].mlp.W_in[3, 3] += 1.0
    assert broken(model) == {THEIRS}  # all else still hangs together
    toy("gemma2").save_pretrained(tmp_path / "own")  # a layout that only we read
    assert len(identities(HookedGPT.from_pretrained(tmp_path / "own", device="cpu"), tokens_for(model))) == 8


def test_key_value_heads_that_are_tiled_instead_of_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual mistake: query head h reads kv head h mod n_kv_heads."""

    def tiled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y.repeat(1, x.shape[1] // y.shape[1], 1, 1)

    monkeypatch.setattr(parts, "_by_group", tiled)
    assert broken(toy("llama")) == {"query x key[kv_head] = scores", "pattern x value[kv_head] = z"}
    assert broken(toy("gpt2")) == set()  # one kv head a query head: nothing to mistake


def weight_between(model: HookedGPT) -> None:
    attn = model.blocks[1].attn
    usual = attn.write
    attn.write = lambda z, *rest: usual(1.01 * z, *rest)  # type: ignore[method-assign]


def another_is_added(model: HookedGPT) -> None:
    block = model.blocks[1]
    usual = block.attn_out
    block.attn_out = lambda *args: 1.01 * usual(*args)  # type: ignore[method-assign]


def no_cap(model: HookedGPT) -> None:
    usual = model.unembedded
    model.unembedded = lambda x: 4.0 * torch.atanh(usual(x) / 4.0)  # type: ignore[method-assign]


def centred(model: HookedGPT) -> None:
    usual = model.ln_final.forward
    model.ln_final.forward = lambda x: usual(x - x.mean(-1, keepdim=True))  # type: ignore[method-assign]


LAST = "final norm and unembedding = logits"


@pytest.mark.parametrize(
    ("shape", "plant", "expected"),
    [
        ("llama", weight_between, {"z W_O = attn_out", "sum of all parts = last stream"}),
        ("gemma3", another_is_added, {"resid_pre + attn_out = resid_mid", "sum of all parts = last stream"}),
        ("neox", another_is_added, {"resid_pre + attn_out + mlp_out = resid_post", "sum of all parts = last stream"}),
        ("attention only", another_is_added, {"resid_pre + attn_out = resid_post", "sum of all parts = last stream"}),
        ("gemma2", no_cap, {LAST}),
        ("llama", centred, {LAST}),
    ],
)
def test_planted_faults(shape: str, plant: Callable[[HookedGPT], None], expected: set[str]) -> None:
    model = toy(shape)
    plant(model)
    assert broken(model) == expected


def test_apart() -> None:
    x = torch.tensor([[1000.0, 1], [1, 2]])
    assert apart(x + torch.tensor([[0, 0], [0, 0.1]]), x) == pytest.approx(0.05)  # a huge row hides no other
    assert apart(torch.tensor([torch.nan, 1.0]), torch.ones(2)) == float("inf")
