"""Ablation: against a loop with plain hooks, on a model made by hand, and what replacement values are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.ablation import ablation
from analyses.shared import replacements
from analyses.shared.components import choose
from analyses.shared.panels import Finding
from analyses.shared.prompts import Prompt, PromptSet
from analyses.shared.replacements import Replacements
from interp.errors import InputError, NotApplicable

MODEL = make_gpt(dtype=torch.float64, n_layers=2, n_heads=3, d_model=24)
TOKENS = torch.randint(0, 300, (3, 7), generator=torch.Generator().manual_seed(1))
COLUMNS = ["text", "component", "layer", "head", "kind", "metric", "clean", "value", "effect"]
TIGHT = {"rtol": 0, "atol": 1e-10}


def metric_of(logits, tokens, answer, wrong, clean):
    """Every metric of one text, written out; logits [pos d_vocab]."""
    log_p, log_clean = logits.log_softmax(-1), clean.log_softmax(-1)
    last = logits[-1]
    return {
        "loss": -sum(log_p[p, tokens[p + 1]] for p in range(len(tokens) - 1)) / (len(tokens) - 1),
        "kl": sum((log_clean[p].exp() * (log_clean[p] - log_p[p])).sum() for p in range(len(tokens))) / len(tokens),
        "logit_diff": last[answer] - last[wrong],
        "logit": last[answer],
        "prob": last.softmax(-1)[answer],
        "rank": 1 + sum(last > last[answer]),
    }


def hook_for(component, value, positions):
    """A plain hook that replaces a component's output by value(hook name)."""

    def edit(x, hook):
        new = torch.as_tensor(value(hook.name), dtype=x.dtype).expand_as(x) if value else torch.zeros_like(x)
        for p in range(x.shape[1]) if positions is None else positions:
            if component.kind in ("head", "neuron"):
                x[:, p, component.index] = new[:, p, component.index]
            else:
                x[:, p] = new[:, p]
        return x

    return [(name, edit) for name in component.names]


@given(
    groups=st.lists(
        st.sampled_from(["heads", "mlps", "attention", "layers", "L1N5", "L0H2"]), min_size=1, max_size=3, unique=True
    ),
    positions=st.none() | st.lists(st.integers(0, 6), min_size=1, unique=True).map(tuple),
    answer=st.integers(0, 299),
)
@settings(max_examples=6, deadline=None)
def test_zero_ablation_equals_a_loop_with_hooks(groups, positions, answer):
    metrics = ("loss", "kl", "logit_diff", "logit", "prob", "rank")
    wrong = (answer + 7) % 300
    result = ablation(
        MODEL, TOKENS, components=groups, metrics=metrics, positions=positions, answer=answer, wrong=wrong
    )
    parts = choose(MODEL, groups)
    assert result.components == parts
    for text in range(3):
        row = TOKENS[text : text + 1]
        with torch.no_grad():
            clean = MODEL(row)[0]
            for c, part in enumerate(parts):
                logits = MODEL.run_with_hooks(row, fwd_hooks=hook_for(part, None, positions))[0]
                expected = metric_of(logits, row[0], answer, wrong, clean)
                for m, name in enumerate(metrics):
                    np.testing.assert_allclose(result.values[text, c, 0, m], float(expected[name]), **TIGHT)
            unchanged = metric_of(clean, row[0], answer, wrong, clean)
        np.testing.assert_allclose(result.clean[text], [float(unchanged[name]) for name in metrics], **TIGHT)


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]], ids=["several", "one"])
def test_means_and_resamples_equal_a_loop_over_the_same_values(tokens):
    kinds = ("mean", "mean_by_position", "mean_over_texts", "resample")
    parts = choose(MODEL, "heads,mlps")
    result = ablation(MODEL, tokens, components="heads,mlps", kinds=kinds, draws=3, seed=4)
    rows = [row[None] for row in tokens]
    source = Replacements(MODEL, rows, None, kinds, parts, draws=3, seed=4)
    with torch.no_grad():
        for k, kind in enumerate(kinds):
            fills = source.values(list(range(len(rows))), 7, kind)
            for c, part in enumerate(parts):
                losses = []
                for fill in fills:
                    logits = MODEL.run_with_hooks(tokens, fwd_hooks=hook_for(part, fill.__getitem__, None))
                    losses.append(
                        [metric_of(one, row[0], 0, 1, one)["loss"] for one, row in zip(logits, rows, strict=True)]
                    )
                np.testing.assert_allclose(result.values[:, c, k, 0], np.mean(losses, axis=0), **TIGHT)


