"""BERT's tokenizer: words, cut into pieces where they are rare; a piece inside a word begins with ##."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.errors import InputError, LoadError
from interp.files import atomic_path


class WordPiece:
    """Tokens of a BERT: [CLS] in front, [SEP] behind."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def from_directory(cls, directory: Path) -> "WordPiece | None":
        """The tokenizer in a directory (`tokenizer.json` or `vocab.txt`), None if there is none.

        Raises LoadError for files that are there but cannot be read.
        """
        whole, vocabulary, told = (directory / n for n in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
        try:
            if whole.exists():
                return cls(Backend.from_file(str(whole)))
            if vocabulary.exists():
                options = json.loads(told.read_text()) if told.exists() else {}
                return cls(_from_vocabulary(vocabulary, lowercase=options.get("do_lower_case", True)))
        except Exception as error:  # tokenizers raises bare Exception for damaged files
            raise LoadError(
                f"{directory}: the tokenizer cannot be read ({str(error).splitlines()[0]})",
                "expected tokenizer.json or vocab.txt, as transformers writes them",
            ) from error
        return None

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        with atomic_path(directory / "tokenizer.json") as path:
            self.backend.save(str(path))

    @property
    def mask(self) -> int | None:
        """The token that stands for a hidden one."""
        mask: int | None = self.backend.token_to_id("[MASK]")
        return mask

    def to_tokens(self, text: str) -> Int[Tensor, "1 pos"]:
        """A text as token ids. Raises InputError for an empty one."""
        if not text:
            raise InputError("the text is empty", "expected at least one character")
        return torch.tensor([self.backend.encode(text).ids])

    def to_pair(self, first: str, second: str) -> tuple[Int[Tensor, "1 pos"], Int[Tensor, "1 pos"]]:
        """Two sentences as token ids, and the type of each token (0 or 1)."""
        encoded = self.backend.encode(first, second)
        return torch.tensor([encoded.ids]), torch.tensor([encoded.type_ids])

    def to_batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts of any length, padded on the right: token ids and attention mask, both [batch pos]."""
        rows = [self.to_tokens(text)[0].tolist() for text in texts]
        longest, pad = max(map(len, rows), default=0), self.backend.token_to_id("[PAD]") or 0
        tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return tokens, mask

    def to_str_tokens(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """One string a token; pieces inside a word begin with ##."""
        ids = tokens.flatten().tolist() if isinstance(tokens, Tensor) else tokens
        return [self.backend.id_to_token(int(token)) or f"<{token}>" for token in ids]

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of token ids, without [CLS] and [SEP]."""
        ids = tokens.flatten().tolist() if isinstance(tokens, Tensor) else list(tokens)
        text: str = self.backend.decode(ids)
        return text


def _from_vocabulary(path: Path, *, lowercase: bool) -> Backend:
    words = tokenizers.models.WordPiece.read_file(str(path))
    backend = Backend(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in words]
    backend.add_special_tokens(special)
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    return backend
