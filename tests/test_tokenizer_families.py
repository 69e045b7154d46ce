"""Every family's tokenizer gives transformers' tokens and text: byte-level, sentencepiece-style and whole words."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from interp.errors import InputError, LoadError
from interp.text.tokenizer import Tokenizer

CORPUS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "Mary gave the drink to John, and the store gave Mary 12 drinks in 2024.",
    "The café was naïve about its façade; Über den Wolken wars schön.",
    "def drink(store):\n    return store + 1\n",
] * 4
TEXTS = [
    "When Mary and John went to the store,",
    " Mary gave", "  two spaces in front", "behind  ", "   ", " ", "\n", "a\n\nb\n", "\ttab\r\nline",
    "naïve café", "e\u0301 apart", "Привет, мир", "שלום עולם", "مرحبا بالعالم", "你好。世界", "こんにちは", "สวัสดี",
    "नमस्ते", "🙂", "a 👩\u200d👩\u200d👧 b", "🙂🙂 Mary", "x = 1234567", "don't I'LL", "<0x0A> written out",
    "a\u00a0b\u3000c\u200b", "def drink(store):\n    return store\n",
]  # fmt: skip
WORDS = (  # Llama 3's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pairs(backend: Backend, size: int, special: list[str], alphabet: list[str]) -> Backend:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_level(
    special: list[str], *, normalizer: Any = None, first: Any = None, regex: bool = False, added: tuple[str, ...] = ()
) -> Backend:
    """As Llama 3, Qwen, SmolLM2 or NeoX have it: some splitting, then bytes."""
    backend = Backend(models.BPE())
    written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, written]) if first else written
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    pairs(backend, 400, special, pre_tokenizers.ByteLevel.alphabet())
    backend.add_tokens([AddedToken(text, normalized=True) for text in added])
    return backend


def spaced(place: str, special: tuple[str, ...], added: tuple[str, ...] = ()) -> Backend:
    """As sentencepiece's models are converted: pieces, bytes for what is none. `place`: what puts a space in front."""
    learner = Backend(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    learnt = json.loads(pairs(learner, 120, [], []).to_str())["model"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"], *added]
    vocabulary = {piece: token for token, piece in enumerate(dict.fromkeys(names))}
    merges = [tuple(pair) for pair in learnt["merges"]]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if place == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif place == "nobody":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", place, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps if place == "nobody" else [*steps, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    beginning = next(token for token in ("<s>", "<bos>") if token in special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{beginning} $A", special_tokens=[(beginning, vocabulary[beginning])]
    )
    return backend


def words() -> Backend:
    names = ["[unk]", "<end>", "When", "Mary", "and", "John", "went", "to", "the", "store"]
    backend = Backend(models.WordLevel({word: token for token, word in enumerate(names)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


@dataclass(frozen=True)
class Family:
    build: Callable[[], Backend]
    bos: str | None
    eos: str
    exact: bool = True
    """Whether every text can be had back: no normalization, no word unknown, no space taken for the one in front."""
    prefix: bool = False


LLAMA = ("<unk>", "<s>", "</s>")
FAMILIES = {
    "llama": Family(lambda: spaced("prepend", LLAMA), "<s>", "</s>", prefix=True),
    "mistral": Family(lambda: spaced("first", LLAMA), "<s>", "</s>", exact=False, prefix=True),
    "gemma": Family(
        lambda: spaced("nobody", ("<pad>", "<eos>", "<bos>", "<unk>"), ("\n", "\n\n", "▁▁", "▁▁▁")), "<bos>", "<eos>"
    ),
    "llama 3": Family(
        lambda: byte_level(
            ["<|begin_of_text|>", "<|end_of_text|>"], first=pre_tokenizers.Split(Regex(WORDS), "isolated")
        ),
        "<|begin_of_text|>",
        "<|end_of_text|>",
    ),
    "qwen": Family(
        lambda: byte_level(
            ["<|endoftext|>"], normalizer=normalizers.NFC(), first=pre_tokenizers.Split(Regex(WORDS), "isolated")
        ),
        None,
        "<|endoftext|>",
        exact=False,
    ),
    "smollm2": Family(
        lambda: byte_level(
            ["<|endoftext|>", "<|im_end|>"], first=pre_tokenizers.Digits(individual_digits=True), regex=True
        ),
        "<|endoftext|>",
        "<|im_end|>",
    ),
    "neox": Family(
        lambda: byte_level(["<|endoftext|>"], regex=True, added=("  ", "    ")), "<|endoftext|>", "<|endoftext|>"
    ),
    "words": Family(words, "<end>", "<end>", exact=False),
}


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, family in FAMILIES.items():
        found[name] = tmp_path_factory.mktemp("tokenizer")
        family.build().save(str(found[name] / "tokenizer.json"))
        special = {"bos_token": family.bos, "eos_token": {"content": family.eos, "__type": "AddedToken"}}
        write(found[name] / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **special)
    return found


def read(directory: Path) -> Tokenizer:
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def known(directories) -> dict[str, Tokenizer]:
    return {name: read(directory) for name, directory in directories.items()}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def theirs(directory: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(directory)


def differing(ours: Tokenizer, twin: Any, texts: list[str]) -> list[str]:
    """The texts whose ids or whose text back are not the twin's."""
    return [
        text
        for text in texts
        if (ids := twin.encode(text, add_special_tokens=False)) != ours.encode(text)
        or ours.to_string(ids) != twin.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ]


def test_tokens_and_text_are_transformers(directories, known, family) -> None:
    ours, twin = known[family], theirs(directories[family])
    assert differing(ours, twin, TEXTS) == []
    assert ours.bos == twin.bos_token_id
    assert ours.ends == {twin.eos_token_id}
    others = [name for name in FAMILIES if name != family]
    assert all(differing(known[name], twin, TEXTS) for name in others)


def test_the_beginning_is_put_in_front_once(known, family) -> None:
    ours, bos = known[family], FAMILIES[family].bos
    plain = ours.encode("Mary gave")
    first = [] if bos is None else [ours.backend.token_to_id(bos)]
    assert ours.encode("Mary gave", prepend_bos=True) == [*first, *plain]
    assert ours.to_tokens("Mary gave").tolist() == [[*first, *plain]]
    assert first[:1] != plain[:1]
    if bos is not None:
        assert ours.to_str_tokens("Mary gave")[0] == bos


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1))
def test_bytes_of_tokens_are_the_texts_bytes(known, text) -> None:
    for name, family in FAMILIES.items():
        if family.exact:
            ours = known[name]
            ids = ours.encode(text)
            assert b"".join(map(ours.token_bytes, ids)) == (" " * family.prefix + text).encode()
            assert ours.to_string(ids) == ours.to_string(ours.encode(text, prepend_bos=True))[len(family.bos or "") :]
            assert ours.to_string(ids) == text


def test_what_stands_behind_an_added_token_is_exact(directories, known) -> None:
    """Llama's normalizer puts a space there too; transformers leaves it."""
    ours, twin = known["llama"], theirs(directories["llama"])
    for text in ("Mary</s>John", "Mary</s> John", "<s>Mary <s></s> John</s>"):
        assert ours.to_string(ours.encode(text)) == text
        assert twin.decode(ours.encode(text)) != text
    assert ours.to_string(ours.encode(" Mary", prepend_bos=True)) == "<s> Mary"


def test_single_tokens(known, family) -> None:
    ours, vocabulary = known[family], known[family].backend.get_vocab()
    by_bytes, by_pieces = "ĠMary" in vocabulary, "▁Mary" in vocabulary
    assert by_bytes + by_pieces == (family != "words")
    for text in (" Mary", "store", "a", " John"):
        piece = text.replace(" ", "Ġ" if by_bytes else "▁" if by_pieces else "")
        if piece in vocabulary:
            assert ours.to_single_token(text) == vocabulary[piece]
            assert ours.token_bytes(vocabulary[piece]).decode() == (text if family != "words" else text.strip())
        else:
            with pytest.raises(InputError, match="expected exactly one token"):
                ours.to_single_token(text)
    for text in ("", "Mary store", "zebra"):
        with pytest.raises(InputError, match="expected exactly one token"):
            ours.to_single_token(text)
    if by_pieces:
        assert ours.to_str_tokens([ours.to_single_token("\n"), ours.to_single_token(" Mary")]) == ["\n", " Mary"]


def test_a_word_that_is_a_token_only_after_a_space_is_refused(known) -> None:
    ours = known["llama"]
    assert ours.backend.token_to_id("Mary") is None
    assert ours.encode("Mary") == [ours.to_single_token(" Mary")]
    with pytest.raises(InputError, match=r"(?s)'Mary' is 1 token: ' Mary'.*of that text.*try ' Mary'"):
        ours.to_single_token("Mary")


def test_partial_characters_are_shown_as_hex(known) -> None:
    for name in ("gemma", "llama 3"):
        ours = known[name]
        assert ours.to_str_tokens("🙂", prepend_bos=False) == ["\\xf0", "\\x9f", "\\x99", "\\x82"]
        assert ours.to_string(ours.encode("🙂")[:2]) == "\N{REPLACEMENT CHARACTER}"
    gemma = known["gemma"]
    run = gemma.backend.token_to_id("▁▁")
    assert run in gemma.backend.get_added_tokens_decoder()
    assert gemma.to_str_tokens([run, gemma.d_vocab + 7]) == ["  ", f"<{gemma.d_vocab + 7}>"]


def test_saved_files_are_read_again(known, family, tmp_path) -> None:
    ours = known[family]
    ours.save(tmp_path)
    again = read(tmp_path)
    assert (again.bos, again.ends) == (ours.bos, ours.ends)
    assert differing(again, theirs(tmp_path), TEXTS) == []
    assert theirs(tmp_path).bos_token_id == ours.bos
    assert {theirs(tmp_path).eos_token_id} == ours.ends


def test_several_ends_are_saved(known, tmp_path) -> None:
    backend = known["smollm2"].backend
    ours = Tokenizer(backend, bos=None, ends=["<|im_end|>", 0, "absent", 10**6, -1])
    assert ours.ends == {0, 1}
    ours.save(tmp_path)
    assert read(tmp_path).ends == {0, 1}
    assert read(tmp_path).bos is None
    assert theirs(tmp_path).eos_token == "<|im_end|>"


NAMED, MAPPED, CONFIG = "tokenizer_config.json", "special_tokens_map.json", "config.json"


@pytest.mark.parametrize(
    ("files", "bos", "ends"),
    [
        ({}, 0, {0}),
        ({NAMED: {"bos_token": "b", "eos_token": {"content": "c"}}, CONFIG: {"bos_token_id": 0}}, 1, {2}),
        ({NAMED: {"bos_token": {"content": "b"}}, MAPPED: {"bos_token": "c"}}, 1, {1}),
        ({NAMED: {"bos_token": None}, MAPPED: {"bos_token": "c"}, CONFIG: {"bos_token_id": 1}}, None, set()),
        ({NAMED: {}, MAPPED: {"bos_token": "c", "eos_token": "b"}, CONFIG: {"bos_token_id": 1}}, 2, {1}),
        ({CONFIG: {"bos_token_id": 1, "eos_token_id": [2, 0]}}, 1, {2, 0}),
        ({CONFIG: {"bos_token_id": 50256, "eos_token_id": 50256}}, 0, {0}),
        ({CONFIG: {"bos_token_id": None, "eos_token_id": None}}, 0, {0}),
        ({CONFIG: {"text_config": {"bos_token_id": 1}, "eos_token_id": [2]}}, 1, {2}),
        ({CONFIG: {"eos_token_id": 1}, "generation_config.json": {"eos_token_id": [2, 99]}}, 0, {1, 2}),
    ],
)
def test_beginning_and_ends_come_from_the_files(tmp_path, files, bos, ends) -> None:
    backend = Backend(models.WordLevel({"<|endoftext|>": 0, "b": 1, "c": 2}, "b"))
    backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        write(tmp_path / name, **content)
    assert read(tmp_path).bos == bos
    assert read(tmp_path).ends == ends


def test_no_beginning(tmp_path) -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, "a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = read(tmp_path)
    assert ours.bos is None
    assert ours.ends == frozenset()
    assert ours.to_tokens("a b").tolist() == [[0, 1]]
    with pytest.raises(InputError, match="no tokens"):
        ours.to_tokens("  ")


def test_vocabulary_and_merges_with_the_files_own_ends(tmp_path) -> None:
    """OPT's files: GPT-2's pairs without its one special token."""
    backend = byte_level([], regex=True)
    backend.model.save(str(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    write(tmp_path / "vocab.json", **vocabulary, **{"</s>": len(vocabulary)})
    write(tmp_path / NAMED, bos_token="</s>", eos_token="</s>")
    ours = read(tmp_path)
    assert ours.encode("Mary</s>", prepend_bos=True)[0] == ours.encode("Mary</s>")[-1] == ours.bos == len(vocabulary)


@pytest.mark.parametrize("name", ["tokenizer.json", NAMED, MAPPED, CONFIG, "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_damaged_files_are_refused(directories, tmp_path, name, content) -> None:
    (tmp_path / "tokenizer.json").write_bytes((directories["llama"] / "tokenizer.json").read_bytes())
    assert read(tmp_path).bos is None
    (tmp_path / name).write_text(content)
    if content.startswith('{"') and name != "tokenizer.json":
        assert read(tmp_path).bos is None
    else:
        with pytest.raises(LoadError, match="expected"):
            read(tmp_path)


def test_a_sentencepiece_model_alone_is_no_tokenizer(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert Tokenizer.from_directory(tmp_path) is None


@pytest.mark.slow
@pytest.mark.skipif("INTERP_MODELS" not in os.environ, reason="INTERP_MODELS names no directory of real models")
@pytest.mark.parametrize(
    ("name", "bos", "end"), [("smollm2", "<|im_start|>", "<|im_end|>"), ("gemma3", "<bos>", "<eos>")]
)
def test_real_tokenizers(known, name, bos, end) -> None:
    directory = Path(os.environ["INTERP_MODELS"]) / name
    ours, twin = read(directory), theirs(directory)
    lines = (Path(__file__).parent / "../../shared/data/wikitext2_test.txt").read_text().splitlines()
    texts = [line for line in lines if line.strip()][:900] + [a + b for a in TEXTS for b in TEXTS[:4]]
    assert len(texts) > 1000
    assert differing(ours, twin, texts) == []
    assert [text for text in texts if ours.to_string(ours.encode(text)) != text] == []
    assert ours.bos == twin.bos_token_id == ours.backend.token_to_id(bos)
    assert ours.ends == {twin.eos_token_id} == {ours.backend.token_to_id(end)}
    assert ours.encode(" Mary") == [ours.to_single_token(" Mary")]
    assert len(differing(known["llama"], twin, texts[:50])) > 40
