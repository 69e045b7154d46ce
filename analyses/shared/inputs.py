"""What analyses are given (text, several texts or token ids) as one sequence of ids per text; labels for tokens."""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.panels import Tokens
from interp.errors import InputError
from interp.loading.digests import non_finite
from interp.models.gpt import Batch, HookedGPT
from interp.models.gpt import TextOrTokens as TextOrTokens


def sequences(
    model: HookedGPT, tokens: TextOrTokens, *, at_least: int = 1, longer: bool = False
) -> list[Int[Tensor, "1 pos"]]:
    """One sequence of token ids per text, on the model's device. Nothing is padded.

    Args:
        tokens: a text or several (the beginning-of-text token is put in front of each), ids [batch pos], used as they
            are, or what `to_batch` gives, whose padding is left out. For a model without a tokenizer a text of whole
            numbers is ids.
        at_least: fewest tokens that the analysis can use, the beginning-of-text token included.
        longer: whether texts longer than the context will do, because they are read in pieces or only shown.

    Raises InputError for an empty text, too few tokens, more than the model's context, or ids outside its vocabulary.
    """
    rows = _rows(model, tokens)
    for number, row in enumerate(rows, start=1):
        which = f"text {number} of {len(rows)}" if len(rows) > 1 else "the text"
        length, context = row.shape[1], model.config.n_ctx
        if length < at_least:
            raise InputError(f"{which} has {length} token{'s' * (length != 1)}", f"expected at least {at_least}")
        if length > context and not longer:
            raise InputError(
                f"{which} has {length} tokens", f"expected at most {context}, this model's context", "shorten it"
            )
        low, high = int(row.min()), int(row.max())
        if low < 0 or high >= model.config.d_vocab:
            raise InputError(
                f"token id {low if low < 0 else high} in {which}",
                f"expected 0 to {model.config.d_vocab - 1}, this model's vocabulary",
            )
    return rows


def check_finite(model: HookedGPT) -> None:
    """Raises InputError, naming it, for a weight that is NaN or infinite."""
    if bad := non_finite(model):
        raise InputError(
            f"the model's weights are not finite: {bad[0]}", "expected numbers", "the file or the training went wrong"
        )


def _rows(model: HookedGPT, tokens: TextOrTokens) -> list[Tensor]:
    if isinstance(tokens, Batch) and tokens.mask is not None:
        pairs = zip(tokens.tokens, tokens.mask, strict=True)
        return [row for ids, real in pairs for row in _rows(model, ids[real.bool()][None])]
    if isinstance(tokens, Batch):
        tokens = tokens.tokens
    if isinstance(tokens, Tensor):
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool or not tokens.numel():
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} and {str(tokens.dtype).removeprefix('torch.')}",
                "expected text, several texts, or whole numbers [batch pos] with at least one of each",
            )
        _refuse_padding(model, tokens)
        return [row[None].to(model.device, torch.long) for row in tokens]
    if not isinstance(tokens, Iterable):
        raise InputError(
            f"a text of type {type(tokens).__name__}", "expected text, or token ids as a tensor [batch pos]"
        )
    texts = [tokens] if isinstance(tokens, str) else list(tokens)
    if not texts:
        raise InputError("no texts", "expected at least one")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(
                f"a text of type {type(text).__name__}", "expected text, or token ids as a tensor [batch pos]"
            )
    if model.tokenizer is None and all(re.fullmatch(r"\s*\d+(\s+\d+)*\s*", text) for text in texts):
        return [torch.tensor([list(map(int, text.split()))], device=model.device) for text in texts]  # ids, as typed
    return [model.to_tokens(text) for text in texts]


def _refuse_padding(model: HookedGPT, tokens: Tensor) -> None:
    """Raises InputError for rows of which some begin with more beginning tokens than others: padded, without a mask."""
    bos = None if model.tokenizer is None else model.tokenizer.bos
    if bos is None or len(tokens) < 2:
        return
    before = (tokens == bos).cumprod(1).sum(1)
    if int(before.max()) > max(int(before.min()), 1):
        raise InputError(
            f"a text that begins with {int(before.max())} beginning tokens, beside one with {int(before.min())}",
            "expected no padding, which would be read as text",
            "give what to_batch returns as it is: ids and mask together",
        )


def token_labels(model: HookedGPT, ids: Tensor | Sequence[int]) -> Tokens:
    """The tokens of one sequence of ids ([pos] or [1 pos]) as labels; `<id>` for a model without tokenizer."""
    if model.tokenizer is not None:
        return Tokens(model.tokenizer.to_str_tokens(ids))
    numbers = ids.flatten().tolist() if isinstance(ids, Tensor) else ids
    return Tokens(f"<{number}>" for number in numbers)


def token_list(tokens: Sequence[str]) -> str:
    """Several tokens in one line of plain text: spaces as middle dots, newlines and tabs as their signs."""
    return "  ".join(token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") for token in tokens)


def text_names(model: HookedGPT, rows: Sequence[Tensor], limit: int = 40) -> tuple[str, ...]:
    """A short name for each text: its number and its beginning, in one line."""
    if model.tokenizer is None:
        return tuple(f"text {number}" for number in range(1, len(rows) + 1))
    beginnings = []
    for row in rows:
        ids = row.flatten().tolist()
        text = " ".join(model.tokenizer.to_string(ids[1:] if ids[0] == model.tokenizer.bos else ids).split())
        beginnings.append(text if len(text) <= limit else text[: limit - 1] + "…")
    return tuple(f"{number}: {beginning}" for number, beginning in enumerate(beginnings, start=1))


def run_blocks(model: HookedGPT, ids: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos d_model"]:
    """The residual stream after the last block; the logits, a model's largest tensor, are not computed. Hooks run."""
    return model.run_to(ids)
