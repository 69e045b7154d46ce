"""Weights that other code holds as a dict of tensors: Hugging Face, nanoGPT, TransformerLens (now, and years ago).

`from_state_dict` recognises a layout by names and shapes; `LAYOUTS` are those it knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError, LoadError
from interp.loading.decoders import build
from interp.loading.families import FAMILIES, Family, Own, family_of
from interp.loading.layouts import WRAPPERS, Layout, Readers, Shapes, Stored, expect, incomplete
from interp.loading.names import Names, gpt2_names
from interp.models.config import ACTIVATION_NAMES, GPTConfig, RotaryScaling
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer


class NanoGPT(Family):
    """GPT-2's names and parts, matrices [out in]; without biases, in norms too, where the config says bias=False."""

    def read(self, data: Mapping[str, Any], where: str) -> GPTConfig:
        try:
            return GPTConfig(
                n_layers=data["n_layer"],
                n_heads=data["n_head"],
                d_model=data["n_embd"],
                n_ctx=data["block_size"],
                d_vocab=data["vocab_size"],
                bias=data.get("bias", True),
                act_fn="gelu",
            )
        except (KeyError, TypeError) as error:
            raise incomplete(error, where, self.title) from None

    def layout(self, config: GPTConfig, shapes: Shapes) -> Layout:
        found = super().layout(config, shapes)
        return (
            found
            if config.bias
            else {n: replace(s, default=0.0 if n.endswith(".b") else None) for n, s in found.items()}
        )


class Lens(Own):
    """Classic TransformerLens: names as ours, head axis first, [in out]."""

    def read(self, data: Mapping[str, Any], where: str) -> GPTConfig:
        return lens_config(data, where)

    def layout(self, config: GPTConfig, shapes: Shapes) -> Layout:
        return {name: self.stored(name, shape, config) for name, shape in shapes.items()}

    def stored(self, name: str, shape: tuple[int, ...], config: GPTConfig) -> Stored:
        block, _, last = name.rpartition(".")
        if last in OUTSIDE:
            return Stored(
                OUTSIDE[last], shape[::-1] if last == "unembed" else shape, lambda x: x.mT if last == "unembed" else x
            )
        if last.endswith("_flat"):
            letter, width = last[2], (config.n_heads if last[2] in "QO" else config.n_kv_heads, config.d_head)
            key = f"{block}.{'_' if letter in 'KV' and config.n_kv_heads < config.n_heads else ''}{last[:3]}"
            if last.startswith("b"):
                return Stored(key, width)
            if letter == "O":
                return Stored(key, (*width, config.d_model), lambda x: x.flatten(0, 1))
            return Stored(key, (width[0], config.d_model, width[1]), lambda x: x.permute(1, 0, 2))
        folded = {
            "w": 1.0 - config.gain_offset,
            "b": 0.0,
            "b_gate": 0.0,
        }  # norms folded away; TransformerLens has no b_gate
        return Stored(name, shape, default=folded.get(last))


class OldLens(Lens):
    """What it grew from (Nanda et al., "Progress measures for grokking", 2023): [out in], output heads side by side."""

    def stored(self, name: str, shape: tuple[int, ...], config: GPTConfig) -> Stored:
        now, last = super().stored(name, shape, config), name.rpartition(".")[2]
        if last in ("W_Q_flat", "W_K_flat", "W_V_flat"):
            heads, width, d_head = now.shape
            return Stored(now.key, (heads, d_head, width), lambda x: x.permute(2, 0, 1))
        if last in ("W_E", "W_O_flat", "W_gate", "W_in", "W_out"):
            return Stored(now.key, shape[::-1], lambda x: x.mT)
        return now


class OverGPT2(Family):
    """TransformerLens 4 around transformers' GPT-2: queries, keys and values [out in], other matrices [in out]."""

    def layout(self, config: GPTConfig, shapes: Shapes) -> Layout:
        found = super().layout(config, shapes)
        kept = [name for name in found if name.endswith(("W_O_flat", "W_in", "W_out"))]
        return found | {name: Stored(found[name].key, found[name].shape[::-1]) for name in kept}


