"""The shapes of encoders and encoder-decoders, and Hugging Face's `config.json` of Marian, BERT and ViT models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from interp.config import ACTIVATION_NAMES, Activation, BlockShape
from interp.errors import InputError, LoadError
from interp.layouts import expect, incomplete

Head = Literal["masked-language", "classifier"]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(BlockShape):
    """The original Transformer (Vaswani et al. 2017) as Marian builds it: sinusoidal positions, a layer norm after each
    sum, one embedding for source, target and logits."""

    n_encoder_layers: int
    n_decoder_layers: int
    n_ctx: int
    """Longest source and longest target, in tokens."""
    d_vocab: int
    act_fn: Activation = "relu"
    """`relu` as in the paper, `silu` in Marian."""
    scale_embedding: bool = True
    """Whether embeddings are multiplied by the square root of d_model before positions are added."""
    pad_token: int = 0
    """Fills sources and targets up to the longest; also the first token of every target in Marian's models."""
    start_token: int = 0
    """The decoder's first input."""
    end_token: int = 1
    """Ends sources and targets."""
    forbidden_tokens: tuple[int, ...] = ()
    """Tokens that a translation never contains, such as the padding."""
    num_beams: int = 1
    """Hypotheses that the model's makers advise for `translate`; 1 is greedy."""
    length_penalty: float = 1.0
    """Beam search divides a finished hypothesis' log-probability by its length to this power."""
    forced_end_token: int | None = None
    """What a translation that reaches the longest length is made to end with; None: it is cut."""
    renormalize: bool = False
    """Whether beam search scores with log-probabilities normalised again after tokens have been forbidden."""

    def __post_init__(self) -> None:
        self.complete(("n_encoder_layers", "n_decoder_layers", "n_heads", "d_model", "n_ctx", "d_vocab", "num_beams"))
        for name in ("pad_token", "start_token", "end_token"):
            if not 0 <= getattr(self, name) < self.d_vocab:
                raise InputError(f"config: {name} = {getattr(self, name)}", f"expected 0 to {self.d_vocab - 1}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(BlockShape):
    """An encoder over tokens (BERT: learned positions, token types, a layer norm after each sum) or over the patches of
    an image (ViT: a class token in front, a layer norm before each part and after the last)."""

    n_layers: int
    n_ctx: int = 0
    """Longest sequence, in tokens; for images the number of patches and one more, filled in."""
    d_vocab: int = 0
    """Tokens; 0 for an encoder over patches."""
    act_fn: Activation = "gelu"
    eps: float = 1e-12
    post_norm: bool = True
    """Whether layer norms follow each sum (BERT), rather than precede each part (ViT)."""
    n_types: int = 2
    """Token types (which of two sentences a token belongs to)."""
    head: Head | None = None
    """What reads the last residual stream: logits of tokens at every position, or of classes at the first."""
    n_classes: int = 0
    """Classes of a classifier."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the image, in pixels."""
    patch_size: tuple[int, int] = (0, 0)
    """Height and width of a patch, in pixels."""
    n_channels: int = 3
    init_std: float = 0.02
    """Standard deviation of random weights."""

    def __post_init__(self) -> None:
        if self.over_patches:
            rows, columns = self.grid
            if not rows or not columns:
                raise InputError(
                    f"config: image {self.image_size}, patch {self.patch_size}", "expected smaller patches"
                )
            object.__setattr__(self, "n_ctx", rows * columns + 1)
        self.complete(("n_layers", "n_heads", "d_model", "n_ctx", *([] if self.over_patches else ["d_vocab"])))
        if self.head == "classifier" and self.n_classes < 1:
            raise InputError(f"config: n_classes = {self.n_classes}", "expected a whole number of at least 1")
        if self.head is not None and (self.head == "classifier") != self.over_patches:
            raise InputError(
                f"config: head = {self.head!r}", "expected 'masked-language' over tokens or 'classifier' over patches"
            )

    @property
    def over_patches(self) -> bool:
        """Whether it reads images instead of tokens."""
        return min(self.patch_size) > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


def _activation(name: str, key: str, where: str) -> Activation:
    if name not in ACTIVATION_NAMES:
        raise LoadError(f"{where}: {key} = {name!r}", f"expected one of {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def encoder_decoder_from_hf(data: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> EncoderDecoderConfig:
    """The config in a Marian `config.json`, with what `generation_config.json` says of translating.

    Raises LoadError for an option that would change the function and is not supported.
    """
    expect(
        data,
        where,
        {
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "share_encoder_decoder_embeddings": True,
            "static_position_embeddings": True,
            "tie_word_embeddings": True,
        },
    )
    try:
        expect(
            data,
            where,
            {
                "decoder_attention_heads": data["encoder_attention_heads"],
                "decoder_ffn_dim": data["encoder_ffn_dim"],
                "decoder_vocab_size": data["vocab_size"],
            },
        )
        told = {**data, **generation}
        bad = told.get("bad_words_ids") or []
        if any(len(word) != 1 for word in bad):
            raise LoadError(f"{where}: bad_words_ids of several tokens", "expected single tokens")
        if told.get("early_stopping", False) is not False:
            raise LoadError(f"{where}: early_stopping = {told['early_stopping']!r}", "expected False")
        return EncoderDecoderConfig(
            n_encoder_layers=data["encoder_layers"],
            n_decoder_layers=data["decoder_layers"],
            n_heads=data["encoder_attention_heads"],
            d_model=data["d_model"],
            n_ctx=data.get("max_position_embeddings", 1024),
            d_vocab=data["vocab_size"],
            d_mlp=data["encoder_ffn_dim"],
            act_fn=_activation(data.get("activation_function", "gelu"), "activation_function", where),
            scale_embedding=data.get("scale_embedding", False),
            pad_token=data["pad_token_id"],
            start_token=data.get("decoder_start_token_id", data["pad_token_id"]),
            end_token=data["eos_token_id"],
            forbidden_tokens=tuple(word[0] for word in bad),
            num_beams=told.get("num_beams") or 1,
            length_penalty=1.0 if told.get("length_penalty") is None else told["length_penalty"],
            forced_end_token=told.get("forced_eos_token_id"),
            renormalize=bool(told.get("renormalize_logits")),
        )
    except (KeyError, TypeError) as error:
        raise incomplete(error, where, "Marian") from None


def encoder_decoder_to_hf(config: EncoderDecoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `config.json` and the `generation_config.json` that `transformers` reads for this config."""
    tokens = {
        "pad_token_id": config.pad_token,
        "bos_token_id": config.end_token,
        "eos_token_id": config.end_token,
        "decoder_start_token_id": config.start_token,
    }
    data = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "d_model": config.d_model,
        "vocab_size": config.d_vocab,
        "decoder_vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "activation_function": config.act_fn,
        "scale_embedding": config.scale_embedding,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        **{
            f"{part}_layers": n
            for part, n in (("encoder", config.n_encoder_layers), ("decoder", config.n_decoder_layers))
        },
        **{f"{part}_attention_heads": config.n_heads for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": config.d_mlp for part in ("encoder", "decoder")},
        **{f"{part}dropout": 0.0 for part in ("", "attention_", "activation_")},
        **tokens,
    }
    generation = {
        **tokens,
        "max_length": config.n_ctx,
        "num_beams": config.num_beams,
        "length_penalty": config.length_penalty,
        "renormalize_logits": config.renormalize,
        **({"bad_words_ids": [[token] for token in config.forbidden_tokens]} if config.forbidden_tokens else {}),
        "forced_eos_token_id": config.forced_end_token,
    }
    return data, generation


def bert_from_hf(data: Mapping[str, Any], where: str, *, head: Head | None) -> EncoderConfig:
    """The config in a BERT `config.json`; `head` is what the weights say. Raises LoadError as above."""
    expect(
        data,
        where,
        {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    )
    try:
        return EncoderConfig(
            n_layers=data["num_hidden_layers"],
            n_heads=data["num_attention_heads"],
            d_model=data["hidden_size"],
            n_ctx=data.get("max_position_embeddings", 512),
            d_vocab=data["vocab_size"],
            d_mlp=data["intermediate_size"],
            act_fn=_activation(data.get("hidden_act", "gelu"), "hidden_act", where),
            eps=data.get("layer_norm_eps", 1e-12),
            n_types=data.get("type_vocab_size", 2),
            head=head,
            init_std=data.get("initializer_range", 0.02),
        )
    except (KeyError, TypeError) as error:
        raise incomplete(error, where, "BERT") from None


def vit_from_hf(data: Mapping[str, Any], where: str, *, n_classes: int) -> EncoderConfig:
    """The config in a ViT `config.json`; `n_classes` (0: no classifier) is what the weights say. Raises as above."""
    try:
        return EncoderConfig(
            n_layers=data["num_hidden_layers"],
            n_heads=data["num_attention_heads"],
            d_model=data["hidden_size"],
            d_mlp=data["intermediate_size"],
            act_fn=_activation(data.get("hidden_act", "gelu"), "hidden_act", where),
            eps=data.get("layer_norm_eps", 1e-12),
            post_norm=False,
            n_types=0,
            head="classifier" if n_classes else None,
            n_classes=n_classes,
            image_size=_pair(data.get("image_size", 224)),
            patch_size=_pair(data.get("patch_size", 16)),
            n_channels=data.get("num_channels", 3),
            init_std=data.get("initializer_range", 0.02),
        )
    except (KeyError, TypeError) as error:
        raise incomplete(error, where, "ViT") from None


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def encoder_to_hf(config: EncoderConfig) -> dict[str, Any]:
    """The `config.json` that `transformers` reads for this config."""
    common = {
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "hidden_act": config.act_fn,
        "layer_norm_eps": config.eps,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if config.over_patches:
        return {
            "model_type": "vit",
            "architectures": ["ViTForImageClassification" if config.head else "ViTModel"],
            "image_size": list(config.image_size),
            "patch_size": list(config.patch_size),
            "num_channels": config.n_channels,
            **({"id2label": {str(n): f"LABEL_{n}" for n in range(config.n_classes)}} if config.head else {}),
            **common,
        }
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if config.head else "BertModel"],
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "type_vocab_size": config.n_types,
        "tie_word_embeddings": True,
        **common,
    }
