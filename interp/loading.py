"""Loading and saving: bundled models, Hugging Face directories, hub ids. All is checked before any of it is used."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.config import PRESETS, UNPUBLISHED, GPTConfig, from_hf, to_hf
from interp.errors import InputError, LoadError, NotFoundError, nearest
from interp.files import atomic_path
from interp.model import HookedGPT
from interp.tokenizer import Tokenizer

BUNDLED = Path(__file__).parent / "bundled"

_IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks that old checkpoints carry as buffers
_TEXT_FILES = ["config.json", "tokenizer.json", "vocab.json", "merges.txt"]
_SAFE_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_BIN_FILES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def bundled_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def load(source: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32) -> HookedGPT:
    """A model from a bundled name, a directory in Hugging Face layout, or a hub id.

    Args:
        source: "tiny"; a path; or an id such as "gpt2" (looked up in the hub's cache first, downloaded only if absent).
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: float32, bfloat16, float16 or float64; the weights are converted.

    Raises NotFoundError when there is no such model or the hub cannot be reached, LoadError when a file is damaged, a
    tensor is missing, unknown or has the wrong shape.
    """
    target = choose_device(device)
    directory = find(source)
    config_path = directory / "config.json"
    if not config_path.exists():
        raise NotFoundError(f"{directory} has no config.json", "expected a model directory in Hugging Face layout")
    config = from_hf(read_json(config_path), str(config_path))
    files = weight_files(directory)
    with torch.device("meta"):
        model = HookedGPT(config, tokenizer=Tokenizer.from_directory(directory))
    state = read_weights(files, {name: tuple(p.shape) for name, p in model.named_parameters()}, config, directory)
    model.load_state_dict({name: x.to(device=target, dtype=dtype) for name, x in state.items()}, assign=True)
    model.source = str(source)
    model.weight_files = tuple(files)
    return model


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant; "auto" is CUDA, then MPS, then the CPU. Raises InputError when it is not there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {str(device)!r}", "expected auto, cpu, cuda, cuda:N or mps") from None
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(chosen.type, 1)
    if (chosen.index or 0) >= there:
        raise InputError(f"device {str(device)!r}", f"this machine has {there} of that kind", "use --device cpu")
    return chosen


def find(source: str | Path) -> Path:
    """The directory that holds a model. Touches the network only for a hub id that is not in the cache."""
    text = str(source)
    if text in bundled_models():
        return BUNDLED / text
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if text in UNPUBLISHED:
        raise NotFoundError(f"the weights of {text} were never published", "its shapes are known: interp architecture")
    if path.is_file():
        raise NotFoundError(
            f"{text} is a file", "expected the directory that holds config.json and the weights", f"try {path.parent}"
        )
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise NotFoundError(f"no model at {text}", "expected a directory, a bundled name or a hub id", _names(text))
    return _from_hub(text)


def _names(text: str) -> str:
    known = [*bundled_models(), *(name for name in PRESETS if name not in UNPUBLISHED)]
    return f"known names: {', '.join(nearest(text, known) or known)}"


def _from_hub(name: str) -> Path:
    """A snapshot in the hub's cache, downloaded when it is not there yet and the hub may be asked."""
    from huggingface_hub import snapshot_download

    def snapshot(patterns: list[str], cached: bool) -> Path:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=cached))

    try:
        path = snapshot(_TEXT_FILES, cached=True)
        files = weight_names(path)
        if (path / "config.json").exists() and files and all(file.exists() for file in files):
            return path
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        path = snapshot(_TEXT_FILES + _SAFE_FILES, cached=False)
        return path if any(weight_names(path)) else snapshot(_BIN_FILES, cached=False)
    except Exception as error:  # the hub raises many kinds: offline switch, no network, no such repository, no access
        raise NotFoundError(
            f"model {name!r} is not bundled, not in the cache, and the hub gave none ({type(error).__name__})",
            f"{_names(name)}; or a directory with config.json and weights",
            "offline? copy the model's directory here and pass its path",
        ) from error


