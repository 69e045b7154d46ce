"""Every decoder family as `transformers` builds it: one table of tiny, odd shapes with random weights; the oracle.

A shape is odd where a wrong reading would show: head width other than d_model / n_heads, groups of three query heads,
windows shorter than the text, part of a head turning, gains and biases that are neither one nor zero.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor, nn

VOCAB, LENGTH = 61, 11
NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "vocab_size": VOCAB}
LLAMA: dict[str, Any] = NO_SPECIAL | {
    "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 50, "max_position_embeddings": 40,
}  # fmt: skip
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
GPT2: dict[str, Any] = NO_SPECIAL | {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 40}
GEMMA2: dict[str, Any] = LLAMA | {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 3}
GEMMA3: dict[str, Any] = GEMMA2 | {"num_hidden_layers": 3, "sliding_window_pattern": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VISION = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One shape of one family."""

    name: str
    model_type: str
    config: Mapping[str, Any]
    """Entries of the `transformers` config."""
    faults: Mapping[str, Any] = field(default_factory=dict)
    """Entry of the `config.json` (dots lead inwards) -> another value, with which the model is another function."""
    old: Mapping[str, Any] = field(default_factory=dict)
    """How the files on the hub, which older versions wrote, say the same: entries to set, or (None) to leave out."""


