"""A decoder's forward pass as a list of operations: shapes, parameters and FLOPs of each, from the config alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.models.config import GPTConfig

NORMS = {"layer": "layer norm", "rms": "RMS norm", None: "norm"}
ACTIVATIONS = {"gelu_new": "gelu", "relu2": "squared relu"}
"""Names of non-linearities that are not their own."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of the forward pass, for one layer, with the shapes it has at this length and batch."""

    name: str
    reads: tuple[str, ...]
    """Operations whose outputs it takes; "tokens" is the input, "stream" the residual stream so far."""
    axes: str
    """Names of the axes of the output."""
    output: tuple[int, ...]
    """Shape of the output."""
    part: str = ""
    """The component whose parameters it uses: embedding, positions, attention, mlp, a kind of norm, unembedding."""
    weight: tuple[int, ...] = ()
    """Shape of the weight matrix, [in out]; empty where there is none."""
    parameters: int = 0
    """Weights and biases, one layer."""
    flops: int = 0
    """Two per multiply-add, one layer."""
    count: int = 1
    """How many times the model holds it: the number of layers for operations inside blocks."""
    block: bool = False
    """Whether it lies inside a block. The last of a block, or of what is before the blocks, gives the stream."""

    @property
    def core(self) -> bool:
        """Whether it counts as a core layer: whether it has a weight matrix."""
        return len(self.weight) == 2


def operations_of(config: GPTConfig, length: int, batch: int) -> tuple[Operation, ...]:
    """Every operation of the forward pass with its shapes, in order; those of the blocks once."""
    return _Steps(config, length, batch).all()


