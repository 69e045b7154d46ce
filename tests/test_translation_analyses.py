"""The analyses that serve translation models and encoders: against the model itself, closed forms, and controls."""

import numpy as np
import pytest
import torch
from command_line import interp
from conftest import TEXT
from test_encoder import BERT, VIT, WORDS, make
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
from interp.errors import InputError
from interp.interventions import Replace
from interp.text.source_target import SharedTokenizer
from interp.text.wordpiece import WordPiece
from interp.translation_residual import decompose_decoder, needed
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
        assert stack.measures["entropy"].shape == (1, len(stack.patterns[0]), 4)
    beyond = [{"last", "next"} & set(stack.measures) for stack in result.stacks]
    assert beyond == [{"last", "next"}, set(), {"last"}]  # what a causal pattern never reaches is not measured
    cross = result.stacks[2]
    assert len(cross.keys[0]) == one.source.shape[1]
    assert len(cross.queries[0]) == one.target.shape[1]
    by_hand = cross.patterns[0][..., :-1].mean((0, 1)).argmax(-1)
    assert result.alignment["source"].tolist() == [cross.keys[0][key] for key in by_hand]


def test_a_head_that_looks_at_one_key_has_no_entropy(model) -> None:
    def look(pattern, hook):
        out = torch.zeros_like(pattern)
        out[..., 2] = 1.0
        return out

    with model.hooks([("decoder.1.cross_attn.hook_pattern", look)]):
        result = attention_patterns(model, PAIR)
    entropy = result.stacks[2].measures["entropy"][0]
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
    logits, cache = model.run_with_cache(one.source, one.target, names=needed)
    there = logits[0, 2].detach()
    frame = result.to_dataframe()
    assert frame["value"].sum() == pytest.approx(
        float(there[11] - (there.mean() if wrong is None else there[7])), abs=1e-9
    )
    parts, labels = decompose_decoder(model, cache)
    column = model.W_U[:, 11] - (model.W_U.mean(1) if wrong is None else model.W_U[:, 7])
    expected = float((parts[labels.index("cross L1H2"), 0, 2] @ column).detach())
    assert frame.set_index("part").loc["cross L1H2", "value"] == pytest.approx(expected, abs=1e-9)
    cross = frame[frame["part"].str.startswith("cross L")]["value"].sum()
    assert result.strips[0].values.sum() == pytest.approx(cross, abs=1e-9)


def test_ablation_is_what_zeroing_by_hand_does(model) -> None:
    (one,) = translations(model, PAIR)
    result = ablation(model, PAIR, components="heads,mlps,attention", metrics=("loss", "kl"))
    frame = result.to_dataframe().set_index(["grid", "part"])["value"]
    clean = float(written_loss(model(one.source, one.target), one).mean())
    for grid, part, name, head in (
        ("loss-enc-heads", "enc L1H3", "encoder.1.attn.hook_z", 3),
        ("loss-dec-heads", "dec L2H0", "decoder.2.attn.hook_z", 0),
        ("loss-cross-heads", "cross L0H1", "decoder.0.cross_attn.hook_z", 1),
        ("loss-enc-mlps", "enc mlp 0", "encoder.0.hook_mlp_out", None),
        ("loss-cross-attention", "cross attn 2", "decoder.2.hook_cross_attn_out", None),
    ):
        with model.hooks([Replace(name=name, head=head)]):
            changed = float(written_loss(model(one.source, one.target), one).mean())
        assert frame[grid, part] == pytest.approx(changed - clean, abs=1e-9), part
        assert abs(changed - clean) > 1e-9
        assert frame[grid.replace("loss", "kl"), part] > 0
    for options in ({"components": "neurons"}, {"kinds": ("mean",)}, {"layers": (9,)}):
        with pytest.raises(InputError):
            ablation(model, PAIR, **options)


