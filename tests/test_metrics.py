"""Numbers read from logits: each against its formula written out, and the bundles that sweeps call."""

import math

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.shared.metrics import (
    METRICS,
    TITLES,
    UNITS,
    CustomReadout,
    Readout,
    check_metrics,
    kl_divergence,
    log_probability,
    logit_difference,
    probability,
    probability_difference,
    rank,
    token_ids,
    token_loss,
    top_tokens,
)
from interp.errors import InputError

MODEL = make_gpt()
TIGHT = {"rtol": 0, "atol": 1e-12}


def random_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


@given(seed=st.integers(0, 1000), vocab=st.integers(2, 30), target=st.integers(0, 29))
@settings(max_examples=30, deadline=None)
def test_one_place_against_the_formulas(seed, vocab, target):
    target %= vocab
    logits = random_logits(vocab, seed=seed)
    values = logits.tolist()
    total = sum(math.exp(value) for value in values)
    place = torch.tensor(target)
    assert float(probability(logits, place)) == pytest.approx(math.exp(values[target]) / total, abs=1e-12)
    assert float(log_probability(logits, place)) == pytest.approx(values[target] - math.log(total), abs=1e-12)
    assert int(rank(logits, place)) == sorted(values, reverse=True).index(values[target]) + 1
    assert float(logit_difference(logits, place, torch.tensor(0))) == pytest.approx(
        values[target] - values[0], abs=1e-12
    )


def test_sets_of_answers_are_sums_of_their_probabilities():
    logits = random_logits(2, 9)
    chances = logits.softmax(-1)
    right, wrong = torch.tensor([[1, 2, 3], [4, -1, -1]]), torch.tensor([[0], [8]])
    by_hand = [chances[0, [1, 2, 3]].sum() - chances[0, 0], chances[1, 4] - chances[1, 8]]
    torch.testing.assert_close(probability_difference(logits, right, wrong), torch.stack(by_hand), **TIGHT)
    everything = torch.arange(9).expand(2, 9)
    none = torch.full((2, 1), -1)
    assert probability_difference(logits, everything, none).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_ties_share_the_better_rank():
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert [int(rank(logits, torch.tensor(i))) for i in range(4)] == [3, 1, 1, 4]


def test_token_loss_is_torchs_cross_entropy():
    logits, tokens = random_logits(2, 5, 11), torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(token_loss(logits, tokens), expected, **TIGHT)
    shifted = torch.nn.functional.cross_entropy(logits[:, 1:].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert (token_loss(logits, tokens) - shifted).abs().max() > 0.1  # the control: off by one position


def test_kl_is_torchs_and_not_symmetric():
    p, q = random_logits(4, 9).log_softmax(-1), random_logits(4, 9, seed=1).log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), expected, **TIGHT)
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros(4, dtype=torch.float64), **TIGHT)
    assert (kl_divergence(q, p) - expected).abs().min() > 1e-3
    certain = torch.tensor([0.0, -torch.inf])
    assert float(kl_divergence(certain, torch.tensor([0.5, 0.5]).log())) == pytest.approx(math.log(2))


def test_a_readout_is_its_metrics_one_text_at_a_time():
    logits, clean = random_logits(3, 4, 11), random_logits(3, 4, 11, seed=1).log_softmax(-1)
    tokens = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(1))
    answer, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    readout = Readout(names=METRICS, tokens=tokens, answer=answer, wrong=wrong, clean=clean)
    assert readout.read == [0, 1, 2, 3]
    found = readout(logits)
    for text in range(3):
        one, last = logits[text], logits[text, -1]
        expected = {
            "loss": token_loss(one, tokens[text]).mean(),
            "kl": kl_divergence(clean[text], one.log_softmax(-1)).mean(),
            "logit_diff": last[answer[text]] - last[wrong[text]],
            "logit": last[answer[text]],
            "prob": last.softmax(-1)[answer[text]],
            "rank": rank(last, answer[text]).double(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name][text], value, **TIGHT)


