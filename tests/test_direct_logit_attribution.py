"""Direct logit attribution: the parts sum to the logit; each is what leaving it out at the end changes."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from shapes import SHAPES, toy

from analyses.direct_logit_attribution import direct_logit_attribution
from analyses.shared.panels import Bars, Matrix, TokenStrip
from analyses.shared.prompts import Prompt, PromptSet
from analyses.shared.statistics import bootstrap
from interp.errors import InputError
from interp.interventions import Add, Replace, freeze
from interp.processing import process_weights


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 300, (3, 11), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("wrong", [None, 17])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "bidirectional"])
def test_parts_sum_to_the_logit(tokens, shape, folded, neurons, wrong):
    """To the logit that a soft-cap, if there is one, is given; capped it is the model's own."""
    model = process_weights(toy(shape)) if folded else toy(shape)
    result = direct_logit_attribution(model, tokens, answer=3, wrong=wrong, pos=-2, neurons=neurons)
    with torch.no_grad():
        stream = model.ln_final(model.run_to(tokens))
        logits = model.unembedded(stream, capped=False)[:, -2]
        cap = model.config.logit_softcap
        capped = logits if cap is None else cap * torch.tanh(logits / cap)
        torch.testing.assert_close(capped, model(tokens)[:, -2], atol=1e-5, rtol=0)
    expected = (logits[:, 3] - (0 if wrong is None else logits[:, wrong])).numpy()
    limit = 1e-4 * max(1.0, float(np.abs(expected).max()))
    frame = result.to_dataframe()
    assert list(frame.columns) == ["text", "component", "layer", "head", "contribution"]
    np.testing.assert_allclose(frame.groupby("text").contribution.sum(), expected, rtol=0, atol=limit)
    assert result.error < limit
    after = any("_post" in name for name, _ in model.named_parameters())  # gains that nothing can take over
    assert after or model.config.qk_norm or result.weights == ("folded" if folded or not model.config.norm else "raw")


def test_each_part_is_what_leaving_it_out_changes(tokens):
    """Independent of the formula: take the part away from the last residual stream, the final norm's scale held."""
    model = make_gpt(dtype=torch.float64)
    result = direct_logit_attribution(model, tokens[:1], answer=3, wrong=9)
    frame = result.to_dataframe().set_index("component").contribution
    with torch.no_grad():
        clean, cache = model.run_with_cache(tokens[:1], names=lambda name: True)
        written = {
            "L1H2": cache["result", 1][0, :, 2],
            "L0H0": cache["result", 0][0, :, 0],
            "mlp 0": cache["mlp_out", 0][0],
            "embed": cache["embed"][0],
            "bias 1": model.b_O[1],
        }
        for name, vector in written.items():
            remove = Add(name="blocks.1.hook_resid_post", value=-vector)
            with model.hooks([remove, *freeze(["ln_final.hook_scale"], cache)]):
                changed = model(tokens[:1])
            lost = (clean - changed)[0, -1]
            assert float(lost[3] - lost[9]) == pytest.approx(frame[name], abs=1e-10)
    assert float(lost[3] - lost[9]) != pytest.approx(frame["L1H1"], abs=1e-3)  # another part does not fit


@pytest.mark.parametrize("shape", ["llama", "gemma3", "olmo2", "neox"])
def test_parts_of_every_family_are_what_leaving_them_out_changes(tokens, shape):
    """With the scales of the final norm and of the norm after attention held; a head by its query number."""
    model = toy(shape, dtype=torch.float64)
    frame = direct_logit_attribution(model, tokens[:1], answer=3, wrong=9).to_dataframe().set_index("component")
    with torch.no_grad():
        clean, cache = model.run_with_cache(tokens[:1], names=lambda name: True)
        fixed = [name for name in cache if name.endswith("ln1_post.hook_scale") or name == "ln_final.hook_scale"]
        last = model.config.n_layers - 1
        after = [f"blocks.{last}.hook_mlp_out"]
        for head in range(4):
            edit = Replace(name=f"blocks.{last}.attn.hook_z", head=head, value=0.0)
            with model.hooks([edit, *freeze([*fixed, *after], cache)]):
                lost = (clean - model(tokens[:1]))[0, -1]
            found = frame.contribution[f"L{last}H{head}"]
            assert float(lost[3] - lost[9]) == pytest.approx(found, abs=1e-10)
            assert frame.contribution[f"L{last}H{(head + 1) % 4}"] != pytest.approx(found, abs=1e-6)  # control


