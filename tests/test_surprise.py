"""The loss of a text, against its definition, and beside guesses that need no model."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt

import interp
from analyses.surprise import surprise
from interp.errors import InputError
from interp.text.documents import read_documents
from interp.training.evaluation import SAMPLE


def test_every_loss_is_minus_the_log_of_the_probability_given() -> None:
    model = make_gpt(dtype=torch.float64)
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    result = surprise(model, ids)
    with torch.no_grad():
        logits = model(ids)
    for text, losses in enumerate(result.losses):
        for pos, loss in enumerate(losses):
            row = logits[text, pos]
            assert loss == pytest.approx(float(torch.logsumexp(row, 0) - row[ids[text, pos + 1]]), abs=1e-12)
    assert result.loss == pytest.approx(np.mean([*result.losses[0], *result.losses[1]]))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.uniform == pytest.approx(math.log(300))
    best = logits[0, -1].argmax()
    assert result.following[0] == f"<{best}>"
    assert len(result.to_dataframe()) == 38


def test_the_guess_by_frequency_counts_the_sample() -> None:
    model = interp.load("tiny")
    text = "The Romans built a road."
    result = surprise(model, text)
    counts = Counter(i for document in read_documents(SAMPLE) for i in model.tokenizer.encode(document))
    total = sum(counts.values()) + model.config.d_vocab
    ids = model.to_tokens(text)[0, 1:].tolist()
    expected = [-math.log((counts[i] + 1) / total) for i in ids]
    np.testing.assert_allclose(result.by_frequency[0], expected, rtol=1e-12)


def test_a_trained_model_beats_both_guesses_and_shuffled_text_costs_more() -> None:
    model = interp.load("tiny")
    result = surprise(model, TEXT)
    ids = model.to_tokens(TEXT)
    order = 1 + torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    shuffled = surprise(model, torch.cat([ids[:, :1], ids[:, order]], 1))
    assert result.loss + 1 < result.guess < result.uniform
    assert shuffled.loss > result.loss + 1
    assert [finding.kind for finding in result.findings()] == ["size"]


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_look_untrained(seed: int) -> None:
    model = make_gpt(seed=seed, init_std=0.02)
    ids = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(seed))
    (finding,) = surprise(model, ids).findings()
    assert finding.kind == "warning"
    assert "looks untrained" in finding.text


def test_one_token_has_no_loss() -> None:
    with pytest.raises(InputError, match="at least 2"):
        surprise(make_gpt(), torch.zeros((1, 1), dtype=torch.long))
