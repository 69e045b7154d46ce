"""What the model is made of: every operation's shape, parameters, FLOPs, memory and the longest path.

Question: how large is each part of this model, and what does one pass over a text cost?

Method: parameters are counted on the model itself; for a config the model is laid out on torch's meta device, which has
shapes but no storage, so that GPT-3's 175 billion weights need no memory. FLOPs are two per multiply-add of a matrix
product (the convention of Kaplan et al. 2020, and of torch's counter); normalisation, softmax, non-linearities and
additions are not counted, and attention is counted for the full square of positions, as computed, although half of it,
or more with windows, is masked. Memory is shape times bytes per number, keys and values of all positions in every layer
included, windows or not. The longest path is found in the graph of operations; a core layer is an
operation with a weight matrix.

A config will do in place of a model (`model: HookedGPT | GPTConfig`), so that the presets of
`interp.models.config.PRESETS`, such as gpt2-xl and gpt3, need neither weights nor network.

What the numbers do not show: time. How fast a machine does these operations depends on the machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, lines
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import sequences
from analyses.shared.operations import ACTIVATIONS, NORMS, Operation, longest_path, operations_of
from analyses.shared.panels import WHOLE, Finding, Note, Panel, Result, Table
from interp.errors import InputError
from interp.models.config import PRESETS, GPTConfig
from interp.models.gpt import HookedGPT
from interp.models.parts import Norm
from interp.models.positions import check_tokens

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
NUMBERS = {2: "two", 4: "four"}
Number = Literal["float64", "float32", "bfloat16", "float16"]
LENGTH, MEMORY = "length (tokens)", ("keys and values", "all attention patterns")
"""How two panels name their axes."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureResult(Result):
    """The parts of a model and what one forward pass costs."""

    config: GPTConfig
    length: int
    """Positions of each sequence."""
    batch: int
    dtype: str
    """Of weights and activations, for the memory figures."""
    parameters: dict[str, int | dict[str, int]]
    """`total`, and `by_component`: embedding, positions, attention, mlp, layer norm or RMS norm, unembedding."""
    operations: tuple[Operation, ...]
    """In the order of computation; those inside a block once, with their count."""
    flops: int
    """One forward pass at this length and batch."""
    memory: dict[str, int]
    """Bytes, by what they hold."""
    longest_path: int
    """Core layers on the longest path from tokens to logits."""
    longest_path_operations: int
    """All operations on the longest path."""
    lengths: tuple[int, ...]
    """Lengths at which the cost of attention is given; those beyond the context are a what-if."""
    flops_linear: np.ndarray
    """[length] FLOPs of the matrix products with weights, one sequence."""
    flops_attention: np.ndarray
    """[length] FLOPs of scores and mixing, one sequence."""
    kv_bytes: np.ndarray
    """[length] bytes of keys and values, one sequence."""
    pattern_bytes: np.ndarray
    """[length] bytes of all attention patterns, were they written out, one sequence."""
    even_length: float
    """Positions at which attention costs as much as all products with weights."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row per operation: operation, part, axes, output, weight, count, parameters and FLOPs (all layers)."""
        return pd.DataFrame(
            {
                "operation": op.name,
                "part": op.part,
                "axes": op.axes,
                "output": _times(op.output),
                "weight": _times(op.weight),
                "count": op.count,
                "parameters": op.parameters * op.count,
                "flops": op.flops * op.count,
            }
            for op in self.operations
        )

    def facts(self) -> dict[str, Any]:
        """Parameters (total and by component), FLOPs, memory in bytes, longest path, and what they hold for."""
        return {
            "parameters": self.parameters,
            "flops": self.flops,
            "memory": self.memory,
            "longest_path": self.longest_path,
            "longest_path_operations": self.longest_path_operations,
            "length": self.length,
            "batch": self.batch,
            "dtype": self.dtype,
            "config": asdict(self.config),
        }

    def panels(self) -> list[Panel]:
        parts, c = self.by_component, self.config
        labels = {"memory": MEMORY, LENGTH: [f"{n:,}" for n in self.lengths]}
        memory = Axes.of(np.stack([self.kv_bytes, self.pattern_bytes]) / 1e6, **labels)
        return [
            Axes.of(np.array(list(parts.values()), dtype=float), component=list(parts)).bars(
                "parameters", "Parameters by component",
                f"{self.total:,} in all.{' The unembedding is the embedding used again.' * c.tied}", unit="parameters",
            ),
            Table(
                "parts", "What it is made of", f"{c.n_layers} blocks that read and write a stream {c.d_model:,} wide.",
                frame=describe(c),
            ),
            self._operation_table(),
            self._memory_table(),
            self._longest_path_note(),
            lines(
                "length", "What attention costs as the text grows", "Forward FLOPs of one sequence. Products with "
                "weights grow with the length, scores and mixing with its square; the two meet at "
                f"{self.even_length:,.0f} tokens. The model itself reads at most {c.n_ctx:,}.",
                {"with weights": self.flops_linear, "attention between positions": self.flops_attention},
                x=np.array(self.lengths), x_axis=LENGTH, y_axis="FLOPs", log_x=True, log_y=True,
            ),
            memory.matrix(
                "length-memory", "What a longer text needs in memory",
                f"Megabytes (10^6 bytes) of {self.dtype} for one sequence. Keys and values are kept while generating; "
                "patterns exist only when somebody looks at them, because the fused kernel never writes them out.",
                unit="MB",
            ),
            *self._gpt3_note(),
        ]  # fmt: skip

    @property
    def total(self) -> int:
        """All parameters."""
        total = self.parameters["total"]
        assert isinstance(total, int)
        return total

    @property
    def by_component(self) -> dict[str, int]:
        """Parameters of each component."""
        parts = self.parameters["by_component"]
        assert isinstance(parts, dict)
        return parts

    def findings(self) -> list[Finding]:
        c, share = self.config, self.flops_share_of_attention
        text = (
            f"{_short(self.total)} parameters in {c.n_layers} blocks of {c.n_heads} heads; reading {self.length:,} "
            f"tokens takes {_short(self.flops / self.batch)} FLOPs, {share:.1%} of them attention between positions."
        )
        said = f"{_short(self.total)} parameters"
        return [Finding(text, "operations", 0.2, float(self.total), "parameters", kind="size", about=WHOLE, short=said)]

    @property
    def flops_share_of_attention(self) -> float:
        """Share of the FLOPs at this length that scores and mixing take."""
        between = sum(op.flops * op.count for op in self.operations if not op.core)
        return between / self.flops

    def _operation_table(self) -> Table:
        frame = self.to_dataframe()[["operation", "output", "weight", "count", "parameters", "flops", "axes"]]
        names = {"count": "times", "output": "output shape", "weight": "weight shape", "flops": "FLOPs"}
        return Table(
            "operations", "Every operation", f"Shapes for a batch of {self.batch} with {self.length:,} tokens. "
            "Operations inside a block are listed once and happen as often as the column times says; parameters and "
            "FLOPs are for all of them together. FLOPs are those of matrix products, two per multiply-add.",
            frame=frame.rename(columns=names),
        )  # fmt: skip

    def _memory_table(self) -> Table:
        sizes = list(self.memory.values())
        frame = pd.DataFrame({"what": list(self.memory), "size": [_size(n) for n in sizes], "bytes": sizes})
        return Table(
            "memory", f"Memory in {self.dtype}", f"For a batch of {self.batch} with {self.length:,} tokens, by shape "
            "alone; what torch itself and its temporary buffers need comes on top.", frame=frame,
        )  # fmt: skip

    def _longest_path_note(self) -> Note:
        c, inside = self.config, (self.longest_path - 2) // self.config.n_layers
        way = "queries, keys and values lie side by side; then the output projection"
        way += " and the two of the MLP" * (inside > 2) + ", whose gate and linear part lie side by side" * c.gated
        way += "; the MLP's two lie beside these" * c.parallel
        return Note(
            "longest-path", "The longest path",
            text=f"From a token to its prediction the longest path passes {self.longest_path:,} core layers "
            f"(operations with a weight matrix): the embedding, {NUMBERS[inside]} in each of the {c.n_layers} blocks "
            f"({way}) and the unembedding. Counting every operation it is {self.longest_path_operations:,} steps. "
            "There is no loop inside: making more text means running all of it again for each new token.",
        )  # fmt: skip

    def _gpt3_note(self) -> list[Panel]:
        if self.config != PRESETS["gpt3"]:
            return []
        text = (
            "GPT-3 alternates dense attention with locally banded sparse attention (Brown et al. 2020, section 2.1). "
            "These figures count every layer as dense, an upper bound for attention between positions; parameters "
            "are not affected."
        )
        return [Note("sparse", "Sparse attention", text=text)]


