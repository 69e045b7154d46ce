"""Weights by the field's names, stacked over layers: `model.W_Q` is [layer head d_model d_head].

A stack is a view of the model's own storage: the first access lays a parameter of all blocks out in one tensor and
lets each block's parameter point into it; after that nothing is copied. Editing the stack edits the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.parts import by_head, split_heads


def stack_parameter(blocks: Sequence[nn.Module], name: str) -> Float[Tensor, "layer ..."]:
    """One parameter of every block as one tensor, sharing storage with the parameters (without gradient)."""
    parts = [block.get_parameter(name).data for block in blocks]
    first = parts[0]
    step = first.numel() * first.element_size()
    if any(
        part.data_ptr() != first.data_ptr() + layer * step
        or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        or not part.is_contiguous()
        for layer, part in enumerate(parts)
    ):
        for block, part in zip(blocks, torch.stack(parts), strict=True):
            block.get_parameter(name).data = part
        first = blocks[0].get_parameter(name).data
    return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))


class _Stack(torch.autograd.Function):
    """A stack that shares storage with its parts, and sends a gradient on to each of them."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, *parts: Tensor) -> Tensor:
        return stacked.view_as(stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grad.unbind(0)


class Weights:
    """Mixin of models with `blocks`: stacked weights and biases. Biases of a model without them are zeros.

    With gradients on they carry them to each block's own parameters.
    """

    blocks: Sequence[nn.Module]
    config: Any

    def _stack(self, name: str) -> Tensor:
        stacked = stack_parameter(self.blocks, name)
        parts = [block.get_parameter(name) for block in self.blocks]
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            return _Stack.apply(stacked, *parts)  # type: ignore[no-any-return, no-untyped-call]
        return stacked

    def _bias(self, name: str, there: bool | None, *shape: int) -> Tensor:
        if there:
            return self._stack(name)
        return next(self.blocks[0].parameters()).detach().new_zeros(len(self.blocks), *shape)

    def _head_bias(self, letter: str, heads: int) -> Tensor:
        c = self.config
        return split_heads(self._bias(f"attn.b_{letter}_flat", c.bias_qkv, heads * c.d_head), heads)

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return by_head(self._stack("attn.W_Q_flat"), self.config.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return by_head(self._stack("attn.W_K_flat"), self.config.n_kv_heads)

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return by_head(self._stack("attn.W_V_flat"), self.config.n_kv_heads)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return torch.unflatten(self._stack("attn.W_O_flat"), 1, (self.config.n_heads, self.config.d_head))

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack("mlp.W_gate")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack("mlp.W_in")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return self._stack("mlp.W_out")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        """The unembedding: the embedding's transpose where they are tied."""
        unembed = self.unembed  # type: ignore[attr-defined]
        matrix: Tensor = self.W_E if unembed is None else unembed  # type: ignore[attr-defined]
        return matrix.T

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._head_bias("Q", self.config.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._head_bias("K", self.config.n_kv_heads)

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._head_bias("V", self.config.n_kv_heads)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._bias("attn.b_O", self.config.bias_out, self.config.d_model)

    @property
    def b_gate(self) -> Float[Tensor, "layer d_mlp"]:
        return self._bias("mlp.b_gate", self.config.bias_mlp and self.config.gated, self.config.d_mlp)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        return self._bias("mlp.b_in", self.config.bias_mlp, self.config.d_mlp)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        return self._bias("mlp.b_out", self.config.bias_mlp, self.config.d_model)