def test_what_replacement_values_are_made_of():
    parts = choose(MODEL, "heads")
    name = "blocks.1.attn.hook_z"
    rows = [row[None] for row in TOKENS]
    with torch.no_grad():
        z = MODEL.run_with_cache(TOKENS, names=name)[1][name]
        source = Replacements(MODEL, rows, None, ["mean"], parts, draws=2, seed=0)
        (mean,) = source.values([0], 7, "mean")
        torch.testing.assert_close(mean[name][0, 0], z.mean((0, 1)), rtol=0, atol=1e-12)
        (by_position,) = source.values([0, 2], 7, "mean_by_position")
        torch.testing.assert_close(by_position[name][0], z[[1, 2]].mean(0), rtol=0, atol=1e-12)  # never from itself
        torch.testing.assert_close(by_position[name][1], z[[0, 1]].mean(0), rtol=0, atol=1e-12)
        (over_texts,) = source.values([0, 2], 7, "mean_over_texts")
        torch.testing.assert_close(over_texts[name], z.mean(0, keepdim=True), rtol=0, atol=1e-12)
        for draw in source.values([1], 7, "resample"):
            assert any(torch.allclose(draw[name][0], z[other], rtol=0, atol=1e-12) for other in (0, 2))
        # A single text: shuffles of its own tokens, the first in place.
        alone = Replacements(MODEL, rows[:1], None, ["resample"], parts, draws=1, seed=0)
        fitted = alone._fit(0, 7)
        assert fitted[0, 0] == TOKENS[0, 0]
        assert sorted(fitted[0].tolist()) == sorted(TOKENS[0].tolist())
        assert fitted.tolist() != TOKENS[:1].tolist()
        # Texts that are too short are continued with the next ones.
        short = Replacements(MODEL, [TOKENS[:1, :3], TOKENS[1:2]], None, ["resample"], parts, draws=1, seed=0)
        assert short._fit(0, 7)[0].tolist() == [*TOKENS[0, :3].tolist(), *TOKENS[1, 1:5].tolist()]


def fitted(rows, index, length):
    """A text cut, or continued with those that follow, token by token."""
    ids, others = rows[index][0].tolist(), [*rows[index + 1 :], *rows[: index + 1]]
    while len(ids) < length:
        ids += others[0][0].tolist()[1:]
        others = [*others[1:], others[0]]
    return torch.tensor([ids[:length]])


def slow_mean(model, rows, index, name, with_own):
    """[pos ...] the mean over texts of the same length (all, cut or continued, where there is no other), run singly."""
    length = rows[index].shape[1]
    donors = [i for i, row in enumerate(rows) if row.shape[1] == length]
    donors = donors if len(donors) > 1 else list(range(len(rows)))
    chosen = [i for i in donors if with_own or i != index]
    return sum(model.run_with_cache(fitted(rows, i, length), names=name)[1][name][0] for i in chosen) / len(chosen)


def ids_of(lengths, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 300, (1, length), generator=generator) for length in lengths]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(7,) * 18, (7, 5, 7, 9, 7, 4)], ids=["one length", "several lengths"])
def test_means_are_over_all_texts_and_no_seed_moves_them(lengths, causal, monkeypatch):
    monkeypatch.setattr(replacements, "AT_ONCE", 40)  # several passes
    model = make_gpt(dtype=torch.float64, n_layers=2, n_heads=3, d_model=24, causal=causal)
    rows, parts = ids_of(lengths), choose(model, "heads,mlps")
    kinds = ("mean", "mean_by_position", "mean_over_texts")
    with torch.no_grad():
        for length in dict.fromkeys(lengths):
            indices = [i for i, row in enumerate(rows) if row.shape[1] == length]
            first, second = (Replacements(model, rows, None, kinds, parts, draws=1, seed=seed) for seed in (0, 1))
            for kind, with_own in (("mean_by_position", False), ("mean_over_texts", True)):
                ((values,), (again,)) = (source.values(indices, length, kind) for source in (first, second))
                for name in ("blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"):
                    assert torch.equal(values[name], again[name])
                    slow = torch.stack([slow_mean(model, rows, i, name, with_own) for i in indices])
                    found = values[name].expand_as(slow)
                    torch.testing.assert_close(found, slow, rtol=0, atol=1e-12)
                    other = torch.stack([slow_mean(model, rows, i, name, not with_own) for i in indices])
                    assert not torch.allclose(found, other, rtol=0, atol=1e-6)  # the control: own text in, or out
            ((values,), (again,)) = (source.values(indices, length, "mean") for source in (first, second))
            name = "blocks.1.attn.hook_z"
            every = torch.cat([model.run_with_cache(row, names=name)[1][name][0] for row in rows])
            torch.testing.assert_close(values[name][0, 0], every.mean(0), rtol=0, atol=1e-12)
            assert torch.equal(values[name], again[name])


