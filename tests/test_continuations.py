"""Probabilities of words against the chain rule written out, and as a distribution."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import toy

from analyses.lessons.continuations import continuations
from interp.errors import InputError, NotApplicable
from interp.models.gpt import HookedGPT

TEXT = "Mary and John"


def test_a_word_is_the_product_of_its_tokens(toy_gpt: HookedGPT) -> None:
    """Token by token, each after the text that came before it."""
    result = continuations(toy_gpt, TEXT, words=("sat", "ran away"))
    for word, row in zip((" sat", " ran away"), result.table.itertuples(), strict=True):
        ids = toy_gpt.to_tokens(TEXT)[0].tolist()
        log = 0.0
        first = None
        for token in toy_gpt.to_tokens(word, prepend_bos=False)[0].tolist():
            logits = toy_gpt(torch.tensor([ids])).detach()[0, -1].double()
            log += logits.log_softmax(-1)[token].item()
            first = first if first is not None else 1 + sum(other > logits[token] for other in logits).item()
            ids.append(token)
        assert row.probability == pytest.approx(np.exp(log), rel=1e-4)
        assert row.per_token == pytest.approx(np.exp(log / row.tokens), rel=1e-4)
        assert row.rank == first
    assert result.table["beside"].sum() == pytest.approx(1, abs=1e-12)


def test_the_models_own_candidates_are_ranked_first(toy_gpt: HookedGPT) -> None:
    result = continuations(toy_gpt, TEXT, words=("a",), show=5)
    own = toy_gpt(TEXT).detach()[0, -1].softmax(-1)
    np.testing.assert_allclose(result.top_probabilities, own.sort(descending=True).values[:5], rtol=1e-5)
    assert result.top == tuple(toy_gpt.to_str_tokens(own.argsort(descending=True)[:5]))


def test_one_token_words_are_part_of_one_distribution(toy_gpt: HookedGPT) -> None:
    """A model that knows nothing gives every token the same; every word's probability is a power of that."""
    blank = make_gpt(tokenizer=toy_gpt.tokenizer, init_std=1e-9)
    table = continuations(blank, TEXT, words=("sat", "ran")).table
    np.testing.assert_allclose(table["probability"], 300.0 ** -table["tokens"], rtol=1e-3)
    assert continuations(toy_gpt, TEXT, words=("sat",)).table["probability"][0] != pytest.approx(
        float(table["probability"][0]), rel=0.01
    )


def test_a_model_that_sees_what_comes_has_no_next_token(toy_gpt: HookedGPT) -> None:
    for options in ({"causal": False}, {"tied": False, "d_vocab_out": 7}):
        with pytest.raises(NotApplicable, match="next token"):
            continuations(make_gpt(tokenizer=toy_gpt.tokenizer, **options), TEXT)
    probability = continuations(toy("gemma2", tokenizer=toy_gpt.tokenizer), TEXT, words=("sat",)).table["probability"][
        0
    ]
    ids = toy_gpt.to_tokens(TEXT + " sat")
    given = toy_gpt.to_tokens(TEXT).shape[1]
    log = toy("gemma2")(ids).detach()[0].double().log_softmax(-1)  # soft-capped logits
    spelt = sum(log[place - 1, ids[0, place]].item() for place in range(given, ids.shape[1]))
    assert probability == pytest.approx(np.exp(spelt), rel=1e-4)


def test_what_cannot_be_used_is_said(toy_gpt: HookedGPT) -> None:
    for words in ((), ("",), ("long " * 70,)):
        with pytest.raises(InputError):
            continuations(toy_gpt, TEXT, words=words)


def test_a_space_stands_before_words_and_not_before_signs(toy_gpt: HookedGPT) -> None:
    """ " er" and "er" are different tokens; a comma follows a word as it is."""
    given = toy_gpt.to_tokens(TEXT)

    def chance(text: str) -> float:
        ids = torch.cat([given, toy_gpt.to_tokens(text, prepend_bos=False)], 1)
        log = toy_gpt(ids).detach()[0].double().log_softmax(-1)
        return float(sum(log[place - 1, ids[0, place]] for place in range(given.shape[1], ids.shape[1])).exp())

    words = (",", ".", "er", " er")
    found = continuations(toy_gpt, TEXT, words=words).table["probability"]
    np.testing.assert_allclose(found, [chance(","), chance("."), chance(" er"), chance(" er")], rtol=1e-4)
    exact = continuations(toy_gpt, TEXT, words=(*words, "\n"), exact=True).table
    np.testing.assert_allclose(exact["probability"], [chance(word) for word in (*words, "\n")], rtol=1e-4)
    assert chance("er") != pytest.approx(chance(" er"), rel=0.01)
    assert list(exact["word"]) == [*words, "\n"]
