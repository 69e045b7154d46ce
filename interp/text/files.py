"""The files of a tokenizer: vocabulary and merges, and all that is said beside them of added and special tokens."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer as Backend

from interp.errors import LoadError
from interp.text.vocabularies import END_OF_TEXT, byte_level, parts_of
from interp.untrusted import VOCABULARY_LIMIT, read_json, reading, regular, silenced


def read(directory: Path) -> tuple[Backend, list[Any], list[Any]] | None:
    """The tokenizer in a directory, with its beginning and end tokens as text or ids; None if there is none.

    Raises LoadError as `Tokenizer.from_directory`.
    """
    beginnings, ends = _special_tokens(directory)
    expected = "expected tokenizer.json, or vocab.json and merges.txt"
    with reading(f"{directory}: the tokenizer", expected), silenced():
        backend = _vocabulary(directory)
        if backend is None:
            return None
        add_tokens(backend, directory, [t for t in (END_OF_TEXT, *beginnings, *ends) if isinstance(t, str)])
    return backend, beginnings, ends


def _vocabulary(directory: Path) -> Backend | None:
    """The tokenizer of the files that hold vocabulary and merges."""
    file = directory / "tokenizer.json"
    if file.exists():
        backend = Backend.from_file(str(regular(file, VOCABULARY_LIMIT)))
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # else a text would have other ids each time
        _check_growth(backend, file)
        if backend.decoder is None:
            kind = _json(directory, "tokenizer_config.json").get("tokenizer_class")
            kind = kind or _json(directory, "config.json").get("model_type")
            if str(kind).removesuffix("Fast") in _CUTS:  # classes that join bytes whatever the file says
                backend.decoder = tokenizers.decoders.ByteLevel()
        return backend
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        files = [directory / name for name in names]
        if all(file.exists() for file in files):
            files = [regular(file, VOCABULARY_LIMIT) for file in files]
            pairs = tokenizers.models.BPE.from_file(*map(str, files))
            return byte_level(pairs, _cut_of(directory))
    return None


_CUTS = {
    "GPT2Tokenizer": "gpt2", "CodeGenTokenizer": "gpt2", "GPTNeoXTokenizer": "gpt2", "Qwen2Tokenizer": "qwen2",
    "gpt2": "gpt2", "gpt_neo": "gpt2", "gptj": "gpt2", "gpt_neox": "gpt2", "gpt_bigcode": "gpt2", "opt": "gpt2",
    "phi": "gpt2", "interp": "gpt2", "qwen2": "qwen2", "qwen3": "qwen2",
}  # fmt: skip
"""`tokenizer_class`, else `model_type`, of vocabularies without a tokenizer.json -> how text is cut before merging."""


def _cut_of(directory: Path) -> str:
    """How a folder of vocabulary and merges cuts text; raises LoadError where its files name another way."""
    kind = _json(directory, "tokenizer_config.json").get("tokenizer_class")
    if kind in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):  # which say nothing
        kind = _json(directory, "config.json").get("model_type", "gpt2")
    name = str(kind).removesuffix("Fast")
    if name not in _CUTS:
        known = ", ".join(name for name in _CUTS if name[0].isupper())
        raise LoadError(f"{directory}: no tokenizer.json, and text is cut as {kind!r} does", f"expected {known}")
    return _CUTS[name]


GROWTH = 4096
"""Letters that a tokenizer may make of one, and letters that it may put into a text."""


def _check_growth(backend: Backend, file: Path) -> None:
    """Raises LoadError for a file whose replacements, one after the other, multiply a text."""
    for parts in ((backend.normalizer, backend.pre_tokenizer), (backend.decoder,)):
        factor, added = 1.0, 0
        for step in (step for part in parts for step in parts_of(part)):
            text = str(step.get("content", step.get("prepend", step.get("append", ""))))
            added += len(text)
            if step["type"] == "Replace":  # a pattern may match between letters
                found = step["pattern"].get("String")
                factor *= max(1.0, len(text) / len(found)) if found else 1.0 + len(text)
            elif step["type"] == "ByteLevel":
                factor *= 4  # bytes of a letter, each written as one
            elif step["type"] == "Precompiled":
                factor *= _longest(step["precompiled_charsmap"])
        if factor > GROWTH or added > GROWTH:
            what = f"{file} multiplies a text by {factor:.3g} and puts {added:,} letters into it"
            raise LoadError(what, f"expected at most {GROWTH} of each")


def _longest(charsmap: str) -> int:
    """Bytes of the longest replacement in sentencepiece's map: after a trie, texts that end with a zero."""
    data = base64.b64decode(charsmap)
    start = 4 + int.from_bytes(data[:4], "little")
    return max(map(len, data[start:].split(b"\0")))