def test_a_readout_shares_work_between_metrics_without_changing_them():
    """Alone, together, at the end only, with gradients and where probabilities are zero: the formulas' numbers."""
    logits, clean = random_logits(2, 4, 11), random_logits(2, 4, 11, seed=1).log_softmax(-1)
    tokens = torch.randint(0, 11, (2, 4), generator=torch.Generator().manual_seed(1))
    none = clean.clone()
    none[..., 3:] = -torch.inf
    none, cut = none.log_softmax(-1), logits.clone()
    cut[..., 5] = -torch.inf
    for before, after in ((clean, logits), (none, logits), (none, cut), (clean, cut)):
        expected = kl_divergence(before, after.log_softmax(-1)).mean(-1)
        for names in (("kl",), ("loss", "kl"), ("kl", "loss")):
            with torch.no_grad():
                found = Readout(names=names, tokens=tokens, clean=before)(after)
            assert tuple(found) == names
            torch.testing.assert_close(found["kl"], expected, **TIGHT)
            if "loss" in names:
                torch.testing.assert_close(found["loss"], token_loss(after, tokens).mean(-1), **TIGHT)
    assert expected.isinf().all()  # the control: a clean probability where there is none after
    last = Readout(names=("kl", "loss"), tokens=tokens, clean=clean[:, -1:], everywhere=False)
    with torch.no_grad():
        found = last(logits)
    torch.testing.assert_close(found["kl"], kl_divergence(clean[:, -1], logits[:, -1].log_softmax(-1)), **TIGHT)
    torch.testing.assert_close(found["loss"], token_loss(logits, tokens).mean(-1), **TIGHT)
    wanted = logits.clone().requires_grad_()
    last(wanted)["kl"].sum().backward()
    assert wanted.grad is not None


def test_only_what_is_needed_is_asked_for():
    tokens = torch.zeros(2, 4, dtype=torch.long)
    answer, wrong = torch.tensor([9, 2]), torch.tensor([2, 5])
    readout = Readout(names=("logit_diff", "logit"), tokens=tokens, answer=answer, wrong=wrong)
    narrow = readout.narrowed()
    assert readout.read == [3]
    assert narrow.vocab == (2, 5, 9)
    logits = random_logits(2, 1, 11)
    whole, part = readout(logits), narrow(logits[..., [2, 5, 9]])
    for name in whole:
        torch.testing.assert_close(whole[name], part[name], **TIGHT)
    assert Readout(names=("prob",), tokens=tokens, answer=answer).narrowed().vocab is None
    assert Readout(names=("kl",), tokens=tokens, everywhere=False).read == [3]
    with pytest.raises(InputError, match="needs an answer"):
        Readout(names=("logit",), tokens=tokens)(logits)


def test_a_metric_of_ones_own_is_checked():
    logits = random_logits(2, 3, 5)
    good = CustomReadout(function=lambda x: x[:, 0, 1], read=[0])
    torch.testing.assert_close(good(logits)["metric"], logits[:, 0, 1], **TIGHT)
    for function in (lambda x: x.sum(), lambda x: 1.0, lambda x: x[:, :, 0]):
        with pytest.raises(InputError, match="one number a text"):
            CustomReadout(function=function, read=[0])(logits)


def test_tokens_by_text_or_id(toy_gpt):
    john = toy_gpt.to_single_token(" John")
    assert token_ids(toy_gpt, " John", 3).tolist() == [john] * 3
    assert token_ids(toy_gpt, [" John", 5], 2).tolist() == [john, 5]
    assert token_ids(toy_gpt, torch.tensor([1, 2]), 2).tolist() == [1, 2]
    assert token_ids(MODEL, np.int64(4), 1).tolist() == [4]
    for choice, words in ((" John and", "expected exactly one token"), (300, "token id 300"), ([1, 2, 3], "3 tokens")):
        with pytest.raises(InputError, match=words):
            token_ids(toy_gpt, choice, 2)


def test_top_tokens():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 2.0, 0.0]])
    assert [x.tolist() for x in top_tokens(logits)] == [[1, 0], [3, 2]]
    assert [x.tolist() for x in top_tokens(logits, torch.tensor([3, 0]))] == [[3, 0], [1, 2]]


def test_every_metric_has_a_title_and_a_unit():
    assert set(TITLES) == set(UNITS) == set(METRICS)
    with pytest.raises(InputError, match="did you mean 'logit_diff'"):
        check_metrics(["logit-diff"])
    with pytest.raises(InputError, match="no metrics"):
        check_metrics([])
