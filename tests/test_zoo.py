"""The zoo: every published figure of small models that others trained, slow versions of what is measured, controls.

The files are no part of the project: they are read from `../shared/zoo`, and what needs them is skipped without.
"""

import copy
import csv
import json
import random
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import interp
from conftest import make_gpt

from analyses.shared import zoo as published
from analyses.shared.zoo import (
    FIGURES,
    MEASURES,
    READERS,
    Figure,
    Zoo,
    ZooResult,
    before_last_update,
    measure,
    modular_pairs,
)
from analyses.verify import verify
from interp.errors import InputError, LoadError, NotFoundError
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from reports.commands.analysis import command_of
from reports.running.discovery import discover

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"
needs_zoo = pytest.mark.skipif(not ZOO.is_dir(), reason="../shared/zoo is not there")
PALINDROMES, NUMBERS = "arena/palindrome_classifier.pt", "arena/palindromes.npz"
PALINDROME_SHAPE = GPTConfig(
    n_layers=2, n_heads=2, d_model=28, d_head=14, n_ctx=22, d_vocab=33, d_vocab_out=2, attn_only=True, tied=False,
    unembed_bias=True,
)  # fmt: skip
CLOCK, GROKKING = "pizza/model_l8k1hzciux.pt", "grokking/wd_10-1_mod_addition.pth"


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return Zoo.load(str(ZOO))


def only(zoo: Zoo, model: str, **changed: object) -> Zoo:
    """One model's files alone; `changed` by the last part of the path, without its ending."""
    files = {name: zoo.files[name] for name in MEASURES[model][1]}
    return replace(zoo, files={name: changed.get(Path(name).stem, x) for name, x in files.items()})


def verdicts(result: ZooResult) -> dict[str, bool]:
    """Key of a figure -> whether it agrees, for those that ran."""
    frame = result.to_dataframe()
    assert list(frame["what"]) == [figure.what for figure in FIGURES]
    return {f.key: agrees for f, agrees in zip(FIGURES, frame["agrees"], strict=True) if agrees is not None}


@needs_zoo
@pytest.mark.slow
def test_every_published_figure_is_reproduced(zoo: Zoo) -> None:
    result = verify(None, zoo=zoo)
    assert isinstance(result, ZooResult)
    frame = result.to_dataframe()
    assert len(frame) == len(FIGURES) == 20
    assert frame["agrees"].all(), frame[["model", "what", "published", "measured"]]
    assert result.passed
    assert result.facts() == {"passed": True, "missing": [], "remark": ""}
    assert [panel.key for panel in result.panels()] == ["figures", "definitions"]
    assert "20 of 20" in result.findings()[0].text


@needs_zoo
def test_the_table_says_what_the_readme_of_the_zoo_says() -> None:
    told = (ZOO / "README.md").read_text(encoding="utf-8")
    recorded = {"train", "test", "train saved", "test saved", "text", "loads", "correct"}  # these stand in the files
    for figure in FIGURES:
        if figure.key not in recorded:
            number = figure.published.removeprefix("0").replace("e-0", "e-")
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", told), figure
    assert len((ZOO / "stories260K" / "greedy.txt").read_text(encoding="utf-8").rstrip("\n")) == 565
    assert 59 * 59 == 3481
    file = torch.load(ZOO / GROKKING, weights_only=True, map_location="cpu")
    known = {figure.key: figure for figure in FIGURES if figure.model == "grokking"}
    for key in ("train", "test"):
        for form in (key, f"{key} saved"):
            assert known[form].agrees(file[f"{key}_loss"].item())


