"""The analyses that serve translation models and encoders: against the model itself, closed forms, and controls."""

import numpy as np
import pytest
import torch
import transformers
from command_line import interp
from conftest import TEXT
from test_encoder import BERT, VIT, WORDS, make, twin_of
from test_encoder_decoder import make_pair
from typer.testing import CliRunner

from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.attention_patterns import attention_patterns
from analyses.direct_logit_attribution import direct_logit_attribution
from analyses.logit_lens import logit_lens
from analyses.shared.translations import pair_labels, translations, written_loss
from analyses.weight_statistics import weight_statistics
from interp import HookedEncoderDecoder
from interp.errors import InputError, NotApplicable
from interp.interventions import Replace
from interp.residual import decompose, decompose_names
from interp.sweep import resumable
from interp.text.source_target import SharedTokenizer
from interp.text.wordpiece import WordPiece
from reports import terminal
from reports.cli import app
from reports.page import packing
from reports.page.html import render
from reports.running.discovery import discover, find
from reports.running.report import report, run

SOURCE = "The cat sat on the mat."
PAIR = f"{SOURCE} ||| The dog sat."
SERVED = {
    "attention_patterns",
    "logit_lens",
    "direct_logit_attribution",
    "ablation",
    "activation_patching",
    "composition",
    "head_circuits",
    "residual_stream",
    "weight_statistics",
}


@pytest.fixture(scope="module")
def model(toy_tokenizer) -> HookedEncoderDecoder:
    model = make_pair(d_vocab=300, n_ctx=24).requires_grad_(False)
    model.tokenizer = SharedTokenizer(toy_tokenizer.backend)
    return model


def test_a_text_is_a_source_and_its_target_the_model_s_own_translation(model) -> None:
    (alone,) = translations(model, SOURCE)
    assert alone.source.tolist() == model.to_source(SOURCE).tolist()
    assert torch.equal(model(alone.source, alone.target).argmax(-1)[0, :-1], alone.target[0, 1:])
    (given,) = translations(model, PAIR)
    assert model.to_string(given.target) == "The dog sat."
    assert given.following[0].tolist() == [*given.target[0, 1:].tolist(), model.config.end_token]
    for wrong in ("", [], torch.zeros(1, 3), 3, " ||| a"):
        with pytest.raises(InputError):
            translations(model, wrong)


def test_patterns_of_all_three_attentions(model) -> None:
    (one,) = translations(model, PAIR)
    result = attention_patterns(model, PAIR)
    _, cache = model.run_with_cache(one.source, one.target)
    for stack, place in zip(result.stacks, ("encoder", "decoder.attn", "cross_attn"), strict=True):
        for layer, pattern in enumerate(stack.patterns[0]):
            np.testing.assert_allclose(pattern, cache["pattern", layer, place][0].detach().numpy(), atol=1e-6)
        assert stack.plain["entropy"].shape == (1, len(stack.patterns[0]), 4)
    beyond = [{"last", "next"} & set(stack.plain) for stack in result.stacks]
    assert beyond == [{"last", "next"}, set(), {"last"}]  # what a causal pattern never reaches is not measured
    cross = result.stacks[2]
    assert len(cross.tokens[0]) == one.source.shape[1]
    assert len(cross.queries[0]) == one.target.shape[1]
    by_hand = cross.patterns[0][..., :-1].mean((0, 1)).argmax(-1)
    assert result.alignment["source"].tolist() == [cross.tokens[0][key] for key in by_hand]


def test_a_head_that_looks_at_one_key_has_no_entropy(model) -> None:
    def look(pattern, hook):
        out = torch.zeros_like(pattern)
        out[..., 2] = 1.0
        return out

    with model.hooks([("decoder.1.cross_attn.hook_pattern", look)]):
        result = attention_patterns(model, PAIR)
    entropy = result.stacks[2].plain["entropy"][0]
    assert (entropy[1] < 1e-6).all()
    assert (entropy[[0, 2]] > 0.1).all()


