"""Damaged and odd checkpoints: each loads to what its files say, or is refused in three lines; nothing hangs.

    python tests/faults/checkpoints.py --count 3000 --seed 0

One file of a small saved model (whole, in shards, pickled, of another family, with bare vocabulary and merges) is
changed: bytes flipped or cut, entries of JSON replaced, added, doubled, tensors renamed, moved, copied or converted.
What loads is compared with transformers on the same folder: logits, and the ids and text of a few sentences.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
from conftest import TEXT, make_gpt  # noqa: E402
from faults.pages import TooLongError, flip, places, too_long  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer as Backend  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from interp import HookedEncoder, HookedEncoderDecoder, load  # noqa: E402
from interp.errors import InputError, LoadError, NotFoundError  # noqa: E402
from interp.loading.digests import non_finite  # noqa: E402
from interp.models.encoder_config import EncoderConfig, EncoderDecoderConfig  # noqa: E402
from interp.text.tokenizer import Tokenizer  # noqa: E402
from interp.text.vocabularies import END_OF_TEXT  # noqa: E402
from interp.text.wordpiece import WordPiece  # noqa: E402

SECONDS = 20
"""Longer than any of these may take."""
ROUNDING = torch.finfo(torch.float32).eps
"""As much as float32 cannot tell apart, as a share of a weight."""
IDS = torch.tensor([[5, 9, 5, 9, 31, 2, 200, 17]])
TEXTS = ["The cat sat.", "<|user|> hi <|end|>  x<|endoftext|>y", "l'été\n\n 12345"]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 1e308, 0.5, 4.0, float("nan"), float("inf"), "", "4",
    "x", "gelu", "relu", "../x", "a\x00b", "\ud800", "/dev/zero", [], [[]], {}, [1], ["x"], {"a": 1},
    {"content": "<|user|>"},
    "<|user|>", "<|endoftext|>", {"content": 3}, "x" * 100_000, [1] * 1000, "llama", "gpt2", "BPE", "e" * 40, "(a+)+$",
]  # fmt: skip
NAMES = [
    "n_embd", "hidden_size", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads", "num_key_value_heads",
    "head_dim", "n_inner", "intermediate_size", "n_positions", "max_position_embeddings", "vocab_size", "model_type",
    "layer_norm_epsilon", "rms_norm_eps", "activation_function", "hidden_act", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "text_config",
    "scale_attn_weights", "interp_windows", "interp_bias", "architectures", "quantization_config", "attention_bias",
    "bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens", "added_tokens_decoder",
    "add_prefix_space", "add_bos_token", "tokenizer_class", "weight_map", "metadata", "dropout", "byte_fallback",
    "unk_id", "normalizer", "pre_tokenizer", "decoder", "model", "added_tokens", "merges", "type", "prepend",
    "content", "pattern", "special", "lstrip", "normalized", "truncation", "padding", "continuing_subword_prefix",
]  # fmt: skip


# Originals.


def _backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 300, "special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet, "show_progress": False}
    backend.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(**options))
    return backend


def _gpt2(folder: Path) -> None:
    make_gpt(d_vocab=302, n_ctx=16, tokenizer=Tokenizer(_backend())).save_pretrained(folder)


def _shards(folder: Path, make: Callable[[Path], None] = _gpt2) -> None:
    make(folder)
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(held), {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: held[key] for key in names[number - 1 :: 2]}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names[number - 1 :: 2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _pickle(folder: Path) -> None:
    _gpt2(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _pairs(folder: Path) -> None:
    _gpt2(folder)
    (folder / "tokenizer.json").unlink()
    _backend().model.save(str(folder))
    for name, content in {
        "added_tokens": {"<|user|>": 300, "<|end|>": 301}, "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"},
        "special_tokens_map": {"bos_token": END_OF_TEXT, "eos_token": "<|end|>"},
        "generation_config": {"eos_token_id": [0, 301]},
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))


def _llama(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=302, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer(_backend()).save(folder)


def _bert(folder: Path) -> None:
    shape = {"n_layers": 2, "n_heads": 4, "d_model": 32, "n_ctx": 16, "d_vocab": 302, "init_std": 0.2}
    HookedEncoder(EncoderConfig(head="masked-language", **shape)).save_pretrained(folder)  # type: ignore[arg-type]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "."])
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def _vit(folder: Path) -> None:
    shape = {"n_layers": 2, "n_heads": 4, "d_model": 32, "image_size": (8, 8), "patch_size": (4, 4), "n_types": 0}
    more = {"head": "classifier", "n_classes": 3, "post_norm": False, "init_std": 0.2}
    HookedEncoder(EncoderConfig(**shape, **more)).save_pretrained(folder)  # type: ignore[arg-type]


def _marian(folder: Path) -> None:
    shape = {"n_encoder_layers": 2, "n_decoder_layers": 2, "n_heads": 4, "d_model": 32, "n_ctx": 16, "d_vocab": 302}
    HookedEncoderDecoder(EncoderDecoderConfig(**shape)).save_pretrained(folder)  # type: ignore[arg-type]


def _nanogpt(folder: Path) -> None:
    _gpt2(folder)
    state = {key: x.T if re.search(r"(c_attn|c_proj|c_fc).weight", key) else x for key, x in
             load_file(folder / "model.safetensors").items()}  # fmt: skip
    shutil.rmtree(folder)
    folder.mkdir()
    told = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 302, "bias": True}
    torch.save({"model": state, "model_args": told, "iter_num": 3}, folder / "ckpt.pt")


KINDS: dict[str, Callable[[Path], None]] = {
    "whole": _gpt2, "shards": _shards, "pickle": _pickle, "pairs": _pairs, "vit": _vit,
    "llama": lambda folder: _shards(folder, _llama), "bert": _bert, "marian": _marian, "nanogpt": _nanogpt,
}  # fmt: skip
"""Folders that are changed."""


# Changes. Each takes a file and writes it anew, or another.


def flipped(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    for _ in range(rng.choice([1, 1, 1, 8])):
        data = flip(data, rng)
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.7 else data + data[: rng.randrange(99)])


def odd(file: Path, rng: random.Random) -> None:
    """One to three entries of a JSON file replaced, added or removed; those of a vocabulary seldom."""
    data = json.loads(file.read_text())
    for _ in range(rng.choice([1, 1, 2, 3])):
        ways = places(data) or [("x",)]
        few = [way for way in ways if len(way) < 3 or way[1] not in ("vocab", "merges")]
        *way, last = rng.choice(few if few and rng.random() < 0.9 else ways)
        holder = data
        for key in way:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.15 and isinstance(holder, dict):
            holder.pop(last, None)
        elif kind < 0.4 and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = deepcopy(rng.choice(ODD))
        else:
            holder[last] = deepcopy(rng.choice(ODD))
    file.write_text(json.dumps(data))


def doubled(file: Path, rng: random.Random) -> None:
    """An entry of a JSON file written twice, with two values."""
    data = json.loads(file.read_text())
    name = rng.choice(list(data) or ["a"])
    file.write_text("{" + f"{json.dumps(name)}: {json.dumps(rng.choice(ODD))}, " + file.read_text().lstrip()[1:])


def exchanged(file: Path, rng: random.Random) -> None:
    """Something else altogether."""
    file.write_bytes(rng.choice([b"", b"[]", b"null", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", bytes(999)]))


def header(file: Path, rng: random.Random) -> None:
    """The header of a safetensors file, with a length that fits."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in text if key != "__metadata__"])
    entry, other = text[name], text[rng.choice([key for key in text if key != "__metadata__"])]
    kind = rng.randrange(6)
    if kind == 0:
        entry["dtype"] = rng.choice(["F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", 3])
    elif kind == 1:
        entry["shape"] = rng.choice([entry["shape"][::-1], [], [-1], [2**62, 4], [0], "x", [entry["shape"][0], 1.0]])
    elif kind == 2:
        entry["data_offsets"] = rng.choice([other["data_offsets"], [0, 0], [-1, 4], [2**63, 2**64], [5], None])
    elif kind == 3:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == 4:
        text[rng.choice([name.removeprefix("transformer."), "lm_head.weight", "x", name + ".scale"])] = text.pop(name)
    else:
        text = {name: other, **text}
    new = json.dumps(text)
    new = "{" + f"{json.dumps(name)}: {json.dumps(other)}, " + new[1:] if kind == 5 else new
    file.write_bytes(len(new.encode()).to_bytes(8, "little") + new.encode() + data[8 + size :])


