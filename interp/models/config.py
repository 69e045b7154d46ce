"""The shape of a decoder, part by part, and the presets of the published GPT-2 sizes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

from interp.errors import InputError

Activation = Literal["gelu_new", "gelu", "relu", "relu2", "silu"]
ACTIVATION_NAMES: dict[str, Activation] = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of non-linearities, and ours."""


def check_counts(config: object, names: Sequence[str]) -> None:
    """Raises InputError for one of these entries that is not a whole number of at least 1, below 2^31."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise InputError(f"config: {name} = {value!r}"[:120], "expected a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary frequencies are lowered so that a model reads texts longer than it was first trained on."""

    kind: Literal["linear", "llama3"]
    """`linear` divides all of them by `factor`; `llama3` those that turn slowly (Llama 3.1's report, section 3.4.2)."""
    factor: float
    low_freq: float = 1.0
    """With fewer turns than this over `original_ctx` a frequency is divided by `factor` ..."""
    high_freq: float = 4.0
    """... with more than this it stays; between the two it is mixed."""
    original_ctx: int = 8192
    """Context, in tokens, of the first training."""


MAY_BE_ZERO = ("eps", "gain_offset", "init_std")


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What norm, attention and MLP are built from; every kind of model's config extends it."""

    n_heads: int
    d_model: int
    n_kv_heads: int = 0
    """Heads of keys and values; query head h reads number h // (n_heads / n_kv_heads). 0 means n_heads."""
    d_head: int = 0
    """Width of one head; 0 means d_model / n_heads."""
    d_mlp: int = -1
    """Width of the MLP's hidden layer; -1 means 4 d_model."""
    act_fn: Activation = "gelu_new"
    """`gelu_new` is GPT-2's tanh approximation, `gelu` the exact form, `relu2` the squared ReLU."""
    gated: bool = False
    """Whether the hidden layer is act(x W_gate) times x W_in (Shazeer 2020), rather than act(x W_in)."""
    norm: Literal["layer", "rms"] | None = "layer"
    """Layer norm (centre, divide by the standard deviation), RMS norm (divide by the root mean square), or none."""
    eps: float = 1e-5
    """Added to the variance, or mean square, in norms."""
    gain_offset: float = 0.0
    """Added to a norm's stored gain: 1 in Gemma's files."""
    bias: bool = True
    """Whether linear layers have biases, where the next three do not say otherwise (layer norms always do)."""
    bias_qkv: bool | None = None
    bias_out: bool | None = None
    """Of the attention's output projection."""
    bias_mlp: bool | None = None
    qk_norm: Literal["head", "flat"] | None = None
    """Whether queries and keys pass a norm: each head by itself (Qwen 3, Gemma 3), or all as one vector (OLMo 2)."""
    attn_scale: float = 0.0
    """What query times key is multiplied by; 0 means 1 / sqrt(d_head)."""
    attn_softcap: float | None = None
    """c: scores become c tanh(score / c) before they are masked (Gemma 2)."""

    def complete(self, counts: Sequence[str]) -> None:
        """Fill in what was left open. Raises InputError for one of `counts` below 1, or parts that do not fit."""
        check_counts(self, counts)
        fill = partial(object.__setattr__, self)
        fill("n_kv_heads", self.n_kv_heads or self.n_heads)
        if type(self.n_kv_heads) is not int or self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise InputError(f"config: n_kv_heads = {self.n_kv_heads!r}", f"expected a divisor of {self.n_heads} heads")
        if self.d_head == 0:
            if self.d_model % self.n_heads:
                raise InputError(
                    f"config: d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}",
                    "expected d_model = n_heads x d_head, or d_head given",
                )
            fill("d_head", self.d_model // self.n_heads)
        if self.d_mlp == -1:
            fill("d_mlp", 4 * self.d_model)
        check_counts(self, ("d_head",))
        for name in ("bias_qkv", "bias_out", "bias_mlp"):
            fill(name, self.bias if getattr(self, name) is None else getattr(self, name))
        fill("attn_scale", self.attn_scale or self.d_head**-0.5)
        self._check_kinds()
        acts = dict.fromkeys(ACTIVATION_NAMES.values())
        self.check_choices({"act_fn": acts, "norm": ("layer", "rms", None), "qk_norm": ("head", "flat", None)})

    def _check_kinds(self) -> None:
        """Raises InputError for a switch that is no bool, a number that is none, or one that makes no sense."""
        for entry in fields(self):
            value, name = getattr(self, entry.name), entry.name
            if entry.type is bool or name in ("bias_qkv", "bias_out", "bias_mlp"):
                if not isinstance(value, bool):
                    raise InputError(f"config: {name} = {value!r}", "expected True or False")
            elif entry.type in (float, float | None) and not (value is None and entry.type is not float):
                real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                if not real or (name != "length_penalty" and (value < 0 or (value == 0 and name not in MAY_BE_ZERO))):
                    raise InputError(f"config: {name} = {value!r}", "expected a number above 0")
            elif name == "rotary_scaling" and not isinstance(value, (RotaryScaling, type(None))):
                raise InputError(f"config: {name} = {value!r}", "expected a RotaryScaling, or None")

    def check_choices(self, choices: Mapping[str, Iterable[object]]) -> None:
        """Raises InputError for an entry that is none of its choices."""
        for name, known in choices.items():
            if getattr(self, name) not in list(known):
                allowed = ", ".join(map(repr, known))
                raise InputError(f"config: {name} = {getattr(self, name)!r}", f"expected one of {allowed}")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockShape):
    """The shape of a decoder. Left alone, the entries are GPT-2's: learned positions, a layer norm before each part and
    after the last, GELU, one key-value head a query head, biases everywhere, a tied unembedding."""

    n_layers: int
    n_ctx: int
    """Longest sequence, in tokens."""
    d_vocab: int
    d_vocab_out: int = 0
    """Number of logits; 0 means d_vocab."""
    attn_only: bool = False
    """Whether blocks have no MLP."""
    causal: bool = True
    """Whether a position sees only itself and those before it."""
    norm_place: Literal["pre", "both", "post"] = "pre"
    """Norms of what a sub-block reads (`pre`), also of what it writes, before it is added (`both`: Gemma 2 and 3), or
    only of that (`post`: OLMo 2). A final norm follows the last block in any case."""
    positions: Literal["learned", "rotary"] | None = "learned"
    rotary_base: float = 10000.0
    rotary_dim: int = 0
    """How many of a head's coordinates turn (Su et al. 2021); 0 means all."""
    rotary_interleaved: bool = False
    """Whether neighbours turn together (GPT-J), rather than coordinate i with i + rotary_dim / 2."""
    rotary_scaling: RotaryScaling | None = None
    local_rotary_base: float | None = None
    """Base of the layers that have a window, unscaled; None: as the others."""
    parallel: bool = False
    """Whether attention and MLP both read what enters the block (GPT-J, NeoX), rather than one after the other."""
    shared_norm: bool = False
    """Whether in a parallel block both read through one norm."""
    embed_scale: float = 1.0
    """What embeddings are multiplied by: sqrt(d_model) in Gemma."""
    logit_softcap: float | None = None
    """c: logits become c tanh(logit / c) (Gemma 2)."""
    tied: bool = True
    """Whether the unembedding is the embedding's transpose."""
    unembed_bias: bool = False
    """Whether logits have a bias."""
    init_std: float = 0.02
    """Standard deviation of random weights (GPT-2's initialisation)."""
    windows: tuple[int | None, ...] | None = None
    """Locally banded attention, one entry a layer: w lets a query see itself and the w - 1 positions before it, None
    all of them. None for the whole means that every layer is dense."""

    def __post_init__(self) -> None:
        fill = partial(object.__setattr__, self)
        if self.attn_only and self.d_mlp == -1:
            fill("d_mlp", 0)
        self.complete(("n_layers", "n_heads", "d_model", "n_ctx", "d_vocab"))
        if not self.attn_only and (type(self.d_mlp) is not int or self.d_mlp < 1):
            raise InputError(f"config: d_mlp = {self.d_mlp!r}", "expected at least 1, or attn_only=True for no MLP")
        self.check_choices({"norm_place": ("pre", "both", "post"), "positions": ("learned", "rotary", None)})
        fill("d_vocab_out", self.d_vocab_out or self.d_vocab)
        check_counts(self, ("d_vocab_out",))
        for wrong, what in (
            (self.attn_only and (self.d_mlp or self.gated or self.parallel), "an MLP's parts with attn_only=True"),
            (self.shared_norm and not self.parallel, "shared_norm without parallel=True"),
            (self.parallel and self.norm_place != "pre", "norms of what a parallel block writes"),
            (self.norm is None and (self.norm_place != "pre" or self.qk_norm), "places of norms with norm=None"),
            (self.tied and self.d_vocab_out != self.d_vocab, "another d_vocab_out with tied=True"),
            (not self.causal and self.windows is not None, "windows with causal=False"),
        ):
            if wrong:
                raise InputError(f"config: {what}", "expected parts that go together; see GPTConfig's fields")
        self._check_rotary()
        if self.windows is not None:
            self._check_windows(self.windows)

    def _check_rotary(self) -> None:
        if self.positions != "rotary":
            return
        if self.rotary_dim == 0:
            object.__setattr__(self, "rotary_dim", self.d_head)
        if type(self.rotary_dim) is not int or self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_head:
            raise InputError(
                f"config: rotary_dim = {self.rotary_dim!r}", f"expected an even number up to {self.d_head}"
            )

    def _check_windows(self, windows: Sequence[int | None]) -> None:
        good = isinstance(windows, Sequence) and len(windows) == self.n_layers
        if not good or not all(w is None or (type(w) is int and w >= 1) for w in windows):
            raise InputError(
                f"config: windows = {windows!r}"[:120],
                f"expected {self.n_layers} entries, one a layer: a whole number of at least 1, or None for dense",
            )
        object.__setattr__(self, "windows", tuple(windows) if any(w is not None for w in windows) else None)


