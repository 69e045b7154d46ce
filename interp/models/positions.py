"""Positions: rotation, who may see whom, what is kept of earlier tokens; and the check of the tokens themselves."""

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.models.config import RotaryScaling


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021): pairs of a head's coordinates turn, by an angle proportional to position."""

    base: float
    dim: int
    interleaved: bool
    scaling: RotaryScaling | None

    def frequencies(self) -> Float[Tensor, " pair"]:
        """Radians per position. In float32, as the models were trained."""
        turn = 1.0 / self.base ** (torch.arange(0, self.dim, 2).float() / self.dim)
        if self.scaling is None:
            return turn
        s = self.scaling
        if s.kind == "linear":
            return turn / s.factor
        turns = s.original_ctx / (2 * math.pi / turn)
        kept = ((turns - s.low_freq) / (s.high_freq - s.low_freq)).clamp(0, 1)
        return (1 - kept) * turn / s.factor + kept * turn

    def tables(self, positions: Int[Tensor, "*batch"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [*batch pair] of these positions."""
        angle = positions[..., None].float() * self.frequencies().to(positions.device)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def turn(
        self, x: Float[Tensor, "*batch head d_head"], tables: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "*batch head d_head"]:
        """x turned by the tables [*batch pair] of its positions."""
        cos, sin = (table[..., None, :] for table in tables)
        if self.interleaved:
            first, second = x[..., : self.dim : 2], x[..., 1 : self.dim : 2]
        else:
            first, second = x[..., : self.dim // 2], x[..., self.dim // 2 : self.dim]
        ahead = torch.addcmul(first * cos, second, sin, value=-1)
        behind = torch.addcmul(second * cos, first, sin)
        turned = [torch.stack([ahead, behind], -1).flatten(-2)] if self.interleaved else [ahead, behind]
        return torch.cat([*turned, x[..., self.dim :]], -1)


class KVCache:
    """Keys (as they enter the scores) and values of earlier positions, per layer [batch pos kv_head d_head], and which
    of them are padding."""

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

    def parts(self) -> "list[KVCache]":
        """All caches in it, each with keys and values of its own."""
        return [self]


@contextmanager
def all_or_nothing(past: KVCache | None) -> Iterator[None]:
    """A pass that fails inside, in a hook for instance, leaves the cache as it was."""
    before = [(part, dict(part.layers), part.mask) for part in past.parts()] if past is not None else []
    try:
        yield
    except BaseException:
        for part, layers, mask in before:
            part.layers, part.mask = layers, mask
        raise


@dataclass(frozen=True)
class Frame:
    """What a pass hands to its blocks beside the stream: who may see whom, and where in the text the rows stand."""

    masks: Mapping[int | None, Tensor | None] = field(default_factory=lambda: {None: None})
    """By window (None: dense), where attention is allowed [batch or 1, 1, query, key]; None: where its kind allows."""
    rotations: Mapping[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By `Rotary`, the cosines and sines [batch pos pair] of the rows' positions."""


def check_tokens(tokens: Tensor, n_ctx: int, d_vocab: int, what: str = "", *, start: int = 0) -> None:
    """Raises InputError for what is not token ids [batch pos] of this vocabulary, or longer than the context.

    `start` tokens came before; `what` names the tokens where there are several kinds. Ids are checked on the CPU only.
    """
    named = f"{what}: " if what else ""
    whole = tokens.dtype in (torch.int64, torch.int32)
    if tokens.ndim != 2 or not whole or not tokens.numel():
        raise InputError(
            f"{what or 'tokens'} of shape {tuple(tokens.shape)} and dtype {tokens.dtype}",
            "expected whole numbers [batch pos] as int64, pos >= 1",
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


def check_mask(tokens: Tensor, mask: object) -> None:
    """Raises InputError for a mask that is no tensor of ones and zeros with the tokens' shape; None is none."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"of type {type(mask).__name__}"
        raise InputError(f"attention_mask {what}", f"expected a tensor {tuple(tokens.shape)}")
    if mask.device.type == "cpu" and not ((mask == 0) | (mask == 1)).all():
        raise InputError("attention_mask with other values than 0 and 1", "expected 1 for tokens, 0 for padding")


def check_rows(mask: Tensor | None) -> None:
    """Raises InputError for a row of padding alone; an inverted mask has one, since the longest text has no padding."""
    if mask is not None and mask.device.type == "cpu" and not mask.any(-1).all():
        raise InputError(
            "attention_mask with a row of padding alone", "expected 1 for tokens, 0 for padding", "is it inverted?"
        )


def banded(
    mask: Tensor | None, window: int, queries: int, keys: int, device: torch.device
) -> Bool[Tensor, "*batch query key"]:
    """A causal mask narrowed to each query's last `window` keys; the queries are the last of the keys' positions."""
    ahead = keys - queries
    band = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(ahead).triu(ahead - window + 1)
    return band if mask is None else mask & band


def attention_mask_of(
    tokens: Tensor, attention_mask: Tensor | None, past: KVCache | None, start: int, *, causal: bool = True
) -> tuple[Tensor | None, Int[Tensor, "batch pos"]]:
    """Where attention is allowed, [batch 1 query key] or None for where its kind allows; and each token's position."""
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
    seen = (column <= row) & real[:, None, None, :] if causal else real[:, None, None, :]
    # A padding token attends to itself, so that no row is empty and no NaN arises; nobody else attends to it.
    return seen | (column == row), positions
