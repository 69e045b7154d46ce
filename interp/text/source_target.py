"""Tokenizers of translation models: one side reads the source language, the other writes the target language."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any, TypeAlias

from torch import Tensor

from interp.errors import InputError, LoadError
from interp.files import atomic_path, atomic_write
from interp.text.files import check_ids
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import SPACE
from interp.untrusted import VOCABULARY_LIMIT, read_json, regular, write_json


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
        check_ids(self.ids, directory)

    @cached_property
    def source_model(self) -> Any:
        return _sentencepiece(self.directory / "source.spm")

    @cached_property
    def target_model(self) -> Any:
        return _sentencepiece(self.directory / "target.spm")

    def encode_source(self, text: str) -> list[int]:
        """Token ids of a source text. A language code in front (`>>pt<<`) is one token."""
        code = text[: text.find("<<") + 2] if text.startswith(">>") else ""
        if code in self.ids:
            return [self.ids[code], *self._encode(self.source_model, text[len(code) :])]
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
        return [self.pieces.get(int(token), f"<{token}>").replace(SPACE, " ") for token in tokens]

    def save(self, directory: Path) -> None:
        """Copy the three files."""
        for name in self.FILES:
            with atomic_path(directory / name) as path:
                copyfile(self.directory / name, path)
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"})


class SharedTokenizer(Tokenizer):
    """One byte-level tokenizer (`tokenizer.json`) for both languages."""

    def encode_source(self, text: str) -> list[int]:
        """Token ids of a source text; a space is put in front, so that the first word is written like the others."""
        if not text.strip():
            raise InputError("the text is empty", "expected at least one character")
        return self.encode(" " + text.strip())

    encode_target = encode_source

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of token ids."""
        return super().to_string(tokens).strip()

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        atomic_write(directory / "tokenizer.json", self.backend.to_str(pretty=True))


PairTokenizer: TypeAlias = SentencePiecePair | SharedTokenizer
"""What a translation model reads and writes text with. The model itself adds its start and end tokens."""


def load_pair_tokenizer(directory: Path) -> PairTokenizer | None:
    """The tokenizer in a directory, None if there is none. Raises LoadError for files that cannot be read."""
    if all((directory / name).exists() for name in SentencePiecePair.FILES):
        return SentencePiecePair(directory)
    return SharedTokenizer.from_directory(directory)  # type: ignore[return-value]


def _sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "sentencepiece is not installed",
            "expected it to read this model's text",
            "pip install sentencepiece",
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(regular(path, VOCABULARY_LIMIT)))
    except (OSError, RuntimeError) as error:
        raise LoadError(f"{path} cannot be read: {str(error)[:100]}", "expected a sentencepiece model") from error
