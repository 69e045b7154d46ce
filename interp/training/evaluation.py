"""How good a model is: bits per byte on a text, and how sharply its heads copy. `interp models --evaluate` prints it.

Bits per byte does not depend on the tokenizer: the summed cross-entropy of all tokens, in bits, over the length of the
text in UTF-8. Every document is cut into windows of the model's context that overlap by half; each window stands
behind the beginning token, and every token is scored once, with at least half a context before it (except at the
beginning of a document).

Induction and previous-token scores (Olsson et al. 2022) are mean attention on uniformly random tokens, repeated once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch.nn.utils.rnn import pad_sequence

from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.text.documents import SEPARATOR

SAMPLE = Path(__file__).parent.parent / "bundled" / "tiny" / "held_out_sample.txt"
"""About 200 kB of the text that the bundled model never saw; articles separated by a form feed."""


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head, 0 to 1."""

    induction: Float[np.ndarray, "layer head"]
    """Mean attention from each token of the second copy to the token after its first copy."""
    previous_token: Float[np.ndarray, "layer head"]
    """Mean attention from each token to the one before it."""
    copied: float
    """Share of the second copy's tokens, from its second on, that the model predicts first."""

    @staticmethod
    def best(scores: Float[np.ndarray, "layer head"]) -> tuple[str, float]:
        """The head with the highest score, as "layer.head", and that score."""
        layer, head = np.unravel_index(int(scores.argmax()), scores.shape)
        return f"{layer}.{head}", float(scores[layer, head])


def bits_per_byte(model: HookedGPT, documents: Sequence[str], *, stride: int | None = None, batch: int = 16) -> float:
    """Bits per UTF-8 byte over all documents; arguments and errors as for `total_loss`."""
    nats, _ = total_loss(model, documents, stride=stride, batch=batch)
    return nats / math.log(2) / sum(len(text.encode()) for text in documents)


@torch.no_grad()
def total_loss(
    model: HookedGPT, documents: Sequence[str], *, stride: int | None = None, batch: int = 16
) -> tuple[float, int]:
    """Summed cross-entropy of all documents in nats, and the number of their tokens.

    Args:
        stride: tokens by which one window is ahead of the one before; half the context by default, and the whole of it
            (n_ctx - 1: windows that do not overlap) at most.

    Raises InputError when there is nothing to score.
    """
    stride = stride or model.config.n_ctx // 2
    if not 1 <= stride < model.config.n_ctx:
        raise InputError(f"stride {stride}", f"expected 1 to {model.config.n_ctx - 1}")
    if not any(documents):
        raise InputError("there is no text to score", "expected at least one document")
    tokenizer, width = model._tokenizer(), model.config.n_ctx - 1
    rows = [row for text in documents for row in windows(tokenizer.encode(text), width, stride)]
    bos = tokenizer.bos or 0
    nats = 0.0
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        x = pad_sequence([torch.tensor([bos, *ids[:-1]]) for ids, _ in part], True, padding_value=bos)
        y = pad_sequence([torch.tensor([-1] * (len(ids) - n) + ids[-n:]) for ids, n in part], True, padding_value=-1)
        logits, wanted = model(x.to(model.device)).float(), y.to(model.device)
        nats += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum"))
    return nats, sum(scored for _, scored in rows)


def held_out(folder: Path, most: int = 100_000) -> Callable[[HookedGPT], dict[str, float]]:
    """Measures a model on the first `most` bytes of `folder/held_out.txt`, as `interp.training.corpus` leaves it.

    Gives the loss in nats per token, `held_out_loss`, and in bits per byte.
    """

    def measure(model: HookedGPT) -> dict[str, float]:
        whole = (folder / "held_out.txt").read_bytes()[:most].decode(errors="ignore")
        texts = [text for text in whole.split(SEPARATOR) if text]
        nats, tokens = total_loss(model, texts)
        bits = nats / math.log(2) / sum(len(text.encode()) for text in texts)
        return {"held_out_loss": nats / tokens, "held_out_bits_per_byte": bits}

    return measure


