"""Decoder families: how each family's `config.json` says what the parts are, and what its files call the weights.

One entry of `FAMILIES` a family. The parts themselves, and all that is done with them, know no family.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch

from interp.errors import InputError, LoadError
from interp.loading.layouts import Layout, Readers, Shapes, Stored, expect, incomplete
from interp.loading.names import Names, gpt2_names, layout
from interp.models.config import ACTIVATION_NAMES, Activation, GPTConfig, RotaryScaling

Data: TypeAlias = Mapping[str, Any]
IGNORED = re.compile(
    r".*\b(attn|attention)\.(bias|masked_bias|mask|IGNORE|rotary_sin|rotary_cos)|.*rotary_emb\.inv_freq"
)
"""Causal masks and rotary tables that old files carry as buffers."""
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "vision_model.")
"""What a checkpoint that reads pictures holds beside the language model, which alone is loaded."""


SANDWICH = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}
AFTER = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}


# Reading config.json.

ENTRIES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "d_model": ("hidden_size", "n_embd"),
    "d_vocab": ("vocab_size",),
    "n_ctx": ("max_position_embeddings", "n_positions", "n_ctx"),
    "n_kv_heads": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim"),
    "eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "tied": ("tie_word_embeddings",),
    "init_std": ("initializer_range", "init_std"),
}
"""Our entry -> the names that families' files have for it; the first four must be there."""
OWN_WIDTHS = ("n_kv_heads", "d_head")
"""Entries that only the families read in whose parts they stand."""
ACT_KEYS = ("hidden_activation", "hidden_act", "activation_function")
GPT2: dict[str, Any] = {"n_ctx": 1024, "eps": 1e-5, "act_fn": "gelu_new", "tied": True}
LLAMA: dict[str, Any] = {
    "n_ctx": 2048, "eps": 1e-6, "act_fn": "silu", "tied": False, "norm": "rms", "gated": True, "bias": False,
    "positions": "rotary", "n_kv_heads": 0, "d_head": 0,
}  # fmt: skip
GEMMA = LLAMA | {"n_ctx": 8192, "act_fn": "gelu_new", "tied": True, "gain_offset": 1.0}
"""The parts of a family, and what its files leave unsaid."""


def _act(data: Data, where: str) -> dict[str, Activation]:
    told = {key: data[key] for key in ACT_KEYS if data.get(key) is not None}
    for key, name in told.items():
        if name not in ACTIVATION_NAMES:
            raise LoadError(f"{where}: {key} = {name!r}", f"expected one of {', '.join(ACTIVATION_NAMES)}")
    if "hidden_activation" in told and told.get("hidden_act") == "gelu":
        del told["hidden_act"]  # the older entry of Gemma's files, which the newer one corrects
    acts = {ACTIVATION_NAMES[name] for name in told.values()}
    if len(acts) > 1:
        raise LoadError(f"{where}: {' and '.join(told)} differ", "expected one entry of that meaning")
    return {"act_fn": acts.pop()} if acts else {}


def _rope(data: Data, where: str, kind: str = "") -> dict[str, Any]:
    """Base, scaling and width of a rotation, from `rope_parameters` (of one kind of layer) or the older entries."""
    told: dict[str, Any] = data.get("rope_parameters") or {}
    told = told.get(kind, told)
    base: Any = told.get("rope_theta", data.get("rope_theta", data.get("rotary_emb_base", 10000.0)))
    scaling: dict[str, Any] = told if "rope_type" in told else data.get("rope_scaling") or {}
    name = scaling.get("rope_type", scaling.get("type", "default"))
    found: dict[str, Any] = {"rotary_base": float(base), "rotary_scaling": None}
    share = told.get("partial_rotary_factor", data.get("partial_rotary_factor", data.get("rotary_pct")))
    if share is not None:
        head = data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
        found["rotary_dim"] = int(head * share)
    if name == "linear":
        found["rotary_scaling"] = RotaryScaling(kind="linear", factor=float(scaling["factor"]))
    elif name == "llama3":
        found["rotary_scaling"] = RotaryScaling(
            kind="llama3",
            factor=float(scaling["factor"]),
            low_freq=float(scaling["low_freq_factor"]),
            high_freq=float(scaling["high_freq_factor"]),
            original_ctx=int(scaling["original_max_position_embeddings"]),
        )
    elif name != "default":
        raise LoadError(f"{where}: rotary scaling of type {name!r}", "expected default, linear or llama3")
    return found


def _windows(data: Data, where: str, local: Callable[[int], bool]) -> dict[str, Any]:
    """The window of each layer: where `layer_types` says so, else where the family's rule does."""
    size, layers = data.get("sliding_window"), data["num_hidden_layers"]
    kinds = data.get("layer_types") or ["sliding_attention" if local(n) else "full_attention" for n in range(layers)]
    if len(kinds) != layers:
        raise LoadError(f"{where}: {len(kinds)} layer_types", f"expected {layers}, one a layer")
    return {"windows": size and tuple(size if kind == "sliding_attention" else None for kind in kinds)}


