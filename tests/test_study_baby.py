"""The baby GPT (S4): its figures against the article and against the same model written as PyTorch modules."""

import io
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import interp, save
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import reports
from analyses.markov_chain import markov_chain
from analyses.shared import contract
from interp.errors import InputError
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.training.nanogpt_draws import nanogpt_weights
from reports import figures
from reports.running.study import Runs, carry_out
from reports.studies import find_study
from reports.studies._baby import BabyTraining, baby_settings, examples_of, train_baby
from reports.studies._parts import Study
from reports.studies.baby import SEQUENCE, baby, cycles, state_sizes

# The model of the article as plain modules, written apart from the project's own.


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc, self.mlp_c_proj = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2)
                   for t in self.c_attn(self.ln_1(x)).split(width, dim=2))  # fmt: skip
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(torch.ones(length, length).tril() == 0, float("-inf"))
        x = x + self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.mlp_c_proj(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


class PlainGPT(nn.Module):
    def __init__(self, d_vocab: int, context: int, width: int = 16, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(PlainBlock(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, d_vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        self.apply(self._first)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * layers))

    @staticmethod
    def _first(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)[:, -1])


def plain(sequence: str, vocabulary: str, context: int, steps: int, seed: int) -> Tensor:
    """Train the plain model; [state token] probabilities."""
    torch.manual_seed(seed)
    model = PlainGPT(len(vocabulary), context)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    ids = [vocabulary.index(character) for character in sequence]
    x = torch.tensor([ids[i : i + context] for i in range(len(ids) - context)])
    y = torch.tensor(ids[context:])
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    states = torch.cartesian_prod(*[torch.arange(len(vocabulary))] * context).reshape(-1, context)
    return model(states).softmax(-1).detach()


@cache
def default() -> tuple[Study, BabyTraining]:
    study = baby()
    return study, study.runs["training"]()  # type: ignore[return-value]


def verdict(study: Study, beginning: str) -> str:
    """Of the one claim that begins so; only the runs that it needs are carried out."""
    (claim,) = [claim for item in study.items for claim in item.claims if claim.text.startswith(beginning)]
    return claim.verdict(float(claim.value(Runs(study.runs))))


# The figures.


def test_the_articles_figures_to_the_printed_per_cent() -> None:
    """S4.1 and S4.3."""
    training = default()[1]
    assert sum(p.numel() for p in training.trained.parameters()) == 12656
    after = training.after
    printed = {("101", "011"): 79, ("111", "110"): 55, ("111", "111"): 45, ("000", "001"): 73}
    for (state, following), per_cent in printed.items():
        assert round(100 * after.probability(state, following)) == per_cent
    assert after.probability("101", "011") == pytest.approx(0.793, abs=5e-4)
    assert after.probability("111", "110") == pytest.approx(0.546, abs=5e-4)
    assert after.probability("000", "001") == pytest.approx(0.732, abs=5e-4)


@pytest.mark.parametrize(
    ("sequence", "vocabulary", "context", "steps", "seed"),
    [(SEQUENCE, "01", 3, 50, 1337), ("abcabcaab", "abc", 2, 30, 7)],
)
def test_training_is_that_of_the_plain_modules(
    sequence: str, vocabulary: str, context: int, steps: int, seed: int
) -> None:
    training = train_baby(sequence, vocabulary, context, steps, seed)
    expected = plain(sequence, vocabulary, context, steps, seed)
    np.testing.assert_allclose(training.after.transitions, expected.numpy(), atol=2e-4)
    before = plain(sequence, vocabulary, context, 0, seed)
    np.testing.assert_allclose(training.before.transitions, before.numpy(), atol=1e-6)
    other = plain(sequence, vocabulary, context, steps, seed + 1)  # control
    assert (other - expected).abs().max() > 0.01


@settings(deadline=None, max_examples=10)
@given(
    d_vocab=st.integers(2, 5), context=st.integers(1, 4), layers=st.integers(1, 3), tied=st.booleans(),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_first_weights_are_drawn_in_the_order_of_the_plain_modules(
    d_vocab: int, context: int, layers: int, tied: bool, seed: int
) -> None:
    config = GPTConfig(
        n_layers=layers, n_heads=2, d_model=8, n_ctx=context, d_vocab=d_vocab, bias=False, tied=tied, act_fn="gelu"
    )
    torch.manual_seed(seed)
    ours = nanogpt_weights(config)
    torch.manual_seed(seed)
    theirs = PlainGPT(d_vocab, context, width=8, heads=2, layers=layers)
    for block, plain_block in zip(ours.blocks, theirs.h, strict=True):
        fused = torch.cat([block.attn.W_Q_flat, block.attn.W_K_flat, block.attn.W_V_flat], dim=1)
        assert torch.equal(fused, plain_block.c_attn.weight.T)
        assert torch.equal(block.attn.W_O_flat, plain_block.c_proj.weight.T)
        assert torch.equal(block.mlp.W_in, plain_block.c_fc.weight.T)
        assert torch.equal(block.mlp.W_out, plain_block.mlp_c_proj.weight.T)
    assert torch.equal(ours.W_pos, theirs.wpe.weight)
    assert torch.equal(ours.W_E if ours.unembed is None else ours.unembed, theirs.lm_head.weight)
    torch.manual_seed(seed)
    direct = HookedGPT(config)
    assert not torch.equal(direct.blocks[0].attn.W_Q_flat, ours.blocks[0].attn.W_Q_flat)  # control: the usual order


def test_building_a_model_leaves_the_generator_where_the_plain_modules_leave_it() -> None:
    config = baby_settings(d_vocab=2, context=3, examples=1, steps=1, seed=0).config
    torch.manual_seed(5)
    nanogpt_weights(config)
    here = torch.rand(1)
    torch.manual_seed(5)
    PlainGPT(2, 3)
    assert torch.equal(here, torch.rand(1))


def test_examples_are_every_window_with_its_next_token() -> None:
    windows, targets = examples_of([0, 1, 2, 3, 4], 2)
    assert windows.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert targets.tolist() == [[-1, 2], [-1, 3], [-1, 4]]
    assert len(examples_of([int(c) for c in SEQUENCE], 3)[0]) == 12


# The study.


def test_every_item_has_its_address_on_the_page() -> None:
    report = carry_out(default()[0])
    page = reports.render(report)
    assert [section.name for section in report.sections] == ["S4.1", "S4.2", "S4.3", "S4.4", "S4.5"]
    for section in report.sections:
        assert f'id="{section.name}"' in page
        assert section.result.checked  # type: ignore[attr-defined]
        for panel in section.result.panels():
            assert not panel.key.startswith("failed")
            assert not list(contract.ill_formed(panel))


def test_verdicts_of_the_study_as_it_is() -> None:
    sections = carry_out(default()[0]).sections
    verdicts = {checked.claim.text: checked.verdict for section in sections for checked in section.result.checked}  # type: ignore[attr-defined]
    corrected = {text for text, said in verdicts.items() if said == "does not hold"}
    assert corrected == {"That is 3,998 kB.", "GPT-2 reads 2,048 tokens.", "GPT-3 reads 4,096 tokens."}
    assert all(said == "holds" for text, said in verdicts.items() if text not in corrected)


def test_verdicts_change_when_the_model_is_another() -> None:
    """S4.1, S4.2 and S4.3: planted violations, each seen by the claim that speaks of it."""
    study, training = default()
    other = train_baby(SEQUENCE, "01", 3, 50, 1)
    planted = replace(study, runs={**study.runs, "after": lambda: other.after, "training": lambda: other})
    assert verdict(planted, "From 000") == "does not hold"
    assert verdict(planted, "From 101") == "does not hold"
    assert verdict(study, "From 000") == "holds"

    short = replace(study, runs={**study.runs, "after": lambda: markov_chain(training.trained, context=2)})
    assert verdict(short, "There are 8 states") == "does not hold"
    assert verdict(short, "Counting shorter ones there are 14") == "does not hold"

    swapped = replace(training, chains={0: training.after, 50: training.before})
    backwards = replace(study, runs={**study.runs, "training": lambda: swapped, "before": lambda: training.after,
                                     "after": lambda: training.before})  # fmt: skip
    assert verdict(backwards, "An arrow that is certain") == "does not hold"
    assert verdict(backwards, "Training makes the chain surer") == "does not hold"
    assert verdict(backwards, "Before training the arrows") == "does not hold"


def test_verdicts_on_the_architecture_change_with_it() -> None:
    """S4.1: a model with biases, a head of its own, evenly drawn weights and the approximate GELU."""
    from analyses.architecture import architecture

    study, training = default()
    torch.manual_seed(0)
    model = HookedGPT(GPTConfig(n_layers=4, n_heads=4, d_model=16, n_ctx=3, d_vocab=2, tied=False))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O_flat.mul_(math.sqrt(8))
            block.mlp.W_out.mul_(math.sqrt(8))
    changed = replace(training, untrained=model)
    planted = replace(study, runs={**study.runs, "training": lambda: changed, "shape": lambda: architecture(model)})
    for beginning in ("The model has 12,656", "Linear layers", "The head is", "Matrices that write", "The activation"):
        assert verdict(planted, beginning) == "does not hold", beginning
        assert verdict(study, beginning) == "holds", beginning


def test_a_distribution_that_moves_is_not_called_stationary() -> None:
    """S4.5."""
    study, training = default()
    (only,) = training.after.classes
    moved = replace(only, stationary=np.roll(only.stationary, 1))
    planted = replace(study, runs={**study.runs, "after": lambda: replace(training.after, classes=(moved,))})
    assert verdict(planted, "The stationary distribution") == "does not hold"


def test_no_loss_is_below_the_least_possible_one() -> None:
    """S4.5: half a bit: after 111 both follow equally often, and that is half of the examples."""
    study, training = default()
    assert training.least_loss == pytest.approx(0.5)
    assert training.data_entropy_rate == pytest.approx(0.4)
    assert all(loss > 0.5 for loss in training.losses.values())
    leaked = replace(training, losses={0: 1.0, 50: 0.3})
    planted = replace(study, runs={**study.runs, "further": lambda: leaked})
    assert verdict(planted, "No model with this context") == "does not hold"


def test_the_loss_is_the_cross_entropy_of_the_chain() -> None:
    training = default()[1]
    for step, transitions in training.transitions.items():
        bits = -(training.counts * np.log2(transitions)).sum() / training.counts.sum()
        assert training.losses[step] == pytest.approx(bits, abs=1e-5)


def test_sizes_of_states() -> None:
    """S4.4, against whole-number arithmetic: the bits that the number of states needs."""
    frame = state_sizes().frame.set_index(["model", "sizes"])
    for (name, sizes), row in frame.iterrows():
        assert abs((row["vocabulary"] ** row["context"] - 1).bit_length() - row["bits"]) <= 1, (name, sizes)
        assert row["kilobytes"] == pytest.approx(row["bits"] / 8000, rel=1e-4 if row["bits"] > 100 else 1e-12)
    assert frame.loc[("GPT-2", "as in the article"), "bits"] == 31984
    assert frame.loc[("GPT-2", "as published"), "context"] == 1024
    assert frame.loc[("GPT-3", "as published"), "kilobytes"] == pytest.approx(3.998, abs=5e-4)
    assert frame.loc[("baby", "as in the article"), "states"] == "8"


def test_the_strip_shows_every_tenth_step() -> None:
    strip = default()[1].strip()
    assert list(strip.frames) == ["before training", *(f"step {n}" for n in (10, 20, 30, 40, 50))]  # type: ignore[attr-defined]
    drawn = figures.svg(strip).decode()
    assert drawn.count(">000<") == 6
    assert ">step 30<" in drawn


# Other sequences, vocabularies and contexts.


@pytest.mark.parametrize(
    "options",
    [
        {"sequence": "abcabcabc", "context": 2, "steps": 7},
        {"sequence": "01" * 6, "context": 1, "steps": 3},
        {"sequence": "aaaa", "context": 2, "vocabulary": "ab", "steps": 2},
        {"sequence": "1111", "context": 1, "steps": 1},
        {"sequence": "0110 1001", "context": 3, "steps": 2},
    ],
)
def test_other_machines(options: dict[str, Any]) -> None:
    """The page comes out whole, without the article's own figures, for machines of other sizes."""
    report = reports.study("baby", **options)
    page = reports.render(report)
    texts = [row for section in report.sections for row in section.result.to_dataframe().get("claim", [])]
    assert not any("12,656" in text or text.startswith("From 1") for text in texts)
    assert "Another sequence, vocabulary" in page
    for section in report.sections:
        assert not any(panel.key.startswith("failed") for panel in section.result.panels())


@pytest.mark.slow
def test_the_largest_machine_takes_seconds() -> None:
    report = reports.study("baby", sequence="0110100110010110" * 2, context=9, steps=10)
    assert "too many states for a graph" in reports.render(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence": "0120", "vocabulary": "01"}, "the sequence holds '2'"),
        ({"sequence": "01"}, "a sequence of 2 characters"),
        ({"sequence": ""}, "alphabet ''|a sequence of 0 characters"),
        ({"context": 11}, "more than 1,024 states"),
        ({"context": 0}, "context 0"),
        ({"steps": 0}, "steps 0"),
        ({"seed": -1}, "seed -1"),
        ({"vocabulary": "011"}, "alphabet '011'"),
        ({"sequence": "häh" * 3, "context": 1}, "alphabet"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reports.study("baby", **options)


def test_cycles_of_a_greedy_chain_are_named() -> None:
    chain = default()[0].runs["greedy"]()
    words = cycles(chain)  # type: ignore[arg-type]
    assert "one cycle" in words
    (only,) = chain.classes  # type: ignore[attr-defined]
    assert f"period {len(only.members)}" in words


def test_tokenizer_of_characters_round_trips() -> None:
    tokenizer = Tokenizer.of_characters("ba ~")
    assert tokenizer.encode("ab a~") == [1, 0, 2, 1, 3]
    assert tokenizer.to_string([1, 0, 2, 1, 3]) == "ab a~"
    assert tokenizer.d_vocab == 4
    assert tokenizer.bos is None


def test_it_is_listed() -> None:
    file = find_study("baby")
    assert not file.takes_model
    assert {option.name for option in file.options()} == {"sequence", "context", "vocabulary", "steps", "seed"}


def test_short_runs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than all fifty steps; whether there is a compiler is not even asked."""

    def compiler() -> bool:
        raise AssertionError("asked for a compiler")

    monkeypatch.setattr("interp.training.gpt._compiler", compiler)
    assert train_baby("0101", "01", 1, 2, 0).losses


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "ab.html"
    done = interp(
        capsys, "study", "baby", "--sequence", "abab ba", "--context", 2, "--steps", 3, "--out", page, "--quiet"
    )
    assert (done.code, done.out) == (0, f"{page}\n"), done.err
    text = page.read_text()
    assert 'id="S4.5"' in text
    assert "3 tokens, context 2" in text
    done = interp(capsys, "study", "baby", "--sequence", "01", "--out", tmp_path / "no.html")
    assert done.code == 2
    assert "a sequence of 2 characters" in done.err
    assert len(done.err.strip().splitlines()) <= 3
    assert not (tmp_path / "no.html").exists()


def test_the_analysis_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A saved baby is a model like any other, its characters included."""
    folder = save(default()[1].trained, tmp_path / "baby")
    done = interp(capsys, "markov-chain", SEQUENCE, "--model", folder, "--context", 3, "--format", "csv", "--quiet")
    assert done.code == 0, done.err
    rows = pd.read_csv(io.StringIO(done.out), dtype={"state": str, "to": str})
    found = rows.set_index(["state", "to"])["probability"]
    assert found["101", "011"] == pytest.approx(0.793, abs=5e-4)
    assert rows["seen"].sum() == 12
    page = tmp_path / "chain.html"  # the text is longer than the context: it is only counted and shown
    done = interp(capsys, "markov-chain", SEQUENCE, "--model", folder, "--context", 3, "--out", page, "--quiet")
    assert done.code == 0, done.err
    assert 'id="markov_chain-graph"' in page.read_text()
    assert interp(capsys, "markov-chain", "012", "--model", folder, "--context", 3).code == 2
    assert interp(capsys, "markov-chain", "01", "--model", folder).code == 2  # --context is needed
