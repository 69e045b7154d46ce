"""Neurons: shares sum to one, tokens come from the weights, ablations equal plain hooks; a planted one is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import Space, empty
from shapes import SHAPES, toy

from analyses.neurons import neurons, output_shares
from analyses.shared import contexts
from analyses.shared.panels import Bars, Matrix, Note, Table
from interp.errors import InputError, NotApplicable
from interp.processing import process_weights
from interp.text.documents import Documents
from reports.page.html import Report, Section, render


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 60, (3, 12), generator=torch.Generator().manual_seed(4))


def planted():
    """Layer 1, neuron 2 fires at token 7 and then raises token 9; all other weights of the MLPs are zero."""
    model = empty(Space(20, 16))
    mlp = model.blocks[1].mlp
    with torch.no_grad():
        mlp.W_in[7, 2] = 3.0
        mlp.b_in[2] = -10.0
        mlp.W_out[2, 9] = 0.2
    return model


def test_shares_and_the_bias_sum_to_one_and_match_a_slow_loop(tokens):
    model = make_gpt(dtype=torch.float64, d_vocab=60)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[:1])
    shares, bias = output_shares(model, cache)
    np.testing.assert_allclose(shares.sum(1) + bias, 1, atol=1e-12)
    out, post = cache["mlp_out", 1][0, 1:], cache["post", 1][0, 1:]
    own = post[:, 5, None] * model.W_out[1, 5].detach()
    assert shares[1, 5] == pytest.approx(float((own * out).sum() / out.square().sum()), abs=1e-12)
    assert np.abs(shares.sum(1) - 1).max() > 1e-4  # without the bias they do not


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("attention only", "bidirectional")])
def test_shares_of_every_kind_of_mlp_sum_to_one_and_reads_are_what_moves_it(shape, tokens):
    model = toy(shape, dtype=torch.float64, d_vocab=60)
    cache = model.run_with_cache(tokens[:1])[1]
    shares, bias = output_shares(model, cache)
    np.testing.assert_allclose(shares.sum(1) + bias, 1, atol=1e-9)
    if model.config.norm_place != "pre":  # the control: as if nothing came between the MLP and the stream
        out, post = cache["mlp_out", 1][0, 1:], cache["post", 1][0, 1:]
        plain = (post * (out @ model.W_out[1].detach().T)).sum(0) / out.square().sum()
        assert abs(float(plain.sum()) - 1) > 0.01
    result = neurons(model, tokens, chosen=("L1N4",), top=1)
    assert bool(result.scaled_by) == model.config.gated
    block = model.blocks[1]
    with torch.no_grad():
        x = block.ln2.share(model.W_E, torch.ones(1))
        pairs = {"W_gate": result.reads, "W_in": result.scaled_by} if model.config.gated else {"W_in": result.reads}
        for name, found in pairs.items():
            assert found[0] == (f"<{int((x @ getattr(block.mlp, name)[:, 4]).argmax())}>",)
        written = block.ln2_post.share(model.W_out[1, 4], torch.ones(1))
        logits = model.ln_final.share(written, torch.ones(1)) @ model.W_U
    assert result.raises[0] == (f"<{int(logits.argmax())}>",)
    assert {"gate reads", "linear part reads"} <= set(result.panels()[0].frame) or not model.config.gated


@pytest.mark.parametrize("shape", ["attention only", "bidirectional"])
def test_models_without_mlps_or_next_tokens_are_refused(shape, tokens):
    with pytest.raises(NotApplicable):
        neurons(toy(shape, d_vocab=60), tokens)


def test_planted_neuron_is_found():
    model = planted()
    tokens = torch.tensor([[1, 7, 9, 3, 7, 9, 5, 2, 7, 9]])
    result = neurons(model, tokens, count=1, top=1)
    assert result.names == ("L1N2",)
    assert result.share[0, 0] == pytest.approx(1.0)
    assert result.reads[0] == ("<7>",)
    assert result.raises[0] == ("<9>",)
    assert list(np.flatnonzero(result.activations[0][0] > 1)) == [1, 4, 8]
    assert result.effect["loss"][0, 0] > 0.1
    assert result.effect["kl"][0, 0] > 0.01
    others = neurons(model, tokens, chosen=("L0N0", "L1N1"))  # the control: neurons that write nothing
    np.testing.assert_allclose(others.effect["loss"], 0, atol=1e-6)
    assert others.share[0, 1] == 0


@pytest.mark.parametrize("value", ["mean", "zero"])
def test_effects_are_those_of_a_plain_hook(tokens, value):
    model = make_gpt(d_vocab=60)
    result = neurons(model, tokens, chosen=("L0N3", "L1N40"), value=value)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        for column, (layer, number) in enumerate(result.neurons):
            mean = float(cache["post", layer][:, 1:, number].mean())

            def hold(x, hook, held=mean if value == "mean" else 0.0, number=number):
                x[..., number] = held

            for text in range(3):
                ids = tokens[text : text + 1]
                clean = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
                with model.hooks([(f"blocks.{layer}.mlp.hook_post", hold)]):
                    changed = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
                assert result.effect["loss"][text, column] == pytest.approx(float(changed - clean), abs=2e-6)
    assert np.abs(result.effect["loss"]).max() > 1e-3


def test_tokens_are_those_of_folded_weights(tokens):
    model = make_gpt(dtype=torch.float64, d_vocab=60)
    folded = process_weights(model)
    raw, same = (neurons(each, tokens, chosen=("L1N4",), top=60) for each in (model, folded))
    assert raw.reads == same.reads
    assert raw.raises == same.raises
    logits = (folded.W_out[1, 4] @ folded.W_U).detach()
    assert list(raw.raises[0]) == [f"<{i}>" for i in logits.argsort(descending=True).tolist()]
    assert list(raw.lowers[0]) == list(reversed(raw.raises[0]))


def test_top_neurons_have_the_largest_shares(tokens):
    result = neurons(make_gpt(d_vocab=60), tokens, count=5)
    every = [f"L{layer}N{n}" for layer in range(2) for n in range(128)]
    all_shares = neurons(make_gpt(d_vocab=60), tokens, chosen=tuple(every)).share.mean(0)
    assert set(result.names) == {every[i] for i in np.argsort(-all_shares)[:5]}


DOCUMENTS = ("The cat sat on the mat.", "The dog", "A bird sang; the cat, and the dog, heard it.", "Rain fell on it")


def slow_contexts(model, places, documents):
    """Per neuron: (activation, number of the document, position) of the largest of each, and the share of all tokens at
    which a tenth of the largest is reached; one document and one neuron at a time."""
    found, shares = [], []
    for layer, n in places:
        rows = [model.run_with_cache(text)[1]["post", layer][0, 1:, n].tolist() for text in documents]
        largest = [max(range(len(row)), key=lambda at, row=row: abs(row[at])) for row in rows]
        best = sorted(((row[at], text, 1 + at) for text, (row, at) in enumerate(zip(rows, largest, strict=True))),
                      key=lambda one: -abs(one[0]))  # fmt: skip
        every = [abs(value) for row in rows for value in row]
        found.append(best)
        shares.append(sum(value >= max(every) / 10 for value in every) / len(every))
    return found, shares


@pytest.mark.parametrize("shape", ["gpt2", "llama", "bidirectional"])
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_contexts_equal_a_slow_loop(toy_tokenizer, monkeypatch, shape, at_once):
    monkeypatch.setattr(contexts, "AT_ONCE", at_once)
    model = toy(shape, tokenizer=toy_tokenizer, d_vocab=300)
    places = [(1, 3), (0, 7), (1, 11)]
    found = contexts.top_contexts(model, places, DOCUMENTS, 3)
    expected, shares = slow_contexts(model, places, DOCUMENTS)
    np.testing.assert_allclose(found.active, shares, atol=1e-12)
    assert (found.n_texts, found.n_tokens) == (4, sum(len(model.to_str_tokens(text)) - 1 for text in DOCUMENTS))
    for top, best in zip(found.top, expected, strict=True):
        assert [one.activation for one in top] == pytest.approx([value for value, *_ in best[:3]], abs=1e-5)
        for one, (_, text, at) in zip(top, best, strict=False):
            labels = model.to_str_tokens(DOCUMENTS[text])
            assert list(one.tokens) == labels[max(1, at - contexts.BEFORE) : at + contexts.AFTER + 1]
            assert one.tokens[one.peak] == labels[at]
    assert [one.activation for one in found.top[0]] != pytest.approx([value for value, *_ in expected[2][:3]], abs=1e-3)


def test_contexts_run_no_layer_in_vain_and_no_more_than_enough(toy_gpt, monkeypatch):
    last, whole = toy_gpt.blocks[1].mlp, type(toy_gpt.blocks[1].mlp).forward

    def forward(self, *inputs, **options):
        assert self is not last, "a layer ran that no neuron needs"
        return whole(self, *inputs, **options)

    monkeypatch.setattr(type(last), "forward", forward)
    book = "The cat sat on the mat. " * 20_000
    found = contexts.top_contexts(toy_gpt, [(0, 1)], [book, "The dog", "Rain"], 5)
    assert contexts.FEWEST // 2 < found.n_tokens <= contexts.MOST
    assert len(found.top[0]) == 5
    with pytest.raises(AssertionError, match="no neuron needs"):
        contexts.top_contexts(toy_gpt, [(1, 1)], ["The dog"], 5)


def test_a_corpus_is_read_and_its_text_is_never_markup(toy_gpt, tmp_path):
    (tmp_path / "corpus.txt").write_text("<script>alert(1)</script>\f<b>bold</b>\u202e & more")
    corpus = Documents.load(tmp_path / "corpus.txt")
    result = neurons(toy_gpt, "The cat sat", chosen=("L0N1", "L1N2"), corpus=corpus)
    assert result.contexts.n_texts == 2
    frame = result.contexts.to_dataframe(result.names)
    assert frame["neuron"].tolist() == ["L0N1"] * 2 + ["L1N2"] * 2
    section = Section("neurons", "Neurons", "", result, 0.0)
    page = render(Report("page", (), (section,), {}))
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "\u202e" not in page
    assert neurons(toy_gpt, "The cat sat").contexts.n_texts > 2  # the sample that comes along
    with pytest.raises(InputError, match="reads no token"):
        neurons(toy_gpt, "The cat sat", corpus=Documents())
    assert neurons(make_gpt(d_vocab=60), torch.arange(9)[None]).contexts is None


def test_frame_panels_and_findings(toy_gpt, tokens):
    result = neurons(toy_gpt, ["The cat sat on the mat.", "The dog"], count=3)
    frame = result.to_dataframe()
    assert len(frame) == 6
    for row in frame.itertuples():
        number = result.names.index(row.neuron)
        values = result.activations[row.text][number]
        assert row.peak_activation == values[np.abs(values).argmax()]
        assert row.peak_token == result.tokens[row.text][np.abs(values).argmax()]
    turned = replace(result, activations=tuple(-a for a in result.activations))
    peaks, others = (one.panels()[0].frame.peak for one in (result, turned))
    assert (peaks == -others).all()  # a neuron that is strong below zero is as strong
    assert [type(panel) for panel in result.panels()] == [Table, Table, Matrix, Bars, Note]
    bars = result.panels()[3]
    assert bars.labels[-1] == "random neurons"
    assert bars.low is not None
    assert result.findings() == []  # two texts prove nothing
    rise = np.array([0.0, 0.0, 0.5]) + 0.001 * np.arange(24).reshape(8, 3)
    strong = replace(result, texts=result.texts * 4, effect=dict.fromkeys(("loss", "kl"), rise))
    (found,) = strong.findings()
    assert found.about == result.names[2]
    assert "random neuron" in found.text
    assert found.p == pytest.approx(2 / 2**8)
    assert 0 < found.low < found.value == pytest.approx(rise[:, 2].mean())
    assert replace(strong, effect=dict.fromkeys(("loss", "kl"), rise - 0.5)).findings() == []  # below the floor
    one = neurons(toy_gpt, "The cat sat", count=3)
    assert one.panels()[3].low is None


@pytest.mark.parametrize(
    "options", [{"chosen": ("L2N0",)}, {"chosen": ("L0N128",)}, {"chosen": ("L0H0",)}, {"count": 0}, {"top": 0}]
)
def test_what_cannot_be_used_is_refused(tokens, options):
    with pytest.raises(InputError):
        neurons(make_gpt(d_vocab=60), tokens, **options)