@needs_zoo
def test_palindromes_by_plain_hooks_and_the_controls(zoo: Zoo) -> None:
    """Ten figures, each again by a plain hook; a perturbed head, other weights and other means give other verdicts."""
    result = measure(only(zoo, "palindromes"))
    assert result.passed
    assert len(verdicts(result)) == 10
    data, state = zoo.files[NUMBERS], zoo.files[PALINDROMES]
    tokens, label = (torch.from_numpy(data[name]).long() for name in ("tokens", "label"))
    inside = tokens[:, 1:-1]
    assert torch.equal((inside == inside.flip(1)).all(1).long(), label)
    model = published.process_weights(HookedGPT.from_state_dict(state, PALINDROME_SHAPE))
    for layer, head, kind in product(range(2), range(2), ("mean", "zero")):

        def edit(x: torch.Tensor, hook: object, head: int = head, kind: str = kind) -> torch.Tensor:
            x[:, :, head] = x[:, :, head].mean(0, keepdim=True) if kind == "mean" else 0
            return x

        with torch.no_grad():
            last = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", edit)])[:, -1]
        slow = (last.gather(1, label[:, None]) - last.gather(1, 1 - label[:, None])).double().mean().item()
        assert result.measured["palindromes"][f"{kind} L{layer}H{head}"] == pytest.approx(slow, abs=1e-5)

    changed = copy.deepcopy(state)
    changed["blocks.1.attn.W_O"][0] *= 1.01
    found = verdicts(measure(only(zoo, "palindromes", palindrome_classifier=changed)))
    assert not found["clean"]
    assert not found["mean L0H0"]
    fewer = {name: x[:2000] for name, x in data.items()}  # other texts, another mean
    assert not verdicts(measure(only(zoo, "palindromes", palindromes=fewer)))["mean L0H0"]
    swapped = {**data, "label": 1 - data["label"]}
    assert not any(verdicts(measure(only(zoo, "palindromes", palindromes=swapped))).values())


