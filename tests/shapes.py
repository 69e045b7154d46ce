"""Small random models in the shapes of the families: what a test runs on when it says that something holds for all."""

from typing import Any

import torch
from conftest import make_gpt

from interp.models.gpt import HookedGPT

LLAMA: dict[str, Any] = {
    "n_kv_heads": 2, "d_head": 6, "norm": "rms", "gated": True, "act_fn": "silu", "bias": False, "positions": "rotary",
    "tied": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": LLAMA,
    "qwen3": LLAMA | {"n_kv_heads": 1, "qk_norm": "head"},
    "mistral": LLAMA | {"windows": (3, 3)},
    "gemma2": LLAMA | {
        "norm_place": "both", "gain_offset": 1.0, "act_fn": "gelu_new", "attn_softcap": 5.0, "logit_softcap": 4.0,
        "windows": (3, None), "embed_scale": 32**0.5, "tied": True, "attn_scale": 0.3,
    },
    "gemma3": LLAMA | {
        "n_kv_heads": 1, "norm_place": "both", "gain_offset": 1.0, "act_fn": "gelu_new", "qk_norm": "head",
        "windows": (3, None), "local_rotary_base": 100.0, "embed_scale": 32**0.5, "tied": True,
    },
    "olmo2": LLAMA | {"norm_place": "post", "qk_norm": "flat"},
    "neox": {"parallel": True, "positions": "rotary", "rotary_dim": 4, "tied": False, "act_fn": "gelu"},
    "gptj": {
        "parallel": True, "shared_norm": True, "positions": "rotary", "rotary_dim": 4, "rotary_interleaved": True,
        "bias_qkv": False, "bias_out": False, "unembed_bias": True, "tied": False,
    },
    "attention only": {"attn_only": True},
    "bidirectional": {"causal": False, "act_fn": "relu"},
    "no norm": {"norm": None, "positions": None, "bias": False},
}  # fmt: skip
"""Name -> config entries beside those of `make_gpt`."""


def toy(shape: str, **changes: Any) -> HookedGPT:
    """A model of this shape; `changes` go to `make_gpt`."""
    return make_gpt(**(SHAPES[shape] | changes))


def tokens_for(model: HookedGPT, batch: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, model.config.d_vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