def _llama(data: Data, where: str) -> dict[str, Any]:
    bias = bool(data.get("attention_bias", False))
    return {"bias_qkv": bias, "bias_out": bias, "bias_mlp": bool(data.get("mlp_bias", False))}


def _mistral(data: Data, where: str) -> dict[str, Any]:
    return _windows(data, where, lambda layer: True)


def _qwen(data: Data, where: str) -> dict[str, Any]:
    first = data.get("max_window_layers", 0)
    used = data if data.get("use_sliding_window", False) else {**data, "sliding_window": None}
    return _windows(used, where, lambda layer: layer >= first)


def _gemma(data: Data, where: str) -> dict[str, Any]:
    if data.get("use_bidirectional_attention"):
        raise LoadError(f"{where}: use_bidirectional_attention", "expected causal attention")
    found = _llama(data, where) | {"embed_scale": float(data["hidden_size"]) ** 0.5}
    if data.get("hidden_activation") is None and data.get("hidden_act") == "gelu":
        found["act_fn"] = "gelu_new"  # Gemma 1's files say "gelu" and mean the approximation
    return found


def _gemma2(data: Data, where: str) -> dict[str, Any]:
    return {
        **_gemma(data, where),
        **_windows(data, where, lambda layer: layer % 2 == 0),
        "attn_scale": float(data.get("query_pre_attn_scalar", 256)) ** -0.5,
        "attn_softcap": data.get("attn_logit_softcapping"),
        "logit_softcap": data.get("final_logit_softcapping"),
    }


def _gemma3(data: Data, where: str) -> dict[str, Any]:
    pattern = data.get("sliding_window_pattern", data.get("_sliding_window_pattern", 6))
    if "rope_parameters" in data:
        whole, local = _rope(data, where, "full_attention"), _rope(data, where, "sliding_attention")["rotary_base"]
    else:
        whole = _rope({"rope_theta": 1e6, **data}, where)
        local = float(data.get("rope_local_base_freq", 10000.0))
    windows = _windows(data, where, lambda layer: (layer + 1) % pattern != 0)
    return {**_gemma2(data, where), **whole, **windows, "local_rotary_base": local}


def _phi(data: Data, where: str) -> dict[str, Any]:
    expect(data, where, {"qk_layernorm": False})
    return {}


def _neox(data: Data, where: str) -> dict[str, Any]:
    bias = data.get("attention_bias", True)
    return {"bias_qkv": bias, "bias_out": bias, "parallel": data.get("use_parallel_residual", True)}


def _gpt2(data: Data, where: str) -> dict[str, Any]:
    usual = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    expect(data, where, usual)
    return {"bias": data.get("interp_bias", True), "windows": data.get("interp_windows")}


def _bigcode(data: Data, where: str) -> dict[str, Any]:
    return {**_gpt2(data, where), "n_kv_heads": 1 if data.get("multi_query", True) else 0}


def _gpt_neo(data: Data, where: str) -> dict[str, Any]:
    kinds = data.get("attention_layers") or [
        kind for group, count in data["attention_types"] for _ in range(count) for kind in group
    ]
    if set(kinds) - {"global", "local"}:
        raise LoadError(f"{where}: attention_layers {sorted(set(kinds))}", "expected global and local")
    return {"windows": tuple(data.get("window_size", 256) if kind == "local" else None for kind in kinds)}


