"""Prompts made by name of a task: what is promised of all, and what the bundled model makes of them."""

import pytest
import torch
from conftest import make_gpt
from test_prompts import model_with

import interp
from analyses.shared.fitting_prompts import fitting
from analyses.shared.prompt_tasks import REPEATED, TASKS, induction_prompts
from interp.errors import InputError


@pytest.fixture(scope="module")
def tiny():
    return interp.load("tiny")


def differences(model, prompts, texts):
    """[text] the answer's logit minus the wrong answer's after each text."""
    rows = [model.to_tokens(text) for text in texts]
    ids = [[model.to_single_token(word) for word in (one.answer, one.wrong)] for one in prompts]
    with torch.no_grad():
        last = [model(row)[0, -1] for row in rows]
    return torch.stack([logits[a] - logits[b] for logits, (a, b) in zip(last, ids, strict=True)])


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_prompts_of_a_task_fit_and_come_again(tiny, task):
    prompts = task(tiny, 20, seed=3)
    assert len({prompt.clean for prompt in prompts}) == len(prompts) == 20
    assert fitting(tiny, prompts) is prompts  # answers of one token, texts of one length
    assert all(tiny.to_single_token(one.answer) != tiny.to_single_token(one.wrong) for one in prompts)
    assert task(tiny, 20, seed=3) == prompts
    assert task(tiny, 20, seed=4) != prompts
    assert len({prompt.template for prompt in prompts}) > 3
    with pytest.raises(InputError, match="at least 1"):
        task(tiny, 0, seed=3)


def test_the_word_that_came_again_tells_the_answer(tiny):
    """By the text alone: what followed the last word before; in the corrupted text that is the wrong answer."""
    for prompt in induction_prompts(tiny, 2 * len(REPEATED)):
        last = prompt.clean.split()[-1]
        for text, follows in ((prompt.clean, prompt.answer), (prompt.corrupted, prompt.wrong)):
            words = [word.strip(".,:") for word in text.split()]
            assert words.count(last) == 2
            assert words[words.index(last) + 1] == follows[1:]
        assert tiny.to_tokens(prompt.clean).ne(tiny.to_tokens(prompt.corrupted)).sum() == 2


def test_the_bundled_model_does_induction(tiny):
    prompts = induction_prompts(tiny, 30)
    clean = differences(tiny, prompts, [prompt.clean for prompt in prompts])
    corrupted = differences(tiny, prompts, [prompt.corrupted for prompt in prompts])
    for template in REPEATED:
        of_it = torch.tensor([prompt.template == template for prompt in prompts])
        assert clean[of_it].mean() > 1.0
        assert corrupted[of_it].mean() < -1.0
    unseen = [prompt.clean.rpartition(" ")[0] for prompt in prompts]  # the control: without the word that comes again
    assert differences(tiny, prompts, unseen).abs().mean() < 0.5 * clean.mean()


def test_few_words_make_few_prompts():
    four = model_with(["A", "B", "C", "D"])
    prompts = induction_prompts(four, 1000, seed=1)
    assert 100 < len(prompts) <= 4 * 3 * 2 * 1 * 2 * len(REPEATED)
    with pytest.raises(InputError, match="needs four"):
        induction_prompts(model_with(["A", "B"]), 4)
    with pytest.raises(InputError, match="no tokenizer"):
        induction_prompts(make_gpt(), 4)
