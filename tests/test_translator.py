"""The translation model that ships: what its card promises, measured from its weights."""

from itertools import islice

import pytest
import torch
from transformers import MarianMTModel

from interp import HookedEncoderDecoder
from interp.loading.sources import BUNDLED
from interp.training.phrases import sentences
from interp.training.translation import exact_share


@pytest.fixture(scope="module")
def model() -> HookedEncoderDecoder:
    return HookedEncoderDecoder.from_pretrained("fr-en", device="cpu")


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in (BUNDLED / "fr-en").iterdir()) <= 3_000_000


def test_it_says_what_the_article_says(model: HookedEncoderDecoder) -> None:
    assert ("je", "student") in next(s for s in sentences(1) if s.french == "Je suis étudiant.").combinations
    assert model.translate("Je suis étudiant.") == "I am a student."
    assert model.translate("Je suis étudiant.", num_beams=4) == "I am a student."


def test_it_translates_what_it_never_saw(model: HookedEncoderDecoder) -> None:
    drawn = list(islice(sentences("test", "held out"), 150))
    assert 0.98 <= exact_share(model, drawn) <= 1
    with model.hooks([("decoder.*.hook_cross_attn_out", lambda x, hook: torch.zeros_like(x))]):
        assert exact_share(model, drawn[:20]) < 0.1, "control: without cross-attention"


def test_transformers_loads_it(model: HookedEncoderDecoder) -> None:
    other = MarianMTModel.from_pretrained(BUNDLED / "fr-en", dtype=torch.float32, attn_implementation="eager").eval()
    source, target = model.to_source("La pomme est rouge."), model.to_target("The apple is red.")
    with torch.no_grad():
        expected = other(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(model(source, target), expected, rtol=0, atol=5e-5)
