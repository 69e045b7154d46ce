"""Text to tokens and back, with every token's exact bytes: byte-level pairs (GPT-2, Llama 3, Qwen, Pythia), pieces with
the sentencepiece sign and byte fallback (Llama 1 and 2, Mistral, Gemma), or whole words."""

import base64
import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.errors import InputError, LoadError
from interp.files import atomic_path
from interp.untrusted import VOCABULARY_LIMIT, is_panic, read_json, reading, regular, silenced, write_json

END_OF_TEXT = "<|endoftext|>"
SPACE = "\u2581"
"""Sentencepiece's sign for a space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How it writes a byte of a character that is no piece."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2 writes each byte as one printable character: itself where printable, else shifted beyond 255 in order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(pairs: tokenizers.models.BPE) -> Backend:
    backend = Backend(pairs)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


class Tokenizer:
    """Tokens of a model. `bos`, the beginning token (also padding), and `ends` come from the model's files.

    Without files they are `<|endoftext|>`, as in GPT-2. Some models have no beginning token: nothing is put in front.
    """

    def __init__(
        self, backend: Backend, *, bos: str | int | None = END_OF_TEXT, ends: Iterable[str | int] = ()
    ) -> None:
        """`bos` and `ends` as text or id, the main end first; what is not in the vocabulary is no token."""
        self.backend = backend
        backend.no_truncation()  # files saved after fine-tuning may carry both, and would cut or fill texts silently
        backend.no_padding()
        self.bos = _id(backend, bos)
        known = [token for token in (_id(backend, end) for end in ends) if token is not None]
        self._end = known[0] if known else self.bos
        self.ends = frozenset(known) or frozenset([] if self.bos is None else [self.bos])
        """Tokens that end a text."""
        decoding = list(_parts(backend.decoder))
        parts = [*decoding, *_parts(backend.pre_tokenizer), *_parts(backend.normalizer)]
        self._byte_of = _byte_of_character() if any(part["type"] == "ByteLevel" for part in parts) else {}
        self._spaced = not self._byte_of and SPACE in str(parts)
        by_bytes = any(part["type"] == "ByteLevel" for part in decoding)
        self._decodes = bool(decoding) and not by_bytes and not self._spaced
        """Whether only the files' own decoder knows how to join tokens."""
        self._separator = b"" if decoding or self._byte_of or self._spaced else b" "  # of whole words
        self._stripped = any(
            part.get("start", 0) > 0 or part.get("prepend_scheme", "never") != "never"  # Strip or Metaspace
            for part in decoding
        )
        """Whether decoding takes away the space that encoding put in front of the text."""
        self._prepended = self._stripped and any(part["type"] == "Prepend" for part in parts)
        """Whether encoding also puts one behind every added token."""

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer | None":
        """The tokenizer in a directory, None if there is none, or only sentencepiece's `tokenizer.model`.

        Either `tokenizer.json`, or vocabulary and merges under the names that transformers (`vocab.json`, `merges.txt`)
        or OpenAI (`encoder.json`, `vocab.bpe`) gave them. The beginning token is that of `tokenizer_config.json` (null
        there: none), else of `special_tokens_map.json`, else `config.json`'s id, else `<|endoftext|>`; the end tokens
        are all that these files and `generation_config.json` name. A model without a tokenizer takes token ids.

        Tokens that `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` add are added, and a
        space is put in front of a text where `add_prefix_space` says so. Dropout of merges is switched off.

        Raises LoadError for files that are there but cannot be read, or give a token two ids.
        """
        beginnings, ends = _special_tokens(directory)
        with (
            reading(f"{directory}: the tokenizer", "expected tokenizer.json, or vocab.json and merges.txt"),
            silenced(),
        ):
            backend = _read(directory)
            if backend is None:
                return None
            add_tokens(backend, directory, [t for t in (END_OF_TEXT, *beginnings, *ends) if isinstance(t, str)])
        known = [token for token in beginnings if _id(backend, token) is not None]
        return cls(backend, bos=known[0] if known else None, ends=ends)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; generation_config.json if there are several end tokens."""
        with atomic_path(directory / "tokenizer.json") as path:
            self.backend.save(str(path))
        named = {"bos_token": _piece(self.backend, self.bos), "eos_token": _piece(self.backend, self._end)}
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
        if len(self.ends) > 1:
            write_json(directory / "generation_config.json", {"eos_token_id": sorted(self.ends)})

    @classmethod
    def of_characters(cls, alphabet: str) -> "Tokenizer":
        """One token a character, ids in the order given; there is no beginning-of-text token.

        Raises InputError for no character, one given twice, or one that is not printable ASCII.
        """
        wrong = [character for character in alphabet if not " " <= character <= "~"]
        if not alphabet or wrong or len(set(alphabet)) < len(alphabet):
            raise InputError(f"alphabet {alphabet!r}", "expected different characters, each of them printable ASCII")
        written = alphabet.replace(" ", "\u0120")  # as GPT-2 writes a space
        pieces = {piece: token for token, piece in enumerate(written)}
        return cls(_byte_level(tokenizers.models.BPE(pieces, [])))

    @property
    def d_vocab(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str, *, prepend_bos: bool = False) -> list[int]:
        """Token ids of a text. An added token written in it (such as `<|endoftext|>`) becomes that one token."""
        ids: list[int] = self._encoded(text).ids
        return [self.bos, *ids] if prepend_bos and self.bos is not None else ids

    def _encoded(self, text: str, pair: str | None = None, *, special: bool = False) -> Any:
        """One text, or two, cut into tokens; `special` puts around it what the files say."""
        try:
            return self.backend.encode(text, pair, add_special_tokens=special)
        except (UnicodeEncodeError, TypeError):
            raise InputError(f"text with lone surrogates: {text[:40]!r}", "expected valid Unicode") from None
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            what = f"the tokenizer gives up on {text[:40]!r}: {str(error)[:60]}"
            raise InputError(what, "expected text that it can cut") from None

    def to_tokens(self, text: str | Sequence[str], *, prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Texts of the same length in tokens as [batch pos]. Raises InputError for an empty text or unequal lengths."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(texts):
            raise InputError("the text is empty", "expected at least one character")
        rows = [self.encode(one, prepend_bos=prepend_bos) for one in texts]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise InputError(
                f"texts of {lengths[0]} to {lengths[-1]} tokens",
                "expected equal lengths",
                "use to_batch, which pads on the left",
            )
        if lengths == [0]:
            raise InputError(f"{texts[0][:40]!r} has no tokens", "expected text that the tokenizer keeps")
        return torch.tensor(rows)

    def to_batch(self, texts: Sequence[str], *, prepend_bos: bool = True) -> tuple[Tensor, Tensor]:
        """Texts of any length, padded on the left: token ids and attention mask, both [batch pos]."""
        rows = [self.to_tokens(text, prepend_bos=prepend_bos)[0].tolist() for text in texts]
        longest = max(map(len, rows), default=0)
        pad = self.bos or 0
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return tokens, mask

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token. Raises InputError, with the pieces, otherwise."""
        ids = self.encode(text)
        if self._spaced:  # encoding may put a space in front: a piece of that name is the token inside a text
            names = (text.replace(" ", SPACE), f"<0x{text.encode().hex().upper()}>")
            exact = [token for token in map(self.backend.token_to_id, names) if token is not None]
            ids = next(([token] for token in exact if self.token_bytes(token) == text.encode()), ids)
        pieces = self.to_str_tokens(ids)
        other = {" " + text if self._spaced else None, getattr(self.backend.model, "unk_token", None)} - {text}
        if len(ids) != 1 or pieces[0] in other:
            raise InputError(
                f"{text!r} is {len(ids)} token{'s' * (len(ids) != 1)}: {' + '.join(map(repr, pieces)) or 'none'}",
                "expected exactly one token" + ", of that text" * (len(ids) == 1),
                "" if text.startswith(" ") else f"words inside a text start with a space: try {' ' + text!r}",
            )
        return ids[0]

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of token ids; bytes that are no valid UTF-8 become the replacement character.

        Without the space that encoding put in front: what continues a text is the end of the whole text.
        """
        if self._decodes:
            joined: str = self.backend.decode(as_ids(tokens), skip_special_tokens=False)
            return joined
        parts, start = [], self._stripped
        for token in as_ids(tokens):
            written = self.token_bytes(token)
            if token in self._added:
                start |= self._prepended
            elif start:
                written, start = written.removeprefix(b" "), False
            parts.append(written)
        return self._separator.join(parts).decode("utf-8", "replace")

    def to_str_tokens(self, text_or_tokens: str | Tensor | Sequence[int], *, prepend_bos: bool = True) -> list[str]:
        """One string a token; bytes that are not whole UTF-8 characters are shown as \\xNN."""
        if isinstance(text_or_tokens, str):
            text_or_tokens = self.to_tokens(text_or_tokens, prepend_bos=prepend_bos)
        return [self.token_bytes(token).decode("utf-8", "backslashreplace") for token in as_ids(text_or_tokens)]

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes of a token; for ids beyond the vocabulary `<id>`."""
        text = _piece(self.backend, token)
        if text is None:
            return f"<{token}>".encode()
        if token not in self._added:
            if self._byte_of and all(character in self._byte_of for character in text):
                return bytes(self._byte_of[character] for character in text)
            byte = _BYTE.fullmatch(text) if self._spaced else None
            if byte:
                return bytes([int(byte[1], 16)])
        return (text.replace(SPACE, " ") if self._spaced else text).encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())


