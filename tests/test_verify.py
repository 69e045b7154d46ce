"""Verify: each measured table against transformers and numpy on the same weights; identity; a broken head fails."""

import copy
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.verify import PAIR, PROMPTS, Figures, identify, prompts, published, verify
from interp.models.config import PRESETS
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import END_OF_TEXT

module = import_module("analyses.verify")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE that knows every word of the prompts as one token, as GPT-2's does."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text.format(name) for text, names in (*PROMPTS, PAIR) for name in names]
    backend.train_from_iterator(texts * 5, trainer)
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> HookedGPT:
    return make_gpt(n_layers=3, n_ctx=256, d_vocab=20000, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def twin(model: HookedGPT, tmp_path_factory: pytest.TempPathFactory):
    """The same weights in transformers' eager GPT-2."""
    from transformers import GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("twin")
    model.save_pretrained(directory)
    return GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager").eval()


def difference(logits: torch.Tensor, answers: torch.Tensor) -> float:
    last = logits[:, -1]
    return float((last.gather(1, answers[:, :1]) - last.gather(1, answers[:, 1:])).mean())


def test_prompts_are_the_published_ones(model: HookedGPT) -> None:
    tokens, answers = prompts(model, PROMPTS)
    assert tokens.shape == (8, 15)  # the published tables of positions have 15 columns
    assert model.to_string(tokens[0, 1:]) == "When John and Mary went to the shops, John gave the bag to"
    assert model.to_string(answers[0, :1]) == " Mary"
    assert answers[1].tolist() == answers[0].tolist()[::-1]
    pair, answer = prompts(model, [PAIR])
    assert pair.shape == (2, 17)
    assert model.to_string(pair[0, 1:]) == "After John and Mary went to the store, Mary gave a bottle of milk to"
    assert model.to_string(answer[0, :1]) == " John"


@torch.no_grad()
def test_direct_effects_add_up_to_transformers_logit_difference(model: HookedGPT, twin) -> None:
    tokens, answers = prompts(model, PROMPTS)
    figures = Figures(model)
    whole = difference(twin(tokens).logits, answers)
    bias = model.ln_final.b.double() @ (model.W_U[:, answers[:, 0]] - model.W_U[:, answers[:, 1]]).double()
    assert abs(float(bias.mean())) < 1e-6  # cancels over prompts, as the source says
    assert figures.measure("by_layer").sum() == pytest.approx(whole, abs=1e-4)
    accumulated = figures.measure("accumulated")
    assert accumulated[-1] == pytest.approx(whole, abs=1e-4)
    hidden = twin(tokens, output_hidden_states=True).hidden_states  # before each block; the last has passed ln_f
    last = model.run_with_cache(tokens, names="resid_post")[1]["resid_post", 2][:, -1].double()
    scale = (last.var(-1, correction=0) + model.config.eps).sqrt()
    for layer in range(3):
        x = hidden[layer][:, -1].double()
        normal = (x - x.mean(-1, keepdim=True)) / scale[:, None] * model.ln_final.w.double()
        logits = normal @ model.W_U.double()
        assert accumulated[2 * layer] == pytest.approx(difference(logits[:, None], answers), abs=1e-4)
    heads = figures.measure("by_head")
    assert heads.shape == (3, 4)
    biases = figures.measure("by_layer")[2::2] - heads.sum(1)
    shifts = torch.stack([block.ln1.b for block in model.blocks])  # folded into the value biases
    values = model.b_V + torch.einsum("lm,lhmd->lhd", shifts, model.W_V)
    written = model.b_O + torch.einsum("lhd,lhdm->lm", values, model.W_O)  # whole, since patterns sum to one
    direction = (model.W_U[:, answers[:, 0]] - model.W_U[:, answers[:, 1]]) * model.ln_final.w[:, None]
    centred = (written - written.mean(-1, keepdim=True)).double()
    np.testing.assert_allclose(biases, (centred @ direction.double() / scale).mean(-1).numpy(), rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("key", "batch", "length", "low", "high", "back"),
    [("previous_token", 2, 100, 100, 20000, 1), ("duplicate_token", 2, 100, 100, 20000, 100),
     ("induction", 2, 100, 100, 20000, 99), ("induction_main", 10, 50, 1000, 10000, 49)],
)  # fmt: skip
def test_attention_scores_are_those_of_transformers_patterns(
    model: HookedGPT, twin, key: str, batch: int, length: int, low: int, high: int, back: int
) -> None:
    torch.manual_seed(0)
    half = torch.randint(low, high, size=(batch, length))  # as the notebook draws them
    attentions = twin(torch.cat([half, half], 1), output_attentions=True).attentions
    rows = range(back, 2 * length)
    slow = np.stack([np.mean([p[:, :, i, i - back].mean(0).numpy() for i in rows], axis=0) for p in attentions])
    np.testing.assert_allclose(Figures(model).measure(key), slow, rtol=0, atol=1e-5)


@torch.no_grad()
def test_copying_scores_are_eigenvalues_of_the_whole_matrices(model: HookedGPT) -> None:
    from interp.processing import process_weights

    folded = process_weights(model).to(torch.float64)
    figures = Figures(model)
    for key, full in (("ov_copying", False), ("ov_copying_full", True)):
        scores = figures.measure(key)
        for layer, head in ((0, 0), (1, 3), (2, 1)):
            whole = folded.W_V[layer, head] @ folded.W_O[layer, head]
            if full:  # AB and BA have the same non-zero eigenvalues: [d_model d_model] instead of [d_vocab d_vocab]
                whole = (folded.W_U @ folded.W_E) @ whole
            values = np.linalg.eigvals(whole.numpy())
            assert scores[layer, head] == pytest.approx(values.sum().real / np.abs(values).sum(), abs=1e-3)


@torch.no_grad()
def test_patching_is_a_hook_in_transformers(model: HookedGPT, twin) -> None:
    clean, answers = prompts(model, PROMPTS)
    swapped = clean[[1, 0, 3, 2, 5, 4, 7, 6]]
    hidden = twin(clean, output_hidden_states=True).hidden_states
    best, worst = difference(twin(clean).logits, answers), difference(twin(swapped).logits, answers)
    found = Figures(model).measure("patch_resid_pre")
    assert found.shape == (3, 15)
    assert found[0, 10] == pytest.approx(1, abs=1e-4)  # only the second name's token differs
    np.testing.assert_allclose(np.delete(found[0], 10), 0, rtol=0, atol=1e-4)
    for layer, pos in ((1, 10), (2, 14), (2, 12)):

        def put(module, args, layer=layer, pos=pos):
            x = args[0].clone()
            x[:, pos] = hidden[layer][:, pos]
            return (x, *args[1:])

        handle = twin.transformer.h[layer].register_forward_pre_hook(put)
        patched = difference(twin(swapped).logits, answers)
        handle.remove()
        assert found[layer, pos] == pytest.approx((patched - worst) / (best - worst), abs=1e-3)


def test_every_published_table_can_be_measured_and_has_its_shape(model: HookedGPT) -> None:
    known = published()
    assert sum(one.values.size for one in known) == 2235
    assert len({one.key for one in known}) == len(known) == 16
    figures = Figures(model)
    shapes = {"accumulated": (7,), "by_layer": (8,)}
    for one in known:
        rows, columns = (3, 4) if one.axes == ("layer", "head") else (3, one.values.shape[-1])
        assert figures.measure(one.key).shape == shapes.get(one.key, (rows, columns)), one.key
        assert one.values.shape in ((12, 12), (12, 15), (12, 17), (25,), (26,))


def test_the_published_numbers_are_those_everybody_knows() -> None:
    known = {one.key: one.values for one in published()}
    assert known["accumulated"][-1] == pytest.approx(3.552, abs=1e-3)
    assert np.unravel_index(known["by_head"].argmax(), (12, 12)) == (9, 9)  # the name mover L9H9
    assert np.unravel_index(known["by_head"].argmin(), (12, 12)) == (10, 7)  # the negative one L10H7
    assert known["induction"][5, 5] > 0.9
    assert known["previous_token"][4, 11] > 0.9
    assert np.abs(known["induction"] - known["induction_main"]).max() == pytest.approx(0.088, abs=1e-3)


def test_another_model_is_told_that_nothing_was_run(model: HookedGPT) -> None:
    result = verify(model, "any text")
    assert not result.is_reference
    assert result.passed is None
    assert result.measured == {}
    assert result.findings() == []
    note = result.panels()[0]
    assert note.title == "Not run here"
    assert "n_layers: 3, GPT-2 small has 12" in note.text
    assert "None of the 2,235 numbers" in note.text
    assert result.to_dataframe()["measured"].isna().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_other_families_are_told_the_same(shape: str) -> None:
    result = verify(toy(shape))
    assert not result.is_reference
    assert "None of the 2,235 numbers" in result.panels()[0].text


def test_the_sizes_of_gpt2_without_its_positions_are_another_model() -> None:
    with torch.device("meta"):
        other = HookedGPT(replace(PRESETS["gpt2"], positions="rotary"))
    assert identify(other)["agrees"].tolist() == [True] * 7 + [False]


def test_the_shape_alone_is_not_enough_but_the_known_numbers_are() -> None:
    with torch.device("meta"):
        other = HookedGPT(PRESETS["gpt2"])
    other.to_empty(device="cpu")
    torch.nn.init.zeros_(other.W_E)
    torch.nn.init.zeros_(other.W_pos)
    frame = identify(other)
    assert frame["agrees"].tolist() == [True] * 8 + [False] * 6
    facts = module._data()["identity"]
    with torch.no_grad():
        for name in ("W_E", "W_pos"):
            for row, (first, last) in facts[name].items():
                getattr(other, name)[int(row), :3] = torch.tensor(first)
                getattr(other, name)[int(row), -3:] = torch.tensor(last)
        assert identify(other)["agrees"].all()
        other.W_E[1, -1] += 2e-4  # control: one number slightly off
        assert not identify(other)["agrees"].all()


def test_agreement_is_reported_and_a_broken_head_fails(model: HookedGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tables measured on this model in place of the published ones: it passes, and with a broken head it fails."""
    figures = Figures(model)
    mine = tuple(replace(one, values=figures.measure(one.key)) for one in published())
    monkeypatch.setattr(module, "published", lambda: mine)
    monkeypatch.setattr(module, "identify", lambda model: identify(model).assign(agrees=True))
    quick, full = verify(model), verify(model, full=True)
    assert quick.passed
    assert full.passed
    assert "7 tables need" in quick.remark
    assert full.remark == ""
    assert "9 of 9" in quick.findings()[0].text
    assert "16 of 16" in full.findings()[0].text
    assert full.facts()["passed"] is True
    assert full.to_dataframe()["difference"].abs().max() < 1e-3

    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.blocks[1].attn.W_O[2].neg_()
    result = verify(broken, full=True)
    assert result.passed is False
    frame = result.to_dataframe()
    wrong = frame[(frame["table"] == "by_head") & (frame["agrees"] == False)]  # noqa: E712
    assert (1, 2) in set(zip(wrong["row"], wrong["column"], strict=True))
    keys = [panel.key for panel in result.panels()]
    assert "differences-by-head" in keys
    assert len(set(keys)) == len(keys)
    assert result.findings()[0].weight == 1.0
