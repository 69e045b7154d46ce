"""The original Transformer with a name on every intermediate result (Vaswani et al. 2017, as Marian builds it).

An encoder reads the source; a decoder writes the target, seeing what it wrote (causal self-attention) and what the
encoder made of the source (cross-attention). Attention, MLP and layer norm are those of `interp.models.parts`; a layer
norm follows each sum.

Shapes: source [batch source_pos], target [batch pos], memory (the encoder's output) [batch source_pos d_model],
cross-attention patterns [batch head query key] with target positions as queries and source positions as keys.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.config import BlockShape, hook_shape
from interp.models.encoder import PostNormBlock, padding_mask
from interp.models.encoder_config import EncoderDecoderConfig
from interp.models.kernels import linear
from interp.models.parts import MLP, Attention, Norm
from interp.models.positions import Frame, KVCache, all_or_nothing, attention_mask_of, check_tokens
from interp.models.pretrained import HookedModel, later
from interp.text.tokenizer import padded

if TYPE_CHECKING:
    from interp.text.source_target import PairTokenizer


class PairCache(KVCache):
    """What a decoder keeps between steps: keys and values of earlier targets, and in `source` those of the source."""

    def __init__(self) -> None:
        super().__init__()
        self.source = KVCache()

    def parts(self) -> list[KVCache]:
        return [self, self.source]

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        """Keep (or repeat) these targets of the batch: beam search follows some and drops others, all of one source."""
        self.layers = {layer: (k[rows], v[rows]) for layer, (k, v) in self.layers.items()}


class CrossAttention(Attention):
    """Attention whose queries come from the decoder, and whose keys and values come from the memory."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch pos d_model"],
        memory: Float[Tensor, "batch source_pos d_model"],
        mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """`mask` [batch 1 1 source_pos] is True at tokens. Keys and values are computed once, then kept in `past`."""
        q = self.hook_q(self.project_q(x))
        if past is not None and self.layer in past.layers:
            k, v = past.layers[self.layer]
        else:
            k, v = self.hook_k(self.project_k(memory)), self.hook_v(self.project_v(memory))
            if past is not None:
                past.append(self.layer, k, v)
        return self.written(q, k, v, mask)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention, MLP; each adds its output to the residual stream, a layer norm follows each sum.

    `hook_resid_mid`, `hook_resid_mid_cross` and `hook_resid_post` are the sums, before their norms.
    """

    def __init__(self, config: BlockShape, layer: int) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.attn = Attention(config, layer)
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.ln1 = Norm(config)
        self.cross_attn = CrossAttention(config, layer, causal=False)
        self.hook_cross_attn_out = HookPoint()
        self.hook_resid_mid_cross = HookPoint()
        self.ln2 = Norm(config)
        self.mlp = MLP(config)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        self.ln3 = Norm(config)
        self.hook_normalized_resid_post = HookPoint()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        memory: Float[Tensor, "batch source_pos d_model"],
        frame: Frame,
        source_mask: Tensor | None = None,
        past: PairCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.ln1(self.hook_resid_mid(x + self.hook_attn_out(self.attn(x, frame, past))))
        kept = None if past is None else past.source
        read = self.hook_cross_attn_out(self.cross_attn(x, memory, source_mask, kept))
        x = self.ln2(self.hook_resid_mid_cross(x + read))
        x = self.ln3(self.hook_resid_post(x + self.hook_mlp_out(self.mlp(x))))
        return self.hook_normalized_resid_post(x)


class HookedEncoderDecoder(HookedModel[EncoderDecoderConfig, "PairTokenizer"]):
    """An encoder-decoder: `HookedEncoderDecoder(config)` with random weights, `from_pretrained` with trained ones."""

    encoder: Sequence[PostNormBlock]
    decoder: Sequence[DecoderBlock]
    W_pos: Tensor

    def __init__(self, config: EncoderDecoderConfig, *, tokenizer: "PairTokenizer | None" = None) -> None:
        super().__init__(config, tokenizer)
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.register_buffer("W_pos", sinusoids(config.n_ctx, config.d_model), persistent=False)
        self.hook_source_embed, self.hook_source_pos_embed = HookPoint(), HookPoint()
        self.encoder = nn.ModuleList(PostNormBlock(config, n) for n in range(config.n_encoder_layers))  # type: ignore[assignment]
        self.hook_memory = HookPoint()
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.decoder = nn.ModuleList(DecoderBlock(config, n) for n in range(config.n_decoder_layers))  # type: ignore[assignment]
        self.ln_final = nn.Identity()  # the last block's own layer norm is the last one
        self.b_U = nn.Parameter(torch.empty(config.d_vocab))
        self._complete()

    def _shape(self) -> str:
        c = self.config
        layers = f"{c.n_encoder_layers} + {c.n_decoder_layers} layers"
        return f"{layers}, {c.n_heads} heads, d_model {c.d_model}, n_ctx {c.n_ctx}, d_vocab {c.d_vocab}"

    def _draw(self, name: str, parameter: Tensor) -> None:
        """Uniform weights of variance 2 / (fan in + fan out) (Glorot and Bengio 2010), as in the paper's own code, the
        queries' width for q, k and v alike; embeddings of unit length once they are scaled."""
        c = self.config
        if name == "W_E":
            nn.init.normal_(parameter, std=c.d_model**-0.5)
        else:
            fan_out = c.n_heads * c.d_head if name == "W_Q_flat" else parameter.shape[1]
            bound = math.sqrt(6 / (parameter.shape[0] + fan_out))
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        source: Int[Tensor, "batch source_pos"] | str,
        target: Int[Tensor, "batch pos"] | str,
        *,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits for the token after every target position.

        Args:
            source: token ids that end with the end token, or text.
            target: token ids that begin with the start token, or text (then it is put in front).
            source_mask, target_mask: [batch pos], 1 for tokens and 0 for padding; padding may stand on the right, and
                positions count from the left whatever is padding, as in Marian.

        Raises InputError for tokens outside the vocabulary, longer than the context, or of another batch size.
        """
        source, target = self.to_pair(source, target)
        return self.decode(target, self.encode(source, source_mask), source_mask=source_mask, target_mask=target_mask)

    def encode(
        self, source: Int[Tensor, "batch source_pos"], source_mask: Tensor | None = None
    ) -> Float[Tensor, "batch source_pos d_model"]:
        """The memory: what the encoder makes of the source."""
        x = self._embedded("source", source, 0, self.hook_source_embed, self.hook_source_pos_embed)
        frame = Frame({None: padding_mask(source_mask, source.shape)})
        for block in self.encoder:
            x = block(x, frame)
        return self.hook_memory(x)

    def decode(
        self,
        target: Int[Tensor, "batch pos"],
        memory: Float[Tensor, "batch source_pos d_model"],
        *,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        past: PairCache | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits for the token after every target position, given the memory; `past` holds earlier positions."""
        start = 0 if past is None else past.length
        if len(target) != len(memory):
            raise InputError(f"{len(target)} targets of {len(memory)} sources", "expected one target for each source")
        across = padding_mask(source_mask, memory.shape[:2])
        with all_or_nothing(past):
            x = self._embedded("target", target, start, self.hook_embed, self.hook_pos_embed)
            mask, _ = attention_mask_of(target, target_mask, past, start)
            for block in self.decoder:
                x = block(x, memory, Frame({None: mask}), across, past)
        return self.unembedded(x)

    def _embedded(self, what: str, tokens: Tensor, start: int, embed: HookPoint, place: HookPoint) -> Tensor:
        c = self.config
        check_tokens(tokens, c.n_ctx, c.d_vocab, what, start=start)
        self.context.start = start
        embedded = F.embedding(tokens, self.W_E)
        embedded = embed(embedded * math.sqrt(c.d_model) if c.scale_embedding else embedded)
        return embedded + place(self.W_pos[start : start + tokens.shape[1]].expand_as(embedded))

    def unembedded(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from what leaves the last block (its layer norm was the last)."""
        return linear(stream, self.W_E, self.b_U)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding: the embedding's transpose."""
        return self.W_E.detach().T

    def hook_shape(self, name: str, batch: int, source_pos: int, pos: int) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the activation at a hook point for a source and a target of these lengths."""
        if name.startswith(("encoder.", "hook_source", "hook_memory")):
            return hook_shape(self.config, name, batch, source_pos, source_pos)
        return hook_shape(self.config, name, batch, pos, source_pos if ".cross_attn." in name else pos)

    # Text in and out, translation: the work is in the file of that subject.

    def translate(self, text: str | Sequence[str], **options: Any) -> Any:
        """The translation of a text, or of several (then a list). Options: see `interp.translation.translate`."""
        return later("interp.translation:translate")(self, text, **options)

    def to_pair(self, source: Tensor | str, target: Tensor | str) -> tuple[Tensor, Tensor]:
        """Source and target as token ids; a source text gets the end token behind it, a target text the start."""
        return (
            self.to_source(source) if isinstance(source, str) else source,
            self.to_target(target) if isinstance(target, str) else target,
        )

    def to_source(self, text: str) -> Int[Tensor, "1 source_pos"]:
        """A source text as token ids, the end token last."""
        return torch.tensor([[*self._tokenizer().encode_source(text), self.config.end_token]], device=self.device)

    def to_target(self, text: str) -> Int[Tensor, "1 pos"]:
        """A target text as the decoder's input: the start token, then the text."""
        return torch.tensor([[self.config.start_token, *self._tokenizer().encode_target(text)]], device=self.device)

    def to_batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Source texts of any length, padded on the right: token ids and mask, both [batch source_pos]."""
        return self.padded([self.to_source(text)[0].tolist() for text in texts])

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of token ids, padded on the right: ids and mask, both [batch pos]."""
        return padded(rows, self.config.pad_token, self.device)

    def to_single_token(self, text: str) -> int:
        """The id of a target text that is exactly one token. Raises InputError otherwise."""
        ids = self._tokenizer().encode_target(text)
        if len(ids) != 1:
            pieces = " + ".join(repr(piece) for piece in self.to_str_tokens(ids))
            raise InputError(f"{text!r} is {len(ids)} tokens: {pieces}", "expected exactly one token")
        return ids[0]

    def to_string(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence of target token ids, without start, end and padding."""
        ids = tokens.flatten().tolist() if isinstance(tokens, Tensor) else list(tokens)
        special = {self.config.start_token, self.config.end_token, self.config.pad_token}
        return self._tokenizer().to_string([token for token in ids if token not in special])

    def to_str_tokens(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """One string a token; words begin with a space."""
        return self._tokenizer().to_str_tokens(tokens.flatten().tolist() if isinstance(tokens, Tensor) else tokens)


def sinusoids(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """Positions as sines (first half of the coordinates) and cosines (second half), wavelengths 2 pi to 10000 x 2 pi.

    The values are Vaswani et al.'s (section 3.5); the order is Marian's. Rounded to float32, as in its files.
    """
    half = (d_model + 1) // 2
    wavelength = 10000.0 ** (2 * torch.arange(half, dtype=torch.float64) / d_model)
    angle = torch.arange(n_ctx, dtype=torch.float64)[:, None] / wavelength
    return torch.cat([angle.sin(), angle.cos()[:, : d_model - half]], dim=1).float()