def as_ids(tokens: Tensor | Sequence[int]) -> list[int]:
    """One sequence of token ids as a list. Raises InputError for other shapes, and for what is no id, such as -100."""
    if isinstance(tokens, Tensor):
        if tokens.ndim == 2 and tokens.shape[0] == 1:
            tokens = tokens[0]
        if tokens.ndim != 1:
            raise InputError(f"tokens of shape {tuple(tokens.shape)}", "expected one sequence: [pos] or [1 pos]")
        tokens = tokens.tolist()
    try:
        ids = [operator.index(token) for token in tokens]
    except TypeError:
        raise InputError(f"tokens {str(tokens)[:60]}", "expected token ids, whole numbers") from None
    if wrong := [token for token in ids if not 0 <= token < 1 << 32]:
        raise InputError(f"token id {wrong[0]}", "expected a number in the vocabulary, 0 or above")
    return ids


def _piece(backend: Backend, token: int | None) -> str | None:
    known: str | None = None if token is None or not 0 <= token < 1 << 32 else backend.id_to_token(token)
    return known


def _id(backend: Backend, token: Any) -> int | None:
    """The id of a token given as text or id; None for what is not in the vocabulary."""
    if isinstance(token, int) and not isinstance(token, bool):
        return token if _piece(backend, token) is not None else None
    known: int | None = backend.token_to_id(token) if isinstance(token, str) else None
    return known


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """The settings of a normalizer, pre-tokenizer or decoder, and of the parts in it."""
    data = [] if part is None else [json.loads(part.__getstate__())]  # to_str would write the vocabulary too
    while data:
        one = data.pop()
        yield one
        data += one.get("decoders", one.get("pretokenizers", one.get("normalizers", ())))


def _read(directory: Path) -> Backend | None:
    """The tokenizer of the files that hold vocabulary and merges."""
    file = directory / "tokenizer.json"
    if file.exists():
        backend = Backend.from_file(str(regular(file, VOCABULARY_LIMIT)))
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # else a text would have other ids each time
        _check_growth(backend, file)
        return backend
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        files = [directory / name for name in names]
        if all(file.exists() for file in files):
            files = [regular(file, VOCABULARY_LIMIT) for file in files]
            pairs = tokenizers.models.BPE.from_file(*map(str, files))
            from interp.vocabularies import byte_level  # which imports this module

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
        for step in (step for part in parts for step in _parts(part)):
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


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def add_tokens(backend: Backend, directory: Path, special: Sequence[str] = ()) -> None:
    """Adds what the files beside the vocabulary add, in the order of their ids; raises LoadError for two ids of one.

    `special` are tokens that texts may hold whole, where they are in the vocabulary.
    """
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