@analysis(place=90, runs=True)
def architecture(
    model: HookedGPT | GPTConfig,
    tokens: str | Sequence[str] | Tensor | None = None,
    *,
    length: Annotated[int | None, "tokens per sequence (default: those of the text, else the whole context)"] = None,
    batch: Annotated[int | None, "sequences at once (default: those of the text, else 1)"] = None,
    precision: Annotated[Number | None, "of weights and activations (default: the model's; presets float32)"] = None,
) -> ArchitectureResult:
    """Shapes, parameters, FLOPs, memory and the longest path of a model, or of a config without any weights.

    Args:
        model: a model, or a config such as `interp.models.config.PRESETS["gpt3"]`.
        tokens: only its length and number of texts are used; with a config ids [batch pos].

    Raises InputError for a length or batch below 1, a length beyond the context, or a text with a config.
    """
    if isinstance(model, GPTConfig):
        if tokens is not None and not isinstance(tokens, Tensor):
            raise InputError(
                "a text for a model of which only the shape is known: it has no tokenizer",
                "expected no text",
                "give a length and a batch instead (--length 100 --batch 1)",
            )
        if tokens is not None:
            ids = torch.atleast_2d(tokens)
            check_tokens(ids, model.n_ctx, model.d_vocab)
            batch, length = (given or size for given, size in zip((batch, length), ids.shape, strict=True))
            tokens = None
        with torch.device("meta"):
            model = HookedGPT(model)
        precision = precision or "float32"
    config = model.config
    if tokens is not None:
        texts = sequences(model, tokens)
        length = max(ids.shape[1] for ids in texts) if length is None else length
        batch = len(texts) if batch is None else batch
    length, batch = config.n_ctx if length is None else length, 1 if batch is None else batch
    if not 1 <= length <= config.n_ctx:
        raise InputError(f"length {length}", f"expected 1 to {config.n_ctx}, this model's context")
    if batch < 1:
        raise InputError(f"batch {batch}", "expected at least 1")
    name = precision or str(model.dtype).removeprefix("torch.")
    operations = operations_of(config, length, batch)
    parts = count_parameters(model)
    lengths = _lengths(config.n_ctx)
    linear, between = (
        np.array([_forward_flops(config, n, core) for n in lengths], dtype=float) for core in (True, False)
    )
    width = config.n_heads * config.d_head
    per_token = np.array(lengths, dtype=float) * config.n_layers * BYTES[name]
    per_position = sum(op.flops * op.count for op in operations_of(config, 1, 1) if op.core)
    return ArchitectureResult(
        config=config,
        length=length,
        batch=batch,
        dtype=name,
        parameters={"total": sum(parts.values()), "by_component": parts},
        operations=operations,
        flops=sum(op.flops * op.count for op in operations),
        memory=_memory(model, sum(parts.values()), length, batch, BYTES[name]),
        longest_path=longest_path(operations, core_only=True),
        longest_path_operations=longest_path(operations, core_only=False),
        lengths=lengths,
        flops_linear=linear,
        flops_attention=between,
        kv_bytes=2 * config.n_kv_heads * config.d_head * per_token,
        pattern_bytes=config.n_heads * per_token * np.array(lengths),
        even_length=per_position / (4 * width * config.n_layers),
    )


