"""Every option of every analysis on every kind of model: it changes the result, or is refused."""

import dataclasses
import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.shared.panels import Result
from interp import SAMPLE, EncoderConfig, HookedEncoder, HookedGPT, load
from interp.errors import InterpError
from interp.text.documents import Documents
from interp.text.wordpiece import WordPiece
from reports.running.discovery import Analysis, Option, discover

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "on", "mat", "a", "in", "river"]


def text_encoder() -> HookedEncoder:
    """A BERT with random weights that knows a few words."""
    torch.manual_seed(0)
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 16, "n_ctx": 24, "d_vocab": len(WORDS)}
    model = HookedEncoder(EncoderConfig(head="masked-language", init_std=0.3, **shape))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(WORDS))
        model.tokenizer = WordPiece.from_directory(Path(folder))
    return model


MODELS: dict[str, Any] = {
    "decoder": lambda: HookedGPT.from_pretrained("tiny", device="cpu"),
    "translation": lambda: load("fr-en", device="cpu"),
    "encoder": text_encoder,
}
TEXTS: dict[str, Any] = {
    "decoder": ["Mary and John met in Leeds, and John saw Mary", "The river rose in the spring, and the mill"],
    "translation": ["Le chien voit la maison.", "La femme aime le jardin."],
    "encoder": ["the cat [MASK] on the mat", "the dog sat on the [MASK]"],
}
VALUES: dict[str, Any] = {
    "answer": 7, "wrong": 9, "target": 7, "layers": (1,), "positions": (-1,), "chosen": ("L0N3",),
    "methods": ("eap",), "metric": "logit",
    "matrix": "blocks.0.W_in",
    "components": "mlps", "senders": "heads", "receivers": "L2H0.q", "reference": ("Some other words are here.",),
    "label": "capital", "words": ("of", "in"), "distance": 1, "pos": -2, "temperature": 0.5, "clusters": 3,
    "site": "attn_out", "held_out": 0.5, "length": 8, "head": 1, "window": 3, "top_p": 0.5, "metrics": ("logit",),
    "context": 1, "side": 32, "samples": 8, "base": 100.0, "top_k": 3, "keep": 1, "chunk": 2, "memory": 1 << 30,
    "read": (-2,), "seed": 3, "most": 4, "sample": 6, "steps": 2, "batch": 5,
}  # fmt: skip
"""Values unlike the defaults, of any analysis; what is not here is made from the option's type."""
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("ablation", "draws"): {"kinds": ("resample",)},
    ("ablation", "reference"): {"kinds": ("mean",)},
    ("ablation", "wrong"): {"metrics": ("logit_diff",)},
    ("ablation", "answer"): {"metrics": ("logit",)},
    ("next_token", "top_k"): {"temperature": 1.0, "steps": 8},
    ("activation_patching", "by_position"): {"site": "z"},
    ("probing", "label"): {"documents": Documents.load(SAMPLE)},
}
"""Options without which another changes nothing."""
UNSEEN = {
    "memory": "bounds memory",
    "chunk": "bounds memory",
    "seed": "draws what a few texts need not",
    "keep": "bounds what a page shows of more texts than there are here",
    "documents": "a file",
    "corpus": "a file",
    "from_": "a file",
    "other": "a model",
    "translators": "a file",
    "zoo": "a file",
    "full": "another model",
    "corrupted": "tested with prompts",
    "read": "of functions as metrics",
}
"""Options that may change nothing here, and why."""
REFUSING = ("verify", "compare")
"""Need models of others."""


def digest(thing: Any, whole: Any) -> None:
    """Feeds all that a result says to a hash."""
    if isinstance(thing, pd.DataFrame):
        whole.update(thing.to_json(double_precision=15).encode())
    elif isinstance(thing, np.ndarray):
        whole.update(np.ascontiguousarray(thing.astype(str) if thing.dtype == object else thing).tobytes())
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            digest(getattr(thing, field.name), whole)
    elif isinstance(thing, dict):
        for name, value in thing.items():
            whole.update(str(name).encode())
            digest(value, whole)
    elif isinstance(thing, (list, tuple)):
        for one in thing:
            digest(one, whole)
    else:
        whole.update(repr(thing).encode())


def said(result: Result) -> str:
    whole = hashlib.sha256()
    for part in (result.to_dataframe(), result.panels(), result.findings()):
        digest(part, whole)
    return whole.hexdigest()


def other_value(option: Option) -> Any:
    if option.name in VALUES:
        return VALUES[option.name]
    if get_origin(option.type) is Literal:
        given = option.default if isinstance(option.default, tuple) else (option.default,)
        word = next(word for word in get_args(option.type) if word not in given)
        return (word,) if option.many else word
    if option.type is bool:
        return not option.default
    return {int: (option.default or 1) + 1, float: (option.default or 1.0) / 2}[option.type]


@cache
def model_of(kind: str) -> Any:
    return MODELS[kind]()


@cache
def usual(name: str, kind: str, beside: tuple[tuple[str, Any], ...]) -> str:
    return said(run(name, kind, dict(beside)))


def run(name: str, kind: str, options: dict[str, Any]) -> Result:
    analysis = discover()[name]
    needed = {o.name: VALUES.get(o.name, 2) for o in analysis.options() if o.required} | options
    with torch.no_grad():
        return analysis.function()(model_of(kind), TEXTS[kind], **needed)


def cases() -> list[Any]:
    found = []
    for name, analysis in discover().items():
        slow = [pytest.mark.slow]
        found += [
            pytest.param(analysis, kind, marks=slow, id=f"{name}-{kind}") for kind in MODELS if name not in REFUSING
        ]
    return found


@pytest.mark.parametrize(("analysis", "kind"), cases())
def test_an_option_is_read_or_refused(analysis: Analysis, kind: str) -> None:
    if not analysis.serves(model_of(kind)):
        pytest.skip("another kind of model")
    try:
        usual(analysis.name, kind, ())
    except InterpError:  # this analysis does not take this model: one that it could not read anyway
        return
    ignored = []
    for option in analysis.options():
        if option.name in UNSEEN and option.name not in ("memory", "seed"):
            continue
        beside = BESIDE.get((analysis.name, option.name), {})
        value = other_value(option)
        try:
            before = usual(analysis.name, kind, tuple(beside.items()))
            after = said(run(analysis.name, kind, beside | {option.name: value}))
        except InterpError:
            continue
        if before == after and option.name not in UNSEEN:
            ignored.append(f"{option.name} = {value!r}")
    assert not ignored


def test_a_result_that_differs_is_seen() -> None:
    """The control: the digest sees one value of one table, and is the same for the same run."""
    assert usual("architecture", "decoder", ()) == said(run("architecture", "decoder", {}))
    assert usual("architecture", "decoder", ()) != said(run("architecture", "decoder", {"length": 9}))
