"""Checkpoints that are damaged, say two things, or are no checkpoints: refused by name in three lines, or said."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import interp
from conftest import make_gpt
from faults import checkpoints
from safetensors.torch import load_file, save_file

from interp import HookedGPT, loading
from interp.errors import LoadError, NotFoundError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def saved(tmp_path, toy_tokenizer) -> Path:
    """A model of two shards with their index."""
    make_gpt(tokenizer=toy_tokenizer).save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    where = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def refused(folder: Path, words: str) -> None:
    with pytest.raises((LoadError, NotFoundError), match=words) as error:
        HookedGPT.from_pretrained(folder)
    assert len(str(error.value).splitlines()) <= 3


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_shards_are_what_their_index_says(saved) -> None:
    """A stale copy in another shard, a name the index leaves out, one that no shard holds; else it loads (control)."""
    HookedGPT.from_pretrained(saved)
    index, second = saved / "model.safetensors.index.json", saved / "model-00002-of-00002.safetensors"
    good, tensors = index.read_text(), load_file(second)
    first = next(key for key, file in json.loads(good)["weight_map"].items() if "00001" in file)
    stale = torch.zeros_like(load_file(saved / "model-00001-of-00002.safetensors")[first])
    save_file({**tensors, first: stale}, second)
    refused(saved, "there twice")
    save_file(tensors, second)
    edit(index, lambda data: data["weight_map"].pop(first))
    refused(saved, f"has tensor {first.removeprefix('transformer.')}, unlike")
    index.write_text(good)
    edit(index, lambda data: data["weight_map"].update({"h.9.ln_1.weight": second.name}))
    refused(saved, "lacks tensor h.9.ln_1.weight")
    for wrong in ([], None, "text", {"a": None}, {"a": 3}, {"a": ["b"]}, {"a": "../b"}):
        edit(index, lambda data, wrong=wrong: data.update(weight_map=wrong))
        refused(saved, "weight_map|outside the directory")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype, suffix) -> None:
    make_gpt().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("h.0.attn.c_attn.weight"))
    tensors[name] = torch.ones(32, 96).to(dtype)
    file.unlink()
    if suffix == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, file)
    refused(tmp_path, f"c_attn.weight is {str(dtype).removeprefix('torch.')}")


def test_a_flipped_bit_of_a_pickled_checkpoint_is_noticed(tmp_path) -> None:
    """Its zip holds a checksum of every tensor."""
    make_gpt().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors, file)
    HookedGPT.from_pretrained(tmp_path)
    with zipfile.ZipFile(file) as archive:
        entry = next(one for one in archive.infolist() if "/data/" in one.filename and one.file_size > 1000)
    whole = bytearray(file.read_bytes())
    whole[entry.header_offset + 200] ^= 1
    file.write_bytes(whole)
    refused(tmp_path, "another checksum")


@pytest.mark.parametrize(
    "content",
    [
        {"a": 3}, {3: torch.ones(2)}, [torch.ones(2)], {"wte.weight": torch.ones(2, device="meta")},
        {"wte.weight": torch.eye(3).to_sparse()}, "text",
    ],
    ids=["a number", "a number as name", "a list", "meta", "sparse", "a text"],
)  # fmt: skip
def test_odd_pickles_are_refused(tmp_path, content) -> None:
    make_gpt().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *((name, value) for name in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
          for value in (2.0, True, "4", [4], None, -1, 0, 2**63, 10**30)),
        ("n_inner", -3), ("n_inner", "9"), ("layer_norm_epsilon", "small"), ("layer_norm_epsilon", [1]),
        ("layer_norm_epsilon", True), ("layer_norm_epsilon", -1), ("initializer_range", "x"), ("model_type", ["gpt2"]),
        ("activation_function", {"a": 1}), ("tie_word_embeddings", "false"), ("n_layer", 10**6), ("n_layer", 20_000),
    ],
)  # fmt: skip
def test_numbers_of_a_config_are_checked_before_anything_is_built(tmp_path, entry, value) -> None:
    make_gpt().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda data: data.update({entry: value}))
    refused(tmp_path, "config|n_layer|shape")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"n_layer": ' + "9" * 5_000 + "}", "", "[]", "\0", '{"n_layer": NaN}']
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_json_that_is_no_config(saved, name, text) -> None:
    (saved / name).write_text(text)
    refused(saved, "json|tokenizer|weight_map")


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/urandom", "fifo", "folder", "sparse"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
def test_what_is_no_regular_file_is_refused_at_once(saved, name, kind) -> None:
    path = saved / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    else:
        path.symlink_to(kind)
    refused(saved, name.partition(".")[0])


def test_weights_that_are_no_numbers_are_said_on_stderr_and_on_the_page(tmp_path, capsys, toy_tokenizer) -> None:
    """They load, as the file says; 1e6 becomes infinite as float16."""
    model = make_gpt(tokenizer=toy_tokenizer)
    model.save_pretrained(tmp_path / "good")
    good = interp(capsys, "weight-statistics", "--model", tmp_path / "good", "--format", "csv", "--quiet")
    assert good.err == ""
    with torch.no_grad():
        model.blocks[0].mlp.b_out[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    page = tmp_path / "page.html"
    done = interp(capsys, "next-token", "The cat", "--model", tmp_path / "nan", "--out", page, "--quiet")
    assert "1 of the model's tensors hold NaN or infinity, blocks.0.mlp.b_out among them" in done.err
    assert not page.exists() or "hold NaN or infinity" in page.read_text()
    with torch.no_grad():
        model.blocks[0].mlp.b_out[3] = 1e6
    model.save_pretrained(tmp_path / "large")
    assert loading.non_finite(HookedGPT.from_pretrained(tmp_path / "large")) == []
    assert loading.non_finite(HookedGPT.from_pretrained(tmp_path / "large", dtype=torch.float16)) == [
        "blocks.0.mlp.b_out"
    ]


def test_loading_imports_no_compiler() -> None:
    code = "import sys, interp; interp.HookedGPT.from_pretrained('tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False"]


def test_a_hub_that_is_silent_is_not_waited_for(tmp_path) -> None:
    """It accepts the connection and says nothing: one request, as long as `PATIENCE`, then three lines."""
    code = (
        "from interp import loading; loading.PATIENCE = 0.2\n"
        "from reports.cli import app; app(['next-token', 'hello', '--model', 'acme/model'])"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[object] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
        asked = len(kept)
    assert done.returncode == 3
    assert 1 <= asked <= 2
    assert len(done.stderr.strip().splitlines()) == 3


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_are_what_their_files_hold(tmp_path) -> None:
    """The short form of `tests/faults/checkpoints.py`."""
    seen, wrong = checkpoints.mutate(200, random.Random(5), tmp_path)
    assert wrong == []
    assert seen["refused"] > 50
    assert seen["same"] > 10