def count_parameters(model: HookedGPT) -> dict[str, int]:
    """Parameters by component, counted on the model; a tied unembedding counts once, with the embedding."""
    norm = NORMS[model.config.norm]
    parts = dict.fromkeys(("embedding", "positions", "attention", "mlp", norm, "unembedding"), 0)
    for name, parameter in model.named_parameters():
        if name in ("W_E", "W_pos"):
            part = "embedding" if name == "W_E" else "positions"
        elif name in ("unembed", "b_U"):
            part = "unembedding"
        else:
            part = norm if isinstance(model.get_submodule(name.rpartition(".")[0]), Norm) else name.split(".")[2]
        parts[part if part != "attn" else "attention"] += parameter.numel()
    return parts


def describe(config: GPTConfig) -> pd.DataFrame:
    """Columns part, kind: what the model is made of, in words."""
    c = config
    shared = "" if c.n_kv_heads == c.n_heads else f" over {c.n_kv_heads} of keys and values"
    place = {"pre": "before", "both": "before and after", "post": "after"}[c.norm_place]
    of_each = {"head": "each by itself", "flat": "all heads as one", None: ""}[c.qk_norm]
    turned = f"rotary, base {c.rotary_base:,.0f}, {c.rotary_dim} of {c.d_head} coordinates of each head"
    windowed = [w for w in c.windows or () if w is not None]
    caps = (("scores", c.attn_softcap), ("logits", c.logit_softcap))
    act = ACTIVATIONS.get(c.act_fn, c.act_fn)
    order = "attention and MLP side by side" if c.parallel else "attention, then MLP"
    rows = {
        "block": "attention alone" if c.attn_only else order,
        "norm": f"{NORMS[c.norm]} {place} each part" if c.norm else "none",
        "norm of queries and keys": of_each,
        "positions": turned if c.positions == "rotary" else c.positions or "none",
        "base in layers with a window": f"{c.local_rotary_base:,.0f}" if c.local_rotary_base and windowed else "",
        "heads": f"{c.n_heads} of queries{shared}, width {c.d_head}",
        "who is seen": "itself and all before" if c.causal else "all",
        "windows": f"{len(windowed)} of {c.n_layers} layers see at most {max(windowed):,}" if windowed else "",
        "MLP": "none" if c.attn_only else f"{act}, {'gated, ' * c.gated}{c.d_mlp:,} wide",
        "caps": ", ".join(f"{what} within ±{cap:g}" for what, cap in caps if cap is not None),
        "embeddings scaled by": f"{c.embed_scale:.4g}" if c.embed_scale != 1 else "",
        "unembedding": "the embedding used again" if c.tied else "its own",
    }
    return pd.DataFrame([(part, kind) for part, kind in rows.items() if kind], columns=["part", "kind"])


