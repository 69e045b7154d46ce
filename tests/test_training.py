"""Training: it learns, it resumes to the same weights, it can be killed, and its parts do what they say."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import InputError, LoadError
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.training import corpus, optimisers
from interp.training import gpt as training
from interp.training.evaluation import held_out
from interp.training.gpt import TextAndCopies
from interp.training.settings import Stage, TrainSettings, settings_for

TINY = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=16, d_vocab=32)
SETTINGS = TrainSettings(
    config=TINY,
    stages=(Stage(steps=8, batch=4, length=8, pieces=0.5), Stage(steps=12, batch=2, length=16, repeats=0.5)),
    warm_up=4,
    decay=10,
    seed=3,
    dtype="float32",
)
TOKENS = np.random.default_rng(0).integers(1, 32, 5000).astype(np.uint16)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than these runs."""
    monkeypatch.setattr(training, "_compiler", lambda: False)


def same(a: HookedGPT, b: HookedGPT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def run(out: Path, settings: TrainSettings = SETTINGS, **options: object) -> HookedGPT:
    return training.train(settings, out=out, batches=TextAndCopies(TOKENS, settings), device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop_at", [3, 8, 13])
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = run(tmp_path / "whole", report_every=2)
    source = TextAndCopies(TOKENS, SETTINGS)

    def interrupted(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == stop_at - 1:
            signal.raise_signal(signal.SIGINT)
        return source(step)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        training.train(SETTINGS, out=tmp_path / "cut", batches=interrupted, device="cpu", report_every=2)
    assert steps_done(tmp_path / "cut") == stop_at
    resumed = run(tmp_path / "cut", resume=True, report_every=2)
    assert same(whole, resumed)
    curves = [(tmp_path / name / training.CURVE).read_text().splitlines() for name in ("whole", "cut")]
    without_seconds = [[line.rsplit(",", 1)[0] for line in curve] for curve in curves]
    assert without_seconds[0] == without_seconds[1]
    assert len(curves[0]) == 11


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    other = dataclasses.replace(SETTINGS, seed=4)
    assert not same(run(tmp_path / "a"), run(tmp_path / "b", other))


def steps_done(out: Path) -> int:
    path = out / training.CHECKPOINT
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0


def test_a_run_is_not_overwritten_nor_mixed(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match="already holds"):
        run(tmp_path)
    with pytest.raises(InputError, match="other settings"):
        run(tmp_path, dataclasses.replace(SETTINGS, lr=1e-4), resume=True)
    assert json.loads((tmp_path / "settings.json").read_text())["lr"] == SETTINGS.lr
    (tmp_path / training.CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(LoadError, match="cannot be read"):
        run(tmp_path, resume=True)


def test_training_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    """A cycle of 8 tokens: the loss goes from log 32 to nearly none. A control on random targets stays high."""
    steps = 60

    def cycle(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = (torch.arange(17) + torch.randint(0, 8, (8, 1), generator=torch.Generator().manual_seed(step))) % 8
        return x[:, :-1], x[:, 1:]

    def noise(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(0, 32, (8, 17), generator=torch.Generator().manual_seed(step))
        return x[:, :-1], x[:, 1:]

    losses: dict[str, list[float]] = {}
    for name, source in (("cycle", cycle), ("noise", noise)):
        for optimiser in ("muon", "adamw"):
            settings = TrainSettings(
                config=TINY, stages=(Stage(steps=steps, batch=8, length=16),), optimiser=optimiser,
                lr=1e-2, warm_up=5, decay=30, dtype="float32",
            )  # fmt: skip
            seen: list[float] = []
            training.train(
                settings, out=tmp_path / f"{name}-{optimiser}", batches=source, device="cpu", report_every=1,
                progress=lambda state, seen=seen: seen.append(state.loss),
            )  # fmt: skip
            losses[f"{name} {optimiser}"] = seen
    for name, seen in losses.items():
        assert abs(seen[0] - math.log(32)) < 0.1
        assert (seen[-1] < 0.1) == name.startswith("cycle"), name
        assert name.startswith("cycle") or 3.3 < seen[-1] < 3.7


def test_adamw_alone_is_torchs(tmp_path: Path) -> None:
    """Full batches on one sequence of tokens, as studies of tiny models train: the same as a loop in plain torch."""
    config = GPTConfig(n_layers=1, n_heads=2, d_model=8, n_ctx=4, d_vocab=3)
    sequence = torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 1, 0, 1])
    x = sequence.unfold(0, 4, 1)[:-1]
    y = sequence.unfold(0, 4, 1)[1:]
    settings = TrainSettings(
        config=config, stages=(Stage(steps=20, batch=len(x), length=4),), optimiser="adamw", lr=1e-3,
        betas=(0.9, 0.999), weight_decay=0.1, warm_up=0, dtype="float32", seed=5,
    )  # fmt: skip
    trained = training.train(settings, out=tmp_path, batches=lambda step: (x, y), device="cpu")
    model = training.build(settings)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999))
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimiser.step()
    for a, b in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_models_own() -> None:
    model = training.build(SETTINGS)
    x, y = TextAndCopies(TOKENS, SETTINGS)(0)
    logits = model(x).log_softmax(-1)
    slow = -sum(logits[b, i, y[b, i]] for b in range(len(x)) for i in range(x.shape[1]) if y[b, i] >= 0)
    torch.testing.assert_close(training.next_token_loss(model, x, y), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4), (3, 6, 5)])
