"""Inputs of analyses: texts and ids become one sequence per text; what cannot be used is said in two or three lines."""

import pytest
import torch
from conftest import make_gpt

from analyses.shared.inputs import sequences, text_names, token_labels
from interp.errors import InputError


def test_text_gets_the_beginning_token_and_texts_keep_their_lengths(toy_gpt):
    one = sequences(toy_gpt, "The cat")
    two = sequences(toy_gpt, ["The cat", "The dog sat on the log."])
    assert [row.shape[0] for row in two] == [1, 1]
    assert torch.equal(one[0], two[0])
    assert two[1].shape[1] > two[0].shape[1]  # nothing is padded to a common length
    assert one[0][0, 0] == toy_gpt.tokenizer.bos
    assert toy_gpt.to_string(one[0][0, 1:]) == "The cat"


def test_ids_are_used_as_they_are():
    model = make_gpt()
    ids = torch.randint(0, 300, (3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(sequences(model, ids)), ids)
    assert torch.equal(torch.cat(sequences(model, ids.int())), ids)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("", "empty"),
        ([], "no texts"),
        (["The cat", ""], "empty"),
        ("cat " * 100, "expected at most 64"),
        ([1, 2], "type int"),
        (torch.tensor([1, 2]), r"shape \(2,\)"),
        (torch.ones(1, 3), "float32"),
        (torch.ones(0, 3, dtype=torch.long), r"shape \(0, 3\)"),
        (torch.tensor([[300]]), "token id 300"),
        (torch.tensor([[1], [-1]]), "token id -1 in text 2 of 2"),
    ],
)
def test_unusable_input_is_refused_in_at_most_three_lines(toy_gpt, tokens, words):
    with pytest.raises(InputError, match=words) as caught:
        sequences(toy_gpt, tokens)
    assert len(str(caught.value).splitlines()) <= 3


def test_too_few_tokens():
    model = make_gpt()
    assert len(sequences(model, torch.tensor([[1, 2]]), at_least=2)) == 1
    with pytest.raises(InputError, match="1 token\n"):
        sequences(model, torch.tensor([[1]]), at_least=2)


def test_labels(toy_gpt):
    row = sequences(toy_gpt, "The cat")[0]
    labels = token_labels(toy_gpt, row)
    assert labels[0] == "<|endoftext|>"
    assert "".join(labels[1:]) == "The cat"
    assert token_labels(make_gpt(), torch.tensor([[7, 8]])) == ("<7>", "<8>")


def test_text_names_are_short_and_in_one_line(toy_gpt):
    rows = sequences(toy_gpt, ["The\ncat", "The dog sat on the log. The cat sat on the mat."])
    assert text_names(toy_gpt, rows, limit=12) == ("1: The cat", "2: The dog sat…")
    assert text_names(make_gpt(), [torch.tensor([[1]])]) == ("text 1",)
