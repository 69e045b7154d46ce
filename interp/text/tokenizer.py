"""Text to tokens and back, with every token's exact bytes: byte-level pairs (GPT-2, Llama 3, Qwen, Pythia), pieces with
the sentencepiece sign and byte fallback (Llama 1 and 2, Mistral, Gemma), or whole words."""

import operator
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.errors import InputError
from interp.files import atomic_path
from interp.text.files import read
from interp.text.vocabularies import END_OF_TEXT, SPACE, parts_of
from interp.untrusted import is_panic, write_json

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
        decoding = list(parts_of(backend.decoder))
        parts = [*decoding, *parts_of(backend.pre_tokenizer), *parts_of(backend.normalizer)]
        by_bytes = any(part["type"] == "ByteLevel" for part in decoding)
        self._byte_of = _byte_of_character() if by_bytes else {}
        self._spaced = bool(decoding) and not by_bytes and SPACE in str(parts)
        self._decodes = bool(decoding) and not by_bytes and not self._spaced
        """Whether only the files' own decoder knows how to join tokens."""
        self._separator = b"" if decoding else b" "  # without a decoder, tokens are whole words
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
        found = read(directory)
        if found is None:
            return None
        backend, beginnings, ends = found
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


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Rows of token ids, padded on the right: ids and mask, both [batch pos]."""
    longest = max(map(len, rows), default=0)
    tokens = [[*row, *[pad] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
