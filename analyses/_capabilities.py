"""What an analysis needs of a model: parts, by what the config says of them and never by a family's name.

An analysis that needs something says so in a constant, `NEEDS = ("mlp",)`, and begins with `require(model, NEEDS)`. A
report reads the constant, leaves the analysis out where a need is not met, and gives the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interp.config import GPTConfig
from interp.errors import NotApplicable


@dataclass(frozen=True)
class Capability:
    there: Callable[[GPTConfig], bool]
    words: str
    """What the model lacks where it is not there."""


CAPABILITIES = {
    "mlp": Capability(lambda c: not c.attn_only, "MLPs"),
    "norm": Capability(lambda c: c.norm is not None, "norms"),
    "learned positions": Capability(lambda c: c.positions == "learned", "learned position embeddings"),
    "causal": Capability(lambda c: c.causal, "causal attention"),
    "next token": Capability(lambda c: c.causal and c.d_vocab_out == c.d_vocab, "logits of a next token"),
    "stream between": Capability(
        lambda c: not (c.parallel or c.attn_only), "a residual stream between attention and MLP (hook_resid_mid)"
    ),
}


def lacking(model: object, needs: Sequence[str]) -> str:
    """What a decoder lacks of these needs, in words; "" when nothing. Other kinds of model are told apart by type."""
    config = getattr(model, "config", None)
    if not isinstance(config, GPTConfig):
        return ""
    return " and ".join(CAPABILITIES[need].words for need in needs if not CAPABILITIES[need].there(config))


def require(model: object, needs: Sequence[str]) -> None:
    """Raises NotApplicable for a model that does not have what an analysis needs."""
    missing = lacking(model, needs)
    if missing:
        raise NotApplicable(
            f"this model has no {missing}", "expected a model that does: the question makes no sense here"
        )
