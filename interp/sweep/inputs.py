"""What a sweep runs on: token ids, or for a translation model source and target."""

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from interp.errors import InputError
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT

Model: TypeAlias = HookedGPT | HookedEncoder | HookedEncoderDecoder


class Pair(NamedTuple):
    """A source and what the decoder reads, or a mask of each."""

    source: Tensor
    """[batch source_pos]"""
    target: Tensor
    """[batch pos]"""


Inputs: TypeAlias = Tensor | Pair
"""[batch pos], or for a translation model a pair."""


def call(model: Model, tokens: Inputs, mask: Inputs | None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The arguments of the model's own call, by place and by name.

    Raises InputError for inputs that are not of this kind of model, or a model without logits of tokens.
    """
    if isinstance(tokens, Pair) != isinstance(model, HookedEncoderDecoder):
        kind = "source and target" if isinstance(tokens, Pair) else "one sequence"
        raise InputError(
            f"{kind} for a {type(model).__name__}", "expected tokens [batch pos], of a translation model Pair"
        )
    if isinstance(model, HookedEncoder) and model.config.head != "masked-language":
        raise InputError("a sweep of an encoder without logits of tokens", "expected a masked-language head")
    if not isinstance(tokens, Pair):
        return (tokens,), {"attention_mask": mask}
    source, target = (None, None) if mask is None else mask
    return tuple(tokens), {"source_mask": source, "target_mask": target}


def read_length(tokens: Inputs) -> int:
    """Over how many positions there are logits."""
    return (tokens.target if isinstance(tokens, Pair) else tokens).shape[1]


def of_encoder(name: str) -> bool:
    """Whether a hook point lies in what a translation model does before its decoder runs."""
    return name.startswith(("encoder.", "hook_source", "hook_memory"))


def of_source(name: str) -> bool:
    """Whether the positions of an activation of a translation model are those of the source."""
    return of_encoder(name) or name.endswith(("cross_attn.hook_k", "cross_attn.hook_v"))


def listed(tokens: Inputs | None) -> Any:
    """Ids or masks as plain numbers."""
    if tokens is None or isinstance(tokens, Tensor):
        return None if tokens is None else tokens.tolist()
    return tuple(part.tolist() for part in tokens)