def windows(ids: list[int], width: int, stride: int) -> list[tuple[list[int], int]]:
    """A document in windows of at most `width` tokens, each with how many of its last tokens are scored in it."""
    ends = [0, *range(width, len(ids), stride), len(ids)]
    return [(ids[max(0, end - width) : end], end - before) for before, end in pairwise(ends) if end > before]


@torch.no_grad()
def head_scores(model: HookedGPT, *, half: int = 50, sequences: int = 32, seed: int = 0) -> HeadScores:
    """Scores on sequences of the beginning token, `half` random tokens, and the same ones again.

    Raises InputError when 1 + 2 `half` exceeds the context.
    """
    length = 1 + 2 * half
    if half < 2 or length > model.config.n_ctx:
        raise InputError(f"half = {half}", f"expected 2 to {(model.config.n_ctx - 1) // 2} for this model's context")
    generator = torch.Generator().manual_seed(seed)
    bos = model.tokenizer.bos if model.tokenizer is not None and model.tokenizer.bos is not None else 0
    one = torch.randint(0, model.config.d_vocab - 1, (sequences, half), generator=generator)
    one += one >= bos  # every token but the beginning one
    tokens = torch.cat([torch.full((sequences, 1), bos), one, one], dim=1).to(model.device)
    induction = np.zeros((model.config.n_layers, model.config.n_heads))
    previous = np.zeros_like(induction)
    right = 0
    for part in tokens.split(4):
        logits, cache = model.run_with_cache(part, names="blocks.*.attn.hook_pattern")
        second, later = torch.arange(half + 1, length), torch.arange(1, length)
        for layer in range(model.config.n_layers):
            pattern = cache["pattern", layer].float().cpu()
            induction[layer] += pattern[:, :, second, second - half + 1].mean(-1).sum(0).numpy()
            previous[layer] += pattern[:, :, later, later - 1].mean(-1).sum(0).numpy()
        right += int((logits[:, half + 1 : -1].argmax(-1) == part[:, half + 2 :]).sum())
    return HeadScores(induction / sequences, previous / sequences, right / (sequences * (half - 1)))


def evaluate(model: HookedGPT, documents: Sequence[str], *, halves: Sequence[int] = (50,)) -> dict[str, float]:
    """The model's figures by name: bits per byte of the documents, and the best head scores for each length.

    Lengths beyond the context are left out.
    """
    figures = {"bits_per_byte": bits_per_byte(model, documents)}
    for half in halves:
        if 1 + 2 * half <= model.config.n_ctx:
            scores = head_scores(model, half=half)
            figures[f"induction_{half}"] = float(scores.induction.max())
            figures[f"previous_token_{half}"] = float(scores.previous_token.max())
            figures[f"copied_{half}"] = scores.copied
    return figures


def describe(model: HookedGPT, documents: Sequence[str]) -> list[str]:
    """The evaluation as lines to print."""
    size = sum(len(text.encode()) for text in documents)
    context = model.config.n_ctx
    lines = []
    for stride, how in ((None, f"of {context} tokens that overlap by half"), (context - 1, "that do not overlap")):
        bits = bits_per_byte(model, documents, stride=stride)
        lines.append(f"bits per byte on {size:,} bytes: {bits:.4f} (windows {how})")
    for half in sorted({min(50, (context - 1) // 2), (context - 1) // 2}):
        scores = head_scores(model, half=half)
        (copier, induction), (shifter, previous) = map(HeadScores.best, (scores.induction, scores.previous_token))
        lines.append(
            f"random tokens 2 x {half}: best induction score {induction:.3f} (head {copier}), "
            f"previous-token score {previous:.3f} (head {shifter}), copied rightly {scores.copied:.1%}"
        )
    return lines