def test_a_part_left_out_breaks_the_sum(tokens):
    result = direct_logit_attribution(make_gpt(), tokens, answer=3)
    kept = result.to_dataframe().query("component != 'L1H2'")
    assert (np.abs(kept.groupby("text").contribution.sum() - result.total) > 1e-3).all()


def test_folding_keeps_differences_and_moves_biases_out_of_heads(tokens):
    model = make_gpt(dtype=torch.float64)
    raw = direct_logit_attribution(model, tokens, answer=3, wrong=9)
    folded = direct_logit_attribution(process_weights(model), tokens, answer=3, wrong=9)
    np.testing.assert_allclose(folded.total, raw.total, rtol=0, atol=1e-9)
    mlp = raw.components.index("mlp 1")
    np.testing.assert_allclose(folded.contributions[:, mlp], raw.contributions[:, mlp], rtol=0, atol=1e-9)
    head = raw.components.index("L0H1")
    assert np.abs(folded.contributions[:, head] - raw.contributions[:, head]).max() > 1e-3  # its value bias


def test_figures_of_a_plain_logit_are_those_of_centred_weights(tokens):
    model = make_gpt(dtype=torch.float64)
    centred = process_weights(
        model, fold_ln=False, center_writing_weights=False, center_unembed=True, fold_value_biases=False
    )
    relative = direct_logit_attribution(model, tokens, answer=3).relative
    np.testing.assert_allclose(relative, direct_logit_attribution(centred, tokens, answer=3).contributions, atol=1e-9)


def test_positions_and_neurons_sum_to_heads_and_mlps(tokens):
    model = make_gpt(dtype=torch.float64)
    whole = direct_logit_attribution(model, tokens, answer=3, wrong=9, pos=6)
    split = direct_logit_attribution(model, tokens, answer=3, wrong=9, pos=6, neurons=True).to_dataframe()
    frame = whole.to_dataframe()
    heads = frame.dropna(subset="head").pivot(index="text", columns=["layer", "head"], values="contribution")
    for text, source in enumerate(whole.by_source):
        assert source.shape == (2, 4, 11)
        np.testing.assert_allclose(source.sum(-1).ravel(), heads.loc[text], atol=1e-10)
        assert not source[:, :, 7:].any()  # nothing is read from later positions
    parts = split[(split.layer == 1) & split.component.str.contains(r"N|mlp bias")].groupby("text").contribution.sum()
    np.testing.assert_allclose(parts, frame[frame.component == "mlp 1"].contribution, atol=1e-10)


def test_finds_the_planted_induction_head_and_where_it_reads():
    model, roles = induction_model()
    tokens = repeated(40, 20)[:, :31]
    right, other = int(tokens[0, 11]), int(tokens[0, 3])
    result = direct_logit_attribution(model, tokens, answer=right, wrong=other)
    heads = result.to_dataframe().dropna(subset="head")
    best = heads.loc[heads.contribution.idxmax()]
    assert (best.layer, best["head"]) == roles["induction"]
    assert result.by_source[0][roles["induction"]].argmax() == 11
    model, roles = induction_model(previous_token_head=False)  # the control: nothing to compose with
    frame = direct_logit_attribution(model, tokens, answer=right, wrong=other).to_dataframe().set_index("component")
    assert frame.contribution["L1H0"] < 0.1 * best.contribution


def test_the_largest_part_pays_for_the_choice_and_half_of_the_texts_choose_it_again():
    model, _ = induction_model()
    tokens = repeated(40, 20)[:, :31].repeat(12, 1)
    right, other = tokens[:, 11].tolist(), tokens[:, 3].tolist()
    result = direct_logit_attribution(model, tokens, answer=right, wrong=other)
    noise = np.random.default_rng(0).normal(scale=0.1, size=result.contributions.shape)
    result = replace(result, contributions=result.contributions + noise)
    (finding,) = result.findings()
    alone = bootstrap(result.relative[:, result.components.index(finding.about)], seed=result.seed)
    assert finding.low < alone.low < alone.high < finding.high
    assert (finding.held.again, finding.held.what, finding.held.n) == (True, finding.about, 6)
    assert finding.held.low < finding.held.value < finding.held.high
    assert "choose the largest alone" in next(panel.text for panel in result.panels() if panel.key == "methods")