def test_the_lens_ends_with_the_model_s_own_prediction(model) -> None:
    (one,) = translations(model, PAIR)
    result = logit_lens(model, PAIR)
    assert result.places[:4] == ("embed", "L0 attn", "L0 cross", "L0 mlp")
    logits = model(one.source, one.target)
    expected = -written_loss(logits, one).detach().numpy()
    np.testing.assert_allclose(result.log_probability[0][-1], expected, atol=1e-9)
    assert result.top_ids[0][-1, :, 0].tolist() == logits.argmax(-1)[0].tolist()
    _, cache = model.run_with_cache(one.source, one.target)
    block = model.decoder[1]
    x = torch.nn.functional.layer_norm(cache["resid_mid_cross", 1][0], (32,), block.ln2.w, block.ln2.b, block.ln2.eps)
    read = model.unembedded(x).log_softmax(-1).gather(-1, one.following[0][:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(result.log_probability[0][5], read, atol=1e-9)
    assert set(result.to_dataframe()["layer"]) == {-1, 0, 1, 2}


@pytest.mark.parametrize("wrong", [None, 7])
def test_attribution_sums_to_the_logit_and_over_source_tokens(model, wrong) -> None:
    (one,) = translations(model, PAIR)
    result = direct_logit_attribution(model, PAIR, answer=11, wrong=wrong, pos=2)
    logits, cache = model.run_with_cache(one.source, one.target, names=decompose_names(model))
    there = logits[0, 2].detach()
    frame = result.to_dataframe()
    assert frame["value"].sum() == pytest.approx(
        float(there[11] - (there.mean() if wrong is None else there[7])), abs=1e-9
    )
    parts, labels = decompose(model, cache)
    column = model.W_U[:, 11] - (model.W_U.mean(1) if wrong is None else model.W_U[:, 7])
    expected = float((parts[labels.index("cross L1H2"), 0, 2] @ column).detach())
    assert frame.set_index("part").loc["cross L1H2", "value"] == pytest.approx(expected, abs=1e-9)
    cross = frame[frame["part"].str.startswith("cross L")]["value"].sum()
    assert result.strips[0].values.sum() == pytest.approx(cross, abs=1e-9)


def test_attribution_to_neurons_sums_to_their_mlp(model) -> None:
    whole = direct_logit_attribution(model, PAIR, answer=11, pos=2).to_dataframe().set_index("part")["value"]
    result = direct_logit_attribution(model, PAIR, answer=11, pos=2, neurons=True)
    split = result.to_dataframe().set_index("part")["value"]
    for layer in range(3):
        neurons = split[[f"L{layer}N{n}" for n in range(model.config.d_mlp)]]
        assert neurons.sum() + split[f"mlp bias {layer}"] == pytest.approx(whole[f"mlp {layer}"], abs=1e-9)
        assert abs(split[f"mlp bias {layer}"]) > 1e-6  # control: without it they do not
    panel = next(panel for panel in result.panels() if panel.key == "neurons")
    assert np.abs(panel.values).max() == pytest.approx(split[split.index.str.contains(r"L\dN")].abs().max())
    assert len(panel.labels) < model.config.d_mlp


def test_attribution_by_position_follows_the_text_and_several_have_intervals(model) -> None:
    result = direct_logit_attribution(model, [PAIR, "The mat sat. ||| The cat sat on the mat."])
    logits = [model(one.source, one.target)[0, -2].detach() for one in translations(model, [PAIR])]
    written = int(translations(model, PAIR)[0].following[0, -2])  # the last before the end token
    total = result.to_dataframe().groupby("text")["value"].sum()
    assert total[0] == pytest.approx(float(logits[0][written] - logits[0].mean()), abs=1e-9)
    assert next(panel for panel in result.panels() if panel.key == "cross-heads").low is not None
    with pytest.raises(InputError, match="position of the target"):
        direct_logit_attribution(model, PAIR, pos=40)


def _loss(model, one) -> float:
    return float(written_loss(model(one.source, one.target), one).mean())


def test_ablation_is_what_zeroing_by_hand_does(model) -> None:
    (one,) = translations(model, PAIR)
    result = ablation(model, PAIR, components="heads,mlps,attention,layers", metrics=("loss", "kl"))
    frame = result.to_dataframe().set_index(["metric", "component"])["effect"]
    clean = _loss(model, one)
    for part, edits in (
        ("enc L1H3", [Replace(name="encoder.1.attn.hook_z", head=3)]),
        ("dec L2H0", [Replace(name="decoder.2.attn.hook_z", head=0)]),
        ("cross L0H1", [Replace(name="decoder.0.cross_attn.hook_z", head=1)]),
        ("enc mlp 0", [Replace(name="encoder.0.hook_mlp_out")]),
        ("cross attn 2", [Replace(name="decoder.2.hook_cross_attn_out")]),
        ("dec layer 1", [Replace(name=f"decoder.1.hook_{end}_out") for end in ("attn", "cross_attn", "mlp")]),
    ):
        with model.hooks(edits):
            changed = _loss(model, one)
        assert frame["loss", part] == pytest.approx(changed - clean, abs=1e-9), part
        assert abs(changed - clean) > 1e-9
        assert frame["kl", part] > 0
    assert np.isnan(result.direct).all()
    assert {"loss-zero-enc-heads", "loss-zero-cross-heads", "kl-zero-others"} <= {
        panel.key for panel in result.panels()
    }
    for options in ({"components": "cross mlps"}, {"components": "L0H1"}, {"layers": (9,)}, {"positions": (30,)}):
        with pytest.raises(InputError):
            ablation(model, PAIR, **options)


SOURCES = torch.tensor([[5, 9, 3, 70, 4, 1], [8, 2, 66, 7, 9, 1], [31, 2, 50, 7, 8, 1]])
TARGETS = torch.tensor([[0, 4, 9, 77, 5], [0, 6, 6, 8, 10], [0, 44, 2, 3, 30]])


def test_every_kind_of_ablation_of_translations_is_what_hooks_do(model, tmp_path) -> None:
    """Each stack's own means, at its own positions, with an answer; and a run that keeps what it has finished."""
    kinds = ("mean", "mean_by_position", "mean_over_texts", "resample")
    parts, spots = "enc L1H3,cross L0H1,dec mlp 2", (1, -1)
    result = ablation(
        model, (SOURCES, TARGETS), components=parts, kinds=kinds, positions=spots, draws=1, seed=3,
        metrics=("loss", "logit_diff"), answer=11, wrong=12,
    )  # fmt: skip
    names = ("encoder.1.attn.hook_z", "decoder.0.cross_attn.hook_z", "decoder.2.hook_mlp_out")
    _, cache = model.run_with_cache(SOURCES, TARGETS)
    following = torch.cat([TARGETS[:, 1:], torch.full((3, 1), model.config.end_token)], 1)
    for p, (name, head) in enumerate(zip(names, (3, 1, None), strict=True)):
        x = cache[name].detach()
        of_others = (x.sum(0, keepdim=True) - x) / 2
        for k, value in enumerate((x.mean((0, 1), keepdim=True), of_others, x.mean(0, keepdim=True))):
            with model.hooks([Replace(name=name, head=head, pos=spots, value=value)]):
                logits = model(SOURCES, TARGETS)
            losses = -logits.log_softmax(-1).gather(-1, following[..., None])[..., 0].mean(1)
            np.testing.assert_allclose(result.values[:, p, k, 0], losses, atol=1e-9)
            np.testing.assert_allclose(result.values[:, p, k, 1], logits[:, 3, 11] - logits[:, 3, 12], atol=1e-9)
    assert {"low", "high", "p", "q"} <= set(result.summary())
    with resumable(tmp_path / "kept"):
        again = ablation(model, (SOURCES, TARGETS), components=parts, kinds=kinds, positions=spots, draws=1, seed=3)
        assert list((tmp_path / "kept").iterdir())
    np.testing.assert_allclose(again.values[..., 0], result.values[..., 0], atol=1e-12)


def test_translations_of_any_length_are_ablated_as_if_alone(model) -> None:
    texts = [PAIR, SOURCE, "A dog. ||| The mat sat on the dog.", "The log sat on a cat. ||| The dog sat."]
    options = {"components": "cross heads", "metrics": ("loss", "prob", "kl")}
    together = ablation(model, texts, **options)
    for i, text in enumerate(texts):
        np.testing.assert_allclose(together.values[i], ablation(model, text, **options).values[0], atol=1e-9)
    ablation(model, texts, components="dec L0H0,enc mlp 1", kinds=("mean_by_position", "resample"), reference=texts[:2])
    assert together.own == ("answer", "wrong answer")  # one of the targets is the model's


def test_patching_the_changed_token_s_embedding_restores_everything(model) -> None:
    other = "The mat sat on the mat."
    result = activation_patching(model, PAIR, other, site="resid_pre,z")
    (one,), source = translations(model, PAIR), model.to_source(other)
    differs = (one.source != source)[0].tolist()
    gap = float(
        written_loss(model(source, one.target), one).sum() - written_loss(model(one.source, one.target), one).sum()
    )
    found = {(patched.place.short, patched.site): patched for patched in result.patched}
    encoder = found["enc", "resid_pre"]
    effects = result.effects(encoder)[0, 0]
    assert sum(differs) == 1
    assert effects[differs.index(True)] == pytest.approx(gap, abs=1e-9)
    assert result.towards(result.patched[0]).gap == pytest.approx(gap, abs=1e-9)
    assert abs(gap) > 1e-6
    np.testing.assert_allclose(effects[[not changed for changed in differs]], 0, atol=1e-9)
    assert encoder.labels == pair_labels(model, one.source)  # the clean tokens, not those that stand in for them
    assert list(found) == [("enc", "resid_pre"), ("dec", "resid_pre"), *((s, "z") for s in ("enc", "dec", "cross"))]
    decoder = result.effects(found["dec", "resid_pre"])[0]
    np.testing.assert_allclose(decoder[0], 0, atol=1e-9)  # both runs read the same target
    assert np.abs(decoder[1:]).max() > 1e-6
    assert set(result.to_dataframe()["stack"]) == {"enc", "dec", "cross"}
    for wrong in ("The cat", SOURCE, [other, other], 3, [3]):
        with pytest.raises(InputError):
            activation_patching(model, PAIR, wrong)
    with pytest.raises(InputError, match="cross_attn_out"):
        activation_patching(model, PAIR, other, site="cross_atn_out")


@pytest.mark.parametrize("site", ["resid_pre", "cross_attn_out", "mlp_out", "z", "k", "pattern"])
def test_patching_translations_equals_a_loop_with_hooks(model, site) -> None:
    other = SOURCES.clone()
    other[:, 2] = torch.tensor([20, 21, 22])
    for metric in (None, "logit"):
        result = activation_patching(
            model, (SOURCES, TARGETS), other, site=site, direction="both", positions=(2, -1), by_position=True,
            metric=metric, layers=(1,), answer=11,
        )  # fmt: skip
        (_, clean), (_, corrupted) = (model.run_with_cache(source, TARGETS) for source in (SOURCES, other))
        following = torch.cat([TARGETS[:, 1:], torch.full((3, 1), model.config.end_token)], 1)
        for patched in result.patched:
            (name,), denoise = patched.place.names, patched.direction == "denoise"
            assert patched.place.layers == (1,)
            for at in np.ndindex(patched.values[0].shape):
                head, pos = at[1] if len(at) == 3 else None, (2, -1)[at[-1]]
                value = (clean if denoise else corrupted)[name]
                with model.hooks([Replace(name=name, value=value, head=head, pos=pos)]):
                    logits = model(other if denoise else SOURCES, TARGETS)
                whole = logits.log_softmax(-1).gather(-1, following[..., None])[..., 0].sum(1)
                expected = whole if metric is None else logits[:, 3, 11]
                np.testing.assert_allclose([x[at] for x in patched.values], expected, atol=1e-9)


def test_what_corrupts_a_source_is_the_change_that_hurts_the_target_most(model) -> None:
    result = activation_patching(model, PAIR, site="mlp_out", seed=2)
    (one,) = translations(model, PAIR)
    (corrupted,) = result.pairs.corrupted
    assert int((corrupted.source != one.source).sum()) == 1
    assert torch.equal(corrupted.target, one.target)
    assert result.measure.corrupted[0] < result.measure.clean[0]
    assert "made the clean target least likely" in " ".join(result.pairs.notes)


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    bert = make(head="masked-language", **BERT | {"d_vocab": len(WORDS), "d_mlp": 24})
    bert.tokenizer = WordPiece.from_directory(tmp_path)
    return bert.requires_grad_(False)


MASKED = ["the [MASK] sat", "the cat [MASK]", "the cats [MASK] the cat"]


def test_ablating_a_head_of_an_encoder_is_what_zeroing_it_in_transformers_does(bert, tmp_path) -> None:
    twin = twin_of(bert, transformers.BertForMaskedLM, tmp_path / "bert")

    def without(module, inputs):
        return inputs[0].index_fill(-1, torch.arange(16, 24), 0.0), *inputs[1:]  # head 2, of width 8

    result = ablation(bert, MASKED, metrics=("loss", "logit", "kl"), answer="sat")
    number = [part.label for part in result.components].index("L1H2")
    sat = bert.to_single_token("sat")
    for i, text in enumerate(MASKED):
        ids = bert.to_tokens(text)
        place = int((ids[0] == bert.tokenizer.mask).int().argmax())
        with torch.no_grad():
            clean = twin(ids).logits[0, place]
            hook = twin.bert.encoder.layer[1].attention.output.dense.register_forward_pre_hook(without)
            changed = twin(ids).logits[0, place]
            hook.remove()
        assert result.values[i, number, 0, 0] == pytest.approx(-float(changed.log_softmax(-1)[sat]), abs=1e-9)
        assert result.values[i, number, 0, 1] == pytest.approx(float(changed[sat]), abs=1e-9)
        assert result.clean[i, 1] == pytest.approx(float(clean[sat]), abs=1e-9)
        assert abs(float(changed[sat] - clean[sat])) > 1e-4
        apart = clean.softmax(-1) * (clean.log_softmax(-1) - changed.log_softmax(-1))
        assert result.values[i, number, 0, 2] == pytest.approx(float(apart.sum()), abs=1e-9)
    assert np.isnan(result.direct).all()
    everything = ablation(bert, MASKED, components="heads,mlps,neurons", kinds=("mean_by_position", "resample", "mean"))
    assert np.isfinite(everything.effects).all()
    assert everything.own == ("answer", "wrong answer")
    ablation(bert, MASKED[0], kinds=("resample",), reference=("the cats sat", "the cat sat the cat"))


def test_patching_an_encoder_equals_a_loop_with_hooks(bert) -> None:
    clean, corrupted = bert.to_tokens("the [MASK] sat"), bert.to_tokens("cat [MASK] sat")
    result = activation_patching(bert, clean, corrupted, site="resid_pre,z", answer="mat", metric="prob")
    _, cache = bert.run_with_cache(clean)
    for patched in result.patched:
        for at in np.ndindex(patched.values[0].shape):
            name, head, pos = patched.place.names[at[0]], at[1], None
            if patched.site == "resid_pre":
                head, pos = None, at[1]
            with bert.hooks([Replace(name=name, value=cache[name], head=head, pos=pos)]):
                logits = bert(corrupted)[0, 2]
            expected = float(logits.softmax(-1)[bert.to_single_token("mat")])
            assert patched.values[0][at] == pytest.approx(expected, abs=1e-9)
    stream = result.effects(result.patched[0])[0]
    assert stream[0, 1] == pytest.approx(result.towards(result.patched[0]).gap, abs=1e-9)
    assert np.abs(stream[1, 0]) > 1e-9  # before the token that differs: later ones are seen too
    alone = activation_patching(bert, MASKED[2])
    assert alone.measure.corrupted[0] != alone.measure.clean[0]


@pytest.mark.parametrize("text", ["the cat sat", "[MASK] cat [MASK]", None])
def test_a_text_without_its_one_mask_is_refused(bert, text) -> None:
    for analysis in (ablation, activation_patching):
        with pytest.raises(InputError, match="MASK"):
            analysis(bert, text)
    with pytest.raises(NotApplicable, match="masked-language"):
        ablation(make(**VIT), torch.randn(1, 3, 24, 16, dtype=torch.float64))


def test_weight_statistics_name_every_matrix_of_every_stack(model) -> None:
    result = weight_statistics(model)
    names = result.whole["matrix"].tolist()
    assert len(names) == 2 * 6 + 3 * (6 + 4) + 1
    assert {"enc L1 W_Q", "dec L2 W_out", "cross L0 W_V", "W_E"} <= set(names)
    row = result.matrices.set_index("matrix").loc["L2H3 cross W_K"]
    assert row["std"] == pytest.approx(float(model.decoder[2].cross_attn.W_K[3].std(correction=0)), rel=1e-6)
    assert set(result.gains["norm"]) == {"enc ln1", "enc ln2", "dec ln1", "dec ln2", "dec ln3"}


@pytest.mark.parametrize("name", sorted(SERVED))
def test_every_result_shows_itself(model, name) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    section = run(find(name), model, PAIR, find(name).report_options)
    assert len(section.result.to_dataframe())
    keys = [panel.key for panel in section.result.panels()]
    assert len(keys) == len(set(keys))
    assert {finding.key for finding in section.result.findings()} <= set(keys)
    terminal.show(section.result)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(point.active for point in model.hook_points.values())


def test_a_report_says_which_analyses_cannot_serve(model) -> None:
    made = report(model, PAIR, analyses=["attention-patterns", "logit-lens", "embeddings", "neurons"])
    assert [section.name for section in made.sections] == ["attention_patterns", "logit_lens", "left_out"]
    assert tuple(made.sections[-1].result.reasons) == ("embeddings", "neurons")
    assert [len(tokens) for tokens in made.tokens] == [x.shape[1] for x in model.to_pair(SOURCE, "The dog sat.")]
    assert "2 encoder + 3 decoder layers" in made.provenance["shape"]
    assert "does not read this kind of model: embeddings, neurons" in render(made)
    with pytest.raises(InputError, match="does not read this kind"):
        run(find("embeddings"), model, PAIR)
    assert {name for name, analysis in discover().items() if analysis.serves(model)} == SERVED


def test_the_command_reports_on_a_directory(model, tmp_path) -> None:
    model.float().save_pretrained(tmp_path / "pair")
    page = tmp_path / "page.html"
    options = ["--analyses", "attention-patterns,logit-lens", "--model", str(tmp_path / "pair"), "--out", str(page)]
    result = CliRunner().invoke(app, ["report", TEXT.split(".")[0], *options])
    model.double()
    assert result.exit_code == 0, result.output
    assert "Attention patterns (cross-attention)" in page.read_text()
    assert 'id="head"' not in page.read_text()  # L0H1 could be any of three heads


def test_a_page_that_leaves_analyses_out_is_made_again(model, tmp_path) -> None:
    model.float().save_pretrained(tmp_path / "pair")
    model.double()
    page, given = tmp_path / "page.html", ["--model", str(tmp_path / "pair")]
    options = ["--analyses", "attention-patterns,neurons", "--out", str(page)]
    assert CliRunner().invoke(app, ["report", SOURCE, *options, *given]).exit_code == 0
    checked = CliRunner().invoke(app, ["rerun", str(page), "--check", *given])
    assert checked.exit_code == 0, checked.output
    assert "left-out" in checked.output


def test_any_pattern_fits_into_the_viewer_s_triangle() -> None:
    pattern = np.random.default_rng(0).dirichlet(np.ones(7), size=(2, 3, 5))
    whole = packing.joined(pattern)
    assert whole.shape == (2, 3, 12, 12)
    assert (np.triu(whole) == 0).all()
    back = packing.unpack(packing.pack(whole[1]), 3, 12)
    np.testing.assert_allclose(back[:, 7:, :7], pattern[1], atol=5e-4)
    assert back[:, :7].max() == 0
    assert packing.thumbnails(pattern).shape == (2, 3, 7, 7)


def test_an_encoder_s_patterns_are_shown(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    bert = make(head="masked-language", **BERT | {"d_vocab": len(WORDS), "d_mlp": 24})
    bert.tokenizer = WordPiece.from_directory(tmp_path)
    made = report(bert, "the cats sat", analyses=["attention_patterns"])
    (stack,) = made.sections[0].result.stacks
    _, cache = bert.run_with_cache("the cats sat")
    np.testing.assert_allclose(stack.patterns[0], cache.stack("pattern")[:, 0].detach().numpy(), atol=1e-6)
    assert "[CLS]" in render(made)


def test_an_image_encoder_s_attention_lies_on_the_image_grid() -> None:
    vit = make(**VIT)
    images = torch.randn(2, 3, 24, 16, dtype=torch.float64)

    def look(pattern, hook):
        out = torch.zeros_like(pattern)
        out[..., 1 + 1 * 4 + 2] = 1.0  # row 1, column 2 of a 3 x 4 grid
        return out

    with vit.hooks([("pattern", look)]):
        panels = {panel.key: panel for panel in attention_patterns(vit, images).panels()}
    assert panels["image-last"].values.shape == (3, 4)
    assert panels["image-last"].values[1, 2] == 1.0
    assert panels["image-last"].values.sum() == 1.0
    with pytest.raises(InputError, match="images"):
        attention_patterns(vit, "text")


def test_sweeps_of_a_translation_model_can_be_kept_and_run_in_another_dtype(tmp_path, capsys) -> None:
    """As a decoder's: weights stay in float32, and what the other dtype changed is measured and told."""
    given = ("ablation", "le chat dort.", "--model", "fr-en", "--components", "mlps")
    plain = interp(capsys, *given)
    kept = interp(capsys, *given, "--resume", tmp_path / "kept")
    assert (plain.code, kept.code, kept.out) == (0, 0, plain.out)
    page = tmp_path / "page.html"
    done = interp(capsys, *given, "--dtype", "bfloat16", "--out", page)
    assert done.code == 0, done.err
    assert "bfloat16 against float32" in done.err
    assert '"dtype of sweeps":"bfloat16"' in page.read_text()
    checked = interp(capsys, "rerun", page, "--check", "--model", "fr-en")
    assert checked.code == 0, checked.err