def test_orthogonalise_keeps_the_directions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    found = optimisers.orthogonalise(x)
    inner = u.mT @ found @ vh.mT
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.3) & (diagonal < 1.3)).all(), "singular values near one, the small ones a little less"
    off = inner - torch.diag_embed(diagonal)
    assert off.abs().max() < 0.1
    assert not torch.allclose(u.mT @ x @ vh.mT, inner, atol=0.5), "control: the matrix itself is not orthogonal"


def test_muon_steps_along_the_orthogonal_factor() -> None:
    gradient = torch.randn(6, 18, generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(6, 18, requires_grad=True)
    weight.grad = gradient
    optimisers.Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    ahead = gradient.lerp(torch.zeros_like(gradient).lerp(gradient, 1 - 0.9), 0.9)
    expected = -0.1 * optimisers.orthogonalise(ahead) * 3**0.5
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0.1 * 2**-8)
    assert not torch.allclose(weight, -0.1 * ahead, atol=0.02), "control: the gradient itself"


def test_rates_go_up_stay_and_fall() -> None:
    rates = [SETTINGS.rate(step) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:11] == [1.0] * 7
    assert rates[11:] == pytest.approx([0.9 - 0.1 * i for i in range(9)])


def test_batches_hold_the_shares_that_the_stage_says() -> None:
    settings = dataclasses.replace(SETTINGS, stages=(Stage(steps=1, batch=8, length=16, pieces=0.25, repeats=0.5),))
    x, y = TextAndCopies(TOKENS, settings)(0)
    assert x.shape == y.shape == (8, 16)
    assert (x[:, 0] == 0).all(), "every sequence stands behind the beginning token"
    masked = (y == -1).any(1)
    assert masked.tolist() == [True] * 6 + [False] * 2
    for row in (6, 7):
        assert (x[row, 1:] == y[row, :-1]).all()
        text = y[row].numpy()
        assert any((TOKENS[i : i + 16] == text).all() for i in range(len(TOKENS) - 15))
    for row in range(6):
        assert ((x[row, 1:] == y[row, :-1]) | (y[row, :-1] == -1)).all()


def test_sinusoids_shift_by_one_rotation() -> None:
    """One matrix maps every position's vector to the next one's; it maps no such noise."""
    waves = training.sinusoids(64, 16).double()
    noise = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for x, fits in ((waves, True), (noise, False)):
        shift = torch.linalg.lstsq(x[:-1], x[1:]).solution
        assert ((x[:-1] @ shift - x[1:]).abs().max() < 1e-3) == fits


@pytest.mark.parametrize(
    "wrong",
    [{"stages": ()}, {"stages": (Stage(steps=1, batch=1, length=17),)},
     {"stages": (Stage(steps=1, batch=1, length=8, pieces=0.6, repeats=0.6),)}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(SETTINGS, **wrong)  # type: ignore[arg-type]


def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    model = run(tmp_path)
    loaded = HookedGPT.from_pretrained(tmp_path, device="cpu")
    x, _ = TextAndCopies(TOKENS, SETTINGS)(0)
    torch.testing.assert_close(loaded(x), model(x))


def test_a_corpus_shorter_than_a_sequence_is_an_input_error() -> None:
    longest = max(stage.length for stage in SETTINGS.stages)
    TextAndCopies(TOKENS[:longest], SETTINGS)(0)  # the control: one sequence will do
    with pytest.raises(InputError, match=f"{longest - 1} tokens.*\n.*at least {longest}"):
        TextAndCopies(TOKENS[: longest - 1], SETTINGS)


def test_a_refused_corpus_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "dump.xml").write_text("<mediawiki></mediawiki>")
    settings = dataclasses.replace(SETTINGS, corpus=str(tmp_path / "dump.xml"))
    with pytest.raises(InputError, match="no articles"):
        training.train(settings, out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


# Text.


def text_settings(path: Path, **given: object) -> TrainSettings:
    small = {"layers": 1, "width": 32, "context": 32, "batch": 8, "steps": 40, "corpus": [str(path)]} | given
    return settings_for(corpus.documents([path]), **small)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_one_sentence_repeated_is_learned_and_noise_is_not(tmp_path: Path, kind: str) -> None:
    """Every next character of a repeated sentence follows from the context; of random letters, log 8 nats do not."""
    noise = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 6000))
    found = {}
    for name, text in (("sentence", "the king's fox was by a lamp. " * 200), ("noise", noise)):
        path = tmp_path / f"{name}.txt"
        path.write_text(text)
        out = tmp_path / name
        settings = text_settings(path, tokenizer=kind, steps=150)
        assert settings.config.d_vocab == (257 if kind == "bytes" else len(set(text)) + 2)
        model = training.train(settings, out=out, evaluate=held_out(out / "corpus"), evaluate_every=10, device="cpu")
        curve = pd.read_csv(out / training.CURVE)
        found[name] = measured = curve.held_out_loss.min()
        again = held_out(out / "corpus")(HookedGPT.from_pretrained(out, device="cpu"))["held_out_loss"]
        assert again == pytest.approx(measured, rel=1e-4), "what is saved is the best"
        # One token is one byte here, but for the token in front of the text.
        np.testing.assert_allclose(curve.bits_per_byte, curve.loss / math.log(2), rtol=1e-3)
        rows = curve.dropna(subset="held_out_loss")
        np.testing.assert_allclose(rows.held_out_bits_per_byte, rows.held_out_loss / math.log(2), rtol=1e-4)
        assert model.tokenizer is not None
    assert found["sentence"] < 0.2
    assert 0.98 * math.log(8) < found["noise"] < 1.1 * math.log(8)


