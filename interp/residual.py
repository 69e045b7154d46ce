"""Algebra of the residual stream: it is a sum, so what is in it can be split by who wrote it.

Where a norm follows a sum (BERT, translation models), it is linear once its scale is held at its value in the run: it
centres, divides, multiplies by its gain and adds its bias. So what was written before goes on as its share, and the
parts still sum to the stream.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.cache import ActivationCache
from interp.errors import InputError
from interp.hooks import HookedModule, select_positions
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.parts import NoNorm, Norm

Reader: TypeAlias = HookedGPT | HookedEncoderDecoder
"""Models whose logits are linear in what leaves the last norm."""
EMBEDDINGS = ("embed", "pos_embed", "token_type_embed")
WORDS = {"attn": "dec ", "cross_attn": "cross "}
"""Before the labels of a block's two attentions; a block with one needs no such word."""


class Write(NamedTuple):
    """A part of a block that writes into the stream."""

    part: str
    """attn, cross_attn or mlp."""
    post: str
    """The block's norm that what it writes passes before it is added, if there can be one."""
    after: str
    """The block's norm that follows the sum, if there is one."""

    @property
    def site(self) -> str:
        """Where in the block a run shows what it writes."""
        return "hook_mlp_out" if self.part == "mlp" else f"{self.part}.hook_z"


def writes(block: nn.Module) -> list[Write]:
    """What writes into the stream of a block, in turn."""
    parts = [part for part in ("attn", "cross_attn", "mlp") if getattr(block, part, None) is not None]
    if hasattr(block, "ln1_post"):
        return [Write(part, f"ln{n}_post", "") for n, part in enumerate(parts, start=1)]
    return [Write(part, "", f"ln{n}") for n, part in enumerate(parts, start=1)]


def stream_of(model: HookedModule, stack: str = "") -> tuple[str, Sequence[Any]]:
    """Name and blocks of a stack; by default of that whose stream the outputs read: `blocks`, or a translation model's
    `decoder`."""
    name = stack or ("decoder" if "decoder" in model.stack_sizes else "blocks")
    return name, getattr(model, name)


def _embeddings(model: HookedModule) -> dict[str, str]:
    """Label -> hook point of each embedding that the stream begins with."""
    ends = {f"hook_{label}": label for label in EMBEDDINGS}
    return {ends[name.rpartition(".")[2]]: name for name in model.hook_points if name.rpartition(".")[2] in ends}


def norm_at(module: object, name: str) -> Norm | NoNorm:
    """A module's norm of this name; one that does nothing where it has none."""
    found = getattr(module, name, None) if name else None
    return found if isinstance(found, Norm) else NoNorm()


def decompose_names(model: HookedModule) -> list[str]:
    """What `decompose` needs: `run_with_cache(..., names=decompose_names(model))`; for shares of a logit also
    "ln_final.hook_scale"."""
    stack, blocks = stream_of(model)
    names = [*_embeddings(model).values(), "embed.ln.hook_scale"]
    for layer, block in enumerate(blocks):
        for write in writes(block):
            norms = (write.post if write.part != "mlp" else "", write.after)
            names += [f"{stack}.{layer}.{end}" for end in (write.site, *(f"{norm}.hook_scale" for norm in norms))]
    return [name for name in names if name in model.hook_points]


def _layers(model: HookedModule, layer: int | None) -> int:
    """How many blocks lie before a place. Raises InputError where the model has fewer."""
    total = len(stream_of(model)[1])
    layers = total if layer is None else layer
    if not isinstance(layers, int) or not 0 <= layers <= total:
        raise InputError(f"layer {layer!r}", f"expected 0 to {total}")
    return layers


