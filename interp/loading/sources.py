"""Where a model lies: bundled names, directories, hub ids and the hub's cache; its weight files and its device."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from interp.errors import InputError, LoadError, NotFoundError, nearest
from interp.loading.families import family_of
from interp.loading.layouts import WHOLE
from interp.models.config import PRESETS, UNPUBLISHED
from interp.untrusted import read_json

BUNDLED = Path(__file__).parent.parent / "bundled"
ENCODERS = ("marian", "bert", "vit")
"""`model_type`s that are no decoders."""

_TEXT_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt",
]  # fmt: skip

_SAFE_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]

_BIN_FILES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]

PATIENCE = 8.0
"""Seconds that a hub may take to answer whether it has a model."""

STALLED = 8.0
"""Seconds of a download in which something must arrive."""


def bundled_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def model_type(directory: Path) -> str:
    """What the directory's `config.json` says it holds: gpt2, llama, marian, ...; gpt2 where it does not say.

    Raises NotFoundError without a config.json.
    """
    path = directory / "config.json"
    if not path.exists():
        raise NotFoundError(f"{directory} has no config.json", "expected a model directory in Hugging Face layout")
    return str(read_json(path).get("model_type", "gpt2"))


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
    """The directory or file that holds a model. Touches the network only for a hub id that is not in the cache."""
    text = str(source)
    if text in bundled_models():
        return BUNDLED / text
    path = Path(source).expanduser()
    if path.is_dir():
        return path if (path / "config.json").exists() else only_file(path)
    if path.is_file():
        return path
    if text in UNPUBLISHED:
        raise NotFoundError(f"the weights of {text} were never published", "its shapes are known: interp architecture")
    if path.suffix in SINGLE:
        raise NotFoundError(
            f"there is no file {text}", "expected a model's file or directory, a bundled name or a hub id"
        )
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise NotFoundError(f"no model at {text}", "expected a directory, a bundled name or a hub id", _names(text))
    return _from_hub(text)


def check_dtype(dtype: object) -> None:
    """Raises InputError for what is no dtype that weights can have; None is none."""
    if dtype not in (None, torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise InputError(f"dtype {dtype!r}", "expected torch.float32, float64, float16 or bfloat16, or 'auto' to load")


def only_file(directory: Path) -> Path:
    """The one file of a directory without config.json that may hold a whole model; the directory if there is none."""
    found = [path for path in sorted(directory.iterdir()) if path.suffix in SINGLE and not path.name.startswith("tok")]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise NotFoundError(f"{directory} has no config.json and {len(found)} model files", f"expected one of: {names}")
    return found[0] if found else directory


SINGLE = (".gguf", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of files that hold a whole model; see `interp.loading.single_files`."""


def _names(text: str) -> str:
    known = [*bundled_models(), *(name for name in PRESETS if name not in UNPUBLISHED)]
    return f"known names: {', '.join(nearest(text, known) or known)}"


def _from_hub(name: str) -> Path:
    """A snapshot in the hub's cache, downloaded when it is not there yet and the hub may be asked."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    def snapshot(patterns: list[str], cached: bool) -> Path:
        if cached:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        return _download(name, patterns, Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}")

    try:
        path = snapshot(_TEXT_FILES, cached=True)
        files = weight_names(path)
        if (path / "config.json").exists() and files and all(file.exists() for file in files):
            return path
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        HfApi().model_info(name, timeout=PATIENCE)  # asked once: a download asks a hub that is silent again and again
        path = snapshot(_TEXT_FILES, cached=False)
        if model_type(path) not in ENCODERS:
            family_of(read_json(path / "config.json"), name)  # refused before the weights are fetched
        path = snapshot(_TEXT_FILES + _SAFE_FILES, cached=False)
        return path if any(weight_names(path)) else snapshot(_BIN_FILES, cached=False)
    except LoadError:
        raise
    except Exception as error:  # the hub raises many kinds: offline switch, no network, no such repository, no access
        kind = str(error) if type(error) is OSError else type(error).__name__
        raise NotFoundError(
            f"model {name!r} is not bundled, not in the cache, and the hub gave none ({kind})",
            f"{_names(name)}; or a directory with config.json and weights",
            "offline? copy the model's directory here and pass its path",
        ) from error


_DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
try:
    print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:]))
except Exception as error:
    print(type(error).__name__)
    sys.exit(1)
"""


def _download(name: str, patterns: Sequence[str], folder: Path) -> Path:
    """A snapshot from the hub, by a process of its own, since the library asks a silent hub again for minutes.

    Raises OSError when for `STALLED` seconds nothing arrives in the folder of the cache, or the hub gives an error.
    """
    command, said, arrived, looks = [sys.executable, "-P", "-c", _DOWNLOAD, name, *patterns], "", -1, 0
    bars = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | bars) as child:
        try:
            while child.returncode is None and looks < 9:
                looks = looks + 1 if arrived == (arrived := _bytes_in(folder)) else 0
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said, _ = child.communicate(timeout=STALLED / 9)
        finally:
            child.kill()
    if child.returncode:
        raise OSError(said.strip() or f"nothing arrived for {STALLED:g} seconds")
    return Path(said.strip())


def _bytes_in(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            sizes += path.lstat().st_size
    return sizes


def weight_names(directory: Path) -> list[Path]:
    """The weight files of a directory: safetensors before `pytorch_model.bin`, one file or the shards of an index."""
    for stem in WHOLE:
        if (directory / stem).exists():
            return [directory / stem]
        index = directory / f"{stem}.index.json"
        if index.exists():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
                raise LoadError(f"{index} has no weight_map", "expected the file name of each tensor by its name")
            if not all(Path(s).name == s and len(s) < 200 and s.isprintable() for s in named.values()):
                raise LoadError(f"{index}: a shard lies outside the directory", "expected plain file names")
            return [directory / shard for shard in sorted(set(named.values()))]
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