def test_defaults_explain_the_models_own_prediction(toy_gpt):
    result = direct_logit_attribution(toy_gpt, "The cat sat on the")
    with torch.no_grad():
        logits = toy_gpt("The cat sat on the")[0, -1]
    assert result.total[0] == pytest.approx(float(logits.max()), abs=1e-5)
    assert result.answers[0] == toy_gpt.to_str_tokens([int(logits.argmax())])[0]
    assert result.chosen_by_model
    kinds = [type(panel) for panel in result.panels()]
    assert Bars in kinds
    assert Matrix in kinds
    assert TokenStrip in kinds
    assert all(finding.low is None for finding in result.findings())


def test_prompt_sets_bring_their_answers_and_templates(toy_gpt):
    answers = toy_gpt.to_str_tokens([70, 71])
    prompts = PromptSet(
        prompts=tuple(
            Prompt(clean=text, answer=answers[i % 2], wrong=answers[1 - i % 2], template=str(i % 3))
            for i, text in enumerate(["The cat", "The dog sat", "John gave", "Mary went to", "the store", "a drink"])
        )
    )
    result = direct_logit_attribution(toy_gpt, prompts)
    assert list(result.answers) == list(answers) * 3
    assert result.wrongs
    assert result.clusters == ["0", "1", "2"] * 2
    assert result.panels()[2].low is not None
    assert all(finding.low is not None for finding in result.findings())


def test_the_chance_of_a_part_is_that_of_random_directions():
    """Shares along a random direction are normal with standard deviation 1 / sqrt(d): drawn, and counted."""
    result = direct_logit_attribution(make_gpt(d_model=64, init_std=0.02), torch.tensor([[3, 1, 4, 1, 5]]))
    drawn = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = (drawn / drawn.norm(dim=1, keepdim=True))[:, 0]
    assert float(along.std()) == pytest.approx(64**-0.5, rel=0.03)
    assert result.choices == 300
    p = 2 * (1 - torch.special.ndtr(torch.tensor(np.abs(result.relative[0]) / result.by_chance[0])))
    known = np.isfinite(result.by_chance[0])
    expected = np.minimum(1, p.numpy() * known.sum() * 300)
    np.testing.assert_allclose(result.p_values[known], expected[known], rtol=1e-6, atol=1e-9)
    assert result.findings() == []  # untrained weights
    given = direct_logit_attribution(make_gpt(), torch.tensor([[3, 1, 4, 1, 5]]), answer=7)
    assert given.choices == 1


@pytest.mark.parametrize(("option", "value"), [("pos", 11), ("pos", -12), ("answer", 300), ("answer", [1, 2])])
def test_what_cannot_be_used_is_refused(tokens, option, value):
    with pytest.raises(InputError):
        direct_logit_attribution(make_gpt(), tokens, **{option: value})


@pytest.mark.slow
def test_agrees_with_transformer_lens(tmp_path):
    """Every component, folded weights, against transformer-lens' own attribution on the same weights."""
    transformers = pytest.importorskip("transformers")
    model = make_gpt(n_layers=3, d_model=64)
    model.save_pretrained(tmp_path)
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = torch.randint(0, 300, (2, 15), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=hf, device="cpu")
        bridge.enable_compatibility_mode(disable_warnings=True)
        _, cache = bridge.run_with_cache(tokens)
        stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True, pos_slice=-1)
        theirs = dict(zip(labels, cache.logit_attrs(stack, 3, 9, pos_slice=-1).numpy(), strict=True))
    result = direct_logit_attribution(process_weights(model), tokens, answer=3, wrong=9)
    mine = dict(zip(result.components, result.contributions.T, strict=True))
    same = {f"L{layer}H{head}": f"L{layer}H{head}" for layer in range(3) for head in range(4)}
    same |= {"embed": "embed", "pos_embed": "pos_embed"} | {f"mlp {layer}": f"{layer}_mlp_out" for layer in range(3)}
    for name, their_name in same.items():
        np.testing.assert_allclose(mine[name], theirs[their_name], rtol=0, atol=1e-5)
    assert np.abs(mine["L0H0"] - theirs["L0H1"]).max() > 1e-2