CASES = [
    Case("gpt2", "gpt2", GPT2 | {"n_inner": 50}, {"activation_function": "relu"}),
    Case("gpt2 untied", "gpt2", GPT2 | {"tie_word_embeddings": False}, {"layer_norm_epsilon": 0.1}),
    Case(
        "gpt_neo", "gpt_neo",
        NO_SPECIAL | {
            "hidden_size": 48, "num_heads": 6, "num_layers": 3, "max_position_embeddings": 40, "intermediate_size": 50,
            "attention_types": [[["global", "local"], 1], [["local"], 1]], "window_size": 3,
        },
        {"window_size": 4, "attention_layers": ["local", "local", "local"]},
    ),
    Case(
        "opt", "opt",
        NO_SPECIAL | {
            "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "ffn_dim": 50,
            "max_position_embeddings": 40,
        },
        {"activation_function": "gelu"},
    ),
    Case(
        "opt without biases", "opt",
        NO_SPECIAL | {
            "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "ffn_dim": 50, "enable_bias": False,
            "max_position_embeddings": 40, "tie_word_embeddings": False,
        },
    ),
    Case("gpt_bigcode", "gpt_bigcode", GPT2, {"activation_function": "relu"}),
    Case("gpt_bigcode, a kv head a head", "gpt_bigcode", GPT2 | {"multi_query": False, "n_inner": 50}),
    Case(
        "llama", "llama", LLAMA | {"head_dim": 10}, {"rope_parameters.rope_theta": 5000.0, "rms_norm_eps": 0.1},
        {"rope_parameters": None, "rope_theta": 10000.0},
    ),
    Case(
        "llama 1", "llama", LLAMA | {"num_key_value_heads": None},
        {"hidden_act": "gelu"}, {"rope_parameters": None, "head_dim": None, "num_key_value_heads": None},
    ),
    Case(
        "llama 3.2", "llama", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
        {f"rope_parameters.{key}": value for key, value in (
            ("factor", 4.0), ("high_freq_factor", 3.0), ("low_freq_factor", 0.3),
            ("original_max_position_embeddings", 40),
        )},
        {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": LLAMA3},
    ),
    Case(
        "llama, one kv head, biases, linear scaling", "llama",
        LLAMA | {
            "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        },
        {"rope_parameters.factor": 4.0},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    ),
    Case(
        "mistral", "mistral", LLAMA | {"sliding_window": 3, "head_dim": 4}, {"sliding_window": 4},
        {"rope_parameters": None, "rope_theta": 10000.0, "layer_types": None},
    ),
    Case("mistral, dense", "mistral", LLAMA | {"sliding_window": None}, {"sliding_window": 10}),
    Case(
        "qwen2", "qwen2",
        LLAMA | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        {"sliding_window": 4, "layer_types": ["sliding_attention"] * 3},
        {"rope_parameters": None, "rope_theta": 10000.0, "layer_types": None},
    ),
    Case("qwen2, dense", "qwen2", LLAMA | {"tie_word_embeddings": True, "sliding_window": 3, "max_window_layers": 0}),
    Case(
        "qwen3", "qwen3", LLAMA | {"head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_parameters.rope_theta": 1e5},
        {"rope_parameters": None, "rope_theta": 1e6, "layer_types": None},
    ),
    Case(
        "qwen3, windows, biases", "qwen3",
        LLAMA | {
            "head_dim": 4, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4,
            "max_window_layers": 1, "num_key_value_heads": 3, "tie_word_embeddings": True,
        },
        {"sliding_window": 3},
    ),
    Case(
        "gemma", "gemma", LLAMA | {"num_key_value_heads": 1, "head_dim": 10},
        {"rope_parameters.rope_theta": 5000.0, "hidden_act": "silu"},
        {"rope_parameters": None, "rope_theta": 10000.0, "hidden_act": "gelu", "tie_word_embeddings": None},
    ),
    Case(
        "gemma2", "gemma2", GEMMA2 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
        {
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0, "query_pre_attn_scalar": 8,
            "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"],
        },
        {"rope_parameters": None, "rope_theta": 10000.0, "layer_types": None, "hidden_act": "gelu_pytorch_tanh"},
    ),
    Case("gemma2, the caps of the class", "gemma2", GEMMA2, {"final_logit_softcapping": 60.0}),
    Case(
        "gemma3", "gemma3_text", GEMMA3,
        {
            "sliding_window": 4, "query_pre_attn_scalar": 8, "rope_parameters.sliding_attention.rope_theta": 1000.0,
            "rope_parameters.full_attention.rope_theta": 1e5,
        },
        {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "layer_types": None},
    ),
    Case(
        "gemma3, linear scaling", "gemma3_text",
        GEMMA3 | {
            "num_key_value_heads": 1, "final_logit_softcapping": 5.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
        },
        {"rope_parameters.full_attention.factor": 4.0},
        {
            "rope_parameters": None, "rope_theta": 100.0, "rope_local_base_freq": 30.0, "layer_types": None,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    Case(
        "gemma3 of the multimodal files", "gemma3",
        {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": VOCAB - 1},
        {"text_config.sliding_window": 4},
    ),
    Case("olmo2", "olmo2", LLAMA, {"rms_norm_eps": 0.1}, {"rope_parameters": None, "rope_theta": 10000.0}),
    Case("olmo2, biases", "olmo2", LLAMA | {"attention_bias": True, "num_key_value_heads": 6}),
    Case(
        "gpt_neox", "gpt_neox", NEOX | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters.partial_rotary_factor": 0.25, "use_parallel_residual": False, "hidden_act": "gelu_new"},
        {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 10000},
    ),
    Case(
        "gpt_neox, sequential", "gpt_neox",
        NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
        {"use_parallel_residual": True},
    ),
    Case("gptj", "gptj", GPT2 | {"rotary_dim": 4, "n_inner": 50}, {"rotary_dim": 6}),
    Case(
        "phi", "phi", LLAMA,
        {"rope_parameters.partial_rotary_factor": 0.25, "hidden_act": "relu"},
        {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    Case(
        "phi3", "phi3", LLAMA | {"sliding_window": 4, "num_key_value_heads": 3}, {"sliding_window": 3},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": None},
    ),
    Case(
        "phi3, partial rotation", "phi3",
        LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters.partial_rotary_factor": 1.0},
    ),
]  # fmt: skip


def build(case: Case, *, seed: int = 0) -> nn.Module:
    """A model of the case, its weights so large that each of them matters."""
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    auto = (
        transformers.AutoModelForImageTextToText
        if "vision_config" in case.config
        else transformers.AutoModelForCausalLM
    )
    torch.manual_seed(seed)
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.25)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
            else:  # a norm's gain, which Gemma's files keep less one
                nn.init.normal_(parameter, mean=0.0 if "gemma" in case.model_type else 1.0, std=0.3)
    return model


def oracle(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model in a directory, as `transformers` loads it."""
    data = json.loads((directory / "config.json").read_text())
    auto = transformers.AutoModelForImageTextToText if "vision_config" in data else transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, attn_implementation="eager", dtype=dtype).eval()


def edited(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a `config.json` with these entries changed, or (None) left out."""
    data = json.loads(json.dumps(data))
    for path, value in changes.items():
        *inward, last = path.split(".")
        place = data
        for key in inward:
            place = place[key]
        place.pop(last, None) if value is None else place.__setitem__(last, value)
    return data


def sparse(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """A `config.json` that says only what differs from its class's defaults, as some files on the hub do."""
    data, usual = config.to_dict(), type(config)().to_dict()
    data = {key: value for key, value in data.items() if value != usual.get(key)}
    if "text_config" in data:
        data["text_config"] = sparse(config.text_config)
    return data | {"model_type": config.model_type}


def blocks_of(hf: nn.Module) -> nn.ModuleList:
    """The blocks of a decoder of `transformers`."""
    decoder = hf.get_decoder()
    return getattr(decoder, "layers", None) or decoder.h


def output_projection(hf: nn.Module, layer: int) -> nn.Linear:
    """What reads the heads' mixed values, side by side."""
    ours = {"attn", "self_attn", "attention", "o_proj", "dense", "out_proj", "c_proj"}
    return next(
        module
        for name, module in blocks_of(hf)[layer].named_modules()
        if "." in name and ours.issuperset(name.split(".")) and not list(module.children())
    )


@torch.no_grad()
def run(hf: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Logits, and every residual stream: what enters each block and what leaves the last, before the final norm."""
    streams: list[Tensor] = []
    blocks = blocks_of(hf)

    def enters(_, args, kwargs):
        streams.append(args[0] if args else kwargs["hidden_states"])

    def leaves(_, args, out):
        streams.append(out if isinstance(out, Tensor) else out[0])

    handles = [block.register_forward_pre_hook(enters, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(leaves))
    mask = torch.ones_like(tokens) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    try:
        logits = hf(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, streams


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Takes the casts to float32 (in norms and softmax) out of `transformers` where a tensor is float64.

    The rotary tables, made of whole-numbered positions, stay float32 like ours.
    """
    to, single, softmax = Tensor.to, Tensor.float, nn.functional.softmax

    def keep_to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lowers = x.dtype == torch.float64 and torch.float32 in (*args, kwargs.get("dtype"))
        return x if lowers else to(x, *args, **kwargs)

    def keep_single(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else single(x)

    def keep_softmax(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(x, *args, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    with (
        patch.object(Tensor, "to", keep_to),
        patch.object(Tensor, "float", keep_single),
        patch.object(nn.functional, "softmax", keep_softmax),
    ):
        yield


def tokens_and_mask(batch: int = 2, *, padded: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens [batch pos] and their mask; padded: all rows but the last begin with padding."""
    tokens = torch.randint(0, VOCAB - 1, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    if padded:
        for row in range(batch - 1):
            mask[row, : 3 + 2 * row] = 0
    return tokens, mask


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest value expected; infinite for NaN."""
    return float(((found - expected).abs().max() / expected.abs().max()).nan_to_num(nan=math.inf))
