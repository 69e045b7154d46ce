"""Tokenizers of translation models: one side reads the source language, the other writes the target language."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from interp.errors import InputError, LoadError
from interp.files import atomic_path
from interp.layouts import read_json
from interp.tokenizer import Tokenizer

WORD = "▁"
"""Sentencepiece's sign for the space in front of a word."""


class PairTokenizer(Protocol):
    """What a translation model asks of its tokenizer. The model itself adds its start and end tokens."""

    def encode_source(self, text: str) -> list[int]: ...

    def encode_target(self, text: str) -> list[int]: ...

    def to_string(self, tokens: Sequence[int]) -> str: ...

    def to_str_tokens(self, tokens: Sequence[int]) -> list[str]: ...

    def save(self, directory: Path) -> None: ...


class SentencePiecePair:
    """Marian's: two sentencepiece models (`source.spm`, `target.spm`) and one vocabulary (`vocab.json`).

    Needs the package sentencepiece when it is first used; the model itself works with token ids without it.
    """

    FILES = ("source.spm", "target.spm", "vocab.json")

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ids: dict[str, int] = read_json(directory / "vocab.json")
        self.pieces = {number: piece for piece, number in self.ids.items()}
        if "<unk>" not in self.ids:
            raise LoadError(f"{directory / 'vocab.json'} has no token <unk>", "expected a Marian vocabulary")

    @cached_property
    def source_model(self) -> Any:
        return _sentencepiece(self.directory / "source.spm")

    @cached_property
    def target_model(self) -> Any:
        return _sentencepiece(self.directory / "target.spm")

    def encode_source(self, text: str) -> list[int]:
        """Token ids of a source text. A language code in front (`>>pt<<`) is one token."""
        code, rest = text[: text.find("<<") + 2] if text.startswith(">>") else "", text
        if code in self.ids:
            return [self.ids[code], *self._encode(self.source_model, rest[len(code) :])]
        return self._encode(self.source_model, text)

    def encode_target(self, text: str) -> list[int]:
        """Token ids of a target text."""
        return self._encode(self.target_model, text)

    def _encode(self, model: Any, text: str) -> list[int]:
        if not text.strip():
            raise InputError("the text is empty", "expected at least one character")
        return [self.ids.get(piece, self.ids["<unk>"]) for piece in model.encode(text, out_type=str)]

    def to_string(self, tokens: Sequence[int]) -> str:
        """The text of token ids: pieces joined, word signs as spaces."""
        return "".join(self.to_str_tokens(tokens)).strip()

    def to_str_tokens(self, tokens: Sequence[int]) -> list[str]:
        """One string a token; words begin with a space."""
        return [self.pieces.get(int(token), f"<{token}>").replace(WORD, " ") for token in tokens]

    def save(self, directory: Path) -> None:
        """Copy the three files."""
        for name in self.FILES:
            with atomic_path(directory / name) as path:
                copyfile(self.directory / name, path)
        with atomic_path(directory / "tokenizer_config.json") as path:
            path.write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}) + "\n")


class SharedTokenizer:
    """One byte-level tokenizer (`tokenizer.json`) for both languages."""

    def __init__(self, backend: Backend) -> None:
        self.tokenizer = Tokenizer(backend)

    def encode_source(self, text: str) -> list[int]:
        """Token ids of a source text; a space is put in front, so that the first word is written like the others."""
        if not text.strip():
            raise InputError("the text is empty", "expected at least one character")
        return self.tokenizer.encode(" " + text.strip())

    encode_target = encode_source

    def to_string(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.to_string(tokens).strip()

    def to_str_tokens(self, tokens: Sequence[int]) -> list[str]:
        """One string a token; words begin with a space."""
        return self.tokenizer.to_str_tokens(tokens)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        with atomic_path(directory / "tokenizer.json") as path:
            self.tokenizer.backend.save(str(path))


def load_pair_tokenizer(directory: Path) -> PairTokenizer | None:
    """The tokenizer in a directory, None if there is none. Raises LoadError for files that cannot be read."""
    if all((directory / name).exists() for name in SentencePiecePair.FILES):
        return SentencePiecePair(directory)
    whole = directory / "tokenizer.json"
    if not whole.exists():
        return None
    try:
        return SharedTokenizer(Backend.from_file(str(whole)))
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise LoadError(f"{whole} cannot be read ({str(error).splitlines()[0]})", "expected tokenizer.json") from error


def _sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "sentencepiece is not installed",
            "expected it to read this model's text",
            "pip install 'interp[translation]'",
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise LoadError(f"{path} cannot be read: {str(error)[:100]}", "expected a sentencepiece model") from error