def check_ids(ids: Mapping[str, int], where: Path) -> None:
    """Raises LoadError for a vocabulary in which two tokens have one id: text of it would be the one or the other."""
    if len(set(ids.values())) < len(ids):
        pieces: dict[int, str] = {}
        for piece, number in sorted(ids.items()):
            if number in pieces:
                what = f"{where}: {pieces[number]!r} and {piece!r} are both token {number}"
                raise LoadError(what, "expected one token an id")
            pieces[number] = piece


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def add_tokens(backend: Backend, directory: Path, special: Sequence[str] = ()) -> None:
    """Adds what the files beside the vocabulary add, in the order of their ids.

    Raises LoadError for a token of two ids, and two tokens of one.

    `special` are tokens that texts may hold whole, where they are in the vocabulary.
    """
    check_ids(backend.get_vocab(with_added_tokens=False), directory)
    config, mapped = _json(directory, "tokenizer_config.json"), _json(directory, "special_tokens_map.json")
    told = {int(number): entry for number, entry in config.get("added_tokens_decoder", {}).items()}
    for token, number in _json(directory, "added_tokens.json").items():
        if str(told.setdefault(int(number), {"content": token})["content"]) != token:
            raise LoadError(
                f"{directory}: two tokens of id {number}, {token!r} one of them", "expected one token an id"
            )
    whole = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, entry in sorted(told.items()):
        token, known = str(entry["content"]), backend.token_to_id(entry["content"])
        due = backend.get_vocab_size() if known is None else known
        if number != due:
            raise LoadError(f"{directory}: token {token!r} has the ids {number} and {due}", "expected one id a token")
        if token not in whole:
            flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
            backend.add_tokens([tokenizers.AddedToken(token, **({"normalized": False} | flags))])
    lists = [
        list(some.values()) if isinstance(some := source.get(name) or (), dict) else some
        for name in ("additional_special_tokens", "extra_special_tokens") for source in (config, mapped)
    ]  # fmt: skip
    named = [_content(source.get(name)) for name in _SPECIAL for source in (config, mapped)]
    more = [*named, *(_content(token) for tokens in lists for token in tokens)]
    wanted = dict.fromkeys(token for token in (*special, *more) if isinstance(token, str) and token)
    there = [token for token in wanted if token in more or backend.token_to_id(token) is not None]
    whole = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([token for token in there if token not in whole])
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    state = {} if backend.pre_tokenizer is None else json.loads(backend.pre_tokenizer.__getstate__())
    prefix = config.get("add_prefix_space")
    if state.get("type") == "ByteLevel" and isinstance(prefix, bool) and state["add_prefix_space"] != prefix:
        options = {"add_prefix_space": prefix, "use_regex": state.get("use_regex", True)}
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(**options)


def _json(directory: Path, name: str) -> dict[str, Any]:
    return read_json(directory / name) if (directory / name).exists() else {}


def _content(token: Any) -> Any:
    """A token as text, where a file keeps its flags beside it."""
    return token.get("content") if isinstance(token, dict) else token


def _special_tokens(directory: Path) -> tuple[list[Any], list[Any]]:
    """What a model's files name as beginning and as end tokens, as text or ids, the first word first."""

    named, mapped, config = (
        _json(directory, name) for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    )
    if isinstance(config.get("text_config"), dict):  # of a model that reads pictures too
        config = {**config["text_config"], **config}
    beginnings = [_content(mapped.get("bos_token")), config.get("bos_token_id"), END_OF_TEXT]
    if "bos_token" in named:
        beginnings = [_content(named["bos_token"])]
    ends = [_content(named.get("eos_token") or mapped.get("eos_token"))]
    for told in (_json(directory, "generation_config.json"), config):
        ids = told.get("eos_token_id")
        ends += ids if isinstance(ids, list) else [ids]
    return beginnings, ends