def _opt(data: Data, where: str) -> dict[str, Any]:
    usual = {"word_embed_proj_dim": data["hidden_size"], "do_layer_norm_before": True}
    expect(data, where, usual | {"_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True})
    return {"bias": data.get("enable_bias", True)}


@dataclass(frozen=True)
class Family:
    """One entry of the table."""

    title: str
    names: Names
    parts: Mapping[str, Any]
    """The config of the family, where the files do not say otherwise."""
    told: Callable[[Data, str], Mapping[str, Any]] = lambda data, where: {}
    """What a file says beside ENTRIES, non-linearity and rotation."""
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes for an entry that a file of this family leaves out altogether."""

    def read(self, data: Data, where: str) -> GPTConfig:
        """The config in a `config.json`; raises LoadError for what is missing or would change the function."""
        data = {**self.unsaid, **data}
        try:
            found: dict[str, Any] = dict(self.parts)
            for number, (ours, theirs) in enumerate(ENTRIES.items()):
                there = [data[key] for key in theirs if data.get(key) is not None]
                if any(other != there[0] for other in there[1:]):
                    names = " and ".join(key for key in theirs if data.get(key) is not None)
                    raise LoadError(f"{where}: {names} differ", "expected one entry of that meaning")
                if ours in OWN_WIDTHS and ours not in self.parts:
                    continue
                if not there and number < 4:
                    raise KeyError(theirs[0])
                found |= {ours: there[0]} if there else {}
            unknown = set(data.get("layer_types") or ()) - {"sliding_attention", "full_attention"}
            if unknown:
                raise LoadError(f"{where}: layer_types {sorted(unknown)}", "expected sliding or full attention")
            found |= _act(data, where)
            found |= _rope(data, where) if found.get("positions") == "rotary" else {}
            return GPTConfig(**(found | dict(self.told(data, where))))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise LoadError(f"{where}: {error}") from None
            raise incomplete(error, where, self.title) from None

    def layout(self, config: GPTConfig, shapes: Shapes) -> Layout:
        """Where the files keep each parameter; `shapes` are those of the parameters."""
        return layout(self.names, config)

    def plain(self, key: str) -> str:
        """A file's name of a tensor without the prefixes."""
        for prefix in sorted(self.names.prefixes, key=len, reverse=True):
            key = key.removeprefix(prefix)
        if key.startswith("lm_head."):  # what transformers' models call it, whatever their files do
            return f"{self.names.unembed}.{key.removeprefix('lm_head.')}"
        return key

    def leftover(self, key: str, readers: Readers, config: GPTConfig) -> str:
        """What is wrong with a tensor of this name that is no parameter of ours; "" when nothing is."""
        if IGNORED.fullmatch(key) or key.startswith(OTHER_PARTS):
            return ""
        unembed, embed = (
            re.compile(rf"{re.escape(name)}(\.weight)?") for name in (self.names.unembed, self.names.embed)
        )
        if unembed.fullmatch(key) and config.tied:
            other = next(name for name in readers if embed.fullmatch(name))
            one, two = readers[key][1](), readers[other][1]()
            same = any(torch.equal(two, way) for way in (one, one.mT))
            return "" if same else f"differs from {other}, but the config ties them"
        if re.fullmatch(r"bias|_?b(_\w+)?", key.rpartition(".")[2]):
            return "" if not readers[key][1]().any() else "is not zero, but the config has no such bias"
        return f"is not part of a {self.title} model"

    def written(self, key: str) -> str:
        """The name under which `save` writes it."""
        outside = key.startswith(f"{self.names.unembed}.")
        return key if outside else self.names.prefixes[0] + key


class Own(Family):
    """Our own layout, which holds any config: its tensors have our parameters' names."""

    def read(self, data: Data, where: str) -> GPTConfig:
        try:
            found = dict(data["config"])
            if found.get("rotary_scaling"):
                found["rotary_scaling"] = RotaryScaling(**found["rotary_scaling"])
            return GPTConfig(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise incomplete(error, where, self.title) from None

    def layout(self, config: GPTConfig, shapes: Shapes) -> Layout:
        return {name: Stored(name, shape) for name, shape in shapes.items()}


_GPT_NEO = gpt2_names(
    qkv="", out="attn.attention.out_proj", **{letter: f"attn.attention.{letter}_proj" for letter in "qkv"}
)
_GPTJ = gpt2_names(
    qkv="", norms={"ln1": "ln_1"}, out="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out",
    **{letter: f"attn.{letter}_proj" for letter in "qkv"},
)  # fmt: skip
_OPT = Names(
    position="embed_positions", skipped_positions=2, final="final_layer_norm", out="self_attn.out_proj", up="fc1",
    down="fc2", norms={"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm"},
    prefixes=("model.decoder.", "decoder."),
)  # fmt: skip
_NEOX = Names(
    embed="embed_in", final="final_layer_norm", unembed="embed_out", qkv="attention.query_key_value", by_head=True,
    out="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", prefixes=("gpt_neox.",),
)  # fmt: skip
_PHI = Names(
    final="final_layernorm", out="self_attn.dense", up="mlp.fc1", down="mlp.fc2", norms={"ln1": "input_layernorm"}
)
_GEMMA3 = Names(
    norms=SANDWICH, prefixes=("model.", "language_model.", "model.language_model.", "language_model.model.")
)

_PARALLEL = {"parallel": True, "positions": "rotary"}
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
_GEMMA2 = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
_GEMMA3_TEXT = Family(
    "Gemma 3", _GEMMA3, GEMMA | {"norm_place": "both", "qk_norm": "head"}, _gemma3,
    _GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072},
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", gpt2_names(in_out=True), GPT2, _gpt2),
    "gpt_neo": Family("GPT-Neo", _GPT_NEO, GPT2 | {"n_ctx": 2048, "bias_qkv": False, "attn_scale": 1.0}, _gpt_neo),
    "gptj": Family(
        "GPT-J", _GPTJ,
        GPT2 | _PARALLEL | {"tied": False, "shared_norm": True, "rotary_interleaved": True, "bias_qkv": False,
                            "bias_out": False, "unembed_bias": True},
        lambda data, where: {"rotary_dim": data.get("rotary_dim") or 0},
    ),
    "gpt_neox": Family(
        "GPT-NeoX (Pythia)", _NEOX, GPT2 | _PARALLEL | {"n_ctx": 2048, "tied": False, "act_fn": "gelu"}, _neox,
        {"rotary_pct": 0.25},
    ),
    "gpt_bigcode": Family("GPT-BigCode (SantaCoder, StarCoder)", gpt2_names(by_head=True), GPT2, _bigcode),
    "opt": Family("OPT", _OPT, GPT2 | {"n_ctx": 2048, "act_fn": "relu"}, _opt),
    "llama": Family("Llama 1 to 3.3", Names(), LLAMA, _llama),
    "mistral": Family(
        "Mistral", Names(), LLAMA, _mistral,
        {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "qwen2": Family("Qwen 2 and 2.5", Names(), LLAMA | {"bias_qkv": True}, _qwen, _QWEN),
    "qwen3": Family(
        "Qwen 3", Names(), LLAMA | {"qk_norm": "head"},
        lambda data, where: {**_llama(data, where), **_qwen(data, where)}, _QWEN | {"head_dim": 128},
    ),
    "gemma": Family("Gemma 1", Names(), GEMMA, _gemma, {"head_dim": 256, "num_key_value_heads": 16}),
    "gemma2": Family(
        "Gemma 2", Names(norms=SANDWICH), GEMMA | {"norm_place": "both"}, _gemma2,
        _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": _GEMMA3_TEXT,
    "olmo2": Family(
        "OLMo 2", Names(norms=AFTER), LLAMA | {"norm_place": "post", "qk_norm": "flat", "eps": 1e-5}, _llama
    ),
    "phi": Family(
        "Phi 1 and 2", _PHI, GPT2 | _PARALLEL | {
            "n_ctx": 2048, "tied": False, "shared_norm": True, "unembed_bias": True, "n_kv_heads": 0,
        },
        _phi, {"partial_rotary_factor": 0.5},
    ),
    "phi3": Family(
        "Phi 3", Names(qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"), LLAMA | {"eps": 1e-5}, _mistral
    ),
    "gemma3": _GEMMA3_TEXT,
    "interp": Own("interp's own", Names(prefixes=("",)), {}),
}  # fmt: skip
"""`model_type` of a config.json -> the family."""

NOT_SERVED = {
    "experts": "mixtral qwen2_moe qwen3_moe olmoe phimoe dbrx granitemoe llama4 jamba grok",
    "attention sinks": "gpt_oss",
    "latent attention": "deepseek_v2 deepseek_v3 minicpm3",
    "ALiBi positions": "bloom mpt",
    "its own layout of queries, keys and values": "falcon",
    "linear attention or state-space layers": "mamba mamba2 falcon_mamba rwkv qwen3_next recurrent_gemma",
    "multipliers of the residual stream": "granite minicpm cohere cohere2",
    "embeddings of every layer": "gemma3n gemma3n_text",
    "norms after each sum": "openai-gpt biogpt",
    "norms without a gain": "olmo",
    "layers without positions": "smollm3",
    "relative position biases": "t5 mt5 xlnet",
}
"""What is missing here, and `model_type`s that need it."""


def family_of(data: Data, where: str) -> Family:
    """The family of a config.json. Raises LoadError, with the part that is missing, for one that is not served."""
    kind = str(data.get("model_type", "gpt2"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    missing = next((part for part, kinds in NOT_SERVED.items() if kind in kinds.split()), "")
    raise LoadError(
        f"{where}: model_type = {kind!r}" + (f" needs {missing}, which this project does not have" if missing else ""),
        f"expected one of {', '.join(FAMILIES)}",
    )


# Writing config.json.


def to_hf(config: GPTConfig) -> dict[str, Any] | None:
    """The `config.json` of GPT-2's family for this config; None when its files cannot hold it.

    transformers knows no windows in it: it runs all layers dense.
    """
    c = config
    ours = {"interp_windows": list(c.windows)} if c.windows else {}
    data = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_embd": c.d_model,
        "n_positions": c.n_ctx,
        "vocab_size": c.d_vocab,
        "n_inner": c.d_mlp,
        "activation_function": c.act_fn,
        "layer_norm_epsilon": c.eps,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **({} if c.bias else {"interp_bias": False}),
        **ours,
    }
    fits = not c.attn_only and c.n_heads * c.d_head == c.d_model and FAMILIES["gpt2"].read(data, "") == c
    return data if fits else None


def own_config(config: GPTConfig) -> dict[str, Any]:
    """The `config.json` of our own layout, which holds any config; its tensors have our parameters' names."""
    return {"model_type": "interp", "config": asdict(config)}
