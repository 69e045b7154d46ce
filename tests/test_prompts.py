"""Prompt sets: the generator's promises, the file format, and how texts and pairs are resolved."""

import pytest
import torch
from conftest import make_gpt
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from analyses.shared import clean_corrupted
from analyses.shared.answered_texts import resolve_texts
from analyses.shared.clean_corrupted import corrupt, position_labels, remembering, resolve_pairs
from analyses.shared.prompts import (
    NAMES,
    TEMPLATES,
    Prompt,
    PromptSet,
    indirect_object_prompts,
    parse_prompts,
    single_tokens,
)
from interp.errors import InputError
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import END_OF_TEXT


def word_tokenizer(words):
    """A byte-level tokenizer that knows these words (after a space) as single tokens, and single bytes."""
    pieces = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges, vocabulary = [], {piece: i for i, piece in enumerate(pieces)}
    for word in words:
        built = "Ġ"
        for letter in word:
            if built + letter not in vocabulary:
                vocabulary[built + letter] = len(vocabulary)
                merges.append((built, letter))
            built += letter
    backend = Backend(models.BPE(vocabulary, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend)


def model_with(words):
    tokenizer = word_tokenizer(words)
    return make_gpt(tokenizer=tokenizer, d_vocab=tokenizer.d_vocab, n_ctx=256)


PEOPLE = model_with(
    ["John", "Mary", "Paul", "Anna", "Tom", "Lucy", "house", "school", "book", "ring", "to", "the", "and"]
)


@pytest.mark.parametrize("corruption", ["swap", "other_names"])
def test_the_generator_keeps_its_promises(corruption):
    prompts = indirect_object_prompts(PEOPLE, 48, corruption=corruption, seed=3)
    assert len(prompts) == 48
    assert len({prompt.clean for prompt in prompts}) == 48  # no text twice
    orders = set()
    for prompt in prompts:
        names = [name for name in single_tokens(PEOPLE, NAMES) if f" {name}" in prompt.clean]
        receiver, giver = prompt.answer[1:], prompt.wrong[1:]
        assert sorted(names) == sorted([giver, receiver])
        assert prompt.clean.count(f" {giver}") == 2
        assert prompt.clean.count(f" {receiver}") == 1
        assert PEOPLE.to_single_token(prompt.answer) != PEOPLE.to_single_token(prompt.wrong)
        assert prompt.template in TEMPLATES
        clean, corrupted = PEOPLE.to_tokens(prompt.clean), PEOPLE.to_tokens(prompt.corrupted)
        assert clean.shape == corrupted.shape
        if corruption == "swap":
            assert int((clean != corrupted).sum()) == 1
            assert prompt.corrupted.count(f" {receiver}") == 2
        else:
            assert f" {giver}" not in prompt.corrupted
            assert f" {receiver}" not in prompt.corrupted
        orders.add(prompt.clean.index(f" {giver}") < prompt.clean.index(f" {receiver}"))
    assert orders == {True, False}  # ABBA and BABA
    for template in TEMPLATES:  # the prompts of one template have one length
        assert len({PEOPLE.to_tokens(p.clean).shape[1] for p in prompts if p.template == template}) == 1
    assert indirect_object_prompts(PEOPLE, 48, corruption=corruption, seed=3) == prompts
    assert indirect_object_prompts(PEOPLE, 48, corruption=corruption, seed=4) != prompts


def test_templates_are_well_formed():
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert len(set(NAMES)) == len(NAMES)
    for template in TEMPLATES:
        assert all(template.count(slot) == 1 for slot in ("{A}", "{B}", "{S}", "{place}", "{thing}"))
        assert all(f" {slot}" in template for slot in ("{A}", "{B}", "{S}"))  # names follow a space: single tokens
        assert template[-1].isalpha()


def test_fewer_prompts_where_there_are_not_that_many():
    two = model_with(["John", "Mary", "house", "book"])
    prompts = indirect_object_prompts(two, 1000)
    assert len({prompt.clean for prompt in prompts}) == len(prompts) == 2 * len(TEMPLATES) * 2
    assert str(len(prompts)) in prompts.note


def test_other_words_stand_for_names_where_names_are_no_tokens():
    model = model_with(["River", "Stone", "Light"])
    prompts = indirect_object_prompts(model, 6)
    assert "stand for names" in prompts.note
    assert all(prompt.answer.istitle() and model.to_single_token(prompt.answer) for prompt in prompts)
    with pytest.raises(InputError, match="five"):
        indirect_object_prompts(model_with(["Tom", "Ben"]), 6, corruption="other_names")
    with pytest.raises(InputError, match="fewer than two words"):
        indirect_object_prompts(model_with([]), 6)
    with pytest.raises(InputError, match="no tokenizer"):
        indirect_object_prompts(make_gpt(), 6)
    with pytest.raises(InputError, match="at least 1"):
        indirect_object_prompts(model, 0)


def test_files_round_trip():
    prompts = indirect_object_prompts(PEOPLE, 5)
    assert parse_prompts(prompts.to_jsonl()).prompts == prompts.prompts
    assert parse_prompts(['{"clean": "a"}\n', "\n", '{"clean": "é", "answer": " b"}']).prompts == (
        Prompt(clean="a"),
        Prompt(clean="é", answer=" b"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prompts"),
        ("{", "line 1: no valid JSON"),
        ('{"clean": "a"}\n[1]', "line 2"),
        ('{"clean": 3}', "all of them text"),
        ('{"clean": "a", "anser": "b"}', "unknown entry 'anser'"),
        ('{"answer": "a"}', "no clean text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_line(text, words):
    with pytest.raises(InputError) as caught:
        parse_prompts(text, where="mine.jsonl")
    assert words in str(caught.value)
    assert "mine.jsonl" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_answers_are_given_or_the_models_own(toy_gpt):
    texts = ["The cat sat on the", "The dog"]
    with torch.no_grad():
        given = resolve_texts(toy_gpt, texts, answer=[" John", " Mary"], wrong=" the")
        own = resolve_texts(toy_gpt, texts)
        ranks = torch.stack([toy_gpt(row)[0, -1].argsort(descending=True)[:2] for row in own.rows])
    assert given.answer.tolist() == [toy_gpt.to_single_token(" John"), toy_gpt.to_single_token(" Mary")]
    assert given.wrong.tolist() == [toy_gpt.to_single_token(" the")] * 2
    assert given.notes == ()
    assert torch.equal(torch.stack([own.answer, own.wrong], 1), ranks)
    assert len(own.notes) == 2


@pytest.mark.parametrize("name", ["answer", "wrong", "corrupted"])
def test_what_some_prompts_say_and_others_do_not_is_refused(toy_gpt, name):
    """Else what was given would be put aside for all of them."""
    said = {"answer": " John", "wrong": " the", "corrupted": "The the sat on the"}
    whole = [Prompt(clean="The cat sat on the", **said)] * 3
    half = PromptSet(prompts=(*whole, Prompt(clean="The cat sat on the", **said | {name: ""})))
    with torch.no_grad(), pytest.raises(InputError, match=f"1 of 4 prompts without '{name}', prompt 4"):
        resolve_pairs(toy_gpt, half, None)
    with torch.no_grad():
        assert len(resolve_pairs(toy_gpt, PromptSet(prompts=tuple(whole)), None).rows) == 3  # control


def test_a_corrupted_text_is_the_change_that_hurts_most(toy_gpt):
    with torch.no_grad():
        texts = resolve_texts(toy_gpt, "The cat sat on the mat. The cat sat on the")
        (changed,), (note,) = corrupt(toy_gpt, texts, seed=2)
        pairs = resolve_pairs(toy_gpt, "The cat sat on the mat. The cat sat on the", None, seed=2)
        (row,), answer = texts.rows, int(texts.answer[0])
        differs = (row != changed)[0].nonzero().flatten().tolist()
        assert len(differs) == 1
        assert 0 < differs[0] < row.shape[1] - 1  # neither the beginning-of-text token nor the last one
        assert int(changed[0, differs[0]]) in row[0].tolist()
        before, after = (float(toy_gpt(ids)[0, -1].log_softmax(-1)[answer]) for ids in (row, changed))
    assert after < before
    assert f"token {differs[0]}" in note
    assert torch.equal(pairs.corrupted[0], changed)
    assert int(pairs.wrong[0]) != answer


def test_what_is_remembered_is_what_would_be_found(toy_gpt, monkeypatch):
    """Inside the block once for each model, text and seed; the same as outside; nothing is kept after it."""
    searches = []
    search = clean_corrupted._corrupt
    monkeypatch.setattr(clean_corrupted, "_corrupt", lambda *given: searches.append(given) or search(*given))
    first, second = (resolve_texts(toy_gpt, text) for text in ("The cat sat on the mat.", "A dog ran to the park."))
    expected = [corrupt(toy_gpt, first, seed=0), corrupt(toy_gpt, first, seed=1), corrupt(toy_gpt, second, seed=0)]
    assert len(searches) == 3
    for _ in range(2):
        with remembering():
            for _ in range(2):
                found = [corrupt(toy_gpt, first), corrupt(toy_gpt, first, seed=1), corrupt(toy_gpt, second)]
                for (rows, notes), (rows_before, notes_before) in zip(found, expected, strict=True):
                    assert notes == notes_before
                    assert torch.equal(rows[0], rows_before[0])
    assert len(searches) == 9


def test_pairs_must_match(toy_gpt):
    with torch.no_grad():
        for clean, corrupted, words in (
            ("The cat", "The cat sat", "as many"),
            ("The cat", "The cat", "the same"),
            (["The cat"], ["The dog", "The mat"], "2 corrupted texts for 1"),
        ):
            with pytest.raises(InputError, match=words):
                resolve_pairs(toy_gpt, clean, corrupted)


def test_positions_are_labelled_by_what_all_texts_share(toy_gpt):
    rows = [toy_gpt.to_tokens("The cat sat"), toy_gpt.to_tokens("The mat sat")]
    assert position_labels(toy_gpt, rows) == (END_OF_TEXT, "The", " cat…", " sat")
    assert position_labels(toy_gpt, [*rows, toy_gpt.to_tokens("The cat")]) == ("-3", "-2", "-1")
