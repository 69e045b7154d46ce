"""A decoder with a name on every intermediate result, wired by its config. The whole model, top to bottom.

Shapes: tokens [batch pos], residual stream [batch pos d_model], logits [batch pos d_vocab_out]; inside the parts see
`interp.models.parts`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.hooks import HookPoint, NameSpec
from interp.migration import refuse_keywords
from interp.models.config import GPTConfig
from interp.models.kernels import linear, wide
from interp.models.parts import AttentionBlock, Block, ParallelBlock, norm_of
from interp.models.positions import (
    Frame,
    KVCache,
    Rotary,
    all_or_nothing,
    attention_mask_of,
    banded,
    check_mask,
    check_rows,
    check_tokens,
)
from interp.models.pretrained import TextModel, later
from interp.models.weights import Weights

if TYPE_CHECKING:
    from interp.text.tokenizer import Tokenizer


class Batch(NamedTuple):
    """Token ids and attention mask, both [batch pos]; padding, where the mask is 0, is on the left."""

    tokens: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Tensor | Batch":
        """Rows of ids as [batch pos], or, where they differ in length, padded with 0 on the left and masked."""
        longest = max(map(len, rows))
        tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return tokens if mask.all() else cls(tokens, mask)

    def rows(self) -> list[list[int]]:
        """The ids of each row, without padding."""
        real = torch.ones_like(self.tokens) if self.mask is None else self.mask
        return [ids[there.bool()].tolist() for ids, there in zip(self.tokens, real, strict=True)]


TextOrTokens: TypeAlias = str | Sequence[str] | Tensor | Batch
"""A text, several of any length, token ids [batch pos], or a Batch."""


class HookedGPT(TextModel[GPTConfig], Weights):
    """A decoder: `HookedGPT(config)` with random weights, `from_pretrained` with trained ones."""

    SAVED_BY: ClassVar[str] = "interp.loading.decoders:save"
    blocks: Sequence[Block]

    def __init__(self, config: GPTConfig, *, tokenizer: "Tokenizer | None" = None) -> None:
        if not isinstance(config, GPTConfig):
            raise InputError(
                f"a config of type {type(config).__name__}",
                "expected a GPTConfig",
                "trained weights: HookedGPT.from_pretrained(name)",
            )
        super().__init__(config, tokenizer)
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
        self._complete()

    def _shape(self) -> str:
        c = self.config
        shared = "" if c.n_kv_heads == c.n_heads else f" over {c.n_kv_heads}"
        heads = f"{c.n_heads} heads{shared}"
        return f"{c.n_layers} layers, {heads}, d_model {c.d_model}, n_ctx {c.n_ctx}, d_vocab {c.d_vocab}"

    def _draw(self, name: str, parameter: Tensor) -> None:
        """GPT-2's initialisation: normal weights, residual projections scaled by 1 / sqrt(2 layers)."""
        shrink = math.sqrt(2 * self.config.n_layers) if name in ("W_O_flat", "W_out") else 1.0
        nn.init.normal_(parameter, std=self.config.init_std / shrink)

    def forward(
        self,
        tokens: TextOrTokens,
        *,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
        stop_at_layer: int | None = None,
        **unknown: Any,
    ) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Logits for every position.

        Args:
            tokens: token ids [batch pos], or a text or several (then the beginning-of-text token is put in front, and
                shorter ones are padded on the left), or what `to_batch` gives.
            attention_mask: [batch pos], 1 for tokens and 0 for padding; positions count from the first token.
            past: keys and values of earlier positions; the new ones are added to it.
            stop_at_layer: give the residual stream [batch pos d_model] that enters this block instead, and run no
                further; -1 is the last block.

        Raises InputError for tokens outside the vocabulary (on the CPU only: elsewhere the check would have to wait
        for the device) or a sequence longer than the context.
        """
        refuse_keywords("the model's call", unknown)
        ids, mask = self.as_batch(tokens, attention_mask)
        if past is None:
            check_rows(mask)
        if stop_at_layer is None:
            with all_or_nothing(past):
                return self.unembedded(self.ln_final(self.run_to(ids, attention_mask=mask, past=past)))
        layers = self.config.n_layers
        if not isinstance(stop_at_layer, int) or not -layers <= stop_at_layer <= layers:
            raise InputError(f"stop_at_layer = {stop_at_layer!r}", f"expected a block's number, {-layers} to {layers}")
        last = stop_at_layer - 1 + (layers if stop_at_layer < 0 else 0)
        with all_or_nothing(past):
            return self.run_to(ids, last, attention_mask=mask, past=past)

    def as_batch(self, tokens: TextOrTokens, attention_mask: Tensor | None = None) -> Batch:
        """Ids [batch pos] and mask of what a model is given: ids, a text, several of any length, or a Batch."""
        if isinstance(tokens, Tensor):
            check_mask(tokens, attention_mask)
            return Batch(tokens, attention_mask)
        if attention_mask is not None:
            raise InputError("an attention_mask beside text", "expected it with token ids alone: texts bring their own")
        if isinstance(tokens, Batch):
            return tokens
        texts = [tokens] if isinstance(tokens, str) else tokens
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"tokens of type {type(tokens).__name__}",
                "expected a text, several texts, or ids as a tensor [batch pos]",
            )
        batch = self.to_batch(texts)
        return batch if batch.mask is None or not batch.mask.all() else Batch(batch.tokens, None)

    def loss(
        self, tokens: TextOrTokens, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Float[Tensor, ""] | Float[Tensor, "batch pos-1"]:
        """Cross-entropy of each next token, in nats: the mean over all tokens that have one before them.

        Args:
            tokens, attention_mask: as the model's call takes them; padding is neither read nor counted.
            per_token: give all of them [batch pos-1] instead, NaN where a token or the one before it is padding.

        Raises InputError where there is no next token to predict: one token, positions that see later ones, outputs
        that are not the vocabulary. `torch.nn.functional.cross_entropy(model(tokens)[:, -1], labels)` is for these.
        """
        ids, mask = self.as_batch(tokens, attention_mask)
        c = self.config
        if not c.causal or c.d_vocab_out != c.d_vocab:
            raise InputError("loss of a model that does not predict next tokens", "expected cross_entropy with labels")
        if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] < 2:
            raise InputError("loss of one token", "expected at least two: the loss is of those that follow another")
        log_p = wide(self(ids, attention_mask=mask)[:, :-1]).log_softmax(-1)
        found = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        if mask is None:
            return found if per_token else found.mean()
        real = (mask[:, 1:] * mask[:, :-1]).bool()
        if not real.any():
            raise InputError("no token follows another", "expected an attention_mask with two neighbours in it")
        return found.masked_fill(~real, torch.nan) if per_token else found[real].mean()

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

    def cache_bytes(
        self, batch: int, pos: int, names: NameSpec | None = None, *, dtype: torch.dtype | None = None
    ) -> int:
        """Bytes that `run_with_cache(names=...)` would keep for tokens [batch pos], without running."""
        item = (dtype or self.dtype).itemsize
        chosen = self.match(self.cached_by_default if names is None else names)
        return sum(item * math.prod(self.hook_shape(name, batch, pos)) for name in chosen)

    def to_batch(self, texts: Sequence[str], *, prepend_bos: bool = True) -> Batch:  # type: ignore[override]
        """Texts of any length, padded on the left: token ids and attention mask, both [batch pos]."""
        return Batch(*super().to_batch(texts, prepend_bos=prepend_bos))

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        config: "GPTConfig | Mapping[str, Any] | object",
        *,
        layout: str | None = None,
        tokenizer: "Tokenizer | None" = None,
    ) -> "HookedGPT":
        """A model with weights that other code holds, such as nanoGPT's or TransformerLens'.

        See `interp.loading.state_dicts.from_state_dict` for what is understood.
        """
        found: HookedGPT = later("interp.loading.state_dicts:from_state_dict")(
            state, config, layout=layout, tokenizer=tokenizer
        )
        return found

    def generate(self, text_or_tokens: TextOrTokens, **options: Any) -> Int[Tensor, "batch pos"]:
        """The tokens given, continued. See `interp.generation.generate` for the options."""
        tokens: Tensor = later("interp.generation:generate")(self, text_or_tokens, **options)
        return tokens


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
