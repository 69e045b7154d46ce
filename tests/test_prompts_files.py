"""Files of prompts of every kind that is read, and which of their prompts fit a model."""

import json

import pytest
from command_line import interp
from test_prompts import model_with

from analyses.shared.clean_corrupted import resolve_pairs, resolve_texts
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
        ("clean,corrupted,label\nfrom 1352 to 13,from 1301 to 13,52", "", "all years above a label"),
        ("clean,answer\na,b,c\n", "", "line 2: another number of cells"),
        ("clean,colour\na,b\n", "", "unknown entry 'colour'"),
        ('clean,answer\na,"b\n', "", "no valid table"),
        (INDIRECT.replace("Ann and Bob", "Ann or Bob"), "", "line 2: Then, Ann or Bob"),
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