def _memory(model: HookedGPT, parameters: int, length: int, batch: int, item: int) -> dict[str, int]:
    c = model.config
    scale = item / model.dtype.itemsize
    return {
        "weights": parameters * item,
        "logits": batch * length * c.d_vocab_out * item,
        "residual stream, one place": batch * length * c.d_model * item,
        "keys and values for generation": 2 * c.n_layers * batch * length * c.n_kv_heads * c.d_head * item,
        "attention patterns, all heads": c.n_layers * batch * c.n_heads * length**2 * item,
        "every activation (run_with_cache)": round(model.cache_bytes(batch, length) * scale),
        "training state (weights, gradients, Adam's two averages)": 4 * parameters * item,
    }


def _lengths(n_ctx: int) -> tuple[int, ...]:
    """Powers of two from 64 to at least 16 contexts and 32,768 tokens, and the context itself."""
    last = max(16 * n_ctx, 32768)
    powers = [2**k for k in range(6, 64) if 2**k <= last]
    return tuple(sorted({*powers, n_ctx}))


def _forward_flops(config: GPTConfig, length: int, core: bool) -> int:
    return sum(op.flops * op.count for op in operations_of(config, length, 1) if op.core == core)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def _short(n: float) -> str:
    """A large number in words: 124.4 million."""
    for size, word in ((1e15, "quadrillion"), (1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if n >= size:
            return f"{n / size:.1f} {word}"
    return f"{n:,.0f}"


def _size(n: float) -> str:
    """Bytes in the nearest unit, powers of 1,000."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:,.0f} B"
