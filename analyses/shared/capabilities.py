"""What an analysis needs of a model: parts, by what the config says of them and never by a family's name.

A report leaves an analysis out where a need is not met, and gives the reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from inspect import signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from analyses.shared.declared import Declaration
from interp.errors import InputError, NotApplicable
from interp.hooks import HookedModule
from interp.keeping import current_memory, digest, kept_whole
from interp.loading.digests import parameters_sha256
from interp.models.config import GPTConfig

KINDS = (HookedModule, GPTConfig, NoneType)
"""What an analysis may be given first."""
Given = ParamSpec("Given")
Found = TypeVar("Found")
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Capability:
    there: Callable[[GPTConfig], bool]
    words: str
    """What the model lacks where it is not there."""


CAPABILITIES = {
    "mlp": Capability(lambda c: not c.attn_only, "MLPs"),
    "norm": Capability(lambda c: c.norm is not None, "norms"),
    "learned positions": Capability(lambda c: c.positions == "learned", "learned position embeddings"),
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


def analysis(**declared: Any) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Decorates an analysis with a `Declaration` of these fields, and with a look at what it is given before it runs.

    The analysis raises NotApplicable for a model without what it needs, InputError for types that cannot be meant, for
    an option that this kind of model does not read, and for a model that is not as it was built.
    """
    said = Declaration(**declared)

    def decorate(function: Callable[Given, Found]) -> Callable[Given, Found]:
        name = function.__name__

        @cache
        def hints() -> dict[str, Any]:
            return get_type_hints(function, include_extras=True)

        @wraps(function)
        def run(*args: Given.args, **options: Given.kwargs) -> Found:
            model: Any = args[0] if args else None
            if args and not isinstance(model, KINDS):
                raise InputError(
                    f"a model of type {type(model).__name__}", f"expected a model first: {name}(model, text)"
                )
            require(model, said.needs)
            if "attention_mask" in options and "attention_mask" not in hints():
                raise InputError(
                    "attention_mask", "expected ids and mask together", "give what model.to_batch(texts) returns"
                )
            for option, value in options.items():
                if option in hints():
                    _check_type(option, hints()[option], value)
            if model is not None and not isinstance(model, GPTConfig):
                _check_run(model, name, said.runs)
                kind, read = said.read_by(model)
                if read is not None:
                    _check_read(function, options, kind, read)
                if said.weights_only:
                    return once_a_model(model, (name, sorted(options.items())), lambda: function(*args, **options))
            return function(*args, **options)

        run.declared = said  # type: ignore[attr-defined]
        return run

    return decorate


def once_a_model(model: Any, key: object, compute: Callable[[], Kept]) -> Kept:
    """What depends on a model and this key alone, computed now or in an earlier run (`interp.keeping.remembered`).

    A model that is not as it was built is computed with now.
    """
    if current_memory() is None or any(model.changes()):
        return compute()
    return kept_whole(lambda: (key, identity(model)), compute)


def identity(model: Any) -> object:
    """All that a model's results depend on: config, weights as they are, tokenizer, place and name."""
    memory = current_memory()
    known = {} if memory is None else memory.once
    now = (model, id(model.tokenizer), *((id(parameter), parameter._version) for parameter in model.parameters()))
    if now not in known:
        place = (model.source, str(model.device), str(model.dtype))
        words = getattr(model.tokenizer, "backend", None)
        spelt = (words.to_str(), model.tokenizer.bos, sorted(model.tokenizer.ends)) if words else model.tokenizer
        known[now] = digest((type(model).__name__, model.config, place, parameters_sha256(model), spelt))
    return known[now]


def _check_run(model: HookedModule, name: str, runs: bool) -> None:
    """Raises InputError for a change of the run that some of the analysis would see and the rest would not."""
    seen = ("ln_final",) if runs else ("",)
    found = (change for change in model.changes(edits_only=True) if change[0].startswith(seen))
    model.refuse_changes(name, found)


def _check_read(function: Callable[..., Any], options: Mapping[str, Any], kind: str, read: Sequence[str]) -> None:
    """Raises InputError for an option that this kind of model does not read; a seed may draw nothing."""
    defaults = signature(function).parameters
    for option, value in options.items():
        if option in (*read, "seed") or option not in defaults:
            continue
        default = defaults[option].default
        if value is not default and repr(value) != repr(default):
            raise InputError(
                f"{option} = {value!r}"[:120] + f" for {kind}",
                f"expected only what is read there: {', '.join(read) or 'no option'}",
            )


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