def test_the_weights_of_the_lowest_held_out_loss_are_kept_over_a_resumption(tmp_path: Path) -> None:
    losses = {5: 3.0, 10: 2.0, 15: 2.5, 20: 2.0}
    settings, seen = dataclasses.replace(SETTINGS), {}

    def planted(model: HookedGPT) -> dict[str, float]:
        step = 5 * (1 + len(seen))
        seen[step] = {name: weight.clone() for name, weight in model.state_dict().items()}
        return {"held_out_loss": losses[step]}

    source = TextAndCopies(TOKENS, settings)

    def interrupted(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 12:
            signal.raise_signal(signal.SIGINT)
        return source(step)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"evaluate": planted, "evaluate_every": 5, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        training.train(settings, out=tmp_path, batches=interrupted, **options)  # type: ignore[arg-type]
    model = run(tmp_path, settings, resume=True, evaluate=planted, evaluate_every=5)
    kept = model.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in seen[10].items())
    assert not all(torch.equal(kept[name], weight) for name, weight in seen[20].items()), "control: the last"
    assert pd.read_csv(tmp_path / training.CURVE).best_step.tolist() == [5, 10, 10, 10]


KILLED_TEXT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from interp.training import gpt as training
sys.path.insert(0, sys.argv[3])
from test_training import run_on_text
real = training.TextAndCopies.__call__
def batch(self, step):
    if step == 22:
        print("there", flush=True)
        sys.stdin.read()
    return real(self, step)
training.TextAndCopies.__call__ = batch
run_on_text(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_seconds=0)
"""


def run_on_text(out: Path, text: Path, *, checkpoint_seconds: float = 1e9) -> None:
    training.train(
        text_settings(text), out=out, evaluate=held_out(out / "corpus"), evaluate_every=4, report_every=4,
        device="cpu", resume=True, checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_on_text_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("".join(f"line {i * i % 97} of the text, {i % 7}\n" for i in range(300)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED_TEXT, str(tmp_path / "cut"), str(text), str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    process.communicate()
    assert steps_done(tmp_path / "cut") == 22
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    for out in ("cut", "whole"):
        run_on_text(tmp_path / out, text)
    for name in ("model.safetensors", "tokenizer.json", "settings.json", "corpus/train.bin"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    curves = [pd.read_csv(tmp_path / out / training.CURVE).drop(columns="seconds") for out in ("cut", "whole")]
    pd.testing.assert_frame_equal(*curves)
    text.write_text(text.read_text() + "more\n")
    with pytest.raises(InputError, match="another corpus"):
        run_on_text(tmp_path / "cut", text)


def test_defaults_suit_the_size_of_the_text() -> None:
    words = " ".join(f"word{i * i % 5003}" for i in range(30_000))
    tokens = [settings_for([words[:size]]).config.d_vocab for size in (9_000, 30_000, 200_000)]
    assert tokens == [257, 512, 1024]
    dump = settings_for(None)
    assert (dump.config.n_layers, dump.config.d_vocab, dump.steps, dump.stages[0].repeats) == (4, 4096, 6000, 0.1)
    repeated = settings_for(["again and again " * 5000])
    assert repeated.config.d_vocab < 512, "no token without a text"
    chosen = settings_for([words], layers=3, width=96, context=64, steps=7, batch=5, heads=2, repeats=0.2)
    assert (chosen.config.n_layers, chosen.config.d_head, chosen.config.n_ctx, chosen.steps) == (3, 48, 64, 7)
    with pytest.raises(InputError, match="bytes"):
        settings_for([words], tokenizer="bytes", vocabulary=400)


def test_a_text_too_short_for_a_sequence_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Too short.")
    with pytest.raises(InputError, match=r"tokens to train on\n.*at least 32"):
        training.train(text_settings(path), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
