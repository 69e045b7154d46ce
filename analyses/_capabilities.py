"""What an analysis needs of a model: parts, by what the config says of them and never by a family's name.

An analysis that needs something says so in a constant, `NEEDS = ("mlp",)`, and begins with `require(model, NEEDS)`. A
report reads the constant, leaves the analysis out where a need is not met, and gives the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from interp.config import GPTConfig
from interp.errors import InputError, NotApplicable
from interp.hooks import HookedModule

Given = ParamSpec("Given")
Found = TypeVar("Found")


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


def checked(analysis: Callable[Given, Found]) -> Callable[Given, Found]:
    """The analysis, after a look at the types of what it is given; raises InputError where they cannot be meant."""

    @cache
    def hints() -> dict[str, Any]:
        return get_type_hints(analysis, include_extras=True)

    @wraps(analysis)
    def run(*args: Given.args, **options: Given.kwargs) -> Found:
        if args and not isinstance(args[0], (HookedModule, GPTConfig, NoneType)):
            raise InputError(
                f"a model of type {type(args[0]).__name__}",
                f"expected a model first: {analysis.__name__}(model, text)",
            )
        if "attention_mask" in options and "attention_mask" not in hints():
            raise InputError(
                "attention_mask", "expected ids and mask together", "give what model.to_batch(texts) returns"
            )
        for name, value in options.items():
            if name in hints():
                _check_type(name, hints()[name], value)
        return analysis(*args, **options)

    return run


def _check_type(name: str, hint: Any, value: Any) -> None:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if len([one for one in kinds if one is not NoneType]) != 1 or (value is None and NoneType in kinds):
        return  # what may be of several types its reader tells apart
    one = next(one for one in kinds if one is not NoneType)
    if get_origin(one) is tuple and (isinstance(value, str) or not isinstance(value, Iterable)):
        raise InputError(f"{name} = {value!r}", f"expected several, such as {name}=({value!r},)")
    if one is int and (isinstance(value, bool) or not hasattr(value, "__index__")):
        raise InputError(f"{name} = {value!r}", "expected a whole number")
    if one is float and not hasattr(value, "__float__"):
        raise InputError(f"{name} = {value!r}", "expected a number")
    if get_origin(one) is Literal and value not in get_args(one):
        raise InputError(f"{name} = {value!r}", f"expected one of {', '.join(map(repr, get_args(one)))}")