class _Steps:
    """Makes the operations of one config; each method those of one part."""

    def __init__(self, config: GPTConfig, length: int, batch: int) -> None:
        self.config, self.places, self.length, self.batch = config, batch * length, length, batch
        self.norm = NORMS[config.norm]
        self.before = config.norm is not None and config.norm_place in ("pre", "both")
        self.after = config.norm is not None and config.norm_place in ("both", "post")

    def all(self) -> tuple[Operation, ...]:
        c = self.config
        inside = [*self._attention(), *([] if c.attn_only else self._mlp())]
        inside = [Operation(**{**vars(op), "count": c.n_layers, "block": True}) for op in inside]
        return (*self._embedding(), *inside, *self._end())

    def _one(self, name: str, reads: str, width: int | None = None, **rest: Any) -> Operation:
        """An operation with an output [batch pos width], the residual stream's unless said otherwise."""
        shape = {"axes": "batch pos d_model", "output": (self.batch, self.length, width or self.config.d_model)}
        return Operation(name=name, reads=tuple(reads.split(", ")), **(shape | rest))

    def _heads(self, kv: bool = False) -> dict[str, Any]:
        count = self.config.n_kv_heads if kv else self.config.n_heads
        axes = "batch pos kv_head d_head" if kv and count < self.config.n_heads else "batch pos head d_head"
        return {"axes": axes, "output": (self.batch, self.length, count, self.config.d_head)}

    def _linear(self, part: str, n_in: int, n_out: int, bias: bool | None) -> dict[str, Any]:
        parameters, flops = (n_in + bool(bias)) * n_out, 2 * self.places * n_in * n_out
        return {"part": part, "weight": (n_in, n_out), "parameters": parameters, "flops": flops}

    def _norm(self, width: int = 0) -> dict[str, Any]:
        each = 2 if self.config.norm == "layer" else 1
        return {"part": self.norm, "parameters": each * (width or self.config.d_model)}

    def _embedding(self) -> list[Operation]:
        c = self.config

        def table(part: str, rows: int) -> dict[str, Any]:
            return {"part": part, "weight": (rows, c.d_model), "parameters": rows * c.d_model}

        steps = [self._one("embed", "tokens", **table("embedding", c.d_vocab))]
        if c.embed_scale != 1.0:
            steps.append(self._one("scale embeddings", "embed"))
        if c.positions == "learned":
            steps += [
                self._one("embed positions", "tokens", **table("positions", c.n_ctx)),
                self._one("add positions", f"{steps[-1].name}, embed positions"),
            ]
        return steps

    def _attention(self) -> list[Operation]:
        c = self.config
        widths = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        square: dict[str, Any] = {
            "axes": "batch head query key",
            "output": (self.batch, c.n_heads, self.length, self.length),
        }
        mixing: dict[str, Any] = {"flops": 2 * self.places * self.length * widths[0]}
        steps = [self._one(f"{self.norm} 1", "stream", **self._norm())] if self.before else []
        source = steps[-1].name if steps else "stream"
        for name, kv in (("queries", False), ("keys", True), ("values", True)):
            linear = self._linear("attention", c.d_model, widths[kv], c.bias_qkv)
            steps.append(self._one(name, source, **self._heads(kv), **linear))
        met = ["queries", "keys"]
        if c.qk_norm is not None:
            sizes = widths if c.qk_norm == "flat" else (c.d_head, c.d_head)
            for i, size in enumerate(sizes):
                steps.append(self._one(f"{self.norm} of {met[i]}", met[i], **self._heads(i == 1), **self._norm(size)))
            met = [step.name for step in steps[-2:]]
        if c.positions == "rotary":
            steps += [self._one(f"rotate {met[i].split()[-1]}", met[i], **self._heads(i == 1)) for i in range(2)]
            met = [step.name for step in steps[-2:]]
        steps.append(self._one("scores", ", ".join(met), **square, **mixing))
        if c.attn_softcap is not None:
            steps.append(self._one("cap scores", "scores", **square))
        steps += [
            self._one("softmax", steps[-1].name, **square),
            self._one("mix values", "softmax, values", **self._heads(), **mixing),
            self._one("output projection", "mix values", **self._linear("attention", widths[0], c.d_model, c.bias_out)),
        ]
        return [*steps, *self._added("attention", "stream", steps[-1].name)]

    def _mlp(self) -> list[Operation]:
        c = self.config
        hidden: dict[str, Any] = {"axes": "batch pos d_mlp", "width": c.d_mlp}
        into = hidden | self._linear("mlp", c.d_model, c.d_mlp, c.bias_mlp)
        source, steps = "stream" if c.parallel else "add attention", []
        if c.shared_norm and self.before:
            source = f"{self.norm} 1"
        elif self.before:
            steps.append(self._one(f"{self.norm} 2", source, **self._norm()))
            source = steps[0].name
        act = ACTIVATIONS.get(c.act_fn, c.act_fn)
        steps += [self._one("mlp gate" if c.gated else "mlp in", source, **into)]
        steps += [self._one(act, steps[-1].name, **hidden)]
        if c.gated:
            steps += [self._one("mlp in", source, **into), self._one("multiply by gate", f"{act}, mlp in", **hidden)]
        steps += [self._one("mlp out", steps[-1].name, **self._linear("mlp", c.d_mlp, c.d_model, c.bias_mlp))]
        return [*steps, *self._added("mlp", "add attention", "mlp out")]

    def _added(self, part: str, stream: str, written: str) -> list[Operation]:
        normed = [self._one(f"{self.norm} after {part}", written, **self._norm())] if self.after else []
        return [*normed, self._one(f"add {part}", f"{stream}, {normed[0].name if normed else written}")]

    def _end(self) -> list[Operation]:
        c = self.config
        steps = [] if c.norm is None else [self._one(f"final {self.norm}", "stream", **self._norm())]
        logits: dict[str, Any] = {"axes": "batch pos d_vocab", "width": c.d_vocab_out}
        linear = self._linear("unembedding", c.d_model, c.d_vocab_out, c.unembed_bias)
        linear["parameters"] -= c.tied * c.d_model * c.d_vocab_out
        steps.append(self._one("unembed", steps[-1].name if steps else "stream", **logits, **linear))
        return steps if c.logit_softcap is None else [*steps, self._one("cap logits", "unembed", **logits)]


def longest_path(operations: Sequence[Operation], *, core_only: bool) -> int:
    """Operations (or core layers) on the longest path from the tokens to the last operation.

    Blocks are walked one after the other: "stream" is what the operation before the block, or the block before, wrote.
    """
    blocks = [op for op in operations if op.block]
    first = operations.index(blocks[0])
    depth = {"tokens": 0}
    for part in (operations[:first], *[blocks] * blocks[0].count, operations[first + len(blocks) :]):
        for op in part:
            depth[op.name] = max(depth[name] for name in op.reads) + (op.core or not core_only)
        depth["stream"] = depth[part[-1].name]
    return depth["stream"]
