"""Files of prompts of every kind that is read, and which of their prompts fit a model."""

import json

import pytest
import torch
from command_line import interp
from test_prompts import model_with

from analyses.shared.answered_texts import resolve_texts
from analyses.shared.clean_corrupted import measure, resolve_pairs
from analyses.shared.fitting_prompts import fitting
from analyses.shared.prompts import Prompt, PromptSet, parse_prompts
from interp.errors import InputError

SENTENCE = "Then, Ann and Bob were working at the house. {} decided to give a drink to"
INDIRECT = "\n".join(
    [
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx",
        *(f'{i},"{SENTENCE.format(who)}","{SENTENCE.format("Tim")}","",1,2' for i, who in enumerate(["Bob", "Ann"])),
    ]
)
CAPITALS = [
    {"input": "Rome", "output": "Italy"},
    {"input": "Genf", "output": "Oslo"},
    {"input": "Lima", "output": "Italy"},
]
KNOWN = model_with(["Ann", "Bob", "Tim", "Italy", "Oslo", "are", "is"])


def agreement(clean, patch, answer, wrong):
    keys = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case")
    return json.dumps(dict(zip(keys, (clean, patch, answer, wrong, "plural"), strict=True)))


def test_the_answer_is_the_name_that_is_not_said_again():
    prompts = parse_prompts(INDIRECT).prompts
    assert [(prompt.answer, prompt.wrong) for prompt in prompts] == [(" Ann", " Bob"), (" Bob", " Ann")]
    assert {prompt.template for prompt in prompts} == {
        "Then, {A} and {B} were working at the {place}. {S} decided to give a {thing} to"
    }
    assert prompts[0].clean == SENTENCE.format("Bob")
    assert prompts[0].corrupted == SENTENCE.format("Tim")


def test_tables_and_sentence_beginnings_are_read():
    table = 'clean,corrupted,answer,wrong\n"a, b",c, d, e\n'
    assert parse_prompts(table).prompts == (Prompt(clean="a, b", corrupted="c", answer=" d", wrong=" e"),)
    assert parse_prompts("\ufeff" + table).prompts == parse_prompts(table).prompts
    (found,) = parse_prompts(agreement("The cats", "The cat", " are", " is"))
    assert found == Prompt(clean="The cats", corrupted="The cat", answer=" are", wrong=" is", template="plural")


@pytest.mark.parametrize(("template", "space"), [("From {input} to", " "), ("{input}: ", "")])
def test_a_template_makes_sentences_of_inputs(template, space):
    prompts = parse_prompts(json.dumps(CAPITALS), template=template)
    assert [prompt.clean for prompt in prompts] == [template.replace("{input}", one["input"]) for one in CAPITALS]
    assert [prompt.answer for prompt in prompts] == [space + one["output"] for one in CAPITALS]
    assert parse_prompts(json.dumps({"template": template, "examples": CAPITALS})) == prompts


@pytest.mark.parametrize(
    ("text", "template", "words"),
    [
        (json.dumps(CAPITALS), "", "no template"),
        (json.dumps(CAPITALS), "From it to", "{input}"),
        (json.dumps(CAPITALS), "{input} {input}", "{input}"),
        ('[{"input": 3, "output": "b"}]', "{input}", "all of them text"),
        ('[{"input": "a"', "{input}", "no valid JSON"),
        ("[]", "{input} is", "no prompts"),
        ('{"clean": "a"}', "{input} is", "a template for"),
        ("clean,corrupted,label\nfrom 1399 to 13,from 1301 to 13,99", "", "line 2: label '99' of 'from 1399 to 13'"),
        ("clean,answers,wrongs\na,b,c\n", "", "line 1: a column of lists"),
        ('{"clean": "a", "answers": "b", "wrongs": ["c"]}', "", 'line 1: answers is "b"'),
        ('{"clean": "a", "answers": ["b"], "wrongs": []}', "", "line 1: wrongs is []"),
        ('{"clean": "a", "answers": [""], "wrongs": ["c"]}', "", 'line 1: answers is [""]'),
        ('{"clean": "a", "answers": ["b"], "wrongs": ["c"], "answer": "b"}', "", "beside a single one"),
        ('{"clean": "a", "answer": 3}', "", "line 1: answer is 3"),
        ("[1,\n2]", "", "'[1,"),
        ('{"clean": "a", "answers": ["b"]}', "", "expected both lists"),
        ("clean,answer\na,b,c\n", "", "line 2: another number of cells"),
        ("clean,colour\na,b\n", "", "unknown entry 'colour'"),
        ('clean,answer\na,"b\n', "", "no valid table"),
        (INDIRECT.replace("Ann and Bob", "Ann or Bob"), "", "line 2: 'Then, Ann or Bob"),
    ],
)
def test_what_is_wrong_with_other_files_is_said(text, template, words):
    with pytest.raises(InputError) as caught:
        parse_prompts(text, where="mine", template=template)
    assert words in str(caught.value)
    assert "mine" in str(caught.value)
    assert 2 <= len(str(caught.value).splitlines()) <= 3


