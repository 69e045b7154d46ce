"""GPT-2 with a name on every intermediate result. The whole model, top to bottom.

Shapes: tokens [batch pos], residual stream [batch pos d_model], q k v z [batch pos head d_head],
scores and pattern [batch head query key], MLP hidden [batch pos d_mlp], logits [batch pos d_vocab].
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.config import BlockShape, GPTConfig
from interp.errors import InputError
from interp.hooks import HookedModule, HookPoint, NameSpec
from interp.linear import ACTIVATIONS, affine, linear
from interp.weights import Weights

if TYPE_CHECKING:
    from interp.tokenizer import Tokenizer


class KVCache:
    """Keys and values of earlier positions, per layer [batch pos head d_head], and which of them are padding."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.mask: Tensor | None = None  # [batch pos], True where a real token is

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1] if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k, v = torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1)
        self.layers[layer] = (k, v)
        return k, v


class LayerNorm(nn.Module):
    """Layer norm with gain and bias. `hook_normalized` is the value before gain and bias.

    Scale and normalised value are computed apart only when somebody listens to them.
    """

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.eps = config.eps
        self.w = nn.Parameter(torch.ones(config.d_model))
        self.b = nn.Parameter(torch.zeros(config.d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if not (self.hook_scale.active or self.hook_normalized.active):
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().to(x.dtype))
        return self.hook_normalized((centred / scale).to(x.dtype)) * self.w + self.b


class Attention(nn.Module):
    """Self-attention. Q, K and V are one matrix, as in GPT-2; `W_Q` and the others are views of it.

    Who may be seen: causal, itself and all before; with a `window` w, itself and the w - 1 positions before (locally
    banded); not causal, everybody.
    """

    def __init__(self, config: BlockShape, layer: int, *, causal: bool = True, window: int | None = None) -> None:
        super().__init__()
        self.layer, self.n_heads, self.d_head = layer, config.n_heads, config.d_head
        self.causal, self.window = causal, window
        width = config.n_heads * config.d_head
        self.W_QKV = nn.Parameter(torch.empty(config.d_model, 3 * width))
        self.b_QKV = nn.Parameter(torch.empty(3 * width)) if config.bias else None
        self.W_O_flat = nn.Parameter(torch.empty(width, config.d_model))
        self.b_O = nn.Parameter(torch.empty(config.d_model)) if config.bias else None
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], mask: Tensor | None = None, past: KVCache | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """`mask` [batch 1 query key] is True where attention is allowed; None means wherever its kind allows."""
        qkv = affine(x, self.W_QKV, self.b_QKV)
        q, k, v = torch.unflatten(qkv, -1, (3, self.n_heads, self.d_head)).unbind(-3)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if past is not None:
            k, v = past.append(self.layer, k, v)
        if self.window is not None and self.window < k.shape[1]:
            mask = banded(mask, self.window, q.shape[1], k.shape[1], k.device)
        return self.written(q, k, v, mask)

    def written(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
        """What the heads together write to the residual stream."""
        z = self.hook_z(self.mix(q, k, v, mask))
        if not self.hook_result.active:
            return affine(z.flatten(-2), self.W_O_flat, self.b_O)
        result = self.hook_result(torch.einsum("bphd,hdm->bphm", z, self.W_O))
        return result.sum(-2) if self.b_O is None else result.sum(-2) + self.b_O

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Float[Tensor, "batch pos head d_head"]:
        """The values, mixed by each query's pattern: fused, unless somebody wants to see scores or pattern."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if not (self.hook_attn_scores.active or self.hook_pattern.active):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
            return mixed.transpose(1, 2)
        if mask is None and self.causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(self.d_head)
        scores = self.hook_attn_scores(scores if mask is None else scores.masked_fill(~mask, -torch.inf))
        return (self.hook_pattern(scores.softmax(-1)) @ v).transpose(1, 2)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._head_weights(0)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        return self._head_weights(1)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        return self._head_weights(2)

    def _head_weights(self, part: int) -> Tensor:
        return torch.unflatten(self.W_QKV, -1, (3, self.n_heads, self.d_head))[:, part].transpose(0, 1)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._head_bias(0)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self._head_bias(1)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self._head_bias(2)

    def _head_bias(self, part: int) -> Tensor:
        bias = self.W_QKV.new_zeros(self.W_QKV.shape[1]) if self.b_QKV is None else self.b_QKV
        return torch.unflatten(bias, -1, (3, self.n_heads, self.d_head))[part]

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return torch.unflatten(self.W_O_flat, 0, (self.n_heads, self.d_head))


class MLP(nn.Module):
    """Two linear layers with a non-linearity between; acts on each position alone."""

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(config.d_model, config.d_mlp))
        self.b_in = nn.Parameter(torch.empty(config.d_mlp)) if config.bias else None
        self.W_out = nn.Parameter(torch.empty(config.d_mlp, config.d_model))
        self.b_out = nn.Parameter(torch.empty(config.d_model)) if config.bias else None
        self.act_fn, self.act = config.act_fn, ACTIVATIONS[config.act_fn]
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.hook_pre.active:
            post = self.act(self.hook_pre(affine(x, self.W_in, self.b_in)))
        else:
            post = affine(x, self.W_in, self.b_in, act=self.act_fn)
        return affine(self.hook_post(post), self.W_out, self.b_out)


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised copy of the residual stream and adds its output to it."""

    def __init__(self, config: BlockShape, layer: int, *, causal: bool = True, window: int | None = None) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.ln1 = LayerNorm(config)
        self.attn = Attention(config, layer, causal=causal, window=window)
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.ln2 = LayerNorm(config)
        self.mlp = MLP(config)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], mask: Tensor | None = None, past: KVCache | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.ln1(x), mask, past)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