def test_patching_the_changed_token_s_embedding_restores_everything(model) -> None:
    other = "The mat sat on the mat."
    result = activation_patching(model, PAIR, other, site="resid_pre,z")
    (one,), source = translations(model, PAIR), model.to_source(other)
    differs = (one.source != source)[0].tolist()
    gap = float(
        written_loss(model(source, one.target), one).sum() - written_loss(model(one.source, one.target), one).sum()
    )
    grid = next(grid for grid in result.grids if grid.key == "enc-resid-pre")
    assert sum(differs) == 1
    assert grid.values[0, 0, differs.index(True)] == pytest.approx(gap, abs=1e-9)
    assert abs(gap) > 1e-6
    same = [value for value, changed in zip(grid.values[0, 0], differs, strict=True) if not changed]
    np.testing.assert_allclose(same, 0, atol=1e-9)
    assert grid.columns == pair_labels(model, one.source)  # the clean tokens, not those that stand in for them
    assert {grid.key for grid in result.grids} == {"enc-resid-pre", "dec-resid-pre", "enc-z", "dec-z", "cross-z"}
    decoder = next(grid for grid in result.grids if grid.key == "dec-resid-pre")
    np.testing.assert_allclose(decoder.values[0, 0], 0, atol=1e-9)  # both runs read the same target
    assert np.abs(decoder.values[0, 1:]).max() > 1e-6
    with pytest.raises(InputError, match="tokens"):
        activation_patching(model, PAIR, "The cat")


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
    made = report(model, PAIR, analyses=["attention-patterns", "logit-lens", "composition", "neurons"])
    assert [section.name for section in made.sections] == ["attention_patterns", "logit_lens", "left_out"]
    assert tuple(made.sections[-1].result.reasons) == ("composition", "neurons")
    assert [len(tokens) for tokens in made.tokens] == [x.shape[1] for x in model.to_pair(SOURCE, "The dog sat.")]
    assert "2 encoder + 3 decoder layers" in made.provenance["shape"]
    assert "does not read this kind of model: composition, neurons" in render(made)
    with pytest.raises(InputError, match="does not read this kind"):
        run(find("composition"), model, PAIR)
    assert {name for name, analysis in discover().items() if analysis.serves(model)} == SERVED


def test_the_command_reports_on_a_directory(model, tmp_path) -> None:
    model.float().save_pretrained(tmp_path / "pair")
    page = tmp_path / "page.html"
    options = ["--analyses", "attention-patterns,logit-lens", "--model", str(tmp_path / "pair"), "--out", str(page)]
    result = CliRunner().invoke(app, ["report", TEXT.split(".")[0], *options])
    model.double()
    assert result.exit_code == 0, result.output
    assert "Patterns of cross-attention" in page.read_text()
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
    bert = make(head="masked-language", **BERT | {"d_vocab": len(WORDS)})
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


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("ablation", ("--answer", "x")), ("ablation", ("--draws", "3")), ("ablation", ("--memory", "1000000")),
        ("activation-patching", ("--layers", "1")), ("activation-patching", ("--by-position",)),
        ("activation-patching", ("--metric", "logit")), ("activation-patching", ("--positions", "1")),
        ("direct-logit-attribution", ("--neurons",)), ("attention-patterns", ("--clusters", "3")),
        ("ablation", ("--ray", "local")), ("activation-patching", ("--resume", "kept")),
    ],
)  # fmt: skip
def test_an_option_that_translation_models_do_not_read_is_refused(capsys, command, option) -> None:
    done = interp(capsys, command, "le chat dort.", "--model", "fr-en", *option)
    assert done.code == 2
    assert 2 <= len(done.err.strip().splitlines()) <= 3
    assert option[0].strip("-").replace("-", "_") in done.err


def test_the_page_of_a_translation_model_names_the_dtype_that_ran(tmp_path, capsys) -> None:
    """No sweep runs there, so --dtype is that of the weights, and no dtype of sweeps is claimed."""
    page = tmp_path / "page.html"
    done = interp(
        capsys, "ablation", "le chat dort.", "--model", "fr-en", "--dtype", "bfloat16", "--components", "mlps",
        "--out", page,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert '"dtype":"bfloat16"' in page.read_text()
    assert "dtype of sweeps" not in page.read_text()
