"""Encoders: every position sees every other. BERT over tokens, ViT over the patches of an image.

Shapes: tokens [batch pos], images [batch channel height width], residual stream [batch pos d_model]; attention as in
`interp.models.gpt`, with a pattern that is not causal.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.config import BlockShape
from interp.models.encoder_config import EncoderConfig
from interp.models.kernels import ACTIVATIONS, affine, linear
from interp.models.parts import MLP, Attention, Block, Norm
from interp.models.positions import Frame, check_tokens
from interp.models.pretrained import TextModel
from interp.models.weights import Weights

if TYPE_CHECKING:
    from interp.text.wordpiece import WordPiece


class PostNormBlock(nn.Module):
    """Attention, then MLP; each adds its output to the residual stream, and a layer norm follows each sum.

    `hook_resid_mid` and `hook_resid_post` are the sums, before their norms, `hook_normalized_resid_post` what leaves.
    """

    def __init__(self, config: BlockShape, layer: int) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.attn = Attention(config, layer, causal=False)
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.ln1 = Norm(config)
        self.mlp = MLP(config)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        self.ln2 = Norm(config)
        self.hook_normalized_resid_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"], frame: Frame) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.ln1(self.hook_resid_mid(x + self.hook_attn_out(self.attn(x, frame))))
        x = self.ln2(self.hook_resid_post(x + self.hook_mlp_out(self.mlp(x))))
        return self.hook_normalized_resid_post(x)


def padding_mask(mask: Tensor | None, shape: Sequence[int]) -> Bool[Tensor, "batch 1 1 key"] | None:
    """Where everybody may look: at tokens, not at padding. Raises InputError for a mask of another shape."""
    if mask is None:
        return None
    if mask.shape != torch.Size(shape):
        raise InputError(
            f"a mask of shape {tuple(mask.shape)}", f"expected {tuple(shape)}, 1 for tokens, 0 for padding"
        )
    return mask.bool()[:, None, None, :]


class TokenEmbedding(nn.Module):
    """BERT's: a vector for the token, one for its position, one for its type; a layer norm over their sum."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        self.W_type = nn.Parameter(torch.empty(config.n_types, config.d_model))
        self.hook_embed, self.hook_pos_embed, self.hook_token_type_embed = HookPoint(), HookPoint(), HookPoint()
        self.ln = Norm(config)

    def forward(self, tokens: Int[Tensor, "batch pos"], types: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
        check_tokens(tokens, self.config.n_ctx, self.config.d_vocab)
        types = torch.zeros_like(tokens) if types is None else types
        if types.shape != tokens.shape:
            raise InputError(f"token_types of shape {tuple(types.shape)}", f"expected {tuple(tokens.shape)}")
        check_tokens(types, self.config.n_ctx, self.config.n_types, "token_types")
        embedded = self.hook_embed(F.embedding(tokens, self.W_E))
        placed = self.hook_pos_embed(self.W_pos[: tokens.shape[1]].expand_as(embedded))
        return self.ln(embedded + self.hook_token_type_embed(F.embedding(types, self.W_type)) + placed)  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """ViT's: each patch of pixels times one matrix, a learned class token in front, a vector for each position."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        height, width = config.patch_size
        self.W_E = nn.Parameter(torch.empty(config.n_channels * height * width, config.d_model))
        self.b_E = nn.Parameter(torch.empty(config.d_model))
        self.class_token = nn.Parameter(torch.empty(config.d_model))
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        expected = (self.config.n_channels, *self.config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point():
            raise InputError(
                f"images of shape {tuple(images.shape)} and dtype {images.dtype}",
                f"expected numbers [batch {' '.join(map(str, expected))}]",
            )
        height, width = self.config.patch_size
        rows, columns = self.config.grid
        cut = images[..., : rows * height, : columns * width].to(self.W_E.dtype)
        patches = rearrange(cut, "b c (r h) (q w) -> b (r q) (c h w)", h=height, w=width)
        embedded = affine(patches, self.W_E, self.b_E)
        first = self.class_token.expand(len(images), 1, -1)
        embedded = self.hook_embed(torch.cat([first, embedded], dim=1))
        return embedded + self.hook_pos_embed(self.W_pos.expand_as(embedded))


class MaskedLanguageHead(nn.Module):
    """BERT's: a linear layer, the non-linearity, a layer norm; then the embedding's transpose gives the logits."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(config.d_model, config.d_model))
        self.b = nn.Parameter(torch.empty(config.d_model))
        self.act = ACTIVATIONS[config.act_fn]
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()
        self.ln = Norm(config)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.ln(self.hook_post(self.act(self.hook_pre(affine(x, self.W, self.b)))))  # type: ignore[no-any-return]


class HookedEncoder(TextModel[EncoderConfig], Weights):
    """An encoder: `HookedEncoder(config)` with random weights, `from_pretrained` with trained ones (BERT or ViT)."""

    blocks: Sequence[PostNormBlock | Block]

    def __init__(self, config: EncoderConfig, *, tokenizer: "WordPiece | None" = None) -> None:
        super().__init__(config, tokenizer)
        self.embed = PatchEmbedding(config) if config.over_patches else TokenEmbedding(config)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            PostNormBlock(config, layer) if config.post_norm else Block(config, layer, causal=False)
            for layer in range(config.n_layers)
        )
        self.ln_final = None if config.post_norm else Norm(config)
        self.head = MaskedLanguageHead(config) if config.head == "masked-language" else None
        outputs = {"masked-language": config.d_vocab, "classifier": config.n_classes, None: 0}[config.head]
        self.unembed = nn.Parameter(torch.empty(outputs, config.d_model)) if config.head == "classifier" else None
        self.b_U = nn.Parameter(torch.empty(outputs)) if config.head else None
        self._complete()

    def _shape(self) -> str:
        c = self.config
        read = f"patches {c.grid}" if c.over_patches else f"n_ctx {c.n_ctx}, d_vocab {c.d_vocab}"
        return f"{c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model}, {read}, head {c.head!r}"

    def _draw(self, name: str, parameter: Tensor) -> None:
        """BERT's initialisation: normal weights."""
        nn.init.normal_(parameter, std=self.config.init_std)

    def forward(
        self,
        inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch channel height width"] | str,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """Logits [batch pos d_vocab] (masked-language head) or [batch class] (classifier); without a head the last
        residual stream [batch pos d_model].

        Args:
            inputs: token ids, text (then with the tokens that the tokenizer puts around it), or images.
            attention_mask: [batch pos], 1 for tokens and 0 for padding.
            token_types: [batch pos], 0 or 1: which of two sentences; zeros by default.

        Raises InputError for tokens outside the vocabulary, too many of them, or images of another size.
        """
        inputs = self.to_tokens(inputs) if isinstance(inputs, str) else inputs
        x: Tensor = self.embed(inputs) if self.config.over_patches else self.embed(inputs, token_types)
        frame = Frame({None: padding_mask(attention_mask, x.shape[:2])})
        for block in self.blocks:
            x = block(x, frame)
        x = x if self.ln_final is None else self.ln_final(x)
        if self.config.head is not None:
            x = self.unembedded(x[:, 0] if self.head is None else self.head(x))
        return x

    def unembedded(self, normalized: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from what the head's layer norm gives (tokens), or from the last residual stream (classes)."""
        matrix = self.embed.W_E if self.unembed is None else self.unembed
        return linear(normalized, matrix, self.b_U)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # type: ignore[override]
        """The token embedding; for patches the matrix from pixels."""
        return self.embed.W_E