def weight_names(directory: Path) -> list[Path]:
    """The weight files of a directory: safetensors before `pytorch_model.bin`, one file or the shards of an index."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (directory / stem).exists():
            return [directory / stem]
        index = directory / f"{stem}.index.json"
        if index.exists():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            if not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
                raise LoadError(f"{index}: a shard lies outside the directory", "expected plain file names")
            return [directory / shard for shard in shards]
    return []


def weight_files(directory: Path) -> list[Path]:
    """As `weight_names`; raises NotFoundError when there is none or a shard is missing."""
    files = weight_names(directory)
    if not files:
        raise NotFoundError(
            f"{directory} has no weights", "expected model.safetensors (or its shards) or pytorch_model.bin"
        )
    for file in files:
        if not file.exists():
            raise NotFoundError(f"shard {file} is missing", f"its index names {len(files)} shards")
    return files


def read_weights(
    files: Iterable[Path], shapes: dict[str, tuple[int, ...]], config: GPTConfig, directory: Path
) -> dict[str, Tensor]:
    """Every parameter by this project's names, after all names and shapes have been checked.

    Safetensors are mapped, not copied: the peak of memory is the weights themselves.
    """
    readers = {}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for key, (shape, read) in open_tensors(file).items():
            name = key.removeprefix("transformer.")
            if not _IGNORED.fullmatch(name):
                found[name], readers[name] = shape, read
    expected = {hf_name(name): (name, shape) for name, shape in shapes.items()}
    check_shapes(found, {key: shape for key, (_, shape) in expected.items()}, directory)
    state = {name: readers[key]() for key, (name, _) in expected.items()}
    for key in found.keys() - expected.keys():
        if key == "lm_head.weight" and config.tied:
            same = found[key] == found["wte.weight"] and torch.equal(readers[key](), state["W_E"])
            problem = "" if same else "differs from wte.weight, but config.json ties them (tie_word_embeddings)"
        elif key.endswith(".bias") and not config.bias:
            problem = "" if not readers[key]().any() else "is not zero, but the config says bias: false"
        else:
            problem = "is not part of a GPT-2 model"
        if problem:
            raise LoadError(f"{directory}: tensor {key} {problem}", f"shape {list(found[key])}")
    return state


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], directory: Path
) -> None:
    """Raises LoadError, naming it, for a tensor that is missing or has another shape."""
    for key, shape in expected.items():
        if key not in found:
            close = nearest(key, list(found), 1)
            raise LoadError(
                f"{directory}: tensor {key} is missing",
                f"expected shape {list(shape)}",
                f"nearest there: {close[0]}" if close else "",
            )
        if found[key] != shape:
            raise LoadError(
                f"{directory}: tensor {key} has shape {list(found[key])}", f"expected {list(shape)} from config.json"
            )


def open_tensors(file: Path) -> dict[str, tuple[tuple[int, ...], "Reader"]]:
    """The tensors of a file by name: shape, and a function that reads one."""
    try:
        if file.suffix == ".safetensors":
            handle = safe_open(str(file), framework="pt", device="cpu")
            return {
                key: (tuple(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key))
                for key in handle.keys()  # noqa: SIM118 (not a dict)
            }
        mapped = zipfile.is_zipfile(file)  # files of torch before 1.6 cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        return {key: (tuple(x.shape), partial(tensors.__getitem__, key)) for key, x in tensors.items()}
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise LoadError(
            f"{file} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0][:120]}",
            "expected whole weights in safetensors or torch format; the file may be cut short",
            "fetch it again",
        ) from error


Reader: TypeAlias = Callable[[], Tensor]
"""Reads one tensor of a file."""


_TOP = {
    "W_E": "wte.weight",
    "W_pos": "wpe.weight",
    "ln_final.w": "ln_f.weight",
    "ln_final.b": "ln_f.bias",
    "unembed": "lm_head.weight",
}
_IN_BLOCK = {
    "ln1.w": "ln_1.weight",
    "ln1.b": "ln_1.bias",
    "attn.W_QKV": "attn.c_attn.weight",
    "attn.b_QKV": "attn.c_attn.bias",
    "attn.W_O_flat": "attn.c_proj.weight",
    "attn.b_O": "attn.c_proj.bias",
    "ln2.w": "ln_2.weight",
    "ln2.b": "ln_2.bias",
    "mlp.W_in": "mlp.c_fc.weight",
    "mlp.b_in": "mlp.c_fc.bias",
    "mlp.W_out": "mlp.c_proj.weight",
    "mlp.b_out": "mlp.c_proj.bias",
}


def hf_name(name: str) -> str:
    """Hugging Face's name (without `transformer.`) of a parameter of this project's model."""
    if name in _TOP:
        return _TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"h.{layer}.{_IN_BLOCK[rest]}"


def save(model: HookedGPT, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, model.safetensors and tokenizer.json so that `transformers` loads them as GPT2LMHeadModel.

    Args:
        dtype: of the weights on disk; by default as they are.

    Raises InputError for a model that GPT-2's layout cannot hold: one with an unembedding bias (folded layer norms), or
    with heads of another width than d_model / n_heads.
    """
    config, directory = model.config, Path(directory)
    if config.unembed_bias or config.n_heads * config.d_head != config.d_model:
        raise InputError(
            "this model does not fit GPT-2's file layout (an unembedding bias, or d_head x n_heads is not d_model)",
            "expected a model with GPT-2's own parts",
            "save the model it was made from, and process the weights again after loading",
        )
    tensors = {}
    for name, parameter in model.named_parameters():
        key = hf_name(name) if name == "unembed" else f"transformer.{hf_name(name)}"
        tensors[key] = parameter.detach().to(device="cpu", dtype=dtype).contiguous().clone()
    bos = model.tokenizer.bos if model.tokenizer is not None else None
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    data = to_hf(config) | {"dtype": kind, "bos_token_id": bos, "eos_token_id": bos}
    if not config.bias:  # transformers' GPT-2 always has biases
        data["interp_bias"] = False
        for name in [name for name in tensors if re.search(r"(c_attn|c_proj|c_fc)\.weight", name)]:
            tensors[name.removesuffix("weight") + "bias"] = tensors[name].new_zeros(tensors[name].shape[1])
    if model.tokenizer is not None:
        with atomic_path(directory / "tokenizer.json") as path:
            model.tokenizer.backend.save(str(path))
    with atomic_path(directory / "config.json") as path:
        path.write_text(json.dumps(data, indent=2) + "\n")
    with atomic_path(directory / "model.safetensors") as path:
        save_file(tensors, str(path), metadata={"format": "pt"})
        path.chmod(0o644)  # save_file leaves it readable by its owner alone


def weights_sha256(model: HookedGPT) -> str:
    """SHA-256 of the file the weights came from (what `sha256sum` prints), else of the tensors in name order."""
    if not model.weight_files:
        return parameters_sha256(model)
    digest = hashlib.sha256()
    for file in model.weight_files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def parameters_sha256(model: HookedGPT) -> str:
    """SHA-256 of the tensors as they are now, in name order: another one after any change, or in another dtype."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"{path} cannot be read: {error}", "expected JSON") from error
    if not isinstance(data, dict):
        raise LoadError(f"{path} holds {type(data).__name__}", "expected a JSON object")
    return data
