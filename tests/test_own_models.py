"""Models of one's own: odd shapes without a tokenizer through every command, ids and symbols, plain training."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import interp
from conftest import make_gpt

from analyses.logit_lens import logit_lens
from interp import GPTConfig, HookedGPT
from interp.errors import InputError
from interp.models.gpt import Batch
from interp.text.tokenizer import Tokenizer

IDS = "3 1 4 1 5 9 2 6"
OWN = {
    "attention only, two outputs, all see all": {
        "attn_only": True, "causal": False, "d_vocab_out": 2, "tied": False, "unembed_bias": True,
    },
    "no norm, ReLU": {"norm": None, "act_fn": "relu", "tied": False, "bias": False},
    "no positions": {"positions": None},
}  # fmt: skip


@pytest.mark.parametrize("shape", list(OWN))
def test_a_report_of_ids_alone(tmp_path, capsys, shape) -> None:
    """Every analysis runs or says why it does not: none fails."""
    model = make_gpt(d_vocab=20, n_ctx=12, **OWN[shape])
    model.save_pretrained(tmp_path / "model")
    page = tmp_path / "page.html"
    done = interp(capsys, "report", "--model", tmp_path / "model", "--tokens", IDS, "--out", page)
    assert done.code == 0, done.err
    assert "failed" not in done.err
    assert page.stat().st_size > 100_000
    checked = interp(capsys, "rerun", page, "--check")
    assert checked.code == 0, checked.err


def test_ids_come_as_numbers_symbols_or_files(tmp_path, capsys) -> None:
    model = make_gpt(d_vocab=12, n_ctx=12)
    model.tokenizer = Tokenizer.of_characters("0123456789+=")
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "rows.npy", np.array([[3, 10, 4, 11]]))
    (tmp_path / "rows.jsonl").write_text(json.dumps(["3", "+", "4", "="]) + "\n" + json.dumps([1, 10]) + "\n")
    found = {}
    for given in ("3 10 4 11", "3,10,4,11", tmp_path / "rows.npy", tmp_path / "rows.jsonl"):
        done = interp(capsys, "logit-lens", "--model", tmp_path / "model", "--tokens", given, "--format", "csv")
        assert done.code == 0, done.err
        found[str(given)] = done.out
    first = found["3 10 4 11"]
    assert first == found["3,10,4,11"] == found[str(tmp_path / "rows.npy")]
    assert found[str(tmp_path / "rows.jsonl")].startswith(first.rstrip("\n"))  # then the second row
    assert (
        first
        != interp(capsys, "logit-lens", "--model", tmp_path / "model", "--tokens", "3 10 5 11", "--format", "csv").out
    )
    again = interp(capsys, "generate", "--model", tmp_path / "model", "--tokens", "3 10", "--max-new-tokens", "2")
    assert again.code == 0
    assert len(again.out.strip()) == 4
    more = interp(capsys, "generate", "--model", tmp_path / "model", "--tokens", "3 10")
    assert len(more.out.strip()) == 12  # as many as fit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "holds no ids"), ("3 x 4", "symbols for a model without a tokenizer"), ("rows.npy", "no file"),
        ("bad.npy", "cannot be read"), ("float.npy", "float64"), ("bad.jsonl", "line 2"), ("3 99", "token id 99"),
    ],
)  # fmt: skip
def test_wrong_ids_are_refused(tmp_path, capsys, monkeypatch, given, words) -> None:
    monkeypatch.chdir(tmp_path)
    make_gpt(d_vocab=20).save_pretrained("model")
    (tmp_path / "bad.npy").write_text("no array")
    np.save("float.npy", np.ones(3))
    (tmp_path / "bad.jsonl").write_text('[1, 2]\n{"a": 1}\n')
    done = interp(capsys, "next-token", "--model", "model", "--tokens", given)
    assert done.code in (2, 3)
    assert words in done.err
    assert len(done.err.strip().splitlines()) <= 3
    both = interp(capsys, "next-token", "a text", "--model", "model", "--tokens", "1 2")
    assert "--tokens beside a text" in both.err


def test_padding_is_not_text(toy_gpt) -> None:
    """What `to_batch` gives is read as its texts; ids with padding and no mask are refused."""
    texts = ["The cat", "The cat sat on the mat"]
    batch = toy_gpt.to_batch(texts)
    expected, found = logit_lens(toy_gpt, texts), logit_lens(toy_gpt, batch)
    assert expected.tokens == found.tokens
    assert np.array_equal(expected.to_dataframe()["rank"], found.to_dataframe()["rank"], equal_nan=True)
    with pytest.raises(InputError, match="beginning tokens"):
        logit_lens(toy_gpt, batch.tokens)
    assert Batch.of([[1, 2], [3]]).rows() == [[1, 2], [3]]
    assert torch.equal(Batch.of([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]))


def test_results_say_what_they_hold_in_one_line(toy_gpt) -> None:
    text = repr(logit_lens(toy_gpt, "The cat sat on the mat"))
    assert text.startswith("LogitLensResult(")
    assert len(text) < 1000
    assert "\n" not in text


def test_a_config_says_what_is_wrong() -> None:
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 8, "n_ctx": 8, "d_vocab": 8}
    for wrong in (
        {"n_layers": "2"}, {"eps": "small"}, {"d_mlp": 0}, {"rotary_base": float("nan")}, {"d_model": 7},
        {"causal": "bidirectional"}, {"tied": "no"}, {"bias_qkv": 1}, {"eps": -1.0}, {"attn_softcap": "x"},
        {"logit_softcap": 0},
        {"local_rotary_base": "a"}, {"rotary_scaling": 3}, {"init_std": -1.0},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            GPTConfig(**(sizes | wrong))
    for given in ({"n_layers": 1}, "gpt2", None):
        with pytest.raises(InputError, match="expected a GPTConfig"):
            HookedGPT(given)
    assert GPTConfig(**sizes, attn_only=True).d_mlp == 0


@pytest.mark.slow
def test_the_example_learns_modular_addition() -> None:
    """As a user runs it: a plain PyTorch loop with a hook; what was held out is right, without the MLP it is not."""
    example = Path(__file__).parent.parent / "docs" / "modular_addition.py"
    assert len(example.read_text().splitlines()) <= 60
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True)
    held_out, without = (
        float(re.search(rf"{name}: ([\d.]+) %", done.stdout)[1]) for name in ("held out", "without MLP")
    )
    assert held_out > 95
    assert without < 40
    assert re.search(r"frequencies: \d+", done.stdout)


def test_a_counterfactual_of_ids(tmp_path, capsys) -> None:
    """Without a tokenizer a text of whole numbers is ids, wherever a command takes a text."""
    make_gpt(d_vocab=20, n_ctx=12).save_pretrained(tmp_path)
    options = ("--tokens", "3 1 4 1 5", "--corrupted", "3 1 4 1 6", "--answer", "7", "--wrong", "8", "--format", "csv")
    done = interp(capsys, "activation-patching", "--model", tmp_path, *options)
    assert done.code == 0, done.err
    other = interp(capsys, "activation-patching", "--model", tmp_path, *[*options[:3], "3 1 4 2 5", *options[4:]])
    assert other.out != done.out


def test_ids_are_extracted_probed_and_read_by_a_tuned_lens(tmp_path, capsys) -> None:
    """What lies in the store is what a plain run gives at these ids; all without a tokenizer."""
    from interp import ActivationStore

    model = make_gpt(d_vocab=20, n_ctx=10)
    model.save_pretrained(tmp_path / "model")
    rows = np.random.default_rng(0).integers(0, 20, (40, 10))
    np.save(tmp_path / "rows.npy", rows)
    common = ("--model", tmp_path / "model", "--tokens", tmp_path / "rows.npy", "--quiet")
    done = interp(capsys, "extract", *common, "--out", tmp_path / "store", "--dtype", "float32")
    assert done.code == 0, done.err
    store = ActivationStore(tmp_path / "store")
    _, cache = model.run_with_cache(torch.tensor(rows), names="resid_post")
    kept = torch.tensor(store.load("blocks.1.hook_resid_post")[0]).view(40, 10, -1)
    order = torch.tensor(store.manifest["text"].to_numpy()[::10].astype(int))
    assert sorted(order.tolist()) == list(range(40))
    torch.testing.assert_close(kept, cache["resid_post", 1][order], rtol=0, atol=2e-6)
    assert interp(capsys, "probe", tmp_path / "store", "--quiet").code == 0
    assert interp(capsys, "train-lens", *common, "--steps", 2, "--out", tmp_path / "lens.safetensors").code == 0
    read = interp(
        capsys, "tuned-lens", *common[:2], "--tokens", IDS, "--translators", tmp_path / "lens.safetensors", "--quiet"
    )
    assert read.code == 0, read.err
    both = interp(capsys, "extract", tmp_path / "a.txt", *common, "--out", tmp_path / "other")
    assert "--tokens beside a file of texts" in both.err
    neither = interp(capsys, "train-lens", "--out", tmp_path / "other.safetensors")
    assert "neither a text file nor --tokens" in neither.err


def test_masks_and_tokens_that_cannot_be_meant_are_refused(toy_gpt) -> None:
    ids = torch.tensor([[1, 2, 3]])
    bad = (
        lambda: toy_gpt(ids.to(torch.uint8)), lambda: toy_gpt(ids.bool()), lambda: toy_gpt(ids[:0]),
        lambda: toy_gpt.generate(ids[0], max_new_tokens=1), lambda: toy_gpt(ids, attention_mask=[[1, 1, 1]]),
        lambda: toy_gpt(ids, attention_mask=torch.tensor([[0.0, -1e9, 0.0]])), lambda: toy_gpt.generate(ids, top_k=1.5),
        lambda: logit_lens(toy_gpt, ids, attention_mask=torch.ones(1, 3)), lambda: logit_lens("a text", toy_gpt),
        lambda: logit_lens(toy_gpt, 42), lambda: toy_gpt.run_with_cache(ids, pos=7),
        lambda: toy_gpt.run_with_cache(ids, names=3),
    )  # fmt: skip
    for call in bad:
        with pytest.raises(InputError) as caught:
            call()
        assert len(str(caught.value).splitlines()) <= 3
