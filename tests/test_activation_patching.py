"""Activation patching: against a loop with plain hooks, at its two ends, and on a model made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from shapes import toy

from analyses.activation_patching import HEADS, SITES, activation_patching
from analyses.shared.panels import Matrix
from analyses.shared.prompts import Prompt, PromptSet
from interp.errors import InputError, NotApplicable

MODEL = make_gpt(dtype=torch.float64, n_layers=2, n_heads=3, d_model=24)
GENERATOR = torch.Generator().manual_seed(3)
CLEAN = torch.randint(0, 300, (2, 6), generator=GENERATOR)
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2], CORRUPTED[1, 1], CORRUPTED[1, 4] = 7, 8, 9
ANSWER, WRONG = [11, 12], [21, 22]
COLUMNS = ["site", "layer", "head", "pos", "clean", "corrupted", "value"]
TIGHT = {"rtol": 0, "atol": 1e-10}


def run(**options):
    return activation_patching(MODEL, CLEAN, CORRUPTED, answer=ANSWER, wrong=WRONG, **options)


def matrices(result):
    return [panel for panel in result.panels() if isinstance(panel, Matrix)]


def metric_of(logits, text):
    return float(logits[-1, ANSWER[text]] - logits[-1, WRONG[text]])


def by_hand(base, source, text, site, layer, head, pos, model=MODEL):
    """The logit difference of one patched run, with a plain hook on one text."""
    name = f"blocks.{layer}.{'attn.' if site in HEADS else ''}hook_{site}"
    at = slice(None) if pos is None else pos
    with torch.no_grad():
        _, cache = model.run_with_cache(source[text : text + 1], names=name)

        def edit(x, hook):
            if site == "pattern":
                x[:, head, at] = cache[name][:, head, at]
            elif head is not None:
                x[:, at, head] = cache[name][:, at, head]
            else:
                x[:, at] = cache[name][:, at]
            return x

        return metric_of(model.run_with_hooks(base[text : text + 1], fwd_hooks=[(name, edit)])[0], text)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("site", [site for site in SITES if "cross" not in site])
def test_every_site_equals_a_loop_with_hooks(site, by_position):
    frame = run(site=site, direction="both", by_position=by_position).to_dataframe()
    assert list(frame.columns) == [*COLUMNS, "text", "direction"]
    heads = 3 if site in HEADS else 1
    places = 6 if by_position or site not in HEADS else 1
    assert len(frame) == 2 * 2 * 2 * heads * places
    for row in frame.sample(16, random_state=0).itertuples():
        head, pos = (None if pd.isna(place) else int(place) for place in (row.head, row.pos))
        base, source = (CORRUPTED, CLEAN) if row.direction == "denoise" else (CLEAN, CORRUPTED)
        expected = by_hand(base, source, row.text, site, row.layer, head, pos)
        np.testing.assert_allclose(row.value, expected, **TIGHT)


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "z", "q", "k", "v", "pattern"])
@pytest.mark.parametrize("shape", ["llama", "gemma3", "neox"])
def test_every_family_equals_a_loop_with_hooks(shape, site):
    """Keys and values of a model that shares them have key-value heads; what a parallel block lacks is refused."""
    model = toy(shape, dtype=torch.float64)
    if site == "resid_mid" and shape == "neox":
        with pytest.raises(NotApplicable, match="stream between"):
            activation_patching(model, CLEAN, CORRUPTED, site=site)
        return
    options = {"answer": ANSWER, "wrong": WRONG, "by_position": True, "positions": (1, 3, 5)}
    result = activation_patching(model, CLEAN, CORRUPTED, site=site, **options)
    shared = site in ("k", "v") and model.config.n_kv_heads < 4
    heads = (model.config.n_kv_heads if shared else 4) if site in HEADS else 1
    assert result.patched[0].axes == ("layer", *(["kv_head" if shared else "head"] if site in HEADS else []), "pos")
    frame = result.to_dataframe()
    assert len(frame) == 2 * 2 * heads * 3
    for row in frame.sample(8, random_state=0).itertuples():
        head = None if pd.isna(row.head) else int(row.head)
        expected = by_hand(CORRUPTED, CLEAN, row.text, site, row.layer, head, int(row.pos), model)
        np.testing.assert_allclose(row.value, expected, **TIGHT)


def test_copying_everything_gives_the_other_run_and_copying_nothing_the_same():
    """At the last place of the residual stream, the last position is everything that the metric reads."""
    result = run(site="resid_post", direction="both")
    for patched, other, own in zip(result.patched, ("clean", "corrupted"), ("corrupted", "clean"), strict=True):
        end = getattr(result.measure, other)
        start = getattr(result.measure, own)
        np.testing.assert_allclose([values[-1, -1] for values in patched.values], end, **TIGHT)
        np.testing.assert_allclose([values[-1, 0] for values in patched.values], start, **TIGHT)  # tokens agree there
        assert all(np.abs(values[-1, -1] - begin) > 1e-3 for values, begin in zip(patched.values, start, strict=True))
    with torch.no_grad():
        assert result.measure.clean[1] == pytest.approx(metric_of(MODEL(CLEAN[1:])[0], 1), abs=1e-10)
        assert result.measure.corrupted[0] == pytest.approx(metric_of(MODEL(CORRUPTED[:1])[0], 0), abs=1e-10)


def test_one_changed_token_is_found_where_it_stands():
    """Before the first layer, copying the residual stream at the only token that differs restores everything."""
    result = activation_patching(MODEL, CLEAN[:1], CORRUPTED[:1], answer=11, wrong=21)
    values = result.patched[0].values[0]
    np.testing.assert_allclose(values[0, 2], result.measure.clean[0], **TIGHT)
    elsewhere = np.delete(values[0], 2)
    np.testing.assert_allclose(elsewhere, result.measure.corrupted[0], **TIGHT)
    assert list(result.to_dataframe().columns) == COLUMNS


def test_the_induction_head_is_found_in_a_model_made_by_hand():
    """Corrupted: the first copy ends with another token, so that the second copy's continuation is another one."""
    model, roles = induction_model()
    clean = repeated(40, 10, batch=3, seed=1)[:, :-1]
    corrupted = clean.clone()
    unused = torch.tensor([next(t for t in range(40) if t not in row.tolist()) for row in clean])
    answer, wrong = clean[:, 9].clone(), unused
    corrupted[:, 9] = unused
    result = activation_patching(model, clean, corrupted, site="z,v", answer=answer, wrong=wrong)
    assert np.all(result.measure.clean > 1)
    assert np.all(result.measure.corrupted < -1)
    for patched in result.patched:
        effects = result.effects(patched).mean(0)
        best = tuple(map(int, np.unravel_index(np.argmax(effects), effects.shape)))
        assert best == roles["induction"]
        assert effects[best] > 0.9 * result.towards(result.patched[0]).gap
        assert abs(effects[roles["nothing"]]) < 1e-5
    assert result.findings()[0].about == "L1H0"
    assert "L1H0's z, copied from the clean run, brings +" in result.findings()[0].text


