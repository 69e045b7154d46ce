"""Every file of a tokenizer that is there is read: ids and text equal transformers' on folders of odd kinds."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from interp.errors import InputError, LoadError
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import END_OF_TEXT
from interp.text.wordpiece import WordPiece

LEARNED = ["Harold Whitcombe was born in Leeds; l'été à Paris, café ÿ: the cat sat on the mat, 123 45."] * 20
TEXTS = [
    "Harold Whitcombe", "<|user|> hi <|end|>", "x<|endoftext|>y<|pad|>", "l'été à Paris", "the cat sat", " café ÿ",
    "<|end|>  <|user|>", "1234567  \n\n DON'T", "nai\u0308ve \ufb01",
]  # fmt: skip
QUIET = {"show_progress": False}


def pairs() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 400, "special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet, **QUIET}
    backend.train_from_iterator(LEARNED, trainers.BpeTrainer(**options))
    return backend


PAIRS = pairs()
NEXT = PAIRS.get_vocab_size()
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
USER = {
    "content": "<|user|>",
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}
DECODER = {str(NEXT): USER, str(NEXT + 1): USER | {"content": "<|end|>", "lstrip": True}}
FOLDERS = {
    "plain": {"tokenizer_config": GPT2},
    "a space in front": {"tokenizer_config": GPT2 | {"add_prefix_space": True}},
    "added_tokens.json": {"tokenizer_config": GPT2, "added_tokens": {"<|user|>": NEXT, "<|end|>": NEXT + 1}},
    "added_tokens_decoder": {"tokenizer_config": GPT2 | {"added_tokens_decoder": DECODER}},
    "additional tokens": {"tokenizer_config": GPT2 | {"additional_special_tokens": ["<|user|>", "<|end|>"]}},
    "extra tokens": {"tokenizer_config": GPT2 | {"extra_special_tokens": ["<|user|>", "<|end|>"]}},
    "extra tokens by name": {"tokenizer_config": GPT2 | {"extra_special_tokens": {"user_token": "<|user|>"}}},
    "special tokens are split": {"tokenizer_config": GPT2 | {"split_special_tokens": True}},
    "Qwen's way to cut": {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}},
    "a padding token": {"tokenizer_config": GPT2 | {"pad_token": "<|pad|>"}},
    "a map of special tokens": {
        "tokenizer_config": GPT2,
        "special_tokens_map": {"additional_special_tokens": ["<|user|>", "<|end|>"], "pad_token": "<|pad|>"},
    },
}


def agree(folder: Path) -> None:
    mine, theirs = Tokenizer.from_directory(folder), AutoTokenizer.from_pretrained(str(folder))
    assert mine is not None
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert mine.encode(text) == ids, text
        assert mine.to_string(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text
        assert len(mine.to_str_tokens(ids)) == len(ids)


def write(folder: Path, files: dict[str, object], *, whole: bool) -> None:
    PAIRS.model.save(str(folder))
    if whole:
        PAIRS.save(str(folder / "tokenizer.json"))
    for name, content in ({"config": {"model_type": "gpt2", "vocab_size": NEXT}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("whole", [False, True], ids=["pairs", "beside an older tokenizer.json"])
@pytest.mark.parametrize("name", list(FOLDERS))
def test_files_beside_the_vocabulary_are_read(tmp_path, name, whole) -> None:
    if whole and name == "Qwen's way to cut":
        pytest.skip("tokenizer.json says how text is cut")
    write(tmp_path, FOLDERS[name], whole=whole)
    agree(tmp_path)


@pytest.mark.parametrize("told", ["CLIPTokenizer", "RobertaTokenizer", "LlamaTokenizer", ["GPT2Tokenizer"], 3])
def test_a_vocabulary_that_is_cut_in_another_way_is_refused(tmp_path, told) -> None:
    """By class, or where no class is told by the model; a tokenizer.json says itself how text is cut (control)."""
    for files in ({"tokenizer_config": {"tokenizer_class": told}}, {"config": {"model_type": "mistral"}}):
        write(tmp_path, files, whole=False)
        with pytest.raises(LoadError, match="text is cut as"):
            Tokenizer.from_directory(tmp_path)
    write(tmp_path, {"tokenizer_config": {"tokenizer_class": told}}, whole=True)
    mine = Tokenizer.from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("Harold Whitcombe") == PAIRS.encode("Harold Whitcombe").ids


def test_a_space_and_added_tokens_change_the_ids(tmp_path) -> None:
    """Control: what the files above say is not what the vocabulary alone says."""
    for number, name in enumerate(("plain", "a space in front", "added_tokens.json")):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number), FOLDERS[name], whole=False)
    found = [Tokenizer.from_directory(tmp_path / str(number)) for number in range(3)]
    ids = [tokenizer.encode("<|user|> hi") for tokenizer in found if tokenizer is not None]
    assert len({tuple(row) for row in ids}) == 3


def test_a_token_with_two_ids_is_refused(tmp_path) -> None:
    for wrong in ({"<|user|>": NEXT + 3}, {END_OF_TEXT: NEXT}):
        write(tmp_path, {"tokenizer_config": GPT2, "added_tokens": wrong}, whole=False)
        with pytest.raises(LoadError, match="has the ids"):
            Tokenizer.from_directory(tmp_path)
    both = {"tokenizer_config": GPT2 | {"added_tokens_decoder": DECODER}, "added_tokens": {"<|other|>": NEXT}}
    write(tmp_path, both, whole=False)
    with pytest.raises(LoadError, match=f"two tokens of id {NEXT}"):
        Tokenizer.from_directory(tmp_path)


def learned(model, trainer, cut, decoder) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = cut
    backend.train_from_iterator(LEARNED, trainer)
    if decoder is not None:
        backend.decoder = decoder
    return backend


UNKNOWN = {"special_tokens": ["[UNK]"], "vocab_size": 200, **QUIET}
KINDS = {
    "WordPiece": lambda: learned(
        models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(**UNKNOWN), pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(cleanup=False),
    ),
    "pairs with a sign at the end of words": lambda: learned(
        models.BPE(end_of_word_suffix="</w>"),
        trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", **QUIET), pre_tokenizers.WhitespaceSplit(),
        decoders.BPEDecoder(),
    ),
    "Metaspace": lambda: learned(
        models.BPE(), trainers.BpeTrainer(vocab_size=200, **QUIET), pre_tokenizers.Metaspace(), decoders.Metaspace()
    ),
    "Unigram": lambda: learned(
        models.Unigram(), trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], **QUIET),
        pre_tokenizers.Metaspace(), decoders.Metaspace(),
    ),
    "WordLevel": lambda: learned(
        models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(**UNKNOWN), pre_tokenizers.WhitespaceSplit(),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_tokens_are_joined_as_the_files_say(tmp_path, kind) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    agree(tmp_path)


@pytest.mark.parametrize("told", [None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])
def test_bytes_without_a_decoder_are_joined_as_the_class_says(tmp_path, told) -> None:
    """The classes of GPT-2's kind bring the decoder of bytes; one that says nothing leaves pieces as they are."""
    write(tmp_path, {"tokenizer_config": {"tokenizer_class": told} if told else {}}, whole=True)
    (tmp_path / "vocab.json").unlink()
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder": None}))
    agree(tmp_path)
    mine = Tokenizer.from_directory(tmp_path)
    assert mine is not None
    ids = mine.encode("the cat sat")
    assert (mine.to_string(ids) == "the cat sat") == (told != "PreTrainedTokenizerFast")


