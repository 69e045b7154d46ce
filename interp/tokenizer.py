"""Text to tokens and back, with every token's exact bytes: byte-level pairs (GPT-2, Llama 3, Qwen, Pythia), pieces with
the sentencepiece sign and byte fallback (Llama 1 and 2, Mistral, Gemma), or whole words."""

import json
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
from interp.layouts import read_json, write_json

END_OF_TEXT = "<|endoftext|>"
_SPACE = "\u2581"
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
        """`bos` and `ends` as text or id; what is not in the vocabulary is no token."""
        self.backend = backend
        backend.no_truncation()  # files saved after fine-tuning may carry both, and would cut or fill texts silently
        backend.no_padding()
        self.bos = self._id(bos)
        found = frozenset(token for token in map(self._id, ends) if token is not None)
        self.ends = found or frozenset([self.bos] if self.bos is not None else [])
        """Tokens that end a text."""
        parts = json.loads(backend.to_str())
        kinds = set(_kinds(parts["decoder"])) | set(_kinds(parts["pre_tokenizer"]))
        self._byte_of = _byte_of_character() if "ByteLevel" in kinds else {}
        self._spaced = "Metaspace" in kinds or _SPACE in json.dumps(
            [parts["decoder"], parts["normalizer"]], ensure_ascii=False
        )
        self._stripped = bool({"Strip", "Metaspace"} & set(_kinds(parts["decoder"])))
        """Whether decoding takes away the space that encoding put in front of the text."""

    def _id(self, token: str | int | None) -> int | None:
        if isinstance(token, int) and not isinstance(token, bool):
            return token if 0 <= token < self.d_vocab else None
        return self.backend.token_to_id(token) if isinstance(token, str) else None

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer | None":
        """The tokenizer in a directory, None if there is none that can be read without sentencepiece.

        Either `tokenizer.json`, or vocabulary and merges under the names that transformers (`vocab.json`, `merges.txt`)
        or OpenAI (`encoder.json`, `vocab.bpe`) gave them. The beginning and end tokens are those of
        `tokenizer_config.json`, else `special_tokens_map.json`, else the ids in `config.json`, else `<|endoftext|>`.

        Raises LoadError for files that are there but cannot be read.
        """
        special = _special_tokens(directory)
        whole = directory / "tokenizer.json"
        try:
            if whole.exists():
                return cls(Backend.from_file(str(whole)), **special)
            for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
                if (directory / vocabulary).exists() and (directory / merges).exists():
                    backend = _byte_level(
                        tokenizers.models.BPE.from_file(str(directory / vocabulary), str(directory / merges))
                    )
                    if backend.token_to_id(END_OF_TEXT) is not None:
                        backend.add_special_tokens([END_OF_TEXT])
                    return cls(backend, **special)
        except Exception as error:  # tokenizers raises bare Exception for damaged files
            raise LoadError(
                f"{directory}: the tokenizer cannot be read ({str(error).splitlines()[0]})",
                "expected tokenizer.json, or vocab.json and merges.txt, as transformers writes them",
            ) from error
        return None

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json with the beginning and end tokens."""
        with atomic_path(directory / "tokenizer.json") as path:
            self.backend.save(str(path))
        names = {"bos_token": self.bos, "eos_token": min(self.ends, default=None)}
        data = {name: None if token is None else self.backend.id_to_token(token) for name, token in names.items()}
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **data})

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
        """Token ids of a text. `<|endoftext|>` written in the text becomes that one token."""
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise InputError(f"text with lone surrogates: {text[:40]!r}", "expected valid Unicode") from None
        return [self.bos, *ids] if prepend_bos and self.bos is not None else ids

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
        whole = self.backend.token_to_id(text.replace(" ", _SPACE)) if self._spaced else None
        ids = self.encode(text) if whole is None else [whole]  # encoding puts a space in front of some texts
        if len(ids) != 1:
            pieces = " + ".join(repr(piece) for piece in self.to_str_tokens(ids))
            raise InputError(
                f"{text!r} is {len(ids)} tokens: {pieces or 'none'}",
                "expected exactly one token",
                "" if text.startswith(" ") else f"words inside a text start with a space: try {' ' + text!r}",
            )
        return ids[0]

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of token ids; bytes that are no valid UTF-8 become the replacement character."""
        ids = _ids(tokens)
        first = next((place for place, token in enumerate(ids) if token not in self._added), 0)
        parts = [self.token_bytes(token) for token in ids]
        if self._stripped and parts:
            parts[first] = parts[first].removeprefix(b" ")
        return b"".join(parts).decode("utf-8", "replace")

    def to_str_tokens(self, text_or_tokens: str | Tensor | Sequence[int], *, prepend_bos: bool = True) -> list[str]:
        """One string a token; bytes that are not whole UTF-8 characters are shown as \\xNN."""
        if isinstance(text_or_tokens, str):
            text_or_tokens = self.to_tokens(text_or_tokens, prepend_bos=prepend_bos)
        return [self.token_bytes(token).decode("utf-8", "backslashreplace") for token in _ids(text_or_tokens)]

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes of a token; for ids beyond the vocabulary `<id>`."""
        if token in self._added:
            return self._added[token].encode()
        text = self.backend.id_to_token(token)
        if text is None:
            return f"<{token}>".encode()
        if self._byte_of and all(character in self._byte_of for character in text):
            return bytes(self._byte_of[character] for character in text)
        if self._spaced:
            byte = _BYTE.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else str(text).replace(_SPACE, " ").encode()
        return str(text).encode()

    @cached_property
    def _added(self) -> dict[int, str]:
        return {token: added.content for token, added in self.backend.get_added_tokens_decoder().items()}


def _ids(tokens: Tensor | Sequence[int]) -> list[int]:
    if isinstance(tokens, Tensor):
        if tokens.ndim == 2 and tokens.shape[0] == 1:
            tokens = tokens[0]
        if tokens.ndim != 1:
            raise InputError(f"tokens of shape {tuple(tokens.shape)}", "expected one sequence: [pos] or [1 pos]")
        return [int(token) for token in tokens.tolist()]
    return [int(token) for token in tokens]


def _kinds(part: dict[str, Any] | None) -> Iterator[str]:
    """The types of a tokenizer's part, and of the parts in it."""
    if part is not None:
        yield part["type"]
        for inner in part.get("decoders", part.get("pretokenizers", ())):
            yield from _kinds(inner)


def _special_tokens(directory: Path) -> dict[str, Any]:
    """Beginning and end tokens as a model's files have them, as text or ids."""

    def read(name: str) -> dict[str, Any]:
        return read_json(directory / name) if (directory / name).exists() else {}

    def text(token: Any) -> Any:
        return token.get("content") if isinstance(token, dict) else token

    named, mapped, config = read("tokenizer_config.json"), read("special_tokens_map.json"), read("config.json")
    generation = read("generation_config.json")
    config = config.get("text_config") or config
    found: dict[str, Any] = {}
    for told, key in ((named, "bos_token"), (mapped, "bos_token"), (config, "bos_token_id")):
        if key in told and (told[key] is not None or told is named):
            found["bos"] = text(told[key])
            break
    ends = [text(named.get("eos_token") or mapped.get("eos_token"))]
    for told in (generation, config):
        ids = told.get("eos_token_id")
        ends += ids if isinstance(ids, list) else [ids]
    return found | {"ends": [end for end in ends if end is not None]}
