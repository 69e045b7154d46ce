"""The evaluation: bits per byte against a slow sum, head scores of a model built so that they are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.errors import InputError, NotFoundError
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.text.documents import read_documents
from interp.text.tokenizer import Tokenizer
from interp.training import corpus
from interp.training.evaluation import bits_per_byte, evaluate, head_scores, windows

TEXT = "A naïve café served twelve cups of tea, and then twelve more. " * 3


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    backend = corpus.train_tokenizer([TEXT], 280)
    config = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=16, d_vocab=280, init_std=0.3)
    torch.manual_seed(0)
    return HookedGPT(config, tokenizer=Tokenizer(backend))


@pytest.mark.parametrize("stride", [None, 1, 5, 15])
def test_bits_per_byte_is_the_slow_sum(model: HookedGPT, stride: int | None) -> None:
    documents = [TEXT, "Tea.", TEXT[5:90]]
    bits = 0.0
    assert model.tokenizer is not None
    for text in documents:
        ids = model.tokenizer.encode(text)
        step = stride or 8
        for i, token in enumerate(ids):
            end = 15 if i < 15 else 15 + math.ceil((i - 14) / step) * step
            context = [0, *ids[max(0, min(end, len(ids)) - 15) : i]]
            bits -= float(model(torch.tensor([context])).detach().log_softmax(-1)[0, -1, token]) / math.log(2)
    expected = bits / sum(len(text.encode()) for text in documents)
    assert bits_per_byte(model, documents, stride=stride, batch=3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("length", "width", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 3), (50, 8, 8)])
def test_every_token_is_scored_once(length: int, width: int, stride: int) -> None:
    ids = list(range(length))
    scored = [token for row, counted in windows(ids, width, stride) for token in row[len(row) - counted :]]
    assert scored == ids
    assert all(len(row) <= width for row, _ in windows(ids, width, stride))


def test_nothing_to_score_is_refused(model: HookedGPT) -> None:
    with pytest.raises(InputError, match="no text"):
        bits_per_byte(model, [""])
    with pytest.raises(InputError, match="stride 16"):
        bits_per_byte(model, [TEXT], stride=16)
    with pytest.raises(InputError, match="half = 8"):
        head_scores(model, half=8)


def handmade(offset: int, half: int) -> HookedGPT:
    """One head that attends from every position to the one `offset` before it (to the first where there is none)."""
    length = 2 * half + 1
    width = length
    config = GPTConfig(n_layers=1, n_heads=1, d_model=width, n_ctx=length, d_vocab=50)
    model = HookedGPT(config)
    block = model.blocks[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_pos.copy_(torch.eye(length))
        block.ln1.w.fill_(1)
        shift = torch.zeros(width, width)
        for query in range(length):
            shift[query, max(0, query - offset)] = 1
        block.attn.W_Q_flat.copy_(100 * shift)
        block.attn.W_K_flat.copy_(torch.eye(width))
    return model


@pytest.mark.parametrize("half", [4, 10])
def test_scores_of_heads_that_are_known(half: int) -> None:
    shifter, copier, other = (head_scores(handmade(offset, half), half=half) for offset in (1, half - 1, half - 2))
    assert shifter.previous_token.item() == pytest.approx(1, abs=1e-4)
    assert copier.induction.item() == pytest.approx(1, abs=1e-4)
    assert other.induction.item() < 0.01, "control: one place beside is no induction"
    assert shifter.induction.item() < 0.01
    assert copier.previous_token.item() == pytest.approx(1 / (2 * half), abs=1e-3), "only position 1, to the first"


def test_an_attention_without_preference_scores_what_chance_gives() -> None:
    model = handmade(1, 10)
    with torch.no_grad():
        model.blocks[0].attn.W_Q_flat.zero_()
    scores = head_scores(model, half=10)
    assert scores.induction.item() == pytest.approx(np.mean([1 / (q + 1) for q in range(11, 21)]), rel=1e-5)
    assert scores.previous_token.item() == pytest.approx(np.mean([1 / (q + 1) for q in range(1, 21)]), rel=1e-5)


def test_evaluate_leaves_out_what_the_context_does_not_hold(model: HookedGPT) -> None:
    figures = evaluate(model, [TEXT], halves=(5, 50))
    assert set(figures) == {"bits_per_byte", "induction_5", "previous_token_5", "copied_5"}
    assert 1 < figures["bits_per_byte"] < 20


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("one\n\ftwo é")
    assert read_documents(path) == ["one\n", "two é"]
    with pytest.raises(NotFoundError, match="nowhere"):
        read_documents(tmp_path / "nowhere")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_documents(path)
