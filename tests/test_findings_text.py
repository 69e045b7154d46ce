"""Findings of what a text shows: untrained weights have none, a trained model's are measured again by hand."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.attribution_patching import attribution_patching
from analyses.direct_logit_attribution import direct_logit_attribution
from analyses.head_roles import head_roles
from analyses.logit_lens import logit_lens
from analyses.neurons import neurons
from analyses.next_token import next_token
from analyses.path_patching import path_patching
from analyses.shared.claims import largest_p_value, signed
from analyses.shared.panels import Finding
from analyses.shared.statistics import bootstrap, sign_flip_p_value
from interp.interventions import ablate_head
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

SHAPES: dict[str, dict[str, Any]] = {
    "2x2x32": {"n_layers": 2, "n_heads": 2, "d_model": 32},
    "4x4x64": {"n_layers": 4, "n_heads": 4, "d_model": 64},
    "attention only": {"n_layers": 2, "n_heads": 4, "d_model": 32, "attn_only": True},
    "llama": {
        "n_layers": 2, "n_heads": 4, "d_model": 32, "n_kv_heads": 2, "norm": "rms", "gated": True, "act_fn": "silu",
        "bias": False, "positions": "rotary", "tied": False,
    },
}  # fmt: skip
TEXT = (
    "Sir Harold Whitcombe was born in Leeds. In 1874 Harold Whitcombe was elected to Parliament. In 1880 Harold "
    "Whitcombe was born in Leeds. Harold"
)
ANALYSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "activation_patching": (activation_patching, {}),
    "path_patching": (path_patching, {}),
    "attribution_patching": (attribution_patching, {"sample": 5, "top": 3}),
    "ablation": (ablation, {"metrics": ("loss", "logit", "kl")}),
    "direct_logit_attribution": (direct_logit_attribution, {}),
    "logit_lens": (logit_lens, {}),
    "next_token": (next_token, {"steps": 0}),
    "neurons": (neurons, {}),
}


def found(model: HookedGPT, tokens: Any) -> list[tuple[str, Finding]]:
    """What all these analyses say of a text."""
    names = [name for name in ANALYSES if name != "neurons" or not model.config.attn_only]
    return [(name, one) for name in names for one in ANALYSES[name][0](model, tokens, **ANALYSES[name][1]).findings()]


def untrained(shape: str, seed: int) -> list[tuple[str, Finding]]:
    torch.manual_seed(seed)
    model = HookedGPT(GPTConfig(n_ctx=64, d_vocab=500, **SHAPES[shape]))
    tokens = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(seed))
    tokens[0, 20:] = tokens[0, :20]  # a repetition, which a trained model would see
    return found(model, tokens)


def noise(seeds: range) -> int:
    """Effects told of all shapes and seeds together; each model has at most two findings, and says why there are no
    more."""
    effects = 0
    for shape in SHAPES:
        for seed in seeds:
            told = untrained(shape, seed)
            assert len(told) <= 2, told
            assert "negative" in {one.kind for _, one in told}
            assert all(one.p is not None for _, one in told if one.kind == "effect")
            effects += sum(one.kind == "effect" for _, one in told)
    print(f"{effects} effects of {len(SHAPES) * len(seeds)} untrained models")
    return effects


def test_untrained_weights_have_no_effects() -> None:
    assert noise(range(2)) <= 1


@pytest.mark.slow
def test_more_untrained_weights_have_no_effects() -> None:
    assert noise(range(2, 7)) <= 1


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return HookedGPT.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def told(tiny: HookedGPT) -> list[tuple[str, Finding]]:
    return found(tiny, TEXT)


def of(told: list[tuple[str, Finding]], name: str, kind: str = "effect") -> list[Finding]:
    return [one for analysis, one in told if analysis == name and one.kind == kind]


def test_a_trained_model_has_effects_and_they_are_measured_again(
    tiny: HookedGPT, told: list[tuple[str, Finding]]
) -> None:
    (first, *_) = of(told, "ablation")
    layer, head = map(int, re.fullmatch(r"L(\d+)H(\d+)", first.about).groups())  # type: ignore[union-attr]
    with torch.no_grad():
        with tiny.hooks([ablate_head(layer, head)]):
            without = float(tiny.loss(TEXT))
        assert first.value == pytest.approx(without - float(tiny.loss(TEXT)), abs=1e-4)
    for name in ("activation_patching", "path_patching", "direct_logit_attribution", "logit_lens"):
        assert of(told, name), name
    assert all(one.null for _, one in told if one.kind == "effect")


def test_the_total_effect_and_the_direct_part_are_measured_again(
    tiny: HookedGPT, told: list[tuple[str, Finding]]
) -> None:
    result = activation_patching(tiny, TEXT)
    clean, corrupted = result.pairs.rows[0], result.pairs.corrupted[0]
    answer, wrong = int(result.pairs.answer[0]), int(result.pairs.wrong[0])
    with torch.no_grad():
        one, other = tiny(clean)[0, -1], tiny(corrupted)[0, -1]
        gap = float((one[answer] - one[wrong]) - (other[answer] - other[wrong]))
        (way,) = of(told, "activation_patching")
        assert way.value == pytest.approx(gap, abs=1e-4)
        (direct,) = of(told, "direct_logit_attribution")
        _, cache = tiny.run_with_cache(TEXT)
        layer, head = map(int, re.fullmatch(r"L(\d+)H(\d+)", direct.about).groups())  # type: ignore[union-attr]
        written = cache["z", layer][0, -1, head] @ tiny.blocks[layer].attn.W_O[head]
        final = (written - written.mean()) / cache["ln_final.hook_scale"][0, -1] * tiny.ln_final.gain
        logits = final @ tiny.W_U
        assert direct.value == pytest.approx(float(logits[answer] - logits.mean()), abs=1e-3)


def test_what_is_further_away_than_a_uniform_guess_is_not_half_formed(tiny: HookedGPT) -> None:
    """An early lens may be sure of what is wrong: of 300 nats after the embedding 100 are less than half."""
    lens = logit_lens(tiny, TEXT)
    (given,) = [one for one in lens.findings() if one.key == "kl"]
    kl = lens.kl[0].copy()
    kl[0], kl[1:4] = 300.0, 100.0
    (wild,) = [one for one in replace(lens, kl=(kl,)).findings() if one.key == "kl"]
    with torch.no_grad():
        chances = tiny(TEXT)[0].double().log_softmax(-1)
    uniform = float(np.log(chances.shape[1]) + (chances.exp() * chances).sum(-1).mean())
    assert wild.text.endswith(f"(a uniform guess: {uniform:.1f}).")
    assert wild.value == given.value <= uniform / 2
    near = kl / kl[0]  # the control: an embedding that is nearer than a uniform guess sets the measure
    assert "(after the embedding: 1.0)" in replace(lens, kl=(near,)).findings()[0].text


def test_an_interval_of_a_share_ends_at_one(tiny: HookedGPT) -> None:
    roles = head_roles(tiny)
    told = {one.key: one for one in roles.findings()}
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in told.values())
    placed = {one.about for key, one in told.items() if key in ("previous-token", "first-token")}
    assert told["positional"].about not in placed
    assert "(chance: " in told["induction"].text
    scores = roles.random.scores[:, roles.random.roles.index("previous_token"), 1, 1]
    student = bootstrap(scores, chosen_of=16)
    assert student.high > scores.max()  # the control: Student's ends leave what was seen


@pytest.mark.parametrize("rounding", [0.0, 1.2e-7, -6e-8])
def test_rounding_of_a_whole_share_moves_no_end(rounding: float) -> None:
    """Of n shares that are all one the lower end is the tail's n-th root (Clopper and Pearson)."""
    shares = np.ones(12)
    shares[3] += rounding
    low, high = bootstrap(shares, share=True).ends()
    assert low == pytest.approx(0.025 ** (1 / 12), abs=1e-6)
    assert high == pytest.approx(1.0, abs=1e-6)
    shares[3] = 0.9  # the control: what is no rounding is spread
    assert bootstrap(shares, share=True).low > low + 0.05


