"""BERT's tokenizer: words, cut into pieces where they are rare; a piece inside a word begins with ##."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import BertWordPieceTokenizer
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.files import atomic_write
from interp.text.files import add_tokens
from interp.text.tokenizer import Tokenizer, as_ids, padded
from interp.untrusted import VOCABULARY_LIMIT, read_json, reading, regular, silenced


class WordPiece(Tokenizer):
    """Tokens of a BERT: `prepend_bos` puts [CLS] in front and [SEP] behind."""

    @classmethod
    def from_directory(cls, directory: Path) -> "WordPiece | None":
        """The tokenizer in a directory (`tokenizer.json` or `vocab.txt`), None if there is none.

        Raises LoadError for files that are there but cannot be read.
        """
        whole, vocabulary, told = (directory / n for n in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
        with reading(f"{directory}: the tokenizer", "expected tokenizer.json or vocab.txt"), silenced():
            if whole.exists():
                backend = Backend.from_file(str(regular(whole, VOCABULARY_LIMIT)))
            elif vocabulary.exists():
                options = read_json(told) if told.exists() else {}
                made = BertWordPieceTokenizer.from_file(
                    str(regular(vocabulary, VOCABULARY_LIMIT)),
                    lowercase=options.get("do_lower_case", True),
                    strip_accents=options.get("strip_accents"),
                    handle_chinese_chars=options.get("tokenize_chinese_chars", True),
                )
                backend = Backend.from_str(made.to_str())
            else:
                return None
            add_tokens(backend, directory)
        return cls(backend)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        atomic_write(directory / "tokenizer.json", self.backend.to_str(pretty=True))

    @property
    def mask(self) -> int | None:
        """The token that stands for a hidden one."""
        mask: int | None = self.backend.token_to_id("[MASK]")
        return mask

    def encode(self, text: str, *, prepend_bos: bool = False) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._encoded(text, special=prepend_bos).ids
        return ids

    def to_pair(self, first: str, second: str) -> tuple[Int[Tensor, "1 pos"], Int[Tensor, "1 pos"]]:
        """Two sentences as token ids, and the type of each token (0 or 1)."""
        encoded = self._encoded(first, second, special=True)
        return torch.tensor([encoded.ids]), torch.tensor([encoded.type_ids])

    def to_batch(self, texts: Sequence[str], *, prepend_bos: bool = True) -> tuple[Tensor, Tensor]:
        """Texts of any length, padded on the right: token ids and attention mask, both [batch pos]."""
        rows = [self.to_tokens(text, prepend_bos=prepend_bos)[0].tolist() for text in texts]
        return padded(rows, self.backend.token_to_id("[PAD]") or 0)

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of token ids, without [CLS] and [SEP]."""
        text: str = self.backend.decode(as_ids(tokens))
        return text