def test_a_metric_of_ones_own():
    def margin(logits):
        return logits[:, 0, 5] - logits[:, 1, 6]

    result = run(metric=margin, read=(3, -1))
    with torch.no_grad():
        logits = MODEL(CLEAN)
        np.testing.assert_allclose(result.measure.clean, logits[:, 3, 5] - logits[:, -1, 6], **TIGHT)
    values = result.patched[0].values
    np.testing.assert_allclose(values[0][0, 2], result.measure.clean[0], **TIGHT)
    with pytest.raises(InputError, match="one number a text"):
        run(metric=lambda logits: logits.sum())


@pytest.mark.parametrize("metric", ["logit", "prob", "rank", "kl", "log_prob"])
def test_named_metrics_at_both_ends(metric):
    result = run(metric=metric, site="resid_post")
    with torch.no_grad():
        logits, clean = MODEL(CORRUPTED)[:, -1], MODEL(CLEAN)[:, -1]
    answers = torch.tensor(ANSWER)[:, None]
    expected = {
        "logit": logits.gather(1, answers)[:, 0],
        "prob": logits.softmax(-1).gather(1, answers)[:, 0],
        "rank": 1 + (logits > logits.gather(1, answers)).sum(1),
        "log_prob": logits.log_softmax(-1).gather(1, answers)[:, 0],
        "kl": (clean.softmax(-1) * (clean.log_softmax(-1) - logits.log_softmax(-1))).sum(-1),
    }
    np.testing.assert_allclose(result.measure.corrupted, expected[metric], **TIGHT)
    np.testing.assert_allclose([v[-1, -1] for v in result.patched[0].values], result.measure.clean, **TIGHT)


