"""Pages about random weights have nothing to tell; the same page about trained ones has."""

import pytest
from conftest import TEXT, make_gpt

import interp
from analyses.shared.findings import cards
from interp.text.tokenizer import Tokenizer
from reports.running.report import report

SHAPES = {
    "2 layers": {"n_layers": 2, "n_heads": 2, "d_model": 32},
    "4 layers": {"n_layers": 4, "n_heads": 4, "d_model": 64},
    "llama": {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_model": 48, "norm": "rms", "gated": True,
              "positions": "rotary"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_a_page_about_random_weights_tells_at_most_three_things(
    shape: str, seed: int, toy_tokenizer: Tokenizer
) -> None:
    model = make_gpt(seed=seed, tokenizer=toy_tokenizer, init_std=0.02, **SHAPES[shape])
    shown = cards((f, one.name) for one in report(model, TEXT, seed=seed).sections for f in one.result.findings())
    print(shape, seed, *(card.text for card in shown), sep="\n  ")
    assert len(shown) <= 3
    assert all(f.kind != "effect" for card in shown for f in (card.first, *(other for other, _ in card.others)))
    assert "looks untrained" in shown[0].text


def test_a_page_about_a_trained_model_opens_with_five_different_facts() -> None:
    made = report(
        interp.load("tiny"), TEXT, analyses=["surprise", "head_roles", "ablation", "logit_lens", "composition"]
    )
    first = cards((f, one.name) for one in made.sections for f in one.result.findings())[:5]
    assert len({card.first.about or card.text for card in first}) == 5
    assert all(card.first.kind == "effect" and card.first.null for card in first[:3])
