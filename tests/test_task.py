"""What each kind of model is asked for: places, answers, and inputs cut, continued and shuffled; parts by name."""

import random

import pytest
import torch
from conftest import make_gpt
from test_encoder import BERT, WORDS, make
from test_encoder_decoder import make_pair

from analyses.shared.components import choose
from analyses.shared.task import batch, shape, sides, task_of
from interp.errors import InputError
from interp.sweep import Pair
from interp.text.wordpiece import WordPiece


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    bert = make(head="masked-language", **BERT | {"d_vocab": len(WORDS)})
    bert.tokenizer = WordPiece.from_directory(folder)
    return {kind: task_of(model) for kind, model in (("gpt", make_gpt()), ("pair", make_pair()), ("bert", bert))}


PAIRS = [
    Pair(torch.tensor([[5, 6, 7, 8, 1]]), torch.tensor([[0, 20, 21]])),
    Pair(torch.tensor([[9, 10, 1]]), torch.tensor([[0, 30, 31, 32, 33]])),
]


def test_a_text_is_cut_or_continued_between_what_is_fixed(tasks) -> None:
    cut = tasks["pair"].fit(PAIRS, 0, (3, 6))
    assert cut.source.tolist() == [[5, 6, 1]]  # the end stays the end
    assert cut.target.tolist() == [[0, 20, 21, 30, 31, 32]]  # and the next text's start is left out
    assert tasks["pair"].fit(PAIRS, 1, (5, 2)).source.tolist() == [[9, 10, 5, 6, 1]]
    rows = [torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 5, 6]])]
    assert tasks["gpt"].fit(rows, 0, 5).tolist() == [[1, 2, 3, 4, 5]]
    bert = tasks["bert"].rows(["the cat [MASK]", "the [MASK] sat on the mat"])
    assert tasks["bert"].model.to_str_tokens(tasks["bert"].fit(bert, 0, 7)) == (
        ["[CLS]", "the", "cat", "[MASK]", "the", "[MASK]", "[SEP]"]
    )
    with pytest.raises(InputError, match="no tokens"):
        tasks["pair"].fit([Pair(torch.tensor([[1]]), torch.tensor([[0]]))], 0, (2, 2))


@pytest.mark.parametrize("seed", range(4))
def test_a_shuffle_leaves_ends_and_mask_in_place(tasks, seed) -> None:
    row = Pair(torch.arange(2, 12)[None], torch.arange(20, 30)[None])
    mixed = tasks["pair"].shuffled(row, random.Random(seed))
    assert [sorted(ids[0].tolist()) for ids in mixed] == [ids[0].tolist() for ids in row]
    assert (mixed.source[0, -1], mixed.target[0, 0]) == (11, 20)
    assert not torch.equal(mixed.source, row.source)
    (text,) = tasks["bert"].rows("the cat [MASK] on the mat")
    again = tasks["bert"].shuffled(text, random.Random(seed))
    fixed = [0, 3, 7]
    assert torch.equal(again[:, fixed], text[:, fixed])
    assert sorted(again[0].tolist()) == sorted(text[0].tolist())


def test_what_is_asked_for_and_where(tasks) -> None:
    pair, bert, gpt = tasks["pair"], tasks["bert"], tasks["gpt"]
    assert [pair.place(row) for row in PAIRS] == [1, 3]
    assert pair.answers(PAIRS).tolist() == [21, 33]
    assert pair.following(PAIRS[0], 1, torch.tensor([21])).tolist() == [[20, 21, pair.model.config.end_token]]
    (text,) = bert.rows("the [MASK] sat")
    assert (bert.place(text), bert.answers([text])) == (2, None)
    assert bert.following(text, 2, torch.tensor([9])).tolist() == [[-1, -1, 9, -1, -1]]
    assert gpt.place(torch.zeros(1, 7)) == 6
    assert (gpt.causal, pair.causal, bert.causal) == (True, False, False)
    assert shape(PAIRS[0]) == (5, 3)
    both = batch([PAIRS[0], PAIRS[0]])
    assert isinstance(both, Pair)
    assert [len(ids) for ids in sides(both)] == [2, 2]


@pytest.mark.parametrize("kind", ["gpt", "pair", "bert"])
def test_an_embedding_is_what_the_model_has_there(tasks, kind) -> None:
    task, ids = tasks[kind], torch.tensor([[3, 5, 4, 1]])
    row = Pair(ids, ids) if kind == "pair" else ids
    name, embedded = task.embedded(ids[0])
    torch.testing.assert_close(embedded, task.kept(row, [name])[name][0])


def test_parts_of_a_translation_model_by_name(tasks) -> None:
    model = tasks["pair"].model  # two layers in the encoder, three in the decoder
    labels = [part.label for part in choose(model, "mlps,cross attention,layers", layers=(-1, 2))]
    expected = ["enc mlp 1", "dec mlp 2", "dec mlp 2", "cross attn 2", "cross attn 2", "enc layer 1", "dec layer 2"]
    assert labels == list(dict.fromkeys(expected))
    assert len(choose(model, "heads")) == (2 + 3 + 3) * 4
    (head, neuron) = choose(model, "cross L2H3, dec L0N5")
    assert (head.names, neuron.names) == (("decoder.2.cross_attn.hook_z",), ("decoder.0.mlp.hook_post",))
    for wrong in ("enc L2H0", "cross mlp 0", "cross mlps", "L0H0", "encoder L0H0", "heds"):
        with pytest.raises(InputError):
            choose(model, wrong)
    with pytest.raises(InputError):
        choose(tasks["gpt"].model, "enc L0H0")
    assert [part.label for part in choose(tasks["bert"].model, "L1H2,mlp 0")] == ["L1H2", "mlp 0"]
