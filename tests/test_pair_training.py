"""Training on generated pairs: exact resumption, held-out sentences left out, and a loss that falls."""

from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.training import translation
from interp.training.phrases import sentences
from interp.training.translation import PairSettings, build, train_pairs, translation_loss

SMALL = {"layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32, "d_vocab": 320, "batch": 4, "warm_up": 2}


@pytest.fixture(autouse=True)
def quickly_learned_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From fewer sentences; so few tokens need no more."""
    monkeypatch.setattr(translation, "learned_tokens", partial(translation.learned_tokens, count=1000))


def test_a_stopped_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    settings = PairSettings(steps=6, **SMALL)

    def stop(state) -> None:
        if state.step == 3:
            raise RuntimeError("stopped")

    whole = train_pairs(settings, out=tmp_path / "whole", device="cpu")
    with pytest.raises(RuntimeError, match="stopped"):
        train_pairs(settings, out=tmp_path / "cut", device="cpu", progress=stop, report_every=1, checkpoint_seconds=0.0)
    with pytest.raises(InputError, match="already holds"):
        train_pairs(settings, out=tmp_path / "cut", device="cpu")
    resumed = train_pairs(settings, out=tmp_path / "cut", device="cpu", resume=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(whole.parameters()), next(build(settings).parameters())), "control: it learned"
    with pytest.raises(InputError, match="other settings"):
        train_pairs(PairSettings(steps=7, **SMALL), out=tmp_path / "cut", device="cpu", resume=True)


@torch.no_grad()
def test_the_loss_is_that_of_each_sentence_alone() -> None:
    model = build(PairSettings(steps=1, **SMALL))
    drawn = list(islice(sentences("loss", "train"), 5))
    together, count = translation_loss(model, drawn)
    alone = [translation_loss(model, [one]) for one in drawn]
    expected = sum(float(loss) * n for loss, n in alone) / count
    assert count == sum(n for _, n in alone)
    assert float(together) == pytest.approx(expected, abs=1e-5)
    swapped = [type(a)(**{**a.__dict__, "english": b.english}) for a, b in pairwise(drawn)]
    assert float(translation_loss(model, swapped)[0]) != pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"corpus": "novels"}])
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        PairSettings(**wrong)
