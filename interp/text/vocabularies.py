"""Tokenizers from the bare vocabulary of a single model file: pieces with scores, or pairs of bytes with merges."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from interp.errors import LoadError

END_OF_TEXT = "<|endoftext|>"
SPACE = "\u2581"
"""Sentencepiece's sign for a space."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "gpt2": None,
    "olmo": None,
    "smollm": r"\p{N}",
    "starcoder": r"\p{N}",
    "refact": r"\p{N}",
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}
"""How text is cut before pairs are merged, by GGUF's name: GPT-2's way (None), that after each digit, or a pattern."""


def from_scores(
    pieces: Sequence[str], scores: Sequence[float], *, added: Iterable[int], unknown: int, prefix: bool
) -> Backend:
    """Sentencepiece's pairs: two neighbours merge into the piece of the best score; bytes for what is no piece.

    Args:
        added: ids that are found whole in a text.
        prefix: whether a space is put in front of a text.
    """
    ids = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for piece, score in zip(pieces, scores, strict=True):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        there = [(one, two) for one, two in halves if one in ids and two in ids]
        merges += [
            (-score, number, pair) for number, pair in enumerate(sorted(there, key=lambda p: (ids[p[0]], ids[p[1]])))
        ]
    merges.sort(key=lambda merge: (merge[0], -len(merge[2][0]), -len(merge[2][1])))
    unk = pieces[unknown]
    backend = Backend(models.BPE(ids, [pair for *_, pair in merges], unk_token=unk, fuse_unk=True, byte_fallback=True))
    parts = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*parts, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return with_added(backend, pieces, added)


def from_merges(
    pieces: Sequence[str], merges: Iterable[str], *, added: Iterable[int], split: str, where: str
) -> Backend:
    """Byte-level pairs. Raises LoadError for a way to cut text, `split`, that is not in SPLITS."""
    if split not in SPLITS:
        raise LoadError(
            f"{where}: tokenizer.ggml.pre = {split!r}", f"expected one of {', '.join(SPLITS)}",
            "convert the model to a directory in Hugging Face layout",
        )  # fmt: skip
    pairs = [(one, two) for one, _, two in (merge.partition(" ") for merge in merges)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    backend = byte_level(models.BPE(ids, pairs, ignore_merges=SPLITS[split] == _LLAMA3), split)
    return with_added(backend, pieces, added)


def byte_level(pairs: models.BPE, split: str) -> Backend:
    """Pairs of bytes, merged in text that is cut as `split`, a name in SPLITS, says."""
    backend, pattern = Backend(pairs), SPLITS[split]
    whole = pattern in (_LLAMA3, _QWEN2)
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if pattern == _QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def with_added(backend: Backend, pieces: Sequence[str], added: Iterable[int]) -> Backend:
    backend.add_tokens([AddedToken(pieces[token], normalized=False, special=True) for token in added])
    return backend


def parts_of(part: Any) -> Iterator[dict[str, Any]]:
    """The settings of a normalizer, pre-tokenizer or decoder, and of the parts in it."""
    data = [] if part is None else [json.loads(part.__getstate__())]  # to_str would write the vocabulary too
    while data:
        one = data.pop()
        yield one
        data += one.get("decoders", one.get("pretokenizers", one.get("normalizers", ())))