def test_positions_and_layers_are_a_selection_of_all():
    whole = run().patched[0].values
    some = run(positions=(-1, 2), layers=(-1,))
    for one, all_places in zip(some.patched[0].values, whole, strict=True):
        np.testing.assert_allclose(one, all_places[1:, [5, 2]], **TIGHT)
    assert some.to_dataframe()["pos"].unique().tolist() == [5, 2]
    assert some.to_dataframe()["layer"].unique().tolist() == [1]


def test_texts_of_several_lengths_keep_their_own_numbers(toy_gpt):
    prompts = PromptSet(
        prompts=(
            Prompt(
                clean="When Mary and John went, John",
                corrupted="When Mary and John went, Mary",
                answer=" to",
                wrong=" to",
            ),
            Prompt(clean="The cat sat on the mat", corrupted="The cat sat on the log", answer=" to", wrong=" the"),
        )
    )
    together = activation_patching(toy_gpt, prompts)
    for i, prompt in enumerate(prompts):
        alone = activation_patching(toy_gpt, PromptSet(prompts=(prompt,)))
        np.testing.assert_allclose(together.patched[0].values[i], alone.patched[0].values[0], rtol=0, atol=2e-5)
    (matrix,) = matrices(together)
    assert matrix.columns[-1] == "-1"


def test_clean_text_alone_and_nothing_at_all(toy_gpt):
    alone = activation_patching(toy_gpt, "The cat sat on the mat. The dog sat on the", seed=1)
    differs = (alone.pairs.rows[0] != alone.pairs.corrupted[0]).sum()
    assert int(differs) == 1
    assert any("No corrupted text" in note for note in alone.pairs.notes)
    assert alone.measure.clean[0] > alone.measure.corrupted[0]
    generated = activation_patching(toy_gpt)
    assert len(generated.pairs.rows) == 12
    assert isinstance(matrices(generated)[0].columns, tuple)
    keys = [panel.key for panel in generated.panels()]
    assert all(finding.key in keys and finding.text for finding in generated.findings())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"site": "resid"}, "unknown site"),
        ({"site": "attnout"}, "did you mean 'attn_out'"),
        ({"metric": "loss"}, "unknown metric 'loss'"),
        ({"positions": (6,)}, "position 6"),
        ({"layers": (2,)}, "layer 2"),
        ({"corrupted": CORRUPTED[:, :-1]}, "the clean text has 6 tokens, the corrupted one 5"),
        ({"corrupted": CORRUPTED[:1]}, "1 corrupted texts for 2"),
        ({"corrupted": CLEAN}, "the same"),
    ],
)
def test_wrong_options(options, words):
    options = {"corrupted": CORRUPTED, "answer": ANSWER, "wrong": WRONG} | options
    with pytest.raises(InputError) as caught:
        activation_patching(MODEL, CLEAN, **options)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_the_way_of_the_information_is_told_layer_by_layer():
    """The induction model carries the answer from the position after the first copy to the last in its second layer."""
    model, _ = induction_model()
    clean = repeated(40, 10, batch=1, seed=1)[:, :-1]
    corrupted = clean.clone()
    corrupted[0, 9] = unused = next(t for t in range(40) if t not in clean[0].tolist())
    options = {"answer": int(clean[0, 9]), "wrong": unused}
    told = activation_patching(model, clean, corrupted, **options, site="resid_post").findings()
    assert len(told) == 1
    assert f"at '<{clean[0, 9]}>' (9) until L0, at '<{clean[0, -1]}>' (18) from L1 on" in told[0].text
    assert f"when '<{clean[0, 9]}>' (9) is replaced by '<{unused}>'" in told[0].text
    with torch.no_grad():
        before, after = model(clean)[0, -1], model(corrupted)[0, -1]
    gap = (before - after)[clean[0, 9]] - (before - after)[unused]
    assert told[0].value == pytest.approx(float(gap), abs=1e-4)
    control, _ = induction_model(previous_token_head=False)  # nothing is carried
    assert not any(one.kind == "effect" for one in activation_patching(control, clean, corrupted, **options).findings())


def test_equal_tokens_are_told_apart_by_their_positions():
    text = torch.tensor([[5, 9, 5, 9, 5, 7]])
    changed = text.clone()
    changed[0, 1] = 8
    (matrix,) = matrices(activation_patching(MODEL, text, changed, answer=1, wrong=2))
    assert matrix.columns == ("<9> (1)", "<5> (2)", "<9> (3)", "<5> (4)", "<7> (5)")
