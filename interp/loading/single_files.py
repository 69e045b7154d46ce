"""One file that holds a whole model: `.gguf`, llama2.c's `.bin`, nanoGPT's checkpoint, a state dict with its config."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import LoadError
from interp.loading import llama2c
from interp.loading.decoders import build
from interp.loading.layouts import open_tensors, read_torch
from interp.loading.state_dicts import from_state_dict
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.untrusted import read_json, reading, regular


def load_file(file: Path, device: torch.device, dtype: torch.dtype | None) -> HookedGPT:
    """The model in a file. Raises LoadError for a file of another kind, or one that is damaged.

    A `.gguf` file has all in itself. llama2.c's `.bin` has its vocabulary in `tok*.bin` beside it. A file of torch or
    safetensors holds a state dict, or one of torch a mapping with that under "model" (nanoGPT) or "state_dict"; its
    config is `model_args`, `config` or `cfg` there, else in `NAME.json` or `config.json` beside it, where a tokenizer
    may lie too.
    """
    with reading(regular(file), "expected a whole model file"):
        return _load(file, device, dtype)


def _load(file: Path, device: torch.device, dtype: torch.dtype | None) -> HookedGPT:
    if file.suffix == ".gguf":
        from interp.loading import gguf_files  # needs a library that is an extra

        family, config, readers, tokenizer = gguf_files.load(file)
        return build(family, config, readers, file, tokenizer=tokenizer, device=device, dtype=dtype)
    with file.open("rb") as stream:
        pickled = stream.read(1) == b"\x80"
    if zipfile.is_zipfile(file) or pickled or safe(file):
        return _from_state(file).to(device=device, dtype=dtype)
    if file.suffix == ".bin":
        config, readers = llama2c.read(file)
        tokenizer = llama2c.read_tokenizer(file, config.d_vocab)
        return build(llama2c.FAMILY, config, readers, file, tokenizer=tokenizer, device=device, dtype=dtype)
    raise LoadError(
        f"{file}: not a model file", "expected .gguf, .bin of llama2.c, .pt of torch, or a model's directory"
    )


def _from_state(file: Path) -> HookedGPT:
    if safe(file):
        whole: Any = {key: read() for key, (_, read) in open_tensors(file).items()}
    else:
        whole = read_torch(file)
    whole = whole if isinstance(whole, Mapping) else {}
    inside = [whole[key] for key in ("model", "state_dict", "model_state_dict") if isinstance(whole.get(key), Mapping)]
    state = inside[0] if inside else whole
    tensors = {key: x for key, x in state.items() if isinstance(x, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise LoadError(f"{file} holds no state dict", "expected tensors by name, or such a dict under 'model'")
    beside = [path for path in (file.with_suffix(".json"), file.parent / "config.json") if path.exists()]
    told = next((whole[key] for key in ("model_args", "model_config", "cfg", "config") if key in whole), None)
    if told is None and beside:
        told = read_json(beside[0])
    if told is None:
        raise LoadError(
            f"{file}: weights without a config", f"expected model_args in it, or {file.stem}.json beside it",
            "from Python: HookedGPT.from_state_dict(state, config)",
        )  # fmt: skip
    return from_state_dict(tensors, told, tokenizer=Tokenizer.from_directory(file.parent))


def safe(file: Path) -> bool:
    return file.suffix == ".safetensors"
