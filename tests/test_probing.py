"""The analysis on the bundled model: it learns from the texts beside the weights and says so when there are none."""

import numpy as np
import pytest
import torch
from shapes import toy

from analyses.probes.data import run_model
from analyses.probing import MOST_TOKENS, probing
from interp.errors import InputError, NotFoundError
from interp.models.gpt import HookedGPT
from interp.text.documents import Documents
from interp.training.evaluation import SAMPLE

TEXT = "Sir Harold Whitcombe was born in Leeds. In 1874 Harold Whitcombe moved to London."


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return HookedGPT.from_pretrained("tiny", device="cpu")


@pytest.mark.slow
def test_the_bundled_model_knows_what_it_has_seen_from_layer_2_on(tiny: HookedGPT) -> None:
    result = probing(tiny, TEXT, documents=Documents.load(SAMPLE))
    sweep = result.sweeps["seen-before"]
    accuracy = dict(zip(sweep.labels, sweep.interval("probe").value, strict=True))
    assert accuracy["L2 out"] > accuracy["L1 out"] + 0.05
    assert sweep.labels[sweep.best] in ("L2 mid", "L2 out", "L3 mid")
    assert (sweep.difference("probe", "random").low[sweep.best]) > 0.05
    assert set(result.sweeps) == {"seen-before", "capital", "in-quotation", "position", "next-punctuation"}
    assert result.positions <= MOST_TOKENS + 255
    assert np.isnan(result.reading[0])
    assert ((result.reading[1:] >= 0) & (result.reading[1:] <= 1)).all()
    tokens = list(result.tokens)
    second = len(tokens) - tokens[::-1].index("com") - 1  # of Whitcombe, the second time
    assert result.reading[second] > result.reading[tokens.index("com")] + 0.3
    assert "seen-before" in result.findings()[0].text


def test_several_texts_are_learned_from_when_there_are_no_documents(toy_gpt: HookedGPT) -> None:
    words = ["river", "John", "Mary", "the", "cat", "sat", "Leeds", "met"]
    rng = np.random.default_rng(0)
    context = toy_gpt.config.n_ctx
    texts = []
    for _ in range(12):
        text = " ".join(rng.choice(words, 40))
        while toy_gpt.to_tokens(text).shape[1] > context:
            text = text.rpartition(" ")[0]
        texts.append(text)
    result = probing(toy_gpt, texts)
    assert result.texts == len(texts)
    assert len(result.tokens) == 0  # what was learned from is not read
    assert {"seen-before", "capital"} <= set(result.sweeps)
    assert result.to_dataframe()["label"].unique().tolist() == list(result.sweeps)
    again = probing(toy_gpt, texts, label="capital")
    for name, sweep in result.sweeps.items():  # they do not depend on which of them is shown first
        np.testing.assert_array_equal(again.sweeps[name].accuracy["probe"], sweep.accuracy["probe"])


@pytest.mark.parametrize("shape", ["llama", "neox", "attention only", "no norm"])
def test_every_shape_is_probed_where_its_stream_is(shape: str, toy_gpt: HookedGPT) -> None:
    model = toy(shape, tokenizer=toy_gpt.tokenizer)
    words = ["river", "John", "Mary", "the", "cat"]
    rng = np.random.default_rng(0)
    result = probing(model, [" ".join(rng.choice(words, 12)) for _ in range(30)])
    between = model.config.n_layers * (not (model.config.parallel or model.config.attn_only))
    assert len(result.sweeps["seen-before"].names) == 1 + model.config.n_layers + between


@pytest.mark.parametrize("shape", ["bidirectional", "mistral"])
def test_padding_is_seen_by_no_token(shape: str) -> None:
    """Windows of several lengths, run together, give what each gives alone."""
    model = toy(shape)
    windows = [torch.arange(length) + 3 * length for length in (9, 4, 6)]
    names = model.match("resid_post")
    held = run_model(model, windows, range(3), names, bos=False)
    for name in names:
        with torch.no_grad():
            alone = [model.run_with_cache(window[None], names=name)[1][name][0] for window in windows]
        np.testing.assert_allclose(held.values[name], torch.cat(alone).numpy(), rtol=0, atol=2e-5)


def test_too_little_text_is_said_not_raised(toy_gpt: HookedGPT) -> None:
    result = probing(toy_gpt, TEXT[:20])
    assert result.sweeps == {}
    (note,) = result.panels()
    assert "Nothing was fitted" in note.text
    assert result.findings() == []
    assert len(result.to_dataframe()) == 0
    with pytest.raises(InputError, match="expected one of"):
        probing(toy_gpt, TEXT[:20], label="noun")


def test_random_numbers_of_others_do_not_change(toy_gpt: HookedGPT) -> None:
    from analyses.probes.probe_layers import random_twin

    state = torch.random.get_rng_state()
    one, two = random_twin(toy_gpt, 3), random_twin(toy_gpt, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.W_E, two.W_E)
    assert not torch.equal(one.W_E, random_twin(toy_gpt, 4).W_E)


def test_documents_are_read_from_a_file(tmp_path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("One.\n\f\nTwo.\f \f")
    assert Documents.load(path) == ("One.", "Two.")
    with pytest.raises(NotFoundError):
        Documents.load(tmp_path / "none.txt")
