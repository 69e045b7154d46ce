"""Byte-level byte-pair tokenizer of GPT-2-style models: text to tokens and back, with every token's exact bytes."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.errors import InputError, LoadError

END_OF_TEXT = "<|endoftext|>"


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
    """Tokens of a model. `bos` (and padding) is `<|endoftext|>`, as in GPT-2."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.no_truncation()  # files saved after fine-tuning may carry both, and would cut or fill texts silently
        backend.no_padding()
        self.bos: int | None = backend.token_to_id(END_OF_TEXT)
        self._byte_of = _byte_of_character()

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer | None":
        """The tokenizer in a directory, None if there is none.

        Either `tokenizer.json`, or vocabulary and merges under the names that transformers (`vocab.json`, `merges.txt`)
        or OpenAI (`encoder.json`, `vocab.bpe`) gave them.

        Raises LoadError for files that are there but cannot be read.
        """
        whole = directory / "tokenizer.json"
        try:
            if whole.exists():
                return cls(Backend.from_file(str(whole)))
            for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
                if (directory / vocabulary).exists() and (directory / merges).exists():
                    backend = _byte_level(
                        tokenizers.models.BPE.from_file(str(directory / vocabulary), str(directory / merges))
                    )
                    if backend.token_to_id(END_OF_TEXT) is not None:
                        backend.add_special_tokens([END_OF_TEXT])
                    return cls(backend)
        except Exception as error:  # tokenizers raises bare Exception for damaged files
            raise LoadError(
                f"{directory}: the tokenizer cannot be read ({str(error).splitlines()[0]})",
                "expected tokenizer.json, or vocab.json and merges.txt, as transformers writes them",
            ) from error
        return None

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
        ids = self.encode(text)
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
        return b"".join(self.token_bytes(token) for token in _ids(tokens)).decode("utf-8", "replace")

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
        if any(character not in self._byte_of for character in text):
            return str(text).encode()  # not a byte-level token
        return bytes(self._byte_of[character] for character in text)

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
