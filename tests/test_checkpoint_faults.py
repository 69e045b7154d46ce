"""Checkpoints that are damaged, say two things, or are no checkpoints: refused by name in three lines, or said."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import interp
from conftest import make_gpt
from faults import checkpoints
from safetensors.torch import load_file, save_file

from interp import HookedGPT
from interp.errors import LoadError, NotFoundError
from interp.loading.digests import non_finite

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


def test_an_entry_that_is_there_twice_is_refused(saved) -> None:
    """JSON has no word on which of two values counts."""
    for name, entry in (("config.json", "n_head"), ("tokenizer_config.json", "bos_token")):
        text = (saved / name).read_text()
        (saved / name).write_text("{" + f'"{entry}": 2, ' + text.lstrip()[1:])
        refused(saved, f"entry '{entry}' is there twice")
        (saved / name).write_text(text)
    HookedGPT.from_pretrained(saved)


def test_shards_of_any_name_are_compared_with_their_index(saved) -> None:
    """Renamed with their entries they load (control); exchanged, or named for some tensors only, they do not."""
    index, names = saved / "model.safetensors.index.json", {}
    for number in (1, 2):
        old = f"model-0000{number}-of-00002.safetensors"
        names[old] = f"part{number}.safetensors"
        (saved / old).rename(saved / names[old])
    where = {key: names[file] for key, file in json.loads(index.read_text())["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": where}))
    HookedGPT.from_pretrained(saved)
    swapped = {key: f"part{3 - int(file[4])}.safetensors" for key, file in where.items()}
    index.write_text(json.dumps({"weight_map": swapped}))
    refused(saved, "unlike model.safetensors.index.json says")
    index.write_text(json.dumps({"weight_map": dict(list(where.items())[3:])}))
    refused(saved, "unlike model.safetensors.index.json says")


def rewritten(folder: Path, change) -> None:
    """The weights of a folder with other names or values."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_model_may_hold_its_unembedding_alone(tmp_path) -> None:
    """As transformers reads it; both, with different values, are refused."""
    from transformers import GPT2LMHeadModel

    make_gpt().save_pretrained(tmp_path)
    ids = torch.tensor([[3, 9, 4, 200]])
    rewritten(tmp_path, lambda held: {key.replace("transformer.wte", "lm_head"): x for key, x in held.items()})
    expected = GPT2LMHeadModel.from_pretrained(tmp_path).eval()(ids).logits
    torch.testing.assert_close(HookedGPT.from_pretrained(tmp_path)(ids), expected, atol=1e-5, rtol=1e-5)
    rewritten(tmp_path, lambda held: held | {"transformer.wte.weight": held["lm_head.weight"] + 1})
    refused(tmp_path, "lm_head.weight differs from wte.weight")


def test_names_of_wrappers_are_taken_off_and_others_are_named(tmp_path) -> None:
    model = make_gpt()
    for number, prefix in enumerate(("_orig_mod.", "module.", "module._orig_mod.", "gpt2.", "base_model.model.")):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        rewritten(folder, lambda held, prefix=prefix: {prefix + key: x for key, x in held.items()})
        if number < 3:
            loaded = HookedGPT.from_pretrained(folder)
            assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), model.parameters(), strict=True))
        else:
            refused(folder, f"nearest there: {prefix}transformer.wte.weight")


def again(file: Path, kind: int, twice: bool) -> None:
    """A zip written anew: compressed, or with one entry a second time, zeros in it."""
    with zipfile.ZipFile(file) as archive:
        held = [(name, archive.read(name)) for name in archive.namelist()]
    more = [(name, bytes(len(data))) for name, data in held if name.endswith("data/1")][: int(twice)]
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", kind) as archive:
        warnings.simplefilter("ignore")  # of the name that is there twice
        for name, data in held + more:
            archive.writestr(name, data)


def test_a_pickled_checkpoint_with_two_answers_or_of_another_kind_is_told_so(tmp_path) -> None:
    make_gpt().save_pretrained(tmp_path)
    tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").unlink()
    for content, kind, twice, words in (
        (tensors, zipfile.ZIP_STORED, True, "there twice"),
        (tensors, zipfile.ZIP_DEFLATED, False, "compressed"),
        ({"model": tensors, "iter": 3}, zipfile.ZIP_STORED, False, "give the file itself to load"),
        (torch.nn.Linear(2, 2), zipfile.ZIP_STORED, False, "holds more than tensors and plain values"),
    ):
        torch.save(content, file)
        again(file, kind, twice)
        refused(tmp_path, words)
    torch.save(tensors, file)
    HookedGPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["/dev/zero", "fifo"])
