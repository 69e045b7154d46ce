"""What the three kinds of model share: where one came from, its first weights, device, tokenizer, loading, saving."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.hooks import HookedModule
from interp.models.config import BlockShape, hook_shape
from interp.text.tokenizer import Tokenizer

Config = TypeVar("Config", bound=BlockShape)
Text = TypeVar("Text")


def later(place: str) -> Callable[..., Any]:
    """The function at `module:name`, of a room that stands on this one: some of a model's methods are but its names."""
    module, name = place.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


class HookedModel(HookedModule, Generic[Config, Text]):
    """Base of the models: a config and, where there is one, a tokenizer."""

    SAVED_BY: ClassVar[str] = "interp.loading.encoders:save"
    """Module and function that write it."""
    W_E: Tensor

    def __init__(self, config: Config, tokenizer: Text | None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.source = "random weights"
        self.weight_files: tuple[Path, ...] = ()

    def _complete(self) -> None:
        """Name the hook points and draw random weights, once all parts are there. Call it at the end of __init__."""
        self._name_hook_points()
        self.eval()
        if self.W_E.is_meta:  # there is nothing to draw, and drawing there imports PyTorch's compiler
            return
        with torch.no_grad():
            for path, parameter in self.named_parameters():
                name = path.rsplit(".", 1)[-1]
                if name.startswith("b"):
                    nn.init.zeros_(parameter)
                elif name == "W_Q_flat":
                    draw_qkv(self, path, partial(self._draw, name))
                elif name not in ("w", "W_K_flat", "W_V_flat"):  # norms begin with their gains
                    self._draw(name, parameter)

    @abstractmethod
    def _draw(self, name: str, parameter: Tensor) -> None:
        """Random weights for what is neither gain nor bias; queries, keys and values come as one, named `W_Q_flat`."""

    @abstractmethod
    def _shape(self) -> str:
        """The shape in words, for `repr`."""

    def __repr__(self) -> str:
        count, dtype = sum(x.numel() for x in self.parameters()), str(self.dtype).removeprefix("torch.")
        of = f"{self.source!r}: {self._shape()}"
        return f"{type(self).__name__}({of}; {count:,} parameters, {dtype} on {self.device})"

    @property
    def device(self) -> torch.device:
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_E.dtype

    def hook_shape(self, name: str, batch: int, pos: int) -> tuple[int, ...]:
        """The shape of the activation at a hook point for inputs of `pos` positions."""
        return hook_shape(self.config, name, batch, pos, pos)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """A trained model of this kind: a bundled name, a directory or a hub id. Options: see `interp.load`."""
        model: Self = later("interp.loading.any:load_as")(cls, source, **options)
        return model

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config, weights and tokenizer as `transformers` loads them. See `interp.loading.decoders.save`."""
        later(self.SAVED_BY)(self, directory, dtype=dtype)

    def _tokenizer(self) -> Text:
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer", "expected token ids [batch pos] instead of text")
        return self.tokenizer


class TextModel(HookedModel[Config, Tokenizer]):
    """Base of the models that read one text: one line a method, the work is the tokenizer's."""

    def to_tokens(self, text: str | Sequence[str], *, prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Text as token ids; several texts must have the same length in tokens (else `to_batch`).

        `prepend_bos`: with the beginning-of-text token in front, or BERT's [CLS] and [SEP] around it.
        """
        return self._tokenizer().to_tokens(text, prepend_bos=prepend_bos).to(self.device)

    def to_batch(self, texts: Sequence[str], *, prepend_bos: bool = True) -> tuple[Tensor, Tensor]:
        """Texts of any length, padded on the left (on the right for a BERT): token ids and attention mask, both
        [batch pos]."""
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


@torch.no_grad()
def draw_qkv(model: nn.Module, name: str, draw: Callable[[Tensor], object]) -> None:
    """Draw the matrices of an attention, of which `name` is the first, as the one that GPT-2 keeps them in.

    So a seed gives the weights that it gives elsewhere.
    """
    attn = model.get_submodule(name.rpartition(".")[0])
    parts = [attn.get_parameter(f"W_{letter}_flat") for letter in "QKV"]
    whole = torch.cat([torch.empty_like(part) for part in parts], dim=1)
    draw(whole)
    for part, values in zip(parts, whole.split([part.shape[1] for part in parts], dim=1), strict=True):
        part.copy_(values)
