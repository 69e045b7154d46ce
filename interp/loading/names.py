"""What a family's files call the weights, and how those names become a layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.loading.layouts import Layout, Stored, linear, norm, prefixed
from interp.models.config import GPTConfig

PRE_NORMS = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
GPT2_NORMS = {"ln1": "ln_1", "ln2": "ln_2"}


@dataclass(frozen=True)
class Names:
    """How a family's files call the parts, without the prefix and the layer's own."""

    embed: str = "embed_tokens"
    position: str = ""
    block: str = "layers.{}."
    norms: Mapping[str, str] | None = None
    """Our norms of a block -> theirs."""
    final: str = "norm"
    unembed: str = "lm_head"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    """Of the three in one tensor, where the files keep them so."""
    by_head: bool = False
    """Whether that tensor holds each head's q, k and v in turn (if there are as many k as q), rather than all q, all k,
    all v."""
    out: str = "self_attn.o_proj"
    qk_norm: str = "self_attn.{}_norm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""
    """Of gate and up in one tensor, where the files keep them so."""
    down: str = "mlp.down_proj"
    in_out: bool = False
    """Whether matrices are [in out] in the file too (GPT-2's Conv1D)."""
    skipped_positions: int = 0
    """Rows of the position table before the first position's (OPT)."""
    prefixes: Sequence[str] = ("model.",)
    """What may stand before all names but the unembedding's; the first is written."""


def _rows(start: int, stop: int) -> Callable[[Any], Any]:
    return lambda x: x[start:stop].mT if x.ndim > 1 else x[start:stop]


def _columns(start: int, stop: int) -> Callable[[Any], Any]:
    return lambda x: x[..., start:stop]


def _head_by_head(heads: int, part: int) -> Callable[[Any], Any]:
    def view(x: Any) -> Any:  # [head * 3 * d_head, d_model] -> [d_model head d_head], or [head d_head] for a bias
        split = x.unflatten(0, (heads, 3, -1))[:, part]
        return split.permute(2, 0, 1) if split.ndim == 3 else split

    return view


def _fused(key: str, n_in: int, widths: Sequence[int], names: Names, heads: int = 0) -> list[tuple[Stored, Stored]]:
    """Matrices and biases that one pair of tensors in the file holds side by side; head by head, given `heads`."""
    total, found, start = sum(widths), [], 0
    shape = (n_in, total) if names.in_out else (total, n_in)
    for part, width in enumerate(widths):
        view = (_columns if names.in_out else _rows)(start, start + width)
        view = _head_by_head(heads, part) if heads else view
        found.append((Stored(f"{key}.weight", shape, view), Stored(f"{key}.bias", (total,), view)))
        start += width
    return found


def layout(names: Names, config: GPTConfig) -> Layout:
    """Where the files of a family keep each parameter of a model of this config (keys without prefix)."""
    c, found = config, {"W_E": Stored(f"{names.embed}.weight", (config.d_vocab, config.d_model))}
    if c.positions == "learned":
        skip = names.skipped_positions
        found["W_pos"] = Stored(f"{names.position}.weight", (c.n_ctx + skip, c.d_model), lambda x: x[skip:])
    for layer in range(c.n_layers):
        found |= prefixed(_block(names, c), f"blocks.{layer}.", names.block.format(layer))
    has_bias = c.norm == "layer"
    found |= prefixed(norm(names.final, c.d_model, bias=has_bias), "ln_final.", "")
    if not c.tied:
        found["unembed"] = Stored(f"{names.unembed}.weight", (c.d_vocab_out, c.d_model))
    if c.unembed_bias:
        found["b_U"] = Stored(f"{names.unembed}.bias", (c.d_vocab_out,))
    return found


def _block(names: Names, c: GPTConfig) -> Layout:
    queries, keys = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    found: Layout = {}

    def put(ours: str, pair: tuple[Stored, Stored | None], bias: bool | None) -> None:
        weight, shift = pair
        found[f"{ours.replace('.', '.W_')}"] = weight
        if bias and shift is not None:
            found[f"{ours.replace('.', '.b_').replace('b_O_flat', 'b_O')}"] = shift

    def one(key: str, n_in: int, n_out: int) -> tuple[Stored, Stored | None]:
        return _fused(key, n_in, [n_out], names)[0] if names.in_out else linear(key, n_in, n_out)

    widths = (queries, keys, keys)
    if names.qkv:
        by_head = names.by_head and c.n_kv_heads == c.n_heads
        parts: list[Any] = _fused(names.qkv, c.d_model, widths, names, c.n_heads if by_head else 0)
    else:
        parts = [one(key, c.d_model, width) for key, width in zip((names.q, names.k, names.v), widths, strict=True)]
    for letter, part in zip("QKV", parts, strict=True):
        put(f"attn.{letter}_flat", part, c.bias_qkv)
    put("attn.O_flat", one(names.out, queries, c.d_model), c.bias_out)
    if names.gate_up:
        halves: list[Any] = _fused(names.gate_up, c.d_model, (c.d_mlp, c.d_mlp), names)
    else:
        halves = [one(names.gate, c.d_model, c.d_mlp), one(names.up, c.d_model, c.d_mlp)]
    for name, part in zip(("gate", "in"), halves, strict=True):
        if name == "in" or c.gated:
            put(f"mlp.{name}", part, c.bias_mlp)
    put("mlp.out", one(names.down, c.d_mlp, c.d_model), c.bias_mlp)
    for ours, theirs in (names.norms or PRE_NORMS).items():
        found |= prefixed(norm(theirs, c.d_model, bias=c.norm == "layer"), f"{ours}.", "")
    if c.qk_norm:
        for letter, width in (("q", queries), ("k", keys)):
            size = width if c.qk_norm == "flat" else c.d_head
            name = f"attn.{letter}_norm"
            found |= prefixed(norm(names.qk_norm.format(letter), size, bias=c.norm == "layer"), f"{name}.", "")
    return found


def gpt2_names(**changes: Any) -> Names:
    told: dict[str, Any] = {
        "embed": "wte", "position": "wpe", "block": "h.{}.", "norms": GPT2_NORMS, "final": "ln_f", "qkv": "attn.c_attn",
        "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj", "prefixes": ("transformer.",),
    }  # fmt: skip
    return Names(**(told | changes))
