"""Tuned lens: planted maps, the plain lens as identity, held-out gains, resuming; shuffled targets gain nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt

from analyses.logit_lens import logit_lens
from analyses.tuned_lens import split, tuned_lens
from interp import lens_maps as module
from interp.errors import InputError, LoadError, NotFoundError
from interp.lens_maps import TrainState, Translators, divergence, fit, read, streams, train
from interp.models.gpt import HookedGPT


def random_tokens(n: int, length: int = 64, seed: int = 0, d_vocab: int = 300) -> torch.Tensor:
    return torch.randint(d_vocab, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return make_gpt(n_layers=3, init_std=0.15)


def test_ridge_finds_a_planted_affine_map() -> None:
    torch.manual_seed(0)
    h, a, b = torch.randn(200, 12), torch.randn(12, 12), torch.randn(12)
    found_a, found_b = module._Ridge(h, h + h @ a + b).solve(1e-6)
    torch.testing.assert_close(found_a, a, rtol=0, atol=2e-5)
    torch.testing.assert_close(found_b, b, rtol=0, atol=2e-5)


def test_ridge_is_the_textbook_formula() -> None:
    torch.manual_seed(1)
    h, last = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    centred, change = h - h.mean(0), last - h
    penalty = 0.3 * centred.pow(2).sum() / 6 * torch.eye(6, dtype=torch.float64)
    a = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (change - change.mean(0)))
    found_a, found_b = module._Ridge(h, last).solve(0.3)
    torch.testing.assert_close(found_a, a, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_b, change.mean(0) - h.mean(0) @ a, rtol=0, atol=1e-10)


def test_streams_and_read_are_the_models_own(model: HookedGPT) -> None:
    ids = random_tokens(2, 9)
    logits, cache = model.run_with_cache(ids)
    places = streams(model, ids)
    for layer in range(3):
        torch.testing.assert_close(places[layer], cache["resid_pre", layer], rtol=0, atol=1e-5)
    torch.testing.assert_close(read(model, places[-1]), logits.log_softmax(-1), rtol=0, atol=1e-5)


def test_identity_is_the_plain_logit_lens(model: HookedGPT) -> None:
    ids = random_tokens(1, 20)
    result = tuned_lens(model, ids, translators=Translators.identity(model))
    np.testing.assert_allclose(result.kl[:, :, 0], result.kl[:, :, 1], rtol=0, atol=0)
    plain = logit_lens(model, ids)
    places = [plain.places.index("embed"), plain.places.index("L0 mlp"), plain.places.index("L1 mlp")]
    np.testing.assert_allclose(result.kl_by_position[0][:3], plain.kl[0][places, :-1], rtol=0, atol=1e-4)
    loss = -plain.log_probability[0][places, :-1].mean(1)
    np.testing.assert_allclose(result.loss[0, :, 0], loss, rtol=0, atol=1e-4)
    logits = model(ids)[0]
    cross = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert result.final_loss[0] == pytest.approx(float(cross.detach()), abs=1e-4)
    assert result.kl_by_position[0, -1].max() < 1e-5  # the last place is the model's own output


def test_tuned_beats_plain_on_held_out_text(model: HookedGPT) -> None:
    result = tuned_lens(model, random_tokens(12))
    assert result.kl.shape[1:] == (3, 2)
    assert (result.kl[:, :, 1] < result.kl[:, :, 0]).all()  # every layer, every held-out text
    assert result.held_out == 3 * 63
    assert result.trained == 9 * 64
    assert "3 of 3 layers" in result.findings()[0].text


def test_shuffled_targets_gain_nothing(model: HookedGPT) -> None:
    """Control: translators fitted to the final streams of other positions do not come closer than fitted ones do."""
    places = streams(model, random_tokens(9)).flatten(1, 2)
    order = torch.randperm(places.shape[1], generator=torch.Generator().manual_seed(0))
    weights, biases = zip(*(module._Ridge(h, places[-1][order]).solve(0.01) for h in places[:-1]), strict=True)
    broken = Translators(weight=torch.stack(weights), bias=torch.stack(biases))
    held_out = random_tokens(3, seed=1)
    good = tuned_lens(model, held_out, translators=fit(model, list(random_tokens(9).split(1))))
    bad = tuned_lens(model, held_out, translators=broken)
    assert (good.kl[..., 1] < good.kl[..., 0]).all()
    assert (bad.kl[..., 1] > 2 * good.kl[..., 1]).all()
    assert (bad.kl[:, -1, 1] > bad.kl[:, -1, 0]).all()  # in the last layer they even lose to the plain lens


def test_held_out_text_is_not_fitted_on(model: HookedGPT) -> None:
    one, two = random_tokens(12), random_tokens(12)
    two[9:] = random_tokens(3, seed=5)  # other held-out texts, the same to fit on
    first, second = tuned_lens(model, one).translators, tuned_lens(model, two).translators
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=0)
    (seen,), ((row, at),) = split([torch.arange(40)[None]], 0.25)
    assert seen.tolist() == [list(range(30))]
    assert at == 30
    assert row.shape == (1, 40)


def test_too_little_text_is_said_not_raised(model: HookedGPT) -> None:
    result = tuned_lens(model, random_tokens(1, 20))
    assert result.held_out == 0
    (note,) = result.panels()
    assert "15 tokens to fit it on and 4 to measure" in note.text
    assert result.findings() == []
    assert result.to_dataframe().empty
    assert list(result.to_dataframe().columns) == ["text", "place", "lens", "kl", "loss"]
    enough = int(note.text.split("at least ")[1].split()[0])
    assert tuned_lens(model, random_tokens(1, enough)).held_out > 0
    assert tuned_lens(model, random_tokens(1, 1), translators=Translators.identity(model)).held_out == 0


def test_training_lowers_the_divergence_and_tells(model: HookedGPT, tmp_path: Path) -> None:
    seen: list[TrainState] = []
    text, held_out = random_tokens(40).flatten(), random_tokens(4, seed=7)
    made = train(model, text, steps=40, batch=4, lr=1e-3, progress=seen.append, out=tmp_path / "lens.safetensors")
    start = fit(model, list(module._batch(text, 0, 4, 64, 0).split(1)))
    assert [state.step for state in seen] == list(range(1, 41))
    assert all(len(state.loss) == 3 for state in seen)

    @torch.no_grad()
    def kl(lens: Translators) -> list[float]:
        places = streams(model, held_out)
        final = read(model, places[-1])
        return [float(divergence(final, read(model, lens(places[i], i))).mean()) for i in range(3)]

    assert all(after < before for after, before in zip(kl(made), kl(start), strict=True))
    assert made.tokens == 40 * 4 * 64
    assert not (tmp_path / "lens.safetensors.state").exists()


def test_a_resumed_run_ends_with_the_same_numbers(model: HookedGPT, tmp_path: Path) -> None:
    text = random_tokens(10).flatten()
    options = {"steps": 12, "batch": 2, "length": 32}
    whole = train(model, text, **options)

    class Stop(Exception):
        pass

    def stop(state: TrainState) -> None:
        if state.step == 8:
            raise Stop

    with pytest.raises(Stop):
        train(model, text, **options, out=tmp_path / "t", save_every=5, progress=stop)
    steps: list[int] = []
    resumed = train(model, text, **options, out=tmp_path / "t", resume=True, progress=lambda s: steps.append(s.step))
    assert steps == list(range(6, 13))
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)
    torch.testing.assert_close(resumed.bias, whole.bias, rtol=0, atol=0)
    other = train(model, text, **options | {"seed": 1})
    assert (other.weight - whole.weight).abs().max() > 1e-4  # control: another seed ends elsewhere
    with pytest.raises(Stop):
        train(model, text, **options, out=tmp_path / "t", save_every=5, progress=stop)
    with pytest.raises(LoadError, match="another lr"):
        train(model, text, **options, lr=0.1, out=tmp_path / "t", resume=True)


def test_adam_is_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4)
    ours = {"weight": x.clone(), "m_weight": torch.zeros_like(x), "v_weight": torch.zeros_like(x)}
    theirs = x[0].clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.01)
    for step in range(5):
        theirs.grad = torch.sin(theirs.detach())
        module._adam(ours, "weight", 0, torch.sin(ours["weight"][0]), step + 1, 0.01)
        optimiser.step()
    torch.testing.assert_close(ours["weight"][0], theirs.detach(), rtol=0, atol=1e-6)


def test_files(model: HookedGPT, tmp_path: Path) -> None:
    made = fit(model, list(random_tokens(3).split(1)))
    made.save(tmp_path / "a" / "lens.safetensors")
    back = Translators.load(tmp_path / "a" / "lens.safetensors")
    torch.testing.assert_close(back.weight, made.weight, rtol=0, atol=0)
    torch.testing.assert_close(back.bias, made.bias, rtol=0, atol=0)
    assert (back.tokens, back.model) == (made.tokens, made.model)
    with pytest.raises(NotFoundError, match="no translators"):
        Translators.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"not safetensors")
    with pytest.raises(LoadError, match="holds no translators"):
        Translators.load(tmp_path / "bad")


def test_translators_of_another_model(model: HookedGPT) -> None:
    with pytest.raises(InputError, match="translators for 3 layers of width 32"):
        tuned_lens(make_gpt(), random_tokens(1, 9), translators=Translators.identity(model))
    other = make_gpt(n_layers=3, seed=1)
    result = tuned_lens(other, random_tokens(1, 9), translators=Translators.identity(model))
    assert "other weights" in result.remark
    assert result.panels()[-1].key == "remark"


def test_text_and_bad_options(toy_gpt: HookedGPT) -> None:
    result = tuned_lens(toy_gpt, [TEXT[:50], TEXT[50:90]], translators=Translators.identity(toy_gpt))
    assert len(result.kl) == 2
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    assert result.to_dataframe().shape == (2 * 2 * 2, 5)
    with pytest.raises(InputError, match="held_out"):
        tuned_lens(toy_gpt, TEXT[:50], held_out=1.0)
    with pytest.raises(InputError, match="steps = 0"):
        train(toy_gpt, torch.arange(100), steps=0)
