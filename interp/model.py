"""A decoder with a name on every intermediate result, wired by its config. The whole model, top to bottom.

Shapes: tokens [batch pos], residual stream [batch pos d_model], logits [batch pos d_vocab_out]; inside the parts see
`interp.parts`.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.errors import InputError
from interp.hooks import HookedModule, HookPoint, NameSpec
from interp.linear import linear
from interp.parts import AttentionBlock, Block, ParallelBlock, draw_qkv, hook_shape, norm_of
from interp.positions import Frame, KVCache, Rotary, attention_mask_of, banded, check_tokens
from interp.weights import Weights

if TYPE_CHECKING:
    from interp.tokenizer import Tokenizer


class HookedGPT(HookedModule, Weights):
    """A decoder: `HookedGPT(config)` with random weights, `from_pretrained` with trained ones."""

    blocks: Sequence[Block]

    def __init__(self, config: GPTConfig, *, tokenizer: "Tokenizer | None" = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.source = "random weights"
        self.weight_files: tuple[Path, ...] = ()
        self.origin: dict[str, Any] = {}
        """The `config.json` it was loaded from."""
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.hook_embed = HookPoint()
        if config.positions == "learned":
            self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
            self.hook_pos_embed = HookPoint()
        kind = AttentionBlock if config.attn_only else ParallelBlock if config.parallel else Block
        options = {"causal": config.causal, "place": config.norm_place}
        windows = config.windows or (None,) * config.n_layers
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            kind(config, layer, window=w, rotary=rotary_of(config, w), **options)  # type: ignore[arg-type]
            for layer, w in enumerate(windows)
        )
        self.ln_final = norm_of(config)
        self.unembed = None if config.tied else nn.Parameter(torch.empty(config.d_vocab_out, config.d_model))
        self.b_U = nn.Parameter(torch.zeros(config.d_vocab_out)) if config.unembed_bias else None
        self._name_hook_points()
        self._initialise()
        self.eval()

    def __repr__(self) -> str:
        c, count = self.config, sum(parameter.numel() for parameter in self.parameters())
        shared = "" if c.n_kv_heads == c.n_heads else f" over {c.n_kv_heads}"
        return (
            f"HookedGPT({self.source!r}: {c.n_layers} layers, {c.n_heads} heads{shared}, d_model {c.d_model}, n_ctx "
            f"{c.n_ctx}, d_vocab {c.d_vocab}; {count:,} parameters, {str(self.dtype)[6:]} on {self.device})"
        )

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's initialisation: normal weights, zero biases, residual projections scaled by 1 / sqrt(2 layers)."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last == "W_Q_flat":
                draw_qkv(self, name, partial(nn.init.normal_, std=std))
            elif last.startswith("b"):
                nn.init.zeros_(parameter)
            elif last not in ("w", "W_K_flat", "W_V_flat"):
                shrink = math.sqrt(2 * self.config.n_layers) if last in ("W_O_flat", "W_out") else 1.0
                nn.init.normal_(parameter, std=std / shrink)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | str,
        *,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Logits for every position.

        Args:
            tokens: token ids, or text (then the beginning-of-text token is put in front).
            attention_mask: [batch pos], 1 for tokens and 0 for padding; positions count from the first token.
            past: keys and values of earlier positions; the new ones are added to it.

        Raises InputError for tokens outside the vocabulary (on the CPU only: elsewhere the check would have to wait
        for the device) or a sequence longer than the context.
        """
        tokens = self.to_tokens(tokens) if isinstance(tokens, str) else tokens
        return self.unembedded(self.ln_final(self.run_to(tokens, attention_mask=attention_mask, past=past)))

    def run_to(
        self,
        tokens: Int[Tensor, "batch pos"],
        last: int | None = None,
        *,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that leaves block `last` (None: the last; -1: the embeddings); no later block runs."""
        residual, frame = self.embed(tokens, attention_mask, past)
        return self.run_blocks(residual, frame, last=last, past=past)

    def run_blocks(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        frame: Frame,
        *,
        first: int = 0,
        last: int | None = None,
        past: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream that enters block `first`, sent through the blocks up to `last`; `frame` is what `embed` gave."""
        for block in self.blocks[first : None if last is None else last + 1]:
            residual = block(residual, frame, past)
        return residual

    def embed(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, past: KVCache | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Frame]:
        """The residual stream before the first block, and what the blocks need to know of the pass."""
        start = past.length if past is not None else 0
        check_tokens(tokens, self.config.n_ctx, self.config.d_vocab, start=start)
        self.context.start = start
        mask, positions = attention_mask_of(tokens, attention_mask, past, start, causal=self.config.causal)
        return self.embedded(tokens, positions), self.frame(mask, positions, start + tokens.shape[1])

    def embedded(self, tokens: Tensor, positions: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The sum of the embeddings, nothing checked."""
        embedded = F.embedding(tokens, self.W_E)
        if self.config.embed_scale != 1.0:
            embedded = embedded * torch.tensor(self.config.embed_scale, dtype=embedded.dtype, device=embedded.device)
        embedded = self.hook_embed(embedded)
        if self.config.positions != "learned":
            return embedded
        return embedded + self.hook_pos_embed(F.embedding(positions, self.W_pos).expand_as(embedded))

    def frame(self, mask: Tensor | None, positions: Int[Tensor, "batch pos"], keys: int) -> Frame:
        """Masks and rotations of a pass over these positions, whose queries see up to `keys` positions."""
        queries, device = positions.shape[1], positions.device
        masks: dict[int | None, Tensor | None] = {None: mask}
        for window in {w for w in self.config.windows or () if w is not None}:
            masks[window] = banded(mask, window, queries, keys, device) if window < keys else mask
        turns = dict.fromkeys(block.attn.rotary for block in self.blocks if block.attn.rotary is not None)
        return Frame(masks, {turn: turn.tables(positions, self.dtype) for turn in turns})

    def unembedded(
        self,
        normalized: Float[Tensor, "*batch d_model"],
        vocab: Int[Tensor, " chosen"] | None = None,
        *,
        capped: bool = True,
    ) -> Float[Tensor, "*batch d_vocab_out"]:
        """Logits (of the chosen tokens) from a residual stream that has passed the final norm.

        Not `capped`, they are what a soft-cap is given: the sum of what the parts of the stream give.
        """
        matrix: Tensor = self.W_E if self.unembed is None else self.unembed
        bias: Tensor | None = self.b_U
        cap = self.config.logit_softcap
        if vocab is not None:
            matrix, bias = matrix[vocab], None if bias is None else bias[vocab]
        logits = linear(normalized, matrix, bias)
        return logits if cap is None or not capped else cap * torch.tanh(logits / cap)

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
    def from_pretrained(cls, source: str | Path, **options: Any) -> "HookedGPT":
        """A trained decoder: a bundled name, a directory or a hub id. Options: see `interp.loading.load`."""
        from interp.loading import load_as

        return load_as(cls, source, **options)

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


def rotary_of(config: GPTConfig, window: int | None) -> Rotary | None:
    """The rotation of a layer with this window."""
    if config.positions != "rotary":
        return None
    local = window is not None and config.local_rotary_base is not None
    return Rotary(
        base=config.local_rotary_base if local else config.rotary_base,  # type: ignore[arg-type]
        dim=config.rotary_dim,
        interleaved=config.rotary_interleaved,
        scaling=None if local else config.rotary_scaling,
    )