class HookedGPT(HookedModule, Weights):
    """A GPT-2-style language model: `HookedGPT(config)` with random weights, `from_pretrained` with trained ones."""

    blocks: Sequence[Block]

    def __init__(self, config: GPTConfig, *, tokenizer: "Tokenizer | None" = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.source = "random weights"
        self.weight_files: tuple[Path, ...] = ()
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        windows = config.windows or (None,) * config.n_layers
        self.blocks = nn.ModuleList(Block(config, layer, window=w) for layer, w in enumerate(windows))  # type: ignore[assignment]
        self.ln_final = LayerNorm(config)
        self.unembed = None if config.tied else nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.b_U = nn.Parameter(torch.zeros(config.d_vocab)) if config.unembed_bias else None
        self._name_hook_points()
        self._initialise()
        self.eval()

    def __repr__(self) -> str:
        c, count = self.config, sum(parameter.numel() for parameter in self.parameters())
        return (
            f"HookedGPT({self.source!r}: {c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model}, n_ctx {c.n_ctx}, "
            f"d_vocab {c.d_vocab}; {count:,} parameters, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def _initialise(self) -> None:
        """GPT-2's initialisation: normal weights, zero biases, residual projections scaled by 1 / sqrt(2 layers)."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if name.endswith((".b", "b_QKV", "b_O", "b_in", "b_out", "b_U")):
                nn.init.zeros_(parameter)
            elif not name.endswith(".w"):
                shrink = math.sqrt(2 * self.config.n_layers) if name.endswith(("W_O_flat", "W_out")) else 1.0
                nn.init.normal_(parameter, std=std / shrink)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | str,
        *,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits for every position.

        Args:
            tokens: token ids, or text (then the beginning-of-text token is put in front).
            attention_mask: [batch pos], 1 for tokens and 0 for padding; positions count from the first token.
            past: keys and values of earlier positions; the new ones are added to it.

        Raises InputError for tokens outside the vocabulary (on the CPU only: elsewhere the check would have to wait
        for the device) or a sequence longer than the context.
        """
        tokens = self.to_tokens(tokens) if isinstance(tokens, str) else tokens
        residual, mask = self.embed(tokens, attention_mask, past)
        for block in self.blocks:
            residual = block(residual, mask, past)
        return self.unembedded(self.ln_final(residual))

    def embed(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, past: KVCache | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Tensor | None]:
        """The residual stream before the first block, and the attention mask for all blocks (None: plain causal)."""
        start = past.length if past is not None else 0
        check_tokens(tokens, self.config.n_ctx, self.config.d_vocab, start=start)
        self.context.start = start
        mask, positions = causal_mask(tokens, attention_mask, past, start)
        embedded = self.hook_embed(F.embedding(tokens, self.W_E))
        placed = self.hook_pos_embed(F.embedding(positions, self.W_pos).expand_as(embedded))
        return embedded + placed, mask

    def unembedded(self, normalized: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from a residual stream that has passed the final layer norm."""
        return linear(normalized, self.W_E if self.unembed is None else self.unembed, self.b_U)

    @property
    def device(self) -> torch.device:
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_E.dtype

    def cache_bytes(
        self, batch: int, pos: int, names: NameSpec | None = None, *, dtype: torch.dtype | None = None
    ) -> int:
        """Bytes that `run_with_cache(names=...)` would keep for tokens [batch pos], without running."""
        item = (dtype or self.dtype).itemsize
        chosen = self.match(self.cached_by_default if names is None else names)
        return sum(item * math.prod(self.hook_shape(name, batch, pos)) for name in chosen)

    def hook_shape(self, name: str, batch: int, pos: int) -> tuple[int, ...]:
        """The shape of the activation at a hook point for tokens [batch pos]."""
        return hook_shape(self.config, name, batch, pos, pos)

    # Text in and out, generation, loading and saving: one line each, the work is in the file of that subject.

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
    ) -> "HookedGPT":
        """A trained model: a bundled name, a directory in Hugging Face layout, or a hub id. See `interp.loading`."""
        from interp.loading import load

        return load(source, device=device, dtype=dtype)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config, weights and tokenizer in the layout that `transformers` loads. See `interp.loading.save`."""
        from interp.loading import save

        save(self, directory, dtype=dtype)

    def _tokenizer(self) -> "Tokenizer":
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer", "expected token ids [batch pos] instead of text")
        return self.tokenizer

    def to_tokens(self, text: str | Sequence[str], *, prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Text as token ids; several texts must have the same length in tokens (else `to_batch`)."""
        return self._tokenizer().to_tokens(text, prepend_bos=prepend_bos).to(self.device)

    def to_batch(self, texts: Sequence[str], *, prepend_bos: bool = True) -> tuple[Tensor, Tensor]:
        """Texts of any length, padded on the left: token ids and attention mask, both [batch pos]."""
        tokens, mask = self._tokenizer().to_batch(texts, prepend_bos=prepend_bos)
        return tokens.to(self.device), mask.to(self.device)

    def to_str_tokens(self, text_or_tokens: str | Tensor | Sequence[int], *, prepend_bos: bool = True) -> list[str]:
        """One string a token; bytes that are not whole UTF-8 characters are shown as \\xNN."""
        return self._tokenizer().to_str_tokens(text_or_tokens, prepend_bos=prepend_bos)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token. Raises InputError otherwise."""
        return self._tokenizer().to_single_token(text)

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of token ids."""
        return self._tokenizer().to_string(tokens)

    def generate(self, text_or_tokens: str | Tensor, **options: Any) -> Int[Tensor, "batch pos"]:
        """The tokens given, continued. See `interp.generation.generate` for the options."""
        from interp.generation import generate

        return generate(self, text_or_tokens, **options)


def check_tokens(tokens: Tensor, n_ctx: int, d_vocab: int, what: str = "", *, start: int = 0) -> None:
    """Raises InputError for what is not token ids [batch pos] of this vocabulary, or longer than the context.

    `start` tokens came before; `what` names the tokens where there are several kinds. Ids are checked on the CPU only.
    """
    named = f"{what}: " if what else ""
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] == 0:
        raise InputError(
            f"{what or 'tokens'} of shape {tuple(tokens.shape)} and dtype {tokens.dtype}",
            "expected whole numbers [batch pos], pos >= 1",
        )
    if start + tokens.shape[1] > n_ctx:
        raise InputError(
            f"{named}{start + tokens.shape[1]} tokens",
            f"expected at most {n_ctx}, this model's context",
            "shorten the text",
        )
    if tokens.device.type == "cpu" and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= d_vocab:
            wrong = low if low < 0 else high
            raise InputError(f"{named}token id {wrong}", f"expected 0 to {d_vocab - 1}, this model's vocabulary")


def hook_shape(config: BlockShape, name: str, batch: int, queries: int, keys: int) -> tuple[int, ...]:
    """The shape of an activation whose queries (and the residual stream they write to) and keys have these lengths."""
    last = name.rsplit(".", 1)[-1]
    pos = keys if last in ("hook_k", "hook_v") else queries
    if last in ("hook_q", "hook_k", "hook_v", "hook_z"):
        return (batch, pos, config.n_heads, config.d_head)
    if last in ("hook_attn_scores", "hook_pattern"):
        return (batch, config.n_heads, queries, keys)
    if last == "hook_result":
        return (batch, pos, config.n_heads, config.d_model)
    if last in ("hook_pre", "hook_post") and ".mlp." in name:
        return (batch, pos, config.d_mlp)
    return (batch, pos, 1 if last == "hook_scale" else config.d_model)


def banded(
    mask: Tensor | None, window: int, queries: int, keys: int, device: torch.device
) -> Bool[Tensor, "*batch query key"]:
    """A causal mask narrowed to each query's last `window` keys; the queries are the last of the keys' positions."""
    ahead = keys - queries
    band = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(ahead).triu(ahead - window + 1)
    return band if mask is None else mask & band


def causal_mask(
    tokens: Tensor, attention_mask: Tensor | None, past: KVCache | None, start: int
) -> tuple[Tensor | None, Int[Tensor, "batch pos"]]:
    """Where attention is allowed, [batch 1 query key] or None for plain causal, and each token's position."""
    batch, length = tokens.shape
    if attention_mask is None and (past is None or past.mask is None):
        positions = torch.arange(start, start + length, device=tokens.device).expand(batch, -1)
        if start == 0:
            return None, positions
        real = torch.ones(batch, start + length, dtype=torch.bool, device=tokens.device)
    else:
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise InputError(
                f"attention_mask of shape {tuple(attention_mask.shape)}", f"expected {tuple(tokens.shape)}"
            )
        new = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        earlier = past.mask if past is not None and past.mask is not None else new.new_ones(batch, start)
        real = torch.cat([earlier, new], dim=1)
        positions = (real.cumsum(1) - 1).clamp(min=0)[:, start:]
        if past is not None:
            past.mask = real
    row = torch.arange(start, start + length, device=tokens.device)[:, None]
    column = torch.arange(start + length, device=tokens.device)
    # A padding token attends to itself, so that no row is empty and no NaN arises; nobody attends to it.
    return ((column <= row) & real[:, None, None, :]) | (column == row), positions
