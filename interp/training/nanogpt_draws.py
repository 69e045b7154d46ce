"""Initial weights drawn in the order in which nanoGPT draws them, so that its seeds give its models.

Two programs with the same initial distribution and the same seed still begin with different weights when they draw in a
different order. nanoGPT (Karpathy 2022) builds PyTorch modules, whose own initialisation draws numbers that are then
thrown away; then draws every matrix from a normal distribution, module by module; then draws the matrices that write
into the residual stream again, with a standard deviation smaller by the square root of twice the number of layers.
"""

import math

import torch
from torch import nn

from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT


def nanogpt_weights(config: GPTConfig) -> HookedGPT:
    """An untrained model whose weights come from torch's global generator in nanoGPT's order.

    Widths that nanoGPT does not have (d_head, d_mlp of their own) are drawn in the same order.
    """
    c, width = config, config.n_heads * config.d_head
    token, position = nn.Embedding(c.d_vocab, c.d_model), nn.Embedding(c.n_ctx, c.d_model)
    shapes = ((c.d_model, 3 * width), (width, c.d_model), (c.d_model, c.d_mlp), (c.d_mlp, c.d_model))
    layers = [[nn.Linear(*shape, bias=c.bias) for shape in shapes] for _ in range(c.n_layers)]
    head = nn.Linear(c.d_model, c.d_vocab, bias=False)
    if c.tied:
        token.weight = head.weight  # drawn twice below, once as each
    for weight in (
        token.weight,
        position.weight,
        *(linear.weight for layer in layers for linear in layer),
        head.weight,
    ):
        nn.init.normal_(weight, std=c.init_std)
    for _, attention_out, _, mlp_out in layers:
        for linear in (attention_out, mlp_out):
            nn.init.normal_(linear.weight, std=c.init_std / math.sqrt(2 * c.n_layers))
    with torch.random.fork_rng(devices=[]):
        model = HookedGPT(config)  # biases zero, gains one; its own draws are replaced
    with torch.no_grad():
        model.W_E.copy_(token.weight)
        model.W_pos.copy_(position.weight)
        if model.unembed is not None:
            model.unembed.copy_(head.weight)
        for block, layer in zip(model.blocks, layers, strict=True):
            parts = torch.split(layer[0].weight.T, width, dim=1)
            assert block.mlp is not None  # nanoGPT's shape
            for parameter, part in zip(
                (block.attn.W_Q_flat, block.attn.W_K_flat, block.attn.W_V_flat), parts, strict=True
            ):
                parameter.copy_(part)
            for parameter, linear in zip(
                (block.attn.W_O_flat, block.mlp.W_in, block.mlp.W_out), layer[1:], strict=True
            ):
                parameter.copy_(linear.weight.T)
    return model