@needs_zoo
def test_other_kinds_of_mean_are_not_the_published_ones(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave-one-out is near but differs in the third decimal; so do weights that were not folded."""
    ablation = published.ablation
    monkeypatch.setattr(
        published, "ablation", lambda *args, **more: ablation(*args, **{**more, "kinds": ("mean_by_position", "zero")})
    )
    found = measure(only(zoo, "palindromes")).measured["palindromes"]
    assert found["mean L0H0"] == pytest.approx(0.611, abs=1e-3)
    monkeypatch.setattr(published, "ablation", ablation)
    monkeypatch.setattr(published, "process_weights", lambda model: model)
    found = verdicts(measure(only(zoo, "palindromes")))
    assert found["loss"]
    assert found["mean L0H0"]
    assert not found["zero L0H0"]


@needs_zoo
def test_the_story_is_told_to_its_end_and_by_no_other_weights(zoo: Zoo) -> None:
    assert measure(only(zoo, "stories260K")).passed
    other = copy.deepcopy(zoo.files["stories260K/stories260K.bin"])
    with torch.no_grad():
        other.blocks[2].attn.W_O_flat.mul_(0.9)
    result = measure(only(zoo, "stories260K", stories260K=other))
    assert not result.passed
    assert 4 < float(result.measured["stories260K"]["text"]) < 565


@needs_zoo
def test_distance_irrelevance_is_that_of_the_definition(zoo: Zoo) -> None:
    result = measure(only(zoo, "clock"))
    assert result.passed
    model = published._adder(zoo.files[CLOCK], 59, equals=False)
    with torch.no_grad():
        logits = model(modular_pairs(59))[:, -1].double().numpy().reshape(59, 59, 59)
    correct = [[logits[a, (a + d) % 59, (a + a + d) % 59] for a in range(59)] for d in range(59)]
    slow = np.mean([np.std(row) for row in correct]) / np.std(correct)
    assert result.measured["clock"]["irrelevance"] == pytest.approx(slow, abs=1e-12)
    sums = np.mean(np.std(correct, axis=0)) / np.std(correct)  # the control: grouped by a instead of a - b
    assert abs(sums - slow) > 1e-2


@needs_zoo
def test_a_clock_with_one_output_turned_on_is_wrong(zoo: Zoo) -> None:
    changed = dict(zoo.files[CLOCK])
    changed["unembed.W_U"] = changed["unembed.W_U"].roll(1, 1)
    assert not any(verdicts(measure(only(zoo, "clock", model_l8k1hzciux=changed))).values())
    noisy = dict(zoo.files[CLOCK])
    noisy["blocks.0.mlp.W_out"] = noisy["blocks.0.mlp.W_out"] * 0.9  # still right, by another margin
    found = verdicts(measure(only(zoo, "clock", model_l8k1hzciux=noisy)))
    assert found["correct"]
    assert not found["irrelevance"]


@needs_zoo
@pytest.mark.slow
def test_the_losses_of_the_file_and_the_controls(zoo: Zoo) -> None:
    file = zoo.files[GROKKING]
    assert all(verdicts(measure(only(zoo, "grokking"))).values())
    pairs = [(i, j, 113) for i in range(113) for j in range(113)]  # the split as their notebook makes it
    random.seed(1)
    random.shuffle(pairs)
    train = torch.tensor(pairs[: int(0.3 * len(pairs))])
    with torch.no_grad():
        logits = published._adder(before_last_update(file["model"], file["optimizer"]), 113, equals=True)(train)[:, -1]
    loss = torch.nn.functional.cross_entropy(logits.double(), train[:, :2].sum(1) % 113)
    assert float(loss) == pytest.approx(file["train_loss"].item(), rel=1e-6)

    other = {**file, "config": {**file["config"], "seed": 2}}  # another split
    found = verdicts(measure(only(zoo, "grokking", **{"wd_10-1_mod_addition": other})))
    assert found["full"]
    assert not any(found[key] for key in ("train", "test", "train saved", "test saved"))
    weights = {**file["model"], "embed.W_E": file["model"]["embed.W_E"] * 1.001}
    found = verdicts(measure(only(zoo, "grokking", **{"wd_10-1_mod_addition": {**file, "model": weights}})))
    assert found["frequencies"]
    assert not any(found[key] for key in ("full", "train", "test"))
    random_embedding = torch.randn(128, 114, generator=torch.Generator().manual_seed(0))
    weights = {**file["model"], "embed.W_E": random_embedding}
    found = verdicts(measure(only(zoo, "grokking", **{"wd_10-1_mod_addition": {**file, "model": weights}})))
    assert not found["frequencies"]


@needs_zoo
def test_without_taking_the_last_update_back_five_digits_do_not_agree(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "before_last_update", lambda state, optimizer: state)
    found = verdicts(measure(only(zoo, "grokking")))
    assert [key for key, agrees in found.items() if not agrees] == ["train", "test"]


@needs_zoo
def test_brackets_load_and_do_not_with_a_tensor_less(zoo: Zoo) -> None:
    name = "arena/brackets_model_state_dict.pt"
    assert measure(only(zoo, "brackets")).passed
    less = {key: x for key, x in zoo.files[name].items() if key != "blocks.1.mlp.W_in"}
    result = measure(only(zoo, "brackets", brackets_model_state_dict=less))
    assert not result.passed
    assert "blocks.1.mlp.W_in" in str(result.measured["brackets"]["loads"])


def test_the_last_update_is_taken_back() -> None:
    """Against AdamW itself, on a small model; one more update back would be another state."""
    model = make_gpt(n_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98))
    states = []
    for step in range(4):
        states.append({name: x.detach().clone() for name, x in model.named_parameters()})
        optimizer.zero_grad()
        model.loss(torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()
    after = {name: x.detach() for name, x in model.named_parameters()}
    found = before_last_update(after, optimizer.state_dict())
    for name, x in found.items():
        torch.testing.assert_close(x, states[3][name], rtol=0, atol=2e-6)
    assert (found["blocks.0.mlp.W_in"] - after["blocks.0.mlp.W_in"]).abs().max() > 1e-3
    assert (found["blocks.0.mlp.W_in"] - states[2]["blocks.0.mlp.W_in"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("published", "agrees", "differs"),
    [("0.614", (0.6135001, 0.6144999), (0.6134999, 0.6145001)), ("3481", (3481.0,), (3480.0, 3482.0)),
     ("9.2025e-09", (9.20254e-09, 9.20246e-09), (9.20244e-09, 9.20256e-09)), ("3.52e-07", (3.524e-07,), (3.526e-07,)),
     ("23 6 37 41 39", ("23 6 37 41 39",), ("6 23 37 41 39",)), ("load", ("load",), ("unknown tensor",))],
)  # fmt: skip
def test_the_last_digit_printed_is_the_tolerance(published: str, agrees: tuple, differs: tuple) -> None:
    figure = Figure(model="any", key="any", what="any", published=published, source="any")
    assert all(figure.agrees(value) for value in agrees)
    assert not any(figure.agrees(value) for value in differs)


def test_what_is_measured_has_a_figure_and_a_reader() -> None:
    assert {figure.model for figure in FIGURES} == set(MEASURES)
    assert [name for _, files in MEASURES.values() for name in files] == list(READERS)
    assert len({(figure.model, figure.key) for figure in FIGURES}) == len(FIGURES)


def a_zoo_of(folder: Path, *names: str) -> Path:
    """A directory with some of the zoo's files, as links."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ZOO / name)
    return folder


@needs_zoo
def test_files_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_zoo_of(tmp_path, CLOCK, PALINDROMES)
    done = interp(capsys, "verify", "--zoo", folder, "--format", "json", "--quiet")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["passed"] is True
    assert f"{folder} lacks {NUMBERS}: the rows of palindromes were not run." in found["remark"]
    assert set(found["missing"]) == set(READERS) - {CLOCK, PALINDROMES}
    frame = pd.DataFrame(found["rows"])
    assert set(frame[frame["measured"].notna()]["model"]) == {"clock"}
    assert frame["agrees"].dropna().tolist() == [True, True]
    done = interp(capsys, "verify", "--zoo", folder)
    assert "lacks" in done.out
    assert re.search(r"distance irrelevance +0\.848 +0\.8483 +agrees", done.out)
    assert f"on {folder}" in done.err


@needs_zoo
def test_a_figure_that_differs_ends_with_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_zoo_of(tmp_path, NUMBERS)
    state = torch.load(ZOO / PALINDROMES, weights_only=True, map_location="cpu")
    state["blocks.0.attn.W_V"][0] *= 1.01
    torch.save(state, folder / PALINDROMES)
    done = interp(capsys, "verify", "--zoo", folder, "--format", "csv")  # whole, however wide the terminal is
    assert done.code == 5
    assert f"not everything agreed on {folder}" in done.err
    assert {row["agrees"] for row in csv.DictReader(done.out.splitlines())} >= {"True", "False"}


def test_a_directory_without_any_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError, match="no file of the zoo"):
        Zoo.load(str(tmp_path))
    done = interp(capsys, "verify", "--zoo", tmp_path / "nowhere")
    assert done.code == 3
    assert len(done.err.strip().splitlines()) <= 3