def test_effects_of_means_do_not_follow_the_seed_and_those_of_draws_do():
    tokens = torch.cat(ids_of((6,) * 30))
    kinds = ("mean", "mean_by_position", "mean_over_texts", "resample")
    first, second = (ablation(MODEL, tokens, kinds=kinds, draws=1, seed=seed).values for seed in (0, 1))
    np.testing.assert_array_equal(first[:, :, :3], second[:, :, :3])
    assert np.abs(first[:, :, 3] - second[:, :, 3]).max() > 1e-6
    few = ablation(MODEL, tokens[:16], kinds=kinds[1:3]).values  # the control: a sample of 16 texts is another mean
    assert np.abs(few - first[:16, :, 1:3]).max() > 1e-6


@pytest.mark.parametrize("lengths", [(7,) * 40, tuple(range(4, 24))], ids=["one length", "each its own"])
def test_texts_are_run_a_fixed_number_of_times_in_bounded_passes(lengths, monkeypatch):
    monkeypatch.setattr(replacements, "AT_ONCE", 50)
    rows, parts, seen = ids_of(lengths), choose(MODEL, "heads"), []
    kinds = {"mean": 1, "mean_over_texts": 1, "mean_by_position": 2, "resample": 4}  # at most so often; draws=4
    if len(set(lengths)) == 1:
        kinds["mean_by_position"] = 1
    with torch.no_grad(), MODEL.hooks([("hook_embed", lambda x, hook: seen.append(x.shape[:2]))]):
        for kind, most in kinds.items():
            seen.clear()
            source = Replacements(MODEL, rows, None, (kind,), parts, draws=4, seed=0)
            for length in dict.fromkeys(lengths):
                source.values([i for i, row in enumerate(rows) if row.shape[1] == length], length, kind)
            assert sum(batch for batch, _ in seen) <= most * len(rows)
            assert all(batch * pos <= 50 for batch, pos in seen)


def test_all_reference_texts_count(toy_gpt):
    words = ["cat", "dog", "man", "boy", "girl", "bird", "horse", "cow", "pig", "hen"]
    reference = [f"The {word} sat on the mat." for word in words] * 3
    text, name = "Mary and John went to the store.", "blocks.0.attn.hook_z"
    rows, parts = [toy_gpt.to_tokens(text)], choose(toy_gpt, "heads")
    theirs, length = [toy_gpt.to_tokens(one) for one in reference], rows[0].shape[1]
    source = Replacements(toy_gpt, rows, reference, ["mean_by_position"], parts, draws=1, seed=0)
    assert source.notes == ("Means by position are over the 30 reference texts.",)
    with torch.no_grad():
        (values,) = source.values([0], length, "mean_by_position")
        every = [toy_gpt.run_with_cache(fitted(theirs, i, length), names=name)[1][name][0] for i in range(len(theirs))]
    torch.testing.assert_close(values[name][0], torch.stack(every).mean(0), rtol=0, atol=1e-5)
    assert not torch.allclose(values[name][0], torch.stack(every[:16]).mean(0), rtol=0, atol=1e-5)


def test_what_is_said_of_means():
    def said(lengths, kind):
        rows = ids_of(lengths)
        (note,) = Replacements(MODEL, rows, None, [kind], choose(MODEL, "heads"), draws=1, seed=0).notes
        return note

    assert said((7, 7, 7), "mean_by_position") == "Means by position are over all other texts."
    assert "over all other texts that have as many tokens." in said((7, 7, 5, 5), "mean_by_position")
    assert "cut to it or continued" in said((7, 7, 5), "mean_by_position")
    assert "the text itself among them" in said((7, 7), "mean_over_texts")
    assert "16 shuffles of this text's own tokens" in said((7,), "mean_over_texts")


@pytest.mark.parametrize("causal", [True, False])
def test_classes_of_a_model_that_predicts_no_tokens(causal):
    """The answer may be a class; positions that see later ones are no obstacle; only the loss makes no sense."""
    model = make_gpt(dtype=torch.float64, n_layers=2, n_heads=3, d_model=24, causal=causal, d_vocab_out=2, tied=False)
    tokens = torch.cat(ids_of((6,) * 5))
    label = torch.tensor([0, 1, 1, 0, 1])
    found = ablation(
        model, tokens, kinds=("zero", "mean_over_texts"), metrics=("logit_diff",), answer=label, wrong=1 - label
    )
    with torch.no_grad():
        for c, part in enumerate(choose(model, "heads")):
            for k in range(2):

                def edit(x, hook, head=part.index, k=k):
                    x[:, :, head] = x[:, :, head].mean(0, keepdim=True) if k else 0
                    return x

                last = model.run_with_hooks(tokens, fwd_hooks=[(part.names[0], edit)])[:, -1]
                slow = (last.gather(1, label[:, None]) - last.gather(1, 1 - label[:, None]))[:, 0]
                np.testing.assert_allclose(found.values[:, c, k, 0], slow.numpy(), **TIGHT)
    with pytest.raises(NotApplicable, match="metrics=\\('logit_diff',\\)"):
        ablation(model, tokens)