def tensors(file: Path, rng: random.Random) -> None:
    """A tensor renamed, dropped, copied, converted, transposed, made NaN, or changed in another shard."""
    safe = file.suffix == ".safetensors"
    whole: dict[Any, Any] = load_file(file) if safe else torch.load(file, weights_only=True)
    held = whole.get("model", whole)  # of nanoGPT
    name = rng.choice(sorted(held))
    x, kind = held[name], rng.randrange(8)
    if kind == 0:
        held[rng.choice([name.replace("h.0", "h.1"), "lm_head.weight", "x." + name, name + "x"])] = held.pop(name)
    elif kind == 1:
        del held[name]
    elif kind == 2:
        held[name.removeprefix("transformer.").removeprefix("model.")] = torch.zeros_like(x)
    elif kind == 3:
        kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int8, torch.bool, torch.complex64]
        held[name] = x.to(rng.choice([*kinds, torch.float8_e4m3fn]))
    elif kind == 4:
        held[name] = rng.choice([x.mT.contiguous() if x.ndim > 1 else x[:-1].clone(), x[None], x.flatten(), x[:0]])
    elif kind == 5:
        held[name] = x.clone().index_fill_(0, torch.tensor([0]), rng.choice([float("nan"), float("inf"), 1e30]))
    elif kind == 6 and (others := [other for other in file.parent.glob("model-*") if other != file]):
        return save_file({**load_file(others[0]), name: x + 1.0}, others[0])  # a stale copy
    elif not safe:
        held = rng.choice(
            [{"model": held}, list(held.values()), {**held, "a": 3}, {**held, 3: x}, {"state_dict": held}]
        )
    if safe:
        return save_file(held, file, metadata={"format": "pt"})
    torch.save(whole | {"model": held} if "model" in whole else held, file)


