"""Sites: which activations can be copied from one run into another, and where they lie in a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from analyses.shared.capabilities import require
from analyses.shared.components import layer_numbers
from analyses.shared.stacks import Model, attentions
from interp.errors import InputError, nearest

STREAMS: dict[str, str] = {
    "resid_pre": "residual stream before the layer",
    "resid_mid": "residual stream between attention and MLP",
    "resid_mid_cross": "residual stream between cross-attention and MLP",
    "resid_post": "residual stream after the layer",
    "attn_out": "attention output",
    "cross_attn_out": "cross-attention output",
    "mlp_out": "MLP output",
}
HEADS: dict[str, str] = {
    "z": "heads' mixed values z",
    "q": "heads' queries",
    "k": "heads' keys",
    "v": "heads' values",
    "pattern": "heads' attention patterns",
}
SITES = STREAMS | HEADS


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where a site lies: hook points, one a layer, of a decoder or of one attention of a translation model."""

    site: str
    short: str
    """`enc`, `dec` or `cross`; "" where there are no others."""
    where: str
    """In words, after the site's: " of the encoder"."""
    names: tuple[str, ...]
    """[layer] hook points."""
    layers: tuple[int, ...]
    axes: tuple[str, ...]
    """Of each text's array: (layer, pos), (layer, head) or (layer, head, pos); kv_head for keys and values that several
    heads share."""
    sizes: tuple[int, ...]
    """Entries of each axis, 0 for positions."""
    side: int
    """Whose tokens positions are: 0 for the text or the source, 1 for the target."""


def sites_named(model: Model, site: str | Sequence[str]) -> tuple[str, ...]:
    """The sites that a list with commas, or several names, asks for. Raises InputError for one the model never has."""
    parts = site.split(",") if isinstance(site, str) else list(site)
    names = tuple(dict.fromkeys(part.strip().removeprefix("hook_") for part in parts))
    crosses = any(stack.crosses for stack in attentions(model))
    known = [name for name in SITES if crosses or "cross" not in name]
    for name in names:
        if name not in known:
            close = nearest(name, known, 1)
            raise InputError(
                f"unknown site {name!r}", f"expected {', '.join(known)}", f"did you mean {close[0]!r}?" if close else ""
            )
    return names


def places_of(model: Model, site: str, layers: Sequence[int] | None, by_position: bool) -> list[Place]:
    """Where a site is: in a decoder at one place, of a translation model in every attention or stack that has it."""
    require(model, {"resid_mid": ("stream between",), "mlp_out": ("mlp",)}.get(site, ()))
    found, config, several = [], model.config, len(attentions(model)) > 1
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    for stack in attentions(model):
        numbers = layer_numbers(model, layers, stack.shape[0])
        keys = site in ("k", "v")
        if site in HEADS:
            axes, names = ("layer", "head"), [f"{stack.path}.{layer}.{stack.part}.hook_{site}" for layer in numbers]
            sizes = (len(numbers), config.n_kv_heads if keys else config.n_heads)
            if keys and config.n_kv_heads != config.n_heads:
                axes = ("layer", "kv_head")
            axes, sizes = ((*axes, "pos"), (*sizes, 0)) if by_position else (axes, sizes)
        else:
            names = [] if stack.crosses else [f"{stack.path}.{layer}.hook_{site}" for layer in numbers]
            axes, sizes = ("layer", "pos"), (len(numbers), 0)
        if not names or names[0] not in model.hook_points:
            continue
        words = stack.words if site in HEADS else f"the {stack.path}"
        found.append(
            Place(
                site=site, short=stack.short, where=f" of {words}" if several else "", names=tuple(names),
                layers=numbers, axes=axes, sizes=sizes, side=int((stack.keys if keys else stack.queries) == "target"),
            )
        )  # fmt: skip
    return found