def test_texts_of_different_lengths_equal_one_text_at_a_time(toy_gpt):
    texts = ["The cat sat on the mat.", "Mary and John went to the store.", "The dog sat on a log."]
    together = ablation(toy_gpt, texts, metrics=("loss", "logit_diff"), answer=" John", wrong=" Mary")
    for i, text in enumerate(texts):
        alone = ablation(toy_gpt, text, metrics=("loss", "logit_diff"), answer=" John", wrong=" Mary")
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=0, atol=2e-5)
    swapped = ablation(toy_gpt, texts[::-1], metrics=("loss",))  # the control: other texts, other numbers
    assert np.abs(together.values[..., 0] - swapped.values[..., 0]).max() > 1e-3


def test_the_induction_circuit_is_found_in_a_model_made_by_hand():
    model, roles = induction_model()
    tokens = repeated(40, 12, batch=7)
    result = ablation(model, tokens, kinds=("zero", "resample"), metrics=("loss", "logit_diff"))
    effect = result.effects[:, :, 0, 0].mean(0).reshape(2, 4)
    order = np.argsort(-effect.ravel())[:2]
    assert {tuple(map(int, divmod(int(i), 4))) for i in order} == {roles["previous_token"], roles["induction"]}
    assert abs(effect[roles["nothing"]]) < 1e-5
    table = result.summary()
    found = table[(table["kind"] == "zero") & (table["metric"] == "loss")].set_index("component")
    assert found.loc["L1H0", "q"] <= 0.05
    assert found.loc["L0H3", "q"] > 0.5
    assert found.loc["L1H0", "low"] <= found.loc["L1H0", "effect"] <= found.loc["L1H0", "high"]
    control, _ = induction_model(previous_token_head=False)  # then nothing depends on that head
    broken = ablation(control, tokens).effects[:, :, 0, 0].mean(0).reshape(2, 4)
    assert abs(broken[roles["previous_token"]]) < 1e-5


def test_self_repair_gap():
    """A head of the last layer has no later part but the layer norm; a head of an earlier layer acts through others."""
    model, roles = induction_model()
    result = ablation(model, repeated(40, 12, batch=3), kinds=("zero",))
    direct, gap = result.direct[:, :, 0], result.self_repair[:, :, 0]
    induction, previous = 4 * 1 + 0, 0
    with torch.no_grad():  # the direct part by hand: logits of the head's own output through a frozen layer norm
        for text in range(3):
            row = repeated(40, 12, batch=3)[text : text + 1]
            _, cache = model.run_with_cache(row, names=["result", "ln_final.hook_scale"])
            written = cache["result", 1][0, -1, roles["induction"][1]]
            through = (written - written.mean()) / cache["ln_final.hook_scale"][0, -1] @ model.W_U
            answer, wrong = (int(labels[text][1:-1]) for labels in (result.answers, result.wrongs))
            np.testing.assert_allclose(direct[text, induction], float(through[answer] - through[wrong]), atol=1e-5)
    assert np.all(np.abs(gap[:, induction]) < 0.05 * np.abs(direct[:, induction]))
    assert np.all(np.abs(direct[:, previous]) < 1e-6)  # it writes where the unembedding does not read
    assert np.all(gap[:, previous] < -1)  # and matters through the induction head alone
    np.testing.assert_allclose(gap, direct - (-result.logit_effects[:, :, 0]), rtol=0, atol=1e-12)


def test_replacing_nothing_changes_nothing():
    """Replacing a component by its own output (a reference that is the text itself) has no effect; by zero it has."""
    text = TOKENS[:1]
    rows = [text]
    parts = choose(MODEL, "heads")
    source = Replacements(MODEL, rows * 2, None, ["resample"], parts, draws=1, seed=0)  # the other text is the same
    with torch.no_grad():
        (fill,) = source.values([0], 7, "resample")
        same = MODEL.run_with_hooks(text, fwd_hooks=parts[0].replace(fill.__getitem__))
        torch.testing.assert_close(same, MODEL(text), rtol=0, atol=1e-12)
    twice = ablation(MODEL, text.repeat(2, 1), kinds=("mean_by_position", "zero"))
    assert np.abs(twice.effects[:, :, 0]).max() < 1e-12
    assert np.abs(twice.effects[:, :, 1]).min() > 1e-6


