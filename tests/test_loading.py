"""Every layout loads to the same function; everything wrong with a directory is said by name."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from shapes import SHAPES, tokens_for, toy

from interp.errors import InputError, LoadError, NotFoundError
from interp.loading.digests import weights_sha256
from interp.loading.families import family_of
from interp.loading.layouts import to_tensors
from interp.models.gpt import HookedGPT
from interp.processing import process_weights

TOKENS = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path, toy_tokenizer):
    """A model directory as `save_pretrained` writes it, and its logits."""
    model = make_gpt(tokenizer=toy_tokenizer)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model(TOKENS).detach()


def edit_tensors(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({key: x.clone() for key, x in (change(tensors) or tensors).items()}, directory / "model.safetensors")


def test_round_trip_is_exact(saved) -> None:
    directory, logits = saved
    model = HookedGPT.from_pretrained(directory)
    assert torch.equal(model(TOKENS), logits)
    assert model.tokenizer.encode("The cat") == make_gpt(tokenizer=model.tokenizer).tokenizer.encode("The cat")
    assert not list(directory.glob(".*"))


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "n_layers": st.integers(1, 3),
            "n_heads": st.sampled_from([1, 2, 4]),
            "d_model": st.sampled_from([4, 8, 20]),
            "d_mlp": st.integers(1, 40),
            "tied": st.booleans(),
            "bias": st.booleans(),
            "act_fn": st.sampled_from(["gelu", "gelu_new"]),
            "eps": st.sampled_from([1e-5, 1e-3]),
        }
    )
)
def test_any_config_survives_saving(tmp_path_factory, config) -> None:
    directory = tmp_path_factory.mktemp("model")
    model = make_gpt(**config)
    model.save_pretrained(directory)
    loaded = HookedGPT.from_pretrained(str(directory))
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_sharded_bin_and_unprefixed_layouts_load_the_same(saved, tmp_path) -> None:
    directory, logits = saved
    whole = load_file(directory / "model.safetensors")
    config, tokenizer = (directory / "config.json"), (directory / "tokenizer.json")

    def place(name):
        target = tmp_path / name
        target.mkdir()
        shutil.copy(config, target)
        shutil.copy(tokenizer, target)
        return target

    sharded = place("sharded")
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, keys in parts.items():
        save_file({key: whole[key].clone() for key in keys}, sharded / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    pickled = place("pickled")
    torch.save(whole, pickled / "pytorch_model.bin")

    old_pickle = place("old-pickle")  # as torch wrote them before 1.6
    torch.save(whole, old_pickle / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    bare = place("bare")  # as the first GPT-2 checkpoints: no prefix, masks as buffers, the tied head repeated
    old = {key.removeprefix("transformer."): x.clone() for key, x in whole.items()}
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(2)}
    old |= {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": old["wte.weight"].clone()}
    save_file(old, bare / "model.safetensors")

    for layout in (sharded, pickled, old_pickle, bare):
        assert torch.equal(HookedGPT.from_pretrained(layout)(TOKENS), logits), layout
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match="00002-of-00002"):
        HookedGPT.from_pretrained(sharded)


def test_vocab_and_merges_give_the_same_tokens(saved) -> None:
    directory, _ = saved
    before = HookedGPT.from_pretrained(directory).tokenizer
    before.backend.model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    after = HookedGPT.from_pretrained(directory).tokenizer
    text = "The dog sat, <|endoftext|> on ünïcode 🙂\n log."
    assert after.encode(text) == before.encode(text)
    assert after.bos == before.bos


def test_written_by_transformers(tmp_path) -> None:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=300, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    twin = transformers.GPT2LMHeadModel(config).eval()
    twin.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(HookedGPT.from_pretrained(tmp_path)(TOKENS), twin(TOKENS).logits, atol=5e-5, rtol=0)


def test_loaded_weights_are_mapped_but_editing_them_does_not_touch_the_file(saved) -> None:
    directory, logits = saved
    before = (directory / "model.safetensors").read_bytes()
    model = HookedGPT.from_pretrained(directory)
    with torch.no_grad():
        model.W_E.zero_()
    assert not torch.equal(model(TOKENS), logits)
    assert (directory / "model.safetensors").read_bytes() == before


def test_weight_hash_is_the_files(saved) -> None:
    directory, _ = saved
    model = HookedGPT.from_pretrained(directory)
    assert weights_sha256(model) == hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert weights_sha256(make_gpt(seed=0)) == weights_sha256(make_gpt(seed=0)) != weights_sha256(make_gpt(seed=1))


def test_dtype_and_device(saved) -> None:
    directory, logits = saved
    double = HookedGPT.from_pretrained(directory, dtype=torch.float64, device="cpu")
    assert double.dtype == torch.float64
    torch.testing.assert_close(double(TOKENS).float(), logits, atol=5e-5, rtol=0)
    with pytest.raises(InputError, match="device 'gpu9'"):
        HookedGPT.from_pretrained(directory, device="gpu9")


def drop(tensors):
    del tensors["transformer.h.1.mlp.c_fc.weight"]


def misshape(tensors):
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:5]


def stranger(tensors):
    tensors["transformer.h.1.rotary.inv_freq"] = torch.ones(3)


def untied_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, ["h.1.mlp.c_fc.weight is missing", "[32, 128]"]),
        (misshape, ["wpe.weight", "[5, 32]", "[64, 32]"]),
        (stranger, ["rotary.inv_freq", "not part"]),
        (untied_head, ["lm_head.weight", "differs"]),
    ],
)
def test_wrong_tensors_are_named_with_both_shapes(saved, change, words) -> None:
    directory, _ = saved
    edit_tensors(directory, change)
    with pytest.raises(LoadError) as caught:
        HookedGPT.from_pretrained(directory)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.count("\n") <= 2


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def not_safetensors(directory):
    (directory / "model.safetensors").write_bytes(b"not a model" * 100)


def empty_file(directory):
    (directory / "model.safetensors").write_bytes(b"")


def bad_json(directory):
    (directory / "config.json").write_text("{")


def other_architecture(directory):
    (directory / "config.json").write_text('{"model_type": "mixtral"}')


def wrong_type_in_config(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"n_layer": "2"}))


def incomplete_config(directory):
    (directory / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')


def bad_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{}")


def evil_pickle(directory):
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    (directory / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, directory / "pytorch_model.bin")


def escaping_shard(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        not_safetensors,
        empty_file,
        bad_json,
        other_architecture,
        incomplete_config,
        wrong_type_in_config,
        bad_tokenizer,
        evil_pickle,
        escaping_shard,
    ],
)
def test_damaged_directories_are_load_errors(saved, damage, capsys) -> None:
    directory, _ = saved
    damage(directory)
    with pytest.raises(LoadError) as caught:
        HookedGPT.from_pretrained(directory)
    assert str(caught.value).count("\n") <= 2
    assert "pwned" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/dir", "no such name!", "a/b/c"])
def test_nothing_there(source) -> None:
    with pytest.raises(NotFoundError) as caught:
        HookedGPT.from_pretrained(source)
    assert str(caught.value).count("\n") <= 2


def test_hub_cache_is_used_without_network(saved, tmp_path) -> None:
    """A cache laid out as huggingface_hub lays it out, in a process whose sockets are blocked."""
    directory, logits = saved
    hub = tmp_path / "hub" / "models--gpt2"
    snapshot = hub / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(directory, snapshot)
    torch.save(logits, tmp_path / "logits.pt")
    script = f"""
