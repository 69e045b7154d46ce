"""The shapes of encoders and encoder-decoders; what Marian's, BERT's and ViT's files say of them and keep where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from interp.errors import InputError, LoadError
from interp.loading.layouts import Layout, Shapes, Stored, expect, incomplete
from interp.loading.names import Names, layout
from interp.models.config import ACTIVATION_NAMES, Activation, BlockShape, GPTConfig, check_counts

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
        check_counts(self, ("n_channels",))
        for name, few in (("n_types", 1), ("n_classes", 1), ("image_size", 2), ("patch_size", 2)):
            value = getattr(self, name)
            sizes = value if few == 2 and isinstance(value, tuple) else (value,)
            if len(sizes) != few or not all(type(size) is int and 0 <= size < 1 << 31 for size in sizes):
                numbers = "a whole number" if few == 1 else "two whole numbers"
                raise InputError(f"config: {name} = {value!r}"[:120], f"expected {numbers} of at least 0")
        if self.over_patches:
            rows, columns = self.grid
            if not rows or not columns:
                raise InputError(
                    f"config: image {self.image_size}, patch {self.patch_size}", "expected smaller patches"
                )
            object.__setattr__(self, "n_ctx", rows * columns + 1)
        self.complete(("n_layers", "n_heads", "d_model", "n_ctx", *([] if self.over_patches else ["d_vocab"])))
        check_counts(self, ("d_mlp",))
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


@dataclass(frozen=True)
class Kind:
    """How the `config.json` of one kind of model says what our config does, and what `save` writes there."""

    title: str
    """In lower case the `model_type`."""
    blocks: Names
    """How files call the parts of a block, as a decoder's are called."""
    others: Mapping[str, str]
    """Our parameters outside the blocks, if the model has them -> theirs."""
    entries: Mapping[str, str]
    """Our entry -> theirs; where it has several names, the first must be there and others must agree, unsaid or not."""
    unsaid: Mapping[str, Any]
    """What transformers takes for an entry that a file leaves out; all others must be there."""
    usual: Mapping[str, Any]
    """Entries of which no other value is supported: it would change the function."""
    dropout: Sequence[str]
    """Entries that only training reads."""

    def read(self, data: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Our entries. Raises LoadError for a value that is not supported, KeyError for an entry that is missing."""
        expect(data, where, self.usual)
        told, found = {**self.unsaid, **data}, {}
        for ours, theirs in self.entries.items():
            first, *copies = theirs.split()
            found[ours] = told[first]
            expect(told, where, dict.fromkeys(copies, told[first]))
        if found["act_fn"] not in ACTIVATION_NAMES:
            allowed = ", ".join(ACTIVATION_NAMES)
            raise LoadError(f"{where}: {self.entries['act_fn']} = {found['act_fn']!r}", f"expected one of {allowed}")
        return found | {"act_fn": ACTIVATION_NAMES[found["act_fn"]]}

    def written(self, config: BlockShape, architecture: str) -> dict[str, Any]:
        """The entries that `transformers` reads for this config."""
        data = {"model_type": self.title.lower(), "architectures": [architecture], **self.usual}
        data |= {name: getattr(config, ours) for ours, theirs in self.entries.items() for name in theirs.split()}
        return data | dict.fromkeys(self.dropout, 0.0)

    def stack(self, shape: BlockShape, layers: int, ours: str = "blocks") -> Layout:
        """Where files keep the blocks of the stack that we call by this name."""
        told = {field.name: getattr(shape, field.name) for field in fields(BlockShape)}
        whole = layout(self.blocks, GPTConfig(**told, n_layers=layers, n_ctx=1, d_vocab=1))
        return {name.replace("blocks", ours, 1): found for name, found in whole.items() if name.startswith("blocks.")}


MARIAN = Kind(
    title="Marian",
    blocks=Names(
        block="model.encoder.layers.{}.", out="self_attn.out_proj", up="fc1", down="fc2",
        norms={"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm"},
    ),
    others={"W_E": "model.shared.weight", "b_U": "final_logits_bias"},
    entries={
        "n_encoder_layers": "encoder_layers", "n_decoder_layers": "decoder_layers",
        "n_heads": "encoder_attention_heads decoder_attention_heads", "d_model": "d_model",
        "d_mlp": "encoder_ffn_dim decoder_ffn_dim", "n_ctx": "max_position_embeddings",
        "d_vocab": "vocab_size decoder_vocab_size", "act_fn": "activation_function",
        "scale_embedding": "scale_embedding", "pad_token": "pad_token_id",
        "start_token": "decoder_start_token_id", "end_token": "eos_token_id",
    },
    unsaid={
        "max_position_embeddings": 1024, "activation_function": "gelu", "scale_embedding": False,
        "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
    },
    usual={
        "normalize_before": False, "normalize_embedding": False, "add_final_layer_norm": False,
        "share_encoder_decoder_embeddings": True, "static_position_embeddings": True, "tie_word_embeddings": True,
    },
    dropout=("dropout", "attention_dropout", "activation_dropout"),
)  # fmt: skip
MARIAN_DECODER = replace(MARIAN, blocks=replace(
    MARIAN.blocks, block="model.decoder.layers.{}.",
    norms={"ln1": "self_attn_layer_norm", "ln2": "encoder_attn_layer_norm", "ln3": "final_layer_norm"},
))  # fmt: skip
GENERATION = {
    "num_beams": "num_beams", "length_penalty": "length_penalty", "renormalize": "renormalize_logits",
    "forced_end_token": "forced_eos_token_id",
}  # fmt: skip
"""Ours -> theirs in `generation_config.json`."""

_ENCODER = {
    "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "d_model": "hidden_size",
    "d_mlp": "intermediate_size", "act_fn": "hidden_act", "eps": "layer_norm_eps", "init_std": "initializer_range",
}  # fmt: skip
_UNSAID = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02}
_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
BERT = Kind(
    title="BERT",
    blocks=Names(
        block="encoder.layer.{}.", q="attention.self.query", k="attention.self.key", v="attention.self.value",
        out="attention.output.dense", up="intermediate.dense", down="output.dense",
        norms={"ln1": "attention.output.LayerNorm", "ln2": "output.LayerNorm"},
    ),
    others={
        "embed.W_E": "embeddings.word_embeddings.weight", "embed.W_pos": "embeddings.position_embeddings.weight",
        "embed.W_type": "embeddings.token_type_embeddings.weight", "embed.ln.w": "embeddings.LayerNorm.weight",
        "embed.ln.b": "embeddings.LayerNorm.bias", "head.W": "cls.predictions.transform.dense.weight",
        "head.b": "cls.predictions.transform.dense.bias", "head.ln.w": "cls.predictions.transform.LayerNorm.weight",
        "head.ln.b": "cls.predictions.transform.LayerNorm.bias", "b_U": "cls.predictions.bias",
    },
    entries=_ENCODER | {"n_ctx": "max_position_embeddings", "d_vocab": "vocab_size", "n_types": "type_vocab_size"},
    unsaid=_UNSAID | {"max_position_embeddings": 512, "type_vocab_size": 2},
    usual={
        "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    dropout=_DROPOUT,
)  # fmt: skip
VIT = Kind(
    title="ViT",
    blocks=replace(
        BERT.blocks, q="attention.attention.query", k="attention.attention.key", v="attention.attention.value",
        norms={"ln1": "layernorm_before", "ln2": "layernorm_after"},
    ),
    others={
        "embed.W_E": "embeddings.patch_embeddings.projection.weight", "embed.class_token": "embeddings.cls_token",
        "embed.b_E": "embeddings.patch_embeddings.projection.bias", "embed.W_pos": "embeddings.position_embeddings",
        "ln_final.w": "layernorm.weight", "ln_final.b": "layernorm.bias", "unembed": "classifier.weight",
        "b_U": "classifier.bias",
    },
    entries=_ENCODER | {"image_size": "image_size", "patch_size": "patch_size", "n_channels": "num_channels"},
    unsaid=_UNSAID | {"image_size": 224, "patch_size": 16, "num_channels": 3},
    usual={"qkv_bias": True},
    dropout=_DROPOUT,
)  # fmt: skip


def encoder_decoder_from_hf(data: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> EncoderDecoderConfig:
    """The config in a Marian `config.json`, with what `generation_config.json` says of translating.

    Raises LoadError for an option that would change the function and is not supported.
    """
    try:
        found = MARIAN.read({"decoder_start_token_id": data["pad_token_id"], **data}, where)
        told = {**data, **generation}
        bad = told.get("bad_words_ids") or []
        if any(len(word) != 1 for word in bad):
            raise LoadError(f"{where}: bad_words_ids of several tokens", "expected single tokens")
        if told.get("early_stopping", False) is not False:
            raise LoadError(f"{where}: early_stopping = {told['early_stopping']!r}", "expected False")
        found |= {ours: told[theirs] for ours, theirs in GENERATION.items() if told.get(theirs) is not None}
        return EncoderDecoderConfig(**found, forbidden_tokens=tuple(word[0] for word in bad))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise incomplete(error, where, MARIAN.title) from None


def encoder_decoder_to_hf(config: EncoderDecoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `config.json` and the `generation_config.json` that `transformers` reads for this config."""
    data = MARIAN.written(config, "MarianMTModel") | {"is_encoder_decoder": True, "bos_token_id": config.end_token}
    generation = {key: value for key, value in data.items() if key.endswith("token_id")}
    generation |= {theirs: getattr(config, ours) for ours, theirs in GENERATION.items()}
    generation["max_length"] = config.n_ctx
    if config.forbidden_tokens:
        generation["bad_words_ids"] = [[token] for token in config.forbidden_tokens]
    return data, generation


def encoder_from_hf(data: Mapping[str, Any], where: str, *, head: Head | None, n_classes: int = 0) -> EncoderConfig:
    """The config in a BERT's or ViT's `config.json`; head and classes are what the weights say. Raises as above."""
    kind = VIT if data["model_type"] == "vit" else BERT
    try:
        found = kind.read(data, where)
        if kind is VIT:
            sizes = {name: _pair(found[name]) for name in ("image_size", "patch_size")}
            found |= sizes | {"post_norm": False, "n_types": 0}
        return EncoderConfig(**found, head=head, n_classes=n_classes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise incomplete(error, where, kind.title) from None


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def encoder_to_hf(config: EncoderConfig) -> dict[str, Any]:
    """The `config.json` that `transformers` reads for this config."""
    if not config.over_patches:
        return BERT.written(config, "BertForMaskedLM" if config.head else "BertModel")
    data = VIT.written(config, "ViTForImageClassification" if config.head else "ViTModel")
    if config.head:
        data["id2label"] = {str(n): f"LABEL_{n}" for n in range(config.n_classes)}
    return data


def layout_of(config: EncoderConfig | EncoderDecoderConfig, shapes: Shapes) -> Layout:
    """Our parameter -> where files keep it (without `bert.` or `vit.`); `shapes` are those of the parameters."""
    c = config
    kind = MARIAN if isinstance(c, EncoderDecoderConfig) else VIT if c.over_patches else BERT
    found = {ours: Stored(theirs, shapes[ours]) for ours, theirs in kind.others.items() if ours in shapes}
    if isinstance(c, EncoderDecoderConfig):
        found["b_U"] = replace(found["b_U"], shape=(1, c.d_vocab), default=0.0)
        decoder = MARIAN_DECODER.stack(c, c.n_decoder_layers, "decoder")
        for name, stored in [(name, stored) for name, stored in decoder.items() if ".attn." in name]:
            cross = stored.key.replace("self_attn", "encoder_attn")
            decoder[name.replace(".attn.", ".cross_attn.")] = replace(stored, key=cross)
        return found | MARIAN.stack(c, c.n_encoder_layers, "encoder") | decoder
    found |= kind.stack(c, c.n_layers)
    if c.over_patches:
        pixels = (c.d_model, c.n_channels, *c.patch_size)
        found["embed.W_E"] = replace(found["embed.W_E"], shape=pixels, view=lambda x: x.flatten(1).T)
        found["embed.class_token"] = replace(found["embed.class_token"], shape=(1, 1, c.d_model))
        found["embed.W_pos"] = replace(found["embed.W_pos"], shape=(1, c.n_ctx, c.d_model))
        for name in [name for name in found if name.endswith(("b_Q_flat", "b_K_flat", "b_V_flat"))]:
            found[name] = replace(found[name], default=0.0)  # some files have none
    elif "head.W" in found:
        found["head.W"] = replace(found["head.W"], view=lambda x: x.T)
    return found
