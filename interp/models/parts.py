"""The parts that every model here is made of, each with its own algebra: norm, attention, MLP, block.

A part is written once. It runs in a model's forward pass, on rows that the sweep engine picked out of many runs, and
lends others what they need of it: the linear share of a write at a frozen scale, the way of a gradient back through a
norm. `visit(site, value)` sees, and may replace, what passes a hook point; without it a part may fuse steps.

Shapes: residual stream [batch pos d_model], q and z [batch pos head d_head], k and v [batch pos kv_head d_head], scores
and pattern [batch head query key], MLP hidden [batch pos d_mlp].
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.config import BlockShape, GPTConfig
from interp.models.kernels import ACTIVATIONS, linear, wide
from interp.models.positions import Frame, KVCache, Rotary

Visit: TypeAlias = Callable[[str, Tensor], Tensor]
"""Gets the name of a hook point, relative to the part, and the tensor there; gives the one that goes on."""
Lay: TypeAlias = Callable[[Tensor], Tensor]
"""Lays a matrix [in out] out for `linear`."""


def transposed(weight: Tensor) -> Tensor:
    return weight.T


def empty(*shape: int) -> nn.Parameter:
    """A parameter that is yet to be filled."""
    return nn.Parameter(torch.empty(shape))


class Norm(nn.Module):
    """Layer norm or RMS norm: (centre the vector,) divide by its scale, multiply by a gain (and add a bias).

    `hook_scale` is the standard deviation or root mean square, `hook_normalized` the value before gain and bias; both
    are computed apart only when somebody listens.
    """

    def __init__(self, config: BlockShape, width: int = 0, *, hooked: bool = True) -> None:
        super().__init__()
        self.centred, self.eps, self.gain_offset = config.norm == "layer", config.eps, config.gain_offset
        width = width or config.d_model
        self.w = nn.Parameter(torch.full((width,), 1.0 - config.gain_offset))
        self.b = nn.Parameter(torch.zeros(width)) if self.centred else None
        self.hooked = hooked
        if hooked:
            self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    @property
    def edited(self) -> bool:
        """Whether somebody may change the scale or the normalised value."""
        return self.hooked and (self.hook_scale.edited or self.hook_normalized.edited)

    @property
    def gain(self) -> Float[Tensor, " width"]:
        """What the normalised value is multiplied by; in float32 at least where it is not the stored weight itself."""
        return wide(self.w) + self.gain_offset if self.gain_offset else self.w

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.hooked and (self.hook_scale.active or self.hook_normalized.active):
            return self.observed(x, lambda site, value: getattr(self, site)(value))
        if self.centred:
            return F.layer_norm(x, self.w.shape, self.gain.to(x.dtype), self.b, self.eps)
        full = wide(x)
        if torch.is_grad_enabled():
            return (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps) * wide(self.gain)).to(x.dtype)
        length = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        normal: Tensor = (full * scale).mul_(self.gain)
        return normal.to(x.dtype)

    def observed(self, x: Float[Tensor, "*batch width"], visit: Visit) -> Float[Tensor, "*batch width"]:
        """The same step by step."""
        centred = self.centre(wide(x))
        scale = visit("hook_scale", self._scale(centred).to(x.dtype))
        return self.finish(visit("hook_normalized", (centred / scale).to(x.dtype)))

    def finish(self, normal: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The normalised value with gain and bias."""
        scaled = (normal * self.gain).to(normal.dtype)
        return scaled if self.b is None else scaled + self.b

    def centre(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """What the norm leaves of a vector before it divides: for layer norm the vector without its mean."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _scale(self, centred: Tensor) -> Tensor:
        return (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def scale_of(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by, in float32 at least."""
        return self._scale(self.centre(wide(x)))

    def share(
        self, parts: Float[Tensor, "*part width"], scale: Float[Tensor, "*#part 1"]
    ) -> Float[Tensor, "*part width"]:
        """Each part's share of the normalised sum of parts, the scale held at the value of the whole run.

        The shares, and the bias if there is one, sum to the norm of the sum.
        """
        return self.centre(parts) / scale * self.gain

    def backward(
        self, x: Float[Tensor, "*batch width"], grad: Float[Tensor, "*more width"]
    ) -> Float[Tensor, "*more width"]:
        """The gradient with respect to the input x, from that with respect to the value before gain and bias."""
        centred = self.centre(x)
        scale = self._scale(centred)
        normal = centred / scale
        return (self.centre(grad) - normal * (grad * normal).mean(-1, keepdim=True)) / scale


class NoNorm(nn.Module):
    """Where a config has no norm: everything passes as it is."""

    gain, b = 1.0, None
    centred = hooked = edited = False

    def forward(self, x: Tensor) -> Tensor:
        return x

    def observed(self, x: Tensor, visit: Visit) -> Tensor:
        return x

    def centre(self, x: Tensor) -> Tensor:
        return x

    def scale_of(self, x: Tensor) -> Tensor:
        return torch.ones_like(wide(x[..., :1]))

    def share(self, parts: Tensor, scale: Tensor) -> Tensor:
        return parts

    def backward(self, x: Tensor, grad: Tensor) -> Tensor:
        return grad


def norm_of(config: BlockShape, there: bool = True) -> Norm | NoNorm:
    """A norm of the config's kind, where the config has one."""
    return Norm(config) if there and config.norm is not None else NoNorm()


class Attention(nn.Module):
    """Self-attention with `n_heads` queries and `n_kv_heads` keys and values; query head h reads kv head h // group.

    Who may be seen: causal, itself and all before; with a `window` w, itself and the w - 1 positions before (locally
    banded); not causal, everybody. Keys and values are never repeated.
    """

    def __init__(
        self,
        config: BlockShape,
        layer: int,
        *,
        causal: bool = True,
        window: int | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.n_heads, self.n_kv_heads, self.d_head = layer, config.n_heads, config.n_kv_heads, config.d_head
        self.group = config.n_heads // config.n_kv_heads
        self.scale, self.softcap = config.attn_scale, config.attn_softcap
        self.causal, self.window, self.rotary = causal, window, rotary
        queries, keys = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        self.W_Q_flat = empty(config.d_model, queries)
        self.W_K_flat = empty(config.d_model, keys)
        self.W_V_flat = empty(config.d_model, keys)
        self.b_Q_flat = empty(queries) if config.bias_qkv else None
        self.b_K_flat = empty(keys) if config.bias_qkv else None
        self.b_V_flat = empty(keys) if config.bias_qkv else None
        self.W_O_flat = empty(queries, config.d_model)
        self.b_O = empty(config.d_model) if config.bias_out else None
        self.flat_norm, normed = config.qk_norm == "flat", config.qk_norm is not None
        self.q_norm = Norm(config, queries if self.flat_norm else self.d_head, hooked=False) if normed else None
        self.k_norm = Norm(config, keys if self.flat_norm else self.d_head, hooked=False) if normed else None
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        if self.prepares:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()

    @property
    def prepares(self) -> bool:
        """Whether queries and keys are normed or turned before they meet."""
        return self.rotary is not None or self.q_norm is not None

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        frame: Frame,
        past: KVCache | None = None,
        apart: Sequence[Tensor] = (),
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write. `apart`: what each head's queries, keys and values read, in place of x
        [batch pos head d_model] (keys and values: kv_head)."""
        if apart:
            pairs = zip(apart, (self.W_Q, self.W_K, self.W_V), (self.b_Q, self.b_K, self.b_V), strict=True)
            q, k, v = (torch.einsum("bphm,hmd->bphd", read, weight) + bias for read, weight, bias in pairs)
        else:
            q, k, v = self.project_q(x), self.project_k(x), self.project_v(x)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if self.prepares:
            tables = None if self.rotary is None else frame.rotations[self.rotary]
            q, k = self.hook_rot_q(self.prepare_q(q, tables)), self.hook_rot_k(self.prepare_k(k, tables))
        if past is not None:
            k, v = past.append(self.layer, k, v)
        return self.written(q, k, v, frame.masks[self.window])

    def project_q(
        self, x: Float[Tensor, "*batch d_model"], lay: Lay = transposed
    ) -> Float[Tensor, "*batch head d_head"]:
        return split_heads(linear(x, lay(self.W_Q_flat), self.b_Q_flat), self.n_heads)

    def project_k(
        self, x: Float[Tensor, "*batch d_model"], lay: Lay = transposed
    ) -> Float[Tensor, "*batch kv_head d_head"]:
        return split_heads(linear(x, lay(self.W_K_flat), self.b_K_flat), self.n_kv_heads)

    def project_v(
        self, x: Float[Tensor, "*batch d_model"], lay: Lay = transposed
    ) -> Float[Tensor, "*batch kv_head d_head"]:
        return split_heads(linear(x, lay(self.W_V_flat), self.b_V_flat), self.n_kv_heads)

    def project(
        self, x: Float[Tensor, "*batch d_model"], join: Callable[[Sequence[Tensor]], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by one product with the three matrices side by side, as `join` lays them out."""
        biases = tuple(bias for bias in (self.b_Q_flat, self.b_K_flat, self.b_V_flat) if bias is not None)
        weights = (self.W_Q_flat, self.W_K_flat, self.W_V_flat)
        parts = linear(x, join(weights), torch.cat(biases) if biases else None).split([w.shape[1] for w in weights], -1)
        q, k, v = (split_heads(part, part.shape[-1] // self.d_head) for part in parts)
        return q, k, v

    def prepare_q(self, q: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries as they enter the scores: normed, then turned by the tables [*batch pair] of their positions."""
        return self._prepare(q, self.q_norm, tables)

    def prepare_k(self, k: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        """Keys likewise."""
        return self._prepare(k, self.k_norm, tables)

    def _prepare(self, x: Tensor, norm: Norm | None, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        if norm is not None:
            x = norm(x.flatten(-2)).view_as(x) if self.flat_norm else norm(x)
        return x if self.rotary is None or tables is None else self.rotary.turn(x, tables)

    def written(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
        """What the heads together write, from what enters the scores."""
        seen = self.hook_attn_scores.active or self.hook_pattern.active
        visit = (lambda site, value: getattr(self, site)(value)) if seen else None
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        z = self.hook_z(self.mix(q, k, v, mask, visit).transpose(1, 2))
        if not self.hook_result.active:
            return self.write(z)
        return self.summed(self.hook_result(self.results(z)))

    def write(self, z: Float[Tensor, "*batch head d_head"], lay: Lay = transposed) -> Float[Tensor, "*batch d_model"]:
        return linear(z.flatten(-2), lay(self.W_O_flat), self.b_O)

    def results(self, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_model"]:
        """What each head writes by itself, without the bias."""
        return torch.einsum("...hd,hdm->...hm", z, self.W_O)

    def summed(self, results: Float[Tensor, "*batch head d_model"]) -> Float[Tensor, "*batch d_model"]:
        return results.sum(-2) if self.b_O is None else results.sum(-2) + self.b_O

    def mix(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_head"],
        mask: Bool[Tensor, "#batch 1 query key"] | None,
        visit: Visit | None = None,
    ) -> Float[Tensor, "batch head query d_head"]:
        """The values, mixed by each query's pattern: fused, unless scores or pattern are seen, or scores are capped."""
        if visit is None and self.softcap is None:
            causal = self.causal and mask is None
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1]
            )
        visit = visit or (lambda site, value: value)
        scores = _by_group(q, k.transpose(-1, -2)) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask is None and self.causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = visit("hook_attn_scores", scores if mask is None else scores.masked_fill(~mask, -torch.inf))
        return _by_group(visit("hook_pattern", scores.softmax(-1)), v)

    def kv_head(self, head: int) -> int:
        """The key-value head that a query head reads."""
        return head // self.group

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return by_head(self.W_Q_flat, self.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return by_head(self.W_K_flat, self.n_kv_heads)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return by_head(self.W_V_flat, self.n_kv_heads)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return torch.unflatten(self.W_O_flat, 0, (self.n_heads, self.d_head))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._bias(self.b_Q_flat, self.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias(self.b_K_flat, self.n_kv_heads)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias(self.b_V_flat, self.n_kv_heads)

    def _bias(self, bias: Tensor | None, heads: int) -> Tensor:
        """A bias by head; zeros for one that is not there."""
        return self.W_O_flat.new_zeros(heads, self.d_head) if bias is None else split_heads(bias, heads)


def by_head(weight: Float[Tensor, "*layer d_model width"], heads: int) -> Float[Tensor, "*layer head d_model d_head"]:
    """A matrix whose columns are heads side by side, head axis first."""
    return split_heads(weight, heads).transpose(-3, -2)


def split_heads(x: Float[Tensor, "*batch width"], heads: int) -> Float[Tensor, "*batch head d_head"]:
    return torch.unflatten(x, -1, (heads, -1))


def _by_group(x: Float[Tensor, "batch head query n"], y: Float[Tensor, "batch kv_head n m"]) -> Tensor:
    """Each head of x times the one of y that its group shares: [batch head query m]."""
    heads, kv_heads = x.shape[1], y.shape[1]
    if heads == kv_heads:
        return x @ y
    mixed = torch.unflatten(x, 1, (kv_heads, -1)).flatten(2, 3) @ y
    return torch.unflatten(mixed, 2, (heads // kv_heads, -1)).flatten(1, 2)


class MLP(nn.Module):
    """Two linear layers with a non-linearity between, or, gated, act(x W_gate) times x W_in; each position alone.

    `act` is the one place where the non-linearity is kept: replace it and every run uses the new one. `hook_pre` is
    what enters it, `hook_pre_linear` the other half of a gated layer.
    """

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.gated, self.act = config.gated, ACTIVATIONS[config.act_fn]
        if config.gated:
            self.W_gate = empty(config.d_model, config.d_mlp)
            self.b_gate = empty(config.d_mlp) if config.bias_mlp else None
        self.W_in = empty(config.d_model, config.d_mlp)
        self.b_in = empty(config.d_mlp) if config.bias_mlp else None
        self.W_out = empty(config.d_mlp, config.d_model)
        self.b_out = empty(config.d_model) if config.bias_mlp else None
        self.hook_pre = HookPoint()
        if config.gated:
            self.hook_pre_linear = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        seen = self.hook_pre.active or (self.gated and self.hook_pre_linear.active)
        visit = (lambda site, value: getattr(self, site)(value)) if seen else None
        return self.write(self.hook_post(self.hidden(x, visit)))

    def hidden(
        self, x: Float[Tensor, "*batch d_model"], visit: Visit | None = None, lay: Lay = transposed
    ) -> Float[Tensor, "*batch d_mlp"]:
        """The hidden activations, after the non-linearity (and times the ungated half)."""
        weight, bias = (self.W_gate, self.b_gate) if self.gated else (self.W_in, self.b_in)
        if visit is None:
            post = linear(x, lay(weight), bias, act=self.act)
        else:
            post = self.act(visit("hook_pre", linear(x, lay(weight), bias)))
        if not self.gated:
            return post
        if visit is None:
            return linear(x, lay(self.W_in), self.b_in, factor=post)
        return post * visit("hook_pre_linear", linear(x, lay(self.W_in), self.b_in))

    def write(self, post: Float[Tensor, "*batch d_mlp"], lay: Lay = transposed) -> Float[Tensor, "*batch d_model"]:
        return linear(post, lay(self.W_out), self.b_out)


class Block(nn.Module):
    """Attention, then MLP; each reads a (normed) copy of the residual stream and adds its (normed) output to it."""

    mlp: MLP | None

    def __init__(
        self,
        config: BlockShape,
        layer: int,
        *,
        causal: bool = True,
        window: int | None = None,
        rotary: Rotary | None = None,
        place: str = "pre",
    ) -> None:
        super().__init__()
        reads, writes = place in ("pre", "both"), place in ("both", "post")
        self.hook_resid_pre = HookPoint()
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.ln1 = norm_of(config, reads)
        self.attn = Attention(config, layer, causal=causal, window=window, rotary=rotary)
        self.ln1_post = norm_of(config, writes)
        self.hook_attn_out = HookPoint()
        self._between(config, reads, writes)
        self.hook_resid_post = HookPoint()

    def _between(self, config: BlockShape, reads: bool, writes: bool) -> None:
        """From what attention wrote to the end of the block."""
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_in = HookPoint()
        self.ln2 = norm_of(config, reads)
        self.mlp = MLP(config)
        self.ln2_post = norm_of(config, writes)
        self.hook_mlp_out = HookPoint()

    def attn_out(self, x: Tensor, frame: Frame, past: KVCache | None) -> Tensor:
        """What attention adds to the stream x that enters the block."""
        apart = self._apart(x)
        return self.hook_attn_out(self.ln1_post(self.attn(self.ln1(x), frame, past, apart)))

    def _apart(self, x: Tensor) -> list[Tensor]:
        """What each head reads, normed, where somebody listens to these: a copy of the stream x for each."""
        points = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not any(point.active for point in points):
            return []
        heads = (self.attn.n_heads, self.attn.n_kv_heads, self.attn.n_kv_heads)
        read = [point(x[:, :, None].expand(-1, -1, n, -1)) for point, n in zip(points, heads, strict=True)]
        if not any(point.edited or point.backward_listeners for point in points):
            return []
        if self.ln1.edited:
            raise InputError("edits of what each head reads, and of the norm that follows", "expected one of them")
        return [self.ln1.observed(copy, lambda site, value: value) for copy in read]

    def mlp_out(self, x: Tensor) -> Tensor:
        """What the MLP adds, reading the stream x."""
        assert self.mlp is not None  # blocks without one do not ask
        return self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(self.hook_mlp_in(x)))))

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], frame: Frame, past: KVCache | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.attn_out(x, frame, past))
        return self.hook_resid_post(x + self.mlp_out(x))


class ParallelBlock(Block):
    """Attention and MLP side by side: both read what enters the block. There is no stream between them."""

    def _between(self, config: BlockShape, reads: bool, writes: bool) -> None:
        self.hook_mlp_in = HookPoint()
        if isinstance(config, GPTConfig) and config.shared_norm:
            vars(self)["ln2"] = self.ln1  # the same module under a second name, and no second set of parameters
        else:
            self.ln2 = norm_of(config, reads)
        self.mlp = MLP(config)
        self.ln2_post = norm_of(config, writes)
        self.hook_mlp_out = HookPoint()

    def forward(self, x: Tensor, frame: Frame, past: KVCache | None = None) -> Tensor:
        x = self.hook_resid_pre(x)
        return self.hook_resid_post(x + self.attn_out(x, frame, past) + self.mlp_out(x))


class AttentionBlock(Block):
    """Attention alone."""

    def _between(self, config: BlockShape, reads: bool, writes: bool) -> None:
        self.mlp = None

    def forward(self, x: Tensor, frame: Frame, past: KVCache | None = None) -> Tensor:
        x = self.hook_resid_pre(x)
        return self.hook_resid_post(x + self.attn_out(x, frame, past))