def _preset(n_layers: int, n_heads: int, d_model: int) -> GPTConfig:
    return GPTConfig(n_layers=n_layers, n_heads=n_heads, d_model=d_model, n_ctx=1024, d_vocab=50257)


PRESETS: dict[str, GPTConfig] = {
    "gpt2": _preset(12, 12, 768),
    "gpt2-medium": _preset(24, 16, 1024),
    "gpt2-large": _preset(36, 20, 1280),
    "gpt2-xl": _preset(48, 25, 1600),
    "distilgpt2": _preset(6, 12, 768),
    "gpt3": GPTConfig(n_layers=96, n_heads=96, d_model=12288, n_ctx=2048, d_vocab=50257),
}
"""Shapes of known models, which need neither weights nor network."""

UNPUBLISHED = frozenset({"gpt3"})
"""Presets whose weights nobody can load."""


def hook_shape(config: BlockShape, name: str, batch: int, queries: int, keys: int) -> tuple[int, ...]:
    """The shape of an activation whose queries (and the residual stream they write to) and keys have these lengths."""
    last = name.rsplit(".", 1)[-1]
    if last in ("hook_k", "hook_v", "hook_rot_k"):
        return (batch, keys, config.n_kv_heads, config.d_head)
    if last in ("hook_q", "hook_rot_q", "hook_z"):
        return (batch, queries, config.n_heads, config.d_head)
    if last in ("hook_attn_scores", "hook_pattern"):
        return (batch, config.n_heads, queries, keys)
    if last in ("hook_result", "hook_q_input"):
        return (batch, queries, config.n_heads, config.d_model)
    if last in ("hook_k_input", "hook_v_input"):
        return (batch, queries, config.n_kv_heads, config.d_model)
    if last in ("hook_pre", "hook_pre_linear", "hook_post") and ".mlp." in name:
        return (batch, queries, config.d_mlp)
    return (batch, queries, 1 if last == "hook_scale" else config.d_model)