def test_special_files_in_place_of_a_vocabulary_are_refused(tmp_path, kind) -> None:
    from interp.loading import llama2c
    from interp.text.wordpiece import WordPiece

    def put(name: str) -> None:
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name) if kind == "fifo" else (tmp_path / name).symlink_to(kind)

    for name in ("vocab.txt", "tokenizer.json"):
        put(name)
        with pytest.raises(LoadError, match="no regular file"):
            WordPiece.from_directory(tmp_path)
    put("tok.bin")
    with pytest.raises(LoadError, match="no regular file"):
        llama2c.read_tokenizer(tmp_path / "model.bin", 300)


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
    assert non_finite(HookedGPT.from_pretrained(tmp_path / "large")) == []
    assert non_finite(HookedGPT.from_pretrained(tmp_path / "large", dtype=torch.float16)) == ["blocks.0.mlp.b_out"]


def test_loading_imports_no_compiler() -> None:
    code = "import sys, interp; interp.HookedGPT.from_pretrained('tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("silent", ["at once", "after its first answer"])
def test_a_hub_that_is_silent_is_not_waited_for(tmp_path, silent) -> None:
    """It accepts the connection and says nothing, or no more than that it has the model: three lines."""
    code = (
        "from interp.loading import sources; sources.PATIENCE = 0.2; sources.STALLED = 0.2\n"
        "from reports.cli import app; app(['next-token', 'hello', '--model', 'acme/model'])"
    )
    body = b'{"id": "acme/model", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": []}'
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []

        def answer(held: socket.socket) -> None:
            with held, contextlib.suppress(OSError):
                while line := held.recv(65536):
                    asked.append(line.split(b"\r\n")[0])
                    if b"/api/models/acme/model HTTP" in line and silent != "at once":
                        held.sendall(reply)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 3
    assert sum(b"/api/models/acme/model HTTP" in line for line in asked) == 1
    assert len(done.stderr.strip().splitlines()) == 3
    assert ("nothing arrived" in done.stderr) == (silent != "at once")


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_are_what_their_files_hold(tmp_path) -> None:
    """The short form of `tests/faults/checkpoints.py`."""
    seen, wrong = checkpoints.attempt(200, random.Random(5), tmp_path)
    assert wrong == []
    assert seen["refused"] > 80
    assert seen["loaded"] > 30


def test_a_loader_that_believes_what_it_finds_does_not_survive_the_changes(tmp_path, monkeypatch) -> None:
    """The control: other weights than the file's are noticed, and so is an error of another kind."""

    def careless(folder: Path, **options: object) -> HookedGPT:
        model = HookedGPT.from_pretrained(folder)
        with torch.no_grad():
            model.W_E[5] += 0.1
        return model

    monkeypatch.setattr(checkpoints, "load", careless)
    checkpoints.KINDS["whole"](tmp_path / "whole")
    assert checkpoints.tried(tmp_path / "whole", tmp_path / "errors")[0] == "bad"
    monkeypatch.setattr(checkpoints, "load", lambda folder, **options: {}["x"])
    assert checkpoints.tried(tmp_path / "whole", tmp_path / "errors") == ("bad", "KeyError: 'x'")


def test_logits_that_rounding_decides_are_not_compared(tmp_path) -> None:
    """A row of 1e30 behind a norm, whose output sums to nothing but rounding. Control: a wrong bias is noticed where
    a row of 1e30 stands elsewhere, and where there is none.
    """
    checkpoints.KINDS["vit"](tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    good = load_file(file)

    def compared(name: str, wrong: float) -> str:
        save_file({**good, name: good[name].index_fill(0, torch.tensor([0]), 1e30)} if name else good, file)
        with torch.no_grad():
            model = checkpoints.load(tmp_path / "vit", device="cpu")
            model.b_U[1] += wrong
            return checkpoints.compare(model, tmp_path / "vit")

    assert compared("classifier.weight", 0.0) == "rounding"
    for name in ("", "classifier.bias"):
        assert compared(name, 0.0) == ""
        assert compared(name, 0.01).startswith("logits")