def test_prompts_that_do_not_fit_are_left_out_and_counted():
    fit = Prompt(clean="a cat", corrupted="a dog", answer=" Ann", wrong=" Bob")
    others = [
        Prompt(clean="a cat", corrupted="a dog", answer=" Annabel", wrong=" Bob"),
        Prompt(clean="a cat", corrupted="a dog", answer=" Ann", wrong=" Bobby"),
        Prompt(clean="a cat", corrupted="a horse", answer=" Ann", wrong=" Bob"),
        Prompt(clean="a cat", corrupted="a mouse", answer=" Ann", wrong=" Bob"),
        Prompt(clean="a cat", corrupted="a cat", answer=" Ann", wrong=" Bob"),
    ]
    given = PromptSet(prompts=(*others[:2], fit, *others[2:]), note="6 prompts.")
    found = fitting(KNOWN, given)
    assert found.prompts == (fit,)
    assert found.note == (
        "6 prompts. 1 of 6 prompts; 2 left out: clean and corrupted text differ in length; 1: the answer is not one "
        "token of this model; 1: the wrong answer is not one token of this model; 1: clean and corrupted text are the "
        "same."
    )
    assert fitting(KNOWN, found) is found
    assert len(fitting(KNOWN, given, using=("answer",))) == 5
    assert len(fitting(KNOWN, given, using=())) == 6
    blank = PromptSet(prompts=(Prompt(clean="a"),))
    assert fitting(KNOWN, blank) is blank
    with pytest.raises(InputError) as caught:
        fitting(KNOWN, PromptSet(prompts=tuple(others[:1])))
    assert str(caught.value).splitlines()[0].startswith("none of 1 prompts fits this model: 1: the answer is not one")
    assert "' Annabel' is 5 tokens: ' Ann' + 'a' + 'b'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_corrupted_texts_of_inputs_are_others_as_long_in_tokens():
    prompts = parse_prompts(json.dumps([*CAPITALS, {"input": "Kiruna", "output": "Oslo"}]), template="From {input} to")
    found = fitting(KNOWN, prompts)
    assert [(one.corrupted, one.wrong) for one in found] == [
        ("From Genf to", " Oslo"),
        ("From Lima to", " Italy"),
        ("From Genf to", " Oslo"),
    ]
    assert "3 of 4 prompts; 1 left out: no other input as long has another answer." in found.note
    assert not found.exchange


def test_pairs_are_made_of_what_fits():
    lines = [agreement("The cats", "The dogs", " are", " is"), agreement("The cats", "The cat", " are", " is")]
    pairs = resolve_pairs(KNOWN, parse_prompts("\n".join(lines), where="mine"), None)
    assert len(pairs.rows) == 1
    assert pairs.notes[0].startswith("2 prompts from mine. 1 of 2 prompts; 1 left out: clean and")
    prompts = parse_prompts(lines[0].replace(" are", " arena"))
    assert resolve_texts(KNOWN, prompts, answer=" are").answer.tolist() == [KNOWN.to_single_token(" are")]
    for given in ({}, {"answer": " arena"}):  # what the user names is refused, not left out
        with pytest.raises(InputError, match="' arena' is 3 tokens"):
            resolve_pairs(KNOWN, prompts, None, **given)


def test_lists_of_examples_are_no_lines_of_prompts():
    """A text may say "examples": only a list of them is one, wherever it begins."""
    assert not parse_prompts('{"clean": "\\"examples\\": [1]"}').exchange
    assert parse_prompts('{"answer": "a,clean,b", "clean": "examples"}').prompts[0].answer == "a,clean,b"
    assert parse_prompts("\n " + json.dumps(CAPITALS), template="{input} is").exchange