def test_sentences_read_well(told: list[tuple[str, Finding]]) -> None:
    for _, one in told:
        assert one.text.endswith(".")
        assert not re.search(r"(?<![\w'\"])-\d|e-\d|\b1 (share|ratio|probability)\b| 0%| 0 %", one.text), one.text
        assert not one.about or re.fullmatch(r"(\w+ )?L\d+(H\d+|KV\d+|N\d+| mlp| attn)|embed|layer \d+", one.about)
    wording = [one.text for name, one in told if "patching" in name and one.kind == "effect"]
    assert all(re.search(r"when '.+' \(\d+\) is replaced by '.+': ", text) for text in wording)


def test_the_chance_of_the_largest_pays_for_the_choice() -> None:
    """Of noise the smallest p is below .05 in one of twenty cases; without the correction in most."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(8, 30)) for _ in range(300)]
    corrected = np.mean([largest_p_value(one).min() <= 0.05 for one in samples])
    plain = np.mean([sign_flip_p_value(one).min() <= 0.05 for one in samples])
    assert 0.02 <= corrected <= 0.085
    assert plain > 0.6
    one = rng.normal(size=(8, 1)) + 1
    np.testing.assert_allclose(largest_p_value(one), sign_flip_p_value(one))
    twice = largest_p_value(np.repeat(one, 2, 0), clusters=np.repeat(np.arange(8), 2).tolist())
    np.testing.assert_allclose(twice, sign_flip_p_value(one))


def test_signs() -> None:
    assert signed(-1.5) == "\N{MINUS SIGN}1.5"