def test_tidy_columns_and_panels():
    result = ablation(MODEL, TOKENS, components="heads,mlps", kinds=("zero", "mean"), metrics=("loss", "kl"))
    frame = result.to_dataframe()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * 8 * 2 * 2
    np.testing.assert_allclose(frame["effect"], frame["value"] - frame["clean"], rtol=0, atol=1e-12)
    assert frame[frame["component"] == "mlp 1"]["head"].isna().all()
    one = frame.query("text == 2 and layer == 1 and head == 2 and kind == 'mean' and metric == 'loss'")
    assert float(one["value"].item()) == result.values[2, 5, 1, 0]
    keys = [panel.key for panel in result.panels()]
    assert len(keys) == len(set(keys))
    for finding in result.findings():
        assert finding.key in keys
        assert 0 <= finding.weight <= 1
    assert list(ablation(MODEL, TOKENS, components="L0N3").to_dataframe().columns) == [
        *COLUMNS[:4],
        "neuron",
        *COLUMNS[4:],
    ]


def test_heads_are_told_beside_mlps_whose_effects_are_far_larger() -> None:
    """Head L1H0 costs 0.2 nats at each of 8 tokens, and MLP 0 five, of either sign: each family has its own null."""
    made = ablation(MODEL, torch.arange(9)[None], components="heads,mlps")
    noise = np.array([5.0, -5.0, 5.0, -5.0, 5.0, -5.0, 5.0, -4.0])

    def told(head: int, noisy: int) -> list[Finding]:
        effects = np.zeros((8, 8, 1))
        effects[:, head, 0], effects[:, noisy, 0] = 0.2, noise
        values = made.clean[:, None, None, :] + effects.mean(0)[None, :, :, None]
        return replace(made, token_effects=effects, values=values).findings()

    (found,) = told(head=3, noisy=6)
    assert (found.about, found.key) == ("L1H0", "loss-zero-heads")
    assert found.p == pytest.approx(2 * 2 / 2**8)  # all signs alike, two families
    assert told(head=3, noisy=4) == []  # the control: within one family chance reaches as far


def test_templates_are_clusters_and_generated_prompts_are_the_default(toy_gpt):
    prompts = PromptSet(
        prompts=tuple(
            Prompt(clean=text, answer=" John", wrong=" Mary", template=str(i % 2))
            for i, text in enumerate(["The cat sat", "The dog sat", "the cat sat", "the dog sat"])
        )
    )
    result = ablation(toy_gpt, prompts)
    assert result.clusters == ("0", "1", "0", "1")
    assert set(result.answers) == {" John"}
    assert "templates" in result.panels()[0].caption
    generated = ablation(toy_gpt, components="L0H0")
    assert len(generated.texts) == 12
    assert "indirect object" in generated.notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": "haeds"}, "did you mean 'heads'"),
        ({"components": "L7H0"}, "expected L0H0 to L1H2"),
        ({"components": "mlp 9"}, "expected mlp 0 to mlp 1"),
        ({"components": ""}, "unknown component"),
        ({"kinds": ("zeor",)}, "did you mean 'zero'"),
        ({"kinds": ()}, "no kinds"),
        ({"metrics": ("logitdiff",)}, "did you mean 'logit_diff'"),
        ({"positions": (7,)}, "index 7"),
        ({"layers": (2,)}, "layer 2"),
        ({"answer": 300}, "token id 300"),
        ({"answer": [1, 2]}, "2 tokens for 3 texts"),
        ({"answer": " Mary"}, "no tokenizer"),
        ({"draws": 0, "kinds": ("resample",)}, "0 draws"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError) as caught:
        ablation(MODEL, TOKENS, **options)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_the_model_is_left_as_it_was():
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    ablation(MODEL, TOKENS, kinds=("zero", "mean", "resample"))
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert not any(point.active for point in MODEL.hook_points.values())


def test_no_interval_of_a_divergence_goes_below_zero(toy_gpt) -> None:
    """Two texts give wide intervals; those of the logit reach both sides (control)."""
    found = ablation(toy_gpt, ["The cat sat on the mat.", "The dog sat"], metrics=("kl", "logit")).summary()
    low = found.groupby("metric")["low"].min()
    assert low["kl"] >= 0
    assert low["logit"] < 0