OUTSIDE = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "unembed": "unembed.W_U", "b_U": "unembed.b_U"}
_LENS = Names(embed="embed.W_E", unembed="unembed.W_U", prefixes=("",))
_BRIDGE = Names(
    embed="embed", position="pos_embed", block="blocks.{}.", norms={"ln1": "ln1", "ln2": "ln2"}, final="ln_final",
    unembed="unembed", q="attn.q", k="attn.k", v="attn.v", out="attn.o", gate="mlp.gate", up="mlp.in", down="mlp.out",
    qk_norm="attn.{}_norm", prefixes=("",),
)  # fmt: skip
LAYOUTS: dict[str, tuple[Family, ...]] = {
    "huggingface": tuple(family for kind, family in FAMILIES.items() if kind not in ("interp", "gpt_bigcode")),
    "nanogpt": (NanoGPT("nanoGPT", gpt2_names(), {}),),
    "transformer-lens": (
        Lens("TransformerLens", _LENS, {}), Family("TransformerLens 4", _BRIDGE, {}),
        OverGPT2("TransformerLens 4 around GPT-2", _BRIDGE, {}),
    ),
    "transformer-lens-old": (OldLens("TransformerLens (old)", _LENS, {}),),
    "interp": (FAMILIES["interp"],),
}  # fmt: skip
"""Layouts by name. GPT-BigCode's fused heads look like nanoGPT's: it is taken by its own config.json alone."""


def from_state_dict(
    state: Mapping[str, Tensor],
    config: GPTConfig | Mapping[str, Any] | object,
    *,
    layout: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> HookedGPT:
    """A model with these weights, copied; dtype and device as they are there.

    Args:
        state: tensors by name.
        config: a GPTConfig, or what the other code has: the config of transformers, nanoGPT's `model_args`,
            TransformerLens' `cfg`, as an object or a mapping.
        layout: one of `LAYOUTS`; None: the one that has all tensors, by name and shape.

    Raises InputError for a config or layout that is not understood or fits several ways that differ; LoadError for
    tensors that are missing, unknown or of another shape.
    """
    named = isinstance(state, Mapping) and state and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(x, Tensor) for x in state.values()):
        kinds = sorted({type(x).__name__ for x in state.values()}) if isinstance(state, Mapping) else []
        what = f"{type(state).__name__}" + (f" of {', '.join(kinds)}" if kinds else "")
        raise InputError(f"state: {what}", "expected a dict of tensors by name, as state_dict() gives it")
    if layout is not None and (not isinstance(layout, str) or layout not in LAYOUTS):
        raise InputError(f"layout {layout!r}", f"expected one of {', '.join(LAYOUTS)}, or None")
    state = {WRAPPERS.sub("", key, count=1): x for key, x in state.items()}
    shape, own = read_config(config, state)
    candidates = [(name, family) for name, some in LAYOUTS.items() if layout in (None, name) for family in some]
    if own is not None and layout in (None, own[0]):
        candidates = [own]

    def readers_of(family: Family) -> Readers:
        found: Readers = {}
        for key, x in state.items():
            plain = family.plain(key)
            if plain in found and not torch.equal(found[plain][1](), x):
                raise LoadError(f"state dict: two tensors called {plain}", "expected one, or equal ones")
            found[plain] = tuple(x.shape), lambda x=x: x.detach().clone()  # type: ignore[misc]
        return found

    with torch.device("meta"):
        shapes: Shapes = {name: tuple(p.shape) for name, p in HookedGPT(shape).named_parameters()}
    fitting: dict[str, tuple[str, Family, Layout]] = {}
    misfits: list[tuple[int, Family]] = []
    for name, family in candidates:
        stored, there = family.layout(shape, shapes), readers_of(family)
        if stored.keys() != shapes.keys():
            continue
        stored = whole(stored, there)
        missing = sum(s.default is None and (s.key not in there or there[s.key][0] != s.shape) for s in stored.values())
        if missing:
            misfits.append((missing, family))
        else:
            fitting.setdefault(repr(family.names) + type(family).__name__, (name, family, stored))
    if not fitting and not misfits:
        raise InputError(f"layout {layout!r} has not all parts of this config", "expected another layout, or None")
    _refuse_ambiguous(list(fitting.values()), readers_of)
    family = next(iter(fitting.values()))[1] if fitting else min(misfits, key=lambda pair: pair[0])[1]
    readers = readers_of(family)
    stored = whole(family.layout(shape, shapes), readers)
    dtype = common_dtype({one.key: readers[one.key][1]() for one in stored.values() if one.key in readers})
    model = build(family, shape, readers, "state dict", layout=stored, tokenizer=tokenizer, dtype=dtype)
    if own is not None and own[0] == "huggingface" and own[1] is not FAMILIES["gpt2"]:
        model.origin = {key: x for key, x in plain_config(config).items() if key not in ("dtype", "torch_dtype")}
    return model


