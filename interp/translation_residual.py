"""Algebra of a decoder's residual stream when a layer norm follows every sum (`interp.residual` is for GPT).

With each norm's scale held at its value in the run, a norm is linear: it centres, divides, multiplies by its gain, and
adds its bias. So what each part wrote can be followed through all later norms, and the parts still sum to the stream.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.cache import ActivationCache
from interp.models.encoder_decoder import HookedEncoderDecoder


def needed(name: str) -> bool:
    """Whether `decompose_decoder` needs this hook point: `run_with_cache(source, target, names=needed)`."""
    if name in ("hook_embed", "hook_pos_embed"):
        return True
    return name.startswith("decoder.") and name.endswith(("hook_z", "hook_mlp_out", "hook_scale"))


def decompose_decoder(
    model: HookedEncoderDecoder, cache: ActivationCache
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """What leaves the decoder's last layer norm, split by who wrote it; times W_U, plus b_U, these are the logits.

    Components in order: `embed`, `pos_embed`; then for each block its self-attention heads `dec L0H0` ..., their output
    bias `dec bias 0`, its cross-attention heads `cross L0H0` ..., `cross bias 0`, its MLP `mlp 0` (which includes
    b_out); last `norm bias`, what the biases of all layer norms came to.

    Raises HookNameError when the cache lacks a name that `needed` names.
    """
    parts = [cache["embed"], cache["pos_embed"]]
    labels = ["embed", "pos_embed"]
    stack = torch.stack([*parts, torch.zeros_like(parts[0])])  # the last one gathers the norms' biases
    for layer, block in enumerate(model.decoder):
        at = f"decoder.{layer}."
        for kind, attention, site, norm, scale in (
            ("dec", block.attn, "attn.hook_z", block.ln1, "ln1.hook_scale"),
            ("cross", block.cross_attn, "cross_attn.hook_z", block.ln2, "ln2.hook_scale"),
            ("mlp", None, "hook_mlp_out", block.ln3, "ln3.hook_scale"),
        ):
            written, names = cache[at + site][None], [f"{kind} {layer}"]
            if attention is not None:
                written = torch.einsum("bphd,hdm->hbpm", cache[at + site], attention.W_O)
                names = [f"{kind} L{layer}H{head}" for head in range(len(written))]
            if attention is not None and attention.b_O is not None:
                written = torch.cat([written, attention.b_O.expand_as(written[:1])])
                names.append(f"{kind} bias {layer}")
            labels += names
            shares = norm.share(torch.cat([stack[:-1], written, stack[-1:]]), cache[at + scale])
            stack = torch.cat([shares[:-1], shares[-1:] + (0 if norm.b is None else norm.b)])
    return stack, [*labels, "norm bias"]


def streams(model: HookedEncoderDecoder, run: Callable[[], object]) -> Float[Tensor, "place batch pos d_model"]:
    """The decoder's stream as the next part reads it, while `run` runs: after the embedding, and after every norm.

    Places in order: the embedding, then after self-attention, cross-attention and MLP of each block.
    """
    kept: list[Tensor] = []
    norms = {f"decoder.{n}.ln{i}.hook_normalized": (block.ln1, block.ln2, block.ln3)[i - 1]
             for n, block in enumerate(model.decoder) for i in (1, 2, 3)}  # fmt: skip
    with model.hooks(
        [
            ("decoder.0.hook_resid_pre", lambda x, hook: kept.append(x)),
            (list(norms), lambda x, hook: kept.append(norms[hook.name].finish(x))),
        ],
        reads_only=True,
    ):
        run()
    return torch.stack(kept)
