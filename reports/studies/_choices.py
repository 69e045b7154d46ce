"""Choices that several studies offer: which token looks, and with which head."""

import torch

from analyses.attention_patterns import read_patterns
from analyses.shared.inputs import TextOrTokens, sequences, token_labels
from interp.errors import InputError
from interp.models.gpt import HookedGPT


def chosen_head(model: HookedGPT, ids: torch.Tensor, at: int, layer: int | None, head: int | None) -> tuple[int, int]:
    """Layer and head as given, or the one that mixes most into position `at`. Raises InputError for half a choice."""
    if (layer is None) != (head is None):
        raise InputError(f"layer {layer}, head {head}", "expected both or neither", "give --layer and --head")
    return busiest_head(model, ids, at) if layer is None or head is None else (layer, head)


def find_position(model: HookedGPT, text: TextOrTokens, query: str) -> int:
    """The position that a query means: a number, or the last token of the word's last occurrence; "" is the end.

    Raises InputError for a word that is not in the text, or a position outside it.
    """
    ids = sequences(model, text)[0][0].tolist()
    if not query.strip():
        return len(ids) - 1
    if query.strip().lstrip("-").isdigit():
        at = int(query)
        if not -len(ids) <= at < len(ids):
            raise InputError(f"query {query}", f"expected a position from 0 to {len(ids) - 1}, or a word of the text")
        return at % len(ids)
    for word in (f" {query.strip()}", query.strip()):
        wanted = model.to_tokens(word, prepend_bos=False)[0].tolist()
        found = [i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted]
        if found:
            return found[-1] + len(wanted) - 1
    raise InputError(
        f"query {query!r} is not in the text",
        "expected a whole word of it, or a position",
        f"its tokens: {' '.join(token.strip() for token in token_labels(model, ids))[:200]}",
    )


def busiest_head(model: HookedGPT, ids: torch.Tensor, at: int) -> tuple[int, int]:
    """Layer and head that mix most into position `at`: what they move from earlier tokens, the first and the one that
    gives most left out (heads that look at one token only make no potion)."""
    pattern, norms = read_patterns(model, ids)
    moved = (pattern[:, :, at] * norms)[:, :, 1:at]  # [layer head key]
    if not moved.shape[2]:
        return 0, 0
    best = int((moved.sum(-1) - moved.max(-1).values).argmax())
    return divmod(best, pattern.shape[1])