def whole(layout: Layout, there: Readers) -> Layout:
    """The layout in which tensors of a kind (all norms' gains, say) may be left out together, but not one of them."""
    kinds = {stored.key.rpartition(".")[2] for stored in layout.values() if stored.key in there}
    return {
        name: replace(stored, default=None) if stored.key.rpartition(".")[2] in kinds else stored
        for name, stored in layout.items()
    }


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all of them. Raises InputError, naming it, for one that holds no floating-point numbers."""
    for key, x in tensors.items():
        if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16) or x.layout != torch.strided:
            raise InputError(
                f"tensor {key} of {str(x.dtype)[6:]}", "expected dense float32, float64, float16 or bfloat16"
            )
    dtypes = {x.dtype for x in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float64 if torch.float64 in dtypes else torch.float32


def _refuse_ambiguous(fitting: list[tuple[str, Family, Layout]], readers_of: Callable[[Family], Readers]) -> None:
    """Raises InputError where two layouts that fit give different weights."""
    if len(fitting) < 2:
        return
    (first, family, stored), *others = fitting
    for name, other, theirs in others:
        mine, there = readers_of(family), readers_of(other)
        for key in stored:
            one, two = stored[key], theirs[key]
            if one.key not in mine or two.key not in there:
                continue
            if not torch.equal(one.view(mine[one.key][1]()).flatten(), two.view(there[two.key][1]()).flatten()):
                clear = "dict(model.tl_named_parameters())" if first == name else "the name of a layout"
                raise InputError(
                    f"these weights fit {first} ({family.title}) and {name} ({other.title})",
                    f"expected shapes that tell these apart: they read {one.key} differently",
                    f"give {clear}",
                )


def plain_config(config: object) -> dict[str, Any]:
    """A config of other code as plain values."""
    if isinstance(config, Mapping):
        return dict(config)
    told = getattr(config, "to_dict", None)
    return dict(told()) if told else dict(getattr(config, "__dict__", {}))


def read_config(config: object, state: Mapping[str, Tensor]) -> tuple[GPTConfig, tuple[str, Family] | None]:
    """The config that other code has; and layout and family, where the config tells them."""
    if isinstance(config, GPTConfig):
        return config, None
    data, where = plain_config(config), type(config).__name__
    if "block_size" in data:
        family = LAYOUTS["nanogpt"][0]
        embed, head = (state.get(key, state.get(f"transformer.{key}")) for key in ("wte.weight", "lm_head.weight"))
        tied = embed is None or head is None or (embed.shape == head.shape and torch.equal(embed, head))
        return replace(family.read(data, where), tied=tied), ("nanogpt", family)
    if "normalization_type" in data or "attention_dir" in data:
        return lens_config(data, where, state), None
    if "model_type" in data:
        family = family_of(data, where)
        return family.read(data, where), ("huggingface", family)
    raise InputError(
        f"config of type {where}: {str(config)[:60]}",
        "expected a GPTConfig, transformers' config, nanoGPT's model_args or TransformerLens' cfg",
    )


LENS_ENTRIES = {
    "n_layers": "n_layers", "n_heads": "n_heads", "d_model": "d_model", "n_ctx": "n_ctx", "d_vocab": "d_vocab",
    "d_head": "d_head", "n_kv_heads": "n_key_value_heads", "eps": "eps", "gated": "gated_mlp", "attn_only": "attn_only",
    "parallel": "parallel_attn_mlp", "rotary_interleaved": "rotary_adjacent_pairs", "rotary_base": "rotary_base",
}  # fmt: skip
"""Our entry -> TransformerLens', where they mean the same."""
LENS_REFUSED = {
    "scale_attn_by_inverse_layer_idx": False, "post_embedding_ln": False, "num_experts": None, "use_qk_norm": False,
    "relative_attention_num_buckets": None, "qk_norm_after_rope": False, "rotary_interleaved_cos_sin": False,
}  # fmt: skip


