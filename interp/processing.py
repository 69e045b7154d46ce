"""Folded and centred weights: a new model, the same predictions, simpler to read.

Each step leaves the log-probabilities as they are (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"; the steps are those of TransformerLens' `process_weights`). The original model is not touched.
"""

from dataclasses import replace

import torch
from torch import Tensor

from interp.models.gpt import HookedGPT
from interp.models.parts import NoNorm, Norm

READERS = {
    "ln1": (("attn.W_Q_flat", "attn.b_Q_flat"), ("attn.W_K_flat", "attn.b_K_flat"), ("attn.W_V_flat", "attn.b_V_flat")),
    "ln2": (("mlp.W_gate", "mlp.b_gate"), ("mlp.W_in", "mlp.b_in")),
}
"""Norm of a block -> the matrices, with their biases, that read through it."""
WRITERS = ("attn.W_O_flat", "attn.b_O", "mlp.W_out", "mlp.b_out")


@torch.no_grad()
def process_weights(
    model: HookedGPT,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
) -> HookedGPT:
    """A new model with equal log-probabilities and processed weights, on the same device and in the same dtype.

    A step that would change a model's function does nothing there: an RMS norm sees the mean of what it reads, so
    nothing is centred in a model with RMS norms; nor is what a block writes through a norm of its own; nor an
    unembedding whose logits are soft-capped. Gains of norms after a sub-block stay.

    Args:
        fold_ln: put each norm's gain and bias into the weights that read through it (then gain one, bias zero), and,
            for a layer norm, which never hands on a mean, give every vector that those weights read mean zero.
        center_writing_weights: give every vector that is written to the residual stream mean zero; layer norm removes
            the mean anyway.
        center_unembed: give each residual direction's logits mean zero over the vocabulary; softmax does not see it.
        fold_value_biases: move value biases through W_O into the output bias; a pattern's row sums to one.
    """
    old = model.config
    layered = old.norm == "layer"
    config = replace(
        old, bias=True, bias_qkv=True, bias_out=True, bias_mlp=True, tied=False, unembed_bias=True,
        gain_offset=old.gain_offset,
    )  # fmt: skip
    with torch.device(model.device):
        new = HookedGPT(config, tokenizer=model.tokenizer).to(model.dtype)
    state = {name: torch.zeros_like(p) if p.ndim == 1 else p for name, p in new.state_dict().items()}
    state |= {name: p.clone() for name, p in model.state_dict().items()}
    state["unembed"] = model.W_U.T.clone()
    for layer, block in enumerate(model.blocks):
        base = f"blocks.{layer}."
        if fold_ln:
            shared = block.mlp is not None and block.ln2 is block.ln1
            for name, readers in ({"ln1": READERS["ln1"] + READERS["ln2"]} if shared else READERS).items():
                if name == "ln1" or block.mlp is not None:
                    there = [(base + w, base + b) for w, b in readers if base + w in state]
                    _fold_norm(state, getattr(block, name), base + name, there)
        if fold_value_biases:
            _fold_value_bias(state, base + "attn.", old.n_heads // old.n_kv_heads, old.d_head)
    if fold_ln:
        state["unembed"] = state["unembed"].T
        _fold_norm(state, model.ln_final, "ln_final", [("unembed", "b_U")])
        state["unembed"] = state["unembed"].T
    if center_writing_weights and layered and old.norm_place == "pre":
        for name in state:
            if name in ("W_E", "W_pos") or name.endswith(WRITERS):
                state[name] = state[name] - state[name].mean(-1, keepdim=True)
    if center_unembed and old.logit_softcap is None:
        state["unembed"] = state["unembed"] - state["unembed"].mean(0, keepdim=True)
        state["b_U"] = state["b_U"] - state["b_U"].mean()
    new.load_state_dict(state)
    new.source = f"{model.source} (processed)"
    return new


def _fold_norm(state: dict[str, Tensor], norm: Norm | NoNorm, name: str, readers: list[tuple[str, str]]) -> None:
    """(x * w + b) W + c = x (w W) + (b W + c); and W without its mean over the input, where x has none."""
    if not isinstance(norm, Norm):
        return
    for weight, bias in readers:
        if norm.b is not None:
            state[bias] = state[bias] + norm.b @ state[weight]
        scaled = norm.gain.to(norm.w.dtype)[:, None] * state[weight]
        state[weight] = scaled - scaled.mean(0, keepdim=True) if norm.centred else scaled
    state[f"{name}.w"] = torch.full_like(norm.w, 1.0 - norm.gain_offset)
    if norm.b is not None:
        state[f"{name}.b"] = torch.zeros_like(norm.b)


def _fold_value_bias(state: dict[str, Tensor], attention: str, group: int, d_head: int) -> None:
    bias = state[attention + "b_V_flat"].unflatten(0, (-1, d_head)).repeat_interleave(group, 0).flatten()
    state[attention + "b_O"] = state[attention + "b_O"] + bias @ state[attention + "W_O_flat"]
    state[attention + "b_V_flat"] = torch.zeros_like(state[attention + "b_V_flat"])