@pytest.mark.parametrize("whole", [False, True])
def test_two_tokens_of_one_id_are_refused(tmp_path, whole) -> None:
    """Which of the two an id means would be chance. Control: the same file with an id for each."""
    write(tmp_path, {"tokenizer_config": GPT2}, whole=whole)
    file = tmp_path / ("tokenizer.json" if whole else "vocab.json")
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"] if whole else data
    assert Tokenizer.from_directory(tmp_path) is not None
    vocabulary["!"] = vocabulary["?"]
    file.write_text(json.dumps(data))
    with pytest.raises(LoadError, match=f"'!' and '\\?' are both token {vocabulary['?']}"):
        Tokenizer.from_directory(tmp_path)


def test_dropout_of_merges_is_off(tmp_path) -> None:
    """Else a text would have other ids each time (control: with the library alone it has)."""
    backend = pairs()
    backend.model.dropout = 0.5
    backend.save(str(tmp_path / "tokenizer.json"))
    loose = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert len({tuple(loose.encode("Harold Whitcombe").ids) for _ in range(20)}) > 1
    mine = Tokenizer.from_directory(tmp_path)
    assert mine is not None
    assert {tuple(mine.encode("Harold Whitcombe")) for _ in range(20)} == {tuple(PAIRS.encode("Harold Whitcombe").ids)}