@pytest.mark.parametrize("name", [PALINDROMES, NUMBERS, "stories260K/stories260K.bin"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"not what it should be")
    with pytest.raises(LoadError, match=Path(name).name):
        Zoo.load(str(tmp_path))


def test_a_file_of_other_contents_is_named() -> None:
    with pytest.raises(LoadError, match=r"mod_addition\.pth has no 'config'"):
        measure(Zoo(directory="zoo", files={GROKKING: {"model": {}}}))


@pytest.mark.parametrize(
    "more", [("--model", "tiny"), ("some text",), ("--full",), ("--dtype", "float64"), ("--device", "cpu"), ("--open",),
             ("--file", "some.txt"), ("--lines",), ("--format", "html"), ("--out", "page.html")],
)  # fmt: skip
def test_nothing_stands_beside_a_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    done = interp(capsys, "verify", "--zoo", tmp_path, *more)
    assert done.code == 2
    assert "--zoo" in done.err.splitlines()[0]
    assert done.out == ""


def test_from_python_too() -> None:
    zoo, model = Zoo(directory="zoo", files={}), make_gpt()
    for options in ({"model": model}, {"tokens": "text"}, {"full": True}):
        with pytest.raises(InputError, match="a zoo beside"):
            verify(**{"model": None, "zoo": zoo} | options)
    with pytest.raises(InputError, match="neither a model nor a zoo"):
        verify(None)


def test_every_analysis_still_has_its_command() -> None:
    """The context that tells what was typed stands beside options of any name, such as markov-chain's --context."""
    for analysis in discover().values():
        names = [parameter.name for parameter in command_of(analysis).params]
        assert len(set(names)) == len(names)
        assert ("zoo" in names) == (analysis.name == "verify")
