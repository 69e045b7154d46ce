"""What analyses of translation models are given: source texts, each with its target, as token ids; and labels for them.

A text alone is a source, and its target is the model's own greedy translation. `source ||| target` gives both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.panels import Tokens
from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.kernels import wide as widened
from interp.translation import translate_tokens

SEPARATOR = "|||"
"""Stands between source and target, as in files of aligned text."""


@dataclass(frozen=True)
class Translation:
    """One source with its target."""

    source: Int[Tensor, "1 source_pos"]
    """Ends with the end token."""
    target: Int[Tensor, "1 pos"]
    """What the decoder reads: begins with the start token."""
    following: Int[Tensor, "1 pos"]
    """What it should write at each position: the target one place on, the end token last."""


def translations(model: HookedEncoderDecoder, tokens: Any) -> list[Translation]:
    """One `Translation` a text.

    Args:
        tokens: a text, several, or (source, target) token ids [batch pos]; text as `source` or `source ||| target`.

    Raises InputError for an empty or too long text, or what is neither text nor a pair of id tensors.
    """
    if isinstance(tokens, tuple) and len(tokens) == 2 and all(isinstance(x, Tensor) for x in tokens):
        source, target = tokens
        return [_translation(model, s[None], t[None]) for s, t in zip(source, target, strict=True)]
    texts = [tokens] if isinstance(tokens, str) else tokens
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(
            "a translation model was given no text",
            f"expected a source text, or source {SEPARATOR} target",
            f'for example "Je suis étudiant. {SEPARATOR} I am a student."',
        )
    found = []
    for text in texts:
        source, divided, target = text.partition(SEPARATOR)
        ids = model.to_source(source.strip())
        if divided:
            found.append(_translation(model, ids, model.to_target(target.strip())))
        else:
            written = translate_tokens(model, ids)[0]
            ended = written[-1] == model.config.end_token and len(written) > 1
            read = written[:-1] if ended or len(written) == model.config.n_ctx else written
            found.append(_translation(model, ids, torch.tensor([read], device=model.device)))
    return found


def _translation(model: HookedEncoderDecoder, source: Tensor, target: Tensor) -> Translation:
    end = torch.full_like(target[:, :1], model.config.end_token)
    return Translation(source, target, torch.cat([target[:, 1:], end], dim=1))


def pair_labels(model: HookedEncoderDecoder, ids: Tensor) -> Tokens:
    """The tokens of one source or target as labels; the start token as <start>, `<id>` without a tokenizer."""
    numbers = ids.flatten().tolist()
    names = [f"<{n}>" for n in numbers] if model.tokenizer is None else model.to_str_tokens(ids)
    special = {model.config.end_token: "</s>", model.config.start_token: "<start>"}
    return Tokens(special.get(number, name) for number, name in zip(numbers, names, strict=True))


def written_loss(logits: Float[Tensor, "1 pos d_vocab"], one: Translation) -> Float[Tensor, " pos"]:
    """Minus the log-probability of each token that should be written, in nats, in float32 at least."""
    wide = widened(logits[0])
    return -wide.log_softmax(-1).gather(-1, one.following[0][:, None])[:, 0]


def pair_names(model: HookedEncoderDecoder, found: Sequence[Translation], limit: int = 40) -> tuple[str, ...]:
    """A short name for each text: its number and its beginning."""
    names = []
    for number, one in enumerate(found, start=1):
        text = " ".join("".join(pair_labels(model, one.source)[:-1]).split())
        names.append(f"{number}: {text if len(text) <= limit else text[: limit - 1] + '…'}")
    return tuple(names)
