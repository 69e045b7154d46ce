"""Fixtures shared by all tests: small random models and a small real tokenizer."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from in_browser import chromium

from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import END_OF_TEXT

torch.set_num_threads(1)  # the models are tiny: two threads would mostly wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # and so would those of what a test starts
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="interp-tests-")  # not the cache of who runs them

TEXT = (
    "The cat sat on the mat. The dog sat on the log. When Mary and John went to the store, John gave a drink to Mary. "
)


def make_gpt(
    *, seed: int = 0, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None, **config: object
) -> HookedGPT:
    """A small model with weights large enough that every part matters; keyword arguments override the config."""
    shape = {"n_layers": 2, "n_heads": 4, "d_model": 32, "n_ctx": 64, "d_vocab": 300, "init_std": 0.2} | config
    torch.manual_seed(seed)
    model = HookedGPT(GPTConfig(**shape), tokenizer=tokenizer)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():  # biases and gains that are not trivially zero and one
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith(".w") else 0.0, std=0.1)
    return model.to(dtype)


@pytest.fixture(scope="session")
def toy_tokenizer() -> Tokenizer:
    """A byte-level BPE with 300 tokens, trained on a few sentences."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    return Tokenizer(backend)


@pytest.fixture(scope="session")
def toy_gpt(toy_tokenizer: Tokenizer) -> HookedGPT:
    """A two-layer random model that reads text."""
    return make_gpt(tokenizer=toy_tokenizer)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium a file."""
    with chromium() as running:
        yield running
