"""Loading and saving: bundled models, Hugging Face directories, hub ids. All is checked before any of it is used."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import nn

from interp.config import PRESETS, UNPUBLISHED, GPTConfig
from interp.errors import InputError, LoadError, NotFoundError, nearest
from interp.families import Family, family_of, own_config, to_hf
from interp.layouts import WHOLE, Layout, Readers, fill, read_tensors, to_tensors, write_model
from interp.linear import wide_dtype
from interp.migration import refuse_keywords
from interp.model import HookedGPT
from interp.tokenizer import Tokenizer
from interp.untrusted import read_json, reading

if TYPE_CHECKING:
    from interp.encoder import HookedEncoder
    from interp.encoder_decoder import HookedEncoderDecoder

AnyModel: TypeAlias = "HookedGPT | HookedEncoder | HookedEncoderDecoder"
Kind = TypeVar("Kind", bound=nn.Module)

BUNDLED = Path(__file__).parent / "bundled"

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


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **unknown: Any,
) -> AnyModel:
    """A model of any kind from a bundled name, a directory in Hugging Face layout, one file, or a hub id.

    Args:
        source: "tiny"; a directory, or a file of one of the kinds in `interp.single_files`; or an id such as "gpt2"
            (looked up in the hub's cache first, downloaded only if absent).
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: float32, bfloat16, float16 or float64, to which the weights are converted; "auto" keeps the files' own.

    Raises NotFoundError when there is no such model or the hub cannot be reached, LoadError when a file is damaged, a
    tensor is missing, unknown or has the wrong shape, or the model needs a part that is not supported.
    """
    refuse_keywords("from_pretrained", unknown)
    if not isinstance(source, (str, Path)):
        raise InputError(f"a model of type {type(source).__name__}", "expected a bundled name, a path or a hub id")
    check_dtype(None if dtype == "auto" else dtype)
    target, directory = choose_device(device), find(source)
    wanted = None if dtype == "auto" else dtype
    if directory.is_file():
        from interp.single_files import load_file

        model: AnyModel = load_file(directory, target, wanted)
        model.source, model.weight_files = str(source), (directory,)
        return model
    kind = model_type(directory)
    if kind in ENCODERS:
        from interp import encoder_loading

        model = getattr(encoder_loading, ENCODERS[kind])(directory, weight_files(directory), target, wanted)
    else:
        model = _load_decoder(directory, target, wanted)
    model.source, model.weight_files = str(source), tuple(weight_files(directory))
    return model


ENCODERS = {"marian": "load_encoder_decoder", "bert": "load_encoder", "vit": "load_encoder"}
"""`model_type`s that are no decoders, and what in `interp.encoder_loading` loads them."""


def load_as(cls: type[Kind], source: str | Path, **options: Any) -> Kind:
    """As `load`; raises LoadError for a model of another kind."""
    model = load(source, **options)
    if not isinstance(model, cls):
        raise LoadError(
            f"{source} holds a {type(model).__name__}", f"expected a {cls.__name__}", "interp.load loads any kind"
        )
    return model


def model_type(directory: Path) -> str:
    """What the directory's `config.json` says it holds: gpt2, llama, marian, ...; gpt2 where it does not say.

    Raises NotFoundError without a config.json.
    """
    path = directory / "config.json"
    if not path.exists():
        raise NotFoundError(f"{directory} has no config.json", "expected a model directory in Hugging Face layout")
    return str(read_json(path).get("model_type", "gpt2"))


def _load_decoder(directory: Path, device: torch.device, dtype: torch.dtype | None) -> HookedGPT:
    path = directory / "config.json"
    data = read_json(path)
    if data.get("model_type") == "gemma3" and isinstance(data.get("text_config"), dict):
        tied = data.get("tie_word_embeddings", True)  # of a model that reads pictures too
        data = {"model_type": "gemma3_text", **data["text_config"], "tie_word_embeddings": tied}
    family = family_of(data, str(path))
    readers = read_tensors(weight_files(directory), family.plain)
    check_layers(data, readers, path)
    with reading(path, f"expected a {family.title} config.json", ""):
        config = family.read(data, str(path))
    tokenizer = Tokenizer.from_directory(directory)
    model = build(family, config, readers, directory, tokenizer=tokenizer, device=device, dtype=dtype)
    if data.get("model_type", "gpt2") != "gpt2":
        model.origin = {key: value for key, value in data.items() if key not in ("dtype", "torch_dtype")}
    return model


def check_layers(config: Mapping[str, Any], readers: Readers, where: Path) -> None:
    """Raises LoadError for more layers than there are tensors, before so many are built."""
    for name in ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "encoder_layers", "decoder_layers"):
        layers = config.get(name)
        if isinstance(layers, int) and layers > len(readers):
            raise LoadError(f"{where}: {name} = {layers}", f"expected layers that {len(readers)} tensors can fill")


def build(
    family: Family,
    config: GPTConfig,
    readers: Readers,
    where: Path | str,
    *,
    layout: Layout | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> HookedGPT:
    """A model of this config with the weights that `readers` give, by the family's names without prefixes.

    The embedding of a tied model may be there as its unembedding alone. Raises LoadError, naming it, for a tensor that
    is missing, unknown or has another shape.
    """
    embed, unembed = (f"{name}.weight" for name in (family.names.embed, family.names.unembed))
    if config.tied and unembed in readers:
        readers = {embed: readers[unembed], **readers}
    with reading(f"{where}: a model of this config", "expected shapes that fit into memory", ""), torch.device("meta"):
        model = HookedGPT(config, tokenizer=tokenizer)
    if layout is None:
        layout = family.layout(config, parameter_shapes(model))

    def leftover(key: str, readers: Readers) -> str:
        return family.leftover(key, readers, config)

    fill(model, layout, readers, where, leftover=leftover, device=device, dtype=dtype)
    return model


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


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
"""Endings of files that hold a whole model; see `interp.single_files`."""


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


def save(model: HookedGPT, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, model.safetensors and tokenizer.json.

    A loaded model keeps its family's layout, and one that fits GPT-2's gets that: `transformers` loads both. Whatever
    fits neither (folded norms, a toy's parts) is written in a layout of our own, which only `interp` reads.

    Args:
        dtype: of the weights on disk; by default as they are.
    """
    if not isinstance(directory, (str, Path)) or Path(directory).is_file():
        raise InputError(f"{str(directory)[:60]!r} to save to", "expected the path of a folder")
    check_dtype(dtype)
    config, directory = model.config, Path(directory)
    data = model.origin or to_hf(config) or own_config(config)
    family = family_of(data, "config.json")
    tensors = to_tensors(model, family.layout(config, parameter_shapes(model)), dtype)
    if data["model_type"] == "gpt2" and not config.bias:  # transformers' GPT-2 always has biases
        for name in [name for name in tensors if re.search(r"(c_attn|c_proj|c_fc)\.weight", name)]:
            tensors[name.removesuffix("weight") + "bias"] = tensors[name].new_zeros(tensors[name].shape[1])
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
        if not model.origin:
            ends = sorted(model.tokenizer.ends)
            data |= {"bos_token_id": model.tokenizer.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    write_model(directory, data, {family.written(key): x for key, x in tensors.items()})


def weights_sha256(model: AnyModel) -> str:
    """SHA-256 of the file the weights came from (what `sha256sum` prints), else of the tensors in name order."""
    if not model.weight_files:
        return parameters_sha256(model)
    digest = hashlib.sha256()
    for file in model.weight_files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def non_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or an infinity; one pass over all weights."""
    bad = []
    for name, parameter in model.named_parameters():
        x = parameter.detach()
        if not x.is_meta and not x.sum(dtype=wide_dtype(x.dtype)).isfinite() and not x.isfinite().all():
            bad.append(name)
    return bad


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256 of the tensors as they are now, in name order: another one after any change, or in another dtype."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
