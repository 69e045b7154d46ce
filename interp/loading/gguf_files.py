"""GGUF files, read through the library `gguf`: config, tokenizer and weights, quantised ones made float32.

Their metadata are told in the words of the family's `config.json`, their tensors by the family's names.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError, LoadError
from interp.loading.families import FAMILIES, Family
from interp.loading.layouts import Readers
from interp.loading.names import PRE_NORMS, gpt2_names
from interp.models.config import GPTConfig, RotaryScaling
from interp.models.positions import Rotary
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import from_merges, from_scores

ARCHITECTURES: dict[str, tuple[Family, dict[str, Any]]] = {
    "llama": (FAMILIES["llama"], {"rotary_interleaved": True}),
    "qwen2": (FAMILIES["qwen2"], {}),
    "qwen3": (FAMILIES["qwen3"], {}),
    "gemma": (FAMILIES["gemma"], {"gain_offset": 0.0}),
    "gemma2": (FAMILIES["gemma2"], {"gain_offset": 0.0}),
    "gemma3": (FAMILIES["gemma3_text"], {"gain_offset": 0.0}),
    "phi3": (FAMILIES["phi3"], {}),
    "gpt2": (replace(FAMILIES["gpt2"], names=gpt2_names()), {}),
}
"""`general.architecture` -> the family, and what differs in these files: rows of Llama's queries and keys are in the
order in which neighbours turn together; gains of Gemma's norms are whole."""
ENTRIES = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.freq_base": "rope_theta", "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
REFUSED = ("expert_count", "attention.value_residual_mix", "rope.scaling.yarn_log_multiplier", "residual_scale")
WHOLE = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and layers of the models whose scores are scaled by d_model / n_heads (their 27 B), not by d_head."""


def load(file: Path) -> tuple[Family, GPTConfig, Readers, Tokenizer | None]:
    """What `decoders.build` needs. Raises LoadError for a damaged file or a part that is not supported."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            f"{file}: GGUF files need the library gguf", "it is not installed", "pip install gguf"
        ) from None
    try:
        reader = GGUFReader(str(file))
        told = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise LoadError(
            f"{file} cannot be read: {str(error)[:100]}", "expected a whole GGUF file", "fetch it again"
        ) from None
    kind = str(told.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise LoadError(f"{file}: architecture {kind!r}", f"expected one of {', '.join(ARCHITECTURES)}")
    family, changes = ARCHITECTURES[kind]
    own = {key.removeprefix(f"{kind}."): value for key, value in told.items() if key.startswith(f"{kind}.")}
    if refused := [key for key in REFUSED if own.get(key)]:
        raise LoadError(f"{file}: {kind}.{refused[0]} = {own[refused[0]]!r}", "expected a model without that part")
    if kind == "llama" and own.get("attention.sliding_window"):
        family = FAMILIES["mistral"]  # which these files call llama
    readers: Readers = {
        _renamed(name, family): (tuple(int(n) for n in tensor.shape[::-1]), partial(dequantised, tensor, file))
        for name, tensor in tensors.items()
    }
    factors = readers.pop("rope_freqs.weight", None)
    config = replace(family.read(_data(own, kind, tensors), str(file)), **changes)
    if factors is not None:
        config = replace(config, rotary_scaling=_scaling(config, factors[1](), file))
    return family, config, readers, _tokenizer(told, str(file))


def _data(own: dict[str, Any], kind: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The metadata as a `config.json` says them."""
    data = {theirs: own[ours] for ours, theirs in ENTRIES.items() if ours in own}
    width, rows = (int(n) for n in tensors["token_embd.weight"].shape)
    data |= {"vocab_size": rows, "hidden_size": width, "tie_word_embeddings": "output.weight" not in tensors}
    data["attention_bias"] = "blk.0.attn_q.bias" in tensors
    heads, layers = data["num_attention_heads"], data["num_hidden_layers"]
    data.setdefault("head_dim", width // heads)
    data.setdefault("num_key_value_heads", heads)
    if kind.startswith("gemma"):
        data["query_pre_attn_scalar"] = width / heads if (kind, layers) in WHOLE else data["head_dim"]
    if kind.startswith("qwen"):
        data["use_sliding_window"] = "sliding_window" in data
    if "phi3" in kind:
        data.setdefault("sliding_window", None)
    if own.get("rope.dimension_count", data["head_dim"]) != data["head_dim"]:
        data["partial_rotary_factor"] = own["rope.dimension_count"] / data["head_dim"]
    if own.get("rope.scaling.type", "none") != "none":
        data["rope_scaling"] = {"rope_type": own["rope.scaling.type"], "factor": own.get("rope.scaling.factor")}
    return data


def _renamed(name: str, family: Family) -> str:
    """The family's name of a tensor."""
    names, norms = family.names, family.names.norms or PRE_NORMS
    outside = {
        "token_embd": names.embed,
        "position_embd": names.position,
        "output_norm": names.final,
        "output": names.unembed,
    }
    inside = {
        "attn_q": names.q, "attn_k": names.k, "attn_v": names.v, "attn_qkv": names.qkv, "attn_output": names.out,
        "attn_q_norm": names.qk_norm.format("q"), "attn_k_norm": names.qk_norm.format("k"), "ffn_gate": names.gate,
        "ffn_up": names.gate_up or names.up, "ffn_down": names.down, "attn_norm": norms.get("ln1", ""),
        "ffn_norm": norms.get("ln2", ""), "post_attention_norm": norms.get("ln1_post", ""),
        "post_ffw_norm": norms.get("ln2_post", ""),
    }  # fmt: skip
    part, _, end = name.rpartition(".")
    if part in outside:
        return f"{outside[part]}.{end}"
    _, _, rest = part.partition(".")
    layer, _, part = rest.partition(".")
    return f"{names.block.format(layer)}{inside[part]}.{end}" if inside.get(part) else name


def dequantised(tensor: Any, file: Path) -> Tensor:
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    except NotImplementedError:
        raise LoadError(
            f"{file}: tensor {tensor.name} is {tensor.tensor_type.name}", "expected a kind that gguf reads"
        ) from None


def _scaling(config: GPTConfig, factors: Tensor, file: Path) -> RotaryScaling:
    """Llama 3's scaling, which these files keep as what each frequency is divided by."""
    scaling = RotaryScaling(kind="llama3", factor=float(factors.max()))
    plain = Rotary(base=config.rotary_base, dim=config.rotary_dim, interleaved=True, scaling=None)
    expected = plain.frequencies() / replace(plain, scaling=scaling).frequencies()
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise LoadError(f"{file}: tensor rope_freqs.weight", "expected the factors of Llama 3's rotary scaling")
    return scaling


def _tokenizer(told: dict[str, Any], where: str) -> Tokenizer | None:
    """The file's own; None where it has none."""
    words = {
        key.removeprefix("tokenizer.ggml."): value for key, value in told.items() if key.startswith("tokenizer.ggml.")
    }
    kind, pieces = words.get("model"), words.get("tokens")
    if kind in (None, "none") or pieces is None:
        return None
    added = [number for number, sort in enumerate(words.get("token_type", ())) if sort in (3, 4)]
    if kind == "llama":
        prefix, unknown = words.get("add_space_prefix", True), words.get("unknown_token_id", 0)
        backend = from_scores(pieces, words["scores"], added=added, unknown=unknown, prefix=prefix)
    elif kind == "gpt2":
        backend = from_merges(pieces, words["merges"], added=added, split=words.get("pre", "default"), where=where)
    else:
        raise LoadError(f"{where}: tokenizer.ggml.model = {kind!r}", "expected llama or gpt2")
    ends = [words.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return Tokenizer(backend, bos=words.get("bos_token_id"), ends=[end for end in ends if end is not None])