def lens_config(data: Mapping[str, Any], where: str, state: Mapping[str, Tensor] | None = None) -> GPTConfig:
    """TransformerLens' `cfg`. Raises LoadError for parts that this project does not have.

    Whether there are biases, it leaves to the weights: all, where no `state` is given.
    """
    expect(data, where, LENS_REFUSED)
    norms: dict[Any, Any] = {"LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms", None: None}
    places: dict[Any, Any] = {"standard": "learned", "rotary": "rotary", "none": None}
    norm, place = data.get("normalization_type", "LN"), data.get("positional_embedding_type", "standard")
    if data.get("final_rms") and norm not in ("RMS", "RMSPre"):
        raise LoadError(f"{where}: final_rms with normalization_type = {norm!r}", "expected one kind of norm")
    if (
        norm in ("LN", "RMS")
        and state
        and not any(key.endswith((".w", "ln1.weight", "ln_final.weight")) for key in state)
    ):
        raise LoadError(f"{where}: normalization_type = {norm!r}, and no norm among the tensors", f"expected {norm}Pre")
    act = data.get("act_fn") or "gelu"  # attention-only models have none
    for entry, value, known in (("normalization_type", norm, norms), ("positional_embedding_type", place, places),
                                ("act_fn", act, ACTIVATION_NAMES)):  # fmt: skip
        if value not in known:
            raise LoadError(f"{where}: {entry} = {value!r}", f"expected one of {', '.join(map(str, known))}")
    found: dict[str, Any] = {
        ours: data[theirs] for ours, theirs in LENS_ENTRIES.items() if data.get(theirs) is not None
    }
    scale = data.get("attn_scale", -1.0)
    if not data.get("use_attn_scale", True):
        scale = 1.0
    if data.get("use_local_attn"):
        kinds = data["attn_types"]
        found["windows"] = tuple(data["window_size"] if kind == "local" else None for kind in kinds)
    if data.get("use_NTK_by_parts_rope"):
        low, high, factor = (data[f"NTK_by_parts_{name}"] for name in ("low_freq_factor", "high_freq_factor", "factor"))
        original = data.get("NTK_original_ctx_len", 8192)
        found["rotary_scaling"] = RotaryScaling(
            kind="llama3", factor=factor, low_freq=low, high_freq=high, original_ctx=original
        )
    names = {".".join(key.split(".")[2:]) if key.startswith("blocks.") else key for key in state or ()}

    def there(*ends: str) -> bool:
        return not names or bool(names & set(ends))

    try:
        return GPTConfig(
            **found,
            d_mlp=0 if data.get("attn_only") else data.get("d_mlp") or -1,
            d_vocab_out=max(data.get("d_vocab_out") or 0, 0),
            norm=norms[norm],
            act_fn=ACTIVATION_NAMES[act],
            positions=places[place],
            rotary_dim=data.get("rotary_dim") or 0,
            causal=data.get("attention_dir", "causal") == "causal",
            norm_place="both" if data.get("use_normalization_before_and_after") else "pre",
            attn_scale=1.0 / scale if scale and scale > 0 else 0.0,
            attn_softcap=_cap(data.get("attn_scores_soft_cap")),
            logit_softcap=_cap(data.get("output_logits_soft_cap")),
            gain_offset=1.0 if data.get("rmsnorm_uses_offset") else 0.0,
            bias_qkv=there("attn.b_Q", "attn.q.bias"),
            bias_out=there("attn.b_O", "attn.o.bias"),
            bias_mlp=there("mlp.b_in", "mlp.in.bias"),
            unembed_bias=there("unembed.b_U", "unembed.bias"),
            tied=False,
        )
    except (KeyError, TypeError) as error:
        raise incomplete(error, where, "TransformerLens") from None


def _cap(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None