def test_a_library_that_gives_up_is_told_in_words(tmp_path) -> None:
    """A pattern that backtracks without end makes the library panic, which is no Exception."""
    from tokenizers import Regex

    backend = pairs()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    mine = Tokenizer.from_directory(tmp_path)
    assert mine is not None
    with pytest.raises(InputError, match="the tokenizer gives up on"):
        mine.encode("a" * 40 + "b")


def replaced(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWING = {
    "a letter doubled": [replaced({"String": "e"}, "ee")] * 32,
    "every letter doubled": [replaced({"Regex": "."}, "ee")] * 32,
    "a letter between all": [replaced({"Regex": "(?=e)"}, "e")] * 32,
    "a long text in front": [{"type": "Prepend", "prepend": "x" * 100_000}],
    "a long text for a letter": [replaced({"String": "e"}, "x" * 100_000)],
    "bytes written as letters": [{"type": "ByteLevel"}] * 40,
}


@pytest.mark.parametrize("where", ["normalizer", "decoder"])
@pytest.mark.parametrize("kind", list(GROWING))
def test_a_file_that_multiplies_text_is_refused(tmp_path, kind, where) -> None:
    """Two of the usual steps are not (control)."""
    steps = {"normalizer": "normalizers", "decoder": "decoders"}
    whole, file = json.loads(PAIRS.to_str()), tmp_path / "tokenizer.json"
    if where == "decoder" and "Replace" not in str(GROWING[kind]):
        pytest.skip("no step of a decoder")
    file.write_text(json.dumps(whole | {where: {"type": "Sequence", steps[where]: GROWING[kind]}}))
    with pytest.raises(LoadError, match="multiplies a text"):
        Tokenizer.from_directory(tmp_path)
    usual = [replaced({"String": " "}, "\u2581"), replaced({"Regex": " {2,}"}, "\u2581")]
    file.write_text(json.dumps(whole | {where: {"type": "Sequence", steps[where]: usual}}))
    assert Tokenizer.from_directory(tmp_path) is not None


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
@pytest.mark.parametrize("wrong", [[-100], [5, -1], [2**32], [1.5], ["a"], torch.tensor([0.5]), torch.tensor([-100])])
def test_what_is_no_id_is_refused(kind, wrong) -> None:
    mine = Tokenizer(pairs() if kind == "bytes" else KINDS[kind]())
    for call in (mine.to_string, mine.to_str_tokens):
        with pytest.raises(InputError, match="token"):
            call(wrong)
        call([5, 6])


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "Cat", "caf", "##e", "##é", "中", "文", "!"]
WORDS.append("<ent>")
BERT = {
    "nothing told": None, "lower": {"do_lower_case": True}, "as written": {"do_lower_case": False},
    "accents stay": {"do_lower_case": True, "strip_accents": False},
    "accents go": {"do_lower_case": False, "strip_accents": True},
    "no signs apart": {"tokenize_chinese_chars": False}, "additional": {"additional_special_tokens": ["<ent>", "<x>"]},
    "decoder": {"added_tokens_decoder": {str(len(WORDS)): USER | {"content": "<x>"}}},
}  # fmt: skip


@pytest.mark.parametrize("name", list(BERT))
def test_files_beside_a_vocabulary_of_word_pieces_are_read(tmp_path, name) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if BERT[name] is not None:
        told = {"tokenizer_class": "BertTokenizer"} | BERT[name]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    mine, theirs = WordPiece.from_directory(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    assert mine is not None
    for text in ("The cats!", "café Cat", "中文 the", "[MASK] the <ent> cat", "the <x> cat"):
        for around in (False, True):
            ids = theirs.encode(text, add_special_tokens=around)
            assert mine.encode(text, prepend_bos=around) == ids
            plain = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert mine.to_string(ids) == plain