def test_the_command_line_takes_the_template_too(tmp_path, capsys):
    """The same prompts as from a file that has it itself; without such a file it is refused."""
    file, own = tmp_path / "pairs.json", tmp_path / "own.json"
    pairs = [{"input": a, "output": b} for a, b in (("get", "got"), ("see", "saw"), ("come", "came"), ("take", "took"))]
    template = "Today they {input}, and yesterday they"
    file.write_text(json.dumps(pairs))
    own.write_text(json.dumps({"template": template, "examples": pairs}))
    kept, own_form = (
        interp(capsys, "activation-patching", *given, "--format", "csv", "--quiet")
        for given in (("--prompts", file, "--template", template), ("--prompts", own))
    )
    assert kept.code == own_form.code == 0
    assert kept.out == own_form.out
    assert interp(capsys, "activation-patching", "--template", template).code == 2


YEARS = "clean,corrupted,label\n"
YEARS += "The war lasted from the year 1352 to the year 13,The war of the year 1301 to the year 13,52\n"


def test_all_years_above_the_label_are_right():
    (found,) = parse_prompts(YEARS)
    assert found.answers == tuple(str(year) for year in range(53, 100))
    assert found.wrongs == tuple(f"{year:02d}" for year in range(53))
    assert found.template == "The {thing} lasted from the year {year} to the year {year}"
    again = PromptSet(prompts=(found,))
    assert parse_prompts(again.to_jsonl()).prompts == again.prompts


def test_of_several_answers_each_counts_by_its_first_token_unless_it_begins_right_and_wrong_ones():
    """A tokenizer of single digits knows 53 to 99 by 6 to 9, and 00 to 52 by 0 to 4: 5 begins both."""
    sentence = Prompt(clean="to 13", corrupted="to 31", answers=("53", "61", "99"), wrongs=("00", "41", "52"))
    (digits,) = fitting(KNOWN, PromptSet(prompts=(sentence,)))
    assert (digits.answers, digits.wrongs) == (("6", "9"), ("0", "4"))
    assert (digits.answer, digits.wrong) == ("6", "0")
    with pytest.raises(InputError, match="1 of 2 prompts have several answers"):
        fitting(KNOWN, PromptSet(prompts=(sentence, Prompt(clean="a", answer=" Ann"))))
    words = Prompt(clean="the cat", corrupted="the dog", answers=(" Ann", " Bob"), wrongs=(" Tim",))
    kept = fitting(KNOWN, PromptSet(prompts=(words,)))
    assert (kept.prompts[0].answers, kept.prompts[0].wrongs) == ((" Ann", " Bob"), (" Tim",))
    assert "count by their first" not in kept.note  # the control: nothing was cut
    with pytest.raises(InputError, match="no token begins right answers alone"):
        fitting(KNOWN, PromptSet(prompts=(Prompt(clean="to 1", answers=("53",), wrongs=("52",)),)))


def test_several_answers_are_measured_together_and_one_answer_if_one_is_named():
    sets = Prompt(clean="the cat", corrupted="the dog", answers=(" Ann", " Bob"), wrongs=(" Tim",))
    one = Prompt(clean="the dog", corrupted="the cat", answers=(" Tim",), wrongs=(" Italy", " is"))
    prompts = PromptSet(prompts=(sets, one))
    pairs = resolve_pairs(KNOWN, prompts, None)
    found = measure(KNOWN, pairs)
    assert found.metric == "prob_diff"
    with torch.no_grad():
        chances = [KNOWN(prompt.clean)[0, -1].softmax(-1) for prompt in prompts]
        difference = KNOWN("the cat")[0, -1] @ logit_difference_of(" Ann", " Tim")

    def of(text, words):
        return sum(float(chances[text][KNOWN.to_single_token(word)]) for word in words)

    by_hand = [of(text, one.answers) - of(text, one.wrongs) for text, one in enumerate(prompts)]
    assert found.clean == pytest.approx(by_hand, abs=1e-6)
    assert measure(KNOWN, pairs, "logit_diff").clean[0] == pytest.approx(float(difference), abs=1e-5)
    named = resolve_pairs(KNOWN, prompts, None, answer=" Ann", wrong=" Tim")
    assert named.sets is None
    assert measure(KNOWN, named).metric == "logit_diff"
    alone = measure(KNOWN, named, "prob_diff").clean
    assert alone == pytest.approx([of(text, [" Ann"]) - of(text, [" Tim"]) for text in (0, 1)], abs=1e-6)
    assert abs(alone - by_hand).max() > 1e-4  # the control


def logit_difference_of(answer, wrong):
    direction = torch.zeros(KNOWN.config.d_vocab)
    direction[KNOWN.to_single_token(answer)], direction[KNOWN.to_single_token(wrong)] = 1, -1
    return direction