import socket
def blocked(*a, **k): raise OSError("network blocked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = blocked
import torch
from interp import HookedGPT
model = HookedGPT.from_pretrained("gpt2")
torch.manual_seed(0)
tokens = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
assert torch.equal(model(tokens), torch.load({str(tmp_path / "logits.pt")!r}, weights_only=True))
try:
    HookedGPT.from_pretrained("gpt2-medum")
except FileNotFoundError as error:
    assert "gpt2-medium" in str(error), error
else:
    raise AssertionError
print("ok")
"""
    env = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_what_gpt2_files_cannot_hold_is_kept_in_our_own_layout(shape, tmp_path) -> None:
    """Folded norms, and the parts of every family: the same weights, to the last bit, after a round trip."""
    for number, model in enumerate((toy(shape), process_weights(toy(shape)))):
        model.save_pretrained(tmp_path / str(number))
        again = HookedGPT.from_pretrained(tmp_path / str(number))
        assert again.config == model.config
        assert all(torch.equal(x, dict(again.named_parameters())[name]) for name, x in model.named_parameters())
        torch.testing.assert_close(again(tokens_for(model)), model(tokens_for(model)), atol=1e-5, rtol=0)


MAPPED = """
import sys
import torch
import interp
from interp.loading.layouts import read_json

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

interp.load(sys.argv[2])  # imports and what a first load leaves behind
before = anonymous()
model = interp.load(sys.argv[1], dtype=sys.argv[3] if sys.argv[3] == "auto" else torch.float32)
print(anonymous() - before, str(model.dtype), sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_shards_are_mapped_and_keep_their_dtype(tmp_path) -> None:
    """A sharded Llama in bfloat16 with dtype="auto": no tensor is copied; a control in float32 is."""
    model = toy("llama", d_model=512, d_head=64, n_heads=8, n_layers=4, d_vocab=8000, dtype=torch.bfloat16)
    save_sharded_llama(model, tmp_path / "large")
    save_sharded_llama(toy("llama", dtype=torch.bfloat16), tmp_path / "small")

    def load(dtype: str) -> list[str]:
        command = [sys.executable, "-c", MAPPED, str(tmp_path / "large"), str(tmp_path / "small"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout.split()

    grown, dtype, size = load("auto")
    assert dtype == "torch.bfloat16"
    assert int(grown) < 0.05 * int(size) < 0.05 * 60e6
    grown, dtype, size = load("float32")
    assert dtype == "torch.float32"
    assert int(grown) > 0.9 * int(size)


def save_sharded_llama(model: HookedGPT, directory: Path) -> None:
    """As transformers saves a Llama in two shards, from a model without its family's own config."""
    c = model.config
    data = {
        "model_type": "llama", "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "hidden_size": c.d_model, "num_key_value_heads": c.n_kv_heads, "head_dim": c.d_head,
        "intermediate_size": c.d_mlp, "vocab_size": c.d_vocab, "tie_word_embeddings": c.tied,
        "max_position_embeddings": c.n_ctx,
    }  # fmt: skip
    family = family_of(data, "")
    tensors = to_tensors(model, family.layout(c, {}), None)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(data))
    for shard, chosen in shards.items():
        save_file({family.written(name): tensors[name].contiguous() for name in chosen}, directory / shard)
    index = {family.written(name): shard for shard, chosen in shards.items() for name in chosen}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
