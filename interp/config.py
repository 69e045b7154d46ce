"""The shape of a GPT-2-style model, and the presets of the published sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from interp.errors import InputError, LoadError

Activation = Literal["gelu_new", "gelu"]


class BlockShape(Protocol):
    """What attention, MLP and layer norm read of a config: GPT-2's or another's."""

    @property
    def n_heads(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_head(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def act_fn(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def bias(self) -> bool: ...


def complete(config: BlockShape, counts: Sequence[str]) -> None:
    """Fill in the widths that a config left at 0. Raises InputError for one of `counts` below 1, or no even d_head."""
    for name in counts:
        if getattr(config, name) < 1:
            raise InputError(f"config: {name} = {getattr(config, name)}", "expected a whole number of at least 1")
    if config.d_head == 0:
        if config.d_model % config.n_heads:
            raise InputError(
                f"config: d_model = {config.d_model} is not a multiple of n_heads = {config.n_heads}",
                "expected d_model = n_heads x d_head, or d_head given",
            )
        object.__setattr__(config, "d_head", config.d_model // config.n_heads)
    if config.d_mlp == 0:
        object.__setattr__(config, "d_mlp", 4 * config.d_model)


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """A GPT-2-style model: learned positions, layer norm before each sub-block and after the last, GELU."""

    n_layers: int
    n_heads: int
    d_model: int
    n_ctx: int
    """Longest sequence, in tokens."""
    d_vocab: int
    d_head: int = 0
    """Width of one head; 0 means d_model / n_heads."""
    d_mlp: int = 0
    """Width of the MLP's hidden layer; 0 means 4 d_model."""
    act_fn: Activation = "gelu_new"
    """`gelu_new` is GPT-2's tanh approximation, `gelu` the exact form."""
    eps: float = 1e-5
    """Added to the variance in layer norm."""
    bias: bool = True
    """Whether linear layers have biases (layer norms always do)."""
    tied: bool = True
    """Whether the unembedding is the embedding's transpose."""
    unembed_bias: bool = False
    """Whether logits have a bias; only models with folded layer norms do."""
    init_std: float = 0.02
    """Standard deviation of random weights (GPT-2's initialisation)."""
    windows: tuple[int | None, ...] | None = None
    """Locally banded attention, one entry a layer: w lets a query see itself and the w - 1 positions before it, None
    all of them. None for the whole means that every layer is dense."""

    def __post_init__(self) -> None:
        complete(self, ("n_layers", "n_heads", "d_model", "n_ctx", "d_vocab"))
        if self.act_fn not in ("gelu_new", "gelu"):
            raise InputError(f"config: act_fn = {self.act_fn!r}", "expected 'gelu_new' or 'gelu'")
        if self.windows is not None:
            self._check_windows(self.windows)

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

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
}


def from_hf(data: dict[str, Any], where: str) -> GPTConfig:
    """The config in a Hugging Face `config.json` of type gpt2. `where` names the file in messages.

    Raises LoadError for another architecture, or an option that would change the function and is not supported.
    """
    if data.get("model_type", "gpt2") != "gpt2":
        other = {"marian": "HookedEncoderDecoder", "bert": "HookedEncoder", "vit": "HookedEncoder"}
        raise LoadError(
            f"{where}: model_type = {data['model_type']!r}",
            "expected 'gpt2', the one decoder-only architecture supported",
            f"use {other[data['model_type']]}.from_pretrained" if data["model_type"] in other else "",
        )
    for key, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if data.get(key, usual) != usual:
            raise LoadError(f"{where}: {key} = {data[key]}", f"expected {usual}; other values are not supported")
    act = data.get("activation_function", "gelu_new")
    if act not in _ACTIVATIONS:
        raise LoadError(f"{where}: activation_function = {act!r}", f"expected one of {', '.join(_ACTIVATIONS)}")
    try:
        return GPTConfig(
            n_layers=data["n_layer"],
            n_heads=data["n_head"],
            d_model=data["n_embd"],
            n_ctx=data.get("n_positions", data.get("n_ctx", 1024)),
            d_vocab=data["vocab_size"],
            d_mlp=data.get("n_inner") or 0,
            act_fn=_ACTIVATIONS[act],
            eps=data.get("layer_norm_epsilon", 1e-5),
            bias=data.get("interp_bias", True),
            tied=data.get("tie_word_embeddings", True),
            init_std=data.get("initializer_range", 0.02),
            windows=data.get("interp_windows"),
        )
    except (KeyError, TypeError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise LoadError(f"{where}: {what}", "expected a GPT-2 config.json") from None


def to_hf(config: GPTConfig) -> dict[str, Any]:
    """The `config.json` that `transformers` reads for this config. It knows no windows: it runs all layers dense."""
    ours = {} if config.windows is None else {"interp_windows": list(config.windows)}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.d_model,
        "n_positions": config.n_ctx,
        "vocab_size": config.d_vocab,
        "n_inner": config.d_mlp,
        "activation_function": config.act_fn,
        "layer_norm_epsilon": config.eps,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **ours,
    }