def changes(file: Path) -> list[Callable[[Path, random.Random], None]]:
    if file.suffix == ".json":
        return [odd, odd, odd, odd, doubled, flipped, cut, exchanged]
    if file.suffix == ".safetensors":
        return [header, header, tensors, tensors, flipped, cut]
    if file.suffix in (".bin", ".pt"):
        return [tensors, flipped, cut]
    return [flipped, cut, exchanged]


# What came of it.


@contextlib.contextmanager
def silence(path: Path) -> Iterator[None]:
    """What is written to stderr, by libraries that are not Python too, goes to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _sees(model: Any) -> bool:
    return isinstance(model, HookedEncoder) and model.config.over_patches


def _input(model: Any) -> torch.Tensor:
    """Token ids, or an image."""
    if not _sees(model):
        return IDS
    size = (1, model.config.n_channels, *model.config.image_size)
    return torch.linspace(-1, 1, math.prod(size)).reshape(size)


def theirs(model: Any, folder: Path, apart: float = 0.0) -> torch.Tensor | None:
    """The logits as transformers gives them; None where it refuses the folder, or finds no value for a parameter.

    Args:
        apart: how far every weight is moved at random, as a share of itself.
    """
    kinds = {HookedEncoder: "AutoModelForMaskedLM", HookedEncoderDecoder: "AutoModelForSeq2SeqLM"}
    name = kinds.get(type(model), "AutoModelForCausalLM")
    kind = getattr(transformers, "AutoModelForImageClassification" if _sees(model) else name)
    options = {"local_files_only": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        twin, told = kind.from_pretrained(folder, **options)
        for weight in twin.parameters() if apart else ():
            weight.mul_(1 + apart * torch.randn_like(weight))
        more = {"decoder_input_ids": IDS} if "Seq2Seq" in kind.__name__ else {}
        found: torch.Tensor = twin.eval()(_input(model), **more).logits
    except Exception:
        return None
    return None if told["missing_keys"] else found


def compare(model: Any, folder: Path) -> str:
    """What differs from what transformers finds in the folder; "" for nothing, "alone" where it refuses, "rounding"
    where its logits differ as much from its own, every weight moved by a rounding.
    """
    expected, outcome = theirs(model, folder), ""
    if expected is None:
        outcome = "alone"
    else:
        found = model(IDS, IDS) if isinstance(model, HookedEncoderDecoder) else model(_input(model))
        if not same(found, expected):
            moved = [theirs(model, folder, ROUNDING) for _ in range(3)]
            if found.shape != expected.shape or all(x is not None and same(x, expected) for x in moved):
                return f"logits {list(found.shape)} differ from {list(expected.shape)}"
            outcome = "rounding"
    difference = compare_text(model.tokenizer, folder) if isinstance(model.tokenizer, Tokenizer) else ""
    return difference or outcome


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


def compare_text(mine: Tokenizer, folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        expected = [other.encode(text, add_special_tokens=False) for text in TEXTS]
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, TooLongError)):
            raise
        return "alone"
    for text, ids in zip(TEXTS, expected, strict=True):
        try:
            found = mine.encode(text)
        except InputError:
            return "alone"
        if found != ids:
            return f"ids of {text!r}: {found} for {ids}"
        written = other.decode(ids, skip_special_tokens=isinstance(mine, WordPiece), clean_up_tokenization_spaces=False)
        if mine.to_string(ids) != written:
            return f"text of {ids}: {mine.to_string(ids)!r} for {written!r}"
    return ""


def tried(folder: Path, errors: Path) -> tuple[str, str]:
    """What came of loading: "refused", "loaded", "alone" (transformers refuses), "rounding" (of which no logits can be
    expected, see `compare`) or "bad"; and what is to be said.
    """
    model, said = None, ""
    try:
        with silence(errors), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            signal.alarm(SECONDS)
            model = load(folder, device="cpu")
            non_finite(model)
    except (LoadError, NotFoundError, InputError) as error:
        lines = str(error).splitlines()
        if len(lines) > 3 or not all(line.isprintable() for line in lines):
            said = f"not three plain lines: {str(error)!r}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    signal.alarm(0)
    said = said or errors.read_text(errors="replace")
    if said or model is None:
        return ("bad", said) if said else ("refused", "")
    with silence(errors), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        signal.alarm(3 * SECONDS)
        try:
            said = compare(model, folder)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        signal.alarm(0)
    return ("bad", said) if said not in ("", "alone", "rounding") else (said or "loaded", "")


def attempt(count: int, rng: random.Random, folder: Path, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """So many changed checkpoints. Returns how often each came out how, and what was wrong.

    Args:
        keep: where those that were wrong are copied to.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    before = signal.signal(signal.SIGALRM, too_long)
    seen, wrong = Counter[str](), []
    for name, make in KINDS.items():
        make(folder / name)
    try:
        for number in range(count):
            name = list(KINDS)[number % len(KINDS)]
            trial = folder / "trial"
            shutil.rmtree(trial, ignore_errors=True)
            shutil.copytree(folder / name, trial)
            file = rng.choice(sorted(trial.iterdir()))
            change = rng.choice(changes(file))
            change(file, rng)
            kind, said = tried(trial, folder / "errors")
            seen[kind] += 1
            if kind == "bad":
                wrong.append(f"{number}: {change.__name__} of {name}/{file.name}: {said[:400]!r}")
                if keep is not None:
                    shutil.copytree(trial, keep / str(number))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return seen, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for those that are wrong")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as folder:
        seen, wrong = attempt(given.count, random.Random(given.seed), Path(folder), given.keep)
    print(f"{given.count} checkpoints: {dict(seen)}", *wrong, sep="\n  ")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