def decompose(
    model: HookedModule,
    cache: ActivationCache,
    layer: int | None = None,
    *,
    heads: bool = True,
    pos: int | slice | None = None,
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """The residual stream that enters block `layer` (None: that leaves the last block), split by who wrote it.

    Components in order: `embed`, `pos_embed` (where positions are embedded), `token_type_embed` (of a BERT), then for
    each earlier block its heads `L0H0` ... (or `attn 0` when heads are not split), its output bias `bias 0`, its MLP
    `mlp 0` (which includes b_out). A translation model's decoder has `dec L0H0` and `dec bias 0`, then `cross L0H0` and
    `cross bias 0`. Where norms follow sums a last component `norm bias` is what their biases came to.
    Their sum is the residual stream. Where a norm follows, a component is its share at this scale.
    `pos` takes these positions only (an int keeps the axis, with length one).

    Raises HookNameError when the cache lacks one of `decompose_names`.
    """
    layers = _layers(model, layer)
    if pos is not None:
        cache = ActivationCache({name: select_positions(x, name, pos) for name, x in cache.items()}, model.stack_sizes)
    named = _embeddings(model)
    parts, labels = [cache[name][None] for name in named.values()], list(named)
    bias = torch.zeros_like(parts[0])
    for norm, scale, written, names in _steps(model, cache, layers, heads):
        parts += [part.expand(-1, *bias.shape[1:]) for part in written]
        labels += names
        if isinstance(norm, Norm):
            *parts, bias = (norm.share(part, cache[scale]) for part in (*parts, bias))
            bias = bias if norm.b is None else bias + norm.b
    if any(write.after for write in writes(stream_of(model)[1][0])):
        parts, labels = [*parts, bias], [*labels, "norm bias"]
    return torch.cat(parts), labels


def _steps(
    model: HookedModule, cache: ActivationCache, layers: int, heads: bool
) -> Iterator[tuple[Norm | NoNorm, str, list[Tensor], list[str]]]:
    """What is added to the stream, step by step: the norm that follows the sum, the name of its scale, the parts, each
    [component batch pos d_model] or alike for all positions, and their labels."""
    stack, blocks = stream_of(model)
    yield norm_at(getattr(model, "embed", None), "ln"), "embed.ln.hook_scale", [], []
    for layer, block in enumerate(blocks[:layers]):
        for write in writes(block):
            if write.part == "mlp":
                parts, labels = [cache[f"{stack}.{layer}.{write.site}"][None]], [f"mlp {layer}"]
            else:
                parts, labels = _attention_parts(model, cache, layer, write.part, heads)
            yield norm_at(block, write.after), f"{stack}.{layer}.{write.after}.hook_scale", parts, labels


def _attention_parts(
    model: HookedModule, cache: ActivationCache, layer: int, part: str, heads: bool
) -> tuple[list[Tensor], list[str]]:
    block = stream_of(model)[1][layer]
    word = WORDS[part] if hasattr(block, "cross_attn") else ""
    result, bias = head_results(model, cache, layer, part), output_bias(model, cache, layer, part)
    parts = [result if heads else result.sum(0, keepdim=True)]
    labels = [f"{word}L{layer}H{head}" for head in range(len(result))] if heads else [f"{word}attn {layer}"]
    return (
        (parts, labels)
        if bias is None
        else ([*parts, bias[(None,) * (4 - bias.ndim)]], [*labels, f"{word}bias {layer}"])
    )


def stream_places(model: HookedModule, stack: str = "") -> dict[str, tuple[str, Norm | NoNorm]]:
    """Places of the stream as the next part reads it: `embed`, then `L0 attn`, `L0 cross`, `L0 mlp`, ...; `L0 block`
    where the parts of a block run side by side.

    Each with the hook point that shows it, and with the norm whose gain and bias (`finish`) are still to come there.
    """
    stack, blocks = stream_of(model, stack)
    found: dict[str, tuple[str, Norm | NoNorm]] = {"embed": (f"{stack}.0.hook_resid_pre", NoNorm())}
    for layer, block in enumerate(blocks):
        at, steps = f"{stack}.{layer}.", writes(block)
        if steps[0].after:
            places = {write.part: (f"{write.after}.hook_normalized", norm_at(block, write.after)) for write in steps}
        elif len(steps) > 1 and hasattr(block, "hook_resid_mid"):
            places = {"attn": ("hook_resid_mid", NoNorm()), "mlp": ("hook_resid_post", NoNorm())}
        else:
            places = {"block" if len(steps) > 1 else "attn": ("hook_resid_post", NoNorm())}
        found |= {f"L{layer} {part.removesuffix('_attn')}": (at + end, norm) for part, (end, norm) in places.items()}
    return found


def finish(norm: Norm | NoNorm, normal: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What `hook_normalized` shows with the norm's gain and bias; anything else as it is."""
    return norm.finish(normal) if isinstance(norm, Norm) else normal


def streams(model: HookedModule, run: Callable[[], object]) -> Float[Tensor, "place batch pos d_model"]:
    """The stream at each of `stream_places` while `run` runs."""
    places, kept = dict(stream_places(model).values()), list[Tensor]()

    def keep(x: Tensor, hook: Any) -> None:
        norm = places[hook.name]
        kept.append(finish(norm, x))

    with model.hooks([(list(places), keep)], reads_only=True):
        run()
    return torch.stack(kept)


def accumulated(
    model: HookedModule,
    cache: ActivationCache,
    layer: int | None = None,
    *,
    mid: bool = False,
    pos: int | slice | None = None,
) -> tuple[Float[Tensor, "place batch pos d_model"], list[str]]:
    """The residual stream as it grows: entering each block up to `layer` (None: and leaving the last), with labels.

    `mid` puts the stream between attention and MLP in too, where blocks have one that no norm follows. Raises
    HookNameError when the cache lacks one of these.
    """
    layers, (stack, blocks) = _layers(model, layer), stream_of(model)
    names, labels = list[str](), list[str]()
    for index, block in enumerate(blocks[: layers + 1]):
        names.append(f"{stack}.{index}.hook_resid_pre")
        labels.append(f"{index} pre")
        if mid and index < layers and hasattr(block, "hook_resid_mid") and not writes(block)[0].after:
            names.append(f"{stack}.{index}.hook_resid_mid")
            labels.append(f"{index} mid")
    if layers == len(blocks):
        names.append(leaving(model))
        labels.append("final post")
    return torch.stack([select_positions(cache[name], name, pos) for name in names]), labels


def leaving(model: HookedModule) -> str:
    """The hook point that shows the stream that leaves the last block."""
    stack, blocks = stream_of(model)
    end = "hook_normalized_resid_post" if writes(blocks[-1])[0].after else "hook_resid_post"
    return f"{stack}.{len(blocks) - 1}.{end}"


def logit_attrs(
    model: Reader,
    cache: ActivationCache,
    parts: Float[Tensor, "component batch pos d_model"],
    answer: int | Int[Tensor, " batch"],
    wrong: int | Int[Tensor, " batch"] | None = None,
    *,
    pos: int | slice | None = None,
) -> Float[Tensor, "component batch pos"]:
    """What each part of the last residual stream adds to the answer's logit (minus a wrong answer's).

    The final norm's scale is held at the run's value, so that the parts of a stream add up to the whole; its bias, b_U
    and a soft-cap are apart (Elhage et al. 2021). `pos` are the positions that `parts` have of the run's.
    """
    batch, name = parts.shape[1], "ln_final.hook_scale"
    ids = [torch.as_tensor(x, device=parts.device) for x in (answer, wrong) if x is not None]
    for given in ids:
        if given.is_floating_point() or given.shape not in ((), (1,), (batch,)) or given.min() < 0:
            raise InputError(f"answers {given.tolist()!r}"[:100], f"expected one token id, or {batch}")
        if given.max() >= model.W_U.shape[1]:
            raise InputError(f"token id {int(given.max())}", f"expected 0 to {model.W_U.shape[1] - 1}")
    ids = [given.expand(batch) for given in ids]
    norm = norm_at(model, "ln_final")
    scale = select_positions(cache[name], name, pos) if norm.hooked else parts.new_ones(())
    if scale.ndim and scale.shape[1] != parts.shape[2]:
        raise InputError(
            f"parts at {parts.shape[2]} positions, and a run of {scale.shape[1]}", "expected pos= as for the parts"
        )
    towards = logit_direction(model, ids[0], ids[1] if len(ids) > 1 else None)  # [batch d_model]
    return torch.einsum("cbpd,bd->cbp", norm.share(parts, scale), towards)


def head_results(
    model: HookedModule, cache: ActivationCache, layer: int, part: str = "attn"
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head of a block's attention adds to the residual stream, its share of the output bias left out."""
    stack, blocks = stream_of(model)
    z = cache[f"{stack}.{layer}.{part}.hook_z"]
    return attn_share(model, cache, layer, torch.einsum("bphd,hdm->hbpm", z, getattr(blocks[layer], part).W_O))


def output_bias(
    model: HookedModule, cache: ActivationCache, layer: int, part: str = "attn"
) -> Float[Tensor, "*batch d_model"] | None:
    """What the attention's output bias (and that of a norm after it) adds to the stream; None where there is none."""
    block = stream_of(model)[1][layer]
    own: Tensor | None = getattr(block, part).b_O
    bias = None if own is None else attn_share(model, cache, layer, own)
    after = norm_at(block, "ln1_post").b
    return bias if after is None else after if bias is None else bias + after


def attn_share(
    model: HookedModule, cache: ActivationCache, layer: int, parts: Float[Tensor, "*part d_model"]
) -> Float[Tensor, "*part d_model"]:
    """What parts of a block's attention output become before they are added: their shares of the norm that they pass
    first, if any."""
    stack, blocks = stream_of(model)
    post = norm_at(blocks[layer], "ln1_post")
    return post.share(parts, cache[f"{stack}.{layer}.ln1_post.hook_scale"]) if post.hooked else parts


def logit_direction(
    model: Reader, answer: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch d_model"]:
    """The direction of the normalised stream that a logit (minus a wrong answer's) reads; b_U and soft-cap apart."""
    columns = model.W_U.T
    return columns[answer] if wrong is None else columns[answer] - columns[wrong]
